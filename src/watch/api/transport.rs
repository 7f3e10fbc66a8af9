//! What every request to the API server passes on its way: the limit of `clientConnection`, a pause
//! after watches that ended at once, bounds on how long an answer may take, and whoever counts.
//!
//! A watch that ended in order is begun again at once; a server (or a proxy before it) that ends all
//! of them would be asked without a pause.

mod body;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body::Body as _;
use kube::client::Body;
use leaky_bucket::RateLimiter;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceExt};

use super::backoff;
use super::observer::{Exchange, Observer};
use body::{Counted, Purpose};

/// A limit on requests: all but those of a start count, each watch once. Source: `clientConnection.qps`, `burst`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Requests each second in the long run, above 0; `None`: no limit.
    pub qps: Option<f32>,
    /// Requests at once.
    pub burst: u32,
}

impl Limit {
    /// The bucket of this limit, full.
    fn bucket(self) -> Option<RateLimiter> {
        /// The bucket's own grain.
        const TICK: Duration = Duration::from_millis(1);
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let qps = self.qps?;
        let interval = Duration::try_from_secs_f32(qps.recip()).unwrap_or(DAY).clamp(TICK, DAY);
        // More often than each tick: several at a tick.
        let refill = ((qps * TICK.as_secs_f32()) as usize).max(1);
        let burst = usize::try_from(self.burst.max(1)).unwrap_or(usize::MAX);
        Some(RateLimiter::builder().interval(interval).refill(refill).initial(burst).max(burst).build())
    }
}

/// How requests are sent; a layer around what sends them.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

struct Shared {
    /// `addr:port` of the API server.
    host: String,
    bucket: Option<RateLimiter>,
    /// How many of the requests of a start are left.
    n_start: AtomicU32,
    observer: Arc<dyn Observer>,
    endings: Arc<Endings>,
}

impl Transport {
    /// Sends to `host` (`addr:port`, for counting only) within `limit`.
    pub fn new(host: String, limit: Limit, observer: Arc<dyn Observer>) -> Transport {
        let endings = Arc::new(Endings {
            at_once: Mutex::default(),
            held: Mutex::default(),
            observer: observer.clone(),
        });
        let bucket = limit.bucket();
        let n_start = AtomicU32::new(START_REQUESTS);
        Transport { shared: Arc::new(Shared { host, bucket, n_start, observer, endings }) }
    }
}

impl<S> Layer<S> for Transport {
    type Service = Sender<S>;

    fn layer(&self, inner: S) -> Sender<S> {
        Sender { inner, shared: self.shared.clone() }
    }
}

/// Sends requests through `S` as its [`Transport`] says.
pub struct Sender<S> {
    inner: S,
    shared: Arc<Shared>,
}

type Answering<B> = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

impl<S, B> Service<Request<Body>> for Sender<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Response<Counted<B>>;
    type Error = BoxError;
    type Future = Answering<Counted<B>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Each request waits by itself: a watch that has to pause holds up nobody else.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, shared) = (self.inner.clone(), self.shared.clone());
        Box::pin(async move { shared.send(inner, request).await })
    }
}

impl Shared {
    async fn send<S, B>(&self, inner: S, request: Request<Body>) -> Result<Response<Counted<B>>, BoxError>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        let method = request.method().clone();
        let n_bytes = request.body().size_hint().exact().unwrap_or_default();
        let watched = Watched::of(request.uri());
        let path = is_list_or_watch(&request).then(|| request.uri().path().to_owned());
        if let Some(path) = &path {
            self.endings.pause(path).await;
        }
        let begun = Instant::now();
        if let Some(bucket) = &self.bucket
            && !self.is_of_start(&request)
        {
            bucket.acquire_one().await;
        }
        let sent = Instant::now();
        let answer = tokio::time::timeout(HEAD, inner.oneshot(request)).await;
        let answer = answer.map_or_else(
            |_| Err(format!("no answer within {} s", HEAD.as_secs()).into()),
            |answer| answer.map_err(Into::into),
        );
        let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        if let (Some(path), Ok(answer)) = (path, &answer) {
            self.endings.hold(path, answer);
        }
        self.observer.answered(&Exchange {
            method: method.as_str(),
            host: &self.host,
            code,
            held_back: sent - begun,
            elapsed: sent.elapsed(),
            n_bytes,
        });
        let purpose = match watched {
            Some(watched) if code == Some(200) => Purpose::Watch(self.endings.clone(), watched),
            Some(watched) => {
                self.observer.watch_restarted(watched.plural());
                Purpose::Refusal
            }
            None => Purpose::Other(self.observer.clone(), method, self.host.clone()),
        };
        let answer = answer?;
        let is_error = !answer.status().is_success();
        Ok(answer.map(|body| Counted::new(body, purpose, is_error)))
    }
}

/// Both have selectors, which other requests do not have.
fn is_list_or_watch(request: &Request<Body>) -> bool {
    request.method() == Method::GET && request.uri().query().is_some()
}

impl Shared {
    /// Whether this is one of the lists and watches that a start takes: they do not wait, however low
    /// the limit.
    fn is_of_start(&self, request: &Request<Body>) -> bool {
        let one_less = |n: u32| n.checked_sub(1);
        is_list_or_watch(request)
            && self.n_start.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}

/// How many requests a start takes at most: for each of three kinds a streaming list that is refused, a
/// list and a watch.
const START_REQUESTS: u32 = 9;

/// How long the head of an answer may take. An API server gives up a request after 60 s itself.
const HEAD: Duration = Duration::from_secs(75);

/// A watch as it was asked for.
pub struct Watched {
    path: String,
    /// How long it was to last.
    lasting: Duration,
}

impl Watched {
    /// `None` if it is none.
    fn of(uri: &Uri) -> Option<Watched> {
        let value = |key: &str| {
            let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(name, value)| (name == key).then_some(value))
        };
        let seconds = value("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or_default();
        let lasting = Duration::from_secs(seconds);
        (value("watch") == Some("true")).then(|| Watched { path: uri.path().to_owned(), lasting })
    }

    /// What is watched: `services`.
    fn plural(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// When to ask again, by path.
pub struct Endings {
    /// Watches that ended at once: how often in a row, and when to begin the next.
    at_once: Mutex<BTreeMap<String, (u32, Instant)>>,
    /// What the server asked to wait for.
    held: Mutex<BTreeMap<String, Instant>>,
    observer: Arc<dyn Observer>,
}

/// The longest time that a server can have us wait; in case it is a mistake.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// A watch that brought nothing and ended sooner has ended at once (as in client-go).
const AT_ONCE: Duration = Duration::from_secs(1);

/// A server's clock begins earlier than ours, by as long as its answer took.
const TOLERANCE: Duration = Duration::from_secs(5);

impl Endings {
    async fn pause(&self, path: &str) {
        let next = self.at_once.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        if let Some(next) = next.map(|(_, next)| next).max(held) {
            tokio::time::sleep_until(next).await;
        }
    }

    /// An overloaded server says when it wants to be asked again.
    fn hold<B>(&self, path: String, answer: &Response<B>) {
        if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return;
        }
        let seconds =
            answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(seconds) = seconds {
            let until = Instant::now() + Duration::from_secs(seconds).min(LONGEST_HOLD);
            self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(path, until);
        }
    }

    /// A watch ended after it had lasted for a time, in whichever way, and brought an event or not.
    fn note(&self, watched: &Watched, lasted: Duration, has_brought: bool) {
        if lasted + TOLERANCE < watched.lasting {
            self.observer.watch_restarted(watched.plural());
        }
        let mut at_once = self.at_once.lock().unwrap_or_else(PoisonError::into_inner);
        if has_brought || lasted >= AT_ONCE {
            at_once.remove(&watched.path);
        } else {
            let (n, next) = at_once.entry(watched.path.clone()).or_insert((0, Instant::now()));
            *n += 1;
            // From now on: a failure that the follower waits for too is not waited for twice.
            *next = Instant::now() + backoff::pause(*n);
        }
    }
}

#[cfg(test)]
mod tests;
