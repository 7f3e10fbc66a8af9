//! When the kernel is checked next, and how long a check may keep the next one waiting. Knows no clock: times are passed
//! in.

use std::time::{Duration, Instant};

/// How long a process that writes is given to finish before a check.
const SETTLE: Duration = Duration::from_millis(250);
/// How often the legacy back-end's tables are checked, so that a flush is repaired within two seconds.
const POLL_PERIOD: Duration = Duration::from_millis(900);
/// A check may take this part of the time at most.
const CHECK_SHARE: u32 = 20;
/// The longest pause after a check, or after a read that found no drift: a flush is to be repaired within two seconds,
/// also where another process writes all the time.
const MAX_PAUSE: Duration = Duration::from_millis(1_500);
/// The pause after the generation could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// The times of the next check and audit.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Whether tables are checked each second because the kernel does not announce commits.
    is_polled: bool,
    check_at: Option<Instant>,
    /// No check before this.
    not_before: Instant,
    /// When the check began whose finding the next sync reads.
    read_asked_at: Option<Instant>,
    /// The last sync failed: its retry reads what is unknown, and no check comes before it.
    is_retrying: bool,
    audit_period: Duration,
    audit_at: Instant,
}

impl Schedule {
    pub(super) fn new(is_polled: bool, audit_period: Duration, now: Instant) -> Schedule {
        Schedule {
            is_polled,
            check_at: None,
            not_before: now,
            read_asked_at: None,
            is_retrying: false,
            audit_period,
            audit_at: now + audit_period,
        }
    }

    /// When to check or audit next; never a check before the first sync.
    pub(super) fn next_at(&self) -> Instant {
        self.check_at().map_or(self.audit_at, |at| at.min(self.audit_at))
    }

    /// Whether the audit is what is due first.
    pub(super) fn is_audit_next(&self) -> bool {
        self.check_at().is_none_or(|at| self.audit_at < at)
    }

    fn check_at(&self) -> Option<Instant> {
        self.check_at.filter(|_| !self.is_retrying).map(|at| at.max(self.not_before))
    }

    /// Another process may have written: has it checked once it has settled.
    pub(super) fn disturbed(&mut self, now: Instant) {
        self.check_at.get_or_insert(now + SETTLE);
    }

    /// Postpones a check whose generation could not be read.
    pub(super) fn postponed(&mut self, now: Instant) {
        self.check_at = Some(now + RETRY);
    }

    /// A sync ended. A read that found no drift, and that a check asked for, has the next check wait. `is_check_due`
    /// when something is left to be checked.
    pub(super) fn synced(&mut self, is_success: bool, has_drifted: bool, is_check_due: bool, now: Instant) {
        self.is_retrying = !is_success;
        let asked_at = self.read_asked_at.take();
        // A process that changed our rules once is likely to do so again: no pause then.
        if let Some(asked_at) = asked_at.filter(|_| !has_drifted) {
            self.not_before = now + pause(now - asked_at);
        }
        self.set_next_check(is_check_due, now);
    }

    /// A check or audit that began at `started` compared chains.
    pub(super) fn checked(&mut self, is_check_due: bool, started: Instant, now: Instant) {
        self.not_before = now + pause(now - started);
        self.set_next_check(is_check_due, now);
    }

    /// Fingerprints were recorded from `started` to `now`.
    pub(super) fn recorded(&mut self, is_check_due: bool, started: Instant, now: Instant) {
        self.not_before = now + (now - started);
        self.set_next_check(is_check_due, now);
    }

    /// A check that began at `started` asks the next sync to read the kernel.
    pub(super) fn read_asked(&mut self, started: Instant) {
        self.read_asked_at = Some(started);
    }

    /// An audit began.
    pub(super) fn audit_begun(&mut self, now: Instant) {
        self.audit_at = now + self.audit_period;
    }

    fn set_next_check(&mut self, is_check_due: bool, now: Instant) {
        self.check_at = match (self.is_polled, is_check_due) {
            (true, _) => Some(now + POLL_PERIOD),
            (false, true) => Some(now + SETTLE),
            (false, false) => None,
        };
    }
}

fn pause(elapsed: Duration) -> Duration {
    (elapsed * CHECK_SHARE).min(MAX_PAUSE)
}
