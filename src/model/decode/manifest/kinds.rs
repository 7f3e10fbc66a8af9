//! Finds kinds and versions that are probably mistakes: an object is skipped because of one letter or an old version.

use crate::model::nearest;

/// Each kind that is read, with its API group and version.
const KINDS: [(&str, &str); 4] =
    [("Service", "v1"), ("EndpointSlice", "discovery.k8s.io/v1"), ("Node", "v1"), ("Pod", "v1")];

/// What is wrong with an object of this `kind` and `version` that is not read; `None` for one that is of no use here,
/// as a Deployment, or a Service of Knative.
pub fn mistake(kind: &str, version: Option<&str>) -> Option<String> {
    let (near, known) = match KINDS.iter().find(|(name, _)| *name == kind) {
        Some(exact) => *exact,
        None => {
            let near = nearest(kind, KINDS.iter().map(|(name, _)| *name))?;
            *KINDS.iter().find(|(name, _)| *name == near)?
        }
    };
    let version = version.unwrap_or(known);
    // Other groups may use the same words: a Service of serving.knative.dev, a Node of a cluster manager.
    if !is_of_kubernetes(version) && nearest(version, [known]).is_none() {
        return None;
    }
    Some(match (near == kind, version == known) {
        (true, _) => {
            format!("{kind} of apiVersion {version:?} is not read, only of {known:?}; object skipped")
        }
        (false, true) => format!("kind {kind:?} is unknown; did you mean {near:?}? Object skipped"),
        (false, false) => {
            format!(
                "kind {kind:?} of apiVersion {version:?} is unknown; did you mean {near:?} of {known:?}? Object skipped"
            )
        }
    })
}

/// Whether a version is of one of Kubernetes' own groups: `v1`, `apps/v1`, `discovery.k8s.io/v1beta1`.
fn is_of_kubernetes(version: &str) -> bool {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    !group.contains('.') || group.ends_with(".k8s.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, version: Option<&str>, expected: Option<&str>) {
        assert_eq!(mistake(kind, version).as_deref(), expected, "{kind} {version:?}");
    }

    #[test]
    fn typing_errors_and_other_versions_are_named() {
        check(
            "service",
            Some("v1"),
            Some(r#"kind "service" is unknown; did you mean "Service"? Object skipped"#),
        );
        check(
            "Endpointslices",
            None,
            Some(r#"kind "Endpointslices" is unknown; did you mean "EndpointSlice"? Object skipped"#),
        );
        check(
            "EndpointSlice",
            Some("discovery.k8s.io/v1beta1"),
            Some(
                r#"EndpointSlice of apiVersion "discovery.k8s.io/v1beta1" is not read, only of "discovery.k8s.io/v1"; object skipped"#,
            ),
        );
        check(
            "EndpointSlice",
            Some("v1"),
            Some(
                r#"EndpointSlice of apiVersion "v1" is not read, only of "discovery.k8s.io/v1"; object skipped"#,
            ),
        );
        check(
            "Service",
            Some("apps/v1"),
            Some(r#"Service of apiVersion "apps/v1" is not read, only of "v1"; object skipped"#),
        );
        check(
            "endpointslice",
            Some("discovery.k8.io/v1"),
            Some(
                r#"kind "endpointslice" of apiVersion "discovery.k8.io/v1" is unknown; did you mean "EndpointSlice" of "discovery.k8s.io/v1"? Object skipped"#,
            ),
        );
    }

    #[test]
    fn kinds_that_are_of_no_use_here_are_no_mistakes() {
        check("Service", Some("serving.knative.dev/v1"), None);
        check("Node", Some("management.example.io/v3"), None);
        for kind in ["Deployment", "Endpoints", "ServiceAccount", "ConfigMap", "PodTemplate", "NodePool"] {
            check(kind, Some("v1"), None);
        }
        check("PodMetrics", Some("metrics.k8s.io/v1beta1"), None);
        check("ServiceImport", Some("multicluster.x-k8s.io/v1alpha1"), None);
    }
}
