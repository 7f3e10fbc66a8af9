//! Decodes EndpointSlices. Source: kube-proxy v1.36, `pkg/proxy/endpointslicecache.go`.

use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;

use super::decoded::Decoded;
use super::field_reader::FieldReader;
use super::field_value::FieldValue;
use super::grammar::{is_dns_label, is_dns_subdomain, is_label_value};
use super::interner::Interner;
use super::object::{ApiObject, ApiSlice, EndpointEntry, Labels, Metadata, NamedEntry};

use crate::model::{Conditions, Hints, ObjectKind, ObjectName, Slice, SliceEndpoint, SliceName, SlicePort};
use crate::net::IpFamily;

/// Label with the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation with the time of the cause of the slice's last change.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Decodes an EndpointSlice; without a Service, its [`Decoded`] has no value.
pub fn slice(object: &ApiSlice, interner: &mut Interner) -> Decoded<Slice> {
    let mut fields = FieldReader::new(ObjectKind::EndpointSlice, &object.claimed_name().to_string());
    let empty = Metadata::default();
    let metadata = object.metadata.get().unwrap_or(&empty);
    let namespace = fields.checked_text(
        format_args!("metadata.namespace"),
        &metadata.namespace,
        is_dns_label,
        "is not a DNS label; slice ignored",
    );
    let name = fields.checked_text(
        format_args!("metadata.name"),
        &metadata.name,
        is_dns_subdomain,
        "is not a DNS subdomain; slice ignored",
    );
    let (Some(namespace), Some(name)) = (namespace, name) else {
        return Decoded { named: None, problems: fields.into_problems() };
    };
    let name: SliceName = ObjectName::new(namespace, name);
    let no_labels = Labels::default();
    let labels =
        fields.valid(format_args!("metadata.labels"), &metadata.labels, "ignored").unwrap_or(&no_labels);
    let is_headless = !labels.headless.is_absent();
    let value = if is_headless {
        None
    } else {
        decode_with_service(&mut fields, object, (namespace, &labels.service_name), interner)
    };
    Decoded { named: Some((name, value)), problems: fields.into_problems() }
}

fn decode_with_service(
    fields: &mut FieldReader,
    object: &ApiSlice,
    (namespace, service): (&str, &FieldValue<String>),
    interner: &mut Interner,
) -> Option<Slice> {
    let field = format_args!("metadata.labels[{SERVICE_NAME}]");
    let what = "is not the name of a Service; slice ignored";
    if service.is_absent() || service.get().is_some_and(String::is_empty) {
        // A slice that another program uses.
        fields.report_unused(field, "", what);
        return None;
    }
    let service = fields.checked_text(field, service, is_dns_label, what)?;
    let field = format_args!("addressType");
    let what = "is not a family that can be proxied; slice ignored";
    let family = match fields.text(field, &object.address_type, what)? {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        "FQDN" => {
            fields.report_unused(field, "FQDN", what);
            return None;
        }
        other => {
            fields.report(field, other, what);
            return None;
        }
    };
    let service = interner.object_name(namespace, service);
    let endpoints = fields.list(format_args!("endpoints"), &object.endpoints).iter().enumerate();
    let endpoints = endpoints.filter_map(|(i, entry)| endpoint(fields, i, entry, family, interner)).collect();
    let triggered_at = triggered_at(fields, object);
    Some(Slice { service, family, ports: ports(fields, object, interner), endpoints, triggered_at })
}

fn triggered_at(fields: &mut FieldReader, object: &ApiSlice) -> Option<SystemTime> {
    let annotations = &object.metadata.get()?.annotations;
    let given = &fields.valid(format_args!("metadata.annotations"), annotations, "ignored")?.trigger_time;
    let field = format_args!("metadata.annotations[{TRIGGER_TIME}]");
    let what = "is not an RFC 3339 time; ignored";
    let text = fields.valid(field, given, what)?;
    let time = text.parse::<Timestamp>().ok().map(SystemTime::from);
    if time.is_none() {
        fields.report(field, text, what);
    }
    time
}

fn ports(fields: &mut FieldReader, object: &ApiSlice, interner: &mut Interner) -> Box<[SlicePort]> {
    let entries = fields.list(format_args!("ports"), &object.ports);
    let mut ports = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        let Some(entry) = fields.entry(format_args!("ports[{i}]"), entry, "port ignored") else { continue };
        if entry.name.is_absent() {
            fields.report(format_args!("ports[{i}].name"), "", "is absent; port ignored");
            continue;
        }
        let is_named = |text: &str| text.is_empty() || is_dns_label(text);
        let what = "is not a DNS label; port ignored";
        let name = fields.checked_text(format_args!("ports[{i}].name"), &entry.name, is_named, what);
        let protocol = fields.protocol(format_args!("ports[{i}].protocol"), &entry.protocol);
        let field = format_args!("ports[{i}].port");
        if entry.port.is_absent() {
            // In a slice this stands for all ports, which no Service has.
            fields.report_unused(field, "", "is absent; port ignored");
            continue;
        }
        let number = fields.port(field, &entry.port, "port ignored");
        if let (Some(name), Some(protocol), Some(port)) = (name, protocol, number) {
            ports.push(SlicePort { name: interner.text(name), protocol, port });
        }
    }
    ports.into()
}

fn endpoint(
    fields: &mut FieldReader,
    i: usize,
    entry: &FieldValue<EndpointEntry>,
    family: IpFamily,
    interner: &mut Interner,
) -> Option<SliceEndpoint> {
    let entry = fields.entry(format_args!("endpoints[{i}]"), entry, "endpoint ignored")?;
    let field = format_args!("endpoints[{i}].addresses");
    let first = match &entry.addresses {
        FieldValue::Absent => None,
        addresses => fields.valid(field, addresses, "endpoint ignored")?.0.as_ref(),
    };
    let Some(first) = first else {
        fields.report(field, "", "is empty; endpoint ignored");
        return None;
    };
    let field = format_args!("endpoints[{i}].addresses[0]");
    let ip = fields.ip(field, first, "is not an IP address; endpoint ignored")?;
    if IpFamily::of(ip) != family {
        let what = format!("is not an {family} address, as addressType says; endpoint ignored");
        fields.report(field, first.text(), &what);
        return None;
    }
    let node = Some(&entry.node_name).filter(|name| !name.is_absent()).and_then(|name| {
        let field = format_args!("endpoints[{i}].nodeName");
        fields.checked_text(field, name, is_dns_subdomain, "is not the name of a node; ignored")
    });
    let node = node.map(|name| interner.text(name));
    let hints = hints(fields, i, entry, interner);
    Some(SliceEndpoint { ip, conditions: conditions(fields, i, entry), node, hints })
}

fn conditions(fields: &mut FieldReader, i: usize, entry: &EndpointEntry) -> Conditions {
    let mut conditions = Conditions { is_ready: true, is_serving: true, is_terminating: false };
    let field = format_args!("endpoints[{i}].conditions");
    if let Some(given) = fields.valid(field, &entry.conditions, "ignored") {
        let each = [
            ("ready", &given.ready, &mut conditions.is_ready),
            ("serving", &given.serving, &mut conditions.is_serving),
            ("terminating", &given.terminating, &mut conditions.is_terminating),
        ];
        for (name, given, is) in each {
            let field = format_args!("endpoints[{i}].conditions.{name}");
            *is = fields.valid(field, given, "ignored").copied().unwrap_or(*is);
        }
    }
    conditions
}

fn hints(
    fields: &mut FieldReader,
    i: usize,
    entry: &EndpointEntry,
    interner: &mut Interner,
) -> Option<Box<Hints>> {
    let given = fields.valid(format_args!("endpoints[{i}].hints"), &entry.hints, "ignored")?;
    let mut read = |list: &str,
                    given: &FieldValue<Vec<FieldValue<NamedEntry>>>,
                    has_grammar: fn(&str) -> bool,
                    what| {
        let mut names: Vec<Arc<str>> = Vec::new();
        let entries = fields.list(format_args!("endpoints[{i}].hints.{list}"), given);
        for (j, entry) in entries.iter().enumerate() {
            let field = format_args!("endpoints[{i}].hints.{list}[{j}]");
            let Some(entry) = fields.entry(field, entry, "ignored") else { continue };
            let field = format_args!("endpoints[{i}].hints.{list}[{j}].name");
            names.extend(
                fields.checked_text(field, &entry.name, has_grammar, what).map(|name| interner.text(name)),
            );
        }
        names.sort_unstable();
        names.dedup();
        names
    };
    let zones = read("forZones", &given.for_zones, is_label_value, "is not the name of a zone; ignored");
    let nodes = read("forNodes", &given.for_nodes, is_dns_subdomain, "is not the name of a node; ignored");
    if zones.is_empty() && nodes.is_empty() {
        return None;
    }
    Some(Box::new(Hints { zones: zones.into(), nodes: nodes.into() }))
}
