//! Detects drift for both families: when to check, what another process committed, what the next sync has to read.

use std::time::Duration;

use tokio::time::Instant;

use super::family_tables::FamilyTables;
use super::generations::{Generations, is_alone};
use super::machine::{Knowledge, Signal};
use super::reason::ReadReason;
use super::schedule::Schedule;
use crate::kernel::Iptables;
use crate::log::failure;
use crate::net::IpFamily;

/// Tells the loop when to check the kernel and does it. The tables of all families, in the same order, are passed to each
/// call; calls that dump chains may block.
#[derive(Debug)]
pub struct DriftDetector {
    generations: Generations,
    schedule: Schedule,
    /// The generation when the sync in progress began.
    before_sync: Option<u32>,
}

/// What a check asks of the loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Families of which every service port is to be synced at once, with a read of the kernel.
    pub resync: Vec<IpFamily>,
    /// It was an audit: whatever only a full sync does is due, too.
    pub is_audit: bool,
}

impl DriftDetector {
    /// For tables of which nothing is known. `is_notified`: [`DriftDetector::notified`] is called at each commit;
    /// otherwise tables are checked each second.
    pub fn new(is_notified: bool, audit_period: Duration) -> DriftDetector {
        DriftDetector {
            generations: Generations::default(),
            schedule: Schedule::new(!is_notified, audit_period, Instant::now().into_std()),
            before_sync: None,
        }
    }

    /// When to call [`DriftDetector::check`] next.
    pub fn next_at(&self) -> Instant {
        Instant::from_std(self.schedule.next_at())
    }

    /// Records that a process, perhaps this one, committed to nf_tables; with the generation if it is known.
    pub fn notified<K: Iptables>(&mut self, generation: Option<u32>, tables: &mut [&mut FamilyTables<K>]) {
        if self.generations.is_external(generation) {
            disturb(tables, ReadReason::ExternalCommit);
            self.schedule.disturbed(Instant::now().into_std());
        }
    }

    /// Does what is due: records fingerprints, compares tables or a slice of them, or audits.
    pub fn check<K: Iptables>(&mut self, tables: &mut [&mut FamilyTables<K>]) -> Checked {
        let started = Instant::now().into_std();
        let is_audit = self.schedule.is_audit_next();
        let seen = self.read_generation(tables);
        let disturbance = match seen {
            _ if self.generations.is_unreadable() => Some(ReadReason::GenerationUnreadable),
            None => Some(ReadReason::LegacyPoll),
            Some(_) if self.generations.is_current(seen) => None,
            Some(_) => Some(ReadReason::ExternalCommit),
        };
        if let Some(reason) = disturbance {
            disturb(tables, reason);
        }
        if is_audit {
            self.schedule.audit_begun(started);
            return self.audit(seen, tables);
        }
        if self.generations.is_unreadable() {
            self.schedule.postponed(Instant::now().into_std());
            return Checked::default();
        }
        let is_suspect = tables.iter().any(|one| matches!(one.knowledge(), Knowledge::Suspect { .. }));
        if let Some(generation) = seen.filter(|_| !is_suspect)
            && tables.iter().any(|one| one.has_pending_fingerprints())
        {
            tables.iter_mut().for_each(|one| one.record_fingerprints(generation));
            let is_check_due = is_check_due(tables);
            self.schedule.recorded(is_check_due, started, Instant::now().into_std());
            return Checked::default();
        }
        let resync = check_each(tables, Signal::CheckDue);
        self.generations.checked(seen);
        self.schedule.checked(is_check_due(tables), started, Instant::now().into_std());
        if !resync.is_empty() {
            self.schedule.read_asked(started);
        }
        Checked { resync, is_audit }
    }

    /// Compares everything that was not verified since another process wrote.
    fn audit<K: Iptables>(&mut self, seen: Option<u32>, tables: &mut [&mut FamilyTables<K>]) -> Checked {
        let started = Instant::now().into_std();
        let compares = tables.iter().any(|one| one.is_unverified());
        let resync = check_each(tables, Signal::AuditDue);
        self.generations.checked(seen);
        if compares {
            self.schedule.checked(is_check_due(tables), started, Instant::now().into_std());
        }
        Checked { resync, is_audit: true }
    }

    /// Called before each sync.
    pub fn sync_begins<K: Iptables>(&mut self, tables: &mut [&mut FamilyTables<K>]) {
        self.before_sync = self.read_generation(tables);
        if !self.generations.is_continued(self.before_sync) {
            tables.iter_mut().for_each(|one| one.drop_pending_fingerprints());
        }
    }

    /// Called after each sync, which made `n_commits` in all families. `has_drifted`: a read in it found drift.
    pub fn sync_ended<K: Iptables>(
        &mut self,
        n_commits: usize,
        is_success: bool,
        has_drifted: bool,
        tables: &mut [&mut FamilyTables<K>],
    ) {
        let (before, after) = (self.before_sync, self.read_generation(tables));
        let alone = after.filter(|_| is_alone(before, after, n_commits));
        tables.iter_mut().for_each(|one| one.record_after_sync(alone));
        if let Some(reason) = self.generations.synced(before, after, n_commits) {
            disturb(tables, reason);
        }
        self.schedule.synced(is_success, has_drifted, is_check_due(tables), Instant::now().into_std());
    }

    /// The ruleset's generation, which all families share; `None` on legacy, and when it cannot be read.
    fn read_generation<K: Iptables>(&mut self, tables: &mut [&mut FamilyTables<K>]) -> Option<u32> {
        match tables.first_mut().map_or(Ok(None), |one| one.kernel.generation()) {
            Ok(generation) => {
                self.generations.mark_readable();
                generation
            }
            Err(error) => {
                let n_failures = self.generations.mark_unreadable();
                failure!(n_failures, error = %format!("{error:#}"), "cannot read the ruleset's generation; keeping the last one");
                None
            }
        }
    }
}

fn disturb<K: Iptables>(tables: &mut [&mut FamilyTables<K>], reason: ReadReason) {
    for one in tables {
        one.signal(Signal::Disturbed(reason));
    }
}

fn is_check_due<K: Iptables>(tables: &[&mut FamilyTables<K>]) -> bool {
    tables.iter().any(|one| one.is_check_due())
}

fn check_each<K: Iptables>(tables: &mut [&mut FamilyTables<K>], due: Signal) -> Vec<IpFamily> {
    let is_read = |one: &mut &mut FamilyTables<K>| one.check(due).map(|_| one.kernel.family());
    tables.iter_mut().filter_map(is_read).collect()
}

#[cfg(test)]
mod tests;
