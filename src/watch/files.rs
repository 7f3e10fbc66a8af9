//! Folders of manifests, followed: a cluster without a control plane.
//!
//! Every file of a folder that is called `*.yaml`, `*.yml` or `*.json` counts, links are followed,
//! names that begin with a dot do not count (a ConfigMap volume keeps its versions in such folders
//! and swaps the link `..data`). What a file holds is left to `state`; this module notices when
//! to look: at once when the kernel says so (inotify), and every few seconds in any case, because
//! inotify sees neither through links nor across nodes of a network file system.

#![allow(clippy::disallowed_methods, reason = "reads the folders of manifests")]

mod content;
mod state;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context;
use futures::{Stream, StreamExt};
use inotify::{EventMask, EventOwned, Inotify, WatchMask, Watches};
use tokio::sync::mpsc::Sender;
use tracing::{debug, warn};

use super::WatchEvent;
use state::{Look, Manifests};

/// How soon to look at the folders again.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// After an event: others mostly follow.
    settle: Duration,
    /// While a file looks as if it were being written.
    recheck: Duration,
    /// In any case.
    poll: Duration,
}

const PACE: Pace = Pace {
    settle: Duration::from_millis(50),
    recheck: Duration::from_secs(1),
    poll: Duration::from_secs(10),
};

/// The manifests of `folder`, by name; not those of folders below it.
///
/// Errors when the folder cannot be read.
pub fn manifests(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !is_hidden && matches!(extension, Some("yaml" | "yml" | "json")) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

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
    let mut notices = Notices::new();
    let mut state = Manifests::new(folders.clone(), node);
    let mut look = Look::default();
    loop {
        notices.watch(&folders);
        let events;
        let forced = std::mem::take(&mut look);
        (state, events) = tokio::task::spawn_blocking(move || {
            let events = state.look(&forced);
            (state, events)
        })
        .await
        .context("reading manifests")?;
        for event in events {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
        let wait = if state.is_unsettled() { pace.recheck.min(pace.poll) } else { pace.poll };
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = notices.next(&mut look, pace.settle) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What inotify says of the folders; says nothing where it cannot be had.
struct Notices {
    watches: Option<Watches>,
    events: Option<Pin<Box<dyn Stream<Item = io::Result<EventOwned>> + Send>>>,
    /// Folders that could not be watched, and were complained about.
    unwatched: BTreeSet<PathBuf>,
}

impl Notices {
    fn new() -> Notices {
        let streams = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((watches, inotify.into_event_stream([0; 4096])?))
        });
        match streams {
            Ok((watches, events)) => {
                Notices { watches: Some(watches), events: Some(Box::pin(events)), unwatched: BTreeSet::new() }
            }
            Err(error) => {
                warn!(%error, "inotify cannot be used; manifests are looked at every few seconds");
                Notices { watches: None, events: None, unwatched: BTreeSet::new() }
            }
        }
    }

    /// Watches the folders; again and again, because one may have been replaced by another of the
    /// same name. A watch that is there already stays.
    fn watch(&mut self, folders: &[PathBuf]) {
        let Some(watches) = &mut self.watches else { return };
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        for folder in folders {
            match watches.add(folder, mask) {
                Ok(_) => {
                    self.unwatched.remove(folder);
                }
                Err(error) if self.unwatched.insert(folder.clone()) => {
                    debug!(folder = %folder.display(), %error, "folder cannot be watched; looked at every few seconds");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for something to happen, and then until nothing more has happened for `settle`; notes
    /// in `look` which files were written.
    async fn next(&mut self, look: &mut Look, settle: Duration) {
        let Some(events) = &mut self.events else { return std::future::pending().await };
        let mut event = events.next().await;
        loop {
            match event {
                Some(Ok(event)) => note(event.mask, event.name, look),
                Some(Err(error)) => debug!(%error, "inotify event cannot be read"),
                None => break,
            }
            match tokio::time::timeout(settle, events.next()).await {
                Ok(next) => event = next,
                Err(_) => return,
            }
        }
        // The stream does not end; if it ever did, looking every few seconds must do.
        self.events = None;
    }
}

/// A file that was closed or moved here is complete. A hidden name is a link that was swapped: all
/// files may be others now.
fn note(mask: EventMask, name: Option<OsString>, look: &mut Look) {
    let is_complete = mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO);
    match name {
        Some(name) if is_complete && name.as_encoded_bytes().starts_with(b".") => look.all = true,
        Some(name) if is_complete => {
            look.names.insert(name);
        }
        // Events were lost.
        None if mask.contains(EventMask::Q_OVERFLOW) => look.all = true,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
