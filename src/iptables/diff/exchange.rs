//! Whether two neighbouring rules may be exchanged: no packet matches both, or both have the same verdict.
//!
//! For the first, only what a packet keeps on its way through a table counts: addresses, interfaces, protocol, port,
//! connection state. Marks do not, as a rule may change them. In doubt, two rules may not be exchanged.

use crate::iptables::{CtStates, Interface, L4Protocol, Match, MaybeNot, PortRange, Rule, Target};
use crate::net::{Cidr, Protocol};

/// Whether every packet fares the same in either order of the rules.
pub(super) fn are_exchangeable(a: &Rule, b: &Rule) -> bool {
    are_exclusive(a, b) || (have_same_verdict(a, b) && is_stateless(a) && is_stateless(b))
}

/// Whether both end the chain alike for a packet that they match.
fn have_same_verdict(a: &Rule, b: &Rule) -> bool {
    let is_verdict =
        |target: &Target| matches!(target, Target::Accept | Target::Drop | Target::Reject | Target::Return);
    a.target == b.target && a.target.as_ref().is_some_and(is_verdict) && !is_random(a) && !is_random(b)
}

/// Of two rules with chance, the first takes more.
fn is_random(rule: &Rule) -> bool {
    rule.matches.iter().any(|m| matches!(m, Match::Random { .. }))
}

/// Whether no packet matches both rules. Packets that match one of them, or neither, then fare the same in
/// either order.
pub(super) fn are_exclusive(a: &Rule, b: &Rule) -> bool {
    let exclude_basics = exclude(&a.source, &b.source, are_apart, is_within)
        || exclude(&a.destination, &b.destination, are_apart, is_within)
        || exclude(&a.in_interface, &b.in_interface, are_other_names, |a, b| a == b)
        || exclude(&a.out_interface, &b.out_interface, are_other_names, |a, b| a == b)
        || exclude(&a.protocol, &b.protocol, are_other_protocols, |a, b| a == b);
    exclude_basics || (is_stateless(a) && is_stateless(b) && exclude_matches(a, b))
}

/// Whether testing a rule changes nothing, as `recent` and `limit` do: the basic matches are tested first, so
/// only they keep such a rule from being tested.
pub(super) fn is_stateless(rule: &Rule) -> bool {
    !rule.matches.iter().any(|m| matches!(m, Match::Recent { .. } | Match::Other { .. }))
}

/// The protocol and the only port that `rule` matches.
pub(super) fn single_port(rule: &Rule) -> Option<(Protocol, u16)> {
    rule.matches.iter().find_map(|m| match m {
        Match::L4 { protocol, destination_ports: Some(PortRange { first, last }) } if first == last => {
            Some((*protocol, *first))
        }
        _ => None,
    })
}

/// Whether no value fits both parts.
fn exclude<T>(
    a: &Option<MaybeNot<T>>,
    b: &Option<MaybeNot<T>>,
    are_apart: impl Fn(&T, &T) -> bool,
    is_within: impl Fn(&T, &T) -> bool,
) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    match (a.negated, b.negated) {
        (false, false) => are_apart(&a.value, &b.value),
        (false, true) => is_within(&a.value, &b.value),
        (true, false) => is_within(&b.value, &a.value),
        (true, true) => false,
    }
}

fn are_apart(a: &Cidr, b: &Cidr) -> bool {
    !is_within(a, b) && !is_within(b, a)
}

fn is_within(inner: &Cidr, outer: &Cidr) -> bool {
    outer.length() <= inner.length() && outer.contains(inner.address())
}

fn are_other_names(a: &Interface, b: &Interface) -> bool {
    let stem = |name: &Interface| name.as_str().strip_suffix('+').map(str::to_owned);
    match (stem(a), stem(b)) {
        (None, None) => a != b,
        (Some(stem), None) => !b.as_str().starts_with(&stem),
        (None, Some(stem)) => !a.as_str().starts_with(&stem),
        (Some(a), Some(b)) => !a.starts_with(&b) && !b.starts_with(&a),
    }
}

/// Two names that are unknown here may be one protocol.
fn are_other_protocols(a: &L4Protocol, b: &L4Protocol) -> bool {
    a != b && [a, b].iter().any(|protocol| matches!(protocol, L4Protocol::Service(_)))
}

fn exclude_matches(a: &Rule, b: &Rule) -> bool {
    a.matches.iter().any(|one| b.matches.iter().any(|other| exclude_match(one, other)))
}

fn exclude_match(a: &Match, b: &Match) -> bool {
    match (a, b) {
        (
            Match::L4 { protocol: a, destination_ports: a_ports },
            Match::L4 { protocol: b, destination_ports: b_ports },
        ) => {
            let are_apart = |(a, b): (PortRange, PortRange)| a.last < b.first || b.last < a.first;
            a != b || a_ports.zip(*b_ports).is_some_and(are_apart)
        }
        (Match::CtState(a), Match::CtState(b)) => {
            exclude(&Some(*a), &Some(*b), are_other_states, |inner, outer| outer.contains(*inner))
        }
        _ => false,
    }
}

/// A packet has one state; SNAT and DNAT come on top of it.
fn are_other_states(a: &CtStates, b: &CtStates) -> bool {
    let translated = CtStates::SNAT.and(CtStates::DNAT);
    !a.overlaps(*b) && !a.overlaps(translated) && !b.overlaps(translated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::parse::{self, Line};
    use crate::net::IpFamily;

    fn rule(text: &str) -> Rule {
        match parse::line(IpFamily::V4, &format!("-A X {text}")) {
            Ok(Line::Append(_, rule)) => rule,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn check(a: &str, b: &str, exclusive: bool) {
        assert_eq!(are_exchangeable(&rule(a), &rule(b)), exclusive, "{a} / {b}");
        assert_eq!(are_exchangeable(&rule(b), &rule(a)), exclusive, "{b} / {a}");
    }

    #[test]
    fn rules_that_exclude_each_other_are_recognised() {
        check("-d 10.0.0.1", "-d 10.0.0.2", true);
        check("-d 10.0.0.0/8", "-d 11.0.0.0/8", true);
        check("! -s 10.0.0.0/8", "-s 10.1.0.0/16", true);
        check("-i eth0", "-i eth1", true);
        check("-i eth0", "-i cali+", true);
        check("! -o cbr0", "-o cbr0", true);
        check("-p tcp", "-p udp", true);
        check("-p tcp", "-p icmp", true);
        check("-p tcp -m tcp --dport 80", "-p tcp -m tcp --dport 81:90", true);
        check("-m conntrack --ctstate NEW", "-m conntrack --ctstate RELATED,ESTABLISHED", true);
        check("-m conntrack ! --ctstate RELATED,ESTABLISHED", "-m conntrack --ctstate RELATED", true);
        // The address is tested before the list is changed.
        check("-s 10.0.0.1 -m recent --set --name A", "-s 10.0.0.2 -j DROP", true);
    }

    #[test]
    fn rules_with_one_verdict_are_exchangeable() {
        check(
            "-s 10.0.0.1 -m comment --comment a -j ACCEPT",
            "-p tcp -m comment --comment b -j ACCEPT",
            true,
        );
        check("-s 10.0.0.1 -j ACCEPT", "-p tcp -j DROP", false);
        check("-s 10.0.0.1 -j A", "-p tcp -j A", false);
        check("-m limit --limit 1/s -j ACCEPT", "-p tcp -j ACCEPT", false);
        check("-m statistic --mode random --probability 0.5 -j RETURN", "-p tcp -j RETURN", false);
    }

    #[test]
    fn in_doubt_the_order_counts() {
        check("-d 10.0.0.1", "-d 10.0.0.0/8", false);
        check("-d 10.0.0.1", "-s 10.0.0.2", false);
        check("-d 10.0.0.1", "", false);
        check("! -s 10.0.0.0/8", "! -s 11.0.0.0/8", false);
        check("! -s 10.0.0.0/8", "-s 10.0.0.0/7", false);
        check("-i eth+", "-i eth0", false);
        check("-p 47", "-p gre", false);
        check("-p tcp -m tcp --dport 80", "-p tcp", false);
        check("-p tcp -m tcp --dport 80", "-p tcp -m tcp --dport 1:90", false);
        // A packet in state NEW may have a translated destination.
        check("-m conntrack --ctstate NEW", "-m conntrack --ctstate DNAT", false);
        // The first may change the mark that the second sees.
        check("-m mark --mark 0x1/0x1 -j A", "-m mark --mark 0x0/0x1 -j B", false);
        check("-m addrtype --dst-type LOCAL", "-m addrtype ! --dst-type LOCAL", false);
        // The list is changed whatever the port is.
        check("-p tcp -m recent --set --name A -m tcp --dport 80", "-p tcp -m tcp --dport 81", false);
        check("-m limit --limit 1/s -m conntrack --ctstate NEW", "-m conntrack --ctstate INVALID", false);
    }
}
