//! One attempt to bring the kernel in step with the cluster: compile, plan, restore.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::desired_changes::DesiredChanges;
use super::family_sync::FamilySync;
use super::stopwatch::{Stopwatch, TimedRestore};
use super::sync_report::{FailedRestore, SyncError, SyncReport};
use crate::compile::{Changed, Source, SyncScope};
use crate::drift::{FamilyTables, ReadReason};
use crate::kernel::{Iptables, RestoreError};
use crate::model::ServicePortName;
use crate::plan::{Committed, DesiredRules, FailureEffect, Planner, RestoreFailure, StepOrder};

/// How a restore, or all restores of a sync, ended.
pub(super) type RestoreOutcome = Result<(), RestoreFailure<RestoreError>>;

/// A sync in progress. Retry policies pass it on; each try adds to the report.
pub(super) struct Attempt<'a, K> {
    pub(super) family: &'a mut FamilySync<K>,
    pub(super) source: Source<'a>,
    /// Set when the process is to exit: no other restore begins.
    pub(super) stop: &'a AtomicBool,
    pub(super) report: SyncReport,
    clock: Stopwatch,
}

impl<'a, K: Iptables> Attempt<'a, K> {
    pub(super) fn new(
        family: &'a mut FamilySync<K>,
        source: Source<'a>,
        stop: &'a AtomicBool,
    ) -> Attempt<'a, K> {
        let report = SyncReport::new(family.family(), family.tables.kernel.backend(), SyncScope::Full);
        Attempt { family, source, stop, report, clock: Stopwatch::start() }
    }

    /// Compiles what is pending, and restores what differs. On a node without rules, urgent Services come first.
    pub(super) fn apply_pending(&mut self) -> RestoreOutcome {
        let mut committed = self.take_committed();
        let mut compiled = std::mem::take(&mut self.family.compiled);
        let mut changed = self.compile(|source, excluded| compiled.apply(source, excluded, &committed));
        self.report.scope = changed.scope();
        let mut outcome = Ok(());
        if let Some(mut urgent) = changed.urgent(&committed) {
            outcome = self.restore(StepOrder::FilterAroundNat, &mut urgent, &mut committed);
            if outcome.is_ok() {
                self.family.order = StepOrder::FilterAfterNat;
            }
        }
        if outcome.is_ok() {
            outcome = self.restore(self.family.order, &mut changed, &mut committed);
        }
        self.family.compiled = compiled;
        self.family.tables.put_back(committed);
        outcome
    }

    /// Compiles everything, and restores what differs.
    pub(super) fn apply_everything(&mut self) -> RestoreOutcome {
        let mut committed = self.take_committed();
        let mut compiled = std::mem::take(&mut self.family.compiled);
        let mut changed = self.compile(|source, excluded| compiled.recompile(source, excluded, &committed));
        let outcome = self.restore(self.family.order, &mut changed, &mut committed);
        self.family.compiled = compiled;
        self.family.tables.put_back(committed);
        if let Err(failure) = &outcome {
            // Which tables it committed, and whether with their jumps, only the kernel knows.
            self.family.tables.distrust(ReadReason::after_failure(FailureEffect::from(&failure.error)));
        }
        outcome
    }

    fn compile<'c>(
        &mut self,
        compile: impl FnOnce(Source<'a>, &BTreeSet<ServicePortName>) -> Changed<'c>,
    ) -> Changed<'c> {
        let started = Instant::now();
        let excluded = self.family.quarantine.keys().cloned().collect();
        let changed = compile(self.source, &excluded);
        self.report.losses.extend(changed.losses().iter().cloned());
        self.report.n_entries_read += changed.n_entries_read();
        self.clock.compiling(started.elapsed());
        changed
    }

    /// Plans and restores what changed.
    fn restore(
        &mut self,
        order: StepOrder,
        changed: &mut Changed<'_>,
        committed: &mut Committed,
    ) -> RestoreOutcome {
        let mut references = std::mem::take(&mut self.family.tables.references);
        let n_read_before = changed.n_entries_read();
        let mut desired = DesiredChanges::new(changed, &mut references, self.stop);
        let outcome = self.run(order, &mut desired, committed);
        self.report.kept_stale.append(&mut desired.flushed);
        self.clock.compiling(desired.compiling);
        self.report.n_entries_read += changed.n_entries_read() - n_read_before;
        self.family.tables.references = references;
        outcome
    }

    /// Runs a plan from `committed` to `desired`.
    pub(super) fn run(
        &mut self,
        order: StepOrder,
        desired: &mut impl DesiredRules,
        committed: &mut Committed,
    ) -> RestoreOutcome {
        let FamilyTables { kernel, jumps, .. } = &mut self.family.tables;
        let (family, limits) = (kernel.family(), kernel.limits());
        let mut restore = TimedRestore::new(kernel);
        let (counts, outcome) =
            Planner::new(family, committed, jumps, limits, &mut restore).run(order, desired);
        self.report.tally += counts;
        self.report.n_failed_restores += usize::from(outcome.is_err());
        self.clock.restoring(restore.elapsed());
        if counts.n_processes > 0
            && let Some(input) = self.family.tables.kernel.take_input()
        {
            if let Err(RestoreFailure { error, .. }) = &outcome {
                self.report.failed = Some(FailedRestore { input: input.clone(), error: error.clone() });
            }
            self.report.sent = Some(input);
        }
        outcome
    }

    /// Takes the committed state out of the tables, which reads the kernel if it is not known.
    pub(super) fn take_committed(&mut self) -> Committed {
        let (committed, drift) = self.read_kernel(FamilyTables::take);
        self.report.drift.add(drift);
        committed
    }

    /// Does `work`, which may read the kernel.
    pub(super) fn read_kernel<T>(&mut self, work: impl FnOnce(&mut FamilyTables<K>) -> T) -> T {
        self.clock.reading(|| work(&mut self.family.tables))
    }

    /// Ends the sync: keeps what the next one needs, and completes the report.
    pub(super) fn finish(mut self, outcome: RestoreOutcome) -> SyncReport {
        let mut is_changed_again = false;
        if outcome.is_ok() && !self.report.drift.is_empty() {
            let mut drift = std::mem::take(&mut self.report.drift);
            is_changed_again = self.read_kernel(|tables| tables.learn_equivalents(&mut drift));
            self.report.drift = drift;
        }
        let Attempt { family, mut report, stop, mut clock, .. } = self;
        family.n_unrepaired += report.drift.len();
        match outcome {
            Ok(()) if stop.load(Ordering::Relaxed) => family.touch_everything(),
            Ok(()) => {
                family.order = StepOrder::FilterAroundNat;
                if report.is_full() {
                    family.tables.kernel.relax_limits();
                }
                family.compiled.confirm();
                family.tables.references.drop_unreferenced();
                report.n_repaired = std::mem::take(&mut family.n_unrepaired);
                report.inherited = family.tables.take_inherited();
                if is_changed_again {
                    family.touch_everything();
                    family.tables.distrust(ReadReason::RepairWritten);
                }
            }
            Err(failure) => {
                // A rejection may mean that another process changed the tables. Unless nothing was applied, the next
                // sync needs the old rules of filter.
                let effect = FailureEffect::from(&failure.error);
                report.outcome = Err(match family.rejection_of(&failure) {
                    Some(rejection) => SyncError::Rejected(rejection),
                    None => SyncError::Restore(failure.error),
                });
                family.touch_everything();
                if effect != FailureEffect::NothingApplied {
                    family.tables.distrust(ReadReason::after_failure(effect));
                }
            }
        }
        report.stages = clock.stop(family.tables.kernel.lock_wait());
        family.complete(&mut report);
        report
    }
}

/// Whether the kernel or iptables rejected the input, so that another input may be accepted.
pub(super) fn is_rejection(failure: &RestoreFailure<RestoreError>) -> bool {
    matches!(failure.error, RestoreError::Refused { .. })
}
