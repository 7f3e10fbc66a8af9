//! How much is sent to the kernel at each size of cluster: counts, not clocks, so that growth is a
//! difference in this file.

#[path = "../benches/cluster.rs"]
mod cluster;
#[path = "../benches/sink.rs"]
mod sink;

use chainsmith::kernel::Backend;
use chainsmith::plan::Tally;

use crate::cluster::Cluster;

/// Processes, chains and rules of a first sync, then processes and lines of one changed endpoint.
fn counts(n_services: usize, backend: Backend) -> ((usize, usize, usize), (usize, usize)) {
    let mut cluster = Cluster::new(n_services, 10);
    let mut family = sink::fresh(&cluster, backend);
    let Tally { n_processes, n_chains, n_rules, .. } = sink::sync(&mut family, &cluster).tally;
    let change = cluster.endpoint_change(n_services / 2, 1);
    let one = sink::change(&mut family, &mut cluster, change).tally;
    ((n_processes, n_chains, n_rules), (one.n_processes, one.n_lines))
}

#[test]
fn what_is_sent_grows_with_the_cluster_and_not_faster() {
    let check = |n_services, backend, expected| {
        assert_eq!(counts(n_services, backend), expected, "{n_services} services, {backend:?}");
    };
    check(10, Backend::Nft, ((1, 0, 0), (1, 0)));
    check(100, Backend::Nft, ((1, 0, 0), (1, 0)));
    check(1_000, Backend::Nft, ((1, 0, 0), (1, 0)));
    check(10_000, Backend::Nft, ((1, 0, 0), (1, 0)));
    check(10_000, Backend::Legacy, ((1, 0, 0), (1, 0)));
}
