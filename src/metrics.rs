//! The metrics, by kube-proxy's names, types, labels and buckets.
#![allow(clippy::disallowed_methods, reason = "time stamps of syncs are metrics")]

mod server;

pub use server::serve;

use std::time::{Duration, SystemTime};

use anyhow::Context;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};

use crate::net::IpFamily;

/// Doubling from a millisecond to 16 s. Source: kube-proxy v1.36, `pkg/proxy/metrics`.
const SYNC_BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// What a sync of one family came to.
#[derive(Clone, Copy, Debug)]
pub struct SyncSample {
    /// The family.
    pub family: IpFamily,
    /// Whether every service port was compared.
    pub is_full: bool,
    /// Whether all that is wanted is in force.
    pub is_success: bool,
    /// Restores that failed.
    pub n_failed_restores: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// iptables-restore processes started.
    pub n_processes: usize,
    /// Chains written or deleted.
    pub n_chains: usize,
    /// Service ports that are left out because the kernel refuses them.
    pub n_quarantined: usize,
    /// Chains and jumps that somebody else had changed.
    pub n_drifted: usize,
    /// For each table: its name, rules written, rules of ours in force.
    pub rules: [(&'static str, usize, usize); 2],
}

/// Every metric.
pub struct Metrics {
    sync_duration: HistogramVec,
    full_sync_duration: HistogramVec,
    partial_sync_duration: HistogramVec,
    last_sync: GaugeVec,
    rules_total: GaugeVec,
    rules_last: GaugeVec,
    restore_failures: IntCounterVec,
    partial_restore_failures: IntCounterVec,
    processes: IntCounterVec,
    chains_written: IntCounterVec,
    drift: IntCounterVec,
    quarantined: GaugeVec,
    affinity_lists_full: GaugeVec,
}

impl Metrics {
    /// Makes all metrics and registers them.
    pub fn register(registry: &Registry) -> anyhow::Result<Metrics> {
        let family = &["ip_family"];
        let table = &["ip_family", "table"];
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(SYNC_BUCKETS.to_vec());
            HistogramVec::new(options, family)
        };
        let metrics = Metrics {
            sync_duration: histogram(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "[ALPHA] Duration of a sync of one family, in seconds",
            )?,
            full_sync_duration: histogram(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "[ALPHA] Duration of a sync that compared every service port, in seconds",
            )?,
            partial_sync_duration: histogram(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "[ALPHA] Duration of a sync that compared changed service ports only, in seconds",
            )?,
            last_sync: GaugeVec::new(
                Opts::new(
                    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                    "[ALPHA] When the last sync succeeded, in seconds since 1970",
                ),
                family,
            )?,
            rules_total: GaugeVec::new(
                Opts::new("kubeproxy_sync_proxy_rules_iptables_total", "[ALPHA] Rules in force"),
                table,
            )?,
            rules_last: GaugeVec::new(
                Opts::new(
                    "kubeproxy_sync_proxy_rules_iptables_last",
                    "[ALPHA] Rules written by the last sync",
                ),
                table,
            )?,
            restore_failures: IntCounterVec::new(
                Opts::new(
                    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                    "[ALPHA] Restores that failed",
                ),
                family,
            )?,
            partial_restore_failures: IntCounterVec::new(
                Opts::new(
                    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                    "[ALPHA] Restores of partial syncs that failed",
                ),
                family,
            )?,
            processes: IntCounterVec::new(
                Opts::new("chainsmith_restore_processes_total", "iptables-restore processes started"),
                family,
            )?,
            chains_written: IntCounterVec::new(
                Opts::new("chainsmith_chains_written_total", "Chains written or deleted"),
                family,
            )?,
            quarantined: GaugeVec::new(
                Opts::new(
                    "chainsmith_quarantined_service_ports",
                    "Service ports left out because the kernel refuses them",
                ),
                family,
            )?,
            affinity_lists_full: GaugeVec::new(
                Opts::new(
                    "chainsmith_affinity_lists_full",
                    "Endpoints with session affinity of whose clients the kernel remembers no more",
                ),
                family,
            )?,
            drift: IntCounterVec::new(
                Opts::new(
                    "chainsmith_drift_repaired_total",
                    "Chains and jumps that somebody else had changed",
                ),
                family,
            )?,
        };
        metrics.register_all(registry).context("registering metrics")?;
        Ok(metrics)
    }

    fn register_all(&self, registry: &Registry) -> prometheus::Result<()> {
        for histogram in [&self.sync_duration, &self.full_sync_duration, &self.partial_sync_duration] {
            registry.register(Box::new(histogram.clone()))?;
        }
        for gauge in [
            &self.last_sync,
            &self.rules_total,
            &self.rules_last,
            &self.quarantined,
            &self.affinity_lists_full,
        ] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for counter in [
            &self.restore_failures,
            &self.partial_restore_failures,
            &self.processes,
            &self.chains_written,
            &self.drift,
        ] {
            registry.register(Box::new(counter.clone()))?;
        }
        Ok(())
    }

    /// Notes a sync.
    pub fn synced(&self, sync: &SyncSample) {
        let family = sync.family.to_string();
        let labels = &[family.as_str()];
        let by_kind = if sync.is_full { &self.full_sync_duration } else { &self.partial_sync_duration };
        for histogram in [&self.sync_duration, by_kind] {
            histogram.with_label_values(labels).observe(sync.elapsed.as_secs_f64());
        }
        self.processes.with_label_values(labels).inc_by(sync.n_processes as u64);
        self.chains_written.with_label_values(labels).inc_by(sync.n_chains as u64);
        self.quarantined.with_label_values(labels).set(sync.n_quarantined as f64);
        self.drift.with_label_values(labels).inc_by(sync.n_drifted as u64);
        for (table, n_written, n_in_force) in sync.rules {
            let labels = &[family.as_str(), table];
            self.rules_last.with_label_values(labels).set(n_written as f64);
            self.rules_total.with_label_values(labels).set(n_in_force as f64);
        }
        let n_failed = sync.n_failed_restores as u64;
        self.restore_failures.with_label_values(labels).inc_by(n_failed);
        if !sync.is_full {
            self.partial_restore_failures.with_label_values(labels).inc_by(n_failed);
        }
        if sync.is_success {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.last_sync.with_label_values(labels).set(now.as_secs_f64());
        }
    }

    /// Notes how many endpoints of `family` have as many clients as the kernel remembers.
    pub fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.affinity_lists_full.with_label_values(&[family.to_string().as_str()]).set(n as f64);
    }

    /// Failed restores of `family` so far.
    pub fn restore_failures(&self, family: IpFamily) -> u64 {
        self.restore_failures.with_label_values(&[family.to_string().as_str()]).get()
    }
}

/// The text that Prometheus scrapes.
pub fn exposition(registry: &Registry) -> anyhow::Result<String> {
    TextEncoder::new().encode_to_string(&registry.gather()).context("writing metrics")
}
