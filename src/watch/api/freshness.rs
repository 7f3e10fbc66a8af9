//! How long each watched kind has been without an open watch.
//!
//! An open watch over a living connection is current, even if no event arrives: `link` detects dead
//! connections. So only the time without an open watch counts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info};

use crate::model::ObjectKind;

/// The watched kinds.
const KINDS: [ObjectKind; 3] = [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node];

/// Renewing a watch takes less than this.
const SHORTEST_LIMIT: Duration = Duration::from_secs(15);

/// When the watch of each kind ended, and whether that was logged.
#[derive(Debug)]
pub struct Freshness {
    limit: Duration,
    kinds: Mutex<[KindFreshness; KINDS.len()]>,
}

#[derive(Clone, Copy, Debug)]
struct KindFreshness {
    /// `None`: the watch is open.
    stale_since: Option<Instant>,
    is_logged: bool,
}

impl Freshness {
    /// Starts with all kinds stale. A kind that stays stale for `limit` (at least 15 s) is logged.
    pub fn new(limit: Duration) -> Freshness {
        let limit = limit.max(SHORTEST_LIMIT);
        let initial = KindFreshness { stale_since: Some(Instant::now()), is_logged: false };
        Freshness { limit, kinds: Mutex::new([initial; KINDS.len()]) }
    }

    /// The kinds without an open watch for at least the limit, and for how long.
    pub fn stale_kinds(&self) -> Vec<(ObjectKind, Duration)> {
        self.ages().into_iter().filter(|(_, age)| *age >= self.limit).collect()
    }

    /// Each kind, and how long it has been without an open watch; 0 while its watch is open.
    pub fn ages(&self) -> Vec<(ObjectKind, Duration)> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |kind: &KindFreshness| kind.stale_since.map_or(Duration::ZERO, |since| since.elapsed());
        KINDS.into_iter().zip(kinds.iter().map(age)).collect()
    }

    /// Records that the watch of `kind` is open and its connection alive.
    pub(super) fn mark_current(&self, kind: ObjectKind) {
        self.change(kind, |state| {
            state.stale_since = None;
            if std::mem::take(&mut state.is_logged) {
                info!(%kind, "watch current again");
            }
        });
    }

    /// Records that the watch of `kind` ended.
    pub(super) fn mark_stale(&self, kind: ObjectKind) {
        self.change(kind, |state| {
            state.stale_since.get_or_insert_with(Instant::now);
        });
    }

    /// Logs each kind that passes the limit, once until it is current again.
    pub(super) fn log_stale(&self) {
        for (kind, age) in self.stale_kinds() {
            self.change(kind, |state| {
                if !std::mem::replace(&mut state.is_logged, true) {
                    let stale_seconds = age.as_secs();
                    error!(%kind, stale_seconds, "no successful list or watch; rules follow the last known state");
                }
            });
        }
    }

    fn change(&self, kind: ObjectKind, change: impl FnOnce(&mut KindFreshness)) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            change(&mut kinds[at]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn only_the_time_without_an_open_watch_counts() {
        let freshness = Freshness::new(LIMIT);
        assert_eq!(freshness.stale_kinds(), []);
        tokio::time::advance(LIMIT).await;
        assert_eq!(freshness.stale_kinds().len(), 3, "never listed");
        KINDS.into_iter().for_each(|kind| freshness.mark_current(kind));
        tokio::time::advance(100 * LIMIT).await;
        assert_eq!(freshness.stale_kinds(), [], "no events, and current");
        freshness.mark_stale(ObjectKind::Node);
        tokio::time::advance(LIMIT / 2).await;
        freshness.mark_stale(ObjectKind::Node);
        tokio::time::advance(LIMIT / 2).await;
        assert_eq!(freshness.stale_kinds(), [(ObjectKind::Node, LIMIT)], "counted from the first failure");
        freshness.mark_current(ObjectKind::Node);
        assert_eq!(freshness.stale_kinds(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_passes_the_limit_is_logged_once_until_it_is_current_again() {
        let freshness = Freshness::new(LIMIT);
        let n_logged = || freshness.kinds.lock().unwrap().iter().filter(|kind| kind.is_logged).count();
        freshness.log_stale();
        assert_eq!(n_logged(), 0);
        tokio::time::advance(LIMIT).await;
        freshness.log_stale();
        assert_eq!(n_logged(), 3);
        freshness.mark_current(ObjectKind::Service);
        assert_eq!(n_logged(), 2);
    }
}
