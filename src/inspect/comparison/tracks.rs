//! The packets to one destination: from every vantage, from sources that the rules on their way name, and in
//! connection states that rules match on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::fates::{FateEnd, Sides, TOLERANCE, TracedFate};
use super::landmarks::{Landmarks, last_of, neighbour};
use super::probes::Probe;
use crate::inspect::vantage::{Vantage, Vantages};
use crate::iptables::trace::{Origin, Packet, RecentLists};
use crate::iptables::{ChainName, CtStates, Table};
use crate::net::{Cidr, IpFamily};

/// The most sources of one destination, with the vantages. Of more, those that only one side names come first,
/// and then a sample.
pub(super) const MAX_SOURCES: usize = 128;

/// How often sources are looked for on the way of packets from the sources found before.
const MAX_ROUNDS: usize = 4;

/// Clients that come back after their first packet: how many ways of the first one are followed, and how many
/// times a Service's affinity may have.
const MAX_RETURNS: usize = 2;
const MAX_TIMEOUTS: usize = 4;

/// The source port of all packets; no rule matches on it.
const SOURCE_PORT: u16 = 40_000;

/// Who sends a packet, and when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PacketSender {
    /// Who.
    pub who: Who,
    /// When.
    pub occasion: Occasion,
}

/// Who sends a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// From one of the vantages, and on this interface if that is a guess.
    At(Vantage, Option<Arc<str>>),
    /// An endpoint, to a Service that may choose it.
    Endpoint,
    /// A source that a rule names, or an address beside it.
    Source(IpAddr),
}

/// When a packet is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Occasion {
    /// The first of a connection.
    New,
    /// In another connection state.
    State(CtStates),
    /// The first of a connection, so many seconds after the client's last.
    Again(u32),
}

/// `pod here`, `10.0.0.1 (state INVALID)`, `outside (again after 10801 s)`
impl fmt::Display for PacketSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::At(vantage, None) => write!(f, "{vantage}")?,
            Who::At(vantage, Some(interface)) => write!(f, "{vantage} on {interface}")?,
            Who::Endpoint => f.write_str("its endpoints")?,
            Who::Source(ip) => write!(f, "{ip}")?,
        }
        match self.occasion {
            Occasion::New => Ok(()),
            Occasion::State(states) => write!(f, " (state {states})"),
            Occasion::Again(seconds) => write!(f, " (again after {seconds} s)"),
        }
    }
}

/// Everything that packets to a destination are chosen from.
pub(super) struct Tracks<'a> {
    pub sides: &'a Sides<'a>,
    landmarks: &'a Landmarks,
    pub vantages: &'a Vantages,
    pub family: IpFamily,
    /// Senders, each with where its packets enter and their source.
    senders: Vec<(Who, Origin, IpAddr)>,
}

/// Sources to try, each with a bit for each side that names it.
#[derive(Default)]
struct Candidates {
    endpoints: BTreeMap<IpAddr, u8>,
    networks: BTreeMap<Cidr, u8>,
}

impl<'a> Tracks<'a> {
    pub(super) fn new(
        sides: &'a Sides<'a>,
        landmarks: &'a Landmarks,
        vantages: &'a Vantages,
        family: IpFamily,
    ) -> Tracks<'a> {
        let mut senders = Vec::new();
        for point in &vantages.points {
            let is_unknown = point.origin == Origin::Arrives(None) && !landmarks.interfaces.is_empty();
            // Where rules match on interfaces, it counts on which one a packet arrives.
            let guesses = landmarks.interface_guesses().filter(|_| is_unknown);
            senders.extend(guesses.map(|name| {
                let who = Who::At(point.vantage, Some(name.clone()));
                (who, Origin::Arrives(Some(name)), point.source)
            }));
            if !is_unknown {
                senders.push((Who::At(point.vantage, None), point.origin.clone(), point.source));
            }
        }
        Tracks { sides, landmarks, vantages, family, senders }
    }

    /// Calls `each` for every packet to `probe`, with what happens to it on both sides. Returns whether all sources
    /// that rules tell apart were tried, not a sample of them.
    #[must_use]
    pub(super) fn follow(
        &self,
        probe: Probe,
        each: &mut dyn FnMut(PacketSender, &Packet, &[TracedFate; 2]),
    ) -> bool {
        let mut candidates = Candidates::default();
        let mut tried: Vec<(Origin, IpAddr)> = Vec::new();
        for (who, origin, source) in self.senders.iter().filter(|(who, ..)| self.may_send(who, probe)) {
            let packet = packet(origin.clone(), *source, probe);
            let fates = self.sides.fates(&packet);
            self.add_candidates(&fates, &mut candidates);
            each(PacketSender { who: who.clone(), occasion: Occasion::New }, &packet, &fates);
            self.follow_returns(who, &packet, &fates, each);
            for state in self.landmarks.states.iter().filter(|_| probe.tests_states) {
                let packet = Packet { state: *state, ..packet.clone() };
                let fates = self.sides.fates(&packet);
                each(PacketSender { who: who.clone(), occasion: Occasion::State(*state) }, &packet, &fates);
            }
            tried.push((origin.clone(), *source));
        }
        let mut is_complete = true;
        for _ in 0..MAX_ROUNDS {
            let all = self.untried(&candidates, &tried);
            let room = MAX_SOURCES.saturating_sub(tried.len());
            is_complete &= all.len() <= room;
            let new = sample(all, room);
            if new.is_empty() {
                return is_complete;
            }
            for (who, origin, source) in new {
                let packet = packet(origin.clone(), source, probe);
                let fates = self.sides.fates(&packet);
                // A way that only an endpoint's packets take names no source but this endpoint.
                if who != Who::Endpoint {
                    self.add_candidates(&fates, &mut candidates);
                }
                each(PacketSender { who, occasion: Occasion::New }, &packet, &fates);
                tried.push((origin, source));
            }
        }
        is_complete && self.untried(&candidates, &tried).is_empty()
    }

    /// A loopback address is a source only of packets to the node itself.
    fn may_send(&self, who: &Who, probe: Probe) -> bool {
        *who != Who::At(Vantage::Localhost, None) || self.is_local(probe.to.ip())
    }

    /// Where packets of `vantage` enter: the first guess, if there are several.
    fn origin_of(&self, vantage: Vantage) -> Origin {
        let is_it = |who: &Who| matches!(who, Who::At(other, _) if *other == vantage);
        let found = self.senders.iter().find(|(who, ..)| is_it(who));
        found.map_or(Origin::Arrives(None), |(_, origin, _)| origin.clone())
    }

    pub(super) fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.vantages.local_addresses.contains(&ip)
    }

    /// Remembers the endpoints that packets may reach, and the sources that rules of the chains on the way name.
    fn add_candidates(&self, fates: &[TracedFate; 2], candidates: &mut Candidates) {
        for (side, fate) in fates.iter().enumerate() {
            let bit = 1 << side;
            fate.targets().for_each(|to| *candidates.endpoints.entry(to.ip()).or_default() |= bit);
            let mut chains: BTreeSet<(Table, ChainName)> = BTreeSet::new();
            for step in &fate.steps {
                chains.insert((step.table, step.chain));
                let callee = self.sides.rule(side, step).and_then(|rule| rule.callee());
                chains.extend(callee.map(|callee| (step.table, callee)));
            }
            for (table, chain) in chains {
                for (cidr, sides) in self.landmarks.sources(table, chain) {
                    *candidates.networks.entry(cidr).or_default() |= sides;
                }
            }
        }
    }

    /// Sources that rules tell apart from all `tried`, each with a bit for each side that names it.
    fn untried(
        &self,
        candidates: &Candidates,
        tried: &[(Origin, IpAddr)],
    ) -> Vec<(u8, (Who, Origin, IpAddr))> {
        let kind = |origin: &Origin, ip: IpAddr| {
            let endpoint = candidates.endpoints.contains_key(&ip).then_some(ip);
            let networks: Vec<&Cidr> = candidates.networks.keys().filter(|cidr| cidr.contains(ip)).collect();
            (*origin == Origin::Node, endpoint, networks)
        };
        let mut known: BTreeSet<_> = tried.iter().map(|(origin, ip)| kind(origin, *ip)).collect();
        let mut found = Vec::new();
        for (ip, sides) in self.possible(candidates) {
            let is_endpoint = candidates.endpoints.contains_key(&ip);
            let origin = match (self.is_local(ip), is_endpoint) {
                (true, _) => Origin::Node,
                (false, true) => self.origin_of(Vantage::PodHere),
                (false, false) => self.origin_of(Vantage::Outside),
            };
            if known.insert(kind(&origin, ip)) {
                let who = if is_endpoint { Who::Endpoint } else { Who::Source(ip) };
                found.push((sides, (who, origin, ip)));
            }
        }
        found
    }

    /// Endpoints, and for each network an address at either end and the ones beside them.
    fn possible(&self, candidates: &Candidates) -> BTreeMap<IpAddr, u8> {
        let mut possible = candidates.endpoints.clone();
        for (cidr, sides) in &candidates.networks {
            let (first, last) = (cidr.address(), last_of(cidr));
            let ends = [Some(first), Some(last), neighbour(first, false), neighbour(last, true)];
            let is_source = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
            for ip in ends.into_iter().flatten().filter(is_source) {
                *possible.entry(ip).or_default() |= sides;
            }
        }
        possible
    }

    /// Packets of a client whom the rules remember after its first one, just before and just behind each time
    /// that an affinity may last.
    fn follow_returns(
        &self,
        who: &Who,
        packet: &Packet,
        fates: &[TracedFate; 2],
        each: &mut dyn FnMut(PacketSender, &Packet, &[TracedFate; 2]),
    ) {
        let is_remembered = |end: &&FateEnd| end.seen.is_remembered;
        for end in fates[0].ends.iter().filter(is_remembered).take(MAX_RETURNS) {
            let same =
                |other: &&FateEnd| other.seen == end.seen && (other.share - end.share).abs() < TOLERANCE;
            let Some(other) = fates[1].ends.iter().find(same) else { continue };
            let mut recent = [RecentLists::default(), RecentLists::default()];
            recent[0].remember(&end.lists, packet.source.ip());
            recent[1].remember(&other.lists, packet.source.ip());
            for timeout in self.landmarks.timeouts.iter().take(MAX_TIMEOUTS) {
                for seconds in [*timeout, timeout.saturating_add(1)] {
                    recent.iter_mut().for_each(|lists| lists.now = u64::from(seconds));
                    let fates = self.sides.fates_with(packet, recent.each_ref());
                    each(
                        PacketSender { who: who.clone(), occasion: Occasion::Again(seconds) },
                        packet,
                        &fates,
                    );
                }
            }
        }
    }
}

fn packet(origin: Origin, source: IpAddr, probe: Probe) -> Packet {
    Packet::new(origin, SocketAddr::new(source, SOURCE_PORT), probe.to, probe.protocol)
}

/// At most `n` of `all`: those that one side names first, then some spread over the others.
fn sample<T>(all: Vec<(u8, T)>, n: usize) -> Vec<T> {
    const BOTH: u8 = 3;
    let (both, one): (Vec<_>, Vec<_>) = all.into_iter().partition(|(sides, _)| *sides == BOTH);
    let n_both = n.saturating_sub(one.len());
    let every = both.len().div_ceil(n_both.max(1)).max(1);
    let both = both.into_iter().step_by(every).take(n_both);
    one.into_iter().take(n).chain(both).map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_what_one_side_names_and_is_spread() {
        let all: Vec<(u8, u32)> = (0..100).map(|n| (if n == 50 { 1 } else { 3 }, n)).collect();
        let chosen = sample(all.clone(), 10);
        assert_eq!((chosen.len(), chosen[0], chosen[1]), (10, 50, 0));
        assert!(*chosen.last().expect("ten") > 80, "{chosen:?}");
        assert_eq!(sample(all.clone(), 1_000).len(), 100);
        assert_eq!(sample(all, 0), [0u32; 0]);
    }
}
