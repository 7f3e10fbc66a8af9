//! What an update changed, as chains: those of each service port, and the shared ones.

use std::collections::BTreeSet;

use super::in_force::{InForce, layout_of};
use super::index::{Compiled, SyncScope};
use super::prefetch::for_each_made;
use super::record_changes::RecordChanges;
use super::shared::{SharedContent, shared_contents};
use super::source::{PortCompiler, Source};
use super::turns::Work;
use crate::iptables::{Chain, ChainName, Table};
use crate::model::{ServiceName, ServicePortName};
use crate::rules::overlap::Loss;
use crate::rules::ownership::ChainOwner;
use crate::rules::{Layout, Settings, SharedChain, fixed, names};

/// Up to how many service ports and endpoints are put in force all together on a node without rules: what
/// takes well under a second.
const MAX_AT_ONCE: usize = 2_000;

/// What an update changed. Chains are compiled when they are asked for, and not kept.
pub struct Changed<'a> {
    compiled: &'a mut Compiled,
    source: Source<'a>,
    work: Work,
    changes: RecordChanges<'a>,
    /// Whether the shared chains hold entries of urgent Services only.
    is_urgent_only: bool,
}

/// The chains of one service port, which are written together.
#[derive(Debug)]
pub struct Group<'a> {
    /// The service port.
    pub port: &'a ServicePortName,
    /// Its chains, callees first.
    pub chains: Vec<Chain>,
    /// Whether chains that exist change in one commit with the dispatch: their new content is wrong for packets
    /// that the dispatch in force sends to them.
    pub changes_with_dispatch: bool,
}

impl Compiled {
    /// Compiles what is pending, but for the `excluded` service ports: Services that changed, a part of a large
    /// one, or everything but the large ones.
    pub fn apply<'a>(
        &'a mut self,
        source: Source<'a>,
        excluded: &BTreeSet<ServicePortName>,
        in_force: &dyn InForce,
    ) -> Changed<'a> {
        let work = self.choose_work(source);
        self.layout.get_or_insert_with(|| layout_of(in_force, source.settings));
        let mut changes = self.update(&work, source, excluded, in_force);
        self.lay_out(&work, source, &mut changes);
        Changed { compiled: self, source, work, changes, is_urgent_only: false }
    }

    /// Compiles everything, large Services too, in the layout of the last update: for another try after a
    /// failure.
    pub fn recompile<'a>(
        &'a mut self,
        source: Source<'a>,
        excluded: &BTreeSet<ServicePortName>,
        in_force: &dyn InForce,
    ) -> Changed<'a> {
        self.pending = SyncScope::NOTHING;
        self.turns.clear();
        let work = Work::Everything { defers: false };
        let changes = self.update(&work, source, excluded, in_force);
        Changed { compiled: self, source, work, changes, is_urgent_only: false }
    }
}

impl Changed<'_> {
    /// Which Services were compiled.
    pub fn scope(&self) -> SyncScope {
        match &self.work {
            Work::Everything { .. } => SyncScope::Full,
            Work::Services(names) => SyncScope::Partial(names.clone()),
            Work::Part(ports) => SyncScope::Partial(ports.iter().map(|port| port.service.clone()).collect()),
        }
    }

    /// How many port entries of slices were read so far.
    pub fn n_entries_read(&self) -> usize {
        self.changes.n_entries_read
    }

    /// Frontends that Services lost to other Services with this update.
    pub fn losses(&self) -> &[Loss] {
        &self.changes.losses
    }

    /// On a node without rules, if there is much to write: a small complete ruleset of the Services that others
    /// need to come up.
    pub fn urgent(&mut self, in_force: &dyn InForce) -> Option<Changed<'_>> {
        let weight = self.compiled.records.len() + self.compiled.sums.n_endpoints;
        if !self.work.is_everything() || in_force.has_jumps() || weight <= MAX_AT_ONCE {
            return None;
        }
        let ports = self.compiled.records.keys().filter(|name| is_urgent(&name.service)).cloned().collect();
        let changes = RecordChanges { ports, shared: SharedChain::ALL.into(), ..RecordChanges::default() };
        let (compiled, source) = (&mut *self.compiled, self.source);
        let work = Work::Everything { defers: false };
        Some(Changed { compiled, source, work, changes, is_urgent_only: true })
    }

    /// All chains of filter that are ours, if any of them may differ; else none.
    pub fn filter_chains(&self) -> Vec<Chain> {
        if !self.changes.touches(Table::Filter) {
            return Vec::new();
        }
        let fixed = fixed::chains(self.source.settings, self.compiled.layout()).into_iter();
        let fixed = fixed.filter(|chain| chain.table == Table::Filter);
        fixed.chain(self.shared_contents(Table::Filter).iter().map(SharedContent::to_chain)).collect()
    }

    /// The chains of nat that do not depend on Services: those to write before the chains of service ports, and
    /// those to write after them.
    pub fn fixed_nat_chains(&self, in_force: &dyn InForce) -> (Vec<Chain>, Vec<Chain>) {
        fixed_nat_chains(self.source.settings, self.compiled.layout(), in_force)
    }

    /// Passes the chains of each changed service port to `each`, in the order of names; ends at the first error.
    /// Chains of many ports are compiled on another thread, a little ahead. To be called once.
    pub fn each_group<E>(&mut self, mut each: impl FnMut(Group<'_>) -> Result<(), E>) -> Result<(), E> {
        let layout = self.compiled.layout();
        let Changed { source, work, .. } = self;
        let ports: Vec<&ServicePortName> = self.changes.ports.iter().collect();
        let preselected = std::mem::take(&mut self.changes.preselected);
        let only = work.only().map(|_| &self.changes.ports);
        let mut compiler = PortCompiler::of_changed(*source, only, preselected);
        let compile = |name: &&ServicePortName| compiler.chains(layout, name);
        let records = &mut self.compiled.records;
        let result = for_each_made(&ports, compile, |port, chains| {
            let record = records.get_mut(*port);
            let changes_with_dispatch = self.changes.changes_with_dispatch(port, record.as_deref());
            if let Some(record) = record {
                record.chains = chains.iter().map(|chain| chain.name).collect();
            }
            each(Group { port, chains, changes_with_dispatch })
        });
        self.changes.n_entries_read += compiler.n_entries_read();
        result
    }

    /// The shared chains of nat and those behind them, callees first, if any of them may differ; else none.
    pub fn shared_nat_chains(&self) -> Vec<SharedContent<'_>> {
        match self.changes.touches(Table::Nat) {
            true => self.shared_contents(Table::Nat),
            false => Vec::new(),
        }
    }

    fn shared_contents(&self, table: Table) -> Vec<SharedContent<'_>> {
        let layout = self.compiled.layout();
        let index = (&self.compiled.records, &self.compiled.overlaps);
        let is_included = |name: &ServicePortName| !self.is_urgent_only || is_urgent(&name.service);
        // Node ports first: KUBE-SERVICES leads to them.
        let chains = SharedChain::ALL.into_iter().rev().filter(|chain| chain.table() == table);
        chains
            .flat_map(|chain| shared_contents(self.source.settings, layout, index, chain, is_included))
            .collect()
    }

    /// Chains of nat in force that are stale unless this update makes them; to be called before
    /// [`Changed::each_group`].
    pub fn stale_nat_candidates(&self, in_force: &dyn InForce) -> BTreeSet<ChainName> {
        let Compiled { records, turns, has_unknown_chains, .. } = &*self.compiled;
        let is_everything = self.work.is_everything();
        let mut stale: BTreeSet<ChainName> = match turns.is_empty() {
            true if is_everything || *has_unknown_chains => {
                let is_of_port = |name: &ChainName| {
                    matches!(nat_owner(name), ChainOwner::ServicePort(_) | ChainOwner::Group)
                };
                let mut stale: BTreeSet<ChainName> = in_force.nat_chains().filter(is_of_port).collect();
                // Chains of service ports that are compiled again are stale unless they are made again.
                let kept = records.iter().filter(|(name, _)| !self.changes.ports.contains(*name));
                kept.flat_map(|(_, record)| &record.chains).for_each(|chain| _ = stale.remove(chain));
                stale
            }
            // The chains of a Service that waits for its turn are not known.
            false if is_everything => BTreeSet::new(),
            _ => self.changes.chains_before(),
        };
        if self.changes.touches(Table::Nat) {
            stale.extend(in_force.nat_chains().filter(|name| nat_owner(name) == ChainOwner::Dispatch));
        }
        stale
    }
}

/// The chains of nat that do not depend on Services: those to write before the chains of service ports, and
/// those to write after them. As long as chains of the compact layout exist, its rule for hairpins stays.
pub fn fixed_nat_chains(
    settings: &Settings,
    layout: Layout,
    in_force: &dyn InForce,
) -> (Vec<Chain>, Vec<Chain>) {
    let leaves_compact = layout != Layout::Compact && layout_of(in_force, settings) == Layout::Compact;
    let chains = fixed::chains(settings, layout).into_iter().filter(|chain| chain.table == Table::Nat);
    chains.partition(|chain| !(leaves_compact && chain.name == names::KUBE_POSTROUTING))
}

fn nat_owner(name: &ChainName) -> ChainOwner {
    ChainOwner::of(Table::Nat, name)
}

/// Whether others need the Service to come up, as the API server and DNS.
fn is_urgent(service: &ServiceName) -> bool {
    matches!((service.namespace(), service.name()), ("kube-system", _) | ("default", "kubernetes"))
}
