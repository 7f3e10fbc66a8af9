//! Requests of many nodes to an API server, counted: the small version of `make fleet`.

use std::time::Duration;

use crate::apiserver::{Etcd, Gzip};
use crate::layers::{Asked, Fleet};
use crate::{ApiServer, start};

const N_NODES: u64 = 10;

async fn asked(server: &ApiServer) -> Asked {
    let fleet = Fleet {
        n_nodes: N_NODES as usize,
        n_services: 100,
        n_endpoints: 2,
        n_at_once: 5,
        idle: Duration::from_secs(2),
        churn: Duration::from_secs(1),
        change_every: Duration::from_millis(50),
    };
    let asked = fleet.run(server).await.expect("all nodes know everything");
    assert_eq!(asked.n_received, asked.n_changes * N_NODES as usize, "each node receives each change once");
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_one_connection_and_starts_with_three_requests_and_then_sends_none() {
    for compression in [None, Some(Gzip::Flushed), Some(Gzip::MemberPerEvent)] {
        let server = start();
        server.set_compression(compression);
        let Asked { start, idle, churn, .. } = asked(&server).await;
        assert_eq!((start.connections, start.requests), (N_NODES, 3 * N_NODES), "{compression:?}");
        assert_eq!((idle.connections, idle.requests, churn.connections, churn.requests), (0, 0, 0, 0));
    }
}

/// With an etcd before 3.4.25 a streaming list is rejected once; then the client lists the cache and watches
/// from there. Nothing is read from etcd.
#[tokio::test(flavor = "multi_thread")]
async fn without_streaming_lists_nothing_is_read_from_etcd() {
    let server = start();
    server.set_etcd(Etcd::V3_4);
    let Asked { start, idle, churn, .. } = asked(&server).await;
    assert_eq!(start.connections, N_NODES);
    assert!(start.requests <= 3 * 3 * N_NODES, "{} requests", start.requests);
    assert_eq!((idle.requests, churn.requests), (0, 0));
    let n_from_etcd: u64 = server.counters().resources.values().map(|counts| counts.pages_from_etcd).sum();
    assert_eq!(n_from_etcd, 0);
}
