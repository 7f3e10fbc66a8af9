//! One object as the API server sent it, with what watching asks of it. It is read whatever it is
//! made of: a list with one bad object is still a list.

use serde::{Deserialize, Deserializer};

use super::store::Kind;
use crate::model::decode::{Given, whole};
use crate::model::{ObjectName, Problem};

/// An object of kind `K`, or what was there in its place.
#[derive(Debug)]
pub struct Guard<K> {
    given: Given<K>,
}

impl<K: Kind> Guard<K> {
    /// The name it gives itself; a Node's namespace is empty.
    pub fn name(&self) -> ObjectName {
        self.given.get().map_or_else(|| ObjectName::new("", ""), K::claimed_name)
    }

    /// The version it has.
    pub fn resource_version(&self) -> Option<&str> {
        self.given.get()?.metadata().get()?.resource_version.get().map(String::as_str)
    }

    /// The object, or the problem that makes it unusable.
    pub fn into_result(self) -> Result<K, Box<Problem>> {
        whole(self.given)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Guard<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Guard<K>, D::Error> {
        Ok(Guard { given: Given::deserialize(deserializer)? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::decode::ApiService;

    #[test]
    fn the_problem_of_an_unusable_object_names_it_and_the_field() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "ns", "resourceVersion": "7", "labels": 5},
            "spec": [{"port": 80}],
        });
        let bad = serde_json::from_value::<Guard<ApiService>>(object).unwrap();
        assert_eq!(bad.resource_version(), Some("7"));
        assert_eq!(bad.name().to_string(), "ns/web");
        let bad = bad.into_result().unwrap_err();
        assert_eq!(bad.to_string(), r#"Service ns/web: spec: "[...]" is not an object"#);
    }

    #[test]
    fn anything_at_all_is_an_object_or_a_bad_one() {
        for value in [json!(null), json!(5), json!("x"), json!([]), json!({"metadata": 5})] {
            let guard = serde_json::from_value::<Guard<ApiService>>(value).unwrap();
            assert_eq!(guard.name().to_string(), "/");
            assert!(guard.into_result().is_err());
        }
        let good = json!({"metadata": {"name": "web"}});
        assert!(serde_json::from_value::<Guard<ApiService>>(good).unwrap().into_result().is_ok());
    }
}
