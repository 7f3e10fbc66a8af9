//! The path of a packet through a node: which rules of a [`Ruleset`] it meets, and its verdict.
//!
//! Rules with `statistic` split the path, so the result is a distribution with exact weights. Nothing is
//! guessed: where a match or a target is unknown, or depends on missing input, that part of the
//! distribution ends in [`PacketVerdict::Unknown`] and names the rule.
//!
//! Everything other than the rules is simplified. 127.0.0.0/8 and ::1 always belong to the node. MASQUERADE,
//! and REDIRECT of packets that arrive, use the first of the node's other addresses. Only new connections
//! meet the nat table; packets of other connections keep their addresses, as the entries of conntrack are
//! unknown.

mod matching;
mod recent;
mod walk;
mod weight;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{ChainName, CtStates, Interface, Ruleset, Table};
use crate::net::{Cidr, IpFamily, Protocol};

pub use recent::RecentLists;
pub use weight::Weight;

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
    fn own_address(&self, family: IpFamily) -> IpAddr {
        let mut known = self.local_addresses.iter().filter(|ip| IpFamily::of(**ip) == family);
        known.find(|ip| !ip.is_loopback()).copied().unwrap_or(family.localhost())
    }

    fn route(&self, to: IpAddr) -> Option<&str> {
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

/// A rule that a packet matched, or the policy at the end of a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// Where in the kernel.
    pub hook: Hook,
    /// The table.
    pub table: Table,
    /// The chain.
    pub chain: ChainName,
    /// The rule's number, from 1; `None` for the chain's policy.
    pub rule: Option<usize>,
}

/// `nat KUBE-SERVICES rule 3`
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(number) => write!(f, "{} {} rule {number}", self.table, self.chain),
            None => write!(f, "{} {} policy", self.table, self.chain),
        }
    }
}

/// The end of a packet's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketVerdict {
    /// It passes.
    Accepted(Delivery),
    /// It is dropped.
    Dropped,
    /// It is rejected, with an error to its sender.
    Rejected,
    /// This rule cannot be decided.
    Unknown(Step),
}

/// The way in which a packet that passes leaves the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Delivery {
    /// To a program on the node.
    Local,
    /// Out of one of its interfaces, to a pod or away.
    Forwarded,
}

/// The result for a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// Its verdict.
    pub verdict: PacketVerdict,
    /// The destination that DNAT or REDIRECT gave it, even if that is its old one.
    pub dnat: Option<SocketAddr>,
    /// Whether its source becomes an address of the node.
    pub masquerade: bool,
    /// Its source at the end; `None` when masqueraded.
    pub source: Option<SocketAddr>,
    /// Its destination at the end.
    pub destination: SocketAddr,
    /// Its mark at the end.
    pub mark: u32,
    /// The `recent` lists that its source is added to.
    pub remembered: BTreeSet<ChainName>,
}

impl Outcome {
    /// The same without what cannot be observed: earlier changes to a packet that was dropped or rejected.
    pub fn visible(mut self) -> Outcome {
        if !matches!(self.verdict, PacketVerdict::Accepted(_)) {
            (self.dnat, self.masquerade, self.source, self.mark) = (None, false, None, 0);
        }
        self
    }
}

/// One possible result for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its probability.
    pub weight: Weight,
    /// The result.
    pub outcome: Outcome,
    /// The number of rules that it is compared with, whether they match or not; the maximum over all paths
    /// with this result.
    pub n_rules: usize,
    /// The rules that it matches, on one of the paths with this result.
    pub path: Vec<Step>,
}

/// The possible results for `packet` on `node`: each outcome once, in order; the weights add up to 1.
///
/// `recent` holds the lists of `recent`. They stay as they are, since the packet takes one of several
/// branches: see [`RecentLists::remember`].
///
/// ```
/// use std::collections::BTreeSet;
/// use chainsmith::iptables::parse;
/// use chainsmith::iptables::trace::{Origin, Packet, PacketVerdict, RecentLists, TracedNode, trace};
/// use chainsmith::net::{IpFamily, Protocol};
///
/// let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.0.0.1/32 -j DROP\nCOMMIT\n";
/// let ruleset = parse::save(IpFamily::V4, rules)?;
/// let node = TracedNode { ruleset: &ruleset, local_addresses: &BTreeSet::new(), routes: &[] };
/// let (from, to) = ("10.0.9.9:999".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
/// let packet = Packet::new(Origin::Arrives(Some("eth0".into())), from, to, Protocol::Tcp);
/// let branches = trace(&node, &packet, &RecentLists::default());
/// assert_eq!(branches[0].outcome.verdict, PacketVerdict::Dropped);
/// assert_eq!(branches[0].path[0].to_string(), "filter FORWARD rule 1");
/// # Ok::<(), chainsmith::iptables::parse::ParseError>(())
/// ```
pub fn trace(node: &TracedNode<'_>, packet: &Packet, recent: &RecentLists) -> Vec<Branch> {
    let mut merged: BTreeMap<Outcome, Branch> = BTreeMap::new();
    walk::walk(node, packet, recent, &mut |branch| {
        merged
            .entry(branch.outcome.clone())
            .and_modify(|known| {
                known.weight.add(&branch.weight);
                known.n_rules = known.n_rules.max(branch.n_rules);
            })
            .or_insert(branch);
    });
    merged.into_values().collect()
}

#[cfg(test)]
mod tests;
