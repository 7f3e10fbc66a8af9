//! When a node is healthy: no change waits too long for its rules, and the Node is not about to leave.
//!
//! Time comes in as [`Moment`]s. The age of a change is measured by the monotonic clock, so that setting the wall clock
//! makes no node unhealthy.
//!
//! Source: kube-proxy v1.36, `pkg/proxy/healthcheck/proxy_health.go`; KEP 3836.

#![allow(clippy::disallowed_methods, reason = "health depends on time")]

use std::time::{Duration, Instant, SystemTime};

use crate::net::{IpFamily, PerFamily};

/// Now, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// For durations.
    pub monotonic: Instant,
    /// For display.
    pub wall: SystemTime,
}

impl Moment {
    /// Read from this machine's clocks.
    pub fn now() -> Moment {
        Moment { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// The moment `duration` earlier.
    pub fn earlier_by(self, duration: Duration) -> Moment {
        Moment {
            monotonic: self.monotonic.checked_sub(duration).unwrap_or(self.monotonic),
            wall: self.wall.checked_sub(duration).unwrap_or(self.wall),
        }
    }
}

/// How current the rules of one family are.
#[derive(Clone, Copy, Debug)]
struct FamilyProgress {
    updated: Moment,
    /// Since when a change waits or a sync runs.
    pending_since: Option<Instant>,
    /// Whether a sync has succeeded.
    is_synced: bool,
}

/// What the health of a node depends on.
#[derive(Debug)]
pub struct HealthState {
    timeout: Duration,
    /// `None` before the loop starts, and for a family that is not proxied.
    families: PerFamily<Option<FamilyProgress>>,
    /// Whether the node is eligible only once its Node is seen.
    expects_node: bool,
    /// `None` before the Node is seen.
    is_leaving: Option<bool>,
}

/// The health of one family, as answers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyHealth {
    /// The family.
    pub family: IpFamily,
    /// When its rules last matched all changes.
    pub updated: SystemTime,
    /// Whether no change waits for too long.
    pub is_healthy: bool,
}

impl HealthState {
    /// A change has to wait for less than `timeout`. If no Node is expected (a folder of manifests may lack one), its
    /// absence leaves the node eligible.
    pub fn new(timeout: Duration, expects_node: bool) -> HealthState {
        HealthState { timeout, families: PerFamily::default(), expects_node, is_leaving: None }
    }

    /// The sync loop starts and will sync `family`.
    pub fn started(&mut self, family: IpFamily, now: Moment) {
        self.set(family, now, false);
    }

    /// The rules of `family` match all changes that were queued.
    pub fn updated(&mut self, family: IpFamily, now: Moment) {
        self.set(family, now, true);
    }

    fn set(&mut self, family: IpFamily, updated: Moment, is_synced: bool) {
        *self.families.get_mut(family) = Some(FamilyProgress { updated, pending_since: None, is_synced });
    }

    /// A sync of `family` begins. It counts as a waiting change, so that a sync which never ends makes its family
    /// unhealthy: no change is queued meanwhile. The first sync counts only after it failed, as in kube-proxy: if it
    /// takes minutes, a liveness probe would restart it for ever.
    pub fn sync_began(&mut self, family: IpFamily, now: Moment) {
        if self.families.get(family).is_some_and(|family| family.is_synced) {
            self.queued(family, now);
        }
    }

    /// A change of `family` waits from now on, unless an older one waits already.
    pub fn queued(&mut self, family: IpFamily, now: Moment) {
        if let Some(family) = self.families.get_mut(family) {
            family.pending_since.get_or_insert(now.monotonic);
        }
    }

    /// The Node is seen, and is about to leave the cluster or not.
    pub fn set_node_leaving(&mut self, is_leaving: bool) {
        self.is_leaving = Some(is_leaving);
    }

    /// The health of each family that is proxied.
    pub fn families(&self, now: Moment) -> Vec<FamilyHealth> {
        let family = |family| {
            let FamilyProgress { updated, pending_since, .. } = (*self.families.get(family))?;
            let waits = pending_since.map(|since| now.monotonic.saturating_duration_since(since));
            let is_healthy = waits.is_none_or(|waits| waits < self.timeout);
            Some(FamilyHealth { family, updated: updated.wall, is_healthy })
        };
        IpFamily::BOTH.into_iter().filter_map(family).collect()
    }

    /// Whether all families are healthy. True before the loop starts.
    pub fn is_healthy(&self, now: Moment) -> bool {
        self.families(now).iter().all(|family| family.is_healthy)
    }

    /// Whether the Node is not about to leave, and is known if one is expected.
    pub fn is_node_eligible(&self) -> bool {
        !self.is_leaving.unwrap_or(self.expects_node)
    }

    /// The latest time at which the rules of a family matched all changes.
    pub fn last_updated(&self) -> Option<SystemTime> {
        let families = IpFamily::BOTH.into_iter().filter_map(|family| *self.families.get(family));
        families
            .map(|family| family.updated)
            .max_by_key(|updated| updated.monotonic)
            .map(|updated| updated.wall)
    }
}

#[cfg(test)]
mod tests {
    use super::IpFamily::{V4, V6};
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// A state, and a clock that the test moves.
    struct Clock {
        state: HealthState,
        now: Moment,
    }

    impl Clock {
        fn started() -> Clock {
            let mut clock = Clock { state: HealthState::new(TIMEOUT, true), now: Moment::now() };
            clock.updated(V4).updated(V6);
            clock
        }

        fn wait(&mut self, duration: Duration) -> &mut Clock {
            self.now = Moment { monotonic: self.now.monotonic + duration, wall: self.now.wall + duration };
            self
        }

        fn updated(&mut self, family: IpFamily) -> &mut Clock {
            self.state.updated(family, self.now);
            self
        }

        fn queued(&mut self, family: IpFamily) -> &mut Clock {
            self.state.queued(family, self.now);
            self
        }

        /// The health of IPv4 and IPv6.
        #[track_caller]
        fn is(&mut self, expected: [bool; 2]) -> &mut Clock {
            let healthy: Vec<bool> = self.state.families(self.now).iter().map(|one| one.is_healthy).collect();
            assert_eq!(healthy, expected);
            assert_eq!(self.state.is_healthy(self.now), expected[0] && expected[1]);
            self
        }
    }

    #[test]
    fn before_the_loop_starts_a_proxy_is_healthy_and_has_no_families() {
        let mut state = HealthState::new(TIMEOUT, true);
        state.queued(V4, Moment::now());
        assert!(state.is_healthy(Moment::now().earlier_by(TIMEOUT * 9)));
        assert_eq!((state.families(Moment::now()), state.last_updated()), (vec![], None));
    }

    #[test]
    fn a_proxy_without_changes_stays_healthy() {
        Clock::started().wait(TIMEOUT * 1000).is([true, true]);
    }

    #[test]
    fn a_change_that_waits_for_the_timeout_makes_its_family_unhealthy_until_it_is_synced() {
        let just_before = TIMEOUT - Duration::from_nanos(1);
        let mut clock = Clock::started();
        clock.queued(V4).wait(just_before).is([true, true]).wait(Duration::from_nanos(1)).is([false, true]);
        clock.updated(V4).is([true, true]);
        clock.queued(V6).wait(TIMEOUT).updated(V4).is([true, false]);
        clock.queued(V4).wait(TIMEOUT).updated(V4).is([true, false]).updated(V6).is([true, true]);
    }

    #[test]
    fn a_sync_that_does_not_end_makes_its_family_unhealthy_except_the_first() {
        let mut clock = Clock { state: HealthState::new(TIMEOUT, true), now: Moment::now() };
        IpFamily::BOTH.into_iter().for_each(|family| clock.state.started(family, clock.now));
        clock.state.sync_began(V4, clock.now);
        clock.wait(TIMEOUT * 9).is([true, true]).updated(V4).wait(TIMEOUT);
        clock.state.sync_began(V4, clock.now);
        clock.wait(TIMEOUT - Duration::from_nanos(1)).is([true, true]);
        clock.wait(Duration::from_nanos(1)).is([false, true]).updated(V4).is([true, true]);
        // A change that waited before the sync began is older.
        clock.queued(V4).wait(TIMEOUT / 2);
        clock.state.sync_began(V4, clock.now);
        clock.wait(TIMEOUT / 2).is([false, true]);
    }

    #[test]
    fn the_oldest_change_counts() {
        Clock::started().queued(V4).wait(TIMEOUT / 2).queued(V4).wait(TIMEOUT / 2).is([false, true]);
    }

    #[test]
    fn a_clock_that_jumps_changes_nothing() {
        let mut clock = Clock::started();
        clock.queued(V4);
        clock.now.wall += TIMEOUT * 1000;
        clock.is([true, true]).wait(TIMEOUT);
        clock.now.wall = SystemTime::UNIX_EPOCH;
        clock.is([false, true]);
    }

    #[test]
    fn the_last_update_is_the_newest_of_all_families_whatever_the_wall_clock_says() {
        let mut clock = Clock::started();
        clock.wait(TIMEOUT).updated(V6);
        assert_eq!(clock.state.last_updated(), Some(clock.now.wall));
        clock.now.wall -= TIMEOUT * 2;
        clock.wait(TIMEOUT / 2).updated(V4);
        assert_eq!(clock.state.last_updated(), Some(clock.now.wall));
    }

    #[test]
    fn a_node_is_eligible_once_seen_and_while_it_is_not_leaving() {
        let mut state = HealthState::new(TIMEOUT, true);
        assert!(!state.is_node_eligible());
        state.set_node_leaving(false);
        assert!(state.is_node_eligible());
        state.set_node_leaving(true);
        assert!(!state.is_node_eligible() && state.is_healthy(Moment::now()));
        let mut state = HealthState::new(TIMEOUT, false);
        assert!(state.is_node_eligible(), "none is expected");
        state.set_node_leaving(true);
        assert!(!state.is_node_eligible());
    }
}
