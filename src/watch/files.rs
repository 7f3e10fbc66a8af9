//! Follows folders of manifests: a cluster without a control plane.
//!
//! Manifests are the files `*.yaml`, `*.yml` and `*.json` of a folder. Symlinks are followed; names that
//! begin with a dot are skipped (a ConfigMap volume keeps its versions in such folders and switches the
//! symlink `..data`). `manifest_folders` combines the files, `file_state` decides which version of a file
//! is used. This module decides when to scan: at once after an inotify event (`folder_events`), and every
//! few seconds in any case, because inotify sees changes neither behind symlinks nor on other nodes of a
//! network file system.

#![allow(clippy::disallowed_methods, reason = "reads the clock")]

mod content;
mod file_state;
mod folder_events;
mod listing;
mod manifest_folders;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::WatchEvent;
use file_state::SettleTimes;
use folder_events::FolderEvents;
pub use listing::list;
use manifest_folders::ManifestFolders;

/// When to scan the folders.
#[derive(Clone, Copy, Debug)]
struct Intervals {
    /// After an event, since events mostly come in groups.
    settle: Duration,
    /// While a file may still be written, and without inotify.
    recheck: Duration,
    /// Without any other reason.
    poll: Duration,
    /// How long after its last write an open or incomplete file keeps its last state.
    incomplete: Duration,
}

const INTERVALS: Intervals = Intervals {
    settle: Duration::from_millis(50),
    recheck: Duration::from_secs(1),
    poll: Duration::from_secs(10),
    incomplete: Duration::from_secs(30),
};

/// An empty file keeps its last state this many times longer than one that ends inside a line: the program
/// that fills it may be waiting for an API server.
const EMPTY_FACTOR: u32 = 10;

/// Sends the objects in `folders`, then every change, until the receiver is dropped. Of all Nodes, only
/// `node` is used.
///
/// The `...Listed` events wait until each folder was readable once: a folder that is not mounted yet is not
/// an empty cluster.
pub async fn follow(folders: Vec<PathBuf>, node: String, sender: Sender<WatchEvent>) -> anyhow::Result<()> {
    follow_at(folders, node, sender, INTERVALS).await
}

async fn follow_at(
    folders: Vec<PathBuf>,
    node: String,
    sender: Sender<WatchEvent>,
    intervals: Intervals,
) -> anyhow::Result<()> {
    let mut folder_events = FolderEvents::new(&folders);
    let settle_times = SettleTimes {
        recheck: intervals.recheck,
        incomplete: intervals.incomplete,
        empty: intervals.incomplete * EMPTY_FACTOR,
    };
    let mut manifests = ManifestFolders::new(folders, node, settle_times);
    loop {
        let events;
        (manifests, folder_events, events) = tokio::task::spawn_blocking(move || {
            let events = manifests.scan(&mut folder_events, Instant::now());
            (manifests, folder_events, events)
        })
        .await
        .context("reading manifests")?;
        for event in events {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
        let is_soon = manifests.has_pending_file() || !folder_events.covers_all_folders();
        let wait = if is_soon { intervals.recheck.min(intervals.poll) } else { intervals.poll };
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = folder_events.wait(intervals.settle) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests;
