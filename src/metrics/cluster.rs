//! What is heard of the cluster.

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge};

use super::define::Definer;

pub(super) struct ClusterMetrics {
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
            endpoint_changes: define.counter((
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "[ALPHA] Cumulative proxy rules Endpoint changes",
            ))?,
            endpoint_changes_pending: define.gauge((
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "[ALPHA] Pending proxy rules Endpoint changes",
            ))?,
            service_changes: define.counter((
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "[ALPHA] Cumulative proxy rules Service changes",
            ))?,
            service_changes_pending: define.gauge((
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "[ALPHA] Pending proxy rules Service changes",
            ))?,
            objects: define.gauges(("chainsmith_objects", "Objects that count, by kind"), &["kind"])?,
            problems: define.gauges(
                ("chainsmith_object_problems", "Fields of objects that cannot be used, by kind"),
                &["kind"],
            )?,
            watch_restarts: define.counters(
                ("chainsmith_watch_restarts_total", "Watches begun anew after a failure, by kind"),
                &["kind"],
            )?,
        })
    }

    pub(super) fn heard(&self, n_services: usize, n_slices: usize) {
        self.service_changes.inc_by(n_services as u64);
        self.endpoint_changes.inc_by(n_slices as u64);
    }

    pub(super) fn pending(&self, n_services: usize, n_slices: usize) {
        self.service_changes_pending.set(n_services as i64);
        self.endpoint_changes_pending.set(n_slices as i64);
    }

    pub(super) fn objects(&self, kind: &str, n: usize) {
        self.objects.with_label_values(&[kind]).set(n as f64);
    }

    pub(super) fn problems(&self, kind: &str, n: usize) {
        self.problems.with_label_values(&[kind]).set(n as f64);
    }

    pub(super) fn watch_restarted(&self, kind: &str) {
        self.watch_restarts.with_label_values(&[kind]).inc();
    }
}
