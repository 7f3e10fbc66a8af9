//! One family's rules, kept in step with the cluster: compiles what changed, plans, restores, and
//! remembers what the kernel holds.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::quarantine::{Scene, held_chain, is_refusal};
use super::report::{Quarantine, Refusal, Report, SyncError};
use super::stopwatch::{Stopwatch, Timed};
use crate::compile::{Changed, Compiled, Group, InForce, SharedContent, Source, SyncScope, View};
use crate::drift::{FamilyTables, ReadReason};
use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainName, Digest, Table};
use crate::kernel::{Iptables, RestoreError};
use crate::model::ServiceName;
use crate::net::IpFamily;
use crate::plan::{Aftermath, Committed, Failure, Planner, Restore, Uncertain, When};
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
    pub(super) fn compiled(&self) -> &Compiled {
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
                self.turn = FilterTurn::Around;
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
                let effect = failure.error.aftermath();
                report.outcome = Err(self.explain(failure));
                self.touch_everything();
                if effect != Aftermath::Nothing {
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
    ) -> Result<(), Failure<RestoreError>> {
        let committed = self.take_committed(report);
        let outcome = self.attempt(scene, Attempt::Everything, committed, report);
        if let Err(failure) = &outcome {
            // Which of its tables were committed, jumps among them, only the kernel knows.
            self.tables.distrust(ReadReason::after_failure(failure.error.aftermath()));
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
    ) -> Result<(), Failure<RestoreError>> {
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
        let mut writer = Writer { tables, clock, turn: self.turn, stop: scene.stop };
        let mut outcome = Ok(());
        if what == Attempt::Pending
            && let Some(mut urgent) = changed.urgent(&committed)
        {
            writer.turn = FilterTurn::Around;
            outcome = writer.restore(&mut urgent, &mut committed, report);
            report.n_entries_read += urgent.n_entries_read();
            writer.turn = if outcome.is_ok() { FilterTurn::AfterNat } else { self.turn };
        }
        if outcome.is_ok() {
            outcome = writer.restore(&mut changed, &mut committed, report);
        }
        self.turn = writer.turn;
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
    turn: FilterTurn,
    stop: &'a AtomicBool,
}

impl<K: Iptables> Writer<'_, K> {
    fn restore(
        &mut self,
        changed: &mut Changed<'_>,
        committed: &mut Committed,
        report: &mut Report,
    ) -> Result<(), Failure<RestoreError>> {
        let filter = changed.filter_chains();
        let (fixed_first, fixed_last) = changed.fixed_nat_chains(committed);
        let (family, limits) = (self.tables.kernel.family(), self.tables.kernel.limits());
        let mut kernel = Timed::new(&mut self.tables.kernel);
        let mut planner = Planner::new(family, committed, &self.tables.jumps, limits, &mut kernel);
        let (turn, held, stop) = (self.turn, &mut self.tables.references, self.stop);
        let mut compiling = Duration::ZERO;
        let mut steps = || -> Result<(), Failure<RestoreError>> {
            if turn == FilterTurn::Around {
                planner.filter_first(&filter, is_shared_with_kubelet)?;
            }
            // Together, so that the mark that is set is always the mark that is looked for.
            planner.nat_chains(&fixed_first, When::Now)?;
            let (started, mut using) = (Instant::now(), Duration::ZERO);
            let ended = changed.each_group(|Group { chains, changes_with_dispatch, .. }| {
                let made = Instant::now();
                if stop.load(Ordering::Relaxed) {
                    return Err(None);
                }
                let when = if changes_with_dispatch { When::WithDispatch } else { When::Now };
                let result = planner.nat_chains(&chains, when).map_err(Some);
                using += made.elapsed();
                result
            });
            compiling = started.elapsed().saturating_sub(using);
            match ended {
                Ok(()) => {}
                Err(Some(failure)) => return Err(failure),
                Err(None) => return planner.finish(),
            }
            let shared = changed.shared_nat_chains();
            restore_dispatch(&mut planner, &shared)?;
            planner.nat_chains(&fixed_last, When::Now)?;
            let mut stale = changed.stale_nat_chains(&shared, planner.committed());
            if held.keeps_all {
                held.referenced.extend(&stale);
            }
            let kept: Vec<ChainName> = stale.extract_if(.., |name| held.referenced.contains(name)).collect();
            for name in kept {
                if held.flushed.insert(name) {
                    report.held.push(name);
                }
                planner.flush_nat(name)?;
            }
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
}

/// Passes the dispatch to `planner`, which writes what differs.
fn restore_dispatch<R: Restore<Error = RestoreError>>(
    planner: &mut Planner<'_, R>,
    shared: &[SharedContent<'_>],
) -> Result<(), Failure<RestoreError>> {
    if shared.is_empty() {
        return Ok(());
    }
    let (new, there): (Vec<_>, Vec<_>) = shared.iter().partition(|content| {
        // A chain without callers need not wait for what is committed together.
        planner.has_deferred() && !planner.committed().nat.contains_key(&content.name())
    });
    let restore = |planner: &mut Planner<'_, R>, content: &SharedContent<'_>| {
        planner.nat_shared(content.name(), content.digest(), |each| content.each_rule(each))
    };
    new.into_iter().try_for_each(|content| restore(planner, content))?;
    planner.nat_dispatch();
    there.into_iter().try_for_each(|content| restore(planner, content))
}
