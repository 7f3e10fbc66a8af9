//! One family's rules, kept in step with the cluster: compiles what changed, plans, restores, and
//! remembers what the kernel holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Scope;
use super::ahead::for_each_made;
use super::dispatch::Dispatch;
use super::quarantine::{Scene, held_chain, is_refusal};
use super::records::{Changed, Record, Sums};
use super::report::{Quarantine, Refusal, Report, SyncError};
use super::stopwatch::{Stopwatch, Timed};
use super::turns::{Turns, Work};
use super::wanted::{
    Compiler, chains_of_service_ports, filter_chains, fixed_nat_chains_in_order, is_urgent, layout_of,
    unknown_chains,
};
use crate::drift::{FamilyTables, ReadReason, References};
use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainName, Table};
use crate::kernel::{Iptables, RestoreError};
use crate::model::{ServiceName, ServicePortName, Snapshot};
use crate::net::IpFamily;
use crate::plan::{Aftermath, Committed, Failure, Planner, Uncertain, When};
use crate::policy::Place;
use crate::rules::fixed::is_shared_with_kubelet;
use crate::rules::overlap::Overlaps;
use crate::rules::{Layout, Settings, SharedChain};

/// Up to how many service ports and endpoints are put in force all together on a node without rules:
/// what takes well under a second.
const MAX_AT_ONCE: usize = 2_000;

/// The rules of one family on one node.
pub struct FamilySync<K> {
    pub(super) tables: FamilyTables<K>,
    pub(super) settings: Option<Settings>,
    pub(super) records: BTreeMap<ServicePortName, Record>,
    pub(super) sums: Sums,
    /// Frontends that several of `records` claim.
    pub(super) overlaps: Overlaps,
    /// Endpoints of service ports in quarantine, when anything was last compiled.
    pub(super) n_left_out: usize,
    /// As the rules in force are laid out, or about to be; `None` before the first sync.
    pub(super) layout: Option<Layout>,
    /// What has to be compiled and compared at the next sync.
    pub(super) dirty: Scope,
    /// Large Services that changed, which are compiled a part at a time.
    pub(super) turns: Turns,
    /// What the sync that is under way compiles.
    pub(super) work: Work,
    /// Whether chains may be stale that no record tells of: since a full sync that left large Services out.
    pub(super) has_unknown_chains: bool,
    /// Service ports of large Services that a full sync left out, and that are not in force. Their endpoints
    /// count for the layout.
    pub(super) unserved: BTreeMap<ServicePortName, Record>,
    /// Whether these own what they claim: on a node that had no rules no other Service gets it meanwhile;
    /// elsewhere the one in force keeps it.
    pub(super) is_unserved_owner: bool,
    /// Of the sync that is under way.
    pub(super) clock: Stopwatch,
    /// Whether this sync keeps all stale chains.
    holds_all: bool,
    /// Drift that was found by syncs that failed.
    n_unrepaired: usize,
    /// Service ports that the kernel refuses, and what it said; left out.
    pub(super) quarantine: Quarantine,
    /// As the urgent commit leaves it until a sync has succeeded: till then not everybody is served.
    turn: FilterTurn,
}

/// When filter is brought to what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FilterTurn {
    /// Around nat: first what was there and what is wanted, at last without what was there.
    Around,
    /// After nat, where nobody is served yet: a rule that refuses some of a Service's clients would
    /// refuse all of them as long as nat does not send the others elsewhere.
    AfterNat,
}

/// The cluster and the place from which it is seen.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// All objects.
    pub snapshot: &'a Snapshot,
    /// This node.
    pub place: Place<'a>,
}

impl<K: Iptables> FamilySync<K> {
    /// Starts without knowing anything of the kernel's state.
    pub fn new(kernel: K) -> FamilySync<K> {
        FamilySync {
            tables: FamilyTables::new(kernel),
            settings: None,
            records: BTreeMap::new(),
            sums: Sums::default(),
            overlaps: Overlaps::default(),
            n_left_out: 0,
            clock: Stopwatch::default(),
            layout: None,
            dirty: Scope::Everything,
            turns: Turns::new(),
            work: Work::Services(BTreeSet::new()),
            has_unknown_chains: false,
            unserved: BTreeMap::new(),
            is_unserved_owner: false,
            holds_all: false,
            n_unrepaired: 0,
            quarantine: Quarantine::new(),
            turn: FilterTurn::Around,
        }
    }

    /// The family.
    pub fn family(&self) -> IpFamily {
        self.tables.kernel.family()
    }

    /// The kernel's tables.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.tables.kernel
    }

    /// Notes that the Services called `names`, or their endpoints, changed.
    pub fn touch(&mut self, names: BTreeSet<ServiceName>) {
        names.iter().for_each(|name| self.release(name));
        if let Scope::Services(services) = &mut self.dirty {
            services.extend(names);
        }
    }

    /// Has the next sync read the kernel and compare every service port with it, because another process wrote.
    pub fn distrust(&mut self, reason: ReadReason) {
        self.tables.distrust(reason);
        self.touch_changed_tables();
    }

    /// Has the next sync compare every service port, after the tables' content became unknown to a check.
    pub(super) fn touch_changed_tables(&mut self) {
        self.touch_everything();
        self.quarantine.clear();
        self.tables.references.referenced.clear();
    }

    /// Lets the service ports that are left out be tried once more: what refused them may have
    /// been the moment.
    fn retry_quarantined(&mut self) {
        let services: BTreeSet<ServiceName> =
            self.quarantine.keys().map(|port| port.service.clone()).collect();
        self.touch(services);
    }

    /// Notes that a full sync is due though nobody else wrote, so that the kernel need not be read: for
    /// what only a full sync may do.
    pub fn full_sync_due(&mut self) {
        self.retry_quarantined();
        let next = self.settings.as_ref().map(|settings| self.next_layout(settings, true));
        if next.is_some_and(|next| next != self.layout()) {
            self.touch_everything();
        }
    }

    /// Settles what the rules depend on beside the objects. Anything new there touches everything; whether
    /// there is.
    pub fn set_settings(&mut self, settings: Settings) -> bool {
        let is_new = self.settings.as_ref() != Some(&settings);
        if is_new {
            self.settings = Some(settings);
            self.touch_everything();
        }
        is_new
    }

    /// Has the next sync compare every service port with what is known of the kernel. Large Services begin anew: their
    /// entries are made again with all others.
    pub fn touch_everything(&mut self) {
        self.dirty = Scope::Everything;
        self.turns.clear();
    }

    /// Has Services above `weight` synced a part at a time; see [`Snapshot::weight`]. For tests, in which
    /// all Services are small.
    pub fn set_turn_limit(&mut self, weight: usize) {
        self.turns.set_limit(weight);
    }

    /// What the rules depend on beside the objects, once it is settled.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// Whether a sync has anything to look at.
    pub fn is_dirty(&self) -> bool {
        !self.tables.is_known() || self.dirty != Scope::Services(BTreeSet::new()) || self.is_unfinished()
    }

    /// Whether the last sync left a part of a large Service to the next one.
    pub fn is_unfinished(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The tables, for drift detection.
    pub fn tables(&mut self) -> &mut FamilyTables<K> {
        &mut self.tables
    }

    /// How many service ports are left out because the kernel refuses them.
    pub fn n_quarantined(&self) -> usize {
        self.quarantine.len()
    }

    /// Who is left out.
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Whether it is one of those served.
    pub(super) fn has_service_port(&self, name: &ServicePortName) -> bool {
        self.records.contains_key(name)
    }

    /// Those of `chains`, which are sorted, that are a service port's own in nat, and whose.
    pub(super) fn owners_of(&self, chains: &[ChainName]) -> Vec<(ChainName, &ServicePortName)> {
        if chains.is_empty() {
            return Vec::new();
        }
        let owned = self.records.iter().flat_map(|(name, record)| {
            record
                .chains
                .iter()
                .filter(|chain| chains.binary_search(chain).is_ok())
                .map(move |chain| (*chain, name))
        });
        let mut owned: Vec<_> = owned.collect();
        owned.sort();
        owned
    }

    /// Brings the kernel in step with `view`. After a failure everything is compared again at the
    /// next sync; what was committed before it stays known. `stop` ends it early, between batches.
    pub fn sync(&mut self, view: View<'_>, stop: &AtomicBool) -> Report {
        let backend = self.tables.kernel.backend();
        let Some(settings) = self.settings.clone() else {
            return Report::new(self.family(), backend, self.dirty.clone());
        };
        self.choose_work(view);
        let mut report = Report::new(self.family(), backend, self.work.scope());
        self.clock = Stopwatch::start();
        let scene = Scene { settings: &settings, view, stop };
        let mut committed = self.take_committed(&mut report);
        if self.layout.is_none() {
            self.layout = Some(layout_of(&committed, &settings));
        }
        let mut changed = self.compile(&settings, view, Some(&committed), &mut report);
        self.lay_out(scene, &mut changed);
        let mut outcome = self
            .restore_urgent(scene, &mut committed, &mut report)
            .and_then(|()| self.restore(scene, &changed, self.turn, &mut committed, &mut report));
        self.tables.put_back(committed);
        while matches!(&outcome, Err(failure) if matches!(failure.error, RestoreError::TooLarge(_)))
            && self.tables.kernel.shrink_limits()
        {
            self.tables.distrust(ReadReason::RestoreFailed);
            outcome = self.restore_everything(scene, &mut report);
        }
        for attempt in 0..2 {
            let Some(chain) = outcome.as_ref().err().and_then(held_chain) else { break };
            self.hold(chain, attempt > 0);
            outcome = self.restore_everything(scene, &mut report);
        }
        self.holds_all = false;
        outcome = match outcome {
            Err(failure) if is_refusal(&failure) => self.narrow(scene, &mut report),
            outcome => outcome,
        };
        if outcome.is_ok() && !report.drift.is_empty() {
            self.clock.reading(|| self.tables.learn_equivalents(&mut report.drift));
        }
        self.n_unrepaired += report.drift.len();
        report.layout = self.layout();
        report.n_service_ports = self.records.len();
        report.n_endpoints = self.sums.n_endpoints;
        report.n_dropped_internal = self.sums.n_dropped_internal;
        report.n_dropped_external = self.sums.n_dropped_external;
        match outcome {
            Ok(()) if stop.load(Ordering::Relaxed) => self.touch_everything(),
            Ok(()) => {
                self.turn = FilterTurn::Around;
                if report.is_full() {
                    self.tables.kernel.relax_limits();
                }
                if self.turns.is_empty() {
                    self.has_unknown_chains = false;
                }
                let References { referenced, flushed } = &mut self.tables.references;
                flushed.retain(|chain| referenced.contains(chain));
                report.n_repaired = std::mem::take(&mut self.n_unrepaired);
                report.inherited = self.tables.take_inherited();
            }
            Err(failure) => {
                // A refusal may mean that the kernel is not as it was: somebody flushed it. Unless
                // nothing was tried, the old rules of filter are needed to go on from.
                let effect = failure.error.aftermath();
                report.outcome = Err(self.explain(failure));
                self.touch_everything();
                if effect != Aftermath::Nothing {
                    self.tables.distrust(ReadReason::after_failure(effect));
                }
            }
        }
        report.stages = self.clock.stop(self.tables.kernel.lock_wait());
        report.waiting = self.turns.services().cloned().collect();
        if let Scope::Services(others) = &self.dirty {
            report.waiting.extend(others.iter().cloned());
        }
        report.reads = self.tables.take_reads();
        report.n_quarantined = self.quarantine.len();
        report.n_overlaps = self.overlaps.n_lost();
        report.n_filter_rules = self.tables.n_rules(Table::Filter);
        report.n_nat_rules = self.tables.n_rules(Table::Nat);
        report
    }

    /// Compiles, compares and restores everything that is not in quarantine.
    pub(super) fn restore_everything(
        &mut self,
        scene: Scene<'_>,
        report: &mut Report,
    ) -> Result<(), Failure<RestoreError>> {
        self.dirty = Scope::Services(BTreeSet::new());
        self.turns.clear();
        self.work = Work::Everything { defers: false };
        let changed = self.compile(scene.settings, scene.view, None, report);
        let mut committed = self.take_committed(report);
        let outcome = self.restore(scene, &changed, self.turn, &mut committed, report);
        self.tables.put_back(committed);
        if let Err(failure) = &outcome {
            // Which of its tables were committed, jumps among them, only the kernel knows.
            self.tables.distrust(ReadReason::after_failure(failure.error.aftermath()));
        }
        outcome
    }

    /// Takes out what is known of the tables, reading them if need be.
    pub(super) fn take_committed(&mut self, report: &mut Report) -> Committed {
        let (committed, drift) = self.clock.reading(|| self.tables.take());
        report.drift.add(drift);
        committed
    }

    /// Goes on after `chain` could not be deleted: reads nat once for all chains that foreign rules refer to.
    /// Where that did not help, with `all`, every stale chain is kept until the tables are read again.
    fn hold(&mut self, chain: ChainName, all: bool) {
        if !all {
            self.clock.reading(|| self.tables.read_referenced());
        }
        self.tables.references.referenced.insert(chain);
        self.holds_all = all;
    }

    /// On a node without rules of ours, puts those in force first that everything else may need. Tells
    /// when filter's turn is for all the others.
    fn restore_urgent(
        &mut self,
        scene: Scene<'_>,
        committed: &mut Committed,
        report: &mut Report,
    ) -> Result<(), Failure<RestoreError>> {
        if !committed.jumps.is_empty() || self.records.len() + self.sums.n_endpoints <= MAX_AT_ONCE {
            return Ok(());
        }
        let all = std::mem::take(&mut self.records).into_iter();
        let (urgent, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|(name, _)| is_urgent(&name.service));
        self.records = urgent;
        let ports = self.records.keys().cloned().collect();
        let changed = Changed { ports, old: BTreeMap::new(), shared: SharedChain::ALL.into() };
        let outcome = self.restore(scene, &changed, FilterTurn::Around, committed, report);
        self.records.extend(rest);
        if outcome.is_ok() {
            self.turn = FilterTurn::AfterNat;
        }
        outcome
    }

    fn restore(
        &mut self,
        Scene { settings, view, stop }: Scene<'_>,
        changed: &Changed,
        turn: FilterTurn,
        committed: &mut Committed,
        report: &mut Report,
    ) -> Result<(), Failure<RestoreError>> {
        let layout = self.layout();
        let filter = if changed.touches(Table::Filter) {
            filter_chains(settings, layout, &self.records, &self.overlaps)
        } else {
            Vec::new()
        };
        let mut stale = match self.turns.is_empty() {
            true if self.work.is_everything() => chains_of_service_ports(committed),
            true if self.has_unknown_chains => unknown_chains(committed, &self.records, &changed.ports),
            // What a Service has that waits for its turn is not known.
            false if self.work.is_everything() => BTreeSet::new(),
            _ => changed.chains_before(),
        };
        let (fixed_first, fixed_last) = fixed_nat_chains_in_order(settings, layout, committed);
        let limits = self.tables.kernel.limits();
        let mut kernel = Timed::new(&mut self.tables.kernel);
        let mut planner = Planner::new(settings.family, committed, &self.tables.jumps, limits, &mut kernel);
        let (records, overlaps) = (&mut self.records, &self.overlaps);
        let References { referenced: held, flushed: emptied } = &mut self.tables.references;
        let (holds_all, newly_emptied) = (self.holds_all, &mut report.held);
        let mut compiling = Duration::ZERO;
        let steps = || -> Result<(), Failure<RestoreError>> {
            if turn == FilterTurn::Around {
                planner.filter_first(&filter, is_shared_with_kubelet)?;
            }
            // Together, so that the mark that is set is always the mark that is looked for.
            planner.nat_chains(&fixed_first, When::Now)?;
            let names: Vec<&ServicePortName> = changed.ports.iter().collect();
            let mut compiler = Compiler::new(settings, view);
            if self.work.only().is_some() {
                compiler = compiler.among(&changed.ports);
            }
            let compile = |name: &&ServicePortName| compiler.nat_chains(layout, name);
            let (started, mut using) = (Instant::now(), Duration::ZERO);
            let ended = for_each_made(&names, compile, |name, chains| {
                let made = Instant::now();
                if stop.load(Ordering::Relaxed) {
                    return Err(None);
                }
                for chain in &chains {
                    stale.remove(&chain.name);
                }
                if let Some(record) = records.get_mut(*name) {
                    record.chains = chains.iter().map(|chain| chain.name).collect();
                }
                let result = planner.nat_chains(&chains, changed.when(name, records)).map_err(Some);
                using += made.elapsed();
                result
            });
            compiling = started.elapsed().saturating_sub(using);
            report.n_entries_read += compiler.n_entries_read();
            match ended {
                Ok(()) => {}
                Err(Some(failure)) => return Err(failure),
                Err(None) => return planner.finish(),
            }
            if changed.touches(Table::Nat) {
                let dispatch = Dispatch { settings, layout, records, overlaps };
                dispatch.restore(&mut planner, &mut stale)?;
            }
            planner.nat_chains(&fixed_last, When::Now)?;
            if holds_all {
                held.extend(&stale);
            }
            let kept: Vec<ChainName> = stale.intersection(held).copied().collect();
            for name in kept {
                stale.remove(&name);
                if emptied.insert(name) {
                    newly_emptied.push(name);
                }
                planner.flush_nat(name)?;
            }
            let stale: Vec<ChainName> = stale.into_iter().collect();
            planner.nat_last(&stale)?;
            if turn == FilterTurn::AfterNat {
                planner.filter_first(&filter, is_shared_with_kubelet)?;
            }
            planner.filter_last(&filter, is_shared_with_kubelet)?;
            planner.finish()
        };
        let outcome = steps();
        report.tally += planner.tally();
        report.n_failed_restores += usize::from(outcome.is_err());
        self.clock.compiling(compiling);
        self.clock.restoring(kernel.elapsed());
        outcome
    }

    /// Says what a failed restore is about.
    fn explain(&self, failure: Failure<RestoreError>) -> SyncError {
        match self.refusal_of(&failure) {
            Some(refusal) => SyncError::Refused(refusal),
            None => SyncError::Restore(failure.error),
        }
    }

    /// Finds out whom a refused restore is about; `None` for any other failure.
    pub(super) fn refusal_of(&self, failure: &Failure<RestoreError>) -> Option<Refusal> {
        let RestoreError::Refused { line, text, message } = &failure.error else { return None };
        let chain = failure.lines.chain_at(*line).map(|(table, chain, _)| (table, chain));
        let rule = text.as_deref().and_then(|text| match parse::line(self.family(), text) {
            Ok(Line::Append(_, rule)) => Some(rule),
            _ => None,
        });
        let service_port = chain.and_then(|chain| {
            let is_owner = |record: &Record| record.owns(chain, rule.as_ref());
            self.records.iter().find(|(_, record)| is_owner(record)).map(|(name, _)| name.clone())
        });
        Some(Refusal { line: *line, text: text.clone(), message: message.clone(), chain, service_port })
    }
}
