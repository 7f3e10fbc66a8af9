//! Syncs as the metrics count them.

use super::{Observer, Synced};
use crate::iptables::Table;
use crate::metrics::{Metrics, SyncSample};

impl Observer for Metrics {
    fn synced(&self, Synced { report, elapsed, .. }: &Synced<'_>) {
        let tally = report.tally;
        self.synced(&SyncSample {
            family: report.family,
            is_full: report.is_full(),
            is_success: report.outcome.is_ok(),
            n_failed_restores: report.n_failed_restores,
            elapsed: *elapsed,
            n_processes: tally.n_processes,
            n_chains: tally.n_chains + tally.n_deleted,
            n_quarantined: report.n_quarantined,
            n_drifted: report.drift.chains.len() + report.drift.n_jumps,
            rules: [
                (Table::Filter.word(), tally.n_filter_rules, report.n_filter_rules),
                (Table::Nat.word(), tally.n_rules - tally.n_filter_rules, report.n_nat_rules),
            ],
        });
    }
}
