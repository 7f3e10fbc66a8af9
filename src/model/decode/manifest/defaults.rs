//! What an API server fills in for what a person leaves out. What it would choose (cluster IPs,
//! node ports) cannot be filled in. Source: Kubernetes v1.36, `pkg/apis/core/v1/defaults.go`,
//! `pkg/apis/discovery/v1/defaults.go` and the Service registry's `defaultOnRead`.

use crate::model::decode::given::Given;
use crate::model::decode::object::{ApiNode, ApiService, ApiSlice, Metadata, ServiceSpec};
use crate::net::{self, IpFamily};

/// Seconds of ClientIP affinity.
const AFFINITY_SECONDS: i64 = 10_800;

/// Fills in a Service.
pub fn service(service: &mut ApiService) {
    namespace(&mut service.metadata);
    let Some(spec) = service.spec.get_or_default() else { return };
    fill(&mut spec.type_, "ClusterIP");
    fill(&mut spec.session_affinity, "None");
    if spec.session_affinity.text() == "ClientIP" {
        let client_ip = spec.session_affinity_config.get_or_default();
        let client_ip = client_ip.and_then(|config| config.client_ip.get_or_default());
        if let Some(client_ip) = client_ip.filter(|client_ip| client_ip.timeout_seconds.is_absent()) {
            client_ip.timeout_seconds = Given::Good(AFFINITY_SECONDS);
        }
    }
    for port in spec.ports.items_mut().iter_mut().filter_map(Given::get_mut) {
        fill(&mut port.protocol, "TCP");
    }
    let is_external_name = spec.type_.text() == "ExternalName";
    if !is_external_name {
        fill(&mut spec.internal_traffic_policy, "Cluster");
        cluster_ips(spec);
    }
    let has_external_ips = !spec.external_ips.items().is_empty();
    let is_load_balancer = spec.type_.text() == "LoadBalancer";
    if is_load_balancer || spec.type_.text() == "NodePort" || (!is_external_name && has_external_ips) {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    let status = service.status.get_mut().and_then(|status| status.load_balancer.get_mut());
    let ingress = status.map_or(&mut [][..], |status| status.ingress.items_mut());
    for entry in ingress.iter_mut().filter_map(Given::get_mut) {
        if is_load_balancer && !entry.ip.text().is_empty() {
            fill(&mut entry.ip_mode, "VIP");
        }
    }
}

/// Fills `clusterIP` and `clusterIPs` from each other, and `ipFamilies` from them.
fn cluster_ips(spec: &mut ServiceSpec) {
    let Some(all) = spec.cluster_ips.get_or_default() else { return };
    match &spec.cluster_ip {
        Given::Good(first) if !first.is_empty() => {
            if all.is_empty() {
                all.push(Given::Good(first.clone()));
            }
        }
        Given::Absent | Given::Good(_) => spec.cluster_ip = all.first().cloned().unwrap_or_default(),
        Given::Wrong(_) => {}
    }
    if let Some(families) = spec.ip_families.get_or_default()
        && families.is_empty()
    {
        let family =
            |text: &Given<String>| net::parse_ip(text.text()).ok().map(|ip| IpFamily::of(ip).to_string());
        // An unreadable address has no family; decoding it names the problem.
        let known: Option<Vec<String>> = all.iter().map(family).collect();
        families.extend(known.unwrap_or_default().into_iter().map(Given::Good));
    }
}

/// Fills in an EndpointSlice.
pub fn slice(slice: &mut ApiSlice) {
    namespace(&mut slice.metadata);
    for port in slice.ports.items_mut().iter_mut().filter_map(Given::get_mut) {
        port.name.get_or_default();
        fill(&mut port.protocol, "TCP");
    }
}

/// Fills in a Node.
pub fn node(node: &mut ApiNode) {
    let Some(spec) = node.spec.get_mut() else { return };
    if let Some(all) = spec.pod_cidrs.get_or_default()
        && all.is_empty()
        && !matches!(&spec.pod_cidr, Given::Good(cidr) if cidr.is_empty())
        && !spec.pod_cidr.is_absent()
    {
        all.push(spec.pod_cidr.clone());
    }
}

fn namespace(metadata: &mut Given<Metadata>) {
    if let Some(metadata) = metadata.get_or_default() {
        fill(&mut metadata.namespace, "default");
    }
}

/// The API takes an empty text for an absent one.
fn fill(field: &mut Given<String>, default: &str) {
    if field.is_absent() || field.get().is_some_and(String::is_empty) {
        *field = Given::Good(default.to_owned());
    }
}
