//! One version of one object: its bytes, and the fields that selectors compare.

use std::collections::BTreeMap;

use axum::body::Bytes;
use serde_json::{Map, Value, json};

use super::resource::Resource;

/// The position of an object in its kind, in the order of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Empty for kinds without namespaces.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// One version of one object, serialized once for all clients.
#[derive(Debug)]
pub struct Object {
    /// Its position.
    pub key: Key,
    /// `metadata.resourceVersion`.
    pub version: u64,
    /// `metadata.labels`, those that are text.
    pub labels: BTreeMap<String, String>,
    fields: Vec<(&'static str, String)>,
    bytes: Bytes,
    head: usize,
}

impl Object {
    /// Serializes `value` as version `version`.
    pub fn new(resource: &'static Resource, key: Key, version: u64, mut value: Value) -> Object {
        metadata(&mut value).insert("resourceVersion".into(), version.to_string().into());
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(key, text)| Some((key.clone(), text.as_str()?.to_owned())));
        let labels = labels.collect();
        let fields = resource.fields.iter().map(|field| (*field, field_text(&value, field))).collect();
        let (bytes, head) = write(resource, value);
        Object { key, version, labels, fields, bytes, head }
    }

    /// The whole object on one line.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The object in a list, without its opening brace: a real server omits `kind` and
    /// `apiVersion` there, and clients must cope.
    pub fn list_item(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// The object, parsed.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("written by serde_json above")
    }

    /// The text that a field selector compares; `None` for a field that the kind does not offer.
    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(&self.key.name),
            "metadata.namespace" => Some(&self.key.namespace),
            _ => self.fields.iter().find(|(field, _)| *field == name).map(|(_, text)| text.as_str()),
        }
    }

    /// This object in a DELETED event: its last content with the version of the event.
    pub fn as_deleted(&self, resource: &Resource, version: u64) -> Bytes {
        let mut value = self.value();
        metadata(&mut value).insert("resourceVersion".into(), version.to_string().into());
        write(resource, value).0
    }
}

/// `metadata` of an object, created if missing.
pub fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    let object = value.as_object_mut().expect("an object is a map");
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut().expect("metadata is a map")
}

/// The bytes of `value`, and the position after `kind` and `apiVersion`.
fn write(resource: &Resource, mut value: Value) -> (Bytes, usize) {
    let object = value.as_object_mut().expect("an object is a map");
    object.remove("kind");
    object.remove("apiVersion");
    let head = format!(r#"{{"kind":"{}","apiVersion":"{}","#, resource.kind, resource.api_version);
    let rest = serde_json::to_vec(&value).expect("a value can be written");
    let mut bytes = Vec::with_capacity(head.len() + rest.len());
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(&rest[1..]);
    (bytes.into(), head.len())
}

/// The text at the dotted path `field`; empty if missing, as a real server compares it.
fn field_text(value: &Value, field: &str) -> String {
    let found = field.split('.').try_fold(value, |value, step| value.get(step));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(claim)) => claim.to_string(),
        _ => String::new(),
    }
}
