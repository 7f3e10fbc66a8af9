//! What the log says of a sync.

use std::time::Duration;

use tracing::{debug, error, warn};

use super::Report;

/// How many Services with frontends that others own are named after one sync: one tenant may make any
/// number of them.
const MAX_LOSSES: usize = 20;

/// Says what a sync that took `elapsed` came to.
pub(super) fn synced(report: &Report, elapsed: Duration) {
    let tally = report.tally;
    if !report.drift.is_empty() {
        warn!(
            family = %report.family, chains = %report.drift, n_chains = report.drift.chains.len(),
            n_jumps = report.drift.n_jumps, repaired = report.outcome.is_ok(),
            "somebody else changed our rules"
        );
    }
    for chain in &report.held {
        warn!(family = %report.family, %chain, "rules of somebody else lead to a chain that is wanted no more; it stays, empty");
    }
    for loss in report.losses.iter().take(MAX_LOSSES) {
        warn!(
            family = %report.family, service = %loss.service, owner = %loss.owner, frontend = %loss.first,
            n = loss.n, "another Service owns the frontend; rules of this Service for it left out"
        );
    }
    if report.losses.len() > MAX_LOSSES {
        let n = report.losses.len() - MAX_LOSSES;
        warn!(family = %report.family, n, "more Services have frontends that other Services own");
    }
    for (port, refusal) in &report.quarantined {
        error!(
            family = %report.family, service_port = %port, protocol = %port.protocol,
            rule = refusal.text.as_deref().unwrap_or_default(), message = refusal.message,
            "the kernel refuses this service port; it is left out, and tried again when its Service changes and at each audit"
        );
    }
    match &report.outcome {
        Ok(()) => debug!(
            family = %report.family, full = report.is_full(), elapsed_ms = elapsed.as_millis() as u64,
            service_ports = report.n_service_ports, endpoints = report.n_endpoints,
            chains_written = tally.n_chains, chains_deleted = tally.n_deleted, rules_written = tally.n_rules,
            lines = tally.n_lines, bytes = tally.n_bytes, processes = tally.n_processes, "synced"
        ),
        Err(error) => warn!(
            family = %report.family, full = report.is_full(), elapsed_ms = elapsed.as_millis() as u64,
            processes = tally.n_processes, %error, "sync failed; what was in force stays, will be tried again"
        ),
    }
}
