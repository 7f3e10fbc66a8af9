//! When to look whether somebody else wrote to the tables, and how closely.
//!
//! The nft back-end tells: every commit raises the ruleset's generation and is notified. What we
//! committed ourselves is known, so nothing is looked at while nobody else writes. The legacy
//! back-end tells nothing: there the tables are looked at every second.

use std::time::Duration;

use tokio::time::Instant;

/// How long writers are given to be done before we look.
const SETTLE: Duration = Duration::from_millis(250);
/// How often the legacy back-end's tables are looked at, so that a flush is repaired within two seconds.
const LOOK_PERIOD: Duration = Duration::from_millis(900);
/// A look may take this part of the time at most.
const LOOK_SHARE: u32 = 20;
/// How long the time that a look took, and the reading after it, may keep the next one waiting: a flush is
/// to be repaired within two seconds, also where another process writes all the time.
const MAX_PAUSE: Duration = Duration::from_millis(1_500);
/// How soon to try again after the generation could not be had.
const RETRY: Duration = Duration::from_secs(1);

/// Remembers what is ours among the commits, and when the next look is due.
#[derive(Debug)]
pub(super) struct Lookout {
    /// The generation after our last commit or look; `None` on the legacy back-end, and before the first.
    own: Option<u32>,
    /// The generation after our last commit, whatever was looked at since.
    ours: Option<u32>,
    /// Whether commits are notified.
    is_notified: bool,
    /// When to look next.
    look_at: Option<Instant>,
    /// No look before this.
    not_before: Instant,
    /// Whether somebody else wrote, up to `own`, and nobody has looked at the tables since.
    is_owed: bool,
    /// Whether somebody else wrote, and what looks could not compare was not read since.
    is_unread: bool,
    /// When the look began after which everything is read.
    suspected_at: Option<Instant>,
    /// How often in a row the generation could not be had. Meanwhile the last known ones count.
    n_lost: u32,
    /// Whether one could not be had since the last sync or look.
    was_lost: bool,
    audit_period: Duration,
    audit_at: Instant,
}

impl Lookout {
    pub(super) fn new(is_notified: bool, audit_period: Duration, now: Instant) -> Lookout {
        Lookout {
            own: None,
            ours: None,
            is_notified,
            look_at: None,
            not_before: now,
            is_owed: false,
            is_unread: false,
            suspected_at: None,
            n_lost: 0,
            was_lost: false,
            audit_period,
            audit_at: now + audit_period,
        }
    }

    /// When to look; never before the first sync.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at.map(|at| at.max(self.not_before))
    }

    /// When to compare everything.
    pub(super) fn audit_at(&self) -> Instant {
        self.audit_at
    }

    /// Notes that the generation could be had, if there is one; passes it on.
    pub(super) fn found(&mut self, generation: Option<u32>) -> Option<u32> {
        self.n_lost = 0;
        generation
    }

    /// Notes that the generation could not be had; how often in a row.
    pub(super) fn lost(&mut self) -> u32 {
        self.n_lost = self.n_lost.saturating_add(1);
        self.was_lost = true;
        self.n_lost
    }

    /// Whether the generation could not be had when it was asked for last.
    pub(super) fn is_lost(&self) -> bool {
        self.n_lost > 0
    }

    /// Puts off a look that has no generation to begin with.
    pub(super) fn look_later(&mut self, now: Instant) {
        self.is_owed = true;
        self.look_at = Some(now + RETRY);
    }

    /// Whether nobody else has written up to `generation` whose commits were not looked at.
    pub(super) fn is_settled(&self, generation: Option<u32>) -> bool {
        !self.is_owed && self.own.is_some() && generation == self.own
    }

    /// Whether nobody else wrote since our last commit, or there was none of ours.
    pub(super) fn is_continued(&self, generation: Option<u32>) -> bool {
        self.own.is_none() || generation == self.own
    }

    /// Notes a sync that made `n_commits` between the generations `before` and `after`. Somebody who
    /// wrote in between gives himself away by the difference.
    pub(super) fn synced(&mut self, before: Option<u32>, after: Option<u32>, n_commits: usize, now: Instant) {
        let is_foreign = match (before, after) {
            (Some(_), Some(_)) => !is_alone(before, after, n_commits) || !self.is_continued(before),
            _ => false,
        };
        if std::mem::take(&mut self.was_lost) {
            // Another process may have written: the next look shows it.
            (self.own, self.ours) = (after.or(self.own), after.or(self.ours));
            self.is_owed = true;
        } else {
            (self.own, self.ours) = (after, after);
        }
        self.is_owed |= is_foreign;
        if let Some(suspected_at) = self.suspected_at.take() {
            self.not_before = now + ((now - suspected_at) * LOOK_SHARE).min(MAX_PAUSE);
        }
        self.look_at = match (self.is_owed, self.is_notified) {
            (true, _) => Some(now + SETTLE),
            (false, true) => None,
            (false, false) => Some(now + LOOK_PERIOD),
        };
    }

    /// Notes that there is more to do for a look, once everything is quiet.
    pub(super) fn look_on(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + SETTLE);
    }

    /// Notes that prints were taken from `started` to `now`.
    pub(super) fn taken(&mut self, started: Instant, now: Instant) {
        self.look_at = (!self.is_notified).then(|| now + LOOK_PERIOD);
        self.not_before = now + (now - started);
    }

    /// Notes that chains were compared from `started` to `now`; `is_compared` when that was the last of
    /// them, and nothing was left out.
    pub(super) fn scanned(&mut self, is_compared: bool, started: Instant, now: Instant) {
        self.taken(started, now);
        self.not_before = now + ((now - started) * LOOK_SHARE).min(MAX_PAUSE);
        self.is_unread &= !is_compared;
    }

    /// Notes that a look that began at `started` was not enough: tables are about to be read.
    pub(super) fn suspected(&mut self, started: Instant) {
        self.suspected_at = Some(started);
    }

    /// Notes that the suspicion was right: who breaks things may break more, so the next look comes soon.
    pub(super) fn drifted(&mut self) {
        self.suspected_at = None;
    }

    /// Notes that somebody committed `generation` (`None`: it is not known what). The kernel tells when it
    /// takes effect, a moment after it counts: a look in between saw the number and not what was written.
    pub(super) fn committed(&mut self, generation: Option<u32>, now: Instant) {
        let Some(ours) = self.ours else { return };
        // Numbers go round: what lies less than half a round behind is old.
        let is_ours = generation.is_some_and(|generation| ours.wrapping_sub(generation) < u32::MAX / 2);
        if !is_ours {
            self.is_owed = true;
            self.look_at.get_or_insert(now + SETTLE);
        }
    }

    /// Notes a look that began at `started`, when the generation was `seen`. What is wrong is about to be
    /// read; `is_unread` when there is more that was not compared.
    pub(super) fn looked(&mut self, seen: Option<u32>, is_unread: bool, started: Instant, now: Instant) {
        if !self.is_settled(seen) {
            self.is_unread = is_unread;
        }
        self.own = seen.or(self.own);
        self.ours = self.ours.or(seen);
        self.was_lost = false;
        self.is_owed = false;
        self.not_before = now + ((now - started) * LOOK_SHARE).min(MAX_PAUSE);
        self.look_at = (!self.is_notified).then(|| now + LOOK_PERIOD);
    }

    /// Notes that everything was compared, or is about to be read, in an audit that began at `started`.
    pub(super) fn audited(&mut self, seen: Option<u32>, started: Instant, now: Instant) {
        self.looked(seen, false, started, now);
        self.is_unread = false;
    }

    /// Whether the audit that is due has anything to compare; it is put off to the next time.
    pub(super) fn begin_audit(&mut self, generation: Option<u32>, now: Instant) -> bool {
        self.audit_at = now + self.audit_period;
        self.is_unread || !self.is_settled(generation)
    }
}

/// Whether the `n_commits` that we made are all that there were between two generations.
pub(super) fn is_alone(before: Option<u32>, after: Option<u32>, n_commits: usize) -> bool {
    matches!((before, after), (Some(before), Some(after)) if after.wrapping_sub(before) as usize == n_commits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIT: Duration = Duration::from_secs(300);

    fn after_sync(
        is_notified: bool,
        before: Option<u32>,
        after: Option<u32>,
        n_commits: usize,
    ) -> (Lookout, Instant) {
        let now = Instant::now();
        let mut lookout = Lookout::new(is_notified, AUDIT, now);
        lookout.synced(before, after, n_commits, now);
        (lookout, now)
    }

    #[test]
    fn our_own_commits_ask_for_no_look() {
        let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
        lookout.committed(Some(8), now);
        lookout.committed(Some(9), now);
        assert_eq!(lookout.look_at(), None);
        assert!(!lookout.begin_audit(Some(9), now), "nobody wrote");
    }

    #[test]
    fn a_foreign_commit_is_looked_at_once_it_has_settled() {
        let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
        lookout.committed(Some(10), now);
        assert_eq!(lookout.look_at(), Some(now + SETTLE));
        assert!(lookout.begin_audit(Some(10), now));
        lookout.looked(Some(10), false, now, now);
        assert_eq!(lookout.look_at(), None);
        assert!(!lookout.begin_audit(Some(10), now), "everything was compared");
    }

    #[test]
    fn what_a_look_could_not_compare_is_left_to_the_audit() {
        let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
        lookout.committed(Some(10), now);
        lookout.looked(Some(10), true, now, now);
        assert!(lookout.begin_audit(Some(10), now));
        // Another look at the same tells no more.
        lookout.looked(Some(10), false, now, now);
        assert!(lookout.begin_audit(Some(10), now));
        lookout.audited(Some(10), now, now);
        lookout.synced(Some(10), Some(10), 0, now);
        assert!(!lookout.begin_audit(Some(10), now), "everything was read");
    }

    #[test]
    fn a_sync_does_not_make_a_foreign_commit_before_it_ours() {
        for (before, after) in [(10, 11), (9, 11)] {
            // Before the sync, or during it.
            let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
            assert!(lookout.is_settled(Some(9)));
            assert_eq!(lookout.is_continued(Some(before)), before == 9);
            lookout.synced(Some(before), Some(after), 1, now);
            lookout.synced(Some(11), Some(12), 1, now);
            assert!(!lookout.is_settled(Some(12)), "nobody has looked");
            assert_eq!(lookout.look_at(), Some(now + SETTLE));
            assert!(lookout.begin_audit(Some(12), now));
            lookout.looked(Some(12), false, now, now);
            assert!(lookout.is_settled(Some(12)) && lookout.look_at().is_none());
        }
    }

    #[test]
    fn what_is_left_is_done_when_it_is_quiet() {
        let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
        lookout.look_on(now);
        assert_eq!(lookout.look_at(), Some(now + SETTLE));
        lookout.looked(Some(9), false, now, now);
        assert_eq!(lookout.look_at(), None);
    }

    #[test]
    fn somebody_who_writes_all_the_time_does_not_make_us_read_all_the_time() {
        let pause = |reading: Duration, is_right: bool| {
            let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
            lookout.committed(Some(10), now);
            lookout.suspected(now);
            let read = now + reading;
            if is_right {
                lookout.drifted();
            }
            lookout.synced(Some(10), Some(10), 0, read);
            lookout.committed(Some(11), read);
            lookout.look_at().unwrap() - read
        };
        assert_eq!(pause(Duration::from_millis(100), true), SETTLE, "it was for something");
        assert_eq!(pause(Duration::from_millis(20), false), Duration::from_millis(400));
        assert_eq!(pause(Duration::from_millis(1), false), SETTLE);
        assert_eq!(pause(Duration::from_secs(2), false), MAX_PAUSE, "a flush is still seen in time");
    }

    #[test]
    fn what_a_scan_has_compared_is_no_work_for_the_audit() {
        let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
        lookout.committed(Some(10), now);
        lookout.looked(Some(10), true, now, now);
        let scanned = now + Duration::from_millis(40);
        lookout.scanned(false, now, scanned);
        lookout.look_on(scanned);
        assert_eq!(lookout.look_at(), Some(scanned + Duration::from_millis(800)), "a twentieth of the time");
        assert!(lookout.begin_audit(Some(10), scanned));
        lookout.scanned(true, scanned, scanned);
        assert!(!lookout.begin_audit(Some(10), scanned));
        let taken = scanned + Duration::from_millis(400);
        lookout.taken(scanned, taken);
        lookout.look_on(taken);
        assert_eq!(lookout.look_at(), Some(taken + Duration::from_millis(400)), "half of the time");
    }

    #[test]
    fn a_long_look_does_not_keep_a_flush_unseen() {
        let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
        lookout.committed(Some(10), now);
        let looked = now + Duration::from_millis(300);
        lookout.looked(Some(10), false, now, looked);
        lookout.committed(Some(11), looked);
        assert_eq!(lookout.look_at(), Some(looked + MAX_PAUSE));
    }

    #[test]
    fn a_commit_between_ours_is_noticed() {
        let (lookout, now) = after_sync(true, Some(7), Some(10), 2);
        assert_eq!(lookout.look_at(), Some(now + SETTLE));
    }

    #[test]
    fn a_commit_that_is_told_after_a_look_at_its_number_is_looked_at_again() {
        let (mut lookout, now) = after_sync(true, Some(7), Some(9), 2);
        lookout.committed(Some(10), now);
        lookout.looked(Some(11), false, now, now);
        lookout.committed(Some(11), now);
        assert_eq!((lookout.look_at(), lookout.is_settled(Some(11))), (Some(now + SETTLE), false));
        lookout.looked(Some(11), false, now, now);
        assert_eq!((lookout.look_at(), lookout.is_settled(Some(11))), (None, true));
    }

    #[test]
    fn generations_go_round() {
        let (mut lookout, now) = after_sync(true, Some(u32::MAX), Some(1), 2);
        lookout.committed(Some(u32::MAX), now);
        assert_eq!(lookout.look_at(), None);
        lookout.committed(Some(2), now);
        assert!(lookout.look_at().is_some());
    }

    #[test]
    fn missed_notifications_are_foreign_commits() {
        let (mut lookout, now) = after_sync(true, Some(1), Some(1), 0);
        lookout.committed(None, now);
        assert!(lookout.look_at().is_some());
    }

    #[test]
    fn without_notifications_there_is_a_look_each_second_that_costs_little() {
        let (mut lookout, now) = after_sync(false, None, None, 1);
        assert_eq!(lookout.look_at(), Some(now + LOOK_PERIOD));
        let later = now + Duration::from_millis(100);
        lookout.looked(None, true, now, later);
        assert_eq!(lookout.look_at(), Some(later + MAX_PAUSE), "a flush is still seen in time");
        assert!(lookout.begin_audit(None, later), "an audit always compares");
        assert_eq!(lookout.audit_at(), later + AUDIT);
    }

    #[test]
    fn nothing_is_looked_at_before_the_first_sync() {
        let now = Instant::now();
        let mut lookout = Lookout::new(true, AUDIT, now);
        lookout.committed(Some(5), now);
        assert_eq!(lookout.look_at(), None);
    }
}
