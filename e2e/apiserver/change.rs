//! Changes by clients: POST, PUT, PATCH and DELETE of one object, including the `status` subresource.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::Shared;
use super::answer::{Refusal, json_body};
use super::object::{Key, metadata};
use super::request::Target;
use super::resource::Resource;
use super::store::Store;
use super::valid;

/// Answers a request that changes an object.
pub fn change(
    shared: &Shared,
    method: &Method,
    target: &Target,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response<Body> {
    let answer = {
        let mut store = shared.store();
        match method.as_str() {
            "POST" => create(&mut store, target, body),
            "PUT" => replace(&mut store, target, body),
            "PATCH" => patch(&mut store, target, headers, body),
            "DELETE" => delete(&mut store, target),
            _ => Err(Refusal::not_allowed()),
        }
    };
    match answer {
        Ok(response) => {
            shared.changed();
            shared.board.count(target.resource.plural, |counts| counts.writes += 1);
            response
        }
        Err(refusal) => refusal.response(),
    }
}

type Answer = Result<Response<Body>, Refusal>;

fn create(store: &mut Store, target: &Target, body: &Bytes) -> Answer {
    if target.name.is_some() {
        return Err(Refusal::not_allowed());
    }
    let mut value = parse(target.resource, body)?;
    let name = match (&value["metadata"]["name"], &value["metadata"]["generateName"]) {
        (Value::String(name), _) if !name.is_empty() => name.clone(),
        (_, Value::String(prefix)) => format!("{prefix}{:05}", store.version()),
        _ => {
            return Err(Refusal::new(422, "name: Required value: name or generateName is required"));
        }
    };
    let namespace = match &target.namespace {
        Some(namespace) => namespace.clone(),
        None if target.resource.is_namespaced => {
            return Err(Refusal::new(405, "a namespace is required"));
        }
        None => String::new(),
    };
    let given = value["metadata"]["namespace"].as_str().unwrap_or("");
    if !given.is_empty() && given != namespace {
        return Err(Refusal::new(
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let key = Key { namespace, name };
    if store.get(target.resource, &key).is_some() {
        let message = format!("{} {:?} already exists", target.resource.long_name(), key.name);
        let refusal = Refusal::new(409, message).because(Some("AlreadyExists"));
        return Err(refusal.about_object(target.resource, &key.name));
    }
    // The server sets these itself.
    for field in ["uid", "creationTimestamp"] {
        metadata(&mut value).remove(field);
    }
    valid::complete(target.resource, &mut value);
    valid::check(target.resource, &key.name, &value, None)?;
    store.put(target.resource, key.clone(), value);
    store.mark_posted(target.resource, key.clone());
    Ok(current(store, target.resource, &key, StatusCode::CREATED))
}

fn replace(store: &mut Store, target: &Target, body: &Bytes) -> Answer {
    let (key, old) = existing(store, target)?;
    let value = parse(target.resource, body)?;
    check_version(target, &key, &value, &old)?;
    put(store, target.resource, &key, &old, merged(target, old.clone(), value))?;
    Ok(current(store, target.resource, &key, StatusCode::OK))
}

fn patch(store: &mut Store, target: &Target, headers: &HeaderMap, body: &Bytes) -> Answer {
    let media = headers.get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or("");
    // A strategic merge differs in how it merges lists; nothing here depends on that.
    if !matches!(media, "application/merge-patch+json" | "application/strategic-merge-patch+json") {
        return Err(Refusal::new(415, format!("the simulator knows merge patches, not {media:?}")));
    }
    let (key, old) = existing(store, target)?;
    let patch: Value = serde_json::from_slice(body).map_err(|error| Refusal::new(400, error.to_string()))?;
    check_version(target, &key, &patch, &old)?;
    let mut value = old.clone();
    merge(&mut value, &patch);
    if !value.is_object() || !value["metadata"].is_object() {
        return Err(Refusal::new(422, "the patch leaves no object"));
    }
    put(store, target.resource, &key, &old, merged(target, old.clone(), value))?;
    Ok(current(store, target.resource, &key, StatusCode::OK))
}

/// Replaces `old`, if allowed.
fn put(
    store: &mut Store,
    resource: &'static Resource,
    key: &Key,
    old: &Value,
    mut value: Value,
) -> Result<(), Refusal> {
    valid::complete(resource, &mut value);
    valid::check(resource, &key.name, &value, Some(old))?;
    store.put(resource, key.clone(), value);
    Ok(())
}

fn delete(store: &mut Store, target: &Target) -> Answer {
    let (key, _) = existing(store, target)?;
    store.delete(target.resource, &key);
    Ok(json_body(
        StatusCode::OK,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        })
        .to_string(),
    ))
}

/// The object that the path names, as stored.
fn existing(store: &Store, target: &Target) -> Result<(Key, Value), Refusal> {
    let Some(key) = target.key() else {
        return Err(Refusal::not_allowed());
    };
    let object = store.get(target.resource, &key);
    let object = object.ok_or_else(|| Refusal::not_found(target.resource, &key.name))?;
    Ok((key, object.value()))
}

/// `new` with the other half taken from `old`: the subresource changes only `status`, other requests everything
/// else.
fn merged(target: &Target, mut old: Value, mut new: Value) -> Value {
    for field in ["uid", "creationTimestamp"] {
        let kept = old["metadata"][field].take();
        metadata(&mut new).insert(field.into(), kept);
    }
    let status = if target.is_status { new["status"].take() } else { old["status"].take() };
    let mut value = if target.is_status { old } else { new };
    let object = value.as_object_mut().expect("checked to be an object");
    match status {
        Value::Null => object.remove("status"),
        status => object.insert("status".into(), status),
    };
    value
}

fn check_version(target: &Target, key: &Key, new: &Value, old: &Value) -> Result<(), Refusal> {
    let expected = new["metadata"]["resourceVersion"].as_str().unwrap_or("");
    if expected.is_empty() || Some(expected) == old["metadata"]["resourceVersion"].as_str() {
        return Ok(());
    }
    Err(Refusal::new(
        409,
        format!(
            "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply your changes to the latest version and try again",
            target.resource.long_name(),
            key.name,
        ),
    )
    .about_object(target.resource, &key.name))
}

fn parse(resource: &Resource, body: &Bytes) -> Result<Value, Refusal> {
    let mut value: Value =
        serde_json::from_slice(body).map_err(|error| Refusal::new(400, error.to_string()))?;
    let says = |field: &str, expected: &str| value.get(field).is_none_or(|text| text == expected);
    if !value.is_object() || !says("kind", resource.kind) || !says("apiVersion", resource.api_version) {
        return Err(Refusal::new(400, format!("the object provided is not a {}", resource.kind)));
    }
    let has_metadata = value["metadata"].is_null() || value["metadata"].is_object();
    if !has_metadata {
        return Err(Refusal::new(400, "metadata is not an object"));
    }
    if value["metadata"].is_null() {
        value["metadata"] = json!({});
    }
    Ok(value)
}

/// RFC 7396.
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    let object = value.as_object_mut().expect("made an object above");
    for (field, part) in patch {
        if part.is_null() {
            object.remove(field);
        } else {
            merge(object.entry(field.clone()).or_insert(Value::Null), part);
        }
    }
}

fn current(store: &Store, resource: &Resource, key: &Key, code: StatusCode) -> Response<Body> {
    let object = store.get(resource, key).expect("written under the same lock");
    json_body(code, object.bytes().clone())
}
