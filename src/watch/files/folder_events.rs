//! inotify events of the folders: which files are being written or were closed, and when to scan.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::listing::{escaped_path, is_manifest};
use crate::log::v;

/// A series of events delays a scan by at most this many times `settle`.
const MAX_PAUSES: u32 = 10;
/// Reads of events in a row; one read returns about a thousand events.
const MAX_READS: usize = 64;
/// File names kept for a folder; with more of them, events count as lost.
const MAX_NAMES: usize = 100_000;

/// inotify events of some folders. Without inotify there are none, and the caller must scan regularly.
pub struct FolderEvents {
    inotify: Option<AsyncFd<Inotify>>,
    folders: Vec<WatchedFolder>,
    buffer: Box<[u8]>,
    /// Whether an event requires a scan.
    is_scan_due: bool,
}

/// One folder, and its events.
#[derive(Debug)]
struct WatchedFolder {
    path: PathBuf,
    watch: Option<WatchDescriptor>,
    /// Whether the failure to watch the folder was logged.
    is_logged: bool,
    complete: CompleteFiles,
    /// Files written and not closed since.
    writing: BTreeSet<OsString>,
}

/// Files of one folder that are complete.
#[derive(Debug, Default)]
pub struct CompleteFiles {
    /// Files closed by a writer, or moved into the folder.
    pub closed: BTreeSet<OsString>,
    /// A symlink was switched, as in a ConfigMap volume: every file may have changed, and is complete.
    pub is_switched: bool,
}

impl FolderEvents {
    /// For `folders`; watching starts with [`FolderEvents::refresh`]. Must be called inside a tokio
    /// runtime.
    pub fn new(folders: &[PathBuf]) -> FolderEvents {
        let inotify = Inotify::init().and_then(register_async).map_err(|error| {
            let hint = limit_to_raise(&error);
            warn!(%error, hint, "cannot use inotify; scanning manifests every few seconds");
        });
        let folder = |path: &PathBuf| WatchedFolder {
            path: path.clone(),
            watch: None,
            is_logged: false,
            complete: CompleteFiles::default(),
            writing: BTreeSet::new(),
        };
        FolderEvents {
            inotify: inotify.ok(),
            folders: folders.iter().map(folder).collect(),
            buffer: vec![0; 64 << 10].into(),
            is_scan_due: false,
        }
    }

    /// Whether inotify covers every folder.
    pub fn covers_all_folders(&self) -> bool {
        self.inotify.is_some() && self.folders.iter().all(|folder| folder.watch.is_some())
    }

    /// Watches the folders and reads pending events, at the start of each scan: a folder may have been
    /// replaced by another one of the same name.
    pub fn refresh(&mut self) {
        for at in 0..self.folders.len() {
            self.watch(at);
        }
        self.read_pending();
        self.is_scan_due = false;
    }

    /// The complete files of folder `at`; each is returned once.
    pub fn take_complete_files(&mut self, at: usize) -> CompleteFiles {
        std::mem::take(&mut self.folders[at].complete)
    }

    /// Whether the file `name` in folder `at` was written and not closed since.
    pub fn is_writing(&self, at: usize, name: &OsStr) -> bool {
        self.folders[at].writing.contains(name)
    }

    /// Treats the file as closed until it is written again.
    pub fn mark_closed(&mut self, at: usize, name: &OsStr) {
        self.folders[at].writing.remove(name);
    }

    fn watch(&mut self, at: usize) {
        let Some(inotify) = &self.inotify else { return };
        let mut watches = inotify.get_ref().watches();
        let mask = WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let new = match watches.add(&self.folders[at].path, mask) {
            Ok(watch) => Some(watch),
            Err(error) => {
                self.folders[at].log_unwatched(&error);
                None
            }
        };
        if new == self.folders[at].watch {
            return;
        }
        self.folders[at].is_logged &= new.is_none();
        self.folders[at].reset();
        let old = std::mem::replace(&mut self.folders[at].watch, new);
        // Without this, a folder that was moved away would be reported for ever. A deleted folder has no
        // watch.
        if let Some(old) = old
            && self.folders.iter().all(|folder| folder.watch.as_ref() != Some(&old))
        {
            let _ = watches.remove(old);
        }
    }

    /// Reads pending events; returns whether one of them requires a scan.
    pub fn read_pending(&mut self) -> bool {
        let mut is_scan_due = false;
        for _ in 0..MAX_READS {
            let Some(inotify) = &mut self.inotify else { return false };
            match inotify.get_mut().read_events(&mut self.buffer) {
                Ok(events) => {
                    for event in events {
                        is_scan_due |= record_event(&mut self.folders, &event.wd, event.mask, event.name);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_scan_due |= is_scan_due;
                    return is_scan_due;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.disable_inotify(&error),
            }
        }
        // More events may be pending.
        self.is_scan_due = true;
        true
    }

    /// Stops using inotify after an error.
    fn disable_inotify(&mut self, error: &io::Error) {
        warn!(%error, "cannot read inotify events; scanning manifests every few seconds");
        self.inotify = None;
        self.folders.iter_mut().for_each(WatchedFolder::reset);
    }

    /// Waits for an event that requires a scan, then until no event follows for `settle`, but at most a few
    /// times that. Cancel-safe: no event is lost when the future is dropped.
    pub async fn wait(&mut self, settle: Duration) {
        while !self.is_scan_due {
            let Some(inotify) = &mut self.inotify else { return std::future::pending().await };
            match inotify.readable_mut().await {
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => self.disable_inotify(&error),
            }
            if !self.read_pending() {
                // Do not wake up for every piece of a file that is written in pieces.
                sleep(settle).await;
            }
        }
        let latest = Instant::now() + settle * MAX_PAUSES;
        loop {
            sleep(settle).await;
            if !self.read_pending() || Instant::now() >= latest {
                return;
            }
        }
    }
}

impl WatchedFolder {
    /// Discards all events: the folder was replaced, or events were lost.
    fn reset(&mut self) {
        self.complete = CompleteFiles::default();
        self.writing.clear();
    }

    fn log_unwatched(&mut self, error: &io::Error) {
        let folder = escaped_path(&self.path);
        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
            // The scan reports it.
            v!(2, %folder, %error, "cannot watch folder");
        } else if !self.is_logged {
            self.is_logged = true;
            let hint = limit_to_raise(error);
            warn!(%folder, %error, hint, "cannot watch folder; scanning it every second");
        }
    }

    /// Records an event; returns whether it requires a scan.
    fn record(&mut self, mask: EventMask, name: Option<&OsStr>) -> bool {
        let Some(name) = name else { return !mask.contains(EventMask::MODIFY) };
        // Kubernetes prepares a new version of a volume beside the old one and renames a symlink to
        // `..data`.
        if name.as_encoded_bytes().starts_with(b"..") && mask.contains(EventMask::MOVED_TO) {
            self.complete.is_switched = true;
            return true;
        }
        if !is_manifest(Path::new(name)) {
            return false;
        }
        self.complete.closed.remove(name);
        if mask.contains(EventMask::MODIFY) {
            self.writing.insert(name.to_owned());
        } else {
            self.writing.remove(name);
        }
        if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
            self.complete.closed.insert(name.to_owned());
        }
        if self.writing.len().max(self.complete.closed.len()) > MAX_NAMES {
            self.reset();
        }
        !mask.contains(EventMask::MODIFY)
    }
}

/// Records an event for its folders; returns whether it requires a scan.
fn record_event(
    folders: &mut [WatchedFolder],
    watch: &WatchDescriptor,
    mask: EventMask,
    name: Option<&OsStr>,
) -> bool {
    if mask.contains(EventMask::Q_OVERFLOW) {
        warn!("inotify queue overflowed; scanning all manifests");
        folders.iter_mut().for_each(WatchedFolder::reset);
        return true;
    }
    let mut is_scan_due = false;
    for folder in folders.iter_mut().filter(|folder| folder.watch.as_ref() == Some(watch)) {
        is_scan_due |= folder.record(mask, name);
    }
    is_scan_due
}

#[allow(unsafe_code, reason = "tokio has no safe way to register a file descriptor")]
fn register_async(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    // SAFETY: the descriptor is inotify's own, and open for as long as the value lives.
    unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }.map_err(io::Error::from)
}

/// The sysctl to raise for this error; empty if there is none.
fn limit_to_raise(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull => "raise fs.inotify.max_user_watches",
        _ if error.raw_os_error() == Some(nix::errno::Errno::EMFILE as i32) => {
            "raise fs.inotify.max_user_instances"
        }
        _ => "",
    }
}
