//! Whether a packet fits a rule's matches, except for those that need chance or memory.

mod foreign;
mod reasons;

use std::net::{IpAddr, SocketAddr};

use super::packet::{Hook, TracedNode};
use crate::iptables::{
    AddressSide, CtStates, Interface, L4Protocol, Match, MaybeNot, PortRange, Rule, Table,
};
use crate::net::Protocol;

/// A packet at a hook, as rules see it.
pub(super) struct PacketAtHook<'a> {
    pub node: &'a TracedNode<'a>,
    pub hook: Hook,
    pub table: Table,
    /// Whether the node sent it and it has not come back through `lo`.
    pub is_from_node: bool,
    /// The interface on which it arrived, if that is known.
    pub in_interface: Option<&'a str>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: Protocol,
    /// As rules see them: before conntrack, in raw, the packet has no entry.
    pub states: CtStates,
    /// Whether it is the first packet of a connection.
    pub is_new: bool,
    /// Source and destination before any translation by this walk.
    pub original: (SocketAddr, SocketAddr),
    pub mark: u32,
    /// The mark of the entry of conntrack, if that is known.
    pub connmark: Option<u32>,
}

/// `None`: undecided.
pub(super) type Answer = Option<bool>;

impl PacketAtHook<'_> {
    /// Whether the packet fits the basic matches of `rule`, which stand before all `-m`.
    pub(super) fn fits_basics(&self, rule: &Rule) -> Answer {
        let ip = |part: &Option<MaybeNot<_>>, ip: IpAddr| {
            fits(part, |cidr: &crate::net::Cidr| Some(cidr.contains(ip)))
        };
        all([
            ip(&rule.source, self.source.ip()),
            ip(&rule.destination, self.destination.ip()),
            fits(&rule.protocol, |protocol| Some(*protocol == L4Protocol::Service(self.protocol))),
            fits(&rule.in_interface, |name| self.comes_in_on(name)),
            fits(&rule.out_interface, |name| self.goes_out_on(name)),
        ])
    }

    /// For a packet that the node sends, the kernel compares with the empty name.
    fn comes_in_on(&self, pattern: &Interface) -> Answer {
        if self.is_from_node {
            return Some(fits_name(pattern, ""));
        }
        self.in_interface.map(|name| fits_name(pattern, name)).or(fits_any(pattern))
    }

    fn goes_out_on(&self, pattern: &Interface) -> Answer {
        if matches!(self.hook, Hook::Prerouting | Hook::Input) {
            return Some(fits_name(pattern, ""));
        }
        self.node.route(self.destination.ip()).map(|name| fits_name(pattern, name)).or(fits_any(pattern))
    }

    /// Whether the packet fits `part`; undecided for `statistic` and `recent`.
    pub(super) fn fits_match(&self, part: &Match) -> Answer {
        match part {
            Match::Comment(_) | Match::Nfacct(_) => Some(true),
            Match::L4 { protocol, destination_ports } => {
                let fits_port =
                    |range: PortRange| (range.first..=range.last).contains(&self.destination.port());
                Some(*protocol == self.protocol && destination_ports.is_none_or(fits_port))
            }
            Match::Mark { negated, value, mask } => Some((self.mark & mask == *value) != *negated),
            Match::CtState(states) => Some(self.states.overlaps(states.value) != states.negated),
            Match::IsLocal(side) => Some(self.is_local(*side)),
            Match::Hairpin => Some(self.source.ip() == self.destination.ip()),
            Match::Random { .. } | Match::Recent { .. } => None,
            Match::Other { module, words } => self.fits_foreign(module, words),
        }
    }

    fn is_local(&self, side: AddressSide) -> bool {
        self.node.is_local(match side {
            AddressSide::Source => self.source.ip(),
            AddressSide::Destination => self.destination.ip(),
        })
    }
}

fn fits<T>(part: &Option<MaybeNot<T>>, has: impl FnOnce(&T) -> Answer) -> Answer {
    match part {
        None => Some(true),
        Some(MaybeNot { negated, value }) => has(value).map(|has| has != *negated),
    }
}

/// Whether all hold: one that does not decides, even if others are undecided.
fn all(answers: impl IntoIterator<Item = Answer>) -> Answer {
    let mut is_known = true;
    for answer in answers {
        match answer {
            Some(true) => {}
            Some(false) => return Some(false),
            None => is_known = false,
        }
    }
    is_known.then_some(true)
}

fn fits_name(pattern: &Interface, name: &str) -> bool {
    match pattern.as_str().strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern.as_str() == name,
    }
}

/// `+` alone fits every interface, also one without a known name.
fn fits_any(pattern: &Interface) -> Answer {
    (pattern.as_str() == "+").then_some(true)
}
