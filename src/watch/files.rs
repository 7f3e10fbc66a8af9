//! Folders of manifests, followed: a cluster without a control plane.
//!
//! Every file of a folder that is called `*.yaml`, `*.yml` or `*.json` counts, links are followed,
//! names that begin with a dot do not count (a ConfigMap volume keeps its versions in such folders
//! and swaps the link `..data`). What a file holds is left to `state`, which version of it counts to
//! `held`; this module decides when to look: at once when the kernel reports something (`notices`),
//! and every few seconds in any case, because inotify sees neither through links nor across nodes of
//! a network file system.

#![allow(clippy::disallowed_methods, reason = "reads the clock")]

mod content;
mod held;
mod listing;
mod notices;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::WatchEvent;
use held::Patience;
pub use listing::list;
use notices::Notices;
use state::Manifests;

/// How soon to look at the folders again.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// After an event: others mostly follow.
    settle: Duration,
    /// While a file looks as if it were being written, and where inotify cannot be used.
    recheck: Duration,
    /// In any case.
    poll: Duration,
    /// How long a file that is open or incomplete keeps its last state after it was written last.
    patience: Duration,
}

const PACE: Pace = Pace {
    settle: Duration::from_millis(50),
    recheck: Duration::from_secs(1),
    poll: Duration::from_secs(10),
    patience: Duration::from_secs(30),
};

/// An empty file keeps its last state so many times as long as one that ends in the middle: a
/// program that is to fill it may wait for an API server.
const PATIENCE_IF_EMPTY: u32 = 10;

/// Sends what `folders` hold, then follows them until the receiver is gone. Of Nodes, only the one
/// called `node` counts.
///
/// Nothing is called listed before each folder could be read once: a folder that is not mounted
/// yet is not an empty cluster.
pub async fn follow(folders: Vec<PathBuf>, node: String, sender: Sender<WatchEvent>) -> anyhow::Result<()> {
    follow_at(folders, node, sender, PACE).await
}

async fn follow_at(
    folders: Vec<PathBuf>,
    node: String,
    sender: Sender<WatchEvent>,
    pace: Pace,
) -> anyhow::Result<()> {
    let mut notices = Notices::new(&folders);
    let patience = Patience {
        recheck: pace.recheck,
        incomplete: pace.patience,
        empty: pace.patience * PATIENCE_IF_EMPTY,
    };
    let mut state = Manifests::new(folders, node, patience);
    loop {
        let events;
        (state, notices, events) = tokio::task::spawn_blocking(move || {
            let events = state.look(&mut notices, Instant::now());
            (state, notices, events)
        })
        .await
        .context("reading manifests")?;
        for event in events {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
        let is_soon = state.is_unsettled() || !notices.sees_all();
        let wait = if is_soon { pace.recheck.min(pace.poll) } else { pace.poll };
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = notices.next(pace.settle) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests;
