//! What is logged once: that a family's rules are in force, and what the configuration means on this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Config;
use crate::net::{IpFamily, PerFamily};
use crate::rules::config_warnings;
use crate::sync::{Observer, Synced};

/// Observes each family's first syncs.
pub(super) struct FirstSyncLog {
    config: Arc<Config>,
    families: Vec<IpFamily>,
    /// When the agent started.
    started: Instant,
    is_advised: AtomicBool,
    is_in_force: PerFamily<AtomicBool>,
}

impl FirstSyncLog {
    /// For `config` on a node that proxies `families`, and an agent that started at `started`.
    pub(super) fn new(config: Arc<Config>, families: Vec<IpFamily>, started: Instant) -> FirstSyncLog {
        let (is_advised, is_in_force) = (AtomicBool::new(false), PerFamily::default());
        FirstSyncLog { config, families, started, is_advised, is_in_force }
    }
}

impl Observer for FirstSyncLog {
    fn synced(&self, synced: &Synced<'_>) {
        // The Node is known by the first sync, well or not.
        if !self.is_advised.swap(true, Ordering::Relaxed) {
            let warnings = config_warnings(&self.config, synced.view.snapshot.node(), &self.families);
            warnings.iter().for_each(|warning| warn!("{warning}"));
        }
        let report = synced.report;
        if report.outcome.is_ok() && !self.is_in_force.get(report.family).swap(true, Ordering::Relaxed) {
            info!(
                family = %report.family, service_ports = report.n_service_ports, endpoints = report.n_endpoints,
                quarantined = report.quarantined.len(), elapsed_ms = self.started.elapsed().as_millis() as u64,
                "rules in force"
            );
        }
    }
}
