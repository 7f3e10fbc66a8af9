//! The life of a packet: which rules of a [`Ruleset`] it meets on its way through a node, and what
//! becomes of it.
//!
//! Rules with `statistic` split a packet's life, so the answer is a distribution with exact weights.
//! Nothing is guessed: where a match or a target is not known here, or depends on what was not
//! said, that part of the distribution ends in [`PacketVerdict::Unknown`] and names the rule.
//!
//! What is beside the rules stays simple. 127.0.0.0/8 and ::1 are always the node's. MASQUERADE, and
//! REDIRECT of what arrives, take the first of the node's other addresses. The nat table is met by
//! new connections only; what conntrack already holds of others is not known, so their packets keep
//! their addresses.

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

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A program on the node itself sends it.
    Node,
    /// It arrives on an interface, from a pod or from outside. Without the interface's name, rules
    /// that ask for one cannot be decided.
    Arrives(Option<Arc<str>>),
}

/// A packet before the first rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Where it comes from.
    pub origin: Origin,
    /// Address and port it comes from.
    pub source: SocketAddr,
    /// Address and port it is sent to.
    pub destination: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// What conntrack says of it: `NEW` for the first packet of a connection, else a set such as
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

/// A node: its rules, and what they ask about it.
#[derive(Clone, Copy, Debug)]
pub struct TracedNode<'a> {
    /// The rules of the packet's family.
    pub ruleset: &'a Ruleset,
    /// The node's own addresses.
    pub local_addresses: &'a BTreeSet<IpAddr>,
    /// Through which interface a destination is reached; the longest prefix counts. Where none
    /// fits, a rule with `-o` cannot be decided.
    pub routes: &'a [(Cidr, Interface)],
}

impl TracedNode<'_> {
    /// Whether `ip` is the node's own.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.local_addresses.contains(&ip)
    }

    /// The address that stands for the node: its first that is not loopback.
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

/// A place in the kernel where packets meet rules.
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

/// How a packet's way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketVerdict {
    /// It gets through.
    Accepted(Delivery),
    /// It vanishes.
    Dropped,
    /// Its sender is told.
    Rejected,
    /// It cannot be told what becomes of it at this rule.
    Unknown(Step),
}

/// Where a packet that gets through goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Delivery {
    /// To a program on the node.
    Local,
    /// Out of one of its interfaces, to a pod or away.
    Forwarded,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// How its way ends.
    pub verdict: PacketVerdict,
    /// Where DNAT or REDIRECT sent it, even if that is where it was going.
    pub dnat: Option<SocketAddr>,
    /// Whether it gets an address of the node as its source.
    pub masquerade: bool,
    /// Its source at the end; `None` when masqueraded.
    pub source: Option<SocketAddr>,
    /// Its destination at the end.
    pub destination: SocketAddr,
    /// Its mark at the end.
    pub mark: u32,
    /// The `recent` lists that remember its source from now on.
    pub remembered: BTreeSet<ChainName>,
}

impl Outcome {
    /// The same without what nobody can see: what had happened to a packet that then vanished, and
    /// its mark.
    pub fn visible(mut self) -> Outcome {
        if !matches!(self.verdict, PacketVerdict::Accepted(_)) {
            (self.dnat, self.masquerade, self.source, self.mark) = (None, false, None, 0);
        }
        self
    }
}

/// One of the things that may become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// How likely it is.
    pub weight: Weight,
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// Rules that it is held against on its way, whether they match or not; the most of all ways
    /// that end so.
    pub n_rules: usize,
    /// The rules that it matches, on one of the ways that end so.
    pub path: Vec<Step>,
}

/// What may become of `packet` on `node`: each outcome once, in their order; the weights sum up to 1.
///
/// `recent` is what the lists of `recent` remember; it is not changed, since which branch comes true
/// is not decided here: see [`RecentLists::remember`].
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
