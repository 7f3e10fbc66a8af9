//! One object as the API server sent it. Any JSON value can be read, so one malformed object does not make
//! a whole list unreadable.

use serde::{Deserialize, Deserializer};

use crate::model::decode::{ApiObject, FieldValue, require_usable};
use crate::model::{ObjectName, Problem};

/// An object of kind `K`, or any other value in its place.
#[derive(Debug)]
pub struct ReceivedObject<K> {
    given: FieldValue<K>,
}

impl<K: ApiObject> ReceivedObject<K> {
    /// The name in its metadata; a Node's namespace is empty.
    pub fn name(&self) -> ObjectName {
        self.given.get().map_or_else(|| ObjectName::new("", ""), K::claimed_name)
    }

    /// Its resource version.
    pub fn resource_version(&self) -> Option<&str> {
        self.given.get()?.metadata().get()?.resource_version.get().map(String::as_str)
    }

    /// The object, or the problem that makes it unusable.
    pub fn into_result(self) -> Result<K, Box<Problem>> {
        require_usable(self.given)
    }
}

impl<'de, K: ApiObject> Deserialize<'de> for ReceivedObject<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ReceivedObject<K>, D::Error> {
        Ok(ReceivedObject { given: FieldValue::deserialize(deserializer)? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::decode::ApiService;

    #[test]
    fn the_problem_of_an_unusable_object_names_the_object_and_the_field() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "ns", "resourceVersion": "7", "labels": 5},
            "spec": [{"port": 80}],
        });
        let bad = serde_json::from_value::<ReceivedObject<ApiService>>(object).unwrap();
        assert_eq!(bad.resource_version(), Some("7"));
        assert_eq!(bad.name().to_string(), "ns/web");
        let bad = bad.into_result().unwrap_err();
        assert_eq!(bad.to_string(), r#"Service ns/web: spec: "[...]" is not an object"#);
    }

    #[test]
    fn any_value_is_read_as_an_object_or_as_a_problem() {
        for value in [json!(null), json!(5), json!("x"), json!([]), json!({"metadata": 5})] {
            let received = serde_json::from_value::<ReceivedObject<ApiService>>(value).unwrap();
            assert_eq!(received.name().to_string(), "/");
            assert!(received.into_result().is_err());
        }
        let good = json!({"metadata": {"name": "web"}});
        assert!(serde_json::from_value::<ReceivedObject<ApiService>>(good).unwrap().into_result().is_ok());
    }
}
