//! Decodes Pods. Malformed fields count as absent, without a problem: no rule depends on them, and a question about a
//! Pod that lacks a field says which.

use super::grammar::{is_dns_label, is_dns_subdomain};
use super::interner::Interner;
use super::object::ApiPod;
use crate::model::{ObjectName, Pod};
use crate::net;

/// Decodes a Pod; `None` without a usable name.
pub fn pod(object: &ApiPod, interner: &mut Interner) -> Option<Pod> {
    let metadata = object.metadata.get()?;
    let namespace = metadata.namespace.get().map_or("default", String::as_str);
    let name = metadata.name.text();
    if !is_dns_label(namespace) || !is_dns_subdomain(name) {
        return None;
    }
    let spec = object.spec.get();
    let status = object.status.get();
    let is_ended = status.is_some_and(|status| matches!(status.phase.text(), "Succeeded" | "Failed"));
    let mut ips = Vec::new();
    if let Some(status) = status.filter(|_| !is_ended) {
        let listed = status.pod_ips.items().iter().filter_map(|entry| entry.get());
        let texts = listed.map(|entry| entry.ip.text()).chain([status.pod_ip.text()]);
        for ip in texts.filter_map(|text| net::parse_ip(text).ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    let node = spec.map(|spec| spec.node_name.text()).filter(|node| is_dns_subdomain(node));
    Some(Pod {
        name: ObjectName::new(namespace, name),
        node: node.map(|node| interner.text(node)),
        ips: ips.into(),
        is_host_network: spec.and_then(|spec| spec.host_network.get()).copied().unwrap_or(false),
    })
}
