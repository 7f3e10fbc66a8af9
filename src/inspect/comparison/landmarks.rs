//! The addresses, ports, networks and connection states that two rulesets name: where packets may fare
//! differently.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::iptables::{
    ChainName, CtStates, Interface, L4Protocol, Match, MaybeNot, PortRange, RecentAction, Rule, Ruleset,
    Table, Target,
};
use crate::net::{Cidr, IpFamily, Protocol};

/// What the rules of both sides name.
#[derive(Debug, Default)]
pub(super) struct Landmarks {
    /// Destinations of single addresses, with the ports that a rule names beside each; none for an address that is
    /// only named without a port.
    pub frontends: BTreeMap<IpAddr, BTreeSet<(Protocol, u16)>>,
    /// Destinations of single addresses that a rule names without a port.
    pub without_port: BTreeSet<IpAddr>,
    /// Ports that a rule names without a single address, and those just outside its ranges.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// New destinations of DNAT.
    pub targets: BTreeSet<(SocketAddr, Protocol)>,
    /// Connection states that rules match on, other than `NEW`.
    pub states: Vec<CtStates>,
    /// Times after which an affinity ends, in seconds.
    pub timeouts: BTreeSet<u32>,
    /// Interfaces that packets arrive on, as rules name them.
    pub interfaces: BTreeSet<Interface>,
    /// First addresses of the ranges that destinations of rules tell apart, sorted.
    starts: Vec<IpAddr>,
    /// The same for rules of other tables than nat, which packets of known connections meet.
    starts_beside_nat: Vec<IpAddr>,
    /// Ports that rules of these tables name.
    ports_beside_nat: BTreeSet<(Protocol, u16)>,
    /// Sources by chain, with a bit for each side whose rules name them.
    sources: BTreeMap<(Table, ChainName), BTreeMap<Cidr, u8>>,
}

impl Landmarks {
    /// What `rulesets` name.
    pub(super) fn of(rulesets: [&Ruleset; 2], family: IpFamily) -> Landmarks {
        let mut found = Landmarks::default();
        let (mut starts, mut beside_nat, mut states) = (BTreeSet::new(), BTreeSet::new(), CtStates::NEW);
        for (side, ruleset) in rulesets.into_iter().enumerate() {
            for (table, chains) in &ruleset.tables {
                for (name, chain) in chains {
                    for rule in &chain.rules {
                        let named = found.add_destination(rule, family);
                        starts.extend(&named);
                        if *table != Table::Nat {
                            beside_nat.extend(named);
                            if let Some((protocol, range)) = ports_of(rule) {
                                let ends = [range.first, range.last].map(|port| (protocol, port));
                                found.ports_beside_nat.extend(ends);
                            }
                        }
                        found.add_matches(rule, &mut states);
                        if let Some(source) = &rule.source {
                            let known = found.sources.entry((*table, *name)).or_default();
                            *known.entry(source.value).or_default() |= 1 << side;
                        }
                    }
                }
            }
        }
        found.starts = starts.into_iter().collect();
        found.starts_beside_nat = beside_nat.into_iter().collect();
        let tested = [CtStates::INVALID, CtStates::ESTABLISHED, CtStates::RELATED, CtStates::UNTRACKED];
        found.states = tested.into_iter().filter(|state| states.contains(*state)).collect();
        if states.contains(CtStates::DNAT) {
            found.states.push(CtStates::ESTABLISHED.and(CtStates::DNAT));
        }
        found
    }

    /// Adds what `rule` names, and returns the first address of its destinations and the one behind the last.
    fn add_destination(&mut self, rule: &Rule, family: IpFamily) -> Vec<IpAddr> {
        let ports = ports_of(rule);
        self.interfaces.extend(rule.in_interface.as_ref().map(|part| part.value.clone()));
        if let Some(Target::Dnat(to)) = rule.target {
            self.targets.extend(protocols_of(rule).map(|protocol| (to, protocol)));
        }
        let Some(MaybeNot { value, .. }) = rule.destination else {
            self.add_ports(ports);
            return Vec::new();
        };
        if value.length() < family.bits() {
            self.add_ports(ports);
        } else {
            let known = self.frontends.entry(value.address()).or_default();
            match ports {
                Some((protocol, range)) => known.extend([(protocol, range.first), (protocol, range.last)]),
                None => drop(self.without_port.insert(value.address())),
            }
        }
        [Some(value.address()), neighbour(last_of(&value), true)].into_iter().flatten().collect()
    }

    fn add_ports(&mut self, ports: Option<(Protocol, PortRange)>) {
        let Some((protocol, PortRange { first, last })) = ports else { return };
        let outside = [first.checked_sub(1), last.checked_add(1)];
        let ends = [Some(first), Some(last)];
        // A single port is beside others, or its neighbours are ports that no rule names: one is enough.
        let beside = if first == last { &outside[1..] } else { &outside[..] };
        let ports = ends.iter().chain(beside).flatten();
        self.ports.extend(ports.filter(|port| **port > 0).map(|port| (protocol, *port)));
    }

    fn add_matches(&mut self, rule: &Rule, states: &mut CtStates) {
        for part in &rule.matches {
            match part {
                Match::CtState(matched) => *states = states.and(matched.value),
                Match::Recent { action: RecentAction::Check { seconds }, .. } => {
                    self.timeouts.insert(*seconds);
                }
                _ => {}
            }
        }
    }

    /// Names of interfaces on which packets may arrive: one that no rule names, and one for each that rules do.
    pub(super) fn interface_guesses(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        const MAX_GUESSES: usize = 4;
        let named = |name: &str| {
            self.interfaces.iter().any(|pattern| match pattern.as_str().strip_suffix('+') {
                Some(stem) => name.starts_with(stem),
                None => name == pattern.as_str(),
            })
        };
        let other = ["eth0", "ens1", "other0"].into_iter().find(|name| !named(name));
        let patterns = self.interfaces.iter().map(|pattern| pattern.as_str());
        let names = patterns.filter(|name| !["lo", "+"].contains(name)).map(|name| name.replace('+', "0"));
        other.map(Arc::from).into_iter().chain(names.map(Arc::from).take(MAX_GUESSES))
    }

    /// The first address of the range of `ip`: no rule tells it from another destination in the range.
    pub(super) fn range_start(&self, ip: IpAddr) -> Option<IpAddr> {
        start_in(&self.starts, ip)
    }

    /// What rules of other tables than nat tell of a destination: its range, and its port if one names it.
    pub(super) fn kind_beside_nat(
        &self,
        ip: IpAddr,
        port: (Protocol, u16),
    ) -> (Option<IpAddr>, Protocol, Option<u16>) {
        let named = self.ports_beside_nat.contains(&port).then_some(port.1);
        (start_in(&self.starts_beside_nat, ip), port.0, named)
    }

    /// An address in each range.
    pub(super) fn range_starts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.starts.iter().copied()
    }

    /// The sources that rules of the chain `name` match, each with a bit for each side whose rules name it.
    pub(super) fn sources(&self, table: Table, name: ChainName) -> impl Iterator<Item = (Cidr, u8)> + '_ {
        let found = self.sources.get(&(table, name)).into_iter().flatten();
        found.map(|(cidr, sides)| (*cidr, *sides))
    }
}

/// The last of `starts` that is not behind `ip`.
fn start_in(starts: &[IpAddr], ip: IpAddr) -> Option<IpAddr> {
    let n = starts.partition_point(|start| *start <= ip);
    starts.get(n.checked_sub(1)?).copied()
}

/// The protocol and the ports that `rule` matches.
fn ports_of(rule: &Rule) -> Option<(Protocol, PortRange)> {
    rule.matches.iter().find_map(|part| match part {
        Match::L4 { protocol, destination_ports: Some(range) } => Some((*protocol, *range)),
        _ => None,
    })
}

/// The protocols of Services that `rule` matches.
fn protocols_of(rule: &Rule) -> impl Iterator<Item = Protocol> {
    let only = match rule.protocol {
        Some(MaybeNot { negated: false, value: L4Protocol::Service(protocol) }) => Some(protocol),
        _ => None,
    };
    PROTOCOLS.into_iter().filter(move |protocol| only.is_none_or(|only| only == *protocol))
}

pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The last address of `cidr`.
pub(super) fn last_of(cidr: &Cidr) -> IpAddr {
    match cidr.address() {
        IpAddr::V4(first) => {
            let ones = u32::MAX.checked_shr(u32::from(cidr.length())).unwrap_or(0);
            Ipv4Addr::from(u32::from(first) | ones).into()
        }
        IpAddr::V6(first) => {
            let ones = u128::MAX.checked_shr(u32::from(cidr.length())).unwrap_or(0);
            Ipv6Addr::from(u128::from(first) | ones).into()
        }
    }
}

/// The address behind `ip`, or the one before it; `None` beyond the family's ends.
pub(super) fn neighbour(ip: IpAddr, is_next: bool) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => {
            let bits = u32::from(ip);
            Ipv4Addr::from(if is_next { bits.checked_add(1) } else { bits.checked_sub(1) }?).into()
        }
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            Ipv6Addr::from(if is_next { bits.checked_add(1) } else { bits.checked_sub(1) }?).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::replay;

    fn landmarks(old: &str, new: &str) -> Landmarks {
        let parsed = [old, new].map(|rules| {
            let text = format!("*nat\n{}COMMIT\n", rules.replace("; ", "\n") + "\n");
            replay::text(IpFamily::V4, &text).expect("rules")
        });
        Landmarks::of([&parsed[0], &parsed[1]], IpFamily::V4)
    }

    #[test]
    fn both_sides_name_addresses_ports_and_sources() {
        let found = landmarks(
            "-A A -d 10.0.0.1 -p tcp --dport 80 -j B; -A A -d 10.0.0.9 -j N; -A B -s 10.1.0.0/16 -p tcp -j DNAT --to-destination 10.1.0.5:8080",
            "-A N -p udp --dport 30000:30010 -j B; -A B -s 10.1.0.0/16 -j C; -A B -m conntrack --ctstate INVALID -j DROP",
        );
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(found.frontends[&ip("10.0.0.1")], [(Protocol::Tcp, 80)].into());
        assert_eq!(found.without_port, [ip("10.0.0.9")].into());
        let ports: Vec<u16> = found.ports.iter().map(|(_, port)| *port).collect();
        assert_eq!(ports, [29_999, 30_000, 30_010, 30_011]);
        assert_eq!(found.targets, [("10.1.0.5:8080".parse().expect("a socket"), Protocol::Tcp)].into());
        assert_eq!(found.states, [CtStates::INVALID]);
        let sources: Vec<_> = found.sources(Table::Nat, ChainName::literal("B")).collect();
        assert_eq!(sources, [(Cidr::parse("10.1.0.0/16").expect("a CIDR"), 3)]);
    }

    #[test]
    fn ranges_are_what_destinations_tell_apart() {
        let found = landmarks("-A A -d 10.0.0.1 -j B; -A A -d 10.0.0.2 -j B", "-A A -d 10.0.0.0/24 -j B");
        let starts: Vec<String> = found.range_starts().map(|ip| ip.to_string()).collect();
        assert_eq!(starts, ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.0"]);
        let start =
            |text: &str| found.range_start(text.parse().expect("an address")).map(|ip| ip.to_string());
        assert_eq!(start("10.0.0.77").as_deref(), Some("10.0.0.3"));
        assert_eq!(start("9.0.0.1"), None);
    }

    #[test]
    fn addresses_end_with_the_family() {
        let last = |text: &str| last_of(&Cidr::parse(text).expect("a CIDR")).to_string();
        assert_eq!(last("10.0.0.0/8"), "10.255.255.255");
        assert_eq!(last("10.0.0.1/32"), "10.0.0.1");
        assert_eq!(last("0.0.0.0/0"), "255.255.255.255");
        assert_eq!(last("fd00::/16"), "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(neighbour([255; 4].into(), true), None);
        assert_eq!(neighbour([0; 16].into(), false), None);
    }
}
