//! What an observer of the traffic with the API server receives, for metrics.

use std::time::Duration;

/// One request and its result. Names as in client-go's metrics (`rest_client_...`).
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange<'a> {
    /// `GET`, `POST`, `PATCH`, ...
    pub method: &'a str,
    /// `addr:port` of the API server as configured.
    pub host: &'a str,
    /// HTTP status; `None` without a response.
    pub code: Option<u16>,
    /// How long the client's rate limit delayed it.
    pub rate_limited_for: Duration,
    /// From sending to the response headers, without the rate limit's delay.
    pub elapsed: Duration,
    /// Bytes of the request body.
    pub n_bytes: u64,
}

/// Observes the traffic with the API server. Called on the client's tasks: implementations must not block.
pub trait TrafficObserver: Send + Sync + 'static {
    /// A request received its response headers, or failed.
    fn request_finished(&self, _exchange: &Exchange<'_>) {}

    /// A response body was read, `n_bytes` after decompression; not called for watches.
    fn body_received(&self, _method: &str, _host: &str, _n_bytes: u64) {}

    /// A connection to the API server was opened.
    fn connection_opened(&self) {}

    /// The watch of a kind (its plural, `services`) was rejected or ended early, and is requested again.
    /// Not called for watches that last as long as requested.
    fn watch_restarted(&self, _plural: &str) {}
}

/// Ignores all traffic.
impl TrafficObserver for () {}
