//! EndpointSlices. Source: kube-proxy v1.36, `pkg/proxy/endpointslicecache.go`.

use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointSlice as ApiSlice};

use super::field::{Fields, list};
use super::grammar::{is_dns_label, is_dns_subdomain, is_label_value};
use super::{Decoded, Interner};
use crate::model::{Conditions, Hints, ObjectKind, ObjectName, Slice, SliceEndpoint, SliceName, SlicePort};
use crate::net::IpFamily;

/// Label of slices that belong to headless Services, whatever its value.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that names the Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation that tells when the change began that led to this slice.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Decodes an EndpointSlice; see [`Decoded`] for what becomes of one that counts for no Service.
pub fn slice(object: &ApiSlice, interner: &mut Interner) -> Decoded<Slice> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut fields = Fields::new(ObjectKind::EndpointSlice, &format!("{namespace}/{name}"));
    let identity = (
        fields.word(
            format_args!("metadata.namespace"),
            namespace,
            is_dns_label,
            "is not a DNS label; slice ignored",
        ),
        fields.word(
            format_args!("metadata.name"),
            name,
            is_dns_subdomain,
            "is not a DNS subdomain; slice ignored",
        ),
    );
    let (Some(namespace), Some(name)) = identity else {
        return Decoded { named: None, problems: fields.into_problems() };
    };
    let name: SliceName = ObjectName::new(namespace, name);
    let is_headless = object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(HEADLESS));
    let value = if is_headless { None } else { of_service(&mut fields, object, namespace, interner) };
    Decoded { named: Some((name, value)), problems: fields.into_problems() }
}

fn of_service(
    fields: &mut Fields,
    object: &ApiSlice,
    namespace: &str,
    interner: &mut Interner,
) -> Option<Slice> {
    let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    let service = fields.word(
        format_args!("metadata.labels[{SERVICE_NAME}]"),
        label.map_or("", String::as_str),
        is_dns_label,
        "is not the name of a Service; slice ignored",
    )?;
    let family = match object.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        other => {
            let what = "is not a family that can be proxied; slice ignored";
            fields.problem(format_args!("addressType"), other, what);
            return None;
        }
    };
    let service = interner.object_name(namespace, service);
    let endpoints = list(&object.endpoints).iter().enumerate();
    let endpoints = endpoints.filter_map(|(i, entry)| endpoint(fields, i, entry, family, interner)).collect();
    let triggered_at = triggered_at(fields, object);
    Some(Slice { service, family, ports: ports(fields, object, interner), endpoints, triggered_at })
}

fn triggered_at(fields: &mut Fields, object: &ApiSlice) -> Option<SystemTime> {
    let text = object.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    let time = text.parse::<Timestamp>().ok().map(SystemTime::from);
    if time.is_none() {
        let field = format_args!("metadata.annotations[{TRIGGER_TIME}]");
        fields.problem(field, text, "is not an RFC 3339 time; ignored");
    }
    time
}

fn ports(fields: &mut Fields, object: &ApiSlice, interner: &mut Interner) -> Box<[SlicePort]> {
    let mut ports = Vec::with_capacity(list(&object.ports).len());
    for (i, entry) in list(&object.ports).iter().enumerate() {
        let Some(name) = entry.name.as_deref() else {
            fields.problem(format_args!("ports[{i}].name"), "", "is absent; port ignored");
            continue;
        };
        let is_named = |text: &str| text.is_empty() || is_dns_label(text);
        let what = "is not a DNS label; port ignored";
        let name = fields.word(format_args!("ports[{i}].name"), name, is_named, what);
        let protocol = fields.protocol(format_args!("ports[{i}].protocol"), entry.protocol.as_deref());
        let number = match entry.port {
            Some(number) => fields.port(format_args!("ports[{i}].port"), number, "port ignored"),
            None => {
                fields.problem(format_args!("ports[{i}].port"), "", "is absent; port ignored");
                None
            }
        };
        if let (Some(name), Some(protocol), Some(port)) = (name, protocol, number) {
            ports.push(SlicePort { name: interner.text(name), protocol, port });
        }
    }
    ports.into()
}

fn endpoint(
    fields: &mut Fields,
    i: usize,
    entry: &ApiEndpoint,
    family: IpFamily,
    interner: &mut Interner,
) -> Option<SliceEndpoint> {
    let Some(text) = entry.addresses.first() else {
        fields.problem(format_args!("endpoints[{i}].addresses"), "", "is empty; endpoint ignored");
        return None;
    };
    let field = format_args!("endpoints[{i}].addresses[0]");
    match crate::net::parse_ip(text) {
        Ok(ip) if IpFamily::of(ip) == family => {
            let node = entry.node_name.as_deref().and_then(|name| {
                let field = format_args!("endpoints[{i}].nodeName");
                fields.word(field, name, is_dns_subdomain, "is not the name of a node; ignored")
            });
            let node = node.map(|name| interner.text(name));
            let hints = hints(fields, i, entry, interner);
            Some(SliceEndpoint { ip, conditions: conditions(entry), node, hints })
        }
        Ok(_) => {
            let what = format!("is not an {family} address, as addressType says; endpoint ignored");
            fields.problem(field, text, &what);
            None
        }
        Err(_) => {
            fields.problem(field, text, "is not an IP address; endpoint ignored");
            None
        }
    }
}

fn conditions(entry: &ApiEndpoint) -> Conditions {
    let given = entry.conditions.as_ref();
    Conditions {
        is_ready: given.and_then(|given| given.ready).unwrap_or(true),
        is_serving: given.and_then(|given| given.serving).unwrap_or(true),
        is_terminating: given.and_then(|given| given.terminating).unwrap_or(false),
    }
}

fn hints(fields: &mut Fields, i: usize, entry: &ApiEndpoint, interner: &mut Interner) -> Option<Box<Hints>> {
    let given = entry.hints.as_ref()?;
    let mut zones: Vec<Arc<str>> = Vec::new();
    for (j, zone) in list(&given.for_zones).iter().enumerate() {
        let field = format_args!("endpoints[{i}].hints.forZones[{j}].name");
        let name = fields.word(field, &zone.name, is_label_value, "is not the name of a zone; ignored");
        zones.extend(name.map(|name| interner.text(name)));
    }
    let mut nodes: Vec<Arc<str>> = Vec::new();
    for (j, node) in list(&given.for_nodes).iter().enumerate() {
        let field = format_args!("endpoints[{i}].hints.forNodes[{j}].name");
        let name = fields.word(field, &node.name, is_dns_subdomain, "is not the name of a node; ignored");
        nodes.extend(name.map(|name| interner.text(name)));
    }
    if zones.is_empty() && nodes.is_empty() {
        return None;
    }
    for list in [&mut zones, &mut nodes] {
        list.sort_unstable();
        list.dedup();
    }
    Some(Box::new(Hints { zones: zones.into(), nodes: nodes.into() }))
}
