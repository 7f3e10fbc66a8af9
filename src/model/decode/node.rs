//! Nodes. Source: kube-proxy v1.36, `pkg/proxy/node.go` and `GetNodeHostIPs`.

use k8s_openapi::api::core::v1::Node as ApiNode;

use super::Interner;
use super::field::{Fields, list};
use super::grammar::{is_dns_subdomain, is_label_value};
use crate::model::{Node, ObjectKind, Problem};

/// Label that names the zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster autoscaler is about to remove, whatever its value and effect.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Decodes a Node; `None` without a usable name.
pub fn node(object: &ApiNode, interner: &mut Interner) -> (Option<Node>, Vec<Problem>) {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut fields = Fields::new(ObjectKind::Node, name);
    let what = "is not a DNS subdomain; Node ignored";
    let Some(name) = fields.word(format_args!("metadata.name"), name, is_dns_subdomain, what) else {
        return (None, fields.into_problems());
    };
    let zone = object.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
    let zone = zone.filter(|zone| !zone.is_empty()).and_then(|zone| {
        let field = format_args!("metadata.labels[{ZONE}]");
        fields.word(field, zone, is_label_value, "is not the name of a zone; ignored")
    });
    let mut pod_cidrs = Vec::new();
    if let Some(spec) = &object.spec {
        for (i, text) in list(&spec.pod_cidrs).iter().enumerate() {
            pod_cidrs.extend(fields.cidr(format_args!("spec.podCIDRs[{i}]"), text));
        }
    }
    let addresses = object.status.as_ref().map_or(&[][..], |status| list(&status.addresses));
    let mut ips = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, entry) in addresses.iter().enumerate().filter(|(_, entry)| entry.type_ == kind) {
            ips.extend(fields.ip(format_args!("status.addresses[{i}].address"), &entry.address));
        }
    }
    let taints = object.spec.as_ref().map_or(&[][..], |spec| list(&spec.taints));
    let node = Node {
        name: interner.text(name),
        addresses: ips.into(),
        pod_cidrs: pod_cidrs.into(),
        zone: zone.map(|zone| interner.text(zone)),
        is_leaving: object.metadata.deletion_timestamp.is_some()
            || taints.iter().any(|taint| taint.key == TO_BE_DELETED),
    };
    (Some(node), fields.into_problems())
}
