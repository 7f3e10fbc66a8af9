//! The simulator answers as a real API server was recorded to: same status, same headers, same shape,
//! and the same texts in rejections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use axum::http::HeaderMap;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::apiserver::{ApiServer, Etcd, Fault};
use crate::raw::{Answer, Request, ask};
use crate::{service, start};

const RECORDED: &str = include_str!("../../testdata/apiserver/simulator/recorded.jsonl");

/// Messages of Go's parsers, and a list of formats: different texts here.
const OTHER_WORDS: [&str; 4] =
    ["list/accept-unknown", "list/continue-garbage", "list/label-selector-bad", "refused/slice-loopback"];

#[tokio::test(flavor = "multi_thread")]
async fn it_responds_as_a_recorded_real_server() {
    let exchanges: Vec<Value> =
        RECORDED.lines().map(|line| serde_json::from_str(line).expect("an exchange a line")).collect();
    let mut by_server: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for exchange in &exchanges {
        by_server.entry(server_of(text(exchange, "name"))).or_default().push(exchange);
    }
    let mut different = Vec::new();
    for (name, exchanges) in by_server {
        let server = prepare(name, &exchanges);
        let checks = exchanges.iter().map(|exchange| check(server.address(), exchange));
        different.extend(join_all(checks).await.into_iter().flatten());
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
}

/// The server that an exchange needs.
fn server_of(name: &str) -> &str {
    match name.split_once('/').expect("a folder and a name") {
        ("errors", name) if name.starts_with("forbidden") => "forbidden",
        ("errors", name) if name.starts_with("too-many") => "too-many",
        ("etcd34" | "etcd36-idle" | "etcd-stopped" | "starting", _) => {
            name.split('/').next().expect("a part")
        }
        _ => "plain",
    }
}

/// A server like the recorded one, with the objects of its lists.
fn prepare(name: &str, exchanges: &[&Value]) -> ApiServer {
    let server = start();
    server.require_token(Some("TOKEN"));
    for list in exchanges.iter().flat_map(|exchange| array(&exchange["documents"])) {
        for item in array(&list["items"]) {
            let mut item = item.clone();
            item["kind"] = text(list, "kind").trim_end_matches("List").into();
            item["apiVersion"] = list["apiVersion"].clone();
            server.put(item);
        }
    }
    if name == "plain" {
        let mut minimal = service("minimal", "10.96.0.100");
        minimal["metadata"]["labels"] = Value::Null;
        server.put(minimal);
        server.put(service("lb-cluster", "10.96.0.101"));
        let mut two = crate::slice("two", "10.244.1.2");
        two["endpoints"] = Value::Null;
        server.put(two);
        server.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"] },
        }));
    }
    // Versions up to 202 were compacted, 233 was in the server's cache, 999999999 is in the future.
    until_version(&server, 210);
    server.compact();
    until_version(&server, 320);
    let at = server.version();
    match name {
        "forbidden" => server.set_fault(Some(Fault::Status(403))),
        "too-many" => server.set_fault(Some(Fault::Status(429))),
        "etcd34" => server.set_etcd(Etcd::V3_4),
        "etcd-stopped" => server.set_fault(Some(Fault::EtcdStopped { at })),
        "starting" => server.set_fault(Some(Fault::Starting { at })),
        _ => {}
    }
    server.set_pace(60);
    server
}

fn until_version(server: &ApiServer, version: u64) {
    while server.version() < version {
        let next = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "turn" },
                           "data": { "n": server.version().to_string() } });
        server.put(next);
    }
}

/// Sends one request and returns how the answer differs from the recorded one.
async fn check(server: SocketAddr, exchange: &Value) -> Option<String> {
    let name = text(exchange, "name");
    let (method, target) = text(exchange, "request").split_once(' ').expect("method and target");
    let body = &exchange["request_body"];
    let headers = exchange["request_headers"].as_object().expect("headers");
    let request = Request {
        method,
        target: &briefly(target),
        headers: headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or(""))).collect(),
        body: if body.is_null() { String::new() } else { body.to_string() },
    };
    let answer = ask(server, &request).await;
    let expected = recorded(&exchange["status"], exchange);
    let found = match &answer {
        None => format!("null\n{}\n", text(exchange, "end")),
        Some(answer) => simulated(answer, exchange),
    };
    (found != expected).then(|| format!("{name}: recorded\n{expected}but the simulator says\n{found}"))
}

/// `target`, with watches that last a few seconds.
fn briefly(target: &str) -> String {
    ["20", "100", "460"].iter().fold(target.to_owned(), |target, seconds| {
        target.replace(&format!("timeoutSeconds={seconds}&"), "timeoutSeconds=2&")
    })
}

/// The compared part of the recorded answer.
fn recorded(status: &Value, exchange: &Value) -> String {
    let headers = exchange["headers"].as_object().expect("headers");
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or("")));
    let end = text(exchange, "end");
    let body = match exchange["text"].as_str() {
        Some(text) => as_text(text),
        None => as_documents(text(exchange, "name"), array(&exchange["documents"])),
    };
    if status.is_null() {
        return format!("null\n{end}\n");
    }
    lines(status.as_str().expect("a status line"), &headers.collect(), &body)
}

fn simulated(answer: &Answer, exchange: &Value) -> String {
    let known = exchange["headers"].as_object().expect("headers");
    // Other headers of the simulator matter only if they change how the body is read.
    let matters = |name: &str| known.contains_key(name) || matches!(name, "content-encoding" | "retry-after");
    let headers: &HeaderMap = &answer.headers;
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or("")));
    let body = match exchange["text"].is_string() {
        true => as_text(&String::from_utf8_lossy(&answer.body)),
        false => {
            let documents = serde_json::Deserializer::from_slice(&answer.body).into_iter();
            let documents: Result<Vec<Value>, _> = documents.collect();
            match documents {
                Ok(documents) => as_documents(text(exchange, "name"), &documents),
                Err(error) => format!("{error}\n"),
            }
        }
    };
    lines(&answer.status, &headers.filter(|(name, _)| matters(name)).collect(), &body)
}

fn lines(status: &str, headers: &BTreeMap<&str, &str>, body: &str) -> String {
    format!("{status}\n{headers:?}\n{body}")
}

/// The first line of a list of checks; the value of JSON that is sent as text.
fn as_text(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(value) => format!("{value}\n"),
        Err(_) => format!("{}\n", text.split("\n[").next().unwrap_or("").trim()),
    }
}

fn as_documents(name: &str, documents: &[Value]) -> String {
    // The number of bookmarks near the end of a watch varies.
    let shapes: BTreeSet<String> = documents.iter().map(|document| shape(document).to_string()).collect();
    let words = documents.iter().map(|document| match document["object"]["message"].is_null() {
        true => &document["message"],
        false => &document["object"]["message"],
    });
    let words: Vec<String> = words
        .filter(|words| words.is_string() && !OTHER_WORDS.contains(&name))
        .map(|words| words.to_string().replace(|letter: char| letter.is_ascii_digit(), ""))
        .collect();
    format!("{}\n{}\n", shapes.into_iter().collect::<Vec<_>>().join("\n"), words.join("\n"))
}

/// The types of a value, with the texts that clients branch on.
fn shape(value: &Value) -> Value {
    const DECIDING: [&str; 8] = [
        "type",
        "kind",
        "apiVersion",
        "status",
        "reason",
        "field",
        "addressType",
        "k8s.io/initial-events-end",
    ];
    match value {
        Value::Object(fields) => {
            // The simulator does not count changes of a spec.
            let fields = fields.iter().filter(|(name, _)| *name != "generation");
            let fields = fields.map(|(name, value)| match value {
                Value::String(text) if DECIDING.contains(&name.as_str()) => {
                    (name.clone(), text.clone().into())
                }
                Value::Number(_) if name == "code" => (name.clone(), value.clone()),
                _ => (name.clone(), shape(value)),
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => {
            let mut shapes: Vec<Value> = items.iter().map(shape).collect();
            shapes.sort_by_key(Value::to_string);
            shapes.dedup();
            shapes.into()
        }
        Value::String(_) => "text".into(),
        Value::Number(_) => 0.into(),
        Value::Bool(_) => true.into(),
        Value::Null => Value::Null,
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
