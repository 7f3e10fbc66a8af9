//! Counts the requests with an event that are sent again, by the answer to the request before.

use std::sync::{Arc, Mutex, PoisonError};

use http::Request;
use kube::Client;
use kube::client::Body;

use crate::metrics::Metrics;

/// The API server that events are sent to.
pub struct EventTarget {
    /// Sends requests.
    pub client: Client,
    /// Its `addr:port`, for metrics only.
    pub host: String,
}

/// Counts the requests of one event at a time.
pub(super) struct RetryCounter {
    /// `addr:port` of the API server.
    host: String,
    metrics: Arc<Metrics>,
    /// The last request with this event; `None` before the first one.
    last: Mutex<Option<SentRequest>>,
}

/// The HTTP status of the answer; `None` without an answer.
type SentRequest = Option<u16>;

impl RetryCounter {
    /// A client that sends to `target`, and the counter of its requests.
    pub(super) fn around(target: EventTarget, metrics: Arc<Metrics>) -> (Client, Arc<RetryCounter>) {
        let EventTarget { client, host } = target;
        let namespace = client.default_namespace().to_owned();
        let counter = Arc::new(RetryCounter { host, metrics, last: Mutex::default() });
        let counted = counter.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, counted) = (client.clone(), counted.clone());
            async move {
                counted.begin_request(request.method().as_str());
                let answer = client.send(request).await?;
                counted.replace_last(Some(Some(answer.status().as_u16())));
                Ok::<_, kube::Error>(answer)
            }
        });
        (Client::new(service, namespace), counter)
    }

    /// The next request has another event.
    pub(super) fn begin_event(&self) {
        self.replace_last(None);
    }

    /// A request is sent. Until its answer arrives it counts as unanswered: the sender may stop waiting before.
    fn begin_request(&self, method: &str) {
        if let Some(status) = self.replace_last(Some(None)) {
            self.metrics.requests.count_retry(method, &self.host, status);
        }
    }

    /// Records the last request and returns the one recorded before.
    fn replace_last(&self, request: Option<SentRequest>) -> Option<SentRequest> {
        // Consistent even after a panic: one assignment.
        std::mem::replace(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner), request)
    }
}
