//! Watches Services, EndpointSlices and the Node of this node at an API server.
//!
//! `follower` lists and watches one kind: a streaming list where the server supports it, a plain list otherwise
//! (`query`). `framing` splits response bodies, `tracker` decodes objects as they arrive and keeps only their names.
//! Every failure is retried without limit, with back-off (`failure`); the last known state stays in use meanwhile.
//! A silent watch counts as healthy: detecting dead connections is left to `link`.

mod backoff;
mod client;
mod cluster_choice;
mod cluster_reader;
mod failure;
#[cfg(test)]
pub mod fake_server;
mod follower;
mod framing;
mod freshness;
mod gzip;
mod kubeconfig;
mod link;
mod proxy;
mod query;
mod received;
mod renewal;
mod token;
mod tracker;
mod traffic;
mod transport;

use std::sync::Mutex;

use tokio::sync::mpsc::Sender;

use super::WatchEvent;
use crate::model::decode::{ApiNode, ApiService, ApiSlice, Interner};
pub use client::{Connection, connect};
pub use cluster_choice::{ChosenCluster, ClusterChoice};
pub use cluster_reader::{ClusterReader, ReadFailure, ReadKind};
use follower::{WATCH_TIMEOUTS, WatchTimeouts, follow_kind};
pub use freshness::Freshness;
pub use traffic::{Exchange, TrafficObserver};
pub use transport::RequestLimit;

/// Sends the cluster's state to `sender` and then every change, until the receiver is dropped. Of all Nodes, only
/// `node` is watched.
pub async fn follow(connection: Connection, node: String, sender: Sender<WatchEvent>) {
    follow_with(connection, node, sender, WATCH_TIMEOUTS).await;
}

async fn follow_with(
    connection: Connection,
    node: String,
    sender: Sender<WatchEvent>,
    timeouts: WatchTimeouts,
) {
    let interner = Mutex::new(Interner::default());
    let kinds = async {
        tokio::join!(
            follow_kind::<ApiService>(&connection, &node, &interner, &sender, timeouts),
            follow_kind::<ApiSlice>(&connection, &node, &interner, &sender, timeouts),
            follow_kind::<ApiNode>(&connection, &node, &interner, &sender, timeouts),
        )
    };
    tokio::select! {
        _ = kinds => {}
        () = check_regularly(&connection) => {}
    }
}

/// Logs stale kinds and reloads changed credentials, also while no request is sent.
async fn check_regularly(connection: &Connection) {
    loop {
        tokio::time::sleep(renewal::CHECK_INTERVAL).await;
        connection.freshness.log_stale();
        if let Some(renewal) = &connection.renewal {
            renewal.current().await;
        }
    }
}

#[cfg(test)]
mod tests;
