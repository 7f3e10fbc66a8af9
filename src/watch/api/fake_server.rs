//! An API server in memory for tests in simulated time: lists, streaming lists and watches of a few
//! objects, and their failures. (Real sockets and a fuller server: `e2e/`.)

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::BoxError;

use super::{Connection, RequestLimit, TrafficObserver};

/// How the server responds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Normally.
    Serves,
    /// Normally, but it rejects streaming lists.
    RejectsStreaming,
    /// Every streaming list is followed by 410 Gone.
    ExpiresVersions,
    /// No connection can be made.
    Unreachable,
    /// Each watch ends normally before any event.
    EndsWatches,
}

/// How the next body with Services is cut off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    /// As if it were complete.
    Normally,
    /// With an error.
    WithError,
}

/// The server; clones share it.
#[derive(Clone)]
pub struct FakeServer {
    state: Arc<Mutex<ServerState>>,
    wake: Arc<watch::Sender<()>>,
}

struct ServerState {
    mode: Mode,
    /// Open streams of an earlier epoch fail.
    epoch: u32,
    version: u64,
    /// Changes up to this version are no longer available.
    oldest: u64,
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, Value)>,
    cut: Option<(usize, Cut)>,
    requests: Vec<(Instant, String)>,
}

/// A request's query by key.
pub type QueryPairs = BTreeMap<String, String>;

impl FakeServer {
    /// A server without objects.
    pub fn new(mode: Mode) -> FakeServer {
        let state = ServerState {
            mode,
            epoch: 0,
            version: 1,
            oldest: 0,
            objects: BTreeMap::new(),
            log: Vec::new(),
            cut: None,
            requests: Vec::new(),
        };
        FakeServer { state: Arc::new(Mutex::new(state)), wake: Arc::new(watch::Sender::new(())) }
    }

    /// A connection to it.
    pub fn connect(&self, limit: RequestLimit, observer: Arc<dyn TrafficObserver>) -> Connection {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let answer = server.answer(request.uri());
            async move { answer }
        });
        Connection::to(service, limit, observer)
    }

    fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap()
    }

    /// Creates or replaces an object; `plural` as in paths.
    pub fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.state();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let before = state.objects.insert((plural.to_owned(), name), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        state.record(plural, kind, &object);
        drop(state);
        self.wake.send_replace(());
    }

    /// Deletes an existing object.
    pub fn delete(&self, plural: &str, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let mut object = state.objects.remove(&(plural.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.record(plural, "DELETED", &object);
        drop(state);
        self.wake.send_replace(());
    }

    /// Changes the mode; open watches fail.
    pub fn set_mode(&self, mode: Mode) {
        let mut state = self.state();
        (state.mode, state.epoch) = (mode, state.epoch + 1);
        drop(state);
        self.wake.send_replace(());
    }

    /// Makes every version returned so far unavailable.
    pub fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.oldest = state.version;
    }

    /// Cuts off the next body with Services after `n_bytes`.
    pub fn cut_next(&self, n_bytes: usize, cut: Cut) {
        self.state().cut = Some((n_bytes, cut));
    }

    /// Takes the requests (time, path and query) so far.
    pub fn take_requests(&self) -> Vec<(Instant, String)> {
        std::mem::take(&mut self.state().requests)
    }

    fn answer(&self, uri: &http::Uri) -> Result<Response<Body>, BoxError> {
        let mut state = self.state();
        state.requests.push((Instant::now(), uri.to_string()));
        if state.mode == Mode::Unreachable {
            return Err("connection refused".into());
        }
        let plural = uri.path().rsplit('/').next().unwrap().to_owned();
        let query: QueryPairs =
            form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).into_owned().collect();
        let is_watch = query.contains_key("watch");
        let is_streaming = query.contains_key("sendInitialEvents");
        let body = if is_streaming && state.mode == Mode::RejectsStreaming {
            return Ok(failure(422, "sendInitialEvents is forbidden"));
        } else if is_watch && state.mode == Mode::EndsWatches {
            stream::empty().boxed()
        } else if is_watch {
            let (first, version) = state.first_lines(&plural, &query, is_streaming);
            let first =
                if state.mode == Mode::ExpiresVersions { [first, gone()].concat().into() } else { first };
            let later = self.changes(plural.clone(), version, state.epoch, watch_end(&query));
            stream::iter([Ok(first)]).chain(later).boxed()
        } else {
            stream::iter([Ok(state.list(&plural))]).boxed()
        };
        let cut = if plural == "services" { state.cut.take() } else { None };
        let body = match cut {
            Some((n_bytes, cut)) => Body::from_stream(cut_after(body, n_bytes, cut)),
            None => Body::from_stream(body),
        };
        Ok(Response::new(body))
    }

    /// The changes after `version`, as they happen.
    fn changes(
        &self,
        plural: String,
        version: u64,
        epoch: u32,
        deadline: Instant,
    ) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
        let start = (self.clone(), self.wake.subscribe(), version, false);
        stream::unfold(start, move |(server, mut wake, version, is_over)| {
            let plural = plural.clone();
            async move {
                loop {
                    if is_over {
                        return None;
                    }
                    let (now, lines) = {
                        let state = server.state();
                        if state.epoch != epoch {
                            drop(state);
                            return Some((Err("connection reset".into()), (server, wake, version, true)));
                        }
                        (state.version, state.lines_after(&plural, version))
                    };
                    if !lines.is_empty() {
                        return Some((Ok(lines), (server, wake, now, false)));
                    }
                    if tokio::time::timeout_at(deadline, wake.changed()).await.is_err() {
                        return None;
                    }
                }
            }
        })
    }
}

impl ServerState {
    fn record(&mut self, plural: &str, kind: &str, object: &Value) {
        self.log.push((self.version, plural.to_owned(), json!({"type": kind, "object": object})));
    }

    fn of<'a>(&'a self, plural: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |((of, _), _)| of == plural).map(|(_, object)| object)
    }

    /// The first lines of a watch, and the version that they reach.
    fn first_lines(&self, plural: &str, query: &QueryPairs, is_streaming: bool) -> (Bytes, u64) {
        if is_streaming {
            let objects = self.of(plural).map(|object| json!({"type": "ADDED", "object": object}));
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            let metadata = json!({"resourceVersion": self.version.to_string(), "annotations": annotations});
            let object = json!({"kind": "Any", "apiVersion": "v1", "metadata": metadata});
            let end = json!({"type": "BOOKMARK", "object": object});
            return (text(objects.chain([end])), self.version);
        }
        let asked = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        if asked < self.oldest {
            return (gone(), self.version);
        }
        (Bytes::new(), asked)
    }

    fn lines_after(&self, plural: &str, version: u64) -> Bytes {
        let later = self.log.iter().filter(|(at, of, _)| *at > version && of == plural);
        text(later.map(|(_, _, line)| line.clone()))
    }

    fn list(&self, plural: &str) -> Bytes {
        let items: Vec<&Value> = self.of(plural).collect();
        let metadata = json!({"resourceVersion": self.version.to_string()});
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string().into()
    }
}

fn text(lines: impl IntoIterator<Item = Value>) -> Bytes {
    lines.into_iter().map(|line| format!("{line}\n")).collect::<String>().into()
}

fn gone() -> Bytes {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
        "reason": "Expired", "message": "too old resource version", "metadata": {}});
    text([json!({"type": "ERROR", "object": status})])
}

/// When a watch requested now ends.
fn watch_end(query: &QueryPairs) -> Instant {
    let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(1800);
    Instant::now() + Duration::from_secs(seconds)
}

fn failure(code: u16, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": "Invalid", "message": message, "metadata": {}});
    Response::builder().status(code).body(Body::from(status.to_string())).unwrap()
}

/// The first `n_bytes` of a body; then it ends, or fails.
fn cut_after(
    body: BoxStream<'static, Result<Bytes, BoxError>>,
    n_bytes: usize,
    cut: Cut,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let start = (body, n_bytes, false);
    stream::unfold(start, move |(mut body, left, is_over)| async move {
        if is_over {
            return None;
        }
        if left == 0 {
            let end = (cut == Cut::WithError).then(|| Err("connection reset".into()));
            return end.map(|end| (end, (body, 0, true)));
        }
        let chunk = body.next().await?;
        let chunk = chunk.map(|mut bytes| bytes.split_to(left.min(bytes.len())));
        let left = left - chunk.as_ref().map_or(0, Bytes::len);
        Some((chunk, (body, left, false)))
    })
}
