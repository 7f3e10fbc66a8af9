//! Defaults and validation of a real server before it stores an object, as far as proxies
//! and tests depend on them. Nothing is allocated, so nothing is rejected as in use or out of range.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::answer::{Cause, Refusal};
use super::resource::Resource;

/// Sets the defaults that a real server sets.
pub fn complete(resource: &Resource, value: &mut Value) {
    match resource.kind {
        "EndpointSlice" => complete_slice(value),
        "Service" => {
            for ingress in list_mut(value, "/status/loadBalancer/ingress") {
                if ingress["ip"].is_string() && ingress["ipMode"].is_null() {
                    ingress["ipMode"] = "VIP".into();
                }
            }
        }
        _ => {}
    }
}

fn complete_slice(value: &mut Value) {
    for field in ["endpoints", "ports"] {
        if value[field].as_array().is_none_or(Vec::is_empty) {
            value[field] = Value::Null;
        }
    }
    for endpoint in list_mut(value, "/endpoints") {
        drop_nulls(&mut endpoint["conditions"]);
        if endpoint["conditions"].is_null() {
            endpoint["conditions"] = json!({});
        }
        if endpoint["hints"]["forZones"].as_array().is_some_and(Vec::is_empty) {
            endpoint["hints"] = json!({});
        }
        drop_nulls(endpoint);
    }
    for port in list_mut(value, "/ports") {
        drop_nulls(port);
        for (field, default) in [("name", ""), ("protocol", "TCP")] {
            if port[field].is_null() {
                port[field] = default.into();
            }
        }
    }
}

fn drop_nulls(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

/// Rejects what a real server rejects in the object `name` that replaces `old`, or is new.
pub fn check(resource: &Resource, name: &str, value: &Value, old: Option<&Value>) -> Result<(), Refusal> {
    let mut causes = Vec::new();
    match resource.kind {
        "Node" => check_node(value, old, &mut causes),
        "EndpointSlice" => check_slice(value, old, &mut causes),
        "Service" => check_service(value, old, &mut causes),
        _ => {}
    }
    if causes.is_empty() { Ok(()) } else { Err(Refusal::invalid(resource, name, &causes)) }
}

fn check_node(value: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let cidrs = &value["spec"]["podCIDRs"];
    let texts = items(cidrs);
    for (index, cidr) in texts.iter().enumerate() {
        if let Err(why) = cidr_text(cidr.as_str().unwrap_or("")) {
            causes.push(Cause::invalid(format!("spec.podCIDRs[{index}]"), cidr, &why));
        }
    }
    let is_v6 = |cidr: &&Value| cidr.as_str().is_some_and(|text| text.contains(':'));
    let n_v6 = texts.iter().filter(is_v6).count();
    if causes.is_empty() && (n_v6 > 1 || texts.len() - n_v6 > 1) {
        let why = "may specify no more than one CIDR for each IP family";
        causes.push(Cause::invalid("spec.podCIDRs", cidrs, why));
    }
    let before = old.map_or(&[][..], |old| items(&old["spec"]["podCIDRs"]));
    if !before.is_empty() && before != texts {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        causes.push(Cause::forbidden("spec.podCIDRs", why));
    }
}

fn check_slice(value: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let family = value["addressType"].as_str().unwrap_or("");
    if family.is_empty() {
        causes.push(Cause::required("addressType", ""));
    } else if !matches!(family, "IPv4" | "IPv6" | "FQDN") {
        causes.push(Cause::unsupported("addressType", &value["addressType"], &["FQDN", "IPv4", "IPv6"]));
    }
    for (index, endpoint) in items(&value["endpoints"]).iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let addresses = items(&endpoint["addresses"]);
        if addresses.is_empty() {
            causes.push(Cause::required(&field, "must contain at least 1 address"));
        }
        for (at, address) in addresses.iter().enumerate() {
            check_address(family, address, &field, at, causes);
        }
    }
    let ports = items(&value["ports"]);
    for (index, port) in ports.iter().enumerate() {
        let protocol = &port["protocol"];
        if !matches!(protocol.as_str(), None | Some("TCP" | "UDP" | "SCTP")) {
            let known = ["SCTP", "TCP", "UDP"];
            causes.push(Cause::unsupported(format!("ports[{index}].protocol"), protocol, &known));
        }
        if ports[..index].iter().any(|before| before["name"] == port["name"]) {
            causes.push(Cause::duplicate(format!("ports[{index}].name"), &port["name"]));
        }
    }
    if old.is_some_and(|old| old["addressType"] != value["addressType"]) {
        causes.push(Cause::invalid("addressType", &value["addressType"], "field is immutable"));
    }
}

fn check_address(family: &str, address: &Value, field: &str, at: usize, causes: &mut Vec<Cause>) {
    let (is_ipv6, word) = match family {
        "IPv4" => (false, "an IPv4"),
        "IPv6" => (true, "an IPv6"),
        _ => return,
    };
    let place = format!("{field}[{at}]");
    match ip_text(address.as_str().unwrap_or("")) {
        Err(why) => causes.push(Cause::invalid(place, address, &why)),
        Ok(ip) if ip.is_ipv6() != is_ipv6 => {
            causes.push(Cause::invalid(field, address, &format!("must be {word} address")));
        }
        Ok(ip) => causes.extend(special(ip).map(|why| Cause::invalid(place, address, why))),
    }
}

fn check_service(value: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &value["spec"];
    let has_no_ip = spec["type"] == "ExternalName" || spec["clusterIP"] == "None";
    let ports = items(&spec["ports"]);
    if ports.is_empty() && !has_no_ip {
        causes.push(Cause::required("spec.ports", ""));
    }
    let same = |one: &Value, two: &Value| {
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
        one["port"] == two["port"] && protocol(one) == protocol(two)
    };
    for (index, port) in ports.iter().enumerate() {
        if ports[..index].iter().any(|before| same(before, port)) {
            causes.push(Cause::duplicate(format!("spec.ports[{index}]"), port));
        }
    }
    for (index, ip) in items(&spec["externalIPs"]).iter().enumerate() {
        let text = ip.as_str().unwrap_or("");
        let why = match text.parse::<IpAddr>() {
            Ok(ip) => special(ip),
            Err(_) => Some(NO_ADDRESS),
        };
        causes.extend(why.map(|why| Cause::invalid(format!("spec.externalIPs[{index}]"), ip, why)));
    }
    for (index, ingress) in items(&value["status"]["loadBalancer"]["ingress"]).iter().enumerate() {
        let field = format!("status.loadBalancer.ingress[{index}].ip");
        let refusal = ingress["ip"].as_str().and_then(|ip| ip_text(ip).err());
        causes.extend(refusal.map(|why| Cause::invalid(field, &ingress["ip"], &why)));
    }
    let before = old.map_or(&Value::Null, |old| &old["spec"]["clusterIP"]);
    let keeps = spec["type"] == "ExternalName" || before == &spec["clusterIP"];
    if before.as_str().is_some_and(|ip| !ip.is_empty()) && !keeps {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &json!([spec["clusterIP"]]),
            "may not change once set",
        ));
    }
}

const NO_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// An address in the form that new API objects must have; the error is the reason of a rejection.
fn ip_text(text: &str) -> Result<IpAddr, String> {
    let has_zeros = |part: &str| part.len() > 1 && part.starts_with('0');
    if !text.contains(':') && text.split('.').any(has_zeros) {
        return Err("must not have leading 0s".to_owned());
    }
    let ip: IpAddr = text.parse().map_err(|_| NO_ADDRESS.to_owned())?;
    if let IpAddr::V6(ip) = ip
        && ip.to_ipv4_mapped().is_some()
    {
        return Err("must not be an IPv4-mapped IPv6 address".to_owned());
    }
    if ip.to_string() != text {
        return Err(format!("must be in canonical form ({:?})", ip.to_string()));
    }
    Ok(ip)
}

/// The same for a network.
fn cidr_text(text: &str) -> Result<(), String> {
    let no_cidr = || "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned();
    let (address, length) = text.split_once('/').ok_or_else(no_cidr)?;
    let ip: IpAddr = address.parse().map_err(|_| no_cidr())?;
    let length: u32 = length.parse().map_err(|_| no_cidr())?;
    let (bits, n_bits) = match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    if length > n_bits {
        return Err(no_cidr());
    }
    // Shifted by all of its bits a number would stay unchanged.
    let host = u128::MAX.checked_shr(128 - (n_bits - length)).unwrap_or(0);
    if bits & host != 0 {
        return Err("must not have bits set beyond the prefix length".to_owned());
    }
    if ip.to_string() != address {
        return Err(format!("must be in canonical form (\"{ip}/{length}\")"));
    }
    Ok(())
}

/// Why an address is not allowed for an endpoint.
fn special(ip: IpAddr) -> Option<&'static str> {
    let (is_link_local, is_link_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == Ipv4Addr::new(224, 0, 0, 0).octets()[..3]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    match ip {
        _ if ip.is_unspecified() && ip.is_ipv4() => Some("may not be unspecified (0.0.0.0)"),
        _ if ip.is_unspecified() => Some("may not be unspecified (::)"),
        _ if ip.is_loopback() => Some("may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        _ if is_link_local => Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        _ if is_link_multicast => {
            Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
        }
        _ => None,
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn list_mut<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}
