//! The shape of the tree: few rules a chain, few chains a path, small changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::config::Config;
use crate::iptables::Target;
use crate::model::host::Host;
use crate::net::{IpFamily, Protocol};

fn settings(family: IpFamily) -> Settings {
    Settings::new(&Config::default(), None, &Host::default(), family)
}

fn key(ip: impl Into<IpAddr>, protocol: Protocol, port: u16) -> Key {
    Key { ip: Some(ip.into()), protocol, port }
}

fn v4(n: u32) -> Key {
    key(Ipv4Addr::from(n), Protocol::Tcp, 80)
}

/// The chains of the dispatch by address, with the keys of their entries.
fn grow(
    family: IpFamily,
    chain: SharedChain,
    keys: &[Key],
) -> BTreeMap<ChainName, Vec<Result<Key, Box<Rule>>>> {
    let chains = shared_chains(&settings(family), Layout::Compact, chain, keys);
    let names: Vec<ChainName> = chains.iter().map(|chain| chain.name).collect();
    for (n, chain) in chains.iter().enumerate() {
        let callees = chain.parts.iter().filter_map(|part| match part {
            Part::Rule(rule) => rule.callee().filter(|callee| *callee != names::KUBE_NODEPORTS),
            Part::Entry(_) => None,
        });
        for callee in callees {
            assert!(names[..n].contains(&callee), "{callee} stands behind its caller {}", chain.name);
        }
    }
    let part = |part: Part| match part {
        Part::Entry(entry) => Ok(keys[entry]),
        Part::Rule(rule) => Err(rule),
    };
    let by_name: BTreeMap<_, _> =
        chains.into_iter().map(|chain| (chain.name, chain.parts.into_iter().map(part).collect())).collect();
    assert_eq!(by_name.len(), names.len(), "each name is for one prefix");
    by_name
}

fn nat(keys: &[Key]) -> BTreeMap<ChainName, Vec<Result<Key, Box<Rule>>>> {
    grow(IpFamily::V4, SharedChain::NatServices, keys)
}

/// The number of chains on the longest path from `from`, itself not counted.
fn depth(chains: &BTreeMap<ChainName, Vec<Result<Key, Box<Rule>>>>, from: &ChainName) -> usize {
    let Some(parts) = chains.get(from) else { return 0 };
    let callees = parts.iter().filter_map(|part| part.as_ref().err()?.callee());
    let callees = callees.filter(|callee| chains.contains_key(callee));
    callees.map(|callee| 1 + depth(chains, &callee)).max().unwrap_or(0)
}

/// Pseudo-random numbers, the same in every run.
fn scattered(n: usize) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(0x9E37_79B9_u32), |x| {
        Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
    })
    .take(n)
}

#[test]
fn few_entries_stand_in_the_shared_chain_itself() {
    let keys: Vec<Key> = (0..16).map(|n| v4(0x0A60_0000 + n)).collect();
    let chains = nat(&keys);
    assert_eq!(chains.len(), 1);
    let root = &chains[&names::KUBE_SERVICES];
    assert_eq!(root.len(), 17);
    assert_eq!(root[..16], keys.iter().copied().map(Ok).collect::<Vec<_>>());
    assert_eq!(root[16].as_ref().unwrap_err().callee(), Some(names::KUBE_NODEPORTS));
}

#[test]
fn chains_are_named_by_their_prefixes() {
    let keys: Vec<Key> = (0..17).map(|n| v4(0x0A60_0100 + n)).collect();
    let chains = nat(&keys);
    let names: Vec<&str> = chains.keys().map(ChainName::as_str).collect();
    assert_eq!(names, ["KUBE-EXT-00A60010024", "KUBE-EXT-00A60010028", "KUBE-SERVICES"]);
    let text = |part: &Result<Key, Box<Rule>>| {
        crate::iptables::write::rule_text(IpFamily::V4, part.as_ref().unwrap_err())
    };
    // The first by a jump, so that a packet without an entry returns; the next by goto, so that it
    // returns at once.
    assert_eq!(text(&chains[&names::KUBE_SERVICES][0]), "-d 10.96.1.0/24 -j KUBE-EXT-00A60010024");
    let inner = &chains[&ChainName::literal("KUBE-EXT-00A60010024")];
    assert_eq!(text(&inner[0]), "-d 10.96.1.0/28 -g KUBE-EXT-00A60010028");
    assert_eq!(inner[1..], [Ok(keys[16])]);
}

#[test]
fn an_address_with_many_ports_is_split_by_them() {
    let keys: Vec<Key> = (0..40).map(|n| key([10, 96, 0, 1], Protocol::Tcp, 8000 + n)).collect();
    let chains = nat(&keys);
    let text = |part: &Result<Key, Box<Rule>>| {
        crate::iptables::write::rule_text(IpFamily::V4, part.as_ref().unwrap_err())
    };
    assert_eq!(
        text(&chains[&names::KUBE_SERVICES][0]),
        "-d 10.96.0.1/32 -p tcp -m tcp --dport 7936:8191 -j KUBE-EXT-00A600001T1F002"
    );
    assert!(chains.values().all(|parts| parts.len() <= 17), "{chains:#?}");
}

#[test]
fn node_ports_are_split_by_protocol_and_port() {
    let port = |protocol| move |n: u16| Key { ip: None, protocol, port: 30_000 + n };
    let keys: Vec<Key> = (0..100).map(port(Protocol::Tcp)).chain((0..3).map(port(Protocol::Udp))).collect();
    let chains = grow(IpFamily::V4, SharedChain::NatNodePorts, &keys);
    let root: Vec<String> = chains[&names::KUBE_NODEPORTS]
        .iter()
        .map(|part| crate::iptables::write::rule_text(IpFamily::V4, part.as_ref().unwrap_err()))
        .collect();
    assert_eq!(
        root,
        [
            "-p tcp -m tcp --dport 29952:30207 -j KUBE-EXT-0T75002",
            "-p udp -m udp --dport 30000:30015 -j KUBE-EXT-0U75303"
        ]
    );
}

#[test]
fn chains_are_short_and_paths_too() {
    let range = |n| scattered(n).map(|x| v4(0x0A60_0000 | x >> 12));
    let keys: Vec<Key> = range(20_000).chain(scattered(500).map(v4)).collect();
    let keys: BTreeSet<Key> = keys.into_iter().collect();
    let keys: Vec<Key> = keys.into_iter().collect();
    let chains = nat(&keys);
    let longest = chains.values().map(Vec::len).max().unwrap();
    assert!(longest <= 17, "{longest} rules");
    assert!(depth(&chains, &names::KUBE_SERVICES) <= 6);
    assert!(chains.len() < keys.len() / 3, "{} chains for {} addresses", chains.len(), keys.len());
    let entries: BTreeSet<Key> =
        chains.values().flatten().filter_map(|part| part.as_ref().ok().copied()).collect();
    assert_eq!(entries.into_iter().collect::<Vec<_>>(), keys, "each entry once");
}

/// A user who may create Services can choose addresses that branch at every level.
#[test]
fn addresses_that_branch_everywhere_make_a_long_chain_and_no_long_path() {
    for (family, base) in [(IpFamily::V4, 0u128), (IpFamily::V6, 0xfd00 << 112)] {
        let bits = u32::from(family.bits());
        let mut keys = Vec::new();
        for level in 0..bits / 4 {
            for digit in 1..16u128 {
                for port in [80, 81] {
                    let address = base ^ digit << (bits - 4 - 4 * level);
                    let ip = match family {
                        IpFamily::V4 => IpAddr::from((address as u32).to_be_bytes()),
                        IpFamily::V6 => IpAddr::from(address.to_be_bytes()),
                    };
                    keys.push(key(ip, Protocol::Tcp, port));
                }
            }
        }
        let chains = grow(family, SharedChain::NatServices, &keys);
        assert_eq!(depth(&chains, &names::KUBE_SERVICES), 6, "{family}");
        let entries = chains.values().flatten().filter(|part| part.is_ok()).count();
        assert_eq!(entries, keys.len(), "{family}");
    }
}

#[test]
fn many_services_of_one_address_and_port_stand_in_a_chain_of_their_own_in_their_order() {
    let mut keys = vec![v4(0x0A60_0001); 40];
    keys.push(v4(0x0A60_0002));
    let settings = settings(IpFamily::V4);
    let chains = shared_chains(&settings, Layout::Compact, SharedChain::NatServices, &keys);
    let own = chains.iter().find(|chain| chain.parts.len() == 40).unwrap();
    assert_eq!(own.parts, (0..40).map(Part::Entry).collect::<Vec<_>>());
}

#[test]
fn one_address_more_or_less_changes_one_path() {
    let all: Vec<Key> = scattered(3_000).map(|x| v4(0x0A60_0000 | x >> 12)).collect();
    let mut most = 0;
    for n in (0..all.len()).step_by(97) {
        let mut less = all.clone();
        less.remove(n);
        let (with, without) = (nat(&all), nat(&less));
        let changed: Vec<&ChainName> =
            with.keys().chain(without.keys()).filter(|name| with.get(name) != without.get(name)).collect();
        let changed: BTreeSet<&ChainName> = changed.into_iter().collect();
        // The chain that holds the address; the chains that it splits into, if it was full; and the chains
        // above whose branches changed.
        most = most.max(changed.len());
    }
    assert!(most <= 2 + 8, "{most} chains");
}

#[test]
fn the_order_of_services_does_not_matter_for_the_chains() {
    let keys: Vec<Key> = scattered(400).map(v4).collect();
    let mut turned = keys.clone();
    turned.reverse();
    assert_eq!(nat(&keys), nat(&turned));
}

#[test]
fn in_filter_no_chain_is_skipped_and_addresses_come_before_node_ports() {
    let node_port = |n| Key { ip: None, protocol: Protocol::Tcp, port: n };
    let keys: Vec<Key> =
        (0..40).flat_map(|n| [node_port(30_000 + n), v4(0x0A60_0000 + u32::from(n))]).collect();
    let chains = grow(IpFamily::V4, SharedChain::FilterExternalServices, &keys);
    let rules: Vec<&Box<Rule>> = chains.values().flatten().filter_map(|part| part.as_ref().err()).collect();
    assert!(rules.iter().all(|rule| matches!(rule.target, Some(Target::Jump(_)))));
    let root = &chains[&names::KUBE_EXTERNAL_SERVICES];
    let is_by_address: Vec<bool> =
        root.iter().map(|part| part.as_ref().unwrap_err().destination.is_some()).collect();
    assert_eq!(is_by_address, [true, false]);
}

#[test]
fn classic_keeps_the_order_of_services_except_for_unserved_node_ports() {
    let node_port = Key { ip: None, protocol: Protocol::Tcp, port: 30_000 };
    let order = |chain| {
        let layout = Layout::Classic { is_large: false };
        let keys = [node_port, v4(7), v4(3)];
        let chains = shared_chains(&settings(IpFamily::V4), layout, chain, &keys);
        let [only] = &chains[..] else { panic!("{chains:?}") };
        only.parts.iter().take(3).cloned().collect::<Vec<_>>()
    };
    assert_eq!(order(SharedChain::NatServices), [0, 1, 2].map(Part::Entry));
    assert_eq!(order(SharedChain::FilterExternalServices), [1, 2, 0].map(Part::Entry));
}
