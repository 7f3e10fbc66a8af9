//! The health of the proxy on this node: an observer of the sync loop that servers query.
#![allow(clippy::disallowed_methods, reason = "health depends on time")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::health_state::{HealthState, Moment};
use crate::net::IpFamily;
use crate::sync::{News, Observer, Synced};

/// Reads the kinds of objects whose watch is lost, and for how long; empty while all are open.
pub type ReadStale = Box<dyn Fn() -> Vec<(&'static str, Duration)> + Send + Sync>;

/// The health of the proxy on this node.
pub struct Health {
    state: Mutex<HealthState>,
    stale: ReadStale,
}

impl Health {
    /// Unhealthy when a change waits for longer than twice `sync_period`. If a Node is expected, not eligible for load
    /// balancers before the Node is seen.
    pub fn new(sync_period: Duration, expects_node: bool) -> Health {
        let state = HealthState::new(sync_period * 2, expects_node);
        Health { state: Mutex::new(state), stale: Box::new(Vec::new) }
    }

    /// Shows in `/healthz` the kinds that `stale` reads. They do not make the proxy unhealthy: while the API server is
    /// away, every node would be, and load balancers would have none left.
    pub fn showing(self, stale: ReadStale) -> Health {
        Health { stale, ..self }
    }

    /// Whether no change of any family waits for too long.
    pub fn is_healthy(&self) -> bool {
        self.state().is_healthy(Moment::now())
    }

    /// Kinds whose watch is lost, and for how many seconds.
    pub(super) fn stale_kinds(&self) -> impl Iterator<Item = (&'static str, u64)> {
        (self.stale)().into_iter().map(|(kind, age)| (kind, age.as_secs()))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, HealthState> {
        // Consistent even after a panic: each change of the state is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Health {
    fn started(&self, families: &[IpFamily]) {
        let now = Moment::now();
        families.iter().for_each(|family| self.state().started(*family, now));
    }

    fn changed(&self, news: &News<'_>) {
        if let Some(node) = news.node {
            self.state().set_node_leaving(node.is_leaving);
        }
    }

    fn queued(&self, family: IpFamily) {
        self.state().queued(family, Moment::now());
    }

    fn syncing(&self, family: IpFamily) {
        self.state().sync_began(family, Moment::now());
    }

    fn synced(&self, synced: &Synced<'_>) {
        let (family, now) = (synced.report.family, Moment::now());
        match synced.report.outcome {
            Ok(()) => self.state().updated(family, now),
            // kube-proxy counts only changes of objects. Rules that another process flushed and that cannot be
            // written, or that never were in force, are no better than outdated rules.
            Err(_) => self.state().queued(family, now.earlier_by(synced.elapsed)),
        }
    }
}
