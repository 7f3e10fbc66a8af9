//! Logs what a sync did.

use std::time::Duration;

use tracing::{error, warn};

use crate::apply::SyncReport;
use crate::log::{failure, v};

/// How many Services that lost frontends to other Services are named after one sync: one tenant may create any
/// number of them.
const MAX_LOSSES: usize = 20;

/// Logs a sync that took `elapsed`.
pub(super) fn log_sync(report: &SyncReport, elapsed: Duration) {
    let (family, tally, elapsed_ms) = (report.family, report.tally, elapsed.as_millis() as u64);
    if !report.drift.is_empty() {
        warn!(
            %family, chains = %report.drift, n_chains = report.drift.chains.len(),
            n_jumps = report.drift.n_jumps, repaired = report.outcome.is_ok(), "rules changed by another process"
        );
    }
    for chain in &report.kept_stale {
        warn!(%family, %chain, "stale chain still referenced by foreign rules; flushed, not deleted");
    }
    for loss in report.losses.iter().take(MAX_LOSSES) {
        warn!(
            %family, service = %loss.service, owner = %loss.owner, frontend = %loss.first, frontends = loss.n,
            "frontend belongs to another Service; left out"
        );
    }
    if report.losses.len() > MAX_LOSSES {
        let services = report.losses.len() - MAX_LOSSES;
        warn!(%family, services, "more Services have frontends that belong to other Services");
    }
    for (port, rejection) in &report.quarantined {
        error!(
            %family, service_port = %port, protocol = %port.protocol,
            rule = rejection.text.as_deref().unwrap_or_default(), reason = rejection.message,
            "rules rejected; service port quarantined until its Service changes or the next audit"
        );
    }
    match &report.outcome {
        Ok(()) => v!(
            2, %family, full = report.is_full(), elapsed_ms, service_ports = report.n_service_ports,
            endpoints = report.n_endpoints, chains_written = tally.n_chains, chains_deleted = tally.n_deleted,
            rules_written = tally.n_rules, lines = tally.n_lines, bytes = tally.n_bytes,
            processes = tally.n_processes, "synced"
        ),
        Err(error) => failure!(
            report.n_failures, %family, full = report.is_full(), elapsed_ms, processes = tally.n_processes, %error,
            "sync failed; previous rules stay in force"
        ),
    }
}
