//! What syncs do, and how late.

use std::time::Duration;

use prometheus::{GaugeVec, HistogramVec, IntCounterVec};

use super::define::Definer;
use super::seconds_now;
use crate::net::IpFamily;

/// Doubling from a millisecond to 16 s. Source: kube-proxy v1.36, `pkg/proxy/metrics`.
pub(super) const SYNC_BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// Up to half an hour: what a stage takes on a node where iptables is slow.
const STAGE_BUCKETS: [f64; 14] =
    [0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0];

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
    /// What the time went into.
    pub stages: Stages,
    /// iptables-restore processes started.
    pub n_processes: usize,
    /// Chains written or deleted.
    pub n_chains: usize,
    /// Service ports that are left out because the kernel refuses them.
    pub n_quarantined: usize,
    /// Frontends of service ports that are left out because another Service owns them.
    pub n_overlaps: usize,
    /// Chains and jumps that another process had changed, and that are repaired.
    pub n_repaired: usize,
    /// For each table: its name, rules written, rules of ours in force.
    pub rules: [(&'static str, usize, usize); 2],
    /// Service ports in the rules.
    pub n_service_ports: usize,
    /// Their endpoints.
    pub n_endpoints: usize,
    /// Service ports that drop traffic for pods, for want of endpoints on this node.
    pub n_dropped_internal: usize,
    /// Service ports that drop traffic from outside, likewise.
    pub n_dropped_external: usize,
}

/// What the time of a sync went into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Reading the kernel's tables.
    pub read: Duration,
    /// Making rules, as far as nothing else was done at the same time.
    pub compile: Duration,
    /// Comparing, ordering, writing text.
    pub plan: Duration,
    /// Waiting for others to let go of the xtables lock.
    pub lock_wait: Duration,
    /// Feeding `iptables-restore` and waiting for it.
    pub restore: Duration,
}

pub(super) struct SyncMetrics {
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
    quarantined: GaugeVec,
    overlaps: GaugeVec,
    service_ports: GaugeVec,
    endpoints: GaugeVec,
    layout: GaugeVec,
    affinity_lists_full: GaugeVec,
}

impl SyncMetrics {
    pub(super) fn new(define: &Definer<'_>) -> anyhow::Result<SyncMetrics> {
        let family = &["ip_family"];
        let by_table = &["ip_family", "table"];
        let durations = |name, help| define.histograms((name, help), family, &SYNC_BUCKETS);
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
            last: define.gauges(LAST, family)?,
            last_queued: define.gauges(LAST_QUEUED, family)?,
            latency: define.histograms(LATENCY, family, &latency_buckets())?,
            rules_total: define.gauges(RULES_TOTAL, by_table)?,
            rules_last: define.gauges(RULES_LAST, by_table)?,
            restore_failures: define.counters(RESTORE_FAILURES, family)?,
            partial_restore_failures: define.counters(PARTIAL_RESTORE_FAILURES, family)?,
            no_local_endpoints: define.gauges(NO_LOCAL_ENDPOINTS, &["ip_family", "traffic_policy"])?,
            stages: define.histograms(STAGES, &["ip_family", "stage"], &STAGE_BUCKETS)?,
            rules_written: define.counters(RULES_WRITTEN, by_table)?,
            chains_written: define.counters(CHAINS_WRITTEN, family)?,
            processes: define.counters(PROCESSES, family)?,
            drift: define.counters(DRIFT, family)?,
            quarantined: define.gauges(QUARANTINED, family)?,
            overlaps: define.gauges(OVERLAPS, family)?,
            service_ports: define.gauges(SERVICE_PORTS, family)?,
            endpoints: define.gauges(ENDPOINTS, family)?,
            affinity_lists_full: define.gauges(AFFINITY_LISTS_FULL, family)?,
            layout: define.gauges(LAYOUT, &["backend", "ip_family", "layout"])?,
        })
    }

    pub(super) fn synced(&self, sync: &SyncSample) {
        let family = sync.family.to_string();
        let labels = &[family.as_str()];
        let by_kind = if sync.is_full { &self.full_duration } else { &self.partial_duration };
        for histogram in [&self.duration, by_kind] {
            histogram.with_label_values(labels).observe(sync.elapsed.as_secs_f64());
        }
        let Stages { read, compile, plan, lock_wait, restore } = sync.stages;
        let stages = [
            ("read", read),
            ("compile", compile),
            ("plan", plan),
            ("lock_wait", lock_wait),
            ("restore", restore),
        ];
        stages.into_iter().for_each(|(stage, elapsed)| self.stage(sync.family, stage, elapsed));
        self.processes.with_label_values(labels).inc_by(sync.n_processes as u64);
        self.chains_written.with_label_values(labels).inc_by(sync.n_chains as u64);
        self.quarantined.with_label_values(labels).set(sync.n_quarantined as f64);
        self.overlaps.with_label_values(labels).set(sync.n_overlaps as f64);
        self.drift.with_label_values(labels).inc_by(sync.n_repaired as u64);
        self.service_ports.with_label_values(labels).set(sync.n_service_ports as f64);
        self.endpoints.with_label_values(labels).set(sync.n_endpoints as f64);
        for (table, n_written, n_in_force) in sync.rules {
            let labels = &[family.as_str(), table];
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
                self.no_local_endpoints.with_label_values(&[family.as_str(), policy]).set(n as f64);
            }
        }
    }

    pub(super) fn stage(&self, family: IpFamily, stage: &str, elapsed: Duration) {
        let family = family.to_string();
        self.stages.with_label_values(&[family.as_str(), stage]).observe(elapsed.as_secs_f64());
    }

    pub(super) fn queued(&self, family: IpFamily) {
        self.last_queued.with_label_values(&[family.to_string()]).set(seconds_now());
    }

    pub(super) fn programmed(&self, family: IpFamily, seconds: f64) {
        self.latency.with_label_values(&[family.to_string()]).observe(seconds);
    }

    pub(super) fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.affinity_lists_full.with_label_values(&[family.to_string()]).set(n as f64);
    }

    pub(super) fn restore_failures(&self, family: IpFamily) -> u64 {
        self.restore_failures.with_label_values(&[family.to_string()]).get()
    }

    pub(super) fn layout(&self, family: IpFamily, backend: &str, layout: &str) {
        let family = family.to_string();
        for other in ["classic", "compact"].into_iter().filter(|other| *other != layout) {
            // It need not have been shown before.
            let _ = self.layout.remove_label_values(&[backend, family.as_str(), other]);
        }
        self.layout.with_label_values(&[backend, family.as_str(), layout]).set(1.0);
    }
}

/// Source: kube-proxy v1.36, `pkg/proxy/metrics`.
fn latency_buckets() -> Vec<f64> {
    let steps = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(f64::from);
    let fine = [0.25, 0.5].into_iter().chain(steps(1, 59, 1));
    fine.chain(steps(60, 115, 5)).chain(steps(120, 300, 30)).collect()
}

const LAST: (&str, &str) = (
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "[ALPHA] The last time proxy rules were successfully synced",
);
const LAST_QUEUED: (&str, &str) = (
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "[ALPHA] The last time a sync of proxy rules was queued",
);
const LATENCY: (&str, &str) = (
    "kubeproxy_network_programming_duration_seconds",
    "[ALPHA] Time from a change of endpoints to its rules being in force, in seconds",
);
const RULES_TOTAL: (&str, &str) = (
    "kubeproxy_sync_proxy_rules_iptables_total",
    "[ALPHA] Total number of iptables rules owned by kube-proxy",
);
const RULES_LAST: (&str, &str) = (
    "kubeproxy_sync_proxy_rules_iptables_last",
    "[ALPHA] Number of iptables rules written by kube-proxy in last sync",
);
const RESTORE_FAILURES: (&str, &str) = (
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    "[ALPHA] Runs of iptables-restore that failed",
);
const PARTIAL_RESTORE_FAILURES: (&str, &str) = (
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
    "[ALPHA] Partial syncs in which iptables-restore failed",
);
const NO_LOCAL_ENDPOINTS: (&str, &str) = (
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "[ALPHA] Number of services with a Local traffic policy and no endpoints",
);
const STAGES: (&str, &str) = (
    "chainsmith_sync_stage_duration_seconds",
    "Time that a sync spent queued, reading, compiling, planning, waiting for the xtables lock, restoring",
);
const RULES_WRITTEN: (&str, &str) = ("chainsmith_rules_written_total", "Rules written");
const CHAINS_WRITTEN: (&str, &str) = ("chainsmith_chains_written_total", "Chains written or deleted");
const PROCESSES: (&str, &str) = ("chainsmith_restore_processes_total", "iptables-restore processes started");
const DRIFT: (&str, &str) =
    ("chainsmith_drift_repaired_total", "Chains and jumps repaired after another process changed them");
const QUARANTINED: (&str, &str) =
    ("chainsmith_quarantined_service_ports", "Service ports left out because the kernel refuses them");
const OVERLAPS: (&str, &str) = (
    "chainsmith_overlapping_frontends",
    "Frontends of service ports left out because another Service owns the address and port, or node port",
);
const SERVICE_PORTS: (&str, &str) = ("chainsmith_service_ports", "Service ports in the rules");
const ENDPOINTS: (&str, &str) =
    ("chainsmith_endpoints", "Endpoints of the service ports in the rules, whatever their conditions");
const AFFINITY_LISTS_FULL: (&str, &str) = (
    "chainsmith_affinity_lists_full",
    "Endpoints with session affinity of whose clients the kernel remembers no more",
);
const LAYOUT: (&str, &str) =
    ("chainsmith_rules_info", "Constant 1, labelled by iptables back-end and layout of the rules");
