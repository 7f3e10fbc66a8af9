//! `diff`: what is the same has no differences, and a change of the meaning is found by packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use chainsmith::config::LayoutChoice;
use chainsmith::inspect::comparison::{DiffMode, DiffReport, compare};
use chainsmith::inspect::{HostOrigin, HostView, RulesOrigin, Subject};
use chainsmith::iptables::parse::{self, Line};
use chainsmith::iptables::{ChainName, Match, Rule, Ruleset, Table, Target};
use chainsmith::model::host::InterfaceAddress;
use chainsmith::net::{IpFamily, PerFamily};
use proptest::prelude::*;

use crate::cluster::{NODE_IPS, World, index, ip, worlds};
use crate::fates::{Packet, are_same, fates};
use crate::for_all;
use crate::layouts::{Dice, crowd, laid_out};
use crate::live::families;
use crate::order::{frontends, local, packets};

/// A node that is connected by eth0, with these rules.
fn subject(family: IpFamily, ruleset: &Ruleset) -> Subject {
    let mut rulesets = PerFamily::default();
    *rulesets.get_mut(family) = Some(ruleset.clone());
    let interface = |text: &&str| InterfaceAddress {
        interface: "eth0".into(),
        ip: ip(text),
        length: if family == IpFamily::V4 { 24 } else { 64 },
    };
    let host =
        HostView::of_interfaces(NODE_IPS[index(family)].iter().map(interface).collect(), HostOrigin::File);
    Subject { rulesets, origin: RulesOrigin::Text("rules".to_owned()), cluster: None, host }
}

const PACKETS: DiffMode = DiffMode::Packets { n_threads: 1 };

fn compared(family: IpFamily, old: &Ruleset, new: &Ruleset, mode: DiffMode) -> DiffReport {
    compare([("old", &subject(family, old)), ("new", &subject(family, new))], mode)
}

#[test]
fn a_ruleset_does_not_differ_from_itself() {
    for_all(12, (worlds(), families()), |(world, family)| {
        let ruleset = world.ruleset(family);
        let text = compared(family, &ruleset, &ruleset, DiffMode::Text);
        prop_assert!(text.is_same && text.families[0].n_different_chains == 0, "{text:#?}");
        let packets = compared(family, &ruleset, &ruleset, PACKETS);
        prop_assert!(packets.is_same, "{packets:#?}");
        prop_assert!(packets.families[0].packets.as_ref().is_some_and(|packets| packets.n_packets > 20));
        Ok(())
    });
}

/// The same rules with the Services of shared chains in another order; rules of one service port keep theirs.
fn shuffled(ruleset: &Ruleset, dice: &mut Dice) -> Ruleset {
    let mut ruleset = ruleset.clone();
    for (table, name) in [
        (Table::Nat, "KUBE-SERVICES"),
        (Table::Nat, "KUBE-NODEPORTS"),
        (Table::Filter, "KUBE-SERVICES"),
        (Table::Filter, "KUBE-NODEPORTS"),
        (Table::Filter, "KUBE-PROXY-FIREWALL"),
    ] {
        let rules = &mut ruleset.chain_mut(table, ChainName::literal(name)).rules;
        let is_last =
            |rule: &Rule| rule.comment().is_some_and(|comment| comment.contains("must be the last"));
        let mut by_port: BTreeMap<(bool, u64, String), Vec<Rule>> = BTreeMap::new();
        let mut salts = BTreeMap::new();
        for rule in rules.drain(..) {
            let port = rule.comment().and_then(|comment| comment.split(' ').next()).unwrap_or("").to_owned();
            let salt = *salts.entry(port.clone()).or_insert_with(|| dice.roll(1 << 30));
            by_port.entry((is_last(&rule), salt, port)).or_default().push(rule);
        }
        rules.extend(by_port.into_values().flatten());
    }
    ruleset
}

#[test]
fn the_order_of_services_makes_no_difference() {
    let crowds = (worlds(), families(), 0..12usize, any::<u64>());
    for_all(60, crowds, |(mut world, family, n_copies, seed)| {
        crowd(&mut world, n_copies, Dice(seed));
        let ruleset = laid_out(&world, family, LayoutChoice::Classic);
        let other = shuffled(&ruleset, &mut Dice(seed));
        let text = compared(family, &ruleset, &other, DiffMode::Text);
        prop_assert!(text.is_same, "{:#?}", text.families);
        Ok(())
    });
}

#[test]
fn both_layouts_are_the_same_for_all_packets() {
    let crowds = (worlds(), families(), 0..8usize, any::<u64>());
    for_all(8, crowds, |(mut world, family, n_copies, seed)| {
        crowd(&mut world, n_copies, Dice(seed));
        let [classic, compact] =
            [LayoutChoice::Classic, LayoutChoice::Compact].map(|layout| laid_out(&world, family, layout));
        let report = compared(family, &classic, &compact, PACKETS);
        prop_assert!(report.is_same, "{:#?}", report.families);
        Ok(())
    });
}

/// `ruleset` with one change in a random place, and what it is.
fn mutated(ruleset: &Ruleset, family: IpFamily, dice: &mut Dice) -> (Ruleset, String) {
    let mut mutated = ruleset.clone();
    if dice.roll(8) == 0 {
        let (table, chains) = match dice.roll(2) {
            0 => (Table::Filter, ["FORWARD", "OUTPUT", "INPUT"]),
            _ => (Table::Filter, ["KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"]),
        };
        let chain = ChainName::literal(chains[dice.roll(3) as usize]);
        let Ok(Line::Append(_, rule)) = parse::line(family, "-A X -p tcp -m tcp --dport 80 -j DROP") else {
            panic!("a rule");
        };
        mutated.chain_mut(table, chain).rules.insert(0, rule);
        return (mutated, format!("a rule that drops in {chain}"));
    }
    let places: Vec<(Table, ChainName, usize)> = ruleset
        .tables
        .iter()
        .flat_map(|(table, chains)| chains.iter().map(move |(name, chain)| (*table, *name, chain)))
        .flat_map(|(table, name, chain)| (0..chain.rules.len()).map(move |n| (table, name, n)))
        .collect();
    let (table, name, n) = places[dice.roll(places.len() as u64) as usize];
    let rules = &mut mutated.chain_mut(table, name).rules;
    let what = match dice.roll(4) {
        0 => {
            rules.remove(n);
            "removed".to_owned()
        }
        1 if n + 1 < rules.len() => {
            rules.swap(n, n + 1);
            "exchanged with the next".to_owned()
        }
        2 => {
            rules[n].target = Some(Target::Drop);
            "drops".to_owned()
        }
        _ => change(&mut rules[n]),
    };
    (mutated, format!("{table} {name} rule {}: {what}", n + 1))
}

/// Another probability, destination or port.
fn change(rule: &mut Rule) -> String {
    if let Some(Match::Random { threshold }) =
        rule.matches.iter_mut().find(|m| matches!(m, Match::Random { .. }))
    {
        *threshold -= *threshold / 100;
        return "another probability".to_owned();
    }
    if let Some(Target::Dnat(to)) = &mut rule.target {
        *to = SocketAddr::new(to.ip(), to.port() + 1);
        return "another endpoint".to_owned();
    }
    for part in &mut rule.matches {
        if let Match::L4 { destination_ports: Some(range), .. } = part {
            (range.first, range.last) = (range.first + 1, range.last + 1);
            return "another port".to_owned();
        }
    }
    rule.target = Some(Target::Return);
    "returns".to_owned()
}

/// Packets to each frontend from each kind of source, and from each endpoint.
fn all_packets(world: &World, family: IpFamily) -> Vec<Packet> {
    let to = frontends(world, family);
    let mut all = packets(&to, family);
    let slices = world.slices.values().filter(|slice| slice.family == family);
    let endpoints: BTreeSet<_> =
        slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.ip)).collect();
    for source in endpoints {
        all.extend(to.iter().map(|(to, protocol)| Packet {
            source,
            to: *to,
            protocol: *protocol,
            in_interface: Some("cali1"),
        }));
    }
    all
}

#[test]
fn a_change_of_the_meaning_is_found() {
    let mut n_found = [0usize, 0];
    let counts = std::cell::RefCell::new(&mut n_found);
    for_all(150, (worlds(), families(), any::<u64>()), |(world, family, seed)| {
        let mut dice = Dice(seed);
        let ruleset = world.ruleset(family);
        let (other, what) = mutated(&ruleset, family, &mut dice);
        let local = local(family);
        let differing = all_packets(&world, family)
            .into_iter()
            .find(|packet| !are_same(&fates(&ruleset, &local, packet), &fates(&other, &local, packet)));
        let report = compared(family, &ruleset, &other, PACKETS);
        counts.borrow_mut()[usize::from(report.is_same)] += 1;
        if let Some(packet) = differing {
            prop_assert!(!report.is_same, "{what}: {packet:?} fares differently, and no packet was found");
        }
        Ok(())
    });
    let [n_different, n_same] = n_found;
    assert!(n_different > 50 && n_same > 10, "{n_different} different, {n_same} same");
}
