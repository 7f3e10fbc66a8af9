//! Where the packets of a journey go to: the addresses behind the text of a question.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::asked::{AskedDestination, AskedPort, QuestionError};
use super::known_frontends::{FrontendKind, KnownFrontend, KnownFrontends};
use super::pod_lookup::find_pod;
use crate::inspect::Subject;
use crate::inspect::vantage::{Vantage, Vantages};
use crate::model::{ObjectName, nearest};
use crate::net::{IpFamily, Protocol};
use crate::rules::NodePorts;

/// Where packets go to.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    /// As reports show it.
    pub name: Option<String>,
    /// The frontend, if it is one of a Service.
    pub frontend: Option<KnownFrontend>,
    pub address: SocketAddr,
    pub protocol: Protocol,
    /// What the address stands for, if it is a stand-in.
    pub stands_for: Option<String>,
    pub notes: Vec<String>,
}

/// What is known of one family of a subject.
pub(super) struct FamilyView<'a> {
    pub subject: &'a Subject,
    pub family: IpFamily,
    pub vantages: &'a Vantages,
    pub frontends: &'a KnownFrontends,
}

impl FamilyView<'_> {
    /// The receivers that `asked` names in this family, for packets from `vantage` if the question names one; none
    /// if it has no address here.
    pub(super) fn find_receivers(
        &self,
        asked: &AskedDestination,
        vantage: Option<Vantage>,
    ) -> Result<Vec<Receiver>, QuestionError> {
        match asked {
            AskedDestination::Address(address, protocol) => Ok(self.at_address(*address, *protocol)),
            AskedDestination::Service(name, port, protocol) => {
                Ok(self.of_service(name, port.as_ref(), *protocol, vantage))
            }
            AskedDestination::Pod(name, port, protocol) => {
                let pod = find_pod(self.subject, name, "--to")?;
                let ip = pod.ips.iter().find(|ip| IpFamily::of(**ip) == self.family);
                Ok(ip
                    .map(|ip| Receiver {
                        name: Some(format!("pod {name}")),
                        frontend: None,
                        address: SocketAddr::new(*ip, *port),
                        protocol: *protocol,
                        stands_for: None,
                        notes: Vec::new(),
                    })
                    .into_iter()
                    .collect())
            }
        }
    }

    fn at_address(&self, address: SocketAddr, protocol: Option<Protocol>) -> Vec<Receiver> {
        if IpFamily::of(address.ip()) != self.family {
            return Vec::new();
        }
        let is_local = self.is_local(address);
        let frontend = |protocol| {
            let answering = |known: &&KnownFrontend| known.answers_on(address, protocol, is_local);
            // A frontend with an address of its own wins over a node port.
            self.frontends.iter().filter(answering).min_by_key(|known| known.kind).cloned()
        };
        // Without a protocol: those that Services use there, or TCP.
        let mut protocols = match protocol {
            Some(protocol) => vec![protocol],
            None => vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
        };
        if protocol.is_none() {
            protocols.retain(|protocol| frontend(*protocol).is_some());
        }
        if protocols.is_empty() {
            protocols.push(Protocol::Tcp);
        }
        let receiver = |protocol| {
            let frontend = frontend(protocol);
            let name = match &frontend {
                Some(known) => Some(known.service_port_name()),
                None => self.name_of(address),
            };
            Receiver { name, frontend, address, protocol, stands_for: None, notes: Vec::new() }
        };
        protocols.into_iter().map(receiver).collect()
    }

    fn is_local(&self, address: SocketAddr) -> bool {
        address.ip().is_loopback() || self.vantages.local_addresses.contains(&address.ip())
    }

    fn name_of(&self, address: SocketAddr) -> Option<String> {
        let pods = self.subject.cluster.iter().flat_map(|cluster| cluster.pods.values());
        let mut pods = pods.filter(|pod| !pod.is_host_network && pod.ips.contains(&address.ip()));
        let pod = pods.next().map(|pod| format!("pod {}", pod.name));
        pod.or_else(|| self.is_local(address).then(|| "node".to_owned()))
    }

    fn of_service(
        &self,
        name: &ObjectName,
        port: Option<&AskedPort>,
        protocol: Option<Protocol>,
        vantage: Option<Vantage>,
    ) -> Vec<Receiver> {
        let fits = |known: &&KnownFrontend| {
            known.service == *name
                && protocol.is_none_or(|protocol| protocol == known.protocol)
                && port.is_none_or(|port| is_port_of(port, known))
        };
        let mut by_port: BTreeMap<(&str, Protocol), Vec<&KnownFrontend>> = BTreeMap::new();
        for known in self.frontends.iter().filter(fits) {
            by_port.entry((&known.port_name, known.protocol)).or_default().push(known);
        }
        by_port.into_values().filter_map(|frontends| self.preferred(&frontends, vantage)).collect()
    }

    /// The frontend that a client at `vantage` uses: outside the cluster one that is reachable from there.
    fn preferred(&self, frontends: &[&KnownFrontend], vantage: Option<Vantage>) -> Option<Receiver> {
        let is_outside = vantage == Some(Vantage::Outside);
        let rank = |known: &&&KnownFrontend| match known.kind {
            FrontendKind::ClusterIp if is_outside => (1, known.kind),
            kind => (0, kind),
        };
        let chosen = *frontends.iter().min_by_key(rank)?;
        let mut notes = Vec::new();
        if is_outside && chosen.kind == FrontendKind::ClusterIp {
            let name = chosen.service_port_name();
            notes.push(format!(
                "{name} has no frontend for clients outside the cluster; this is its cluster IP"
            ));
        }
        let (address, stands_for) = self.address_of(chosen);
        let mut receiver = Receiver {
            name: Some(chosen.service_port_name()),
            frontend: Some(chosen.clone()),
            address,
            protocol: chosen.protocol,
            stands_for,
            notes,
        };
        let others = frontends.iter().filter(|known| **known != chosen);
        let others: Vec<String> =
            others.map(|known| format!("{} {}", known.kind, self.address_of(known).0)).collect();
        if !others.is_empty() {
            receiver.notes.push(format!("other frontends, to be traced by address: {}", others.join(", ")));
        }
        Some(receiver)
    }

    /// An address of `frontend`; for a node port one of the node.
    fn address_of(&self, frontend: &KnownFrontend) -> (SocketAddr, Option<String>) {
        if let Some(ip) = frontend.ip {
            return (SocketAddr::new(ip, frontend.port), None);
        }
        let settings = self.subject.cluster.as_ref().map(|cluster| cluster.settings.get(self.family));
        let answering = match settings.map(|settings| &settings.node_ports) {
            Some(NodePorts::Addresses(addresses)) => addresses.iter().find(|ip| !ip.is_loopback()).copied(),
            _ => None,
        };
        let node = self.vantages.point(Vantage::Node);
        match answering {
            Some(ip) => (SocketAddr::new(ip, frontend.port), None),
            None => (SocketAddr::new(node.source, frontend.port), node.stands_for.clone()),
        }
    }
}

fn is_port_of(asked: &AskedPort, known: &KnownFrontend) -> bool {
    match asked {
        AskedPort::Name(name) => known.port_name == *name,
        AskedPort::Number(number) => match known.service_port {
            Some(port) => port == *number || (known.port == *number && known.kind == FrontendKind::NodePort),
            None => known.port == *number,
        },
    }
}

/// Why no receiver was found for a Service, by the frontends of all families.
pub(super) fn no_receiver(
    subject: &Subject,
    frontends: &[KnownFrontends],
    name: &ObjectName,
    asked: Option<&AskedPort>,
) -> QuestionError {
    let known = || frontends.iter().flat_map(KnownFrontends::iter);
    let mut ports: Vec<String> = known()
        .filter(|known| known.service == *name && (known.kind != FrontendKind::NodePort))
        .map(|known| {
            let number = format!("{}/{}", known.service_port.unwrap_or(known.port), known.protocol);
            if known.port_name.is_empty() { number } else { format!("{} ({number})", known.port_name) }
        })
        .collect();
    ports.sort();
    ports.dedup();
    let what = match (asked, ports.is_empty()) {
        (Some(asked), false) => {
            format!("Service {name} has no such port {asked}; it has {}", ports.join(", "))
        }
        (None, false) => format!("Service {name} has no port of that protocol; it has {}", ports.join(", ")),
        (_, true) if not_proxied(subject, name).is_some() => not_proxied(subject, name).unwrap_or_default(),
        (_, true) => {
            let mut names: Vec<String> = known().map(|known| known.service.to_string()).collect();
            names.dedup();
            let near = nearest(&name.to_string(), names.iter().map(String::as_str));
            let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
            let among = match &subject.cluster {
                Some(_) => "among the objects",
                None => "in the comments of the rules",
            };
            format!("there is no proxied Service {name} {among}{near}")
        }
    };
    QuestionError::NotFound(format!("--to: {what}"))
}

/// The sentence on a Service that has no rules.
fn not_proxied(subject: &Subject, name: &ObjectName) -> Option<String> {
    let reason = subject.cluster.as_ref()?.not_proxied.get(name)?;
    Some(format!("Service {name} {reason}, so it has no rules"))
}
