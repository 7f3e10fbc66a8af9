//! The index of long chains changes nothing about what a trace finds.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use chainsmith::config::LayoutChoice;
use chainsmith::iptables::trace::{
    Branch, Origin, Packet, RecentLists, TraceEvent, TraceOptions, TracedNode, Tracer, trace,
};
use chainsmith::iptables::{Match, Ruleset, replay};
use chainsmith::net::{IpFamily, Protocol};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::cluster::worlds;
use crate::for_all;
use crate::layouts::{Dice, all_packets, crowd, laid_out};
use crate::live::families;
use crate::order::local;

/// All results with and without the index: weights, outcomes, counts of rules, paths. With details, each
/// chain's count of rules adds up to the path's.
fn same_with_index(ruleset: &Ruleset, local: &BTreeSet<IpAddr>, packets: &[Packet]) -> TestCaseResult {
    let node = TracedNode { ruleset, local_addresses: local, routes: &[] };
    let recent = RecentLists::default();
    let strict = Tracer::new(node, TraceOptions::default());
    let detailed = Tracer::new(node, TraceOptions { records_events: true, ..TraceOptions::default() });
    for packet in packets {
        let plain = trace(&node, packet, &recent);
        prop_assert_eq!(&strict.trace(packet, &recent), &plain, "{:?}", packet);
        for branch in detailed.trace(packet, &recent) {
            // Of paths that end alike, the count is of the longest, the events are of the first.
            let n = count(&branch);
            prop_assert!(n <= branch.n_rules, "{:?}", branch);
            prop_assert!(n == branch.n_rules || has_chance(ruleset), "{:?}", branch);
        }
    }
    Ok(())
}

fn has_chance(ruleset: &Ruleset) -> bool {
    let chains = ruleset.tables.values().flat_map(|chains| chains.values());
    chains
        .flat_map(|chain| &chain.rules)
        .flat_map(|rule| &rule.matches)
        .any(|part| matches!(part, Match::Random { .. }))
}

fn count(branch: &Branch) -> usize {
    let visits = branch.events.iter().filter_map(|event| match event {
        TraceEvent::Entered(visit) => Some(visit.n_rules),
        TraceEvent::Routed(_) => None,
    });
    visits.sum()
}

#[test]
fn rules_of_any_cluster_fare_the_same_with_the_index() {
    let crowds = (worlds(), families(), 0..30usize, any::<u64>(), any::<bool>());
    for_all(40, crowds, |(mut world, family, n_copies, seed, is_classic)| {
        crowd(&mut world, n_copies, Dice(seed));
        let layout = if is_classic { LayoutChoice::Classic } else { LayoutChoice::Compact };
        let ruleset = laid_out(&world, family, layout);
        let mut dice = Dice(seed);
        let mut packets = all_packets(&world, family, &mut dice);
        while packets.len() > 200 {
            let n = dice.roll(packets.len() as u64) as usize;
            packets.swap_remove(n);
        }
        let packets: Vec<Packet> = packets
            .iter()
            .map(|packet| {
                let origin = match packet.in_interface {
                    None => Origin::Node,
                    Some(name) => Origin::Arrives(Some(name.into())),
                };
                Packet::new(origin, SocketAddr::new(packet.source, 40_000), packet.to, packet.protocol)
            })
            .collect();
        same_with_index(&ruleset, &local(family), &packets)
    });
}

const IPS: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "192.0.2.1", "198.51.100.9"];
const PORTS: [u16; 3] = [80, 443, 8080];

/// Lines of long chains whose rules match on few addresses and ports.
fn long_chains(dice: &mut Dice) -> String {
    let mut text = String::new();
    for (table, chains) in [("nat", ["PREROUTING", "A", "B"]), ("filter", ["FORWARD", "A", "B"])] {
        writeln!(text, "*{table}\n:A - [0:0]\n:B - [0:0]").expect("a String takes any text");
        for (level, chain) in chains.iter().enumerate() {
            for _ in 0..40 + dice.roll(60) {
                let rule = rule(dice, table, level);
                writeln!(text, "-A {chain}{rule}").expect("a String takes any text");
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

fn rule(dice: &mut Dice, table: &str, level: usize) -> String {
    let mut rule = String::new();
    let mut pick = |dice: &mut Dice, option: &str| {
        let not = if dice.roll(8) == 0 { " !" } else { "" };
        let length = if dice.roll(4) == 0 { "/24" } else { "" };
        let ip = IPS[dice.roll(IPS.len() as u64) as usize];
        write!(rule, "{not} {option} {ip}{length}").expect("a String takes any text");
    };
    if dice.roll(3) > 0 {
        pick(dice, "-d");
    }
    if dice.roll(4) == 0 {
        pick(dice, "-s");
    }
    let protocol = ["tcp", "udp"][dice.roll(2) as usize];
    let port = PORTS[dice.roll(3) as usize];
    rule += &match dice.roll(6) {
        0 | 1 => format!(" -p {protocol} -m {protocol} --dport {port}"),
        2 => format!(" -p {protocol} -m {protocol} --dport {port}:{}", port + 400),
        3 => format!(" -p {protocol} -m recent --set --name L{port} -m {protocol} --dport {port}"),
        4 if dice.roll(12) == 0 => format!(
            " -p {protocol} -m statistic --mode random --probability 0.5 -m {protocol} --dport {port}"
        ),
        _ => String::new(),
    };
    let terminal = if table == "nat" { "DNAT --to-destination 10.0.1.1:8080" } else { "DROP" };
    rule += &match (dice.roll(12), level) {
        (0, 0) => " -j A".to_owned(),
        (0, 1) => " -g B".to_owned(),
        (1, 0 | 1) => " -j B".to_owned(),
        (2, _) => format!(" -j {terminal}"),
        (3, 1 | 2) => " -j RETURN".to_owned(),
        (n, _) => format!(" -j MARK --set-xmark {:#x}/0x0", 1 << n),
    };
    rule
}

#[test]
fn any_long_chains_fare_the_same_with_the_index() {
    for_all(40, any::<u64>(), |seed| {
        let mut dice = Dice(seed);
        let text = long_chains(&mut dice);
        let ruleset = replay::text(IpFamily::V4, &text).expect("rules");
        let mut packets = Vec::new();
        for to in IPS {
            let from = IPS[dice.roll(IPS.len() as u64) as usize].parse().expect("an address");
            let to = SocketAddr::new(to.parse().expect("an address"), PORTS[dice.roll(3) as usize]);
            let origin = Origin::Arrives(Some("eth0".into()));
            let protocol = [Protocol::Tcp, Protocol::Udp][dice.roll(2) as usize];
            packets.push(Packet::new(origin, SocketAddr::new(from, 999), to, protocol));
        }
        same_with_index(&ruleset, &["192.0.2.1".parse().expect("an address")].into(), &packets)
    });
}
