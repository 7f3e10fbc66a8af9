//! Tests of watching over HTTP, against a scripted server.

mod lists;
mod outage;
mod replays;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::model::Change;
use crate::watch::api::fake_server::QueryPairs;

const SHORT_TIMEOUTS: WatchTimeouts = WatchTimeouts {
    list_start: Duration::from_millis(300),
    next_object: Duration::from_millis(300),
    next_item: Duration::from_secs(60),
};

/// A response: status and lines, one after another; then it ends, or stays open.
struct ScriptedResponse {
    status: u16,
    lines: Vec<Value>,
    stays_open: bool,
}

fn lines(lines: Vec<Value>) -> ScriptedResponse {
    ScriptedResponse { status: 200, lines, stays_open: true }
}

fn list(items: Vec<Value>) -> ScriptedResponse {
    let list = json!({
        "kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": items,
    });
    ScriptedResponse { status: 200, lines: vec![list], stays_open: false }
}

fn failure(code: u16, reason: &str) -> ScriptedResponse {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": reason, "metadata": {},
    });
    ScriptedResponse { status: code, lines: vec![status], stays_open: false }
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// The bookmark at the end of a streaming list.
fn list_end() -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    event(
        "BOOKMARK",
        &json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {"resourceVersion": "10", "annotations": annotations, "creationTimestamp": null},
        }),
    )
}

fn service(name: &str, version: u32) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": version.to_string()},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    })
}

type Script = Arc<dyn Fn(&QueryPairs) -> ScriptedResponse + Send + Sync>;

async fn answer(State(script): State<Script>, request: Request) -> Response {
    let query =
        request.uri().query().unwrap_or_default().replace("%21", "!").replace("%3D", "=").replace("%2F", "/");
    let query: QueryPairs = query
        .split('&')
        .filter_map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect();
    let ScriptedResponse { status, lines, stays_open } = match request.uri().path() {
        "/api/v1/services" => {
            let agent = request.headers()["user-agent"].to_str().unwrap();
            assert_eq!(agent, concat!("chainsmith/", env!("CARGO_PKG_VERSION")));
            assert_eq!(query["labelSelector"], "!service.kubernetes.io/service-proxy-name");
            assert_eq!(query["fieldSelector"], "spec.clusterIP!=None");
            script(&query)
        }
        "/apis/discovery.k8s.io/v1/endpointslices" => {
            assert_eq!(query["labelSelector"], "!service.kubernetes.io/headless");
            super::tests::lines(vec![list_end()])
        }
        "/api/v1/nodes" => {
            assert_eq!(query["fieldSelector"], "metadata.name=node-a");
            super::tests::lines(vec![list_end()])
        }
        other => panic!("unexpected request for {other}"),
    };
    let lines =
        futures::stream::iter(lines).map(|line| Ok::<_, std::io::Error>(Bytes::from(format!("{line}\n"))));
    let rest = match stays_open {
        true => futures::stream::pending().left_stream(),
        false => futures::stream::empty().right_stream(),
    };
    let body = Body::from_stream(lines.chain(rest));
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

/// Starts the server and a follower; returns the events about Services.
async fn events_of(
    script: impl Fn(&QueryPairs) -> ScriptedResponse + Send + Sync + 'static,
) -> mpsc::Receiver<WatchEvent> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(answer).with_state(Arc::new(script) as Script);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let server = format!("http://{address}");
    let limit = RequestLimit { qps: Some(50.0), burst: 10 };
    let connection = connect(None, Some(&server), limit, Arc::new(())).await.unwrap();
    let (sender, receiver) = mpsc::channel(crate::watch::CHANNEL_CAPACITY);
    tokio::spawn(follow_with(connection, "node-a".into(), sender, SHORT_TIMEOUTS));
    receiver
}

/// The next `n` events about Services, as text.
async fn words(events: &mut mpsc::Receiver<WatchEvent>, n: usize) -> Vec<String> {
    let mut words = Vec::new();
    while words.len() < n {
        let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await;
        match event.unwrap_or_else(|_| panic!("nothing after {words:?}")).unwrap() {
            WatchEvent::Change(Change::AllServices(services)) => {
                let names: Vec<&str> = services.iter().map(|service| service.name.name()).collect();
                words.push(format!("*{}", names.join(",")));
            }
            WatchEvent::Change(Change::Service(name, service)) => {
                words.push(format!("{}{}", if service.is_some() { "+" } else { "-" }, name.name()));
            }
            WatchEvent::ServicesListed => words.push("listed".to_owned()),
            _ => {}
        }
    }
    words
}

fn is_streaming_list(query: &QueryPairs) -> bool {
    query.get("sendInitialEvents").is_some_and(|value| value == "true")
}

#[tokio::test]
async fn a_streaming_list_is_followed_by_its_watch() {
    let mut events = events_of(|query| {
        assert!(is_streaming_list(query) && query["allowWatchBookmarks"] == "true", "{query:?}");
        lines(vec![
            event("ADDED", &service("a", 1)),
            event("ADDED", &service("b", 2)),
            list_end(),
            event("MODIFIED", &service("a", 11)),
            event("DELETED", &service("b", 12)),
        ])
    })
    .await;
    assert_eq!(words(&mut events, 4).await, ["*a,b", "listed", "+a", "-b"]);
}

#[tokio::test]
async fn a_server_that_rejects_streaming_lists_gets_one_plain_list_from_memory() {
    let mut events = events_of(|query| {
        if is_streaming_list(query) {
            return failure(422, "sendInitialEvents is forbidden for watch");
        }
        if query.contains_key("watch") {
            assert_eq!(query["resourceVersion"], "10");
            return lines(vec![event("ADDED", &service("c", 11))]);
        }
        assert_eq!((&*query["resourceVersion"], &*query["resourceVersionMatch"]), ("0", "NotOlderThan"));
        assert!(!query.contains_key("limit") && !query.contains_key("continue"), "{query:?}");
        list(vec![service("a", 1), service("b", 2)])
    })
    .await;
    assert_eq!(words(&mut events, 3).await, ["*a,b", "listed", "+c"]);
}

#[tokio::test]
async fn after_a_streaming_list_without_an_end_a_plain_list_is_requested() {
    let mut events = events_of(|query| match (is_streaming_list(query), query.contains_key("watch")) {
        (true, _) => lines(vec![event("ADDED", &service("a", 1))]),
        (_, true) => lines(vec![]),
        _ => list(vec![service("a", 1)]),
    })
    .await;
    assert_eq!(words(&mut events, 2).await, ["*a", "listed"]);
}

#[tokio::test]
async fn one_malformed_object_does_not_affect_other_objects() {
    let mut bad = service("bad", 2);
    bad["spec"]["ports"] = json!("many");
    let mut events = events_of(move |_| {
        lines(vec![
            event("ADDED", &service("a", 1)),
            event("ADDED", &bad),
            event("ADDED", &service("c", 3)),
            list_end(),
            event("MODIFIED", &bad),
            event("MODIFIED", &service("a", 12)),
        ])
    })
    .await;
    assert_eq!(words(&mut events, 3).await, ["*a,c", "listed", "+a"]);
}

#[tokio::test]
async fn an_expired_watch_lists_again_and_replaces_all_objects() {
    let n_lists = std::sync::atomic::AtomicUsize::new(0);
    let mut events = events_of(move |query| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
            "reason": "Expired", "message": "too old resource version", "metadata": {}});
        assert!(is_streaming_list(query));
        match n_lists.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => lines(vec![event("ADDED", &service("a", 1)), list_end(), event("ERROR", &status)]),
            _ => lines(vec![event("ADDED", &service("b", 2)), list_end()]),
        }
    })
    .await;
    assert_eq!(words(&mut events, 3).await, ["*a", "listed", "*b"]);
}

#[tokio::test]
async fn a_failed_request_is_retried() {
    let n_requests = std::sync::atomic::AtomicUsize::new(0);
    let mut events =
        events_of(move |_| match n_requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => failure(500, "etcd is down"),
            _ => lines(vec![event("ADDED", &service("a", 1)), list_end()]),
        })
        .await;
    assert_eq!(words(&mut events, 2).await, ["*a", "listed"]);
}

#[tokio::test]
async fn a_list_with_garbage_is_not_complete() {
    let n_requests = std::sync::atomic::AtomicUsize::new(0);
    let mut events =
        events_of(move |_| match n_requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => lines(vec![event("ADDED", &service("a", 1)), json!({"type": "ADDED"}), list_end()]),
            _ => lines(vec![event("ADDED", &service("a", 1)), event("ADDED", &service("b", 2)), list_end()]),
        })
        .await;
    assert_eq!(words(&mut events, 2).await, ["*a,b", "listed"]);
}

#[tokio::test]
async fn after_an_unreadable_change_a_list_shows_it() {
    let n_requests = std::sync::atomic::AtomicUsize::new(0);
    let mut events =
        events_of(move |_| match n_requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => lines(vec![event("ADDED", &service("a", 1)), list_end(), json!(["half", "a", "change"])]),
            _ => lines(vec![event("ADDED", &service("b", 2)), list_end()]),
        })
        .await;
    assert_eq!(words(&mut events, 3).await, ["*a", "listed", "*b"]);
}

#[tokio::test]
async fn after_repeated_cut_off_streaming_lists_a_plain_list_is_requested() {
    let mut events = events_of(|query| match (is_streaming_list(query), query.contains_key("watch")) {
        (true, _) => ScriptedResponse { stays_open: false, ..lines(vec![event("ADDED", &service("a", 1))]) },
        (_, true) => lines(vec![]),
        _ => list(vec![service("a", 1), service("b", 2)]),
    })
    .await;
    assert_eq!(words(&mut events, 2).await, ["*a,b", "listed"]);
}
