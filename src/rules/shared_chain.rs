//! The shared chains and their entries.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::names;
use crate::iptables::{ChainName, L4Protocol, Match, Rule, Table};
use crate::net::{IpFamily, Protocol};

/// A chain in which every service port may have entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SharedChain {
    /// filter `KUBE-SERVICES`: rejected and dropped cluster IPs.
    FilterServices,
    /// filter `KUBE-EXTERNAL-SERVICES`: rejected and dropped external addresses and node ports.
    FilterExternalServices,
    /// filter `KUBE-NODEPORTS`: accepted health check node ports.
    FilterNodePorts,
    /// filter `KUBE-PROXY-FIREWALL`: dropped sources of load balancer addresses.
    FilterFirewall,
    /// nat `KUBE-SERVICES`: dispatch by address.
    NatServices,
    /// nat `KUBE-NODEPORTS`: dispatch by node port.
    NatNodePorts,
}

impl SharedChain {
    /// All of them.
    pub const ALL: [SharedChain; 6] = [
        SharedChain::FilterServices,
        SharedChain::FilterExternalServices,
        SharedChain::FilterNodePorts,
        SharedChain::FilterFirewall,
        SharedChain::NatServices,
        SharedChain::NatNodePorts,
    ];

    /// Its table.
    pub fn table(self) -> Table {
        match self {
            SharedChain::NatServices | SharedChain::NatNodePorts => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// Its name.
    pub fn name(self) -> ChainName {
        match self {
            SharedChain::FilterServices | SharedChain::NatServices => names::KUBE_SERVICES,
            SharedChain::FilterExternalServices => names::KUBE_EXTERNAL_SERVICES,
            SharedChain::FilterNodePorts | SharedChain::NatNodePorts => names::KUBE_NODEPORTS,
            SharedChain::FilterFirewall => names::KUBE_PROXY_FIREWALL,
        }
    }
}

/// One rule in a shared chain.
pub type Entry = (SharedChain, Rule);

/// The packets that an entry of a shared chain is for. In the order of the tree's leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Their destination; `None` for every address of the node, which the rule itself matches.
    pub ip: Option<IpAddr>,
    /// Their protocol.
    pub protocol: Protocol,
    /// Their destination port.
    pub port: u16,
}

impl Key {
    /// The key of the entry `rule`; `None` for any other rule.
    pub fn of(rule: &Rule) -> Option<Key> {
        let host = |ip: IpAddr, length| (length == IpFamily::of(ip).bits()).then_some(ip);
        let ip = rule.destination.and_then(|to| host(to.value.address(), to.value.length()));
        let Some(L4Protocol::Service(protocol)) = rule.protocol.as_ref().map(|is| &is.value) else {
            return None;
        };
        let port = rule.matches.iter().find_map(|part| match part {
            Match::L4 { destination_ports: Some(ports), .. } => Some(ports.first),
            _ => None,
        })?;
        Some(Key { ip, protocol: *protocol, port })
    }
}

/// `<ip>:<port>/<protocol>`, or `node port <port>/<protocol>`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => write!(f, "{}", SocketAddr::new(ip, self.port))?,
            None => write!(f, "node port {}", self.port)?,
        }
        write!(f, "/{}", self.protocol)
    }
}
