//! Work on the node other than rules: health answers, conntrack, events, servers, problems of the node.

use std::io;
use std::time::Duration;

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec};
use tracing::warn;

use super::define::{Definer, ScrapeKind};
use super::sync_metrics::SYNC_BUCKETS;
use crate::net::IpFamily;

/// Why an event was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLoss {
    /// Too many events about the same object.
    Limited,
    /// Too many events wait to be sent.
    QueueFull,
    /// The API server was not reached, or rejected the event.
    NotSent,
}

/// Metrics of health answers, conntrack, events, servers and problems of the node.
pub struct NodeMetrics {
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
                "kubeproxy_proxy_healthz_total",
                "[ALPHA] Cumulative proxy healthz HTTP status",
                &["code"],
            )?,
            livez: define.counters(
                "kubeproxy_proxy_livez_total",
                "[ALPHA] Cumulative proxy livez HTTP status",
                &["code"],
            )?,
            conntrack_duration: define.histograms(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds",
                family,
                &SYNC_BUCKETS,
            )?,
            conntrack_deleted: define.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler",
                family,
            )?,
            conntrack_deleted_by_reason: define.counters(
                "chainsmith_conntrack_deleted_entries_total",
                "Conntrack entries deleted, by reason",
                &["ip_family", "reason"],
            )?,
            health_ports: define.gauges(
                "chainsmith_service_health_ports",
                "Services whose health check node port is open",
                family,
            )?,
            health_ports_failed: define.gauges(
                "chainsmith_service_health_ports_failed",
                "Services whose health check node port cannot be opened; retried",
                family,
            )?,
            bind_failures: define.counters(
                "chainsmith_bind_failures_total",
                "Failures to listen on an address, by server",
                &["server"],
            )?,
            accept_failures: define.counter(
                "chainsmith_accept_failures_total",
                "Connections to health and metrics servers that could not be accepted, mostly for lack of file descriptors",
            )?,
            evicted: define.counter(
                "chainsmith_connections_evicted_total",
                "Connections to health and metrics servers closed to make room for new ones",
            )?,
            findings: define.counters(
                "chainsmith_findings_total",
                "Node problems by kind: leftovers of another proxy, a conflicting proxy, sysctls that cannot be set",
                &["kind"],
            )?,
            events_sent: define.counters(
                "chainsmith_events_sent_total",
                "Events that the API server accepted, by type",
                &["type"],
            )?,
            events_lost: define.counters(
                "chainsmith_events_lost_total",
                "Events that were not sent, by reason",
                &["reason"],
            )?,
        })
    }

    /// Counts an answer of `/healthz` by its HTTP status.
    pub fn count_healthz(&self, code: u16) {
        self.healthz.with_label_values(&[code.to_string()]).inc();
    }

    /// Counts an answer of `/livez` by its HTTP status.
    pub fn count_livez(&self, code: u16) {
        self.livez.with_label_values(&[code.to_string()]).inc();
    }

    /// Records how long the conntrack entries of `family` took to be compared with its endpoints.
    pub fn record_conntrack_sweep(&self, family: IpFamily, elapsed: Duration) {
        let labels = &[family.as_str()];
        self.conntrack_duration.with_label_values(labels).observe(elapsed.as_secs_f64());
        // Shown from the first sweep on, also when it deleted nothing.
        self.conntrack_deleted.with_label_values(labels).inc_by(0);
    }

    /// Counts `n` conntrack entries that were deleted for `reason`, one of a few fixed words.
    pub fn count_conntrack_deleted(&self, family: IpFamily, reason: &str, n: u64) {
        self.conntrack_deleted.with_label_values(&[family.as_str()]).inc_by(n);
        self.conntrack_deleted_by_reason.with_label_values(&[family.as_str(), reason]).inc_by(n);
    }

    /// Counts a problem of the node; `kind` is one of a few fixed words.
    pub fn count_finding(&self, kind: &str) {
        self.findings.with_label_values(&[kind]).inc();
    }

    /// Sets of how many Services the health check node port is open, and of how many it cannot be opened.
    pub fn set_health_ports(&self, family: IpFamily, n_open: usize, n_failed: usize) {
        let labels = &[family.as_str()];
        self.health_ports.with_label_values(labels).set(n_open as f64);
        self.health_ports_failed.with_label_values(labels).set(n_failed as f64);
    }

    /// Counts an address that `server` (`healthz`, `metrics`, `service_health`) cannot listen on.
    pub fn count_bind_failure(&self, server: &str) {
        self.bind_failures.with_label_values(&[server]).inc();
    }

    /// Counts a connection that a server could not accept.
    pub fn count_accept_failure(&self) {
        self.accept_failures.inc();
    }

    /// Counts a connection that was closed to make room for a new one.
    pub fn count_eviction(&self) {
        self.evicted.inc();
    }

    /// Counts an event of a type (`Normal`, `Warning`) that the API server accepted.
    pub fn count_event_sent(&self, event_type: &str) {
        self.events_sent.with_label_values(&[event_type]).inc();
    }

    /// Counts an event that was dropped.
    pub fn count_event_lost(&self, loss: EventLoss) {
        let reason = match loss {
            EventLoss::Limited => "rate_limited",
            EventLoss::QueueFull => "queue_full",
            EventLoss::NotSent => "not_sent",
        };
        self.events_lost.with_label_values(&[reason]).inc();
    }
}

/// Reads a packet counter of the kernel.
pub type ReadPackets = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// The counter of packets that conntrack calls INVALID, which a rule drops.
pub(super) const INVALID_PACKETS: (&str, &str) = (
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    "[ALPHA] packets dropped by iptables to work around conntrack problems",
);
/// The counter of packets to node ports of loopback.
pub(super) const LOCALHOST_PACKETS: (&str, &str) = (
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
    "[ALPHA] Number of packets accepted on nodeports of loopback interface",
);

/// Defines a metric of the packets that `read` returns; a scrape for which it fails leaves the metric out.
pub(super) fn define_packets(
    define: &Definer<'_>,
    (name, help): (&'static str, &str),
    read: ReadPackets,
) -> anyhow::Result<()> {
    define.on_scrape(ScrapeKind::Counter, name, help, move || {
        let packets =
            read().inspect_err(|error| warn!(metric = name, %error, "cannot read a packet counter"));
        packets.ok().map(|n| n as f64)
    })
}
