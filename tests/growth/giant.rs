//! A Service of very many ports and slices: the cost of compiling it grows linearly, and other Services do
//! not wait for it.

use std::sync::Arc;

use chainsmith::apply::{FamilySync, SyncReport};
use chainsmith::compile::SyncScope;
use chainsmith::config::LayoutChoice;
use chainsmith::kernel::Backend;
use chainsmith::model::{
    Change, Conditions, Frontend, ObjectName, Port, Service, ServiceName, Slice, SliceEndpoint, SlicePort,
    Touched,
};
use chainsmith::net::{IpFamily, PerFamily, Protocol};

use crate::cluster::Cluster;
use crate::sink::{self, Sink};

/// The largest number of ports in a slice.
const PORTS_OF_SLICE: usize = 100;

fn name() -> ServiceName {
    ObjectName::new("tenant", "giant")
}

fn port_name(n: usize) -> Arc<str> {
    format!("p-{n:05}").into()
}

/// A Service of `n_ports` ports.
fn service(n_ports: usize) -> Change {
    let frontend = Frontend {
        cluster_ip: [172, 31, 255, 1].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
    };
    let port =
        |n: usize| Port { name: port_name(n), protocol: Protocol::Tcp, port: 1 + n as u16, node_port: None };
    let service = Service {
        name: name(),
        frontends: PerFamily { v4: Some(frontend), v6: None },
        ports: (0..n_ports).map(port).collect(),
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity_seconds: None,
        health_check_node_port: None,
        created: None,
    };
    Change::Service(name(), Some(service))
}

/// Slice number `n`, for the next hundred of its `n_ports` ports, with `n_endpoints`.
fn slice(n: usize, n_ports: usize, n_endpoints: usize) -> Change {
    let first = n * PORTS_OF_SLICE;
    let port = |at: usize| SlicePort {
        name: port_name(at % n_ports),
        protocol: Protocol::Tcp,
        port: 1 + (at % n_ports) as u16,
    };
    let endpoint = |at: usize| SliceEndpoint {
        ip: [10, 200 + (n >> 8) as u8, n as u8, 1 + at as u8].into(),
        conditions: Conditions { is_ready: true, is_serving: true, is_terminating: false },
        node: None,
        hints: None,
    };
    let slice = Slice {
        service: name(),
        family: IpFamily::V4,
        ports: (first..first + PORTS_OF_SLICE).map(port).collect(),
        endpoints: (0..n_endpoints).map(endpoint).collect(),
        triggered_at: None,
    };
    Change::Slice(ObjectName::new("tenant", &format!("giant-{n:04}")), Some(slice))
}

/// How many port entries are read when a slice of a Service with this many ports and slices changes.
fn read(n_ports: usize, n_slices: usize, n_endpoints: usize) -> usize {
    let mut cluster = Cluster::new(10, 1, LayoutChoice::Compact);
    let mut family = sink::fresh(&cluster, Backend::Nft);
    sink::sync(&mut family, &cluster);
    sink::change(&mut family, &mut cluster, service(n_ports));
    let mut n_read = 0;
    for n in 0..n_slices {
        let mut touched = Default::default();
        cluster.snapshot.apply(slice(n, n_ports, n_endpoints), &mut touched);
        family.touch(touched.services.v4);
    }
    while family.is_dirty() {
        n_read += sink::sync(&mut family, &cluster).n_entries_read;
    }
    n_read
}

#[test]
fn compiling_a_service_reads_each_port_entry_of_its_slices_once_at_every_number_of_ports() {
    assert_eq!(read(100, 10, 1), 10 * PORTS_OF_SLICE);
    assert_eq!(read(1_000, 10, 1), 10 * PORTS_OF_SLICE);
    assert_eq!(read(5_000, 50, 1), 50 * PORTS_OF_SLICE);
    // In two parts: once for each.
    assert_eq!(read(1_000, 100, 1), 2 * 100 * PORTS_OF_SLICE);
    // Slices without endpoints add nothing to any port.
    assert_eq!(read(20_000, 1_000, 0), 0);
}

/// A cluster of 100 Services whose rules are in force, and a Service of `n_ports` ports with `n_slices`
/// slices that is not compiled yet. Its weight: the ports, and a hundred endpoints for each slice.
fn touched_giant(n_ports: usize, n_slices: usize) -> (Cluster, FamilySync<Sink>) {
    let mut cluster = Cluster::new(100, 10, LayoutChoice::Compact);
    let mut family = sink::fresh(&cluster, Backend::Nft);
    sink::sync(&mut family, &cluster);
    let slices = (0..n_slices).map(|n| slice(n, n_ports, 1));
    for change in std::iter::once(service(n_ports)).chain(slices) {
        touch(&mut cluster, &mut family, change);
    }
    (cluster, family)
}

fn touch(cluster: &mut Cluster, family: &mut FamilySync<Sink>, change: Change) {
    let mut touched = Touched::default();
    cluster.snapshot.apply(change, &mut touched);
    family.touch(touched.services.v4);
}

/// Whether a sync wrote the large Service.
fn is_of_giant(report: &SyncReport) -> bool {
    report.scope == SyncScope::Partial([name()].into())
}

#[test]
fn other_services_are_synced_before_a_large_service_and_between_its_parts() {
    let (mut cluster, mut family) = touched_giant(20_000, 400);
    let (mut order, mut n_of_others) = (String::new(), Vec::new());
    let (mut n_ports, mut n) = (0, 0);
    // Another Service changes all the time.
    while n == 0 || family.is_unfinished() {
        n += 1;
        let change = cluster.endpoint_change(n % 100, n as u64);
        touch(&mut cluster, &mut family, change);
        let report = sink::sync(&mut family, &cluster);
        if is_of_giant(&report) {
            // One part: 10 000 of 60 000, in whole service ports of three.
            assert!(report.tally.n_rules < 25_000, "{report:?}");
            assert!(report.n_service_ports > n_ports, "{report:?}");
            n_ports = report.n_service_ports;
            order.push('L');
        } else {
            n_of_others.push(report.tally.n_rules);
            assert!(report.waiting.contains(&name()), "{report:?}");
            order.push('o');
        }
    }
    assert_eq!((order.as_str(), n_ports), ("oLoLoLoLoLoLoL", 20_100));
    assert!(n_of_others.iter().all(|n_rules| *n_rules < 50), "one or two Services: {n_of_others:?}");
}

#[test]
fn a_large_service_that_keeps_changing_is_completed_and_delays_no_other() {
    let (mut cluster, mut family) = touched_giant(20_000, 400);
    let mut n_of_giant = 0;
    for n in 1..=20 {
        // One of its slices changes each time, and so does another Service.
        touch(&mut cluster, &mut family, slice(n % 400, 20_000, 2));
        let change = cluster.endpoint_change(n, n as u64);
        touch(&mut cluster, &mut family, change);
        let report = sink::sync(&mut family, &cluster);
        let next = sink::sync(&mut family, &cluster);
        assert!(is_of_giant(&report) != is_of_giant(&next), "{report:?} {next:?}");
        n_of_giant += 1;
    }
    let report = sink::sync(&mut family, &cluster);
    assert_eq!((n_of_giant, report.n_service_ports), (20, 20_100), "all rules are in force");
}

#[test]
fn at_a_start_all_other_services_are_synced_before_a_large_service() {
    let (cluster, _) = touched_giant(20_000, 400);
    let mut family = sink::fresh(&cluster, Backend::Nft);
    let first = sink::sync(&mut family, &cluster);
    assert!(first.is_full() && first.waiting == [name()].into(), "{first:?}");
    assert_eq!(first.n_service_ports, 100);
    let mut n_parts = 0;
    while family.is_dirty() {
        assert!(is_of_giant(&sink::sync(&mut family, &cluster)));
        n_parts += 1;
    }
    assert_eq!(n_parts, 7);
    // Nothing remains to be written.
    family.touch_everything();
    let again = sink::sync(&mut family, &cluster);
    assert_eq!((again.tally.n_rules, again.n_service_ports), (0, 20_100));
}

#[test]
fn a_deleted_large_service_is_removed_in_parts() {
    let (mut cluster, mut family) = touched_giant(20_000, 400);
    while family.is_dirty() {
        sink::sync(&mut family, &cluster);
    }
    touch(&mut cluster, &mut family, Change::Service(name(), None));
    let (mut n_parts, mut n_deleted) = (0, 0);
    while family.is_dirty() {
        let report = sink::sync(&mut family, &cluster);
        (n_parts, n_deleted) = (n_parts + 1, n_deleted + report.tally.n_deleted);
    }
    assert_eq!(n_parts, 7);
    assert!(n_deleted >= 20_000, "its chains: {n_deleted}");
    assert_eq!(sink::sync(&mut family, &cluster).n_service_ports, 100);
}
