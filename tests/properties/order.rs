//! After every commit each packet has its fates under the old or the new rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use chainsmith::iptables::{ChainName, Ruleset, Table};
use chainsmith::kernel::{Backend, Readable};
use chainsmith::model::{Service, ServicePortName};
use chainsmith::net::{IpFamily, Protocol};
use chainsmith::plan::Limits;
use chainsmith::rules::names;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::cluster::{ALLOWED, Edit, NODE_IPS, World, edits, index, ip, pod, worlds};
use crate::fates::{self, Fate, Fates, Packet};
use crate::for_all;
use crate::live::{Flaky, Live, backends, empty, families, faults, same};

/// Every address, port and protocol that a Service of `world` has in `family`.
pub fn frontends(world: &World, family: IpFamily) -> BTreeSet<(SocketAddr, Protocol)> {
    let mut all = BTreeSet::new();
    for port in world.services.values().flat_map(|service| service.ports_in(family)) {
        let frontend = port.frontend;
        let outside = frontend.external_ips.iter().chain(&frontend.load_balancer_ips);
        for to in outside.chain([&frontend.cluster_ip]) {
            all.insert((SocketAddr::new(*to, port.port.port), port.port.protocol));
        }
        for to in NODE_IPS[index(family)].iter().map(|text| ip(text)).chain([family.localhost()]) {
            all.extend(
                port.port.node_port.map(|node_port| (SocketAddr::new(to, node_port), port.port.protocol)),
            );
        }
    }
    all
}

/// Packets to `frontends` from every kind of source.
pub fn packets(frontends: &BTreeSet<(SocketAddr, Protocol)>, family: IpFamily) -> Vec<Packet> {
    let stranger = if family == IpFamily::V4 { "192.0.2.99" } else { "2001:db8:99::99" };
    let sources: [(IpAddr, Option<&'static str>); 5] = [
        (pod(family, 1), Some("cali1")),
        (pod(family, 2), Some("cbr0")),
        (ip(NODE_IPS[index(family)][0]), None),
        (ip(ALLOWED[index(family)]), Some("eth0")),
        (ip(stranger), Some("eth0")),
    ];
    let mut packets = Vec::new();
    for (to, protocol) in frontends {
        for (source, in_interface) in sources {
            packets.push(Packet { source, to: *to, protocol: *protocol, in_interface });
        }
    }
    packets
}

pub fn local(family: IpFamily) -> BTreeSet<IpAddr> {
    NODE_IPS[index(family)].iter().map(|text| ip(text)).collect()
}

/// The fates of all `packets` under `ruleset`.
fn fates(ruleset: &Ruleset, packets: &[Packet], local: &BTreeSet<IpAddr>) -> Vec<Fates> {
    packets.iter().map(|packet| fates::fates(ruleset, local, packet)).collect()
}

fn is_rejected(fates: &Fates) -> bool {
    fates.keys().all(|fate| matches!(fate, Fate::Dropped | Fate::Rejected))
}

/// Whether filter rejects some packet to the address and port of `packet`, which nat may translate before.
fn has_rejection(ruleset: &Ruleset, packet: &Packet, local: &BTreeSet<IpAddr>) -> bool {
    let mut filter_only = ruleset.clone();
    filter_only.tables.insert(Table::Nat, Ruleset::with_built_in_chains().tables[&Table::Nat].clone());
    is_rejected(&fates::fates(&filter_only, local, packet))
}

/// Claims that `now` treats each packet like one of `allowed`, the states between old and new.
///
/// One intermediate state is allowed: where a Service address that is rejected for some sources (source
/// ranges, policy Local) appears or disappears, it may be rejected for all sources for a moment. A packet
/// never reaches a destination that no state allows.
fn is_allowed(
    what: &str,
    packets: &[Packet],
    local: &BTreeSet<IpAddr>,
    now: &Ruleset,
    allowed: &[&Ruleset],
) -> TestCaseResult {
    let is = fates(now, packets, local);
    let may_be: Vec<Vec<Fates>> = allowed.iter().map(|ruleset| fates(ruleset, packets, local)).collect();
    for (n, packet) in packets.iter().enumerate() {
        let is_rejected_only =
            || is_rejected(&is[n]) && allowed.iter().any(|ruleset| has_rejection(ruleset, packet, local));
        let may_be: Vec<&Fates> = may_be.iter().map(|fates| &fates[n]).collect();
        prop_assert!(
            may_be.iter().any(|fates| fates::are_same(fates, &is[n])) || is_rejected_only(),
            "{what}: {packet:?}\nis {:?}\nmay be {may_be:#?}",
            is[n]
        );
    }
    Ok(())
}

/// Invariants of the kernel's tables at any moment.
fn is_sound(ruleset: &Ruleset) -> TestCaseResult {
    for chains in ruleset.tables.values() {
        for (name, chain) in chains {
            for callee in chain.rules.iter().filter_map(|rule| rule.callee()) {
                prop_assert!(chains.contains_key(&callee), "{name} leads to {callee}, which is not there");
            }
        }
    }
    let nat = &ruleset.tables[&Table::Nat];
    let dispatch = [names::KUBE_SERVICES, names::KUBE_NODEPORTS];
    for name in dispatch {
        let callees: Vec<ChainName> =
            nat.get(&name).into_iter().flat_map(|c| c.rules.iter().filter_map(|r| r.callee())).collect();
        for callee in callees.iter().filter(|callee| !dispatch.contains(callee)) {
            prop_assert!(!nat[callee].rules.is_empty(), "{name} leads to {callee}, which is empty");
        }
    }
    Ok(())
}

/// The frontends that the same service port claims in both worlds, or in one of them.
fn unmoved(old: &World, new: &World, family: IpFamily) -> BTreeSet<(SocketAddr, Protocol)> {
    let claims = |world: &World| {
        let mut claims = BTreeMap::<_, BTreeSet<ServicePortName>>::new();
        for (name, service) in &world.services {
            let mut alone = world.clone();
            alone.services.retain(|other, _| other == name);
            for port in &service.ports {
                let one = Service { ports: [port.clone()].into(), ..service.clone() };
                alone.services.insert(name.clone(), one.clone());
                for frontend in frontends(&alone, family) {
                    let names = one.ports_in(family).map(|port| port.name());
                    claims.entry(frontend).or_default().extend(names);
                }
            }
        }
        claims
    };
    let (old, new) = (claims(old), claims(new));
    let is_unmoved = |frontend: &(SocketAddr, Protocol)| {
        let (old, new) = (old.get(frontend), new.get(frontend));
        let is_single = |names: &BTreeSet<_>| names.len() == 1;
        [old, new].into_iter().flatten().all(is_single) && (old.is_none() || new.is_none() || old == new)
    };
    old.keys().chain(new.keys()).filter(|frontend| is_unmoved(frontend)).copied().collect()
}

/// Syncs `edits` until that succeeds, and checks the tables after every commit.
fn check_commits(live: &mut Live, family: IpFamily, edits: &[Edit]) -> TestCaseResult {
    let mut to = frontends(&live.world, family);
    live.edit(edits);
    to.append(&mut frontends(&live.world, family));
    check_each_commit(live, family, &to)
}

/// As [`check_commits`], but for frontends that move from one service port to another.
fn check_parts(live: &mut Live, family: IpFamily, edits: &[Edit]) -> TestCaseResult {
    let old = live.world.clone();
    live.edit(edits);
    let to = unmoved(&old, &live.world, family);
    check_each_commit(live, family, &to)
}

fn check_each_commit(
    live: &mut Live,
    family: IpFamily,
    to: &BTreeSet<(SocketAddr, Protocol)>,
) -> TestCaseResult {
    let local = local(family);
    let packets = packets(to, family);
    live.history();
    loop {
        let (old, new) = (live.tables(), live.desired());
        let outcome = live.sync().outcome;
        for (n, now) in live.history().iter().enumerate() {
            is_sound(now)?;
            let what = format!("commit {n}");
            is_allowed(&what, &packets, &local, now, &[&old, &new])?;
        }
        if outcome.is_ok() && !live.sync.is_unfinished() {
            return Ok(());
        }
    }
}

#[test]
fn each_commit_treats_every_packet_as_before_or_as_after() {
    let lives = (worlds(), vec(vec(edits(), 1..4), 1..4), families(), backends());
    for_all(960, lives, |(world, steps, family, backend)| {
        let mut live = Live::start(empty(family, backend, backend.limits()), world);
        check_commits(&mut live, family, &[])?;
        for edits in steps {
            check_commits(&mut live, family, &edits)?;
        }
        Ok(())
    });
}

#[test]
fn that_holds_with_failures_too() {
    let plans = vec(option::weighted(0.5, faults()), 0..8);
    let lives = (worlds(), vec(vec(edits(), 1..4), 1..4), plans, families(), backends());
    for_all(960, lives, |(world, steps, faults, family, backend)| {
        let mut live = Live::start(empty(family, backend, backend.limits()), world);
        live.sync.kernel().faults = faults;
        check_commits(&mut live, family, &[])?;
        for edits in steps {
            check_commits(&mut live, family, &edits)?;
        }
        Ok(())
    });
}

#[test]
fn that_holds_after_each_of_many_processes() {
    let limits =
        (25..40usize, 100..200usize).prop_map(|(max_names, max_rules)| Limits { max_names, max_rules });
    let plans = vec(option::weighted(0.3, faults()), 0..8);
    let lives = (worlds(), vec(vec(edits(), 1..6), 1..4), plans, families(), limits);
    for_all(960, lives, |(world, steps, faults, family, limits)| {
        let mut live = Live::start(empty(family, Backend::Nft, limits), world);
        live.sync.kernel().faults = faults;
        check_commits(&mut live, family, &[])?;
        for edits in steps {
            check_commits(&mut live, family, &edits)?;
        }
        Ok(())
    });
}

#[test]
fn of_a_large_service_each_service_port_is_as_before_or_as_after() {
    let lives = (worlds(), vec(vec(edits(), 1..4), 1..4), families(), backends(), 1..12usize);
    for_all(320, lives, |(world, steps, family, backend, turn)| {
        let mut live = Live::start(empty(family, backend, backend.limits()), world);
        live.sync.set_turn_limit(turn);
        check_parts(&mut live, family, &[])?;
        for edits in steps {
            check_parts(&mut live, family, &edits)?;
        }
        Ok(())
    });
}

#[test]
fn a_restart_leaves_large_services_in_force_until_their_turn_comes() {
    let starts = (worlds(), families(), backends(), any::<bool>(), 1..12usize);
    for_all(320, starts, |(world, family, backend, is_readable, turn)| {
        let mut live = Live::start(empty(family, backend, backend.limits()), world);
        prop_assert_eq!(live.sync().outcome, Ok(()));
        let mut again = Live::start(Flaky::new(live.fake().clone()), live.world.clone());
        again.sync.set_turn_limit(turn);
        if !is_readable {
            // Then all rules are written again.
            again.fake().readable = Readable::NamesOnly;
        }
        check_commits(&mut again, family, &[])?;
        let now = again.tables();
        same(family, "kernel", &now, &live.tables())
    });
}

#[test]
fn limits_of_one_chain_a_process_work() {
    let tiny = Limits { max_names: 1, max_rules: 1 };
    for_all(240, (worlds(), families()), |(world, family)| {
        let mut live = Live::start(empty(family, Backend::Nft, tiny), world);
        prop_assert_eq!(live.sync().outcome, Ok(()));
        for now in live.history() {
            is_sound(&now)?;
        }
        Ok(())
    });
}
