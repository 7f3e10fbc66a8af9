//! Health as others see it: `/healthz` and `/livez` of the proxy, and the health check node ports of
//! Services.
//!
//! The loop tells what it does ([`Observer`]), servers ask. Time comes in as [`Moment`]s; how old a
//! change is is measured by the monotonic clock, so that nobody can make a node sick by setting its
//! clock.
#![allow(clippy::disallowed_methods, reason = "health depends on time")]

mod answer;
mod ports;
mod state;

pub use answer::router;
pub use ports::{HealthPorts, OnRefused, Refused};
pub use state::{Moment, State};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::net::IpFamily;
use crate::sync::{News, Observer, Synced};

/// Reads which kinds of objects are not followed, and for how long; empty while all are.
pub type ReadStale = Box<dyn Fn() -> Vec<(&'static str, Duration)> + Send + Sync>;

/// The health of the proxy on this node.
pub struct Health {
    state: Mutex<State>,
    stale: ReadStale,
}

impl Health {
    /// Healthy until something waits longer than twice `sync_period`; eligible once the Node was seen, if
    /// one is expected.
    pub fn new(sync_period: Duration, expects_node: bool) -> Health {
        Health { state: Mutex::new(State::new(sync_period * 2, expects_node)), stale: Box::new(Vec::new) }
    }

    /// Shows in `/healthz` what `stale` reads. It is no reason to be unhealthy: every node would be, when
    /// the API server is away, and load balancers would have none left.
    pub fn showing(self, stale: ReadStale) -> Health {
        Health { stale, ..self }
    }

    /// Whether no family has a change that waits for too long.
    pub fn is_healthy(&self) -> bool {
        self.state().is_healthy(Moment::now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there leaves half a state behind.
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
            self.state().node_is_leaving(node.is_leaving);
        }
    }

    fn queued(&self, family: IpFamily) {
        self.state().queued(family, Moment::now());
    }

    fn syncing(&self, family: IpFamily) {
        self.state().syncing(family, Moment::now());
    }

    fn synced(&self, synced: &Synced<'_>) {
        let (family, now) = (synced.report.family, Moment::now());
        match synced.report.outcome {
            Ok(()) => self.state().updated(family, now),
            // kube-proxy counts only changes of objects. Rules that somebody flushed, or that never
            // were there, and cannot be written are no better than rules that are old.
            Err(_) => self.state().queued(family, now.earlier_by(synced.elapsed)),
        }
    }
}
