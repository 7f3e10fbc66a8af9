//! Reads objects as API types, with a list of unknown fields.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::monitoring::{PodMonitor, PrometheusRule};

/// Reads `value` as a `T`, with the paths of its unknown fields.
pub fn read<T: DeserializeOwned>(value: Value) -> Result<(T, Vec<String>), serde_json::Error> {
    let mut ignored = Vec::new();
    // `?` marks each `Option` on the path.
    let read = serde_ignored::deserialize(value, |path| ignored.push(path.to_string().replace(".?", "")))?;
    Ok((read, ignored))
}

/// Reports the fields of `object` that its type lacks; patches may contain `$patch`.
pub fn check_known(mut object: Value) -> Result<(), String> {
    fn check<T: DeserializeOwned>(object: Value) -> Result<(), String> {
        match read::<T>(object) {
            Err(error) => Err(error.to_string()),
            Ok((_, ignored)) if !ignored.is_empty() => Err(format!("unknown: {}", ignored.join(", "))),
            Ok(_) => Ok(()),
        }
    }
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if let Some(fields) = object.as_object_mut() {
        fields.remove("$patch");
    }
    match (version.as_str(), kind.as_str()) {
        ("apps/v1", "DaemonSet") => check::<DaemonSet>(object),
        ("v1", "ConfigMap") => check::<ConfigMap>(object),
        ("v1", "ServiceAccount") => check::<ServiceAccount>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check::<ClusterRoleBinding>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => check::<PodMonitor>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => check::<PrometheusRule>(object),
        _ => Err(format!("{version} {kind}: this test does not know it")),
    }
}

#[test]
fn misspelt_fields_and_wrong_types_are_found() {
    let good = super::object("base/daemonset.yaml");
    assert_eq!(check_known(good.clone()), Ok(()));
    let mut misspelt = good.clone();
    misspelt["spec"]["template"]["spec"]["hostNetwrk"] = true.into();
    assert_eq!(check_known(misspelt), Err("unknown: spec.template.spec.hostNetwrk".to_owned()));
    let mut wrong = good.clone();
    wrong["spec"]["template"]["spec"]["hostNetwork"] = "yes".into();
    assert!(check_known(wrong).is_err_and(|problem| problem.contains("expected a boolean")));
    let mut other = good;
    other["kind"] = "DeamonSet".into();
    assert!(check_known(other).is_err());
}
