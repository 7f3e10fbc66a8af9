//! Partial syncs have the result of one full sync, whatever happens in between.

use chainsmith::config::LayoutChoice;
use chainsmith::iptables::Table;
use chainsmith::kernel::{Backend, Readable};
use chainsmith::net::IpFamily;
use chainsmith::plan::Limits;
use chainsmith::rules::Layout;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::cluster::{Edit, World, edits, worlds};
use crate::for_all;
use crate::live::{Fault, Flaky, Live, backends, empty, families, faults, limits, same};

/// Changes of a cluster; those of one list arrive together.
fn lives() -> impl Strategy<Value = (World, Vec<Vec<Edit>>)> {
    (worlds(), vec(vec(edits(), 1..4), 0..6))
}

#[test]
fn the_first_sync_writes_the_whole_ruleset() {
    for_all(960, (worlds(), families(), backends(), limits()), |(world, family, backend, limits)| {
        let mut live = Live::start(empty(family, backend, limits), world);
        prop_assert_eq!(live.sync().outcome, Ok(()));
        same(family, "kernel", &live.tables(), &live.desired())
    });
}

#[test]
fn partial_syncs_have_the_result_of_a_full_sync() {
    for_all(
        1280,
        (lives(), families(), backends(), limits()),
        |((world, steps), family, backend, limits)| {
            let mut live = Live::start(empty(family, backend, limits), world);
            prop_assert_eq!(live.sync().outcome, Ok(()));
            for edits in steps {
                live.edit(&edits);
                prop_assert_eq!(live.sync().outcome, Ok(()));
                same(family, "kernel", &live.tables(), &live.desired())?;
            }
            Ok(())
        },
    );
}

#[test]
fn large_services_in_parts_have_the_result_of_a_full_sync_whatever_changes_between_the_parts() {
    let lives = (lives(), families(), backends(), limits(), 1..12usize);
    for_all(960, lives, |((world, steps), family, backend, limits, turn)| {
        let mut live = Live::start(empty(family, backend, limits), world);
        live.sync.set_turn_limit(turn);
        for edits in std::iter::once(Vec::new()).chain(steps) {
            live.edit(&edits);
            prop_assert_eq!(live.sync().outcome, Ok(()));
        }
        while live.sync.is_dirty() {
            prop_assert_eq!(live.sync().outcome, Ok(()));
        }
        same(family, "kernel", &live.tables(), &live.desired())
    });
}

#[test]
fn failures_are_repaired_by_the_next_sync() {
    let faults = prop_oneof![6 => faults(), 1 => (0..4usize).prop_map(Fault::Refused)];
    let plans = vec(proptest::option::weighted(0.6, faults), 0..8);
    let lives = (lives(), plans, families(), backends(), limits(), any::<bool>());
    for_all(1920, lives, |((world, steps), faults, family, backend, limits, is_readable)| {
        let mut kernel = empty(family, backend, limits);
        kernel.faults = faults;
        kernel.fake.readable = if is_readable { Readable::Rules } else { Readable::NamesOnly };
        let mut live = Live::start(kernel, world);
        let _ = live.sync();
        for edits in steps {
            live.edit(&edits);
            if live.sync().outcome.is_ok() && live.sync.quarantine().is_empty() {
                same(family, "kernel", &live.tables(), &live.desired())?;
            }
        }
        live.sync.kernel().faults.clear();
        if !live.sync.quarantine().is_empty() {
            // As in an audit.
            live.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
        }
        while live.sync.is_dirty() {
            prop_assert_eq!(live.sync().outcome, Ok(()));
        }
        same(family, "kernel in the end", &live.tables(), &live.desired())
    });
}

#[test]
fn a_cluster_that_becomes_large_and_small_again_has_the_rules_of_a_new_one() {
    for_all(
        60,
        (worlds(), vec(prop_oneof![Just(999usize), 1000..1002usize, Just(5)], 1..5)),
        |(mut world, sizes)| {
            world.config.layout = LayoutChoice::Classic;
            let mut live = Live::start(empty(IpFamily::V4, Backend::Nft, Limits::NFT), world);
            live.edit(&[one_service()]);
            prop_assert_eq!(live.sync().outcome, Ok(()));
            for size in sizes {
                live.edit(&[crowd(size)]);
                prop_assert_eq!(live.sync().outcome, Ok(()));
                same(IpFamily::V4, "kernel", &live.tables(), &live.desired())?;
            }
            Ok(())
        },
    );
}

#[test]
fn auto_switches_to_compact_above_a_thousand_endpoints_and_back_below_eight_hundred_at_a_full_sync() {
    let sizes = vec((prop_oneof![Just(1001usize), Just(1000), Just(801), Just(799)], any::<bool>()), 1..7);
    for_all(40, (worlds(), sizes), |(mut world, sizes)| {
        world.config.layout = LayoutChoice::Auto;
        let mut live = Live::start(empty(IpFamily::V4, Backend::Nft, Limits::NFT), world);
        live.edit(&[one_service()]);
        prop_assert_eq!(live.sync().outcome, Ok(()));
        let mut is_compact = false;
        for (n_endpoints, is_full) in sizes {
            live.edit(&[crowd(n_endpoints)]);
            if is_full {
                live.sync.touch_everything();
            }
            let report = live.sync();
            prop_assert_eq!(report.outcome, Ok(()));
            is_compact = report.n_endpoints > 1000 || is_compact && !(is_full && report.n_endpoints < 800);
            let mut desired = live.world.clone();
            desired.config.layout = if is_compact { LayoutChoice::Compact } else { LayoutChoice::Classic };
            prop_assert_eq!(live.sync.layout() == Layout::Compact, is_compact);
            std::mem::swap(&mut live.world, &mut desired);
            same(IpFamily::V4, "kernel", &live.tables(), &live.desired())?;
            std::mem::swap(&mut live.world, &mut desired);
            if report.n_endpoints < 800 {
                continue;
            }
            // An agent that starts now finds these rules, and keeps them.
            let kernel = Flaky::new(live.fake().clone());
            let mut again = Live::start(kernel, live.world.clone());
            let report = again.sync();
            prop_assert_eq!((report.outcome, again.sync.layout()), (Ok(()), live.sync.layout()));
            prop_assert_eq!(report.tally.n_processes, 0);
        }
        Ok(())
    });
}

/// This many endpoints of one Service.
fn crowd(n_endpoints: usize) -> Edit {
    let Edit::Slice(name, Some(mut slice)) = one_slice() else { unreachable!("it is one") };
    let endpoint = slice.endpoints[0].clone();
    let nth = |n: usize| chainsmith::model::SliceEndpoint {
        ip: std::net::Ipv4Addr::new(10, 180, (n / 250) as u8, (n % 250) as u8).into(),
        ..endpoint.clone()
    };
    slice.endpoints = (0..n_endpoints).map(nth).collect();
    Edit::Slice(name, Some(slice))
}

/// A Service with one port, for [`one_slice`].
fn one_service() -> Edit {
    use chainsmith::model::{Frontend, Port, Service};
    let frontend = Frontend {
        cluster_ip: "172.30.1.1".parse().expect("an address"),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
    };
    let port = Port { name: "p".into(), protocol: chainsmith::net::Protocol::Tcp, port: 80, node_port: None };
    let name = crate::cluster::service_name("z/crowd");
    let service = Service {
        name: name.clone(),
        frontends: chainsmith::net::PerFamily { v4: Some(frontend), v6: None },
        ports: [port].into(),
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity_seconds: None,
        health_check_node_port: None,
        created: None,
    };
    Edit::Service(name, Some(service))
}

fn one_slice() -> Edit {
    use chainsmith::model::{Conditions, Slice, SliceEndpoint, SlicePort};
    let endpoint = SliceEndpoint {
        ip: "10.180.0.1".parse().expect("an address"),
        conditions: Conditions { is_ready: true, is_serving: true, is_terminating: false },
        node: None,
        hints: None,
    };
    let port = SlicePort { name: "p".into(), protocol: chainsmith::net::Protocol::Tcp, port: 80 };
    let service = crate::cluster::service_name("z/crowd");
    let (ports, endpoints) = ([port].into(), [endpoint].into());
    let slice = Slice { service, family: IpFamily::V4, ports, endpoints, triggered_at: None };
    Edit::Slice(crate::cluster::service_name("z/crowd-1"), Some(slice))
}

#[test]
fn without_a_change_nothing_is_read_and_no_process_started() {
    for_all(320, (lives(), families(), backends(), limits()), |((world, steps), family, backend, limits)| {
        let mut live = Live::start(empty(family, backend, limits), world);
        for edits in std::iter::once(Vec::new()).chain(steps) {
            live.edit(&edits);
            prop_assert_eq!(live.sync().outcome, Ok(()));
            let (n_inputs, n_saves) = (live.fake().inputs.len(), live.fake().n_saves);
            // The same objects again, as after a cut watch.
            let again: Vec<Edit> = live
                .world
                .services
                .iter()
                .map(|(name, service)| Edit::Service(name.clone(), Some(service.clone())))
                .collect();
            live.edit(&again);
            prop_assert!(!live.sync.is_dirty());
            let report = live.sync();
            prop_assert_eq!((report.outcome, report.tally.n_processes), (Ok(()), 0));
            // And all chains compared, without reading.
            live.sync.touch_everything();
            prop_assert_eq!(live.sync().tally.n_processes, 0);
            prop_assert_eq!((live.fake().inputs.len(), live.fake().n_saves), (n_inputs, n_saves));
            // A restart reads, and has nothing to write.
            live.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
            prop_assert_eq!(live.sync().tally.n_processes, 0);
            prop_assert_eq!(live.fake().n_saves, n_saves + 2);
        }
        Ok(())
    });
}

#[test]
fn a_family_without_a_change_starts_no_process() {
    for_all(480, (worlds(), vec(edits(), 1..3), families()), |(world, edits, family)| {
        let mut live = Live::start(empty(family, Backend::Nft, Limits::NFT), world);
        prop_assert_eq!(live.sync().outcome, Ok(()));
        let before = live.desired();
        live.edit(&edits);
        let report = live.sync();
        let is_same = live.desired() == before;
        prop_assert_eq!(report.tally.n_processes == 0, is_same, "{:?}", report);
        Ok(())
    });
}

#[test]
fn one_changed_endpoint_is_one_process_with_its_own_lines_only() {
    for_all(480, (worlds(), any::<proptest::sample::Index>(), families()), |(world, which, family)| {
        let mut live = Live::start(empty(family, Backend::Nft, Limits::NFT), world);
        prop_assert_eq!(live.sync().outcome, Ok(()));
        let before = live.tables();
        let mut slices: Vec<_> =
            live.world.slices.clone().into_iter().filter(|(_, s)| !s.endpoints.is_empty()).collect();
        prop_assume!(!slices.is_empty());
        let n_slices = slices.len();
        let (name, slice) = &mut slices[which.index(n_slices)];
        let at = which.index(slice.endpoints.len());
        slice.endpoints[at].ip = crate::cluster::pod(slice.family, 77);
        live.edit(&[Edit::Slice(name.clone(), Some(slice.clone()))]);
        let report = live.sync();
        prop_assert_eq!(&report.outcome, &Ok(()));
        prop_assert!(report.tally.n_processes <= 1);
        let n_lines = changed_lines(&before, &live.tables());
        prop_assert!(report.tally.n_lines <= n_lines, "{} lines for {n_lines}", report.tally.n_lines);
        Ok(())
    });
}

/// How many lines it takes to write the chains that differ, with both of filter's steps.
fn changed_lines(before: &chainsmith::iptables::Ruleset, after: &chainsmith::iptables::Ruleset) -> usize {
    let (mut n_lines, empty) = (2 * 3, Default::default());
    for table in Table::ALL {
        let of =
            |ruleset: &chainsmith::iptables::Ruleset| ruleset.tables.get(&table).cloned().unwrap_or_default();
        let (old, new) = (of(before), of(after));
        for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
            let (old, new) = (old.get(name).unwrap_or(&empty), new.get(name).unwrap_or(&empty));
            if old != new || old == &empty {
                n_lines += 2
                    + new.rules.len()
                    + if table == Table::Filter { 1 + old.rules.len() + new.rules.len() } else { 0 };
            }
        }
    }
    n_lines
}

#[test]
fn a_flush_is_repaired_also_where_the_rules_cannot_be_read() {
    let damage = vec((any::<proptest::sample::Index>(), 0..3u8), 1..8);
    for_all(
        480,
        (worlds(), damage, families(), backends(), any::<bool>()),
        |(world, damage, family, backend, is_readable)| {
            let mut live = Live::start(empty(family, backend, backend.limits()), world);
            live.fake().readable = if is_readable { Readable::Rules } else { Readable::NamesOnly };
            prop_assert_eq!(live.sync().outcome, Ok(()));
            let nat = live.fake().ruleset.tables.get_mut(&Table::Nat).expect("table nat");
            for (which, what) in damage {
                let names: Vec<_> =
                    nat.keys().copied().filter(|name| name.as_str().starts_with("KUBE-S")).collect();
                if names.is_empty() {
                    break;
                }
                let name = names[which.index(names.len())];
                match what {
                    0 => nat.get_mut(&name).expect("an existing chain").rules.clear(),
                    1 => drop(nat.get_mut(&name).expect("an existing chain").rules.pop()),
                    _ => {
                        nat.values_mut()
                            .for_each(|chain| chain.rules.retain(|rule| rule.callee() != Some(name)));
                        nat.remove(&name);
                    }
                }
            }
            live.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
            prop_assert_eq!(live.sync().outcome, Ok(()));
            let (mut actual, mut desired) = (live.tables(), live.desired());
            // Missing jumps are inserted again, in any order.
            for ruleset in [&mut actual, &mut desired] {
                for chains in ruleset.tables.values_mut() {
                    chains
                        .values_mut()
                        .filter(|c| c.policy.is_some())
                        .for_each(|c| c.rules.sort_by_key(|r| format!("{r:?}")));
                }
            }
            same(family, "kernel", &actual, &desired)
        },
    );
}
