//! The server's thread: its own network namespace and runtime, and which answer a request gets.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, mpsc};

use anyhow::Context;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::Shared;
use super::answer::{failure, json_body, not_found, text};
use super::change::change;
use super::fault::Fault;
use super::line::{Lines, Wire};
use super::list::list;
use super::request::{Query, Target};
use super::watching::watch;

/// Largest body that a client may send, as in a real server.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Serves until `stopped`; `ready` hears once where, or why not.
///
/// Must have its thread to itself: the thread stays in the namespace behind `netns`.
pub fn run(
    shared: Arc<Shared>,
    listen: SocketAddr,
    netns: Option<OwnedFd>,
    ready: &mpsc::Sender<anyhow::Result<SocketAddr>>,
    stopped: oneshot::Receiver<()>,
) {
    let (runtime, lines, address) = match bind(&shared, listen, netns) {
        Ok(bound) => bound,
        Err(error) => {
            // Whoever started us has gone if this fails.
            let _ = ready.send(Err(error));
            return;
        }
    };
    let router = Router::new().fallback(answer).with_state(shared);
    let _ = ready.send(Ok(address));
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            _ = axum::serve(lines, router) => {}
        }
    });
    // Dropping the runtime ends all connections.
}

fn bind(
    shared: &Arc<Shared>,
    listen: SocketAddr,
    netns: Option<OwnedFd>,
) -> anyhow::Result<(tokio::runtime::Runtime, Lines, SocketAddr)> {
    if let Some(netns) = netns {
        setns(netns, CloneFlags::CLONE_NEWNET).context("entering the network namespace of the API server")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime of the API server")?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind(listen));
    let listener = listener.with_context(|| format!("listening on {listen}"))?;
    let address = listener.local_addr().context("asking for the address of the API server")?;
    let wire = Wire { faults: Arc::clone(&shared.faults), board: Arc::clone(&shared.board) };
    Ok((runtime, Lines::new(listener, wire), address))
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    if let Some(refusal) = refuse(&shared, &head.headers, head.uri.path()) {
        return refusal;
    }
    match head.uri.path() {
        "/healthz" | "/livez" | "/readyz" => return text("ok"),
        "/version" => return version(),
        _ => {}
    }
    let Some(target) = Target::parse(head.uri.path()) else {
        return failure(404, "the server could not find the requested resource");
    };
    let query = Query::parse(head.uri.query().unwrap_or(""));
    if head.method == Method::GET {
        return read(&shared, &target, &query, &head.headers);
    }
    match to_bytes(body, BODY_LIMIT).await {
        Ok(body) => change(&shared, &head.method, &target, &head.headers, &body),
        Err(error) => failure(413, &error.to_string()),
    }
}

/// The answer to a client that may not ask, or asks in a form that is not served.
fn refuse(shared: &Shared, headers: &HeaderMap, path: &str) -> Option<Response<Body>> {
    let setting = shared.faults.now();
    let target = Target::parse(path);
    let plural = target.as_ref().map_or("", |target| target.resource.plural);
    if let Some(Fault::Status(code)) = setting.on(plural) {
        shared.faults.met();
        return Some(failure(*code, "the fault in force"));
    }
    let token = shared.token.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(token) = &*token {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if given.and_then(|value| value.strip_prefix("Bearer ")) != Some(token) {
            return Some(failure(401, "Unauthorized"));
        }
    }
    // Metadata only and tables are other documents: better none than a wrong one.
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let mut media = accept.split(',').map(str::trim);
    let is_json = media.any(|media| {
        let plain = !media.contains(";as=") && !media.contains("; as=");
        plain && (media.starts_with("application/json") || media.starts_with("*/*"))
    });
    (!is_json).then(|| failure(406, "only application/json is served"))
}

fn read(shared: &Arc<Shared>, target: &Target, query: &Query, headers: &HeaderMap) -> Response<Body> {
    if query.claims("watch") {
        return watch(shared, target, query);
    }
    if target.name.is_none() {
        return list(shared, target, query, headers);
    }
    let store = shared.store();
    let key = target.key();
    match key.as_ref().and_then(|key| store.get(target.resource, key)) {
        Some(object) => json_body(StatusCode::OK, object.bytes().clone()),
        None => failure(404, &not_found(target.resource, target.name.as_deref().unwrap_or(""))),
    }
}

fn version() -> Response<Body> {
    let version = serde_json::json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "0000000",
        "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "none", "platform": "linux/amd64",
    });
    json_body(StatusCode::OK, version.to_string())
}
