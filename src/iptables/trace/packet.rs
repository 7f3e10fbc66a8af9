//! What a trace starts from: a packet, and the node that it meets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::iptables::{ChainName, CtStates, Interface, Ruleset};
use crate::net::{Cidr, IpFamily, Protocol};

/// Where a packet enters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A program on the node itself sends it.
    Node,
    /// It arrives on an interface, from a pod or from outside. Without the interface's name, rules with
    /// `-i` cannot be decided.
    Arrives(Option<Arc<str>>),
}

/// A packet before the first rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Where it enters.
    pub origin: Origin,
    /// Its source address and port.
    pub source: SocketAddr,
    /// Its destination address and port.
    pub destination: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its conntrack state: `NEW` for the first packet of a connection, else a set such as
    /// `ESTABLISHED,DNAT`.
    pub state: CtStates,
    /// Its mark.
    pub mark: u32,
}

impl Packet {
    /// The first packet of a connection, without a mark.
    pub fn new(origin: Origin, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Packet {
        Packet { origin, source, destination, protocol, state: CtStates::NEW, mark: 0 }
    }
}

/// A node: its rules, and the facts that rules match on.
#[derive(Clone, Copy, Debug)]
pub struct TracedNode<'a> {
    /// The rules of the packet's family.
    pub ruleset: &'a Ruleset,
    /// The node's own addresses.
    pub local_addresses: &'a BTreeSet<IpAddr>,
    /// The interface for each destination; the longest prefix counts. Without a match, a rule with `-o`
    /// cannot be decided.
    pub routes: &'a [(Cidr, Interface)],
}

impl TracedNode<'_> {
    /// Whether `ip` belongs to the node.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.local_addresses.contains(&ip)
    }

    /// The address that represents the node: its first that is not loopback.
    pub(super) fn own_address(&self, family: IpFamily) -> IpAddr {
        let mut known = self.local_addresses.iter().filter(|ip| IpFamily::of(**ip) == family);
        known.find(|ip| !ip.is_loopback()).copied().unwrap_or(family.localhost())
    }

    pub(super) fn route(&self, to: IpAddr) -> Option<&str> {
        if self.is_local(to) {
            return Some("lo");
        }
        let fitting = self.routes.iter().filter(|(cidr, _)| cidr.contains(to));
        fitting.max_by_key(|(cidr, _)| cidr.length()).map(|(_, interface)| interface.as_str())
    }
}

/// A netfilter hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// On arrival.
    Prerouting,
    /// On the way to a program of the node.
    Input,
    /// Between two interfaces.
    Forward,
    /// When a program of the node sends.
    Output,
    /// On leaving.
    Postrouting,
}

impl Hook {
    /// The built-in chain of the same name.
    pub fn chain(self) -> ChainName {
        ChainName::literal(match self {
            Hook::Prerouting => "PREROUTING",
            Hook::Input => "INPUT",
            Hook::Forward => "FORWARD",
            Hook::Output => "OUTPUT",
            Hook::Postrouting => "POSTROUTING",
        })
    }
}
