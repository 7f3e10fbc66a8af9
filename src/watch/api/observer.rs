//! What is told of the traffic with the API server, to whoever counts it.

use std::time::Duration;

/// One request and what came of it. Names as in client-go's metrics (`rest_client_...`).
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange<'a> {
    /// `GET`, `POST`, `PATCH`, ...
    pub method: &'a str,
    /// `addr:port` of the API server, as configured.
    pub host: &'a str,
    /// The HTTP status; `None` where no answer came.
    pub code: Option<u16>,
    /// How long the client's own limit held it back.
    pub held_back: Duration,
    /// From sending to the head of the answer, without the time it was held back.
    pub elapsed: Duration,
    /// Bytes of its body.
    pub n_bytes: u64,
}

/// Whoever counts the traffic with the API server. Called on the client's tasks: must not block.
pub trait Observer: Send + Sync + 'static {
    /// A request was answered, or failed.
    fn answered(&self, _exchange: &Exchange<'_>) {}

    /// The body of an answer was read, `n_bytes` after decompression; not called for watches.
    fn received(&self, _method: &str, _host: &str, _n_bytes: u64) {}

    /// A connection to the API server was made.
    fn connected(&self) {}

    /// The watch of a kind (its plural, `services`) broke off, could not be begun or ended at once,
    /// and is begun anew. Not called for watches that last as long as they were asked to.
    fn watch_restarted(&self, _plural: &str) {}
}

/// Counts nothing.
impl Observer for () {}
