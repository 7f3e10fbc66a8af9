//! One object as the API server sent it, decoded or not: a list with one bad object is still a
//! list.
//!
//! Like `kube::core::DeserializeGuard`, but the message names the field, and nothing is copied to
//! find out.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object of kind `K`, or what is known of one that cannot be decoded.
#[derive(Clone, Debug)]
pub struct Guard<K>(Result<K, Box<Undecodable>>);

/// An object that cannot be decoded.
#[derive(Clone, Debug)]
pub struct Undecodable {
    /// Namespace, name and resource version, as far as they can be read.
    pub metadata: ObjectMeta,
    /// Path of the field at fault.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
}

impl<K> Guard<K> {
    /// The object, or what is known of it.
    pub fn into_result(self) -> Result<K, Box<Undecodable>> {
        self.0
    }
}

impl<'de, K: serde::de::DeserializeOwned> Deserialize<'de> for Guard<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Guard<K>, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let result = serde_path_to_error::deserialize::<&Value, K>(&value).map_err(|error| {
            Box::new(Undecodable {
                metadata: metadata(&value),
                field: error.path().to_string(),
                what: error.inner().to_string(),
            })
        });
        Ok(Guard(result))
    }
}

fn metadata(object: &Value) -> ObjectMeta {
    let text = |key| object.get("metadata")?.get(key)?.as_str().map(str::to_owned);
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    }
}

impl<K: Resource> Resource for Guard<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(bad) => &bad.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(bad) => &mut bad.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bad_object_says_who_it_is_and_which_field() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "ns", "resourceVersion": "7", "labels": 5},
            "spec": {"ports": [{"port": 80}]},
        });
        let bad = serde_json::from_value::<Guard<Service>>(object).unwrap();
        assert_eq!(bad.meta().resource_version.as_deref(), Some("7"));
        let bad = bad.into_result().unwrap_err();
        assert_eq!(
            (bad.metadata.namespace.as_deref(), bad.metadata.name.as_deref()),
            (Some("ns"), Some("web"))
        );
        assert_eq!(bad.field, "metadata.labels");
        assert!(bad.what.contains("integer `5`"), "{}", bad.what);
    }

    #[test]
    fn anything_at_all_is_an_object_or_a_bad_one() {
        for value in [json!(null), json!(5), json!("x"), json!([]), json!({"metadata": 5})] {
            assert!(serde_json::from_value::<Guard<Service>>(value).unwrap().into_result().is_err());
        }
        let good = json!({"metadata": {"name": "web"}});
        assert!(serde_json::from_value::<Guard<Service>>(good).unwrap().into_result().is_ok());
    }
}
