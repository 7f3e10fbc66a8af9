//! The texts of a question: where a packet comes from and goes to, and how they are written.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::inspect::vantage::Vantage;
use crate::iptables::{CtStates, Interface};
use crate::model::ObjectName;
use crate::net::{self, Protocol};

/// What is asked about a packet; the texts are those of the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TraceQuestion {
    /// `IP:PORT[/PROTO]`, `svc/NS/NAME[:PORT][/PROTO]`, `NS/NAME[:PORT][/PROTO]` or `pod/NS/NAME:PORT[/PROTO]`.
    pub to: String,
    /// `pod/NS/NAME`, `pod`, `pod-elsewhere`, `node`, `external`, `localhost` or `IP[:PORT]`; without it, a place
    /// from which the destination is usually used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The interface on which the packet arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_interface: Option<String>,
    /// What conntrack says of the packet.
    #[serde(default)]
    pub state: PacketState,
}

/// What conntrack says of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum PacketState {
    /// The first packet of a connection.
    #[default]
    New,
    /// A packet of a known connection, which does not meet the nat table.
    Established,
    /// A packet that belongs to no connection and cannot begin one.
    Invalid,
}

impl PacketState {
    /// The states that rules match on.
    pub fn states(self) -> CtStates {
        match self {
            PacketState::New => CtStates::NEW,
            PacketState::Established => CtStates::ESTABLISHED,
            PacketState::Invalid => CtStates::INVALID,
        }
    }
}

/// A question without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum QuestionError {
    /// The text of the question cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// It names something that is not there.
    #[error("{0}")]
    NotFound(String),
}

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AskedSource {
    Vantage(Vantage),
    Address(IpAddr, Option<u16>),
    Pod(ObjectName),
}

/// Where a packet goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AskedDestination {
    Address(SocketAddr, Option<Protocol>),
    Service(ObjectName, Option<AskedPort>, Option<Protocol>),
    Pod(ObjectName, u16, Protocol),
}

/// A port, by number or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AskedPort {
    Number(u16),
    Name(String),
}

impl fmt::Display for AskedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskedPort::Number(number) => number.fmt(f),
            AskedPort::Name(name) => f.write_str(name),
        }
    }
}

/// The names of places in `--from`, as written and as meant.
const PLACES: [(&str, Vantage); 7] = [
    ("pod", Vantage::PodHere),
    ("pod-here", Vantage::PodHere),
    ("pod-elsewhere", Vantage::PodElsewhere),
    ("node", Vantage::Node),
    ("external", Vantage::Outside),
    ("outside", Vantage::Outside),
    ("localhost", Vantage::Localhost),
];

const TO_FORMS: &str =
    "IP:PORT[/PROTO], svc/NS/NAME[:PORT][/PROTO], NS/NAME[:PORT][/PROTO] or pod/NS/NAME:PORT[/PROTO]";
const FROM_FORMS: &str = "pod/NS/NAME, pod, pod-elsewhere, node, external, localhost or IP[:PORT]";

impl TraceQuestion {
    /// Checks the texts, without any source.
    ///
    /// # Errors
    /// [`QuestionError::Malformed`], which names the flag and the text at fault.
    pub fn check(&self) -> Result<(), QuestionError> {
        self.destination()?;
        self.source()?;
        self.interface().map(|_| ())
    }

    pub(super) fn destination(&self) -> Result<AskedDestination, QuestionError> {
        read_destination(&self.to).map_err(|what| malformed("--to", &self.to, &what, TO_FORMS))
    }

    pub(super) fn source(&self) -> Result<Option<AskedSource>, QuestionError> {
        let Some(text) = &self.from else { return Ok(None) };
        let source = read_source(text).map_err(|what| malformed("--from", text, &what, FROM_FORMS))?;
        let is_of_node = matches!(source, AskedSource::Vantage(Vantage::Node | Vantage::Localhost));
        if is_of_node && self.in_interface.is_some() {
            let what = format!("--in: a packet that the node sends ({text}) does not arrive on an interface");
            return Err(QuestionError::Malformed(what));
        }
        Ok(Some(source))
    }

    pub(super) fn interface(&self) -> Result<Option<Interface>, QuestionError> {
        let Some(text) = &self.in_interface else { return Ok(None) };
        let name = Interface::new(text).filter(|name| !name.as_str().ends_with('+'));
        name.map(Some).ok_or_else(|| {
            QuestionError::Malformed(format!("--in: {text:?} is not the name of an interface"))
        })
    }
}

fn malformed(flag: &str, text: &str, what: &str, forms: &str) -> QuestionError {
    QuestionError::Malformed(format!("{flag}: {text:?} {what}; expected {forms}"))
}

fn read_source(text: &str) -> Result<AskedSource, String> {
    if let Some((_, vantage)) = PLACES.iter().find(|(name, _)| *name == text) {
        return Ok(AskedSource::Vantage(*vantage));
    }
    if let Some(name) = text.strip_prefix("pod/").or_else(|| text.strip_prefix("pods/")) {
        return object_name(name).map(AskedSource::Pod);
    }
    if let Ok(ip) = net::parse_ip(text) {
        return Ok(AskedSource::Address(ip, None));
    }
    if let Some((ip, port)) = split_socket(text) {
        return Ok(AskedSource::Address(ip, Some(port?)));
    }
    if text.contains('/') && !text.contains(':') {
        return Err(format!("is not a place that packets come from (a pod: pod/{text})"));
    }
    Err("is not a place that packets come from".to_owned())
}

fn read_destination(text: &str) -> Result<AskedDestination, String> {
    for (prefix, is_pod) in [("svc/", false), ("service/", false), ("services/", false), ("pod/", true)] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return if is_pod { pod_destination(rest) } else { service_destination(rest) };
        }
    }
    let (address, protocol) = match text.rsplit_once('/') {
        Some((address, protocol)) => (address, Some(protocol)),
        None => (text, None),
    };
    if let Some((ip, port)) = split_socket(address) {
        let protocol = protocol.map(read_protocol).transpose()?;
        return Ok(AskedDestination::Address(SocketAddr::new(ip, port?), protocol));
    }
    if net::parse_ip(address).is_ok() {
        return Err("has no port".to_owned());
    }
    if text.contains('/') {
        return service_destination(text);
    }
    Err(match dns_name(text) {
        Some(name) => format!("is a DNS name (the Service: {name})"),
        None => "is not a destination".to_owned(),
    })
}

/// The Service of `NAME.NS.svc[...]:PORT`, as `--to` has it.
fn dns_name(text: &str) -> Option<String> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, format!(":{port}")),
        None => (text, String::new()),
    };
    let mut labels = host.split('.');
    let (name, namespace) = (labels.next()?, labels.next()?);
    let is_service = labels.next().is_none_or(|label| label == "svc");
    (is_service && object_name(&format!("{namespace}/{name}")).is_ok())
        .then(|| format!("svc/{namespace}/{name}{port}"))
}

fn service_destination(text: &str) -> Result<AskedDestination, String> {
    let (name, port, protocol) = split_object(text)?;
    let port = port.map(read_port).transpose()?;
    Ok(AskedDestination::Service(object_name(name)?, port, protocol))
}

fn pod_destination(text: &str) -> Result<AskedDestination, String> {
    let (name, port, protocol) = split_object(text)?;
    match port.map(read_port).transpose()? {
        Some(AskedPort::Number(port)) => {
            Ok(AskedDestination::Pod(object_name(name)?, port, protocol.unwrap_or(Protocol::Tcp)))
        }
        Some(AskedPort::Name(port)) => Err(format!("has the port {port:?}, which is no number")),
        None => Err("has no port".to_owned()),
    }
}

/// Splits `NS/NAME[:PORT][/PROTO]`.
fn split_object(text: &str) -> Result<(&str, Option<&str>, Option<Protocol>), String> {
    let (text, protocol) = match text.match_indices('/').nth(1) {
        Some((at, _)) => (&text[..at], Some(read_protocol(&text[at + 1..])?)),
        None => (text, None),
    };
    Ok(match text.split_once(':') {
        Some((name, port)) => (name, Some(port), protocol),
        None => (text, None, protocol),
    })
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    let is_name = |part: &str| {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        !part.is_empty() && part.len() <= 253 && part.bytes().all(is_inner)
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(format!("names no object: {text:?} is not NS/NAME")),
    }
}

fn read_port(text: &str) -> Result<AskedPort, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return port_number(text).map(AskedPort::Number);
    }
    Ok(AskedPort::Name(text.to_owned()))
}

fn port_number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("has the port {text:?}, which is not a number from 1 to 65535")),
    }
}

fn read_protocol(text: &str) -> Result<Protocol, String> {
    Protocol::from_iptables(&text.to_lowercase())
        .ok_or_else(|| format!("has the protocol {text:?}, which is not tcp, udp or sctp"))
}

/// Splits `<ip>:<port>` or `[<ip6>]:<port>`; `None` if there is no address before the port.
fn split_socket(text: &str) -> Option<(IpAddr, Result<u16, String>)> {
    let (ip, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:")?,
        None => text.rsplit_once(':').filter(|(ip, _)| !ip.contains(':'))?,
    };
    Some((net::parse_ip(ip).ok()?, port_number(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> String {
        let question = TraceQuestion { to: text.to_owned(), ..TraceQuestion::default() };
        match question.destination() {
            Ok(AskedDestination::Address(address, protocol)) => format!("{address} {protocol:?}"),
            Ok(AskedDestination::Service(name, port, protocol)) => {
                format!(
                    "service {name} {} {protocol:?}",
                    port.map_or("-".to_owned(), |port| port.to_string())
                )
            }
            Ok(AskedDestination::Pod(name, port, protocol)) => format!("pod {name} {port} {protocol}"),
            Err(error) => error.to_string().split("; expected").next().unwrap().to_owned(),
        }
    }

    #[test]
    fn destinations_are_addresses_services_and_pods() {
        let check = |text: &str, expected: &str| assert_eq!(to(text), expected, "{text}");
        check("10.96.0.10:80", "10.96.0.10:80 None");
        check("10.96.0.10:53/udp", "10.96.0.10:53 Some(Udp)");
        check("[fd00::1]:80/SCTP", "[fd00::1]:80 Some(Sctp)");
        check("svc/shop/db", "service shop/db - None");
        check("shop/db:sql", "service shop/db sql None");
        check("service/shop/db:5432/tcp", "service shop/db 5432 Some(Tcp)");
        check("pod/shop/db-0:5432", "pod shop/db-0 5432 TCP");
    }

    #[test]
    fn other_destinations_are_errors_that_quote_the_fault() {
        let check = |text: &str, expected: &str| assert_eq!(to(text), format!("--to: {text:?} {expected}"));
        check("", "is not a destination");
        check("10.96.0.10", "has no port");
        check("10.96.0.10/tcp", "has no port");
        check("10.96.0.10:0", "has the port \"0\", which is not a number from 1 to 65535");
        check("10.96.0.10:99999", "has the port \"99999\", which is not a number from 1 to 65535");
        check("10.96.0.10:http", "has the port \"http\", which is not a number from 1 to 65535");
        check("10.96.0.10:80/icmp", "has the protocol \"icmp\", which is not tcp, udp or sctp");
        check("svc/db", "names no object: \"db\" is not NS/NAME");
        check("shop/DB:80", "names no object: \"shop/DB\" is not NS/NAME");
        check("pod/shop/db-0", "has no port");
        check("pod/shop/db-0:sql", "has the port \"sql\", which is no number");
        check("db.shop.svc:5432", "is a DNS name (the Service: svc/shop/db:5432)");
        check("10.96.0.300:80", "is not a destination");
    }

    #[test]
    fn sources_are_places_pods_and_addresses() {
        let check = |text: &str, expected: Result<AskedSource, &str>| {
            let question = TraceQuestion { from: Some(text.to_owned()), ..TraceQuestion::default() };
            let found = question.source().map_err(|error| error.to_string()).map(|source| source.unwrap());
            let expected = expected.map_err(|what| format!("--from: {text:?} {what}; expected {FROM_FORMS}"));
            assert_eq!(found, expected);
        };
        check("external", Ok(AskedSource::Vantage(Vantage::Outside)));
        check("pod/shop/cart", Ok(AskedSource::Pod(ObjectName::new("shop", "cart"))));
        check("10.1.0.5", Ok(AskedSource::Address("10.1.0.5".parse().unwrap(), None)));
        check("10.1.0.5:999", Ok(AskedSource::Address("10.1.0.5".parse().unwrap(), Some(999))));
        check("fd00::1", Ok(AskedSource::Address("fd00::1".parse().unwrap(), None)));
        check("shop/cart", Err("is not a place that packets come from (a pod: pod/shop/cart)"));
        check("inside", Err("is not a place that packets come from"));
        check("10.1.0.5:0", Err("has the port \"0\", which is not a number from 1 to 65535"));
    }

    #[test]
    fn a_packet_of_the_node_arrives_on_no_interface() {
        let question = |from: &str, name: &str| TraceQuestion {
            to: "10.0.0.1:80".to_owned(),
            from: Some(from.to_owned()),
            in_interface: Some(name.to_owned()),
            ..TraceQuestion::default()
        };
        assert_eq!(question("external", "eth0").check(), Ok(()));
        let error = question("node", "eth0").check().unwrap_err().to_string();
        assert_eq!(error, "--in: a packet that the node sends (node) does not arrive on an interface");
        let error = question("external", "eth/0").check().unwrap_err().to_string();
        assert_eq!(error, "--in: \"eth/0\" is not the name of an interface");
    }
}
