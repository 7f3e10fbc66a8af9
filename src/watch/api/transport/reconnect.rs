//! When a path may be requested again: after watches that end at once, and after `Retry-After`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Response, StatusCode, Uri, header};
use tokio::time::Instant;

use crate::watch::api::backoff;
use crate::watch::api::traffic::TrafficObserver;

/// The longest `Retry-After` that is honoured, in case the server sends a mistaken one.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// A watch without an event that ends sooner has ended at once (as in client-go).
const AT_ONCE: Duration = Duration::from_secs(1);

/// How much sooner than requested a watch may end and still count as complete: the server starts its clock while
/// the response is still on its way.
const TOLERANCE: Duration = Duration::from_secs(5);

/// Path and duration of a requested watch.
pub struct WatchRequest {
    path: String,
    /// The requested duration.
    duration: Duration,
}

impl WatchRequest {
    /// Reads the address of a request; `None` if it is not a watch.
    pub fn from_uri(uri: &Uri) -> Option<WatchRequest> {
        let value = |key: &str| {
            let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(name, value)| (name == key).then_some(value))
        };
        let seconds = value("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or_default();
        let duration = Duration::from_secs(seconds);
        (value("watch") == Some("true")).then(|| WatchRequest { path: uri.path().to_owned(), duration })
    }

    /// The plural of the watched kind: `services`.
    pub fn plural(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// The earliest time of the next request, by path.
pub struct ReconnectTimes {
    /// Watches that ended at once: how many in a row, and when the next may begin.
    after_watch: Mutex<BTreeMap<String, (u32, Instant)>>,
    /// End of the server's `Retry-After`.
    retry_after: Mutex<BTreeMap<String, Instant>>,
    observer: Arc<dyn TrafficObserver>,
}

impl ReconnectTimes {
    /// No delays yet. Watches that end early are reported to `observer`.
    pub fn new(observer: Arc<dyn TrafficObserver>) -> ReconnectTimes {
        ReconnectTimes { after_watch: Mutex::default(), retry_after: Mutex::default(), observer }
    }

    /// Waits until `path` may be requested.
    pub async fn wait(&self, path: &str) {
        let after_watch = self.after_watch.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
        let retry_after = self.retry_after.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        if let Some(next) = after_watch.map(|(_, next)| next).max(retry_after) {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Records the `Retry-After` of an overloaded server.
    pub fn record_retry_after<B>(&self, path: String, response: &Response<B>) {
        if !matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return;
        }
        let header = response.headers().get(header::RETRY_AFTER);
        if let Some(seconds) = header.and_then(|value| value.to_str().ok()?.parse().ok()) {
            let until = Instant::now() + Duration::from_secs(seconds).min(MAX_RETRY_AFTER);
            self.retry_after.lock().unwrap_or_else(PoisonError::into_inner).insert(path, until);
        }
    }

    /// Records that a watch ended, for any reason, after `elapsed`.
    pub fn record_watch_end(&self, watch: &WatchRequest, elapsed: Duration, had_event: bool) {
        if elapsed + TOLERANCE < watch.duration {
            self.observer.watch_restarted(watch.plural());
        }
        let mut after_watch = self.after_watch.lock().unwrap_or_else(PoisonError::into_inner);
        if had_event || elapsed >= AT_ONCE {
            after_watch.remove(&watch.path);
        } else {
            let (n, next) = after_watch.entry(watch.path.clone()).or_insert((0, Instant::now()));
            *n += 1;
            // Counted from now, so that this delay and the follower's own back-off overlap and do not add up.
            *next = Instant::now() + backoff::delay(*n);
        }
    }
}
