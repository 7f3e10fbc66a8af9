//! Requests to the API server, under the names of client-go's metrics.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec};

use super::define::Definer;

/// Source: client-go, `component-base/metrics/prometheus/restclient`, v1.36.
const LATENCY_BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// In bytes. Source: as above.
const SIZE_BUCKETS: [f64; 11] =
    [64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];

/// A request to the API server that was answered, or failed.
#[derive(Clone, Copy, Debug)]
pub struct RequestSample<'a> {
    /// `GET`, `POST`, `PATCH`.
    pub method: &'a str,
    /// `<address>:<port>` of the API server.
    pub host: &'a str,
    /// HTTP status; `None` without an answer.
    pub status: Option<u16>,
    /// Until the answer's headers arrived.
    pub elapsed: Duration,
    /// Bytes of the request's body.
    pub n_sent: u64,
}

/// Metrics of the traffic with the API server. A `method` is an HTTP method, a `host` is `<address>:<port>`.
pub struct RequestMetrics {
    total: IntCounterVec,
    duration: HistogramVec,
    limiter: HistogramVec,
    sent: HistogramVec,
    received: HistogramVec,
    retries: IntCounterVec,
    connections: IntCounter,
}

impl RequestMetrics {
    pub(super) fn new(define: &Definer<'_>) -> anyhow::Result<RequestMetrics> {
        let labels = &["host", "verb"];
        let latencies = |name, help| define.histograms(name, help, labels, &LATENCY_BUCKETS);
        let sizes = |name, help| define.histograms(name, help, labels, &SIZE_BUCKETS);
        Ok(RequestMetrics {
            total: define.counters(
                "rest_client_requests_total",
                "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
                &["code", "host", "method"],
            )?,
            duration: latencies(
                "rest_client_request_duration_seconds",
                "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
            )?,
            limiter: latencies(
                "rest_client_rate_limiter_duration_seconds",
                "[ALPHA] Client side rate limiter latency in seconds. Broken down by verb, and host.",
            )?,
            sent: sizes(
                "rest_client_request_size_bytes",
                "[ALPHA] Request size in bytes. Broken down by verb and host.",
            )?,
            received: sizes(
                "rest_client_response_size_bytes",
                "[ALPHA] Response size in bytes. Broken down by verb and host.",
            )?,
            retries: define.counters(
                "rest_client_request_retries_total",
                "[ALPHA] Requests sent again, by status code, verb and host.",
                &["code", "host", "verb"],
            )?,
            connections: define.counter(
                "chainsmith_apiserver_connections_total",
                "Connections opened to the API server; one carries all requests and watches",
            )?,
        })
    }

    /// Records a request.
    pub fn record(&self, request: &RequestSample<'_>) {
        let RequestSample { method, host, status, elapsed, n_sent } = *request;
        self.total.with_label_values(&[code(status).as_str(), host, method]).inc();
        let labels = &[host, method];
        self.duration.with_label_values(labels).observe(elapsed.as_secs_f64());
        self.sent.with_label_values(labels).observe(n_sent as f64);
    }

    /// Records the size of an answer's body; watches are not recorded.
    pub fn record_received(&self, method: &str, host: &str, n_bytes: u64) {
        self.received.with_label_values(&[host, method]).observe(n_bytes as f64);
    }

    /// Records how long the rate limiter delayed a request.
    pub fn record_delay(&self, method: &str, host: &str, elapsed: Duration) {
        self.limiter.with_label_values(&[host, method]).observe(elapsed.as_secs_f64());
    }

    /// Counts a request that is sent again after an answer with `status`, or none.
    pub fn count_retry(&self, method: &str, host: &str, status: Option<u16>) {
        self.retries.with_label_values(&[code(status).as_str(), host, method]).inc();
    }

    /// Counts a new connection.
    pub fn count_connection(&self) {
        self.connections.inc();
    }
}

/// The label `code`, as client-go writes it.
fn code(status: Option<u16>) -> String {
    status.map_or_else(|| "<error>".to_owned(), |status| status.to_string())
}
