//! Objects and changes that the API server, or the folder of manifests, reports.

use std::time::Duration;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge};

use super::define::{Definer, ScrapeKind};

/// Metrics of the cluster's objects and their watches. A `kind` is `Service`, `EndpointSlice` or `Node`.
pub struct ClusterMetrics {
    endpoint_changes: IntCounter,
    endpoint_changes_pending: IntGauge,
    service_changes: IntCounter,
    service_changes_pending: IntGauge,
    objects: GaugeVec,
    problems: GaugeVec,
    watch_restarts: IntCounterVec,
}

impl ClusterMetrics {
    pub(super) fn new(define: &Definer<'_>) -> anyhow::Result<ClusterMetrics> {
        Ok(ClusterMetrics {
            endpoint_changes: define.counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "[ALPHA] Cumulative proxy rules Endpoint changes",
            )?,
            endpoint_changes_pending: define.gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "[ALPHA] Pending proxy rules Endpoint changes",
            )?,
            service_changes: define.counter(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "[ALPHA] Cumulative proxy rules Service changes",
            )?,
            service_changes_pending: define.gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "[ALPHA] Pending proxy rules Service changes",
            )?,
            objects: define.gauges(
                "chainsmith_objects",
                "Objects that the rules are made from, by kind",
                &["kind"],
            )?,
            problems: define.gauges(
                "chainsmith_object_problems",
                "Object fields ignored because their value is invalid, by kind of object",
                &["kind"],
            )?,
            watch_restarts: define.counters(
                "chainsmith_watch_restarts_total",
                "Watches restarted after a failure, by kind of object",
                &["kind"],
            )?,
        })
    }

    /// Counts changes that the API server reported: Services (each once for each family) and EndpointSlices.
    pub fn count_changes(&self, n_services: usize, n_slices: usize) {
        self.service_changes.inc_by(n_services as u64);
        self.endpoint_changes.inc_by(n_slices as u64);
    }

    /// Sets how many changes wait for a sync.
    pub fn set_pending(&self, n_services: usize, n_slices: usize) {
        self.service_changes_pending.set(n_services as i64);
        self.endpoint_changes_pending.set(n_slices as i64);
    }

    /// Sets how many objects of a kind the rules are made from.
    pub fn set_objects(&self, kind: &str, n: usize) {
        self.objects.with_label_values(&[kind]).set(n as f64);
    }

    /// Sets how many fields of objects of a kind have an invalid value.
    pub fn set_problems(&self, kind: &str, n: usize) {
        self.problems.with_label_values(&[kind]).set(n as f64);
    }

    /// Counts a watch that was restarted after a failure.
    pub fn count_watch_restart(&self, kind: &str) {
        self.watch_restarts.with_label_values(&[kind]).inc();
    }
}

/// Reads, by kind, for how long its objects have not been followed.
pub type ReadWatchAges = Box<dyn Fn() -> Vec<(&'static str, Duration)> + Send + Sync>;

/// Defines the metric of the ages that `read` returns.
pub(super) fn define_watch_ages(define: &Definer<'_>, read: ReadWatchAges) -> anyhow::Result<()> {
    define.on_scrape_with_labels(
        ScrapeKind::Gauge,
        "chainsmith_watch_stale_seconds",
        "Time since the watch of a kind of object was lost, in seconds; 0 while it is open",
        &["kind"],
        move || read().into_iter().map(|(kind, age)| (vec![kind], age.as_secs_f64())).collect(),
    )
}
