//! The content of events, and which are sent.
#![allow(clippy::disallowed_methods, reason = "measures how long recording takes")]

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{Request, Response};
use kube::Client;
use prometheus::Registry;
use serde_json::Value;

use super::*;
use crate::apply::{Rejection, SyncReport};
use crate::compile::SyncScope;
use crate::drift::Drift;
use crate::iptables::{ChainName, Table};
use crate::kernel::Backend;
use crate::metrics::exposition;
use crate::model::{ObjectName, ServicePortName};
use crate::net::{IpFamily, Protocol};

fn metrics() -> (Arc<Metrics>, Registry) {
    let registry = Registry::new();
    (Arc::new(Metrics::register(&registry).unwrap()), registry)
}

/// A status with which the server below answers a body that is not an event.
const JUNK: u16 = 202;

/// An API server that passes on method, path and body of each request. `answer` maps the number of a request to the
/// status of its answer; `None` for a connection that fails.
fn server(answer: fn(usize) -> Option<u16>) -> (Client, mpsc::UnboundedReceiver<(String, Value)>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let n_requests = Arc::new(AtomicUsize::new(0));
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (sender, n) = (sender.clone(), n_requests.fetch_add(1, Ordering::Relaxed));
        async move {
            let line = format!("{} {}", request.method(), request.uri().path());
            let bytes = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            sender.send((line, body.clone())).unwrap();
            let Some(status) = answer(n) else {
                return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
            };
            let text = match status {
                JUNK => "<html>".to_owned(),
                200 | 201 => body.to_string(),
                _ => format!(
                    r#"{{"kind":"Status","status":"Failure","message":"no","reason":"Forbidden","code":{status}}}"#
                ),
            };
            Ok(Response::builder().status(status).body(Body::from(text)).unwrap())
        }
    });
    (Client::new(service, "default"), receiver)
}

const HOST: &str = "api.test:443";

fn start(client: Option<Client>, metrics: &Arc<Metrics>) -> (Events, JoinSet<anyhow::Result<()>>) {
    let mut tasks = JoinSet::new();
    let target = client.map(|client| EventTarget { client, host: HOST.to_owned() });
    (Events::start(target, "node-1", "machine", metrics, &mut tasks), tasks)
}

fn notice(regarding: Regarding, note: &str) -> Notice {
    Notice { regarding, is_warning: true, reason: "Reason", action: "Act", note: note.to_owned() }
}

fn service(text: &str) -> Regarding {
    Regarding::Service(ObjectName::new("ns", text))
}

#[tokio::test]
async fn events_have_kube_proxys_form_and_repetitions_make_a_series() {
    let (client, mut requests) = server(|_| Some(201));
    let (metrics, _) = metrics();
    let (events, _tasks) = start(Some(client), &metrics);
    events.record(notice(Regarding::Node, ""));
    let (line, body) = requests.recv().await.unwrap();
    assert_eq!(line, "POST /apis/events.k8s.io/v1/namespaces/default/events");
    let text = |path: &str| body.pointer(path).and_then(Value::as_str).unwrap_or("absent");
    for (path, expected) in [
        ("/type", "Warning"),
        ("/reason", "Reason"),
        ("/action", "Act"),
        ("/note", "absent"),
        ("/reportingController", "kube-proxy"),
        ("/reportingInstance", "kube-proxy-machine"),
        ("/regarding/apiVersion", "v1"),
        ("/regarding/kind", "Node"),
        ("/regarding/name", "node-1"),
        ("/regarding/uid", "absent"),
        ("/regarding/namespace", "absent"),
    ] {
        assert_eq!(text(path), expected, "{path}");
    }
    let name = text("/metadata/name").to_owned();
    let (regarding, hex) = name.split_once('.').unwrap();
    assert!(regarding == "node-1" && u128::from_str_radix(hex, 16).is_ok(), "{name}");

    events.record(notice(service("web"), "broken"));
    let (line, body) = requests.recv().await.unwrap();
    assert_eq!(line, "POST /apis/events.k8s.io/v1/namespaces/ns/events");
    assert_eq!(
        (&body["note"], &body["regarding"]["namespace"]),
        (&Value::from("broken"), &Value::from("ns"))
    );

    events.record(notice(Regarding::Node, ""));
    let (line, body) = requests.recv().await.unwrap();
    assert_eq!(line, format!("PATCH /apis/events.k8s.io/v1/namespaces/default/events/{name}"));
    assert_eq!(body["series"]["count"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_does_not_arrive_is_retried_and_a_rejected_one_is_not() {
    let (client, mut requests) = server(|n| [None, None, Some(201), Some(403), Some(201)][n]);
    let (metrics, registry) = metrics();
    let (events, _tasks) = start(Some(client), &metrics);
    for text in ["a", "b", "c"] {
        events.record(notice(service(text), ""));
    }
    let mut names = Vec::new();
    for _ in 0..5 {
        let (_, body) = requests.recv().await.unwrap();
        names.push(body["regarding"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names, ["a", "a", "a", "b", "c"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = exposition(&registry).unwrap();
    assert!(text.contains("chainsmith_events_sent_total{type=\"Warning\"} 2\n"), "{text}");
    assert!(text.contains("chainsmith_events_lost_total{reason=\"not_sent\"} 1\n"), "{text}");
}

/// The samples of the counter of retried requests.
fn retries(registry: &Registry) -> Vec<String> {
    let text = exposition(registry).unwrap();
    let is_ours = |line: &&str| line.starts_with("rest_client_request_retries_total");
    text.lines().filter(is_ours).map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_counted_by_the_answer_before_it() {
    // A new event: no answer, an answer that is not an event, accepted. Its series: no answer, accepted. Another event:
    // rejected, so not retried. One more: accepted.
    let answers =
        |n| [None, Some(JUNK), Some(201), None, Some(200), Some(403), Some(201)].get(n).copied().flatten();
    let (client, mut requests) = server(answers);
    let (metrics, registry) = metrics();
    let (events, _tasks) = start(Some(client), &metrics);
    for text in ["a", "a", "b", "c"] {
        events.record(notice(service(text), ""));
    }
    let mut methods = Vec::new();
    for _ in 0..7 {
        let (line, _) = requests.recv().await.unwrap();
        methods.push(line.split(' ').next().unwrap().to_owned());
    }
    assert_eq!(methods, ["POST", "POST", "POST", "PATCH", "PATCH", "POST", "POST"]);
    let of = |code: &str, verb: &str| {
        format!("rest_client_request_retries_total{{code=\"{code}\",host=\"{HOST}\",verb=\"{verb}\"}} 1")
    };
    assert_eq!(retries(&registry), [of("202", "POST"), of("<error>", "PATCH"), of("<error>", "POST")]);
}

/// The sender stops waiting before the server answers.
#[tokio::test(start_paused = true)]
async fn a_request_that_timed_out_counts_as_unanswered() {
    let (sender, mut requests) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |_: Request<kube::client::Body>| {
        sender.send(()).unwrap();
        std::future::pending::<Result<Response<Body>, std::io::Error>>()
    });
    let (metrics, registry) = metrics();
    let (events, _tasks) = start(Some(Client::new(service, "default")), &metrics);
    events.record(notice(Regarding::Node, ""));
    for _ in 0..3 {
        requests.recv().await.unwrap();
    }
    let expected =
        format!("rest_client_request_retries_total{{code=\"<error>\",host=\"{HOST}\",verb=\"POST\"}} 2");
    assert_eq!(retries(&registry), [expected]);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_never_answers_costs_each_event_its_attempts() {
    let (client, mut requests) = server(|_| None);
    let (metrics, registry) = metrics();
    let (events, _tasks) = start(Some(client), &metrics);
    events.record(notice(Regarding::Node, ""));
    tokio::time::sleep(RETRY * (ATTEMPTS as u32 + 1)).await;
    let mut n_requests = 0;
    while requests.try_recv().is_ok() {
        n_requests += 1;
    }
    assert_eq!(n_requests, ATTEMPTS);
    assert!(exposition(&registry).unwrap().contains("chainsmith_events_lost_total{reason=\"not_sent\"} 1\n"));
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_events_do_not_wait_and_are_bounded() {
    let (client, _requests) = server(|_| None);
    let (metrics, registry) = metrics();
    let (events, _tasks) = start(Some(client), &metrics);
    let started = std::time::Instant::now();
    for n in 0..10_000 {
        events.record(notice(service(&format!("s{}", n % 500)), "x"));
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let queued = events.queue.as_ref().map(|queue| QUEUE - queue.capacity());
    assert_eq!(queued, Some(QUEUE), "no task ran meanwhile");
    let text = exposition(&registry).unwrap();
    assert!(
        text.contains(&format!("chainsmith_events_lost_total{{reason=\"queue_full\"}} {}\n", 10_000 - QUEUE)),
        "{text}"
    );
    for _ in 0..1000 {
        events.record(notice(Regarding::Node, "x"));
    }
    let text = exposition(&registry).unwrap();
    assert!(
        text.contains(&format!("chainsmith_events_lost_total{{reason=\"rate_limited\"}} {}\n", 1000 - 25)),
        "{text}"
    );
}

#[tokio::test]
async fn without_an_api_server_no_event_is_sent_or_counted_as_lost() {
    let (metrics, registry) = metrics();
    let (events, tasks) = start(None, &metrics);
    events.record(notice(Regarding::Node, ""));
    assert!(tasks.is_empty() && !exposition(&registry).unwrap().contains("chainsmith_events"));
}

#[test]
fn events_name_the_quarantined_service_port_and_the_changed_chains() {
    let mut report = SyncReport::new(IpFamily::V4, Backend::Nft, SyncScope::Full);
    assert_eq!(notices(&report), []);
    let port = ServicePortName {
        service: ObjectName::new("ns", "web"),
        port: "http".into(),
        protocol: Protocol::Tcp,
    };
    let rejection = Rejection {
        line: 7,
        text: Some("-A KUBE-SVC-X -j NOWHERE".to_owned()),
        message: "no such target".to_owned(),
        chain: None,
        service_port: Some(port.clone()),
    };
    report.quarantined.push((port, rejection));
    report.drift = Drift { chains: vec![(Table::Nat, ChainName::literal("KUBE-SERVICES"))], n_jumps: 1 };
    let recorded: Vec<(Regarding, &str, String)> =
        notices(&report).into_iter().map(|notice| (notice.regarding, notice.reason, notice.note)).collect();
    let rejected = "IPv4 rules of service port ns/web:http (TCP) rejected, service port quarantined: \
                    no such target; rejected: -A KUBE-SVC-X -j NOWHERE";
    let drifted = "another process changed IPv4 rules of the proxy, repaired: nat KUBE-SERVICES; \
                   1 jumps from built-in chains";
    assert_eq!(
        recorded,
        [
            (service("web"), "ServicePortQuarantined", rejected.to_owned()),
            (Regarding::Node, "RulesChangedByOthers", drifted.to_owned()),
        ]
    );
}

#[test]
fn notes_are_cut_to_the_limit_of_the_api() {
    assert_eq!(printable("short"), "short");
    assert_eq!(printable(&"ä".repeat(1000)).len(), 1024);
    assert_eq!(printable(&format!("a{}", "ä".repeat(1000))).len(), 1023);
    let escaped = printable(&"\u{1b}".repeat(1000));
    assert!(escaped.len() <= 1024 && escaped.ends_with("\\u{1b}"), "no escape is cut in two: {escaped}");
}

#[test]
fn text_of_an_object_in_a_note_is_escaped_for_terminals() {
    let note = "refused: --comment \"a\nW1124 forged\r\u{1b}[2J\u{9b}31m\u{202e}\"";
    let expected = "refused: --comment \"a\\nW1124 forged\\r\\u{1b}[2J\\u{9b}31m\\u{202e}\"";
    assert_eq!(printable(note), expected);
}

#[tokio::test]
async fn node_problems_are_events_of_the_node() {
    let (client, mut requests) = server(|_| Some(201));
    let (metrics, _) = metrics();
    let (events, _tasks) = start(Some(client), &metrics);
    let (key, error) = ("k".to_owned(), "read-only".to_owned());
    events.noticed(&Finding::ParameterUnset { key, value: 1, error });
    events.noticed(&Finding::Rival("process 7 (kube-proxy)".to_owned()));
    let (_, body) = requests.recv().await.unwrap();
    assert_eq!(body["regarding"]["kind"], "Node");
    assert_eq!((&body["type"], &body["reason"]), (&"Warning".into(), &"SecondProxy".into()));
    assert!(body["note"].as_str().unwrap().contains("process 7 (kube-proxy)"), "{body}");
    events.noticed(&Finding::LeftoverRemoved("IPv4 nftables table kube-proxy".to_owned()));
    let (_, body) = requests.recv().await.unwrap();
    assert_eq!((&body["type"], &body["reason"]), (&"Normal".into(), &"LeftoverRemoved".into()));
}

#[test]
fn the_documentation_explains_every_node_problem() {
    let page = include_str!("../../docs/observability.md");
    let text = String::new;
    for finding in [
        Finding::LeftoverRemoved(text()),
        Finding::LeftoverStays { what: text(), advice: text() },
        Finding::Rival(text()),
        Finding::ParameterUnset { key: text(), value: 0, error: text() },
        Finding::FamilyNotProxied { family: crate::net::IpFamily::V6, error: text() },
        Finding::NoLocalhostNodePorts,
    ] {
        assert!(page.contains(&format!("`{}`", finding.as_str())), "{finding:?}");
    }
}
