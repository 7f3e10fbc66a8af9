//! When a node is healthy: no change waits for its rules too long, and the Node is to stay.
//!
//! Source: kube-proxy v1.36, `pkg/proxy/healthcheck/proxy_health.go`; KEP 3836.

use std::time::{Duration, Instant, SystemTime};

use crate::net::{IpFamily, PerFamily};

/// Now, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// For durations: nobody sets it.
    pub monotonic: Instant,
    /// For people.
    pub wall: SystemTime,
}

impl Moment {
    /// By this machine's clocks.
    pub fn now() -> Moment {
        Moment { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// So much before.
    pub fn earlier_by(self, duration: Duration) -> Moment {
        Moment {
            monotonic: self.monotonic.checked_sub(duration).unwrap_or(self.monotonic),
            wall: self.wall.checked_sub(duration).unwrap_or(self.wall),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Family {
    updated: Moment,
    /// Since when a change waits, or a sync runs.
    pending_since: Option<Instant>,
    /// Whether a sync of it succeeded.
    is_synced: bool,
}

/// What is known of the health of a node.
#[derive(Debug)]
pub struct State {
    timeout: Duration,
    /// `None` before the loop begins, and for a family that is not proxied.
    families: PerFamily<Option<Family>>,
    /// Whether there has to be a Node.
    expects_node: bool,
    /// `None` while the Node was never seen.
    is_leaving: Option<bool>,
}

/// A family, as shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyHealth {
    /// Which.
    pub family: IpFamily,
    /// When its rules were last in step.
    pub updated: SystemTime,
    /// Whether none of its changes waits for too long.
    pub is_healthy: bool,
}

impl State {
    /// A change may wait for less than `timeout`. Where no Node is expected (a folder of manifests need not
    /// hold one) its absence is no reason to leave.
    pub fn new(timeout: Duration, expects_node: bool) -> State {
        State { timeout, families: PerFamily::default(), expects_node, is_leaving: None }
    }

    /// The loop of `family` begins.
    pub fn started(&mut self, family: IpFamily, now: Moment) {
        *self.families.get_mut(family) = Some(Family { updated: now, pending_since: None, is_synced: false });
    }

    /// The rules of `family` are in step with all that was queued.
    pub fn updated(&mut self, family: IpFamily, now: Moment) {
        *self.families.get_mut(family) = Some(Family { updated: now, pending_since: None, is_synced: true });
    }

    /// A sync of `family` begins. It counts as a change that waits, so that one which never ends makes its
    /// family sick: nothing is queued meanwhile. The first one counts only once it failed, as for
    /// kube-proxy: where it takes minutes, a liveness probe would begin it again and again.
    pub fn syncing(&mut self, family: IpFamily, now: Moment) {
        if self.families.get(family).is_some_and(|family| family.is_synced) {
            self.queued(family, now);
        }
    }

    /// A change of `family` waits from now on. One that waits already is older.
    pub fn queued(&mut self, family: IpFamily, now: Moment) {
        if let Some(family) = self.families.get_mut(family) {
            family.pending_since.get_or_insert(now.monotonic);
        }
    }

    /// The Node was seen, and is to go, or not.
    pub fn node_is_leaving(&mut self, is_leaving: bool) {
        self.is_leaving = Some(is_leaving);
    }

    /// Each family that is proxied.
    pub fn families(&self, now: Moment) -> Vec<FamilyHealth> {
        let family = |family| {
            let Family { updated, pending_since, .. } = (*self.families.get(family))?;
            let waits = pending_since.map(|since| now.monotonic.saturating_duration_since(since));
            let is_healthy = waits.is_none_or(|waits| waits < self.timeout);
            Some(FamilyHealth { family, updated: updated.wall, is_healthy })
        };
        IpFamily::BOTH.into_iter().filter_map(family).collect()
    }

    /// Whether all families are healthy. True before the loop begins.
    pub fn is_healthy(&self, now: Moment) -> bool {
        self.families(now).iter().all(|family| family.is_healthy)
    }

    /// Whether the Node is known, if it has to be, and is to stay.
    pub fn is_node_eligible(&self) -> bool {
        !self.is_leaving.unwrap_or(self.expects_node)
    }

    /// When rules were last in step, of any family.
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

    /// A state and a clock that stands until it is moved.
    struct Clock {
        state: State,
        now: Moment,
    }

    impl Clock {
        fn started() -> Clock {
            let mut clock = Clock { state: State::new(TIMEOUT, true), now: Moment::now() };
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
    fn before_the_loop_begins_a_proxy_is_healthy_and_has_no_families() {
        let mut state = State::new(TIMEOUT, true);
        state.queued(V4, Moment::now());
        assert!(state.is_healthy(Moment::now().earlier_by(TIMEOUT * 9)));
        assert_eq!((state.families(Moment::now()), state.last_updated()), (vec![], None));
    }

    #[test]
    fn whoever_has_nothing_to_do_stays_healthy() {
        Clock::started().wait(TIMEOUT * 1000).is([true, true]);
    }

    #[test]
    fn a_change_that_waits_for_the_timeout_makes_its_family_sick_until_it_is_synced() {
        let just_before = TIMEOUT - Duration::from_nanos(1);
        let mut clock = Clock::started();
        clock.queued(V4).wait(just_before).is([true, true]).wait(Duration::from_nanos(1)).is([false, true]);
        clock.updated(V4).is([true, true]);
        clock.queued(V6).wait(TIMEOUT).updated(V4).is([true, false]);
        clock.queued(V4).wait(TIMEOUT).updated(V4).is([true, false]).updated(V6).is([true, true]);
    }

    #[test]
    fn a_sync_that_does_not_end_makes_its_family_sick_except_the_first() {
        let mut clock = Clock { state: State::new(TIMEOUT, true), now: Moment::now() };
        IpFamily::BOTH.into_iter().for_each(|family| clock.state.started(family, clock.now));
        clock.state.syncing(V4, clock.now);
        clock.wait(TIMEOUT * 9).is([true, true]).updated(V4).wait(TIMEOUT);
        clock.state.syncing(V4, clock.now);
        clock.wait(TIMEOUT - Duration::from_nanos(1)).is([true, true]);
        clock.wait(Duration::from_nanos(1)).is([false, true]).updated(V4).is([true, true]);
        // What waited before it began is older.
        clock.queued(V4).wait(TIMEOUT / 2);
        clock.state.syncing(V4, clock.now);
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
    fn a_node_is_eligible_once_it_was_seen_and_while_it_is_to_stay() {
        let mut state = State::new(TIMEOUT, true);
        assert!(!state.is_node_eligible());
        state.node_is_leaving(false);
        assert!(state.is_node_eligible());
        state.node_is_leaving(true);
        assert!(!state.is_node_eligible() && state.is_healthy(Moment::now()));
        let mut state = State::new(TIMEOUT, false);
        assert!(state.is_node_eligible(), "none is expected");
        state.node_is_leaving(true);
        assert!(!state.is_node_eligible());
    }
}
