//! One family's rules, kept in step with the cluster: compiles what changed, plans, restores, and
//! remembers what the kernel holds.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::quarantine::{Scene, held_chain, is_refusal};
use super::report::{Quarantine, Refusal, Report, SyncError};
use super::stopwatch::{Stopwatch, Timed};
use crate::compile::{Changed, Compiled, Group, InForce, SharedContent, Source, SyncScope, View};
use crate::drift::{FamilyTables, ReadReason, References};
use crate::iptables::parse::{self, Line};
use crate::iptables::{Chain, ChainName, Digest, Table};
use crate::kernel::{Iptables, RestoreError};
use crate::model::ServiceName;
use crate::net::IpFamily;
use crate::plan::{
    Committed, DesiredRules, FailureEffect, FixedNat, Planner, RestoreFailure, SharedNat, StepOrder, When,
};
use crate::rules::fixed::is_shared_with_kubelet;
use crate::rules::{Layout, Settings};

/// The rules of one family on one node.
pub struct FamilySync<K> {
    pub(super) tables: FamilyTables<K>,
    pub(super) settings: Option<Settings>,
    pub(super) compiled: Compiled,
    /// Of the sync that is under way.
    pub(super) clock: Stopwatch,
    /// Drift that was found by syncs that failed.
    n_unrepaired: usize,
    /// Service ports that the kernel refuses, and what it said; left out.
    pub(super) quarantine: Quarantine,
    /// filter comes last from the urgent commit on, until a sync has succeeded.
    order: StepOrder,
}

impl<K: Iptables> FamilySync<K> {
    /// Starts without knowing anything of the kernel's state.
    pub fn new(kernel: K) -> FamilySync<K> {
        FamilySync {
            tables: FamilyTables::new(kernel),
            settings: None,
            compiled: Compiled::default(),
            clock: Stopwatch::default(),
            n_unrepaired: 0,
            quarantine: Quarantine::new(),
            order: StepOrder::FilterAroundNat,
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
        self.compiled.touch(names);
    }

    /// Has the next sync read the kernel and compare every service port with it, because another process wrote.
    pub fn distrust(&mut self, reason: ReadReason) {
        self.tables.distrust(reason);
        self.touch_changed_tables();
    }

    /// Has the next sync compare every service port, after a check found that the tables are to be read.
    pub(super) fn touch_changed_tables(&mut self) {
        self.touch_everything();
        self.quarantine.clear();
        self.tables.references.referenced.clear();
    }

    /// Has the next sync compare every service port with what is known of the kernel.
    pub fn touch_everything(&mut self) {
        self.compiled.touch_everything();
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
        if self.settings.as_ref().is_some_and(|settings| self.compiled.may_change_layout(settings)) {
            self.touch_everything();
        }
    }

    /// Settles what the rules depend on beside the objects. Anything new there touches everything; whether
    /// there is.
    pub fn set_settings(&mut self, settings: Settings) -> bool {
        let is_new = self.settings.as_ref() != Some(&settings);
        if is_new {
            self.settings = Some(settings);
            self.compiled.touch_everything();
        }
        is_new
    }

    /// Has Services above `weight` synced a part at a time; see [`Snapshot::weight`]. For tests, in which
    /// all Services are small.
    pub fn set_turn_limit(&mut self, weight: usize) {
        self.compiled.set_turn_limit(weight);
    }

    /// What the rules depend on beside the objects, once it is settled.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// Whether a sync has anything to look at.
    pub fn is_dirty(&self) -> bool {
        !self.tables.is_known() || self.compiled.is_dirty()
    }

    /// Whether the last sync left a part of a large Service to the next one.
    pub fn is_unfinished(&self) -> bool {
        self.compiled.is_unfinished()
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

    /// What is compiled.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// How the rules are laid out.
    pub fn layout(&self) -> Layout {
        self.compiled.layout()
    }

    /// Brings the kernel in step with `view`. After a failure everything is compared again at the
    /// next sync; what was committed before it stays known. `stop` ends it early, between batches.
    pub fn sync(&mut self, view: View<'_>, stop: &AtomicBool) -> Report {
        let backend = self.tables.kernel.backend();
        let Some(settings) = self.settings.clone() else {
            return Report::new(self.family(), backend, SyncScope::Partial(BTreeSet::new()));
        };
        let mut report = Report::new(self.family(), backend, SyncScope::Full);
        self.clock = Stopwatch::start();
        let scene = Scene { source: Source { settings: &settings, view }, stop };
        let committed = self.take_committed(&mut report);
        let mut outcome = self.attempt(scene, Attempt::Pending, committed, &mut report);
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
        self.tables.references.keeps_all = false;
        outcome = match outcome {
            Err(failure) if is_refusal(&failure) => self.narrow(scene, &mut report),
            outcome => outcome,
        };
        if outcome.is_ok() && !report.drift.is_empty() {
            self.clock.reading(|| self.tables.learn_equivalents(&mut report.drift));
        }
        self.n_unrepaired += report.drift.len();
        report.layout = self.layout();
        let sums = self.compiled.sums();
        report.n_service_ports = self.compiled.service_ports().len();
        report.n_endpoints = sums.n_endpoints;
        report.n_dropped_internal = sums.n_dropped_internal;
        report.n_dropped_external = sums.n_dropped_external;
        match outcome {
            Ok(()) if stop.load(Ordering::Relaxed) => self.touch_everything(),
            Ok(()) => {
                self.order = StepOrder::FilterAroundNat;
                if report.is_full() {
                    self.tables.kernel.relax_limits();
                }
                self.compiled.confirm();
                self.tables.references.drop_unreferenced();
                report.n_repaired = std::mem::take(&mut self.n_unrepaired);
                report.inherited = self.tables.take_inherited();
            }
            Err(failure) => {
                // A refusal may mean that the kernel is not as it was: somebody flushed it. Unless
                // nothing was tried, the old rules of filter are needed to go on from.
                let effect = FailureEffect::from(&failure.error);
                report.outcome = Err(self.explain(failure));
                self.touch_everything();
                if effect != FailureEffect::NothingApplied {
                    self.tables.distrust(ReadReason::after_failure(effect));
                }
            }
        }
        report.stages = self.clock.stop(self.tables.kernel.lock_wait());
        report.waiting = self.compiled.waiting();
        report.reads = self.tables.take_reads();
        report.n_quarantined = self.quarantine.len();
        report.n_overlaps = self.compiled.n_overlaps();
        report.n_filter_rules = self.tables.n_rules(Table::Filter);
        report.n_nat_rules = self.tables.n_rules(Table::Nat);
        report
    }

    /// Compiles, compares and restores everything that is not in quarantine.
    pub(super) fn restore_everything(
        &mut self,
        scene: Scene<'_>,
        report: &mut Report,
    ) -> Result<(), RestoreFailure<RestoreError>> {
        let committed = self.take_committed(report);
        let outcome = self.attempt(scene, Attempt::Everything, committed, report);
        if let Err(failure) = &outcome {
            // Which of its tables were committed, jumps among them, only the kernel knows.
            self.tables.distrust(ReadReason::after_failure(FailureEffect::from(&failure.error)));
        }
        outcome
    }

    /// Compiles, compares and restores.
    fn attempt(
        &mut self,
        scene: Scene<'_>,
        what: Attempt,
        mut committed: Committed,
        report: &mut Report,
    ) -> Result<(), RestoreFailure<RestoreError>> {
        let started = Instant::now();
        let excluded = self.quarantine.keys().cloned().collect();
        let mut changed = match what {
            Attempt::Pending => self.compiled.apply(scene.source, &excluded, &committed),
            Attempt::Everything => self.compiled.recompile(scene.source, &excluded, &committed),
        };
        self.clock.compiling(started.elapsed());
        if what == Attempt::Pending {
            report.scope = changed.scope();
        }
        let (tables, clock) = (&mut self.tables, &mut self.clock);
        let mut writer = Writer { tables, clock, order: self.order, stop: scene.stop };
        let mut outcome = Ok(());
        if what == Attempt::Pending
            && let Some(mut urgent) = changed.urgent(&committed)
        {
            writer.order = StepOrder::FilterAroundNat;
            outcome = writer.restore(&mut urgent, &mut committed, report);
            report.n_entries_read += urgent.n_entries_read();
            writer.order = if outcome.is_ok() { StepOrder::FilterAfterNat } else { self.order };
        }
        if outcome.is_ok() {
            outcome = writer.restore(&mut changed, &mut committed, report);
        }
        self.order = writer.order;
        report.n_entries_read += changed.n_entries_read();
        report.losses.extend(changed.losses().iter().cloned());
        self.tables.put_back(committed);
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
        self.tables.references.keeps_all = all;
    }

    /// Says what a failed restore is about.
    fn explain(&self, failure: RestoreFailure<RestoreError>) -> SyncError {
        match self.refusal_of(&failure) {
            Some(refusal) => SyncError::Refused(refusal),
            None => SyncError::Restore(failure.error),
        }
    }

    /// Finds out whom a refused restore is about; `None` for any other failure.
    pub(super) fn refusal_of(&self, failure: &RestoreFailure<RestoreError>) -> Option<Refusal> {
        let RestoreError::Refused { line, text, message } = &failure.error else { return None };
        let chain = failure.lines.chain_at(*line).map(|(table, chain, _)| (table, chain));
        let rule = text.as_deref().and_then(|text| match parse::line(self.family(), text) {
            Ok(Line::Append(_, rule)) => Some(rule),
            _ => None,
        });
        let service_port = chain.and_then(|chain| self.compiled.owner_of(chain, rule.as_ref()).cloned());
        Some(Refusal { line: *line, text: text.clone(), message: message.clone(), chain, service_port })
    }
}

/// What one attempt compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// What is pending.
    Pending,
    /// Everything, once more.
    Everything,
}

impl InForce for Committed {
    fn has_jumps(&self) -> bool {
        !self.jumps.is_empty()
    }

    fn has_nat_chain(&self, chain: &ChainName) -> bool {
        self.nat.contains_key(chain)
    }

    fn nat_chain_holds(&self, chain: &ChainName, content: Digest) -> bool {
        self.nat.get(chain) == Some(&Some(content))
    }

    fn nat_chains(&self) -> Box<dyn Iterator<Item = ChainName> + '_> {
        Box::new(self.nat.keys().copied())
    }
}

/// Writes to the kernel what changed.
struct Writer<'a, K> {
    tables: &'a mut FamilyTables<K>,
    clock: &'a mut Stopwatch,
    order: StepOrder,
    stop: &'a AtomicBool,
}

impl<K: Iptables> Writer<'_, K> {
    fn restore(
        &mut self,
        changed: &mut Changed<'_>,
        committed: &mut Committed,
        report: &mut Report,
    ) -> Result<(), RestoreFailure<RestoreError>> {
        let (family, limits) = (self.tables.kernel.family(), self.tables.kernel.limits());
        let mut kernel = Timed::new(&mut self.tables.kernel);
        let planner = Planner::new(family, committed, &self.tables.jumps, limits, &mut kernel);
        let mut desired = Desired {
            changed,
            held: &mut self.tables.references,
            stop: self.stop,
            flushed: Vec::new(),
            compiling: Duration::ZERO,
        };
        let (counts, outcome) = planner.run(self.order, &mut desired);
        report.tally += counts;
        report.held.append(&mut desired.flushed);
        report.n_failed_restores += usize::from(outcome.is_err());
        self.clock.compiling(desired.compiling);
        self.clock.restoring(kernel.elapsed());
        outcome
    }
}

/// What changed, as the planner asks for it.
struct Desired<'a, 'c> {
    changed: &'a mut Changed<'c>,
    held: &'a mut References,
    stop: &'a AtomicBool,
    /// Stale chains that are flushed for the first time.
    flushed: Vec<ChainName>,
    /// How long the chains of service ports took to compile.
    compiling: Duration,
}

impl DesiredRules for Desired<'_, '_> {
    fn filter(&mut self) -> Vec<Chain> {
        self.changed.filter_chains()
    }

    fn is_shared(&self, chain: &Chain) -> bool {
        is_shared_with_kubelet(chain)
    }

    fn fixed_nat(&mut self, committed: &Committed) -> FixedNat {
        let (first, last) = self.changed.fixed_nat_chains(committed);
        FixedNat { first, last }
    }

    fn service_ports<E>(
        &mut self,
        write: &mut dyn FnMut(&[Chain], When) -> Result<(), E>,
    ) -> Result<ControlFlow<()>, E> {
        let (started, mut writing) = (Instant::now(), Duration::ZERO);
        let ended = self.changed.each_group(|Group { chains, changes_with_dispatch, .. }| {
            let compiled = Instant::now();
            if self.stop.load(Ordering::Relaxed) {
                return Err(None);
            }
            let when = if changes_with_dispatch { When::WithDispatch } else { When::Now };
            let result = write(&chains, when).map_err(Some);
            writing += compiled.elapsed();
            result
        });
        self.compiling = started.elapsed().saturating_sub(writing);
        match ended {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(None) => Ok(ControlFlow::Break(())),
            Err(Some(failure)) => Err(failure),
        }
    }

    fn dispatch(&self) -> Vec<SharedNat<'_>> {
        let shared = self.changed.shared_nat_chains().into_iter();
        shared.map(shared_nat).collect()
    }

    fn stale_candidates(&mut self, committed: &Committed) -> BTreeSet<ChainName> {
        self.changed.stale_nat_candidates(committed)
    }

    fn keeps_stale(&mut self, name: ChainName) -> bool {
        let References { referenced: chains, flushed, keeps_all } = &mut *self.held;
        if *keeps_all {
            chains.insert(name);
        }
        let is_kept = chains.contains(&name);
        if is_kept && flushed.insert(name) {
            self.flushed.push(name);
        }
        is_kept
    }
}

fn shared_nat(content: SharedContent<'_>) -> SharedNat<'_> {
    SharedNat {
        name: content.name(),
        digest: content.digest(),
        each_rule: Box::new(move |each| content.each_rule(each)),
    }
}
