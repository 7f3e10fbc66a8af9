//! How much is sent to the kernel at each size of cluster, in counts instead of times, so that growth is a
//! difference in this file.

#[path = "../benches/cluster.rs"]
mod cluster;
#[path = "properties/fates.rs"]
mod fates;
#[path = "growth/giant.rs"]
mod giant;
#[path = "../benches/sink.rs"]
mod sink;
#[path = "growth/start.rs"]
mod start;
#[path = "shared/starting.rs"]
mod starting;

use std::net::{IpAddr, SocketAddr};

use chainsmith::compile;
use chainsmith::config::LayoutChoice;
use chainsmith::iptables::Ruleset;
use chainsmith::iptables::trace::{self, Origin, Packet, RecentLists, TracedNode};
use chainsmith::kernel::Backend;
use chainsmith::net::Protocol;
use chainsmith::plan::RestoreCounts;

use crate::cluster::Cluster;

/// The input sent at one size.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    /// Processes, chains and rules of the first sync.
    first: (usize, usize, usize),
    /// Processes and lines of one changed endpoint.
    endpoint: (usize, usize),
    /// Processes, chains and lines after deleting one Service.
    service: (usize, usize, usize),
}

fn sent(n_services: usize, layout: LayoutChoice, backend: Backend) -> Sent {
    let mut cluster = Cluster::new(n_services, 10, layout);
    let mut family = sink::fresh(&cluster, backend);
    let RestoreCounts { n_processes, n_chains, n_rules, .. } = sink::sync(&mut family, &cluster).tally;
    let change = cluster.endpoint_change(n_services / 2, 1);
    let endpoint = sink::change(&mut family, &mut cluster, change).tally;
    let change = cluster.service_deletion(n_services / 2);
    let service = sink::change(&mut family, &mut cluster, change).tally;
    Sent {
        first: (n_processes, n_chains, n_rules),
        endpoint: (endpoint.n_processes, endpoint.n_lines),
        service: (service.n_processes, service.n_chains, service.n_lines),
    }
}

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

#[test]
fn the_input_grows_linearly_with_the_cluster() {
    let check = |layout, backend, expected: [Sent; 4]| {
        assert_eq!(
            SIZES.map(|n_services| sent(n_services, layout, backend)),
            expected,
            "{layout:?} {backend:?}"
        );
    };
    let sent = |first, endpoint, service| Sent { first, endpoint, service };
    check(
        LayoutChoice::Classic,
        Backend::Nft,
        [
            sent((1, 121, 357), (1, 19), (1, 1, 35)),
            sent((1, 1_120, 3_283), (1, 19), (1, 1, 127)),
            sent((8, 11_114, 32_624), (1, 19), (1, 1, 1_045)),
            sent((58, 111_029, 326_025), (1, 19), (1, 1, 10_225)),
        ],
    );
    check(
        LayoutChoice::Compact,
        Backend::Nft,
        [
            sent((1, 31, 169), (1, 14), (1, 1, 15)),
            sent((1, 150, 1_315), (1, 14), (1, 1, 20)),
            sent((3, 1_406, 12_918), (1, 14), (1, 1, 20)),
            sent((16, 13_926, 128_924), (1, 14), (1, 1, 20)),
        ],
    );
}

#[test]
fn legacy_writes_all_but_the_urgent_rules_in_one_process() {
    let check = |layout, first, endpoint| {
        let found = sent(10_000, layout, Backend::Legacy);
        assert_eq!((found.first, found.endpoint), (first, endpoint), "{layout:?}");
    };
    // The first commit is a small one, so that DNS works at once.
    check(LayoutChoice::Classic, (2, 111_029, 326_025), (1, 19));
    check(LayoutChoice::Compact, (2, 13_926, 128_924), (1, 14));
}

/// The most rules that the first packet of a connection from a pod is compared with, in all tables.
fn rules_met(ruleset: &Ruleset, to: SocketAddr) -> usize {
    let local = [IpAddr::from([192, 0, 2, 1])].into();
    let node = TracedNode { ruleset, local_addresses: &local, routes: &[] };
    let from = SocketAddr::from(([10, 128, 0, 77], 40_000));
    let packet = Packet::new(Origin::Arrives(Some("cni0".into())), from, to, Protocol::Tcp);
    let branches = trace::trace(&node, &packet, &RecentLists::default());
    branches.iter().map(|branch| branch.n_rules).max().expect("at least one branch")
}

#[test]
fn in_compact_a_packet_meets_few_rules_at_every_size() {
    let met = |layout| {
        SIZES.map(|n_services| {
            let cluster = Cluster::new(n_services, 10, layout);
            let ruleset = compile::ruleset(&cluster.settings, &cluster.snapshot, cluster.place());
            let last = cluster.last_cluster_ip();
            let miss = SocketAddr::from(([192, 0, 2, 77], 80));
            (rules_met(&ruleset, last), rules_met(&ruleset, miss))
        })
    };
    assert_eq!(met(LayoutChoice::Classic), [(33, 21), (129, 117), (1_083, 1_071), (10_593, 10_581)]);
    assert_eq!(met(LayoutChoice::Compact), [(33, 23), (39, 19), (53, 17), (53, 17)]);
}
