//! Applies to every request to the API server: the rate limit of `clientConnection`, a delay after watches
//! that ended at once, timeouts for responses, and reports to a `TrafficObserver`.
//!
//! A watch that ended normally is requested again at once. The delay protects a server (or a proxy before
//! it) that ends every watch at once.

mod body;
mod reconnect;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use http_body::Body as _;
use kube::client::Body;
use leaky_bucket::RateLimiter;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceExt};

use super::traffic::{Exchange, TrafficObserver};
use crate::log::v;
use body::{BodyRole, MeasuredBody};
use reconnect::{ReconnectTimes, WatchRequest};

/// Rate limit for requests. The requests of a start are exempt; a watch counts once. Source:
/// `clientConnection.qps`, `burst`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestLimit {
    /// Requests per second in the long run, above 0; `None`: unlimited.
    pub qps: Option<f32>,
    /// Requests that may be sent at once.
    pub burst: u32,
}

impl RequestLimit {
    /// A token bucket for this limit, initially full.
    fn bucket(self) -> Option<RateLimiter> {
        /// Resolution of the bucket.
        const TICK: Duration = Duration::from_millis(1);
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let qps = self.qps?;
        let interval = Duration::try_from_secs_f32(qps.recip()).unwrap_or(DAY).clamp(TICK, DAY);
        // Above 1 000 a second, several tokens at each tick.
        let refill = ((qps * TICK.as_secs_f32()) as usize).max(1);
        let burst = usize::try_from(self.burst.max(1)).unwrap_or(usize::MAX);
        Some(RateLimiter::builder().interval(interval).refill(refill).initial(burst).max(burst).build())
    }
}

/// The layer around an HTTP client that applies all of this.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<TransportState>,
}

struct TransportState {
    /// `addr:port` of the API server.
    host: String,
    bucket: Option<RateLimiter>,
    /// Requests of a start that remain exempt from the rate limit.
    n_start: AtomicU32,
    observer: Arc<dyn TrafficObserver>,
    reconnect: Arc<ReconnectTimes>,
}

impl Transport {
    /// Sends to `host` (`addr:port`, a metric label) within `limit`.
    pub fn new(host: String, limit: RequestLimit, observer: Arc<dyn TrafficObserver>) -> Transport {
        let reconnect = Arc::new(ReconnectTimes::new(observer.clone()));
        let bucket = limit.bucket();
        let n_start = AtomicU32::new(START_REQUESTS);
        Transport { shared: Arc::new(TransportState { host, bucket, n_start, observer, reconnect }) }
    }
}

impl<S> Layer<S> for Transport {
    type Service = LimitedClient<S>;

    fn layer(&self, inner: S) -> LimitedClient<S> {
        LimitedClient { inner, shared: self.shared.clone() }
    }
}

/// An HTTP client `S` within its [`Transport`].
pub struct LimitedClient<S> {
    inner: S,
    shared: Arc<TransportState>,
}

type ResponseFuture<B> = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

impl<S, B> Service<Request<Body>> for LimitedClient<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Response<MeasuredBody<B>>;
    type Error = BoxError;
    type Future = ResponseFuture<MeasuredBody<B>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Each request waits on its own: a delayed watch does not delay other requests.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, shared) = (self.inner.clone(), self.shared.clone());
        Box::pin(async move { shared.send(inner, request).await })
    }
}

impl TransportState {
    async fn send<S, B>(
        &self,
        inner: S,
        request: Request<Body>,
    ) -> Result<Response<MeasuredBody<B>>, BoxError>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let method = request.method().clone();
        let n_bytes = request.body().size_hint().exact().unwrap_or_default();
        let uri = request.uri().clone();
        let watch = WatchRequest::from_uri(&uri);
        let path = is_list_or_watch(&request).then(|| uri.path().to_owned());
        if let Some(path) = &path {
            self.reconnect.wait(path).await;
        }
        let arrived = Instant::now();
        if let Some(bucket) = &self.bucket
            && !self.is_start_request(&request)
        {
            bucket.acquire_one().await;
        }
        let sent = Instant::now();
        let response = tokio::time::timeout(HEADERS_TIMEOUT, inner.oneshot(request)).await;
        let response = response.map_or_else(
            |_| Err(format!("no response within {} s", HEADERS_TIMEOUT.as_secs()).into()),
            |response| response.map_err(Into::into),
        );
        let code = response.as_ref().ok().map(|response| response.status().as_u16());
        v!(
            6, %method, url = %uri, status = code, error = response.as_ref().err().map(display),
            elapsed_ms = sent.elapsed().as_millis() as u64, "sent request"
        );
        if let (Some(path), Ok(response)) = (path, &response) {
            self.reconnect.record_retry_after(path, response);
        }
        self.observer.request_finished(&Exchange {
            method: method.as_str(),
            host: &self.host,
            code,
            rate_limited_for: sent - arrived,
            elapsed: sent.elapsed(),
            n_bytes,
        });
        let role = match watch {
            Some(watch) if code == Some(200) => BodyRole::Watch(self.reconnect.clone(), watch),
            Some(watch) => {
                self.observer.watch_restarted(watch.plural());
                BodyRole::RejectedWatch
            }
            None => BodyRole::Response(self.observer.clone(), method, self.host.clone()),
        };
        let response = response?;
        let is_error = !response.status().is_success();
        Ok(response.map(|body| MeasuredBody::new(body, role, is_error)))
    }
}

/// Lists and watches have a query; other requests do not.
fn is_list_or_watch(request: &Request<Body>) -> bool {
    request.method() == Method::GET && request.uri().query().is_some()
}

impl TransportState {
    /// Whether this is one of the lists and watches of a start. These do not wait, however low the limit.
    fn is_start_request(&self, request: &Request<Body>) -> bool {
        let one_less = |n: u32| n.checked_sub(1);
        is_list_or_watch(request)
            && self.n_start.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}

/// The largest number of requests at a start: for each of three kinds a rejected streaming list, a list and
/// a watch.
const START_REQUESTS: u32 = 9;

/// Timeout for the headers of a response. An API server aborts a request after 60 s itself.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(75);

#[cfg(test)]
mod tests;
