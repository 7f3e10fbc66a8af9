//! Which requests with an event are sent again, and what came of each before that.

use std::sync::{Arc, Mutex, PoisonError};

use http::Request;
use kube::Client;
use kube::client::Body;

use super::Server;
use crate::metrics::Metrics;

/// The requests of one event at a time.
pub(super) struct Attempts {
    /// `addr:port` of the API server.
    host: String,
    metrics: Arc<Metrics>,
    /// What came of the last request with this event; `None` before the first one.
    last: Mutex<Option<Answer>>,
}

/// The HTTP status; `None` where no answer came.
type Answer = Option<u16>;

impl Attempts {
    /// A client that sends to `server`, and what it tells of each request.
    pub(super) fn through(server: Server, metrics: Arc<Metrics>) -> (Client, Arc<Attempts>) {
        let Server { client, host } = server;
        let namespace = client.default_namespace().to_owned();
        let attempts = Arc::new(Attempts { host, metrics, last: Mutex::default() });
        let told = attempts.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, told) = (client.clone(), told.clone());
            async move {
                told.sent(request.method().as_str());
                let answer = client.send(request).await?;
                told.note(Some(Some(answer.status().as_u16())));
                Ok::<_, kube::Error>(answer)
            }
        });
        (Client::new(service, namespace), attempts)
    }

    /// What is sent from now on is another event.
    pub(super) fn begin(&self) {
        self.note(None);
    }

    /// A request is sent. It counts as answered once it is: whoever waits may give it up before.
    fn sent(&self, method: &str) {
        if let Some(status) = self.note(Some(None)) {
            self.metrics.requests.count_retry(method, &self.host, status);
        }
    }

    /// Notes what came of the last request, and tells what was noted before.
    fn note(&self, answer: Option<Answer>) -> Option<Answer> {
        // A number, always whole.
        std::mem::replace(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner), answer)
    }
}
