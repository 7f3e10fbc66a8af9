//! Decodes Nodes. Source: kube-proxy v1.36, `pkg/proxy/node.go` and `GetNodeHostIPs`.

use super::field_reader::{FieldReader, NOT_A_CIDR, NOT_AN_IP};
use super::grammar::{is_dns_subdomain, is_label_value};
use super::interner::Interner;
use super::object::{ApiNode, ApiObject, Metadata};
use crate::model::{Node, ObjectKind, Problem};

/// Label that names the zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a Node that the cluster autoscaler is about to remove; its value and effect do not matter.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Decodes a Node; `None` without a usable name.
pub fn node(object: &ApiNode, interner: &mut Interner) -> (Option<Node>, Vec<Problem>) {
    let mut fields = FieldReader::new(ObjectKind::Node, object.claimed_name().name());
    let node = named(&mut fields, object, interner);
    (node, fields.into_problems())
}

fn named(fields: &mut FieldReader, object: &ApiNode, interner: &mut Interner) -> Option<Node> {
    let empty = Metadata::default();
    let metadata = object.metadata.get().unwrap_or(&empty);
    let what = "is not a DNS subdomain; Node ignored";
    let name = fields.checked_text(format_args!("metadata.name"), &metadata.name, is_dns_subdomain, what)?;
    let labels = fields.valid(format_args!("metadata.labels"), &metadata.labels, "ignored");
    let zone = labels.map(|labels| &labels.zone).filter(|zone| !zone.is_absent()).and_then(|zone| {
        let field = format_args!("metadata.labels[{ZONE}]");
        let is_zone = |text: &str| text.is_empty() || is_label_value(text);
        fields.checked_text(field, zone, is_zone, "is not the name of a zone; ignored")
    });
    let deleted = format_args!("metadata.deletionTimestamp");
    let is_deleted = fields.valid(deleted, &metadata.deletion_timestamp, "ignored").is_some();
    let spec = fields.valid(format_args!("spec"), &object.spec, "ignored");
    let mut pod_cidrs = Vec::new();
    let mut is_tainted = false;
    if let Some(spec) = spec {
        for (i, given) in fields.list(format_args!("spec.podCIDRs"), &spec.pod_cidrs).iter().enumerate() {
            let field = format_args!("spec.podCIDRs[{i}]");
            let text = fields.text(field, given, NOT_A_CIDR);
            pod_cidrs.extend(text.and_then(|text| fields.cidr(field, text)));
        }
        for (i, taint) in fields.list(format_args!("spec.taints"), &spec.taints).iter().enumerate() {
            let taint = fields.entry(format_args!("spec.taints[{i}]"), taint, "ignored");
            let field = format_args!("spec.taints[{i}].key");
            let key = taint.and_then(|taint| fields.text(field, &taint.key, "ignored"));
            is_tainted |= key == Some(TO_BE_DELETED);
        }
    }
    let status = fields.valid(format_args!("status"), &object.status, "ignored");
    let addresses = match status {
        Some(status) => fields.list(format_args!("status.addresses"), &status.addresses),
        None => &[],
    };
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    for (i, entry) in addresses.iter().enumerate() {
        let Some(entry) = fields.entry(format_args!("status.addresses[{i}]"), entry, "ignored") else {
            continue;
        };
        let ips = match fields.text(format_args!("status.addresses[{i}].type"), &entry.type_, "ignored") {
            Some("InternalIP") => &mut internal,
            Some("ExternalIP") => &mut external,
            _ => continue,
        };
        ips.extend(fields.ip(format_args!("status.addresses[{i}].address"), &entry.address, NOT_AN_IP));
    }
    internal.append(&mut external);
    Some(Node {
        name: interner.text(name),
        addresses: internal.into(),
        pod_cidrs: pod_cidrs.into(),
        zone: zone.filter(|zone| !zone.is_empty()).map(|zone| interner.text(zone)),
        is_leaving: is_deleted || is_tainted,
    })
}
