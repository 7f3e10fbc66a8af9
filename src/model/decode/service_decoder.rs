//! Decodes Services. Source: kube-proxy v1.36, `pkg/proxy/servicechangetracker.go` and `serviceport.go`.

use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::net::IpAddr;

use jiff::Timestamp;

use super::decoded::Decoded;
use super::field_reader::{FieldReader, NOT_A_CIDR, NOT_AN_IP};
use super::field_value::FieldValue;
use super::grammar::is_dns_label;
use super::interner::Interner;
use super::object::{ApiObject, ApiService, Ingress, Metadata, ServicePortEntry, ServiceSpec};

use crate::model::{Frontend, NotProxied, ObjectKind, ObjectName, Port, Service, TrafficPolicy};
use crate::net::{Cidr, IpFamily, PerFamily, Protocol};

/// The API server's default for ClientIP affinity, in seconds.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// The longest affinity that the API allows, in seconds.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Decodes a Service; if it is not proxied, its [`Decoded`] has no value.
pub fn service(object: &ApiService, interner: &mut Interner) -> Decoded<Service> {
    let mut fields = FieldReader::new(ObjectKind::Service, &object.claimed_name().to_string());
    let empty = Metadata::default();
    let metadata = object.metadata.get().unwrap_or(&empty);
    let what = "is not a DNS label; Service ignored";
    let namespace =
        fields.checked_text(format_args!("metadata.namespace"), &metadata.namespace, is_dns_label, what);
    let name = fields.checked_text(format_args!("metadata.name"), &metadata.name, is_dns_label, what);
    let (Some(namespace), Some(name)) = (namespace, name) else {
        return Decoded { named: None, problems: fields.into_problems() };
    };
    let name = interner.object_name(namespace, name);
    let value = proxied_spec(&mut fields, object, metadata)
        .and_then(|spec| decode_spec(&mut fields, object, spec, &name, interner))
        .map(|service| Service { created: created(&mut fields, metadata), ..service });
    Decoded { named: Some((name, value)), problems: fields.into_problems() }
}

/// The spec of a Service that this proxy serves: it has a cluster IP, is not ExternalName, and has no label
/// for another proxy, whatever the label's value.
fn proxied_spec<'a>(
    fields: &mut FieldReader,
    object: &'a ApiService,
    metadata: &Metadata,
) -> Option<&'a ServiceSpec> {
    fields.valid(format_args!("metadata.labels"), &metadata.labels, "ignored");
    if not_proxied(object).is_some() {
        return None;
    }
    let spec = fields.valid(format_args!("spec"), &object.spec, "Service ignored")?;
    let what = "is not an IP address; not proxied at it";
    fields.text(format_args!("spec.clusterIP"), &spec.cluster_ip, what).map(|_| spec)
}

/// Why a Service is not served by kube-proxy, whatever else it contains; `None` for a Service that is, or that is
/// malformed.
pub fn not_proxied(object: &ApiService) -> Option<NotProxied> {
    let labels = object.metadata.get().and_then(|metadata| metadata.labels.get());
    if labels.is_some_and(|labels| !labels.service_proxy_name.is_absent()) {
        return Some(NotProxied::OtherProxy);
    }
    let spec = object.spec.get()?;
    if spec.type_.text() == "ExternalName" {
        return Some(NotProxied::ExternalName);
    }
    match &spec.cluster_ip {
        FieldValue::Absent => Some(NotProxied::NoClusterIp),
        FieldValue::Valid(ip) if ip.is_empty() => Some(NotProxied::NoClusterIp),
        FieldValue::Valid(ip) if ip == "None" => Some(NotProxied::Headless),
        _ => None,
    }
}

fn decode_spec(
    fields: &mut FieldReader,
    object: &ApiService,
    spec: &ServiceSpec,
    name: &ObjectName,
    interner: &mut Interner,
) -> Option<Service> {
    let frontends = frontends(fields, spec, object)?;
    let ports = ports(fields, spec, interner);
    let field = format_args!("spec.internalTrafficPolicy");
    let internal_policy = fields.policy(field, &spec.internal_traffic_policy);
    let external_policy = external_policy(fields, spec);
    let affinity_seconds = affinity(fields, spec);
    let health_check_node_port = health_check_node_port(fields, spec, external_policy);
    Some(Service {
        name: name.clone(),
        frontends,
        ports,
        internal_policy,
        external_policy,
        affinity_seconds,
        health_check_node_port,
        created: None,
    })
}

/// Creation time, in seconds since 1970. Files mostly do not contain it.
fn created(fields: &mut FieldReader, metadata: &Metadata) -> Option<i64> {
    let field = format_args!("metadata.creationTimestamp");
    let text = fields.text(field, &metadata.creation_timestamp, "is not a time; ignored")?;
    text.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// The addresses of the Service; `None` when it has no cluster IP in either family.
fn frontends(
    fields: &mut FieldReader,
    spec: &ServiceSpec,
    object: &ApiService,
) -> Option<PerFamily<Option<Frontend>>> {
    let cluster_ips = cluster_ips(fields, spec);
    if cluster_ips == PerFamily::default() {
        return None;
    }
    let mut external_ips = PerFamily::<Vec<_>>::default();
    for (i, given) in fields.list(format_args!("spec.externalIPs"), &spec.external_ips).iter().enumerate() {
        // Old API servers accepted empty entries; kube-proxy skips them without a message.
        let is_blank =
            matches!(given, FieldValue::Absent) || given.get().is_some_and(|text| text.trim().is_empty());
        if !is_blank && let Some(ip) = fields.ip(format_args!("spec.externalIPs[{i}]"), given, NOT_AN_IP) {
            external_ips.get_mut(IpFamily::of(ip)).push(ip);
        }
    }
    let source_ranges = source_ranges(fields, spec);
    let mut load_balancer_ips = PerFamily::<Vec<_>>::default();
    for (i, entry) in ingress(fields, object).iter().enumerate() {
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

/// The cluster IP of each family: the entry of `clusterIPs` at the family's index in `ipFamilies`, or
/// `clusterIP` without `ipFamilies`.
fn cluster_ips(fields: &mut FieldReader, spec: &ServiceSpec) -> PerFamily<Option<IpAddr>> {
    let what = "is not an IP address; not proxied at it";
    let mut ips = PerFamily::default();
    let families = fields.list(format_args!("spec.ipFamilies"), &spec.ip_families);
    if families.is_empty() {
        if let Some(ip) = fields.ip(format_args!("spec.clusterIP"), &spec.cluster_ip, what) {
            *ips.get_mut(IpFamily::of(ip)) = Some(ip);
        }
        return ips;
    }
    let all = fields.list(format_args!("spec.clusterIPs"), &spec.cluster_ips);
    let mut seen = PerFamily::default();
    for (i, given) in families.iter().enumerate() {
        let Some(family) = ip_family(fields, format_args!("spec.ipFamilies[{i}]"), given) else { continue };
        let Some(given) = all.get(i) else { continue };
        if std::mem::replace(seen.get_mut(family), true) {
            continue; // only the first entry of a family is used
        }
        let field = format_args!("spec.clusterIPs[{i}]");
        match fields.ip(field, given, what) {
            Some(ip) if IpFamily::of(ip) == family => *ips.get_mut(family) = Some(ip),
            Some(_) => fields.report(
                field,
                given.text(),
                &format!("is not an {family} address, as spec.ipFamilies says; not proxied in {family}"),
            ),
            None => {}
        }
    }
    ips
}

fn ip_family(fields: &mut FieldReader, field: Arguments<'_>, given: &FieldValue<String>) -> Option<IpFamily> {
    let what = "is not IPv4 or IPv6; ignored";
    match fields.text(field, given, what)? {
        "IPv4" => Some(IpFamily::V4),
        "IPv6" => Some(IpFamily::V6),
        other => {
            fields.report(field, other, what);
            None
        }
    }
}

/// Allowed sources by family, masked; a family with a range of all addresses has an empty list.
fn source_ranges(fields: &mut FieldReader, spec: &ServiceSpec) -> PerFamily<Vec<Cidr>> {
    let mut ranges = PerFamily::<Vec<_>>::default();
    let given = fields.list(format_args!("spec.loadBalancerSourceRanges"), &spec.load_balancer_source_ranges);
    for (i, given) in given.iter().enumerate() {
        let field = format_args!("spec.loadBalancerSourceRanges[{i}]");
        let text = fields.text(field, given, NOT_A_CIDR).unwrap_or_default().trim();
        if !text.is_empty()
            && let Some(range) = fields.cidr(field, text)
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

fn ingress<'a>(fields: &mut FieldReader, object: &'a ApiService) -> &'a [FieldValue<Ingress>] {
    let status = fields.valid(format_args!("status"), &object.status, "ignored");
    let status = status.and_then(|status| {
        fields.valid(format_args!("status.loadBalancer"), &status.load_balancer, "ignored")
    });
    status.map_or(&[], |status| fields.list(format_args!("status.loadBalancer.ingress"), &status.ingress))
}

/// The address of a load balancer that keeps it as the packets' destination (ipMode VIP or absent).
fn virtual_ip(fields: &mut FieldReader, i: usize, entry: &FieldValue<Ingress>) -> Option<IpAddr> {
    let entry = fields.entry(format_args!("status.loadBalancer.ingress[{i}]"), entry, "ignored")?;
    if entry.ip.is_absent() || entry.ip.get().is_some_and(String::is_empty) {
        return None;
    }
    let field = format_args!("status.loadBalancer.ingress[{i}].ipMode");
    let what = "is not VIP or Proxy; address ignored";
    let mode = if entry.ip_mode.is_absent() { "VIP" } else { fields.text(field, &entry.ip_mode, what)? };
    match mode {
        "VIP" => fields.ip(format_args!("status.loadBalancer.ingress[{i}].ip"), &entry.ip, NOT_AN_IP),
        "Proxy" => None,
        mode => {
            fields.report(field, mode, what);
            None
        }
    }
}

/// The usable ports; of two with the same name and protocol, the later one.
fn ports(fields: &mut FieldReader, spec: &ServiceSpec, interner: &mut Interner) -> Box<[Port]> {
    let entries = fields.list(format_args!("spec.ports"), &spec.ports);
    let mut ports: Vec<Option<Port>> = Vec::with_capacity(entries.len());
    let mut latest = LatestIndex::default();
    for (i, entry) in entries.iter().enumerate() {
        let Some((name, port)) = port(fields, i, entry, interner) else { continue };
        if let Some(earlier) = latest.replace((name, port.protocol), ports.len()) {
            let what = "is the name of an earlier port of the same protocol; the earlier one is ignored";
            fields.report(format_args!("spec.ports[{i}].name"), name, what);
            ports[earlier] = None;
        }
        ports.push(Some(port));
    }
    ports.into_iter().flatten().collect()
}

/// The index of the latest entry of each key. A Service may have 40 000 ports: comparing all pairs takes
/// seconds at every change.
struct LatestIndex<K>(BTreeMap<K, usize>);

impl<K> Default for LatestIndex<K> {
    fn default() -> LatestIndex<K> {
        LatestIndex(BTreeMap::new())
    }
}

impl<K: Ord> LatestIndex<K> {
    /// Sets the index of `key` to `index`; returns the previous one.
    fn replace(&mut self, key: K, index: usize) -> Option<usize> {
        self.0.insert(key, index)
    }
}

fn port<'a>(
    fields: &mut FieldReader,
    i: usize,
    entry: &'a FieldValue<ServicePortEntry>,
    interner: &mut Interner,
) -> Option<(&'a str, Port)> {
    let entry = fields.entry(format_args!("spec.ports[{i}]"), entry, "port ignored")?;
    let is_named = |text: &str| text.is_empty() || is_dns_label(text);
    let what = "is not a DNS label; port ignored";
    let name = fields.checked_text(format_args!("spec.ports[{i}].name"), &entry.name, is_named, what);
    let protocol = fields.protocol(format_args!("spec.ports[{i}].protocol"), &entry.protocol);
    let number = fields.port(format_args!("spec.ports[{i}].port"), &entry.port, "port ignored");
    let (name, protocol, port): (&str, Protocol, u16) = (name?, protocol?, number?);
    let node_port = match entry.node_port {
        FieldValue::Absent | FieldValue::Valid(0) => None,
        _ => fields.port(format_args!("spec.ports[{i}].nodePort"), &entry.node_port, "ignored"),
    };
    Some((name, Port { name: interner.text(name), protocol, port, node_port }))
}

/// `externalTrafficPolicy`, which is used only where the type (or an external IP, of either family) makes
/// the Service reachable from outside.
fn external_policy(fields: &mut FieldReader, spec: &ServiceSpec) -> TrafficPolicy {
    let field = format_args!("spec.externalTrafficPolicy");
    let policy = fields.policy(field, &spec.external_traffic_policy);
    let field = format_args!("spec.type");
    let what = "is not ClusterIP, NodePort, LoadBalancer or ExternalName; taken as ClusterIP";
    let has_external_ips = !spec.external_ips.items().is_empty();
    let is_external = match fields.text(field, &spec.type_, what) {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("" | "ClusterIP") => has_external_ips,
        Some(other) => {
            fields.report(field, other, what);
            has_external_ips
        }
    };
    if is_external { policy } else { TrafficPolicy::Cluster }
}

fn affinity(fields: &mut FieldReader, spec: &ServiceSpec) -> Option<u32> {
    let field = format_args!("spec.sessionAffinity");
    let what = "is not None or ClientIP; taken as None";
    match fields.text(field, &spec.session_affinity, what)? {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            fields.report(field, other, what);
            return None;
        }
    }
    Some(affinity_seconds(fields, spec).unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

fn affinity_seconds(fields: &mut FieldReader, spec: &ServiceSpec) -> Option<u32> {
    let config = &spec.session_affinity_config;
    let config = fields.valid(format_args!("spec.sessionAffinityConfig"), config, "ignored")?;
    let client_ip =
        fields.valid(format_args!("spec.sessionAffinityConfig.clientIP"), &config.client_ip, "ignored")?;
    let field = format_args!("spec.sessionAffinityConfig.clientIP.timeoutSeconds");
    let what = format!("is not between 1 and {MAX_AFFINITY_SECONDS}; {DEFAULT_AFFINITY_SECONDS} is used");
    let seconds = *fields.valid(field, &client_ip.timeout_seconds, &what)?;
    match u32::try_from(seconds) {
        Ok(seconds @ 1..=MAX_AFFINITY_SECONDS) => Some(seconds),
        _ => {
            fields.report(field, &seconds.to_string(), &what);
            None
        }
    }
}

/// The health check port, which only a load balancer with external policy Local has.
fn health_check_node_port(
    fields: &mut FieldReader,
    spec: &ServiceSpec,
    external_policy: TrafficPolicy,
) -> Option<u16> {
    if spec.type_.text() != "LoadBalancer" || external_policy != TrafficPolicy::Local {
        return None;
    }
    let field = format_args!("spec.healthCheckNodePort");
    let given = match spec.health_check_node_port {
        FieldValue::Valid(0) => &FieldValue::Absent,
        ref given => given,
    };
    fields.port(field, given, "health checks are not answered")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;

    use super::*;

    /// A key that counts comparisons.
    struct ComparisonCounter<'a>(usize, &'a Cell<usize>);

    impl Ord for ComparisonCounter<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for ComparisonCounter<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for ComparisonCounter<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other) == Ordering::Equal
        }
    }

    impl Eq for ComparisonCounter<'_> {}

    #[test]
    fn port_names_are_not_compared_pairwise() {
        let n_compared = |n: usize| {
            let count = Cell::new(0);
            // Every name occurs twice, far apart.
            let mut latest = LatestIndex::default();
            let earlier: Vec<Option<usize>> =
                (0..n).map(|i| latest.replace(ComparisonCounter(i % (n / 2), &count), i)).collect();
            assert_eq!((earlier[0], earlier[n / 2], earlier[n - 1]), (None, Some(0), Some(n / 2 - 1)));
            count.get()
        };
        let (few, many) = (n_compared(4_000), n_compared(40_000));
        assert!(many < 15 * few, "{few} comparisons of 4 000 ports, {many} of 40 000");
    }
}
