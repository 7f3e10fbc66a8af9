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
    let sizes = [10, 100, 1_000, 10_000].map(|n_services| (n_services, Backend::Nft));
    let counted: Vec<_> = sizes
        .into_iter()
        .chain([(10_000, Backend::Legacy)])
        .map(|(n_services, backend)| (n_services, counts(n_services, backend)))
        .collect();
    let expected = [
        (10, ((1, 121, 357), (1, 19))),
        (100, ((1, 1_120, 3_283), (1, 19))),
        (1_000, ((7, 11_110, 32_623), (1, 19))),
        (10_000, ((58, 111_025, 326_024), (1, 19))),
        (10_000, ((1, 111_025, 326_024), (1, 19))),
    ];
    assert_eq!(counted, expected);
}
