//! Answers over a real Unix socket; what the loop knows is a fixed cluster.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answer;
use super::questions::MAX_WAITING;
use super::*;
use crate::compile;
use crate::config::Config;
use crate::drift::{Knowledge, ReadReason};
use crate::http::other_user::{as_user, unused_name};
use crate::http::recorded::ask;
use crate::http::{Admission, bind_local, serve_local};
use crate::inspect::status::{RestoreReport, StatusReport};
use crate::iptables::write;
use crate::model::decode::{Interner, manifest};
use crate::model::host::Host;
use crate::model::{Inventory, Snapshot};
use crate::net::{IpFamily, UnixAddress};
use crate::policy::Place;
use crate::rules::{Layout, Settings};
use crate::sync::{LoopFamily, LoopView, Observer, ViewRequest};

/// A cluster of `n` Services with an endpoint each.
fn cluster(n: usize) -> Arc<Snapshot> {
    let service = |at: usize| {
        let (high, low) = (at / 200, at % 200 + 1);
        format!(
            "---\nkind: Service\nmetadata: {{name: web-{at}}}\nspec: {{clusterIP: 10.96.{high}.{low}, ports: [{{port: 80}}]}}\n\
             ---\nkind: EndpointSlice\nmetadata: {{name: web-{at}-1, labels: {{kubernetes.io/service-name: web-{at}}}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.1.{high}.{low}]}}]\n"
        )
    };
    let text: String = (0..n).map(service).collect();
    let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
    manifest::read(text.as_bytes(), "test", &mut |object| {
        assert_eq!(inventory.add(&object, &mut interner), []);
    });
    Arc::new(inventory.snapshot_for("node-a"))
}

fn settings() -> Settings {
    Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4)
}

fn view(snapshot: &Arc<Snapshot>, layout: Layout) -> LoopView {
    let family = LoopFamily {
        family: IpFamily::V4,
        settings: Some(settings()),
        layout,
        quarantine: Default::default(),
        knowledge: Knowledge::Suspect { reason: ReadReason::ExternalCommit, resume: None },
    };
    LoopView {
        snapshot: snapshot.clone(),
        node_name: "node-a".into(),
        families: vec![family],
        is_listed: true,
    }
}

/// A router, and the requests to the loop that it stands for.
fn agent() -> (Router, mpsc::Receiver<ViewRequest>) {
    let (views, requests) = mpsc::channel(1);
    let (config, collector) = (Arc::new(Config::default()), Arc::new(StatusCollector::default()));
    collector.started(&[IpFamily::V4]);
    let questions = Questions::new(config.clone(), Arc::new(Host::default), collector.clone(), views, || {});
    let identity = AgentIdentity {
        replaces: "1.36.2".to_owned(),
        node: "node-a".to_owned(),
        started: Instant::now(),
        config,
        freshness: None,
    };
    (router(identity, collector, Arc::new(questions), None), requests)
}

/// Answers every request to the loop with `view`.
fn with_loop(view: LoopView) -> (Router, JoinSet<()>) {
    let (router, mut requests) = agent();
    let mut answering = JoinSet::new();
    answering.spawn(async move {
        while let Some(request) = requests.recv().await {
            let _ = request.send(view.clone());
        }
    });
    (router, answering)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_are_those_of_the_objects_in_the_layout_in_force() {
    let snapshot = cluster(400);
    for layout in [Layout::Classic { is_large: false }, Layout::Compact] {
        let (address, _tasks) = served_with(view(&snapshot, layout));
        let rules = async |query: &str| {
            let (address, path) = (address.clone(), format!("/v1/rules{query}"));
            let read = move || {
                let mut text = Vec::new();
                let mut each = |piece: &[u8]| {
                    text.extend_from_slice(piece);
                    Ok(())
                };
                client::read(&address, &path, &mut each).unwrap();
                String::from_utf8(text).unwrap()
            };
            tokio::task::spawn_blocking(read).await.unwrap()
        };
        let choice = match layout {
            Layout::Compact => crate::config::LayoutChoice::Compact,
            Layout::Classic { .. } => crate::config::LayoutChoice::Classic,
        };
        let settings = Settings { layout: choice, ..settings() };
        let mut ruleset = compile::ruleset(&settings, &snapshot, Place { node: "node-a", zone: None });
        let all = rules("?family=ipv4").await;
        assert!(all == write::save(IpFamily::V4, &ruleset), "{layout:?}");
        assert!(all.len() > 64 << 10, "several pieces: {}", all.len());
        ruleset.tables.retain(|table, _| table.as_str() == "filter");
        assert_eq!(rules("?table=filter").await, write::save(IpFamily::V4, &ruleset));
        assert_eq!(rules("?family=ipv6").await, "", "not proxied");
    }
}

#[tokio::test]
async fn a_quarantined_service_port_has_no_rules() {
    let mut view = view(&cluster(2), Layout::Classic { is_large: false });
    let port = view.snapshot.services().next().unwrap().name.clone();
    let name =
        crate::model::ServicePortName { service: port, port: "".into(), protocol: crate::net::Protocol::Tcp };
    let rejection = crate::apply::Rejection {
        line: 1,
        text: None,
        message: "no".to_owned(),
        chain: None,
        service_port: None,
    };
    view.families[0].quarantine.insert(name, rejection);
    let (router, _loop) = with_loop(view);
    let body = ask(&router, "GET /v1/rules").await.body;
    assert!(body.contains("default/web-1") && !body.contains("default/web-0"), "{body}");
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let (router, _loop) = with_loop(view(&cluster(1), Layout::Compact));
    for (request, status, message) in [
        ("GET /v2/status", 404, "this agent does not answer that; it may be of another release"),
        ("POST /v1/status", 405, "POST is not served on this path"),
        ("GET /v1/rules?family=ipv5", 400, r#"family="ipv5": must be ipv4 or ipv6"#),
        ("GET /v1/rules?table=raw", 400, r#"table="raw": must be one of mangle, filter and nat"#),
        ("GET /v1/restore?which=best", 400, r#"which="best": must be last or failed"#),
    ] {
        let answer = ask(&router, request).await;
        let error: answer::ErrorAnswer =
            crate::inspect::envelope::from_json("Error", answer.body.as_bytes()).unwrap();
        assert_eq!((answer.status, error.message.as_str()), (status, message), "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_does_not_answer_leaves_the_status_without_drift_and_refuses_questions() {
    let (router, _requests) = agent();
    let (started, status) = (Instant::now(), ask(&router, "GET /v1/status").await);
    let report: StatusReport =
        crate::inspect::envelope::from_json("StatusReport", status.body.as_bytes()).unwrap();
    assert_eq!((report.node.as_str(), report.families.len()), ("node-a", 1));
    assert_eq!((&report.families[0].drift, started.elapsed().as_secs()), (&None, 1));
    let rules = ask(&router, "GET /v1/rules").await;
    assert_eq!((rules.status, started.elapsed().as_secs()), (503, 11));
    assert!(rules.body.contains("does not say what it knows within 10 s"), "{}", rules.body);
}

#[tokio::test]
async fn before_the_first_lists_there_are_no_rules() {
    let unlisted = LoopView { is_listed: false, ..view(&cluster(1), Layout::Compact) };
    let (router, _loop) = with_loop(unlisted);
    let rules = ask(&router, "GET /v1/rules").await;
    assert!(rules.status == 503 && rules.body.contains("waits for the first list"), "{}", rules.body);
}

#[tokio::test(start_paused = true)]
async fn of_many_questions_a_few_wait_their_turn_and_the_others_are_refused() {
    let (router, mut requests) = agent();
    let mut asked = JoinSet::new();
    for _ in 0..1 + MAX_WAITING + 5 {
        let router = router.clone();
        asked.spawn(async move { ask(&router, "GET /v1/rules?table=filter").await });
    }
    for _ in 0..5 {
        let refused = asked.join_next().await.unwrap().unwrap();
        assert_eq!(refused.status, 503);
        assert!(refused.body.contains("8 other questions wait for an answer"), "{}", refused.body);
    }
    // The status is not a question that waits.
    assert_eq!(ask(&router, "GET /v1/restore").await.status, 200);
    let known = view(&cluster(1), Layout::Compact);
    for _ in 0..1 + MAX_WAITING {
        requests.recv().await.unwrap().send(known.clone()).unwrap();
        assert_eq!(asked.join_next().await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_client_that_leaves_amid_the_rules_gives_its_turn_back() {
    let (router, _loop) = with_loop(view(&cluster(3_000), Layout::Classic { is_large: true }));
    for _ in 0..1 + MAX_WAITING + 3 {
        let (mut client, server) = tokio::io::duplex(1_000);
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let serving = tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(server);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        client.write_all(b"GET /v1/rules HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        client.read_exact(&mut [0; 2_000]).await.unwrap();
        drop(client);
        serving.await.unwrap();
    }
    assert_eq!(ask(&router, "GET /v1/rules?table=filter").await.status, 200);
}

#[tokio::test]
async fn a_question_is_bounded_and_says_what_is_wrong_with_it() {
    #[derive(Debug, serde::Deserialize)]
    struct Question {
        #[serde(default)]
        to: String,
    }
    let read = async |text: String| answer::question::<Question>(text.into()).await;
    assert_eq!(read(String::new()).await.unwrap().to, "");
    assert_eq!(read(r#"{"to": "a", "other": 1}"#.to_owned()).await.unwrap().to, "a");
    let status = async |text: String| read(text).await.unwrap_err().status();
    assert_eq!(status("{".to_owned()).await, StatusCode::BAD_REQUEST);
    let fits = format!(r#"{{"to": "{}"}}"#, "x".repeat(answer::MAX_QUESTION - 10));
    assert_eq!(fits.len(), answer::MAX_QUESTION);
    assert!(read(fits.clone()).await.is_ok());
    assert_eq!(status(fits + " ").await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[test]
fn an_answer_that_is_too_large_is_an_error() {
    let of = |n: usize| answer::report("X", &serde_json::json!({"text": "x".repeat(n)})).status();
    assert_eq!(of(answer::MAX_ANSWER - 1_000), StatusCode::OK);
    assert_eq!(of(answer::MAX_ANSWER), StatusCode::INTERNAL_SERVER_ERROR);
}

/// A served agent of a small cluster at a name of its own.
fn served() -> (UnixAddress, JoinSet<()>) {
    served_with(view(&cluster(3), Layout::Compact))
}

/// A served agent at a name of its own whose loop knows this.
fn served_with(view: LoopView) -> (UnixAddress, JoinSet<()>) {
    let (router, answering) = with_loop(view);
    let address = UnixAddress::Abstract(unused_name());
    let admission = Arc::new(Admission::new(4096, Box::new(|_| {})));
    let listener = bind_local(&admission, &address).unwrap();
    let mut tasks = answering;
    tasks.spawn(serve_local(admission, listener, router));
    (address, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_reads_reports_and_rules() {
    let (address, _tasks) = served();
    let asked = std::thread::spawn(move || {
        let status: StatusReport = client::get(&address, "StatusReport", "/v1/status").unwrap();
        let drift = status.families[0].drift.clone().unwrap();
        assert_eq!((&*drift.state, drift.reason.as_deref()), ("suspect", Some("external_commit")));
        let restore: RestoreReport =
            client::get(&address, "RestoreReport", "/v1/restore?which=last").unwrap();
        assert_eq!(restore.inputs, []);
        let mut rules = Vec::new();
        client::read(&address, "/v1/rules?table=nat", &mut |piece| {
            rules.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        assert!(String::from_utf8(rules).unwrap().contains("default/web-2"));
        let error = client::get::<StatusReport>(&address, "StatusReport", "/v9/status").unwrap_err();
        assert_eq!(error.to_string(), "this agent does not answer that; it may be of another release");
        let wrong = client::get::<StatusReport>(&address, "StatusReport", "/v1/restore").unwrap_err();
        assert!(format!("{wrong:#}").ends_with("it is a RestoreReport, not a StatusReport"), "{wrong:#}");
    });
    tokio::task::spawn_blocking(|| asked.join().unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_told_that_the_agent_answers_root_alone() {
    let (address, _tasks) = served();
    let asked = std::thread::spawn(move || {
        as_user(1000, || client::get::<StatusReport>(&address, "StatusReport", "/v1/status").unwrap_err())
    });
    let error = tokio::task::spawn_blocking(|| asked.join().unwrap()).await.unwrap();
    assert_eq!(error.to_string(), "the agent's socket answers root alone; run this as root");
}

#[test]
fn a_process_of_another_user_that_took_the_name_is_not_believed() {
    let name = unused_name();
    let squatter =
        as_user(1000, || UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap());
    let address = UnixAddress::Abstract(name);
    let error = client::get::<StatusReport>(&address, "StatusReport", "/v1/status").unwrap_err();
    let expected = format!(
        "the process that listens on {address} is no agent: it runs as user 1000, and an agent runs as root"
    );
    assert_eq!(error.to_string(), expected);
    drop(squatter);
}

#[test]
fn without_an_agent_the_error_says_where_to_ask() {
    let address = UnixAddress::Abstract(unused_name());
    assert!(!client::is_listening(&address));
    let error = client::get::<StatusReport>(&address, "StatusReport", "/v1/status").unwrap_err();
    let expected = format!("no agent answers on {address}: run this on the node");
    assert!(error.to_string().starts_with(&expected), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = UnixAddress::Path(folder.path().join("none.sock"));
    let error = client::get::<StatusReport>(&path, "StatusReport", "/v1/status").unwrap_err();
    assert!(error.to_string().starts_with("no agent answers on /"), "{error}");
}
