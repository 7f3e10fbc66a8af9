//! One object as the API server sent it, with what the watcher asks of it. It is read whatever it is
//! made of: a list with one bad object is still a list.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};

use super::store::Kind;
use crate::model::decode::{Given, whole};
use crate::model::{ObjectName, Problem};

/// An object of kind `K`, or what was there in its place.
#[derive(Clone, Debug)]
pub struct Guard<K> {
    given: Given<K>,
    /// The resource version alone: the watcher reads nothing else.
    metadata: ObjectMeta,
}

impl<K: Kind> Guard<K> {
    /// The name it gives itself; a Node's namespace is empty.
    pub fn name(&self) -> ObjectName {
        self.given.get().map_or_else(|| ObjectName::new("", ""), K::claimed_name)
    }

    /// The object, or the problem that makes it unusable.
    pub fn into_result(self) -> Result<K, Box<Problem>> {
        whole(self.given)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Guard<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Guard<K>, D::Error> {
        let given = Given::<K>::deserialize(deserializer)?;
        let version = given.get().and_then(|object| object.metadata().get()?.resource_version.get());
        let metadata = ObjectMeta { resource_version: version.cloned(), ..ObjectMeta::default() };
        Ok(Guard { given, metadata })
    }
}

impl<K: Kind> Resource for Guard<K> {
    type DynamicType = ();
    type Scope = <K::Api as Resource>::Scope;

    fn kind(_: &()) -> Cow<'_, str> {
        K::Api::kind(&())
    }

    fn group(_: &()) -> Cow<'_, str> {
        K::Api::group(&())
    }

    fn version(_: &()) -> Cow<'_, str> {
        K::Api::version(&())
    }

    fn plural(_: &()) -> Cow<'_, str> {
        K::Api::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
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
        assert_eq!(bad.meta().resource_version.as_deref(), Some("7"));
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

    #[test]
    fn requests_are_for_the_kind_of_the_api() {
        assert_eq!(Guard::<ApiService>::url_path(&(), None), "/api/v1/services");
        let slices = Guard::<crate::model::decode::ApiSlice>::url_path(&(), None);
        assert_eq!(slices, "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(Guard::<crate::model::decode::ApiNode>::url_path(&(), None), "/api/v1/nodes");
    }
}
