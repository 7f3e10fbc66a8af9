//! Services. Source: kube-proxy v1.36, `pkg/proxy/servicechangetracker.go` and `serviceport.go`.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service as ApiService, ServiceSpec};

use super::field::{Fields, list};
use super::grammar::is_dns_label;
use super::{Decoded, Interner};
use crate::model::{Frontend, ObjectKind, Port, Service, TrafficPolicy};
use crate::net::{Cidr, IpFamily, PerFamily};

/// Label of Services that another proxy serves, whatever its value.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// What an API server fills in for ClientIP affinity, seconds.
const AFFINITY_SECONDS: u32 = 10_800;
/// The longest affinity that the API allows, seconds.
const MOST_AFFINITY_SECONDS: u32 = 86_400;

/// Decodes a Service; see [`Decoded`] for what becomes of one that is not proxied.
pub fn service(object: &ApiService, interner: &mut Interner) -> Decoded<Service> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut fields = Fields::new(ObjectKind::Service, &format!("{namespace}/{name}"));
    let identity = (
        fields.word(
            format_args!("metadata.namespace"),
            namespace,
            is_dns_label,
            "is not a DNS label; Service ignored",
        ),
        fields.word(format_args!("metadata.name"), name, is_dns_label, "is not a DNS label; Service ignored"),
    );
    let (Some(namespace), Some(name)) = identity else {
        return Decoded { named: None, problems: fields.into_problems() };
    };
    let name = interner.object_name(namespace, name);
    let value = is_proxied(object).and_then(|spec| {
        let frontends = frontends(&mut fields, spec, ingress(object))?;
        let ports = ports(&mut fields, spec, interner);
        let internal_policy = fields
            .policy(format_args!("spec.internalTrafficPolicy"), spec.internal_traffic_policy.as_deref());
        let external_policy = external_policy(&mut fields, spec);
        let affinity_seconds = affinity(&mut fields, spec);
        let health_check_node_port = health_check_node_port(&mut fields, spec, external_policy);
        Some(Service {
            name: name.clone(),
            frontends,
            ports,
            internal_policy,
            external_policy,
            affinity_seconds,
            health_check_node_port,
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        })
    });
    Decoded { named: Some((name, value)), problems: fields.into_problems() }
}

/// The spec of a Service that is for this proxy: it has a cluster IP, is not ExternalName, and is
/// not labelled as another proxy's.
fn is_proxied(object: &ApiService) -> Option<&ServiceSpec> {
    let labels = object.metadata.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME)) {
        return None;
    }
    let spec = object.spec.as_ref()?;
    let is_headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    (!is_headless && spec.type_.as_deref() != Some("ExternalName")).then_some(spec)
}

fn ingress(object: &ApiService) -> &[LoadBalancerIngress] {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.map_or(&[], |status| list(&status.ingress))
}

/// What the Service answers on; `None` when it has no cluster IP in either family.
fn frontends(
    fields: &mut Fields,
    spec: &ServiceSpec,
    ingress: &[LoadBalancerIngress],
) -> Option<PerFamily<Option<Frontend>>> {
    let cluster_ips = cluster_ips(fields, spec);
    if cluster_ips == PerFamily::default() {
        return None;
    }
    let mut external_ips = PerFamily::<Vec<_>>::default();
    for (i, text) in list(&spec.external_ips).iter().enumerate() {
        // Old API servers let empty entries through; kube-proxy skips them without a word.
        if !text.trim().is_empty()
            && let Some(ip) = fields.ip(format_args!("spec.externalIPs[{i}]"), text)
        {
            external_ips.get_mut(IpFamily::of(ip)).push(ip);
        }
    }
    let source_ranges = source_ranges(fields, spec);
    let mut load_balancer_ips = PerFamily::<Vec<_>>::default();
    for (i, entry) in ingress.iter().enumerate() {
        if let Some(ip) = virtual_ip(fields, i, entry) {
            load_balancer_ips.get_mut(IpFamily::of(ip)).push(ip);
        }
    }
    let frontend = |family| {
        cluster_ips.get(family).map(|cluster_ip| Frontend {
            cluster_ip,
            external_ips: external_ips.get(family).clone().into(),
            load_balancer_ips: load_balancer_ips.get(family).clone().into(),
            source_ranges: source_ranges.get(family).clone().into(),
        })
    };
    Some(PerFamily { v4: frontend(IpFamily::V4), v6: frontend(IpFamily::V6) })
}

/// The cluster IP of each family: the entry of `clusterIPs` at the family's place in `ipFamilies`,
/// or `clusterIP` when there are no `ipFamilies`.
fn cluster_ips(fields: &mut Fields, spec: &ServiceSpec) -> PerFamily<Option<std::net::IpAddr>> {
    let mut ips = PerFamily::default();
    let families = list(&spec.ip_families);
    if families.is_empty() {
        let text = spec.cluster_ip.as_deref().unwrap_or_default();
        if let Some(ip) = cluster_ip(fields, format_args!("spec.clusterIP"), text) {
            *ips.get_mut(IpFamily::of(ip)) = Some(ip);
        }
        return ips;
    }
    let mut seen = PerFamily::default();
    for (i, text) in families.iter().enumerate() {
        let family = match text.as_str() {
            "IPv4" => IpFamily::V4,
            "IPv6" => IpFamily::V6,
            _ => {
                fields.problem(format_args!("spec.ipFamilies[{i}]"), text, "is not IPv4 or IPv6; ignored");
                continue;
            }
        };
        let Some(text) = list(&spec.cluster_ips).get(i) else { continue };
        if std::mem::replace(seen.get_mut(family), true) {
            continue; // only the first place of a family counts
        }
        match cluster_ip(fields, format_args!("spec.clusterIPs[{i}]"), text) {
            Some(ip) if IpFamily::of(ip) == family => *ips.get_mut(family) = Some(ip),
            Some(_) => fields.problem(
                format_args!("spec.clusterIPs[{i}]"),
                text,
                &format!("is not an {family} address, as spec.ipFamilies says; not proxied in {family}"),
            ),
            None => {}
        }
    }
    ips
}

fn cluster_ip(fields: &mut Fields, field: std::fmt::Arguments<'_>, text: &str) -> Option<std::net::IpAddr> {
    let ip = crate::net::parse_ip(text).ok();
    if ip.is_none() {
        fields.problem(field, text, "is not an IP address; not proxied at it");
    }
    ip
}

/// Allowed sources by family, masked; a family with an entry for everybody has an empty list.
fn source_ranges(fields: &mut Fields, spec: &ServiceSpec) -> PerFamily<Vec<Cidr>> {
    let mut ranges = PerFamily::<Vec<_>>::default();
    for (i, text) in list(&spec.load_balancer_source_ranges).iter().enumerate() {
        let text = text.trim();
        if !text.is_empty()
            && let Some(range) = fields.cidr(format_args!("spec.loadBalancerSourceRanges[{i}]"), text)
        {
            ranges.get_mut(range.family()).push(range);
        }
    }
    for family in IpFamily::BOTH {
        if ranges.get(family).iter().any(Cidr::is_everything) {
            ranges.get_mut(family).clear();
        }
    }
    ranges
}

/// The address of a load balancer that sends packets on with that address (ipMode VIP or absent).
fn virtual_ip(fields: &mut Fields, i: usize, entry: &LoadBalancerIngress) -> Option<std::net::IpAddr> {
    let text = entry.ip.as_deref().filter(|ip| !ip.is_empty())?;
    match entry.ip_mode.as_deref() {
        None | Some("VIP") => fields.ip(format_args!("status.loadBalancer.ingress[{i}].ip"), text),
        Some("Proxy") => None,
        Some(mode) => {
            let field = format_args!("status.loadBalancer.ingress[{i}].ipMode");
            fields.problem(field, mode, "is not VIP or Proxy; address ignored");
            None
        }
    }
}

/// The usable ports; of two with the same name and protocol the later one.
fn ports(fields: &mut Fields, spec: &ServiceSpec, interner: &mut Interner) -> Box<[Port]> {
    let mut ports: Vec<Port> = Vec::new();
    for (i, entry) in list(&spec.ports).iter().enumerate() {
        let name = entry.name.as_deref().unwrap_or_default();
        let is_named = |text: &str| text.is_empty() || is_dns_label(text);
        let name = fields.word(
            format_args!("spec.ports[{i}].name"),
            name,
            is_named,
            "is not a DNS label; port ignored",
        );
        let protocol = fields.protocol(format_args!("spec.ports[{i}].protocol"), entry.protocol.as_deref());
        let number = fields.port(format_args!("spec.ports[{i}].port"), entry.port, "port ignored");
        let (Some(name), Some(protocol), Some(port)) = (name, protocol, number) else { continue };
        let node_port = match entry.node_port {
            None | Some(0) => None,
            Some(number) => fields.port(format_args!("spec.ports[{i}].nodePort"), number, "ignored"),
        };
        if let Some(at) = ports.iter().position(|port| &*port.name == name && port.protocol == protocol) {
            let what = "is the name of an earlier port of the same protocol; the earlier one is ignored";
            fields.problem(format_args!("spec.ports[{i}].name"), name, what);
            ports.remove(at);
        }
        ports.push(Port { name: interner.text(name), protocol, port, node_port });
    }
    ports.into()
}

/// `externalTrafficPolicy`, which counts only where the type (or an external IP, of either family)
/// makes the Service reachable from outside.
fn external_policy(fields: &mut Fields, spec: &ServiceSpec) -> TrafficPolicy {
    let field = format_args!("spec.externalTrafficPolicy");
    let policy = fields.policy(field, spec.external_traffic_policy.as_deref());
    let is_external = match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("" | "ClusterIP") => !list(&spec.external_ips).is_empty(),
        Some(other) => {
            let what = "is not ClusterIP, NodePort, LoadBalancer or ExternalName; taken as ClusterIP";
            fields.problem(format_args!("spec.type"), other, what);
            !list(&spec.external_ips).is_empty()
        }
    };
    if is_external { policy } else { TrafficPolicy::Cluster }
}

fn affinity(fields: &mut Fields, spec: &ServiceSpec) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let what = "is not None or ClientIP; taken as None";
            fields.problem(format_args!("spec.sessionAffinity"), other, what);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
        return Some(AFFINITY_SECONDS);
    };
    match u32::try_from(seconds) {
        Ok(seconds @ 1..=MOST_AFFINITY_SECONDS) => Some(seconds),
        _ => {
            fields.problem(
                format_args!("spec.sessionAffinityConfig.clientIP.timeoutSeconds"),
                &seconds.to_string(),
                &format!("is not between 1 and {MOST_AFFINITY_SECONDS}; {AFFINITY_SECONDS} is used"),
            );
            Some(AFFINITY_SECONDS)
        }
    }
}

/// The health check port: only a load balancer with external policy Local has one.
fn health_check_node_port(
    fields: &mut Fields,
    spec: &ServiceSpec,
    external_policy: TrafficPolicy,
) -> Option<u16> {
    if spec.type_.as_deref() != Some("LoadBalancer") || external_policy != TrafficPolicy::Local {
        return None;
    }
    let field = format_args!("spec.healthCheckNodePort");
    match spec.health_check_node_port {
        None | Some(0) => {
            fields.problem(field, "", "is absent; health checks are not answered");
            None
        }
        Some(number) => fields.port(field, number, "health checks are not answered"),
    }
}
