//! Whether a packet fits what a rule asks, as far as that needs no chance and no memory.

use std::net::{IpAddr, SocketAddr};

use super::{Hook, TracedNode};
use crate::iptables::{AddressSide, CtStates, Interface, L4Protocol, Match, MaybeNot, PortRange, Rule};
use crate::net::Protocol;

/// A packet at a hook, as rules see it.
pub(super) struct PacketAtHook<'a> {
    pub node: &'a TracedNode<'a>,
    pub hook: Hook,
    /// Made on the node, and not yet back through `lo`.
    pub is_from_node: bool,
    /// The interface that it came in on, where it did and that is known.
    pub in_interface: Option<&'a str>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: Protocol,
    pub state: CtStates,
    pub mark: u32,
}

/// `None` means that it cannot be told.
pub(super) type Answer = Option<bool>;

impl PacketAtHook<'_> {
    /// Whether the packet fits the basic matches of `rule`, those that stand before all `-m`.
    pub(super) fn fits_basics(&self, rule: &Rule) -> Answer {
        let ip = |wanted: &Option<MaybeNot<_>>, ip: IpAddr| {
            fits(wanted, |cidr: &crate::net::Cidr| Some(cidr.contains(ip)))
        };
        all([
            ip(&rule.source, self.source.ip()),
            ip(&rule.destination, self.destination.ip()),
            fits(&rule.protocol, |protocol| Some(*protocol == L4Protocol::Service(self.protocol))),
            fits(&rule.in_interface, |name| self.comes_in_on(name)),
            fits(&rule.out_interface, |name| self.goes_out_on(name)),
        ])
    }

    /// Without an interface (a packet made here) a rule compares with the empty name.
    fn comes_in_on(&self, wanted: &Interface) -> Answer {
        if self.is_from_node {
            return Some(is_called(wanted, ""));
        }
        self.in_interface.map(|name| is_called(wanted, name)).or(is_any(wanted))
    }

    fn goes_out_on(&self, wanted: &Interface) -> Answer {
        if matches!(self.hook, Hook::Prerouting | Hook::Input) {
            return Some(is_called(wanted, ""));
        }
        self.node.route(self.destination.ip()).map(|name| is_called(wanted, name)).or(is_any(wanted))
    }

    /// Whether the packet fits `wanted`; `statistic` and `recent` are not asked here.
    pub(super) fn fits_match(&self, wanted: &Match) -> Answer {
        match wanted {
            Match::Comment(_) | Match::Nfacct(_) => Some(true),
            Match::L4 { protocol, destination_ports } => {
                let fits_port =
                    |range: PortRange| (range.first..=range.last).contains(&self.destination.port());
                Some(*protocol == self.protocol && destination_ports.is_none_or(fits_port))
            }
            Match::Mark { negated, value, mask } => Some((self.mark & mask == *value) != *negated),
            Match::CtState(states) => Some(self.state.overlaps(states.value) != states.negated),
            Match::IsLocal(side) => Some(self.is_local(*side)),
            Match::Hairpin => Some(self.source.ip() == self.destination.ip()),
            Match::Random { .. } | Match::Recent { .. } => None,
            Match::Other { module, words } => {
                self.fits_other(module, &words.iter().map(|word| &**word).collect::<Vec<_>>())
            }
        }
    }

    fn is_local(&self, side: AddressSide) -> bool {
        self.node.is_local(match side {
            AddressSide::Source => self.source.ip(),
            AddressSide::Destination => self.destination.ip(),
        })
    }

    /// Extensions that others write.
    fn fits_other(&self, module: &str, words: &[&str]) -> Answer {
        match (module, words) {
            ("addrtype", ["!", "--src-type", "LOCAL"]) => Some(!self.is_local(AddressSide::Source)),
            ("addrtype", ["!", "--dst-type", "LOCAL"]) => Some(!self.is_local(AddressSide::Destination)),
            _ => None,
        }
    }
}

fn fits<T>(wanted: &Option<MaybeNot<T>>, has: impl FnOnce(&T) -> Answer) -> Answer {
    match wanted {
        None => Some(true),
        Some(MaybeNot { negated, value }) => has(value).map(|has| has != *negated),
    }
}

/// Whether all hold: one that does not settles it, whatever is not known of the others.
fn all<const N: usize>(answers: [Answer; N]) -> Answer {
    if answers.contains(&Some(false)) {
        return Some(false);
    }
    if answers.contains(&None) { None } else { Some(true) }
}

fn is_called(wanted: &Interface, name: &str) -> bool {
    match wanted.as_str().strip_suffix('+') {
        Some(beginning) => name.starts_with(beginning),
        None => wanted.as_str() == name,
    }
}

/// `+` alone fits every interface, also one whose name is not known.
fn is_any(wanted: &Interface) -> Answer {
    (wanted.as_str() == "+").then_some(true)
}
