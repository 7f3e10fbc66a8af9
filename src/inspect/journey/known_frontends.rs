//! The addresses on which Services answer, from the objects, or without objects from the comments of rules.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::inspect::Subject;
use crate::iptables::{ChainName, Ruleset, Table};
use crate::model::{ObjectName, Snapshot};
use crate::net::{IpFamily, Protocol};
use crate::rules::dispatch::{self, Key};
use crate::rules::{Settings, SharedChain};

/// An address, port and protocol on which a Service answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KnownFrontend {
    /// The Service.
    pub service: ObjectName,
    /// The name of its port, often empty.
    pub port_name: String,
    pub kind: FrontendKind,
    /// `None` for a node port, which answers on addresses of the node.
    pub ip: Option<IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
    /// The port of the Service itself, which differs for a node port; `None` if only rules are known.
    pub service_port: Option<u16>,
}

/// The kinds of frontends, in the order in which a client in the cluster prefers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FrontendKind {
    ClusterIp,
    LoadBalancerIp,
    ExternalIp,
    NodePort,
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FrontendKind::ClusterIp => "cluster IP",
            FrontendKind::LoadBalancerIp => "load balancer IP",
            FrontendKind::ExternalIp => "external IP",
            FrontendKind::NodePort => "node port",
        })
    }
}

impl KnownFrontend {
    /// `<ns>/<name>[:<port>]`.
    pub(super) fn service_port_name(&self) -> String {
        match self.port_name.as_str() {
            "" => self.service.to_string(),
            port => format!("{}:{port}", self.service),
        }
    }

    /// Whether a packet for `address` is for it; `is_local` tells whether the address is one of the node.
    pub(super) fn answers_on(&self, address: SocketAddr, protocol: Protocol, is_local: bool) -> bool {
        self.port == address.port()
            && self.protocol == protocol
            && self.ip.map_or(is_local, |ip| ip == address.ip())
    }
}

/// The frontends of all Services in one family, by Service and port.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownFrontends(BTreeSet<KnownFrontend>);

impl KnownFrontends {
    /// Those of `subject` in `family`.
    pub(super) fn of(subject: &Subject, family: IpFamily) -> KnownFrontends {
        let mut known = KnownFrontends::default();
        match (&subject.cluster, subject.rulesets.get(family)) {
            (Some(cluster), _) => known.add_objects(&cluster.snapshot, cluster.settings.get(family)),
            (None, Some(ruleset)) => known.add_rules(ruleset),
            (None, None) => {}
        }
        known
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownFrontend> {
        self.0.iter()
    }

    fn add_objects(&mut self, snapshot: &Snapshot, settings: &Settings) {
        for service in snapshot.services() {
            for port in service.ports_in(settings.family) {
                let mut add = |kind, ip, number| {
                    self.0.insert(KnownFrontend {
                        service: service.name.clone(),
                        port_name: port.port.name.to_string(),
                        kind,
                        ip,
                        port: number,
                        protocol: port.port.protocol,
                        service_port: Some(port.port.port),
                    });
                };
                let number = port.port.port;
                add(FrontendKind::ClusterIp, Some(port.frontend.cluster_ip), number);
                for ip in port.frontend.load_balancer_ips.iter() {
                    add(FrontendKind::LoadBalancerIp, Some(*ip), number);
                }
                for ip in settings.external_ips_of(&port) {
                    add(FrontendKind::ExternalIp, Some(*ip), number);
                }
                if let Some(node_port) = port.port.node_port {
                    add(FrontendKind::NodePort, None, node_port);
                }
            }
        }
    }

    /// Entries of the shared chains begin their comment with the service port. In filter they are frontends without
    /// endpoints.
    fn add_rules(&mut self, ruleset: &Ruleset) {
        let mut served = BTreeSet::new();
        for table in [Table::Nat, Table::Filter] {
            let chains = ruleset.tables.get(&table).into_iter().flatten();
            for (unserved, chain) in
                chains.filter_map(|(name, chain)| Some((shared_kind(table, name)?, chain)))
            {
                for rule in &chain.rules {
                    let (Some(key), Some(comment)) = (Key::of(rule), rule.comment()) else { continue };
                    let (name, what) = comment.split_once(' ').unwrap_or((comment, ""));
                    let Some((service, port_name)) = service_port_in(name) else { continue };
                    if table == Table::Nat {
                        served.insert(key);
                    } else if served.contains(&key) {
                        continue;
                    }
                    let kind = match (key.ip, what) {
                        (None, _) => FrontendKind::NodePort,
                        (Some(_), "cluster IP") => FrontendKind::ClusterIp,
                        (Some(_), "loadbalancer IP") => FrontendKind::LoadBalancerIp,
                        (Some(_), "external IP") => FrontendKind::ExternalIp,
                        (Some(_), _) => unserved,
                    };
                    let Key { ip, port, protocol } = key;
                    let service_port = None;
                    self.0.insert(KnownFrontend {
                        service,
                        port_name,
                        kind,
                        ip,
                        port,
                        protocol,
                        service_port,
                    });
                }
            }
        }
    }
}

/// Whether entries for frontends stand in the chain; the kind of those whose comment does not tell.
fn shared_kind(table: Table, name: &ChainName) -> Option<FrontendKind> {
    match dispatch::shared_chain_of(table, name)? {
        SharedChain::NatServices | SharedChain::NatNodePorts => Some(FrontendKind::ExternalIp),
        SharedChain::FilterServices => Some(FrontendKind::ClusterIp),
        SharedChain::FilterExternalServices => Some(FrontendKind::ExternalIp),
        SharedChain::FilterNodePorts | SharedChain::FilterFirewall => None,
    }
}

/// The Service and the port's name in `<ns>/<name>[:<port>]`.
fn service_port_in(text: &str) -> Option<(ObjectName, String)> {
    let (namespace, rest) = text.split_once('/')?;
    let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
    (!namespace.is_empty() && !name.is_empty()).then(|| (ObjectName::new(namespace, name), port.to_owned()))
}
