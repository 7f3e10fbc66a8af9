//! LIST: one page of the objects of a kind as they were at one version.

use std::ops::Bound;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::Shared;
use super::answer::{failure, json_body, large_body};
use super::fault::Fault;
use super::object::{Key, Object};
use super::request::{Query, Target};
use super::resource::Resource;
use super::selector::Selector;
use super::store::{Objects, Store};

/// Which state a list shows, and where its page begins.
struct Page {
    objects: Arc<Objects>,
    version: u64,
    after: Option<Key>,
    limit: usize,
}

/// Answers a LIST request.
pub fn list(shared: &Shared, target: &Target, query: &Query, headers: &HeaderMap) -> Response<Body> {
    let plural = target.resource.plural;
    let is_first = query.text("continue").is_empty();
    shared.board.count(plural, |counts| {
        counts.lists += u64::from(is_first);
        counts.pages += 1;
    });
    let answer = answer(shared, target, query, headers);
    answer.unwrap_or_else(|(code, message)| {
        shared.board.count(plural, |counts| counts.gone += u64::from(code == 410));
        failure(code, &message)
    })
}

fn answer(
    shared: &Shared,
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, (u16, String)> {
    if query.claims("sendInitialEvents") {
        return Err((
            422,
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list".to_owned(),
        ));
    }
    let fault = shared.faults.now();
    let fault = fault.on(target.resource.plural);
    let selector = selector(target, query).map_err(|message| (400, message))?;
    if matches!(fault, Some(Fault::Garbage(_) | Fault::HalfObject | Fault::StaleList { .. })) {
        shared.faults.met();
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

/// The selector of a list or watch request.
pub fn selector(target: &Target, query: &Query) -> Result<Selector, String> {
    let (labels, fields) = (query.text("labelSelector"), query.text("fieldSelector"));
    let mut selector = Selector::parse(target.resource, target.namespace.as_deref(), labels, fields)?;
    if let Some(name) = &target.name {
        selector.require_name(name);
    }
    Ok(selector)
}

type Refusal = (u16, String);

fn page(
    store: &Store,
    resource: &'static Resource,
    query: &Query,
    fault: Option<&Fault>,
) -> Result<Page, Refusal> {
    let bad = |message| (400, message);
    let limit = query.number::<usize>("limit").map_err(bad)?.filter(|limit| *limit > 0);
    let asked = query.number::<u64>("resourceVersion").map_err(bad)?;
    let is_gone = fault == Some(&Fault::Gone);
    if !query.text("continue").is_empty() {
        return continued(store, resource, query.text("continue"), limit, is_gone);
    }
    if let Some(Fault::StaleList { at }) = fault
        && asked == Some(0)
    {
        let (objects, version) = stale(store, resource, *at);
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
    // From its cache ("any version") a real server gives everything whatever the limit.
    let limit = limit.filter(|_| asked != Some(0)).unwrap_or(usize::MAX);
    let version = match asked {
        Some(asked) if asked > newest => return Err(too_large(asked, newest)),
        Some(asked) if exact && asked > 0 => asked,
        _ => newest,
    };
    let too_old = |floor| (410, format!("too old resource version: {version} ({floor})"));
    let objects = store.state_at(resource, version).map_err(|gone| too_old(gone.floor))?;
    if is_gone && version < newest {
        return Err(too_old(newest));
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
    let expired = "The provided continue parameter is too old to display a consistent list result.";
    let (version, after) = read_token(token).ok_or((400, "invalid continue token".to_owned()))?;
    match store.state_at(resource, version) {
        Ok(objects) if !is_gone => {
            Ok(Page { objects, version, after: Some(after), limit: limit.unwrap_or(usize::MAX) })
        }
        _ => Err((410, expired.to_owned())),
    }
}

/// The refusal of a version that does not exist yet.
pub fn too_large(asked: u64, newest: u64) -> (u16, String) {
    (504, format!("Too large resource version: {asked}, current: {newest}"))
}

/// The state at `at`, or the oldest that is known.
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
        metadata["continue"] = write_token(page.version, &last.key).into();
        // With a selector nobody knows without looking at all of them.
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

/// The matching objects of a page, and the last object looked at if others follow it. A last page
/// can be empty, as on a real server: whether what follows matches is not looked at.
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

/// The objects after `after`, or from the first, in the namespace of the request.
fn rest<'a>(selector: &Selector, page: &'a Page, after: Option<&Key>) -> impl Iterator<Item = &'a Object> {
    let namespace = selector.namespace.clone();
    let first = Key { namespace: namespace.clone().unwrap_or_default(), name: String::new() };
    let from = after.map_or(Bound::Included(first), |after| Bound::Excluded(after.clone()));
    let objects = page.objects.range((from, Bound::Unbounded)).map(|(_, object)| &**object);
    objects.take_while(move |object| namespace.as_ref().is_none_or(|only| *only == object.key.namespace))
}

fn write_token(version: u64, last: &Key) -> String {
    let token = json!({ "v": "meta.k8s.io/v1", "rv": version, "start": [last.namespace, last.name] });
    BASE64URL_NOPAD.encode(token.to_string().as_bytes())
}

fn read_token(token: &str) -> Option<(u64, Key)> {
    let token: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(token.as_bytes()).ok()?).ok()?;
    let step = |index: usize| Some(token["start"][index].as_str()?.to_owned());
    Some((token["rv"].as_u64()?, Key { namespace: step(0)?, name: step(1)? }))
}
