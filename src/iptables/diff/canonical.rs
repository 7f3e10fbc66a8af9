//! The canonical order of a chain's rules: of all orders that exchanging neighbours leads to, the one with the
//! least rule first, then the least of those that may follow, and so on. Chains with the same canonical order
//! treat every packet the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;

use super::exchange::{are_exchangeable, is_stateless, single_port};
use crate::iptables::{MaybeNot, Rule};
use crate::net::Protocol;

/// The most pairs of rules of a chain that are compared, well under a second's work. Of dispatch chains only few
/// pairs are: rules for different addresses, or different ports, exclude each other.
const MAX_PAIRS: usize = 20_000_000;

/// The rules in canonical order; `None` if too many pairs would have to be compared.
pub(super) fn order(rules: &[Rule]) -> Option<Vec<&Rule>> {
    order_within(rules, MAX_PAIRS)
}

fn order_within(rules: &[Rule], max_pairs: usize) -> Option<Vec<&Rule>> {
    let mut sorted: Vec<usize> = (0..rules.len()).collect();
    sorted.sort_by_key(|n| &rules[*n]);
    let mut ranks = vec![0; rules.len()];
    sorted.iter().enumerate().for_each(|(rank, n)| ranks[*n] = rank);
    let mut sequence = Sequence::of(rules, max_pairs)?;
    let is_free = |n: &usize| sequence.n_before[*n] == 0;
    let mut free: BinaryHeap<_> = (0..rules.len()).filter(is_free).map(|n| Reverse((ranks[n], n))).collect();
    let mut ordered = Vec::with_capacity(rules.len());
    while let Some(Reverse((_, n))) = free.pop() {
        ordered.push(&rules[n]);
        for later in std::mem::take(&mut sequence.after[n]) {
            sequence.n_before[later] -= 1;
            if sequence.n_before[later] == 0 {
                free.push(Reverse((ranks[later], later)));
            }
        }
    }
    Some(ordered)
}

/// Rules of different keys of one kind exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RuleKey {
    Address(IpAddr),
    Port(Protocol, u16),
}

/// Which rules have to stay behind which.
struct Sequence {
    /// For each rule, later ones that stay behind it.
    after: Vec<Vec<usize>>,
    /// For each rule, in how many of these lists it is.
    n_before: Vec<usize>,
}

impl Sequence {
    fn of(rules: &[Rule], max_pairs: usize) -> Option<Sequence> {
        let mut sequence = Sequence { after: vec![Vec::new(); rules.len()], n_before: vec![0; rules.len()] };
        let keys = keys(rules);
        let (mut by_key, mut without_key) = (BTreeMap::<RuleKey, Vec<usize>>::new(), Vec::new());
        // Rules that stay behind all before them: behind one of these, a rule stays behind all before it.
        let mut is_behind_all = Vec::with_capacity(rules.len());
        let mut n_pairs = 0;
        for (n, key) in keys.iter().enumerate() {
            let mut is_contiguous = true;
            let mut expected = n;
            let of_key = key.map(|key| by_key.get(&key).map_or(&[][..], Vec::as_slice));
            for earlier in earlier(n, of_key, &without_key) {
                n_pairs += 1;
                if n_pairs > max_pairs {
                    return None;
                }
                if are_exchangeable(&rules[earlier], &rules[n]) {
                    continue;
                }
                is_contiguous &= earlier + 1 == expected;
                expected = earlier;
                sequence.after[earlier].push(n);
                sequence.n_before[n] += 1;
                if is_behind_all[earlier] {
                    expected = 0;
                    break;
                }
            }
            is_behind_all.push(is_contiguous && expected == 0);
            match key {
                Some(key) => by_key.entry(*key).or_default().push(n),
                None => without_key.push(n),
            }
        }
        Some(sequence)
    }
}

/// Earlier rules that may match a packet that rule `n` matches, the last first.
fn earlier<'a>(
    n: usize,
    of_key: Option<&'a [usize]>,
    without_key: &'a [usize],
) -> Box<dyn Iterator<Item = usize> + 'a> {
    let Some(of_key) = of_key else { return Box::new((0..n).rev()) };
    let (mut a, mut b) = (of_key.iter().rev().peekable(), without_key.iter().rev().peekable());
    Box::new(std::iter::from_fn(move || if a.peek() > b.peek() { a.next() } else { b.next() }.copied()))
}

/// A key for each rule that has one: all of the kind that more of them have.
fn keys(rules: &[Rule]) -> Vec<Option<RuleKey>> {
    let addresses: Vec<Option<RuleKey>> = rules.iter().map(address).collect();
    let ports: Vec<Option<RuleKey>> = rules.iter().map(port).collect();
    let n_keys = |keys: &[Option<RuleKey>]| keys.iter().flatten().count();
    if n_keys(&addresses) >= n_keys(&ports) { addresses } else { ports }
}

fn address(rule: &Rule) -> Option<RuleKey> {
    match rule.destination {
        Some(MaybeNot { negated: false, value }) if value.length() == value.family().bits() => {
            Some(RuleKey::Address(value.address()))
        }
        _ => None,
    }
}

fn port(rule: &Rule) -> Option<RuleKey> {
    let (protocol, port) = single_port(rule).filter(|_| is_stateless(rule))?;
    Some(RuleKey::Port(protocol, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::parse::{self, Line};
    use crate::iptables::write;
    use crate::net::IpFamily;

    fn rules(texts: &[String]) -> Vec<Rule> {
        let rule = |text: &String| match parse::line(IpFamily::V4, &format!("-A X {text}")) {
            Ok(Line::Append(_, rule)) => rule,
            other => panic!("{text}: {other:?}"),
        };
        texts.iter().map(rule).collect()
    }

    fn ordered(rules: &[Rule], max_pairs: usize) -> Option<Vec<String>> {
        let ordered = order_within(rules, max_pairs)?;
        Some(ordered.into_iter().map(|rule| write::rule_text(IpFamily::V4, rule)).collect())
    }

    /// Every order that exchanging neighbours leads to.
    fn reachable(rules: &[Rule]) -> Vec<Vec<Rule>> {
        let mut found = vec![rules.to_vec()];
        let mut at = 0;
        while let Some(known) = found.get(at).cloned() {
            for n in 1..known.len() {
                let mut next = known.clone();
                next.swap(n - 1, n);
                if are_exchangeable(&known[n - 1], &known[n]) && !found.contains(&next) {
                    found.push(next);
                }
            }
            at += 1;
        }
        found
    }

    #[test]
    fn the_canonical_order_is_the_least_that_exchanges_lead_to() {
        let parts =
            ["-d 10.0.0.1/32", "-d 10.0.0.2/32", "-d 10.0.0.0/8", "-p tcp -m tcp --dport 80", "-p udp", ""];
        let targets = ["-j DROP", "-j ACCEPT"];
        let mut seed = 1u64;
        let mut roll = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        for _ in 0..300 {
            let n = 1 + roll(6);
            let texts: Vec<String> =
                (0..n).map(|_| format!("{} {}", parts[roll(parts.len())], targets[roll(2)])).collect();
            let rules = rules(&texts);
            let all = reachable(&rules);
            let least: Vec<&Rule> = all.iter().map(|order| order.iter().collect::<Vec<_>>()).min().unwrap();
            for other in &all {
                assert_eq!(order(other).unwrap(), least, "{texts:?}");
            }
        }
    }

    /// 40 000 dispatch rules with a last rule for all of them, and as many rules that all match.
    #[test]
    fn long_chains_of_services_are_within_the_bound() {
        let mut dispatch: Vec<String> =
            (0..40_000).map(|n| format!("-d 10.{}.{}.{}/32 -j A", n >> 16, n >> 8 & 255, n & 255)).collect();
        dispatch.push("-m addrtype --dst-type LOCAL -j B".to_owned());
        let in_order = rules(&dispatch);
        dispatch[..40_000].reverse();
        assert_eq!(order(&in_order), order(&rules(&dispatch)));
        let endpoints: Vec<String> =
            (0..40_000).map(|n| format!("-m statistic --mode random --probability 0.5 -j E{n}")).collect();
        assert_eq!(order_within(&rules(&endpoints), 40_000).map(|rules| rules.len()), Some(40_000));
    }

    #[test]
    fn beyond_the_bound_there_is_no_canonical_order() {
        let texts: Vec<String> = (0..100).map(|n| format!("-s 10.0.0.{n}/32 -j A")).collect();
        let rules = rules(&texts);
        assert!(ordered(&rules, 100 * 99 / 2).is_some());
        assert_eq!(ordered(&rules, 100 * 99 / 2 - 1), None);
    }
}
