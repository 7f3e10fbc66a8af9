//! Sets the API server's defaults in objects from files. Values that an API server would choose (cluster
//! IPs, node ports) cannot be set. Source: Kubernetes v1.36, `pkg/apis/core/v1/defaults.go`,
//! `pkg/apis/discovery/v1/defaults.go` and the Service registry's `defaultOnRead`.

use crate::model::decode::field_value::FieldValue;
use crate::model::decode::object::{ApiNode, ApiService, ApiSlice, Metadata, ServiceSpec};
use crate::net::{self, IpFamily};

/// Seconds of ClientIP affinity.
const DEFAULT_AFFINITY_SECONDS: i64 = 10_800;

/// Sets the defaults of a Service.
pub fn service(service: &mut ApiService) {
    namespace(&mut service.metadata);
    let Some(spec) = service.spec.get_or_default() else { return };
    set_default(&mut spec.type_, "ClusterIP");
    set_default(&mut spec.session_affinity, "None");
    if spec.session_affinity.text() == "ClientIP" {
        let client_ip = spec.session_affinity_config.get_or_default();
        let client_ip = client_ip.and_then(|config| config.client_ip.get_or_default());
        if let Some(client_ip) = client_ip.filter(|client_ip| client_ip.timeout_seconds.is_absent()) {
            client_ip.timeout_seconds = FieldValue::Valid(DEFAULT_AFFINITY_SECONDS);
        }
    }
    for port in spec.ports.items_mut().iter_mut().filter_map(FieldValue::get_mut) {
        set_default(&mut port.protocol, "TCP");
    }
    let is_external_name = spec.type_.text() == "ExternalName";
    if !is_external_name {
        set_default(&mut spec.internal_traffic_policy, "Cluster");
        cluster_ips(spec);
    }
    let has_external_ips = !spec.external_ips.items().is_empty();
    let is_load_balancer = spec.type_.text() == "LoadBalancer";
    if is_load_balancer || spec.type_.text() == "NodePort" || (!is_external_name && has_external_ips) {
        set_default(&mut spec.external_traffic_policy, "Cluster");
    }
    let status = service.status.get_mut().and_then(|status| status.load_balancer.get_mut());
    let ingress = status.map_or(&mut [][..], |status| status.ingress.items_mut());
    for entry in ingress.iter_mut().filter_map(FieldValue::get_mut) {
        if is_load_balancer && !entry.ip.text().is_empty() {
            set_default(&mut entry.ip_mode, "VIP");
        }
    }
}

/// Sets `clusterIP` and `clusterIPs` from each other, and `ipFamilies` from them.
fn cluster_ips(spec: &mut ServiceSpec) {
    let Some(all) = spec.cluster_ips.get_or_default() else { return };
    match &spec.cluster_ip {
        FieldValue::Valid(first) if !first.is_empty() => {
            if all.is_empty() {
                all.push(FieldValue::Valid(first.clone()));
            }
        }
        FieldValue::Absent | FieldValue::Valid(_) => {
            spec.cluster_ip = all.first().cloned().unwrap_or_default()
        }
        FieldValue::WrongType(_) => {}
    }
    if let Some(families) = spec.ip_families.get_or_default()
        && families.is_empty()
    {
        let family = |text: &FieldValue<String>| {
            net::parse_ip(text.text()).ok().map(|ip| IpFamily::of(ip).to_string())
        };
        // A malformed address has no family; decoding reports it.
        let known: Option<Vec<String>> = all.iter().map(family).collect();
        families.extend(known.unwrap_or_default().into_iter().map(FieldValue::Valid));
    }
}

/// Sets the defaults of an EndpointSlice.
pub fn slice(slice: &mut ApiSlice) {
    namespace(&mut slice.metadata);
    for port in slice.ports.items_mut().iter_mut().filter_map(FieldValue::get_mut) {
        port.name.get_or_default();
        set_default(&mut port.protocol, "TCP");
    }
}

/// Sets the defaults of a Node.
pub fn node(node: &mut ApiNode) {
    let Some(spec) = node.spec.get_mut() else { return };
    if let Some(all) = spec.pod_cidrs.get_or_default()
        && all.is_empty()
        && !matches!(&spec.pod_cidr, FieldValue::Valid(cidr) if cidr.is_empty())
        && !spec.pod_cidr.is_absent()
    {
        all.push(spec.pod_cidr.clone());
    }
}

fn namespace(metadata: &mut FieldValue<Metadata>) {
    if let Some(metadata) = metadata.get_or_default() {
        set_default(&mut metadata.namespace, "default");
    }
}

/// Sets a field that is absent or, as the API treats it, empty.
fn set_default(field: &mut FieldValue<String>, default: &str) {
    if field.is_absent() || field.get().is_some_and(String::is_empty) {
        *field = FieldValue::Valid(default.to_owned());
    }
}
