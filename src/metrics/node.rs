//! What is done on the node beside rules: health answers, conntrack, events, servers.

use std::time::Duration;

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec};

use super::define::Definer;
use super::sync::SYNC_BUCKETS;
use crate::net::IpFamily;

/// Who does not get an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLoss {
    /// Too many about the same object.
    Limited,
    /// Too many wait to be sent.
    QueueFull,
    /// The API server could not be reached, or refused it.
    NotSent,
}

pub(super) struct NodeMetrics {
    healthz: IntCounterVec,
    livez: IntCounterVec,
    conntrack_duration: HistogramVec,
    conntrack_deleted: IntCounterVec,
    conntrack_deleted_by_reason: IntCounterVec,
    health_ports: GaugeVec,
    health_ports_failed: GaugeVec,
    bind_failures: IntCounterVec,
    accept_failures: IntCounter,
    evicted: IntCounter,
    findings: IntCounterVec,
    events_sent: IntCounterVec,
    events_lost: IntCounterVec,
}

impl NodeMetrics {
    pub(super) fn new(define: &Definer<'_>) -> anyhow::Result<NodeMetrics> {
        let family = &["ip_family"];
        Ok(NodeMetrics {
            healthz: define.counters(
                ("kubeproxy_proxy_healthz_total", "[ALPHA] Cumulative proxy healthz HTTP status"),
                &["code"],
            )?,
            livez: define.counters(
                ("kubeproxy_proxy_livez_total", "[ALPHA] Cumulative proxy livez HTTP status"),
                &["code"],
            )?,
            conntrack_duration: define.histograms(CONNTRACK_DURATION, family, &SYNC_BUCKETS)?,
            conntrack_deleted: define.counters(CONNTRACK_DELETED, family)?,
            conntrack_deleted_by_reason: define.counters(CONNTRACK_REASONS, &["ip_family", "reason"])?,
            health_ports: define.gauges(HEALTH_PORTS, family)?,
            health_ports_failed: define.gauges(HEALTH_PORTS_FAILED, family)?,
            bind_failures: define.counters(BIND_FAILURES, &["server"])?,
            accept_failures: define.counter(ACCEPT_FAILURES)?,
            evicted: define.counter(EVICTED)?,
            findings: define.counters(FINDINGS, &["kind"])?,
            events_sent: define.counters(EVENTS_SENT, &["type"])?,
            events_lost: define.counters(EVENTS_LOST, &["reason"])?,
        })
    }

    pub(super) fn healthz(&self, code: u16) {
        self.healthz.with_label_values(&[code.to_string()]).inc();
    }

    pub(super) fn livez(&self, code: u16) {
        self.livez.with_label_values(&[code.to_string()]).inc();
    }

    pub(super) fn reconciled(&self, family: IpFamily, elapsed: Duration) {
        let labels = &[family.to_string()];
        self.conntrack_duration.with_label_values(labels).observe(elapsed.as_secs_f64());
        // Escaped from the first time on, also when nothing was deleted.
        self.conntrack_deleted.with_label_values(labels).inc_by(0);
    }

    pub(super) fn deleted(&self, family: IpFamily, reason: &str, n: u64) {
        let family = family.to_string();
        self.conntrack_deleted.with_label_values(&[&family]).inc_by(n);
        self.conntrack_deleted_by_reason.with_label_values(&[family.as_str(), reason]).inc_by(n);
    }

    pub(super) fn health_ports(&self, family: IpFamily, n_open: usize, n_failed: usize) {
        let labels = &[family.to_string()];
        self.health_ports.with_label_values(labels).set(n_open as f64);
        self.health_ports_failed.with_label_values(labels).set(n_failed as f64);
    }

    pub(super) fn bind_failed(&self, server: &str) {
        self.bind_failures.with_label_values(&[server]).inc();
    }

    pub(super) fn connection_not_accepted(&self) {
        self.accept_failures.inc();
    }

    pub(super) fn connection_evicted(&self) {
        self.evicted.inc();
    }

    pub(super) fn found(&self, kind: &str) {
        self.findings.with_label_values(&[kind]).inc();
    }

    pub(super) fn event_sent(&self, kind: &str) {
        self.events_sent.with_label_values(&[kind]).inc();
    }

    pub(super) fn event_lost(&self, why: EventLoss) {
        let reason = match why {
            EventLoss::Limited => "rate_limited",
            EventLoss::QueueFull => "queue_full",
            EventLoss::NotSent => "not_sent",
        };
        self.events_lost.with_label_values(&[reason]).inc();
    }
}

const CONNTRACK_DURATION: (&str, &str) = (
    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
    "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds",
);
const CONNTRACK_DELETED: (&str, &str) = (
    "kubeproxy_conntrack_reconciler_deleted_entries_total",
    "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler",
);
const CONNTRACK_REASONS: (&str, &str) =
    ("chainsmith_conntrack_deleted_entries_total", "Conntrack entries deleted, by reason");
const HEALTH_PORTS: (&str, &str) =
    ("chainsmith_service_health_ports", "Services whose health check node port is open");
const HEALTH_PORTS_FAILED: (&str, &str) = (
    "chainsmith_service_health_ports_failed",
    "Services whose health check node port cannot be opened and is tried again",
);
const BIND_FAILURES: (&str, &str) =
    ("chainsmith_bind_failures_total", "Failures to listen on an address, by server");
const ACCEPT_FAILURES: (&str, &str) = (
    "chainsmith_accept_failures_total",
    "Connections to health and metrics servers that could not be accepted, mostly for lack of file descriptors",
);
const EVICTED: (&str, &str) = (
    "chainsmith_connections_evicted_total",
    "Connections to health and metrics servers that were closed to make room for others",
);
const FINDINGS: (&str, &str) = (
    "chainsmith_findings_total",
    "What was found amiss on the node: leftovers of another proxy, a second one, kernel parameters that cannot be set",
);
const EVENTS_SENT: (&str, &str) =
    ("chainsmith_events_sent_total", "Events that the API server took, by type");
const EVENTS_LOST: (&str, &str) = ("chainsmith_events_lost_total", "Events that were not sent, by reason");
