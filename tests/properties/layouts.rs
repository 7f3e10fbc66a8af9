//! Both layouts are equivalent: every packet has the same fates in compact as in classic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use chainsmith::config::LayoutChoice;
use chainsmith::iptables::parse::{self, Line};
use chainsmith::iptables::{ChainName, Policy, Ruleset, Table};
use chainsmith::model::{Port, Service, ServiceName, Slice};
use chainsmith::net::{IpFamily, PerFamily};
use chainsmith::rules::names;
use proptest::prelude::*;

use crate::cluster::{World, pod, worlds};
use crate::fates::{Packet, are_same, fates};
use crate::for_all;
use crate::live::families;
use crate::order::{frontends, local, packets};

/// Pseudo-random numbers from a seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// An address near `ip`, or far from it: different in some of its last 4 to 24 bits.
fn moved(ip: IpAddr, dice: &mut Dice) -> IpAddr {
    let bits = 4 * (1 + dice.roll(6));
    let change = dice.roll(1 << bits);
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) ^ change as u32).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) ^ u128::from(change) << (16 * dice.roll(3))).into(),
    }
}

/// Many copies of the Services of `world`, at other addresses and ports; some have many endpoints.
pub fn crowd(world: &mut World, n_copies: usize, mut dice: Dice) {
    let (services, slices) = (world.services.clone(), world.slices.clone());
    for copy in 0..n_copies {
        let renamed =
            |name: &ServiceName| ServiceName::new(name.namespace(), &format!("{}-{copy}", name.name()));
        for service in services.values() {
            let name = renamed(&service.name);
            let mut service = Service { name: name.clone(), ..service.clone() };
            let PerFamily { v4, v6 } = &mut service.frontends;
            for frontend in [v4, v6].into_iter().flatten() {
                frontend.cluster_ip = moved(frontend.cluster_ip, &mut dice);
                for ips in [&mut frontend.external_ips, &mut frontend.load_balancer_ips] {
                    ips.iter_mut().for_each(|ip| *ip = moved(*ip, &mut dice));
                }
            }
            for Port { port, node_port, .. } in &mut service.ports {
                *port += dice.roll(3) as u16;
                *node_port = node_port.map(|node_port| node_port + dice.roll(2_000) as u16);
            }
            world.services.insert(name, service);
        }
        for (slice_name, slice) in &slices {
            let mut slice = Slice { service: renamed(&slice.service), ..slice.clone() };
            if let (0, Some(endpoint)) = (dice.roll(12), slice.endpoints.first().cloned()) {
                let n_endpoints = dice.roll(300) as u16;
                let nth =
                    |n| chainsmith::model::SliceEndpoint { ip: pod(slice.family, n), ..endpoint.clone() };
                slice.endpoints = (1..=n_endpoints).map(nth).collect();
            }
            world.slices.insert(renamed(slice_name), slice);
        }
    }
}

/// Foreign rules beside the agent's.
fn with_foreign_rules(mut ruleset: Ruleset, family: IpFamily, drops: bool) -> Ruleset {
    if drops {
        ruleset.chain_mut(Table::Filter, ChainName::literal("FORWARD")).policy = Some(Policy::Drop);
    }
    let (vip, to) = match family {
        IpFamily::V4 => ("203.0.113.250/32", "10.180.1.11:80"),
        IpFamily::V6 => ("2001:db8::250/128", "[fd00:10:180::b]:80"),
    };
    for rule in [
        format!("-A PREROUTING -d {vip} -p tcp -m tcp --dport 80 -j DNAT --to-destination {to}"),
        "-A OUTPUT -p udp -m udp --dport 81 -j REDIRECT --to-ports 5353".to_owned(),
        "-A PREROUTING -p tcp -m tcp --dport 82 -j REDIRECT --to-ports 8082".to_owned(),
    ] {
        let Ok(Line::Append(chain, rule)) = parse::line(family, &rule) else { panic!("{rule}") };
        ruleset.chain_mut(Table::Nat, chain).rules.insert(0, rule);
    }
    ruleset
}

pub fn laid_out(world: &World, family: IpFamily, layout: LayoutChoice) -> Ruleset {
    let mut world = world.clone();
    world.config.layout = layout;
    world.ruleset(family)
}

/// Packets to every frontend, to near misses, and from endpoints to themselves.
pub fn all_packets(world: &World, family: IpFamily, dice: &mut Dice) -> Vec<Packet> {
    let mut to = frontends(world, family);
    for (frontend, protocol) in to.clone() {
        let mut near = frontend;
        match dice.roll(2) {
            0 => near.set_port(frontend.port() ^ 1),
            _ => near.set_ip(moved(frontend.ip(), dice)),
        }
        to.insert((near, protocol));
    }
    packets(&to, family)
}

#[test]
fn every_packet_has_the_same_fates_in_compact_as_in_classic() {
    let crowds = (worlds(), families(), 0..25usize, any::<u64>(), any::<bool>());
    for_all(150, crowds, |(mut world, family, n_copies, seed, drops)| {
        crowd(&mut world, n_copies, Dice(seed));
        let [classic, compact] = [LayoutChoice::Classic, LayoutChoice::Compact]
            .map(|layout| with_foreign_rules(laid_out(&world, family, layout), family, drops));
        let local = local(family);
        let mut dice = Dice(seed);
        let mut packets = all_packets(&world, family, &mut dice);
        // A sample, spread over all frontends.
        while packets.len() > 600 {
            let n = dice.roll(packets.len() as u64) as usize;
            packets.swap_remove(n);
        }
        for packet in &packets {
            let (a, b) = (fates(&classic, &local, packet), fates(&compact, &local, packet));
            prop_assert!(are_same(&a, &b), "{packet:?}\nclassic {a:#?}\ncompact {b:#?}");
        }
        Ok(())
    });
}

/// How many user-defined chains are on the longest path from `chain`, itself included.
fn depth(ruleset: &Ruleset, table: Table, chain: &ChainName) -> usize {
    let rules = ruleset.chain(table, chain).map_or(&[][..], |chain| &chain.rules);
    1 + rules.iter().filter_map(|rule| rule.callee()).map(|to| depth(ruleset, table, &to)).max().unwrap_or(0)
}

#[test]
fn no_path_is_longer_than_nf_tables_accepts() {
    let crowds = (worlds(), families(), 0..40usize, any::<u64>());
    for_all(60, crowds, |(mut world, family, n_copies, seed)| {
        crowd(&mut world, n_copies, Dice(seed));
        let compact = laid_out(&world, family, LayoutChoice::Compact);
        for (table, chain) in [
            (Table::Nat, names::KUBE_SERVICES),
            (Table::Nat, names::KUBE_POSTROUTING),
            (Table::Filter, names::KUBE_SERVICES),
            (Table::Filter, names::KUBE_EXTERNAL_SERVICES),
            (Table::Filter, names::KUBE_PROXY_FIREWALL),
        ] {
            prop_assert!(depth(&compact, table, &chain) <= 15, "{table} {chain}");
        }
        Ok(())
    });
}
