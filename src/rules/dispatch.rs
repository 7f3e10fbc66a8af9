//! The shared chains: which service port a packet is for.
//!
//! classic holds one rule for each entry, in the order of service ports. compact holds the same rules
//! as the leaves of a tree over address, protocol and port, so that a packet meets few of them.

mod tree;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::layout::Layout;
use super::names::{self, PortChain};
use super::{Settings, SharedChain, fixed};
use crate::iptables::{ChainName, L4Protocol, Match, Rule, Table};
use crate::net::Protocol;

/// Which packets an entry of a shared chain is for. In the order of the tree's leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// To which address; `None`: to any of the node's, which the rule itself tells.
    pub ip: Option<IpAddr>,
    /// Of which protocol.
    pub protocol: Protocol,
    /// To which port.
    pub port: u16,
}

impl Key {
    /// The key of the entry `rule`; `None` for a rule that is no entry.
    pub fn of(rule: &Rule) -> Option<Key> {
        let host = |ip: IpAddr, length| (length == crate::net::IpFamily::of(ip).bits()).then_some(ip);
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

/// What stands in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The entry of this number.
    Entry(usize),
    /// A rule that is nobody's.
    Rule(Box<Rule>),
}

/// A chain that is shared, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPart {
    /// Its name.
    pub name: ChainName,
    /// What stands in it.
    pub parts: Vec<Part>,
}

/// The shared chain `chain` and those that lead on from it, callees before callers: itself last.
/// `keys` are those of its entries, in the order of their service ports.
pub fn shared_chains(
    settings: &Settings,
    layout: Layout,
    chain: SharedChain,
    keys: &[Key],
) -> Vec<SharedPart> {
    // Of a refused external IP and a refused node port of the same address and port, the first is
    // meant. kube-proxy's order is random here.
    let (addresses, node_ports): (Vec<usize>, Vec<usize>) = match chain {
        SharedChain::FilterExternalServices => (0..keys.len()).partition(|n| keys[*n].ip.is_some()),
        _ => ((0..keys.len()).collect(), Vec::new()),
    };
    let mut parts = Vec::new();
    let mut root = Vec::new();
    for entries in [addresses, node_ports] {
        match layout {
            Layout::Classic { .. } => root.extend(entries.into_iter().map(Part::Entry)),
            Layout::Compact => root.extend(tree::grow(settings.family, chain, keys, entries, &mut parts)),
        }
    }
    if chain == SharedChain::NatServices {
        let tail = fixed::node_ports_tail(settings).into_iter();
        root.extend(tail.map(|rule| Part::Rule(Box::new(rule))));
    }
    parts.push(SharedPart { name: chain.name(), parts: root });
    parts
}

/// What the names of the chains behind `chain` begin with.
fn stem(chain: SharedChain) -> String {
    let kind = match chain {
        // kube-proxy removes these chains when it starts: its own have that prefix.
        SharedChain::NatServices | SharedChain::NatNodePorts => PortChain::External,
        SharedChain::FilterExternalServices => PortChain::External,
        SharedChain::FilterServices => PortChain::Cluster,
        SharedChain::FilterNodePorts => PortChain::Local,
        SharedChain::FilterFirewall => PortChain::Firewall,
    };
    format!("{}{}", kind.prefix(), names::DISPATCH_DIGIT)
}

/// Whether chains go on to others with `-g`, so that a packet for nobody is back in the first chain
/// at once. Not in filter, where old and new rules stand together for a moment: whatever order they
/// are in, all that apply have to be met.
fn goes_on_by_goto(chain: SharedChain) -> bool {
    chain.table() == Table::Nat
}

#[cfg(test)]
mod tests;
