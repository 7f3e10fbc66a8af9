//! LIST: one page of the objects of a kind at one version.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Shared;
use super::answer::{Cause, Refusal, json_body, large_body};
use super::fault::Fault;
use super::object::{Key, Object};
use super::request::{Query, Target};
use super::resource::Resource;
use super::selector::Selector;
use super::store::{Objects, Store};

/// The state that a list shows, and the begin of its page.
struct Page {
    objects: Arc<Objects>,
    version: u64,
    after: Option<Key>,
    limit: usize,
}

/// How long a request waits for a version that the server does not have yet.
pub const VERSION_LIMIT: Duration = Duration::from_secs(3);

/// Answers a LIST request.
pub async fn list(shared: &Shared, target: &Target, query: &Query, headers: &HeaderMap) -> Response<Body> {
    let plural = target.resource.plural;
    let is_first = query.text("continue").is_empty();
    let is_paged = !query.text("limit").is_empty() && query.text("resourceVersion") != "0";
    shared.board.count(plural, |counts| {
        counts.lists += u64::from(is_first);
        counts.pages += 1;
        counts.pages_from_etcd += u64::from(!is_first || is_paged);
    });
    let answer = answer(shared, target, query, headers).await;
    answer.unwrap_or_else(|refusal| {
        shared.board.count(plural, |counts| counts.gone += u64::from(refusal.code == 410));
        refusal.response()
    })
}

async fn answer(
    shared: &Shared,
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Refusal> {
    check_options(query)?;
    let fault = shared.faults.now();
    let fault = fault.on(target.resource.plural);
    let selector = selector(target, query)?;
    if matches!(fault, Some(Fault::Garbage(_) | Fault::HalfObject | Fault::StaleList { .. })) {
        shared.faults.met();
    }
    if let Some(asked) = version(query, 400, "invalid resource version: ")? {
        wait_for_version(shared, asked, fault).await?;
    }
    let page = {
        let store = shared.store();
        page(&store, target.resource, query, fault)?
    };
    let mut body = write(target.resource, &selector, &page);
    shared.board.count(target.resource.plural, |counts| counts.bytes += body.len() as u64);
    match fault {
        Some(Fault::Garbage(bytes)) => Ok(json_body(StatusCode::OK, bytes.clone())),
        Some(Fault::HalfObject) => {
            body.truncate(body.len() / 2);
            Ok(large_body(headers, body))
        }
        _ => Ok(large_body(headers, body)),
    }
}

/// Rejects what a real server rejects whatever it holds.
fn check_options(query: &Query) -> Result<(), Refusal> {
    let refuse = |field: &str, why: &str| Err(Refusal::invalid_options(&[Cause::forbidden(field, why)]));
    if query.claims("sendInitialEvents") {
        return refuse("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    let has_version = !query.text("resourceVersion").is_empty();
    if !query.text("continue").is_empty() && has_version {
        let message = "specifying resource version is not allowed when using continue";
        return Err(Refusal::new(400, message));
    }
    if !query.text("resourceVersionMatch").is_empty() && !has_version {
        let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
        return refuse("resourceVersionMatch", why);
    }
    Ok(())
}

/// The requested version; a list and a watch reject text with different messages.
pub fn version(query: &Query, code: u16, words: &str) -> Result<Option<u64>, Refusal> {
    query.number::<u64>("resourceVersion").map_err(|text| {
        let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        Refusal::new(code, format!("{words}resourceVersion: Invalid value: {text:?}: {why}"))
    })
}

/// Waits for a version as a real server does, until it is there or for too long.
pub async fn wait_for_version(shared: &Shared, asked: u64, fault: Option<&Fault>) -> Result<(), Refusal> {
    let newest = || shared.store().version().min(fault.and_then(Fault::stuck_at).unwrap_or(u64::MAX));
    let mut pulses = shared.pulse.subscribe();
    let known = pulses.wait_for(|_| newest() >= asked);
    match timeout(shared.paced(VERSION_LIMIT), known).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Refusal::too_large(asked, newest())),
    }
}

/// The selector of a list or watch request.
pub fn selector(target: &Target, query: &Query) -> Result<Selector, Refusal> {
    let (labels, fields) = (query.text("labelSelector"), query.text("fieldSelector"));
    let selector = Selector::parse(target.resource, target.namespace.as_deref(), labels, fields);
    let mut selector = selector.map_err(|message| Refusal::new(400, message))?;
    if let Some(name) = &target.name {
        selector.require_name(name);
    }
    Ok(selector)
}

fn page(
    store: &Store,
    resource: &'static Resource,
    query: &Query,
    fault: Option<&Fault>,
) -> Result<Page, Refusal> {
    let bad = |text| Refusal::new(400, format!("invalid limit: {text:?}"));
    let limit = query.number::<usize>("limit").map_err(bad)?.filter(|limit| *limit > 0);
    let asked = query.number::<u64>("resourceVersion").unwrap_or_default();
    let is_gone = fault == Some(&Fault::Gone);
    if !query.text("continue").is_empty() {
        return continued(store, resource, query.text("continue"), limit, is_gone);
    }
    let behind = match fault {
        Some(Fault::StaleList { at }) if asked == Some(0) => Some(*at),
        other => other.and_then(Fault::stuck_at),
    };
    if let Some(at) = behind {
        let (objects, version) = stale(store, resource, at);
        let limit = limit.unwrap_or(usize::MAX);
        return Ok(Page { objects, version, after: None, limit });
    }
    let newest = store.version();
    let exact = match query.text("resourceVersionMatch") {
        "Exact" => true,
        // Without a match a limit makes it exact, except for version 0.
        "" => limit.is_some(),
        _ => false,
    };
    // From its cache ("any version") a real server returns everything, whatever the limit.
    let limit = limit.filter(|_| asked != Some(0)).unwrap_or(usize::MAX);
    let version = match asked {
        Some(asked) if exact && asked > 0 => asked,
        _ => newest,
    };
    let too_old = || Refusal::new(410, "The resourceVersion for the provided list is too old.");
    let objects = store.state_at(resource, version).map_err(|_| too_old())?;
    if is_gone && version < newest {
        return Err(too_old());
    }
    Ok(Page { objects, version, after: None, limit })
}

fn continued(
    store: &Store,
    resource: &Resource,
    token: &str,
    limit: Option<usize>,
    is_gone: bool,
) -> Result<Page, Refusal> {
    let limit = limit.unwrap_or(usize::MAX);
    let garbage = || Refusal::new(400, "invalid continue token: continue key is not valid");
    let (version, after) = read_token(token).ok_or_else(garbage)?;
    // A token without a version continues with the current state.
    let Some(version) = version else {
        return Ok(Page {
            objects: store.state(resource),
            version: store.version(),
            after: Some(after),
            limit,
        });
    };
    match store.state_at(resource, version) {
        Ok(objects) if !is_gone => Ok(Page { objects, version, after: Some(after), limit }),
        _ => Err(Refusal::new(410, EXPIRED).go_on_by(write_token(None, &after))),
    }
}

const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can \
    start a new list without the continue parameter, or use the continue token in this response to retrieve the \
    remainder of the results. Continuing with the provided token results in an inconsistent list - objects that \
    were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// The state at `at`, or the oldest known one.
pub fn stale(store: &Store, resource: &Resource, at: u64) -> (Arc<Objects>, u64) {
    match store.state_at(resource, at) {
        Ok(objects) => (objects, at.min(store.version())),
        Err(gone) => (store.state_at(resource, gone.floor).unwrap_or_default(), gone.floor),
    }
}

fn write(resource: &Resource, selector: &Selector, page: &Page) -> Vec<u8> {
    let (found, last) = collect(selector, page);
    let mut metadata = json!({ "resourceVersion": page.version.to_string() });
    if let Some(last) = last {
        let n_left = rest(selector, page, Some(&last.key)).count();
        metadata["continue"] = write_token(Some(page.version), &last.key).into();
        // With a selector the number is unknown without reading all of them.
        if !selector.has_terms() {
            metadata["remainingItemCount"] = n_left.into();
        }
    }
    let head = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        resource.kind, resource.api_version
    );
    let n_bytes: usize = found.iter().map(|object| object.list_item().len() + 2).sum();
    let mut body = Vec::with_capacity(head.len() + n_bytes + 2);
    body.extend_from_slice(head.as_bytes());
    for (index, object) in found.iter().enumerate() {
        body.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        body.extend_from_slice(object.list_item());
    }
    body.extend_from_slice(b"]}");
    body
}

/// The matching objects of a page, and the last object examined if others follow. A last page
/// can be empty, as on a real server, which does not check whether the following objects match.
fn collect<'a>(selector: &Selector, page: &'a Page) -> (Vec<&'a Object>, Option<&'a Object>) {
    let mut found = Vec::new();
    let mut objects = rest(selector, page, page.after.as_ref()).peekable();
    while let Some(object) = objects.next() {
        if selector.matches(object) {
            found.push(object);
        }
        if found.len() == page.limit {
            return (found, objects.peek().map(|_| object));
        }
    }
    (found, None)
}

/// The objects after `after`, or all, in the namespace of the request.
fn rest<'a>(selector: &Selector, page: &'a Page, after: Option<&Key>) -> impl Iterator<Item = &'a Object> {
    let namespace = selector.namespace.clone();
    let first = Key { namespace: namespace.clone().unwrap_or_default(), name: String::new() };
    let from = after.map_or(Bound::Included(first), |after| Bound::Excluded(after.clone()));
    let objects = page.objects.range((from, Bound::Unbounded)).map(|(_, object)| &**object);
    objects.take_while(move |object| namespace.as_ref().is_none_or(|only| *only == object.key.namespace))
}

/// The position to continue from, in the state of a version or (`None`, written -1) in the newest.
fn write_token(version: Option<u64>, last: &Key) -> String {
    let place = match last.namespace.as_str() {
        "" => format!("/{}\0", last.name),
        namespace => format!("/{namespace}/{}\0", last.name),
    };
    let version = version.map_or(json!(-1), Value::from);
    let token = json!({ "v": "meta.k8s.io/v1", "rv": version, "start": place });
    BASE64URL_NOPAD.encode(token.to_string().as_bytes())
}

fn read_token(token: &str) -> Option<(Option<u64>, Key)> {
    let token = token.trim_end_matches('=');
    let token: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(token.as_bytes()).ok()?).ok()?;
    let place = token["start"].as_str()?.trim_start_matches('/').strip_suffix('\0')?;
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    let version = if token["rv"] == -1 { None } else { Some(token["rv"].as_u64()?) };
    Some((version, Key { namespace: namespace.to_owned(), name: name.to_owned() }))
}
