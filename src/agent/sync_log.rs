//! What is logged of syncs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::apply::SyncReport;
use crate::config::Config;
use crate::log::{failure, v};
use crate::net::{IpFamily, PerFamily};
use crate::rules::config_warnings;
use crate::sync::{Observer, Synced};

/// How many Services that lost frontends are named after one sync: a single tenant can make any number.
const MAX_LOSSES: usize = 20;

/// Logs each sync, the first one of each family in more detail.
pub(super) struct SyncLog {
    config: Arc<Config>,
    families: Vec<IpFamily>,
    /// When the agent started.
    started: Instant,
    is_advised: AtomicBool,
    is_in_force: PerFamily<AtomicBool>,
    /// Failed syncs in a row.
    n_failures: PerFamily<AtomicU32>,
}

impl SyncLog {
    /// For `config` on a node that proxies `families`, and an agent that started at `started`.
    pub(super) fn new(config: Arc<Config>, families: Vec<IpFamily>, started: Instant) -> SyncLog {
        let (is_in_force, n_failures) = Default::default();
        SyncLog { config, families, started, is_advised: AtomicBool::new(false), is_in_force, n_failures }
    }
}

impl Observer for SyncLog {
    fn synced(&self, synced: &Synced<'_>) {
        // The Node is known by the first sync, successful or not.
        if !self.is_advised.swap(true, Ordering::Relaxed) {
            let warnings = config_warnings(&self.config, synced.view.snapshot.node(), &self.families);
            warnings.iter().for_each(|warning| warn!("{warning}"));
        }
        let report = synced.report;
        log_findings(report);
        let n_failures = self.n_failures.get(report.family);
        match &report.outcome {
            Ok(()) => {
                n_failures.store(0, Ordering::Relaxed);
                log_success(report, synced.elapsed);
                if !self.is_in_force.get(report.family).swap(true, Ordering::Relaxed) {
                    info!(
                        family = %report.family, service_ports = report.n_service_ports,
                        endpoints = report.n_endpoints, quarantined = report.n_quarantined,
                        elapsed_ms = self.started.elapsed().as_millis() as u64, "rules in force"
                    );
                }
            }
            Err(error) => {
                let n_failures = n_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                failure!(
                    n_failures, family = %report.family, %error, full = report.is_full(),
                    elapsed_ms = synced.elapsed.as_millis() as u64, processes = report.tally.n_processes,
                    "sync failed; previous rules stay in force"
                );
            }
        }
    }
}

fn log_success(report: &SyncReport, elapsed: Duration) {
    let tally = report.tally;
    v!(
        2, family = %report.family, full = report.is_full(), elapsed_ms = elapsed.as_millis() as u64,
        service_ports = report.n_service_ports, endpoints = report.n_endpoints,
        chains_written = tally.n_chains, chains_deleted = tally.n_deleted, rules_written = tally.n_rules,
        lines = tally.n_lines, bytes = tally.n_bytes, processes = tally.n_processes, "synced"
    );
}

/// Logs what a sync found, successful or not: drift, referenced stale chains, overlaps, rejected service ports.
fn log_findings(report: &SyncReport) {
    let (family, drift) = (report.family, &report.drift);
    if !drift.is_empty() {
        warn!(
            %family, chains = %drift, n_chains = drift.chains.len(), n_jumps = drift.n_jumps,
            repaired = report.outcome.is_ok(), "rules changed by another process"
        );
    }
    for chain in &report.kept_stale {
        warn!(%family, %chain, "stale chain still referenced by foreign rules; flushed, not deleted");
    }
    for loss in report.losses.iter().take(MAX_LOSSES) {
        warn!(
            %family, service = %loss.service, owner = %loss.owner, frontend = %loss.first, n = loss.n,
            "frontends owned by another Service; left out"
        );
    }
    if report.losses.len() > MAX_LOSSES {
        let n_services = report.losses.len() - MAX_LOSSES;
        warn!(%family, n_services, "more Services have frontends owned by another Service");
    }
    for (port, rejection) in &report.quarantined {
        error!(
            %family, service_port = %port, protocol = %port.protocol,
            rule = rejection.text.as_deref().unwrap_or_default(), error = rejection.message,
            "rules rejected; service port quarantined"
        );
    }
}
