//! What syncs do, and how long changes wait for them.
#![allow(clippy::disallowed_methods, reason = "time stamps are metrics")]

use std::time::{Duration, SystemTime};

use prometheus::{GaugeVec, HistogramVec, IntCounterVec};

use super::define::Definer;
use crate::net::IpFamily;

/// Doubling from a millisecond to 16 s. Source: kube-proxy v1.36, `pkg/proxy/metrics`.
pub(super) const SYNC_BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// Up to half an hour: the longest stage on a node where iptables is slow.
const STAGE_BUCKETS: [f64; 14] =
    [0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0];

/// A sync of one family that ended.
#[derive(Clone, Copy, Debug)]
pub struct SyncSample {
    /// The family.
    pub family: IpFamily,
    /// Whether the sync compared every service port.
    pub is_full: bool,
    /// Whether all desired rules are in force.
    pub is_success: bool,
    /// Restores that failed.
    pub n_failed_restores: usize,
    /// How long the sync took.
    pub elapsed: Duration,
    /// How long each stage took, by its label value (`read`, `compile`, `plan`, `lock_wait`, `restore`).
    pub stages: [(&'static str, Duration); 5],
    /// iptables-restore processes started.
    pub n_processes: usize,
    /// Chains written or deleted.
    pub n_chains: usize,
    /// Quarantined service ports.
    pub n_quarantined: usize,
    /// Frontends left out because another Service owns them.
    pub n_overlaps: usize,
    /// Chains and jumps repaired after another process changed them.
    pub n_repaired: usize,
    /// For each table: its name, rules written, the agent's rules in force.
    pub rules: [(&'static str, usize, usize); 2],
    /// Service ports in the rules.
    pub n_service_ports: usize,
    /// Endpoints of these service ports.
    pub n_endpoints: usize,
    /// Service ports that drop traffic from pods, for lack of endpoints on this node.
    pub n_dropped_internal: usize,
    /// Service ports that drop traffic from outside the cluster, for lack of endpoints on this node.
    pub n_dropped_external: usize,
}

/// Metrics of syncs.
pub struct SyncMetrics {
    duration: HistogramVec,
    full_duration: HistogramVec,
    partial_duration: HistogramVec,
    last: GaugeVec,
    last_queued: GaugeVec,
    latency: HistogramVec,
    rules_total: GaugeVec,
    rules_last: GaugeVec,
    restore_failures: IntCounterVec,
    partial_restore_failures: IntCounterVec,
    no_local_endpoints: GaugeVec,
    stages: HistogramVec,
    rules_written: IntCounterVec,
    chains_written: IntCounterVec,
    processes: IntCounterVec,
    drift: IntCounterVec,
    kernel_reads: IntCounterVec,
    quarantined: GaugeVec,
    overlaps: GaugeVec,
    service_ports: GaugeVec,
    endpoints: GaugeVec,
    layout: GaugeVec,
    affinity_lists_full: GaugeVec,
}

impl SyncMetrics {
    // A list of metrics: long, and without branches.
    pub(super) fn new(define: &Definer<'_>) -> anyhow::Result<SyncMetrics> {
        let family = &["ip_family"];
        let by_table = &["ip_family", "table"];
        let durations = |name, help| define.histograms(name, help, family, &SYNC_BUCKETS);
        Ok(SyncMetrics {
            duration: durations(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds",
            )?,
            full_duration: durations(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds for full resyncs",
            )?,
            partial_duration: durations(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds for partial resyncs",
            )?,
            last: define.gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "[ALPHA] The last time proxy rules were successfully synced",
                family,
            )?,
            last_queued: define.gauges(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "[ALPHA] The last time a sync of proxy rules was queued",
                family,
            )?,
            latency: define.histograms(
                "kubeproxy_network_programming_duration_seconds",
                "[ALPHA] Time from a change of endpoints to its rules being in force, in seconds",
                family,
                &latency_buckets(),
            )?,
            rules_total: define.gauges(
                "kubeproxy_sync_proxy_rules_iptables_total",
                "[ALPHA] Total number of iptables rules owned by kube-proxy",
                by_table,
            )?,
            rules_last: define.gauges(
                "kubeproxy_sync_proxy_rules_iptables_last",
                "[ALPHA] Number of iptables rules written by kube-proxy in last sync",
                by_table,
            )?,
            restore_failures: define.counters(
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                "[ALPHA] Runs of iptables-restore that failed",
                family,
            )?,
            partial_restore_failures: define.counters(
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                "[ALPHA] Partial syncs in which iptables-restore failed",
                family,
            )?,
            no_local_endpoints: define.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "[ALPHA] Number of services with a Local traffic policy and no endpoints",
                &["ip_family", "traffic_policy"],
            )?,
            stages: define.histograms(
                "chainsmith_sync_stage_duration_seconds",
                "Duration of each stage of a sync: queue, read, compile, plan, lock_wait, restore",
                &["ip_family", "stage"],
                &STAGE_BUCKETS,
            )?,
            rules_written: define.counters("chainsmith_rules_written_total", "Rules written", by_table)?,
            chains_written: define.counters(
                "chainsmith_chains_written_total",
                "Chains written or deleted",
                family,
            )?,
            processes: define.counters(
                "chainsmith_restore_processes_total",
                "iptables-restore processes started",
                family,
            )?,
            drift: define.counters(
                "chainsmith_drift_repaired_total",
                "Chains and jumps repaired after another process changed them",
                family,
            )?,
            kernel_reads: define.counters(
                "chainsmith_kernel_reads_total",
                "Reads of the kernel's tables with iptables-save or by chain names, by reason",
                &["ip_family", "reason"],
            )?,
            quarantined: define.gauges(
                "chainsmith_quarantined_service_ports",
                "Service ports without rules because iptables or the kernel rejected them",
                family,
            )?,
            overlaps: define.gauges(
                "chainsmith_overlapping_frontends",
                "Frontends of service ports left out because another Service owns the address and port, or node port",
                family,
            )?,
            service_ports: define.gauges("chainsmith_service_ports", "Service ports in the rules", family)?,
            endpoints: define.gauges(
                "chainsmith_endpoints",
                "Endpoints of the service ports in the rules, whatever their conditions",
                family,
            )?,
            affinity_lists_full: define.gauges(
                "chainsmith_affinity_lists_full",
                "Endpoints with a full session affinity list: their oldest clients lose affinity",
                family,
            )?,
            layout: define.gauges(
                "chainsmith_rules_info",
                "Constant 1, labelled by iptables back-end and layout of the rules",
                &["backend", "ip_family", "layout"],
            )?,
        })
    }

    /// Records a sync that ended.
    pub fn record(&self, sync: &SyncSample) {
        let family = sync.family.as_str();
        let labels = &[family];
        let by_kind = if sync.is_full { &self.full_duration } else { &self.partial_duration };
        for histogram in [&self.duration, by_kind] {
            histogram.with_label_values(labels).observe(sync.elapsed.as_secs_f64());
        }
        sync.stages.into_iter().for_each(|(stage, elapsed)| self.record_stage(sync.family, stage, elapsed));
        self.processes.with_label_values(labels).inc_by(sync.n_processes as u64);
        self.chains_written.with_label_values(labels).inc_by(sync.n_chains as u64);
        self.quarantined.with_label_values(labels).set(sync.n_quarantined as f64);
        self.overlaps.with_label_values(labels).set(sync.n_overlaps as f64);
        self.drift.with_label_values(labels).inc_by(sync.n_repaired as u64);
        self.service_ports.with_label_values(labels).set(sync.n_service_ports as f64);
        self.endpoints.with_label_values(labels).set(sync.n_endpoints as f64);
        for (table, n_written, n_in_force) in sync.rules {
            let labels = &[family, table];
            self.rules_last.with_label_values(labels).set(n_written as f64);
            self.rules_total.with_label_values(labels).set(n_in_force as f64);
            self.rules_written.with_label_values(labels).inc_by(n_written as u64);
        }
        self.restore_failures.with_label_values(labels).inc_by(sync.n_failed_restores as u64);
        if !sync.is_full {
            let n_failed = u64::from(sync.n_failed_restores > 0);
            self.partial_restore_failures.with_label_values(labels).inc_by(n_failed);
        }
        if sync.is_success {
            self.last.with_label_values(labels).set(seconds_now());
            let dropped = [("internal", sync.n_dropped_internal), ("external", sync.n_dropped_external)];
            for (policy, n) in dropped {
                self.no_local_endpoints.with_label_values(&[family, policy]).set(n as f64);
            }
        }
    }

    fn record_stage(&self, family: IpFamily, stage: &str, elapsed: Duration) {
        self.stages.with_label_values(&[family.as_str(), stage]).observe(elapsed.as_secs_f64());
    }

    /// Records that a sync of `family` is requested now.
    pub fn record_queued(&self, family: IpFamily) {
        self.last_queued.with_label_values(&[family.as_str()]).set(seconds_now());
    }

    /// Records how long a sync of `family` waited, from the first change that requests it to its start.
    pub fn record_wait(&self, family: IpFamily, elapsed: Duration) {
        self.record_stage(family, "queue", elapsed);
    }

    /// Records that rules of `family` are in force for a change of endpoints that began so many seconds ago;
    /// less than zero where clocks differ.
    pub fn record_latency(&self, family: IpFamily, seconds: f64) {
        self.latency.with_label_values(&[family.as_str()]).observe(seconds);
    }

    /// Counts a read of the tables of `family`, by reason (`audit_due`, `fingerprint_differs`).
    pub fn count_kernel_read(&self, family: IpFamily, reason: &str) {
        self.kernel_reads.with_label_values(&[family.as_str(), reason]).inc();
    }

    /// Sets how many endpoints of `family` have a full affinity list.
    pub fn set_affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.affinity_lists_full.with_label_values(&[family.as_str()]).set(n as f64);
    }

    /// Sets which back-end (`nft`, `legacy`) holds the rules, and their layout (`classic`, `compact`).
    pub fn set_layout(&self, family: IpFamily, backend: &str, layout: &str) {
        let family = family.as_str();
        for other in ["classic", "compact"].into_iter().filter(|other| *other != layout) {
            // An error says that it was not shown.
            let _ = self.layout.remove_label_values(&[backend, family, other]);
        }
        self.layout.with_label_values(&[backend, family, layout]).set(1.0);
    }

    /// Failed restores of `family` so far.
    #[cfg(test)]
    pub fn restore_failures(&self, family: IpFamily) -> u64 {
        self.restore_failures.with_label_values(&[family.as_str()]).get()
    }
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Source: kube-proxy v1.36, `pkg/proxy/metrics`.
fn latency_buckets() -> Vec<f64> {
    let steps = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(f64::from);
    let fine = [0.25, 0.5].into_iter().chain(steps(1, 59, 1));
    fine.chain(steps(60, 115, 5)).chain(steps(120, 300, 30)).collect()
}
