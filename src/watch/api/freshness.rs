//! How long ago what is known of each kind was known to be current.
//!
//! A watch that is open over a living connection is current, however quiet; a connection that died is
//! noticed by `link`. So only the time without an open watch counts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info};

use crate::model::ObjectKind;

/// The kinds that are watched.
const KINDS: [ObjectKind; 3] = [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node];

/// Renewing a watch takes less than this.
const SHORTEST_LIMIT: Duration = Duration::from_secs(15);

/// Since when each kind is not followed any more, and whether that was logged.
#[derive(Debug)]
pub struct Freshness {
    limit: Duration,
    kinds: Mutex<[State; KINDS.len()]>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// `None`: its watch is open.
    stale_since: Option<Instant>,
    is_logged: bool,
}

impl Freshness {
    /// Nothing is known yet; a kind that is stale for `limit` (at least 15 s) is logged.
    pub fn new(limit: Duration) -> Freshness {
        let limit = limit.max(SHORTEST_LIMIT);
        let state = State { stale_since: Some(Instant::now()), is_logged: false };
        Freshness { limit, kinds: Mutex::new([state; KINDS.len()]) }
    }

    /// Each kind that has not been followed for the limit, and for how long.
    pub fn stale(&self) -> Vec<(ObjectKind, Duration)> {
        self.ages().into_iter().filter(|(_, age)| *age >= self.limit).collect()
    }

    /// Each kind, and for how long it has not been followed; 0 while its watch is open.
    pub fn ages(&self) -> Vec<(ObjectKind, Duration)> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |state: &State| state.stale_since.map_or(Duration::ZERO, |since| since.elapsed());
        KINDS.into_iter().zip(kinds.iter().map(age)).collect()
    }

    /// A watch of `kind` is open, and its connection lives.
    pub(super) fn is_current(&self, kind: ObjectKind) {
        self.change(kind, |state| {
            state.stale_since = None;
            if std::mem::take(&mut state.is_logged) {
                info!(%kind, "watch is current again");
            }
        });
    }

    /// The watch of `kind` is open no more.
    pub(super) fn is_left_behind(&self, kind: ObjectKind) {
        self.change(kind, |state| {
            state.stale_since.get_or_insert_with(Instant::now);
        });
    }

    /// Logs which kinds have passed the limit, each once until it is current again.
    pub(super) fn log(&self) {
        for (kind, age) in self.stale() {
            self.change(kind, |state| {
                if !std::mem::replace(&mut state.is_logged, true) {
                    let stale_seconds = age.as_secs();
                    error!(%kind, stale_seconds, "no successful list or watch; rules follow the last known state");
                }
            });
        }
    }

    fn change(&self, kind: ObjectKind, change: impl FnOnce(&mut State)) {
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
    async fn only_the_time_without_a_watch_counts() {
        let freshness = Freshness::new(LIMIT);
        assert_eq!(freshness.stale(), []);
        tokio::time::advance(LIMIT).await;
        assert_eq!(freshness.stale().len(), 3, "never listed");
        KINDS.into_iter().for_each(|kind| freshness.is_current(kind));
        tokio::time::advance(100 * LIMIT).await;
        assert_eq!(freshness.stale(), [], "quiet, and current");
        freshness.is_left_behind(ObjectKind::Node);
        tokio::time::advance(LIMIT / 2).await;
        freshness.is_left_behind(ObjectKind::Node);
        tokio::time::advance(LIMIT / 2).await;
        assert_eq!(freshness.stale(), [(ObjectKind::Node, LIMIT)], "the first failure counts");
        freshness.is_current(ObjectKind::Node);
        assert_eq!(freshness.stale(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_passes_the_limit_is_logged_once_until_it_is_current_again() {
        let freshness = Freshness::new(LIMIT);
        let n_logged = || freshness.kinds.lock().unwrap().iter().filter(|state| state.is_logged).count();
        freshness.log();
        assert_eq!(n_logged(), 0);
        tokio::time::advance(LIMIT).await;
        freshness.log();
        assert_eq!(n_logged(), 3);
        freshness.is_current(ObjectKind::Service);
        assert_eq!(n_logged(), 2);
    }
}
