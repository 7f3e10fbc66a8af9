//! The choice of the answer to a request.

use std::io;
use std::sync::{Arc, PoisonError};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};

use super::Shared;
use super::answer::{Refusal, json_body, text};
use super::change::change;
use super::fault::Fault;
use super::list::list;
use super::request::{Query, Target};
use super::watching::watch;
use super::without_etcd;

/// Largest body that a client may send, as in a real server.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// The answer to a request on a connection with the client certificate `certificate`; an error ends the
/// connection without one.
pub async fn answer(
    shared: Arc<Shared>,
    request: Request<Body>,
    certificate: Option<&[u8]>,
) -> io::Result<Response<Body>> {
    shared.board.asked();
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let target = Target::parse(path);
    let query = Query::parse(head.uri.query().unwrap_or(""));
    let asked =
        Asked { method: &head.method, target: target.as_ref(), query: &query, headers: &head.headers };
    if let Some(refusal) = refuse(&shared, &asked, certificate) {
        return Ok(refusal.response());
    }
    match path {
        "/healthz" | "/livez" | "/readyz" => return Ok(health(&shared, path)),
        "/version" => return Ok(version()),
        _ => {}
    }
    let Some(target) = target else {
        return Ok(match path.starts_with("/api") {
            true => Refusal::new(404, "the server could not find the requested resource")
                .about(serde_json::json!({}))
                .response(),
            false => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        });
    };
    let fault = shared.faults.now();
    if let Some(fault) = fault.on(target.resource.plural).filter(|fault| fault.stuck_at().is_some())
        && let Some(answer) = without_etcd::answer(&shared, fault, &head.method, &target, &query).await
    {
        return answer;
    }
    if head.method == Method::GET {
        return Ok(read(&shared, &target, &query, &head.headers).await);
    }
    Ok(match to_bytes(body, BODY_LIMIT).await {
        Ok(body) => change(&shared, &head.method, &target, &head.headers, &body),
        Err(error) => Refusal::new(413, error.to_string()).response(),
    })
}

/// The parts of a request that [`refuse`] reads.
struct Asked<'a> {
    method: &'a Method,
    target: Option<&'a Target>,
    query: &'a Query,
    headers: &'a HeaderMap,
}

/// The rejection of a request that is not authenticated, not allowed, or asks for another format.
fn refuse(shared: &Shared, asked: &Asked<'_>, certificate: Option<&[u8]>) -> Option<Refusal> {
    let setting = shared.faults.now();
    let plural = asked.target.map_or("", |target| target.resource.plural);
    if let Some(Fault::Status(code)) = setting.on(plural) {
        shared.faults.met();
        return Some(match (code, asked.target) {
            (401, _) => Refusal::new(401, "Unauthorized"),
            (403, Some(target)) => forbidden(asked, target),
            _ => Refusal::new(*code, "the fault in force"),
        });
    }
    let given = asked.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let access = shared.access.lock().unwrap_or_else(PoisonError::into_inner);
    if !access.lets_in(given, certificate) {
        return Some(Refusal::new(401, "Unauthorized"));
    }
    // Metadata only and tables are other formats, which the simulator cannot produce.
    let accept = asked.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let mut media = accept.split(',').map(str::trim);
    let is_json = media.any(|media| {
        let plain = !media.contains(";as=") && !media.contains("; as=");
        plain && (media.starts_with("application/json") || media.starts_with("*/*"))
    });
    let known = "406: Not Acceptable\n\nAvailable representations: application/json, \
                 application/json;stream=watch";
    (!is_json).then(|| Refusal::new(406, known).about(serde_json::json!({})))
}

/// The 403 for a user without a role.
fn forbidden(asked: &Asked<'_>, target: &Target) -> Refusal {
    let verb = match (asked.method.as_str(), &target.name) {
        ("GET", _) if asked.query.claims("watch") => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("DELETE", _) => "delete",
        _ => "patch",
    };
    let resource = target.resource;
    let scope = match &target.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{} is forbidden: User \"nobody\" cannot {verb} resource {:?} in API group {:?} {scope}",
        resource.long_name(),
        resource.plural,
        resource.group()
    );
    let mut details = serde_json::json!({ "kind": resource.plural });
    if !resource.group().is_empty() {
        details["group"] = resource.group().into();
    }
    Refusal::new(403, message).about(details)
}

async fn read(shared: &Arc<Shared>, target: &Target, query: &Query, headers: &HeaderMap) -> Response<Body> {
    if query.claims("watch") {
        return watch(shared, target, query, headers).await;
    }
    if target.name.is_none() {
        return list(shared, target, query, headers).await;
    }
    let store = shared.store();
    let key = target.key();
    match key.as_ref().and_then(|key| store.get(target.resource, key)) {
        Some(object) => json_body(StatusCode::OK, object.bytes().clone()),
        None => Refusal::not_found(target.resource, target.name.as_deref().unwrap_or("")).response(),
    }
}

/// `/livez` fails without etcd, `/readyz` also before the server has reached it.
fn health(shared: &Shared, path: &str) -> Response<Body> {
    let is_ill = match shared.faults.now().fault {
        Some(Fault::EtcdStopped { .. }) => path == "/livez",
        Some(Fault::Starting { .. }) => path == "/readyz",
        _ => false,
    };
    match is_ill {
        true => text(StatusCode::INTERNAL_SERVER_ERROR, "[+]ping ok\n[-]etcd failed: reason withheld\n"),
        false => text(StatusCode::OK, "ok"),
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
