//! Requests to the API server, by the names of client-go.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec};

use super::define::Definer;

/// Source: client-go, `component-base/metrics/prometheus/restclient`, v1.36.
const LATENCY_BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// Likewise; bytes.
const SIZE_BUCKETS: [f64; 11] =
    [64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];

/// Bounds that Go spells otherwise than Rust does; series are told apart by the spelling.
const SPELLINGS: [(&str, &str); 3] = [
    (r#"le="1048576""#, r#"le="1.048576e+06""#),
    (r#"le="4194304""#, r#"le="4.194304e+06""#),
    (r#"le="16777216""#, r#"le="1.6777216e+07""#),
];

/// An exposition with bounds spelled as kube-proxy spells them.
pub(super) fn respelled(exposition: String) -> String {
    SPELLINGS.into_iter().fold(exposition, |text, (ours, theirs)| text.replace(ours, theirs))
}

/// A request to the API server that was answered, or failed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `GET`, `POST`, `PATCH`.
    pub method: &'a str,
    /// `<address>:<port>` of the API server.
    pub host: &'a str,
    /// HTTP status; `None` when there was no answer.
    pub status: Option<u16>,
    /// Until the answer's headers were there.
    pub elapsed: Duration,
    /// Bytes of the request's body.
    pub n_sent: u64,
}

pub(super) struct RequestMetrics {
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
        Ok(RequestMetrics {
            total: define.counters(TOTAL, &["code", "host", "method"])?,
            duration: define.histograms(DURATION, labels, &LATENCY_BUCKETS)?,
            limiter: define.histograms(LIMITER, labels, &LATENCY_BUCKETS)?,
            sent: define.histograms(SENT, labels, &SIZE_BUCKETS)?,
            received: define.histograms(RECEIVED, labels, &SIZE_BUCKETS)?,
            retries: define.counters(RETRIES, &["code", "host", "verb"])?,
            connections: define.counter(CONNECTIONS)?,
        })
    }

    pub(super) fn requested(&self, request: &Request<'_>) {
        let Request { method, host, status, elapsed, n_sent } = *request;
        let code = status.map_or("<error>".to_owned(), |status| status.to_string());
        self.total.with_label_values(&[code.as_str(), host, method]).inc();
        let labels = &[host, method];
        self.duration.with_label_values(labels).observe(elapsed.as_secs_f64());
        self.sent.with_label_values(labels).observe(n_sent as f64);
    }

    pub(super) fn received(&self, method: &str, host: &str, n_bytes: u64) {
        self.received.with_label_values(&[host, method]).observe(n_bytes as f64);
    }

    pub(super) fn limited(&self, method: &str, host: &str, elapsed: Duration) {
        self.limiter.with_label_values(&[host, method]).observe(elapsed.as_secs_f64());
    }

    pub(super) fn connected(&self) {
        self.connections.inc();
    }

    pub(super) fn retried(&self, method: &str, host: &str, status: Option<u16>) {
        let code = status.map_or("<error>".to_owned(), |status| status.to_string());
        self.retries.with_label_values(&[code.as_str(), host, method]).inc();
    }
}

const TOTAL: (&str, &str) = (
    "rest_client_requests_total",
    "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
);
const DURATION: (&str, &str) = (
    "rest_client_request_duration_seconds",
    "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
);
const LIMITER: (&str, &str) = (
    "rest_client_rate_limiter_duration_seconds",
    "[ALPHA] Client side rate limiter latency in seconds. Broken down by verb, and host.",
);
const SENT: (&str, &str) =
    ("rest_client_request_size_bytes", "[ALPHA] Request size in bytes. Broken down by verb and host.");
const RECEIVED: (&str, &str) =
    ("rest_client_response_size_bytes", "[ALPHA] Response size in bytes. Broken down by verb and host.");
const RETRIES: (&str, &str) =
    ("rest_client_request_retries_total", "[ALPHA] Requests sent again, by status code, verb and host.");
const CONNECTIONS: (&str, &str) =
    ("chainsmith_apiserver_connections_total", "Connections made to the API server; one carries everything");
