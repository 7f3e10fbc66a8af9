//! What becomes of the first packet of a connection: its way through nat and filter of a ruleset.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use chainsmith::iptables::{
    AddressSide, ChainName, CtStates, Interface, L4Protocol, Match, MaybeNot, RecentAction, Rule, Ruleset,
    Table, Target,
};
use chainsmith::net::{Cidr, Protocol};

/// A packet that begins a connection.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub to: SocketAddr,
    pub protocol: Protocol,
    /// `None`: the node itself sends it.
    pub in_interface: Option<&'static str>,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It goes on to where it was sent to, or to an endpoint.
    Delivered {
        to: SocketAddr,
        is_masqueraded: bool,
    },
    Rejected,
    Dropped,
}

/// Each fate with its probability, in parts of a million.
pub type Fates = BTreeMap<Fate, u32>;

/// A ruleset on a node that has the addresses `local`.
pub struct Walker<'a> {
    pub ruleset: &'a Ruleset,
    pub local: &'a [IpAddr],
}

/// A packet on its way, or one of several that it may be.
#[derive(Clone, Debug)]
struct Walk {
    weight: f64,
    packet: Packet,
    mark: u32,
    is_translated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
    Rejected,
    Translated,
    Masqueraded,
}

type Ends = Vec<(Walk, End)>;

impl Walker<'_> {
    pub fn fates(&self, packet: &Packet) -> Fates {
        let walk = Walk { weight: 1.0, packet: packet.clone(), mark: 0, is_translated: false };
        let from_node = packet.in_interface.is_none();
        let mut fates: BTreeMap<Fate, f64> = BTreeMap::new();
        for (walk, _) in self.hook(Table::Nat, if from_node { "OUTPUT" } else { "PREROUTING" }, walk) {
            let to_node = self.is_local(walk.packet.to.ip());
            let hook = match (from_node, to_node) {
                (true, _) => "OUTPUT",
                (false, true) => "INPUT",
                (false, false) => "FORWARD",
            };
            for (walk, end) in self.hook(Table::Filter, hook, walk) {
                match end {
                    End::Dropped => *fates.entry(Fate::Dropped).or_default() += walk.weight,
                    End::Rejected => *fates.entry(Fate::Rejected).or_default() += walk.weight,
                    _ if hook == "INPUT" => *fates.entry(delivered(&walk, false)).or_default() += walk.weight,
                    _ => {
                        for (walk, end) in self.hook(Table::Nat, "POSTROUTING", walk) {
                            *fates.entry(delivered(&walk, end == End::Masqueraded)).or_default() +=
                                walk.weight;
                        }
                    }
                }
            }
        }
        fates
            .into_iter()
            .map(|(fate, weight)| (fate, (weight * 1e6).round() as u32))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.local.contains(&ip)
    }

    fn hook(&self, table: Table, chain: &str, walk: Walk) -> Ends {
        let mut ends = Ends::new();
        let passed = self.chain(table, ChainName::literal(chain), vec![walk], &mut ends);
        ends.extend(passed.into_iter().map(|walk| (walk, End::Accepted)));
        ends
    }

    /// Walks `name` and returns what comes back to the caller.
    fn chain(&self, table: Table, name: ChainName, mut walks: Vec<Walk>, ends: &mut Ends) -> Vec<Walk> {
        let mut returned = Vec::new();
        let chain = self
            .ruleset
            .chain(table, &name)
            .unwrap_or_else(|| panic!("a jump to {name}, which is not there"));
        for rule in &chain.rules {
            let (matched, others) = self.split(rule, walks);
            walks = others;
            if matched.is_empty() {
                continue;
            }
            let end = match &rule.target {
                None => {
                    walks.extend(matched);
                    continue;
                }
                Some(Target::Jump(callee)) => {
                    walks.extend(self.chain(table, *callee, matched, ends));
                    continue;
                }
                Some(Target::Goto(callee)) => {
                    returned.extend(self.chain(table, *callee, matched, ends));
                    continue;
                }
                Some(Target::Return) => {
                    returned.extend(matched);
                    continue;
                }
                Some(Target::SetXmark { value, mask }) => {
                    walks.extend(
                        matched.into_iter().map(|walk| Walk { mark: walk.mark & !mask ^ value, ..walk }),
                    );
                    continue;
                }
                Some(Target::Dnat(to)) => {
                    ends.extend(matched.into_iter().map(|mut walk| {
                        walk.packet.to = *to;
                        walk.is_translated = true;
                        (walk, End::Translated)
                    }));
                    continue;
                }
                Some(Target::Accept) => End::Accepted,
                Some(Target::Drop) => End::Dropped,
                Some(Target::Reject) => End::Rejected,
                Some(Target::Masquerade { .. }) => End::Masqueraded,
                Some(Target::Other { name, .. }) => panic!("target {name} is not known here"),
            };
            ends.extend(matched.into_iter().map(|walk| (walk, end)));
        }
        returned.extend(walks);
        returned
    }

    /// Those that `rule` matches, and the others.
    fn split(&self, rule: &Rule, walks: Vec<Walk>) -> (Vec<Walk>, Vec<Walk>) {
        let (mut matched, mut others) = (Vec::new(), Vec::new());
        for walk in walks {
            let share = if self.basic_matches(rule, &walk) { self.share(rule, &walk) } else { 0.0 };
            if share > 0.0 {
                matched.push(Walk { weight: walk.weight * share, ..walk.clone() });
            }
            if share < 1.0 {
                others.push(Walk { weight: walk.weight * (1.0 - share), ..walk });
            }
        }
        (matched, others)
    }

    fn basic_matches(&self, rule: &Rule, walk: &Walk) -> bool {
        let packet = &walk.packet;
        let in_cidr = |wanted: &Option<MaybeNot<Cidr>>, ip| {
            wanted.as_ref().is_none_or(|MaybeNot { negated, value }| value.contains(ip) != *negated)
        };
        let is_interface = |wanted: &MaybeNot<Interface>| {
            let name = packet.in_interface.unwrap_or("");
            let is_it = match wanted.value.as_str().strip_suffix('+') {
                Some(prefix) => name.starts_with(prefix),
                None => name == wanted.value.as_str(),
            };
            is_it != wanted.negated
        };
        let is_protocol = |wanted: &MaybeNot<L4Protocol>| {
            (wanted.value == L4Protocol::Service(packet.protocol)) != wanted.negated
        };
        assert!(rule.out_interface.is_none(), "-o is not known here");
        in_cidr(&rule.source, packet.source)
            && in_cidr(&rule.destination, packet.to.ip())
            && rule.in_interface.as_ref().is_none_or(is_interface)
            && rule.protocol.as_ref().is_none_or(is_protocol)
    }

    /// The probability that all extensions of `rule` match.
    fn share(&self, rule: &Rule, walk: &Walk) -> f64 {
        let certain = |is_matched: bool| if is_matched { 1.0 } else { 0.0 };
        let shares = rule.matches.iter().map(|m| match m {
            Match::Comment(_) | Match::Nfacct(_) => 1.0,
            Match::L4 { protocol, destination_ports } => certain(
                *protocol == walk.packet.protocol
                    && destination_ports
                        .is_none_or(|ports| (ports.first..=ports.last).contains(&walk.packet.to.port())),
            ),
            Match::Mark { negated, value, mask } => certain((walk.mark & mask == *value) != *negated),
            Match::CtState(MaybeNot { negated, value }) => {
                let is_in =
                    value.contains(CtStates::NEW) || walk.is_translated && value.contains(CtStates::DNAT);
                certain(is_in != *negated)
            }
            Match::IsLocal(AddressSide::Source) => certain(self.is_local(walk.packet.source)),
            Match::IsLocal(AddressSide::Destination) => certain(self.is_local(walk.packet.to.ip())),
            Match::Random { threshold } => f64::from(*threshold) / f64::from(1u32 << 31),
            // A client that was never here before.
            Match::Recent { action, .. } => certain(*action == RecentAction::Set),
            Match::Other { module, .. } => panic!("match {module} is not known here"),
        });
        shares.product()
    }
}

fn delivered(walk: &Walk, is_masqueraded: bool) -> Fate {
    Fate::Delivered { to: walk.packet.to, is_masqueraded }
}
