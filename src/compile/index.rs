//! The records of all service ports of a family, and what waits to be compiled.

use std::collections::BTreeSet;

use super::record::{Records, Sums, of_service};
use super::source::Source;
use super::turns::{Turns, Work};
use crate::iptables::{ChainName, Rule, Table};
use crate::model::{ServiceName, ServicePortName};
use crate::rules::overlap::Overlaps;
use crate::rules::{Layout, Settings};

/// Which Services a sync compiles. After a failure the next one compiles all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncScope {
    /// Every Service.
    Full,
    /// These, which may be gone: they or their endpoints changed.
    Partial(BTreeSet<ServiceName>),
}

impl SyncScope {
    pub(super) const NOTHING: SyncScope = SyncScope::Partial(BTreeSet::new());
}

/// The index of the compiled service ports of one family: a record of each, which holds no rule text, and
/// what the records come to.
///
/// ```
/// use std::collections::BTreeSet;
/// use chainsmith::compile::{Compiled, NoRules, Source, View};
/// use chainsmith::config::Config;
/// use chainsmith::model::{Inventory, ObjectName, host::Host, decode::{Interner, manifest}};
/// use chainsmith::net::IpFamily;
/// use chainsmith::policy::Place;
/// use chainsmith::rules::Settings;
///
/// let text = "
/// kind: Service
/// metadata: {name: web}
/// spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
/// ---
/// kind: EndpointSlice
/// metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
/// addressType: IPv4
/// ports: [{port: 8080}]
/// endpoints: [{addresses: [10.1.0.1]}]";
/// let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
/// manifest::read(text.as_bytes(), "example", &mut |object| {
///     assert_eq!(inventory.add(&object, &mut interner), []);
/// });
/// let snapshot = inventory.snapshot_for("node-a");
/// let settings = Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4);
/// let view = View { snapshot: &snapshot, place: Place { node: "node-a", zone: None } };
/// let source = Source { settings: &settings, view };
///
/// let mut compiled = Compiled::default();
/// let mut changed = compiled.apply(source, &BTreeSet::new(), &NoRules);
/// let mut chains = Vec::new();
/// let done: Result<(), ()> = changed.each_group(|group| {
///     chains.extend(group.chains.iter().map(|chain| chain.name.as_str()[..9].to_owned()));
///     Ok(())
/// });
/// assert!(done.is_ok());
/// assert_eq!(chains, ["KUBE-SEP-", "KUBE-SVC-"]);
///
/// // Nothing is compiled again unless it changes.
/// assert!(!compiled.is_dirty());
/// compiled.touch([ObjectName::new("default", "web")]);
/// assert!(compiled.is_dirty());
/// ```
#[derive(Debug)]
pub struct Compiled {
    /// What has to be compiled, but for `turns`.
    pub(super) pending: SyncScope,
    /// Large Services that changed, which are compiled a part at a time.
    pub(super) turns: Turns,
    /// The layout of the rules in force, or of those that are about to be; `None` before the first update.
    pub(super) layout: Option<Layout>,
    pub(super) records: Records,
    /// Service ports of large Services that a full update left out, and that are not in force. Their endpoints
    /// count for the layout.
    pub(super) deferred: Records,
    /// Whether the deferred service ports own the frontends that they claim: on a node that had no rules, no
    /// other Service gets them meanwhile; elsewhere the one in force keeps them.
    pub(super) is_deferred_owner: bool,
    /// Frontends that several service ports claim.
    pub(super) overlaps: Overlaps,
    pub(super) sums: Sums,
    /// Endpoints of excluded service ports at the last update.
    pub(super) n_excluded_endpoints: usize,
    /// Whether the kernel may hold stale chains that no record names: since a full update that left large
    /// Services out.
    pub(super) has_unknown_chains: bool,
}

impl Default for Compiled {
    /// Nothing is compiled yet, and everything has to be.
    fn default() -> Compiled {
        Compiled {
            pending: SyncScope::Full,
            turns: Turns::default(),
            layout: None,
            records: Records::new(),
            deferred: Records::new(),
            is_deferred_owner: false,
            overlaps: Overlaps::default(),
            sums: Sums::default(),
            n_excluded_endpoints: 0,
            has_unknown_chains: false,
        }
    }
}

impl Compiled {
    /// Marks the Services called `names` as changed, or their endpoints.
    pub fn touch(&mut self, names: impl IntoIterator<Item = ServiceName>) {
        if let SyncScope::Partial(services) = &mut self.pending {
            services.extend(names);
        }
    }

    /// Marks everything as changed. Large Services begin anew.
    pub fn touch_everything(&mut self) {
        self.pending = SyncScope::Full;
        self.turns.clear();
    }

    /// Whether anything has to be compiled.
    pub fn is_dirty(&self) -> bool {
        self.pending != SyncScope::NOTHING || self.is_unfinished()
    }

    /// Whether a part of a large Service is left to the next update.
    pub fn is_unfinished(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Services that changed and are not compiled yet, or not all of each.
    pub fn waiting(&self) -> BTreeSet<ServiceName> {
        let others = match &self.pending {
            SyncScope::Partial(others) => Some(others),
            SyncScope::Full => None,
        };
        self.turns.services().chain(others.into_iter().flatten()).cloned().collect()
    }

    /// Compiles Services above `weight` a part at a time; see [`Snapshot::weight`](crate::model::Snapshot::weight).
    pub fn set_turn_limit(&mut self, weight: usize) {
        self.turns.set_limit(weight);
    }

    /// Confirms that everything that was applied is in force.
    pub fn confirm(&mut self) {
        if self.turns.is_empty() {
            self.has_unknown_chains = false;
        }
    }

    /// How the rules are laid out.
    pub fn layout(&self) -> Layout {
        self.layout.unwrap_or(Layout::Classic { is_large: false })
    }

    /// Whether a full update would choose another layout than the one in force.
    pub fn may_change_layout(&self, settings: &Settings) -> bool {
        self.next_layout(settings, true) != self.layout()
    }

    /// The layout for the endpoints of all service ports, the excluded ones too.
    pub(super) fn next_layout(&self, settings: &Settings, is_full: bool) -> Layout {
        let n_deferred: usize = self.deferred.values().map(|record| record.n_endpoints).sum();
        let n_endpoints = self.sums.n_endpoints + self.n_excluded_endpoints + n_deferred;
        Layout::next(settings.layout, n_endpoints, self.layout(), is_full)
    }

    /// What the records come to.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// How many entries are left out because their frontends belong to other Services.
    pub fn n_overlaps(&self) -> usize {
        self.overlaps.n_lost()
    }

    /// The compiled service ports.
    pub fn service_ports(&self) -> impl ExactSizeIterator<Item = &ServicePortName> {
        self.records.keys()
    }

    /// The service port that owns `chain`, or that has the entry `rule` in it.
    pub fn owner_of(&self, chain: (Table, ChainName), rule: Option<&Rule>) -> Option<&ServicePortName> {
        self.records.iter().find(|(_, record)| record.owns(chain, rule)).map(|(name, _)| name)
    }

    /// The compiled ports of `service`, each with its own chains in nat.
    pub fn chains_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a ServicePortName, &'a [ChainName])> {
        of_service(&self.records, service).map(|(name, record)| (name, &*record.chains))
    }

    /// Removes from what is pending what the next update compiles: Services of ordinary size before a part of a
    /// large one, but never twice in succession.
    pub(super) fn choose_work(&mut self, source: Source<'_>) -> Work {
        let (family, snapshot) = (source.settings.family, source.view.snapshot);
        let names = match std::mem::replace(&mut self.pending, SyncScope::NOTHING) {
            SyncScope::Full => return Work::Everything { defers: true },
            SyncScope::Partial(names) => names,
        };
        let mut others = BTreeSet::new();
        for name in names {
            match self.turns.weigh(&name, family, snapshot, &self.records, &self.deferred) {
                Some(ports) => self.turns.begin(name, ports),
                None => {
                    self.turns.remove(&name);
                    others.insert(name);
                }
            }
        }
        if self.turns.is_due(!others.is_empty()) {
            self.pending = SyncScope::Partial(others);
            return Work::Part(self.turns.remove_part());
        }
        self.turns.yield_turn();
        Work::Services(others)
    }
}
