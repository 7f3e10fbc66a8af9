//! The fate of the first packet of a connection under a ruleset, from `iptables::trace`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use chainsmith::iptables::Ruleset;
use chainsmith::iptables::trace::{self, Origin, PacketVerdict, RecentLists, TracedNode};
use chainsmith::net::Protocol;

/// The first packet of a connection.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub to: SocketAddr,
    pub protocol: Protocol,
    /// `None`: the node itself sends it.
    pub in_interface: Option<&'static str>,
}

/// Its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It reaches its destination, or an endpoint.
    Delivered {
        to: SocketAddr,
        is_masqueraded: bool,
    },
    Rejected,
    Dropped,
}

/// Each fate with its probability.
pub type Fates = BTreeMap<Fate, f64>;

/// The fates of `packet` under `ruleset` on a node with the addresses `local`.
pub fn fates(ruleset: &Ruleset, local: &BTreeSet<IpAddr>, packet: &Packet) -> Fates {
    let origin = match packet.in_interface {
        None => Origin::Node,
        Some(name) => Origin::Arrives(Some(name.into())),
    };
    let from = SocketAddr::new(packet.source, 40_000);
    let first = trace::Packet::new(origin, from, packet.to, packet.protocol);
    let node = TracedNode { ruleset, local_addresses: local, routes: &[] };
    let mut fates = Fates::new();
    for branch in trace::trace(&node, &first, &RecentLists::default()) {
        let outcome = branch.outcome.visible();
        let fate = match outcome.verdict {
            PacketVerdict::Accepted(_) => {
                Fate::Delivered { to: outcome.destination, is_masqueraded: outcome.masquerade }
            }
            PacketVerdict::Rejected => Fate::Rejected,
            PacketVerdict::Dropped => Fate::Dropped,
            PacketVerdict::Unknown(step) => panic!("{packet:?} cannot be traced beyond {step}"),
        };
        *fates.entry(fate).or_default() += branch.weight.to_f64();
    }
    fates
}

/// Whether both are equal, except for the kernel's rounding of probabilities: 2^-31 for each choice on the
/// way.
pub fn are_same(a: &Fates, b: &Fates) -> bool {
    let is_near = |(a, b): ((&Fate, &f64), (&Fate, &f64))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-8;
    a.len() == b.len() && a.iter().zip(b).all(is_near)
}
