//! The checks of settings: a value of the right type to a value with the grammar that it needs (config.md 4).
//! An error is the reason, `must be ...`; those with a [`Resolver`] report by element.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::checked::NodePortAddresses;
use super::diagnostics::{SetBy, quoted};
use super::duration::GoDuration;
use super::resolver::Resolver;
use super::setting::Setting;
use super::setting_value::{FlagPort, Folders, SettingValue};
use crate::net::{Cidr, IpFamily, MasqueradeMark, UnixAddress, parse_ip};

/// The value with the name `text`.
pub(super) fn one_of<T: Clone>(values: &[(&str, T)]) -> impl Fn(String) -> Result<T, String> {
    move |text| {
        let found = values.iter().find(|(name, _)| *name == text);
        found.map(|(_, value)| value.clone()).ok_or_else(|| {
            let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
            format!("must be one of {}", names.join(", "))
        })
    }
}

pub(super) fn in_range<T: PartialOrd + fmt::Display>(min: T, max: T) -> impl Fn(T) -> Result<T, String> {
    move |value| {
        let is_inside = value >= min && value <= max;
        if is_inside { Ok(value) } else { Err(format!("must be {min} to {max}")) }
    }
}

pub(super) fn not_negative(value: i32) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| "must not be negative".to_owned())
}

pub(super) fn period(value: GoDuration) -> Result<Duration, String> {
    value.to_std().ok_or_else(|| "must not be negative".to_owned())
}

pub(super) fn positive(value: GoDuration) -> Result<Duration, String> {
    value.to_std().filter(|period| !period.is_zero()).ok_or_else(|| "must be more than 0s".to_owned())
}

/// `None` for zero: keep the kernel's timeout.
pub(super) fn timeout(value: GoDuration) -> Result<Option<Duration>, String> {
    Ok(Some(period(value)?).filter(|timeout| !timeout.is_zero()))
}

pub(super) fn mode(mode: String) -> Result<(), String> {
    match &*mode {
        "iptables" => Ok(()),
        "ipvs" | "nftables" => Err(
            "Chainsmith is kube-proxy's iptables mode only: set the mode to \"iptables\" or leave it empty \
             (leftovers of the other mode are removed), or continue with kube-proxy"
                .to_owned(),
        ),
        _ => Err("must be iptables, or empty".to_owned()),
    }
}

pub(super) fn mark(bit: i32) -> Result<MasqueradeMark, String> {
    u32::try_from(bit).ok().and_then(MasqueradeMark::from_bit).ok_or_else(|| "must be 0 to 31".to_owned())
}

/// The name is used in selectors and comparisons; a Node cannot have a name that is an error here.
pub(super) fn hostname(text: String) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = text.trim().to_lowercase();
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if name.is_empty() {
        Err("must not be white space only".to_owned())
    } else if !is_name || name.len() > 253 || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let grammar = "a letter or digit, then letters, digits, '-', '.' and '_', 253 at most";
        Err(format!("is not a name of a Node: {grammar}"))
    } else {
        Ok(Some(name))
    }
}

pub(super) fn address(text: String) -> Result<IpAddr, String> {
    parse_ip(&text).map_err(|_| "must be an IP address".to_owned())
}

/// `<ip>:<port>`, IPv6 in brackets, or empty for no server.
pub(super) fn server(text: String) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let reason = "must be <ip>:<port>, an IPv6 address in brackets, the port 1 to 65535";
    socket_address(&text).map(Some).ok_or_else(|| reason.to_owned())
}

/// `@NAME` or `/PATH`, or empty for no socket.
pub(super) fn unix_socket(text: String) -> Result<Option<UnixAddress>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let reason = "must be @NAME, /PATH, or empty for none, 107 bytes at most";
    UnixAddress::parse(&text).map(Some).map_err(|_| reason.to_owned())
}

/// `1.2.3.4:80` or `[::1]:80`; the port is 1 to 65535.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let ip = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(host) => parse_ip(host?).ok()?,
        None if host.contains(':') => return None,
        None => parse_ip(host).ok()?,
    };
    let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = is_number.then(|| port.parse().ok())??;
    (port > 0).then(|| SocketAddr::new(ip, port))
}

/// Chainsmith follows kube-proxy 1.36; only the release before has metrics that could be hidden.
pub(super) fn hidden_metrics(version: String) -> Result<(), String> {
    let is_known = ["", "1.35"].contains(&&*version);
    if is_known { Ok(()) } else { Err("must be empty or \"1.35\"".to_owned()) }
}

/// `None` for an empty text.
pub(super) fn master(text: String) -> Result<Option<String>, String> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("must be a URL".to_owned());
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

pub(super) fn folders(folders: Folders) -> Result<Folders, String> {
    let is_name = |folder: &PathBuf| {
        let name = folder.as_os_str().as_encoded_bytes();
        !name.is_empty() && !name.contains(&0)
    };
    if folders.0.iter().all(is_name) { Ok(folders) } else { Err("must name folders".to_owned()) }
}

/// Reports a `text` at `path` that is not the name of an interface, or its beginning, of at most `max` bytes.
/// It is a part of rules as it stands.
pub(super) fn interface(resolver: &mut Resolver<'_>, path: &str, text: &str, max: usize) {
    let is_visible = text.bytes().all(|b| b.is_ascii_graphic() && !b"/:'\"`\\".contains(&b));
    let is_special = [".", "..", "+"].contains(&text) || text.starts_with(['-', '!']);
    if text.is_empty() {
        resolver.refuse(path, quoted(text), "must be set in this detectLocalMode");
    } else if !is_visible || text.len() > max || is_special {
        let reason = format!("is not an interface name: at most {max} visible ASCII characters");
        resolver.refuse(path, quoted(text), reason);
    }
}

/// Reads `nodePortAddresses`.
pub(super) fn node_port_addresses(resolver: &mut Resolver<'_>, texts: &[String]) -> NodePortAddresses {
    let path = "nodePortAddresses";
    if texts.is_empty() {
        return NodePortAddresses::All;
    }
    if texts.iter().any(|text| text == "primary") {
        if texts.len() > 1 {
            resolver.refuse(path, quoted(&texts.join(",")), "\"primary\" must be the only element");
        }
        return NodePortAddresses::Primary;
    }
    let mut cidrs = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match Cidr::parse(text) {
            Ok(cidr) => cidrs.push(cidr),
            Err(_) => {
                let reason = "must be a CIDR, or \"primary\" alone";
                resolver.refuse(&format!("{path}[{i}]"), quoted(text), reason);
            }
        }
    }
    NodePortAddresses::Cidrs(cidrs)
}

/// Reads `clusterCIDR`. Empty is an error only if a flag says so.
pub(super) fn cluster_cidrs(resolver: &mut Resolver<'_>, text: &str) -> Vec<Cidr> {
    let path = "clusterCIDR";
    if text.is_empty() && !matches!(resolver.set_by(path), SetBy::Flag(_)) {
        return Vec::new();
    }
    let mut cidrs: Vec<Cidr> = Vec::new();
    for part in text.split(',') {
        match Cidr::parse(part) {
            // kube-proxy accepts it, and then every sync fails.
            Ok(cidr) if cidr.is_everything() => {
                let reason = "matches every address, and cannot tell pods from other hosts";
                resolver.refuse(path, quoted(part), reason);
            }
            Ok(cidr) => cidrs.push(cidr),
            Err(_) => resolver.refuse(path, quoted(part), "must be a CIDR"),
        }
    }
    let n_of = |family| cidrs.iter().filter(|cidr| cidr.family() == family).count();
    if text.split(',').count() > 2 || IpFamily::BOTH.into_iter().any(|family| n_of(family) > 1) {
        resolver.refuse(path, quoted(text), "must be one CIDR, or one of each family");
    }
    cidrs
}

/// The shortest period of a timer. Shorter ones are raised to it, where kube-proxy spins.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// `period` of the setting at `path`, raised to one second if it is shorter.
pub(super) fn at_least_a_second(resolver: &mut Resolver<'_>, path: &str, period: Duration) -> Duration {
    if period >= SHORTEST_PERIOD {
        return period;
    }
    let (given, raised) = (GoDuration::from(period), GoDuration::from(SHORTEST_PERIOD));
    resolver.warn(path, format!("{given} is too short; raised to {raised}"));
    resolver.replace(path, raised, resolver.set_by(path));
    SHORTEST_PERIOD
}

/// Reads the address of a server, by default at `host`, and its deprecated flag for the port alone
/// (config.md 5.3).
pub(super) fn server_and_port(
    resolver: &mut Resolver<'_>,
    host: &str,
    address: Setting,
    port: Setting,
) -> Option<SocketAddr> {
    let default = FlagPort::from_default(port.default);
    let text = resolver.get_or(address.ignores_empty_flag(), format!("{host}:{}", default.0));
    let given = resolver.get(port);
    // kube-proxy writes the configuration before it reads the port.
    let counted = if resolver.has_flag("write-config-to") { default } else { given };
    let (text, set_by) = match counted {
        FlagPort(0) => (String::new(), SetBy::Flag(port.flag)),
        FlagPort(port) => (with_port(text, port), resolver.set_by(address.path)),
    };
    resolver.replace(address.path, text.clone(), set_by);
    server(text.clone()).unwrap_or_else(|reason| {
        resolver.refuse(address.path, quoted(&text), reason);
        None
    })
}

/// Makes `<ip>` `<ip>:<port>`; any other text stays. Source: kube-proxy v1.36, `AppendPortIfNeeded`.
fn with_port(address: String, port: u16) -> String {
    match parse_ip(&address) {
        Ok(_) if address.contains(':') => format!("[{address}]:{port}"),
        Ok(_) => format!("{address}:{port}"),
        Err(_) => address,
    }
}
