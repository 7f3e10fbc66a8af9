//! What the kernel reports of the folders (inotify): which files are being written, which were
//! closed, and when to look at the folders.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::listing::{is_manifest, shown};

/// How many pauses of `settle` a series of events may go on before the folders are looked at.
const MOST_PAUSES: u32 = 10;
/// Reads of events in a row; one holds about a thousand.
const MOST_READS: usize = 64;
/// Names that are remembered for a folder; with more the events count as lost.
const MOST_NAMES: usize = 100_000;

/// inotify's events of some folders. Without inotify there are none, and the caller has to look at
/// the folders from time to time.
pub struct Notices {
    inotify: Option<AsyncFd<Inotify>>,
    folders: Vec<Watched>,
    buffer: Box<[u8]>,
    /// Whether something was reported that is a reason to look.
    is_due: bool,
}

/// One folder, and what was reported of it.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    watch: Option<WatchDescriptor>,
    /// Whether it was logged that the folder cannot be watched.
    is_logged: bool,
    notes: Notes,
    /// Files that were written and not closed since.
    writing: BTreeSet<OsString>,
}

/// Files of one folder that are complete.
#[derive(Debug, Default)]
pub struct Notes {
    /// Closed by a writer, or moved into the folder.
    pub closed: BTreeSet<OsString>,
    /// A link was swapped, as in a ConfigMap volume: any file may be another one now, and is
    /// complete.
    pub is_swapped: bool,
}

impl Notices {
    /// Of `folders`, none of which is watched yet. Has to be called inside a tokio runtime.
    pub fn new(folders: &[PathBuf]) -> Notices {
        let inotify = Inotify::init().and_then(registered).map_err(|error| {
            let hint = advice(&error);
            warn!(%error, hint, "cannot use inotify; looking at manifests every few seconds");
        });
        let folder = |path: &PathBuf| Watched {
            path: path.clone(),
            watch: None,
            is_logged: false,
            notes: Notes::default(),
            writing: BTreeSet::new(),
        };
        Notices {
            inotify: inotify.ok(),
            folders: folders.iter().map(folder).collect(),
            buffer: vec![0; 64 << 10].into(),
            is_due: false,
        }
    }

    /// Whether changes of every folder are reported.
    pub fn sees_all(&self) -> bool {
        self.inotify.is_some() && self.folders.iter().all(|folder| folder.watch.is_some())
    }

    /// Watches the folders and reads what was reported, for a look that begins now. Called for every
    /// look, because a folder may have been replaced by another one of the same name.
    pub fn refresh(&mut self) {
        for at in 0..self.folders.len() {
            self.watch(at);
        }
        self.drain();
        self.is_due = false;
    }

    /// Files of folder `at` that are complete, each reported once.
    pub fn take_notes(&mut self, at: usize) -> Notes {
        std::mem::take(&mut self.folders[at].notes)
    }

    /// Whether the file called `name` in folder `at` was written and not closed since.
    pub fn is_writing(&self, at: usize, name: &OsStr) -> bool {
        self.folders[at].writing.contains(name)
    }

    /// Takes the file for closed until it is written again.
    pub fn forget_writing(&mut self, at: usize, name: &OsStr) {
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
        self.folders[at].forget();
        let old = std::mem::replace(&mut self.folders[at].watch, new);
        // A folder that was moved away would be reported for ever. One that was deleted has no watch.
        if let Some(old) = old
            && self.folders.iter().all(|folder| folder.watch.as_ref() != Some(&old))
        {
            let _ = watches.remove(old);
        }
    }

    /// Reads the events that are there; whether one of them is a reason to look.
    pub fn drain(&mut self) -> bool {
        let mut is_due = false;
        for _ in 0..MOST_READS {
            let Some(inotify) = &mut self.inotify else { return false };
            match inotify.get_mut().read_events(&mut self.buffer) {
                Ok(events) => {
                    for event in events {
                        is_due |= note(&mut self.folders, &event.wd, event.mask, event.name);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_due |= is_due;
                    return is_due;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.give_up(&error),
            }
        }
        // There may be more.
        self.is_due = true;
        true
    }

    /// inotify does not work any more: the folders are looked at every few seconds.
    fn give_up(&mut self, error: &io::Error) {
        warn!(%error, "cannot read inotify events; looking at manifests every few seconds");
        self.inotify = None;
        self.folders.iter_mut().for_each(Watched::forget);
    }

    /// Waits for a reason to look, then until nothing more has happened for `settle`, but not for
    /// longer than a few of those. Nothing is lost when the future is dropped.
    pub async fn next(&mut self, settle: Duration) {
        while !self.is_due {
            let Some(inotify) = &mut self.inotify else { return std::future::pending().await };
            match inotify.readable_mut().await {
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => self.give_up(&error),
            }
            if !self.drain() {
                // A file that is written piece by piece is no reason to wake up for each piece.
                sleep(settle).await;
            }
        }
        let latest = Instant::now() + settle * MOST_PAUSES;
        loop {
            sleep(settle).await;
            if !self.drain() || Instant::now() >= latest {
                return;
            }
        }
    }
}

impl Watched {
    /// Forgets what was reported: the folder is another one, or events were lost.
    fn forget(&mut self) {
        self.notes = Notes::default();
        self.writing.clear();
    }

    fn log_unwatched(&mut self, error: &io::Error) {
        let folder = shown(&self.path);
        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
            // Reported by the look itself.
            debug!(%folder, %error, "cannot watch folder");
        } else if !self.is_logged {
            self.is_logged = true;
            let hint = advice(error);
            warn!(%folder, %error, hint, "cannot watch folder; looking at it every second");
        }
    }

    /// Notes an event; whether it is a reason to look.
    fn note(&mut self, mask: EventMask, name: Option<&OsStr>) -> bool {
        let Some(name) = name else { return !mask.contains(EventMask::MODIFY) };
        // Kubernetes prepares a new version of a volume beside the old one and renames a link `..data`.
        if name.as_encoded_bytes().starts_with(b"..") && mask.contains(EventMask::MOVED_TO) {
            self.notes.is_swapped = true;
            return true;
        }
        if !is_manifest(Path::new(name)) {
            return false;
        }
        self.notes.closed.remove(name);
        if mask.contains(EventMask::MODIFY) {
            self.writing.insert(name.to_owned());
        } else {
            self.writing.remove(name);
        }
        if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
            self.notes.closed.insert(name.to_owned());
        }
        if self.writing.len().max(self.notes.closed.len()) > MOST_NAMES {
            self.forget();
        }
        !mask.contains(EventMask::MODIFY)
    }
}

/// Notes an event with the folders it is about; whether it is a reason to look.
fn note(folders: &mut [Watched], watch: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) -> bool {
    if mask.contains(EventMask::Q_OVERFLOW) {
        warn!("the kernel lost inotify events; looking at all manifests");
        folders.iter_mut().for_each(Watched::forget);
        return true;
    }
    let mut is_due = false;
    for folder in folders.iter_mut().filter(|folder| folder.watch.as_ref() == Some(watch)) {
        is_due |= folder.note(mask, name);
    }
    is_due
}

#[allow(unsafe_code, reason = "tokio has no safe way to watch a descriptor")]
fn registered(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    // SAFETY: the descriptor is inotify's own, and open for as long as the value lives.
    unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }.map_err(io::Error::from)
}

/// What an administrator can do about it.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull => "raise fs.inotify.max_user_watches",
        _ if error.raw_os_error() == Some(nix::errno::Errno::EMFILE as i32) => {
            "raise fs.inotify.max_user_instances"
        }
        _ => "",
    }
}
