//! What an API server fills in for what a person leaves out. What it would choose (cluster IPs,
//! node ports) cannot be filled in. Source: Kubernetes v1.36, `pkg/apis/core/v1/defaults.go`,
//! `pkg/apis/discovery/v1/defaults.go` and the Service registry's `defaultOnRead`.

use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::net::{self, IpFamily};

/// Seconds of ClientIP affinity.
const AFFINITY_SECONDS: i32 = 10_800;

/// Fills in a Service.
pub fn service(service: &mut Service) {
    namespace(&mut service.metadata);
    let spec = service.spec.get_or_insert_default();
    fill(&mut spec.type_, "ClusterIP");
    fill(&mut spec.session_affinity, "None");
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config = spec.session_affinity_config.get_or_insert_default();
        config.client_ip.get_or_insert_default().timeout_seconds.get_or_insert(AFFINITY_SECONDS);
    }
    for port in spec.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    let is_external_name = spec.type_.as_deref() == Some("ExternalName");
    if !is_external_name {
        fill(&mut spec.internal_traffic_policy, "Cluster");
        cluster_ips(spec);
    }
    let has_external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    if is_load_balancer
        || spec.type_.as_deref() == Some("NodePort")
        || (!is_external_name && has_external_ips)
    {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    let status = service.status.as_mut().and_then(|status| status.load_balancer.as_mut());
    for entry in status.into_iter().flat_map(|status| status.ingress.iter_mut().flatten()) {
        if is_load_balancer && entry.ip.as_ref().is_some_and(|ip| !ip.is_empty()) {
            fill(&mut entry.ip_mode, "VIP");
        }
    }
}

/// Fills `clusterIP` and `clusterIPs` from each other, and `ipFamilies` from them.
fn cluster_ips(spec: &mut ServiceSpec) {
    let all = spec.cluster_ips.get_or_insert_default();
    match spec.cluster_ip.as_deref() {
        None | Some("") => spec.cluster_ip = all.first().cloned(),
        Some(first) if all.is_empty() => all.push(first.to_owned()),
        Some(_) => {}
    }
    let families = spec.ip_families.get_or_insert_default();
    if families.is_empty() {
        let family = |text: &String| net::parse_ip(text).ok().map(|ip| IpFamily::of(ip).to_string());
        // An unreadable address has no family; decoding it names the problem.
        let known: Option<Vec<String>> = all.iter().map(family).collect();
        families.extend(known.unwrap_or_default());
    }
}

/// Fills in an EndpointSlice.
pub fn slice(slice: &mut EndpointSlice) {
    namespace(&mut slice.metadata);
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
        fill(&mut port.protocol, "TCP");
    }
}

/// Fills in a Node.
pub fn node(node: &mut Node) {
    let Some(spec) = &mut node.spec else { return };
    let all = spec.pod_cidrs.get_or_insert_default();
    if all.is_empty() {
        all.extend(spec.pod_cidr.clone().filter(|cidr| !cidr.is_empty()));
    }
}

fn namespace(metadata: &mut ObjectMeta) {
    fill(&mut metadata.namespace, "default");
}

/// The API takes an empty text for an absent one.
fn fill(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}
