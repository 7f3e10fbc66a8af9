//! Decides which version of a manifest file is used, and whether a newer one is complete.
//!
//! A version is complete when its writer has closed it, or when it was moved into the folder. Where inotify
//! reports no writer (symlinks, network file systems, lost events), a version counts as complete when it is
//! unchanged for a second and ends like a document. A file that stays open, ends inside a line, or becomes
//! empty keeps its last state for a limited time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::content::{self, Content, LoggedProblems, ObjectKeys, log_problems};
use super::folder_events::{CompleteFiles, FolderEvents};
use super::listing::{FileVersion, escaped_path};
use crate::model::decode::Interner;

/// How long to wait for a complete version.
#[derive(Clone, Copy, Debug)]
pub struct SettleTimes {
    /// How long a version must be unchanged where no writer was seen to close it.
    pub recheck: Duration,
    /// Time after its last change at which a version is used although it is open or ends inside a line.
    pub incomplete: Duration,
    /// Time after its last change at which an empty file is used; also the limit for a file that is written
    /// again and again without being closed.
    pub empty: Duration,
}

/// The state of one file.
#[derive(Clone, Debug, Default)]
pub struct FileState {
    /// The version in use.
    version: FileVersion,
    /// A newer version that is not complete yet.
    pending: Option<PendingVersion>,
    /// Its objects.
    pub objects: Arc<ObjectKeys>,
    /// Whether the file has no objects any more; `objects` are its last ones, kept because the whole folder lost all its objects.
    pub is_emptied: bool,
    /// Whether the version in use was readable to its end.
    was_readable: bool,
    /// Its problems that were logged.
    pub logged: LoggedProblems,
}

#[derive(Clone, Copy, Debug)]
struct PendingVersion {
    version: FileVersion,
    /// When the first version after the one in use appeared.
    since: Instant,
    /// When this version appeared.
    changed: Instant,
    /// Whether it was read and seems incomplete.
    is_incomplete: bool,
}

/// Reads the changed files of one folder in one scan.
pub struct FileReader<'a> {
    /// Name of this node.
    pub node: &'a str,
    /// Shares strings between objects.
    pub interner: &'a mut Interner,
    /// inotify events of all folders.
    pub folder_events: &'a mut FolderEvents,
    /// Position of the folder among them.
    pub folder: usize,
    /// Files of the folder that are complete.
    pub complete: CompleteFiles,
    /// Start of the scan.
    pub now: Instant,
    /// How long to wait.
    pub settle_times: SettleTimes,
    /// Whether this is the first scan, which uses every file as it is.
    pub is_first: bool,
}

impl FileState {
    /// Whether a newer version is not complete yet.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Records an incomplete version.
    fn record_pending(&mut self, version: FileVersion, now: Instant) -> &mut PendingVersion {
        let new = PendingVersion { version, since: now, changed: now, is_incomplete: false };
        let pending = self.pending.get_or_insert(new);
        if pending.version != version {
            *pending = PendingVersion { since: pending.since, ..new };
        }
        pending
    }
}

impl PendingVersion {
    /// Whether it is used even if incomplete.
    fn is_overdue(&self, now: Instant, settle_times: &SettleTimes) -> bool {
        let limit = if self.version.is_empty() { settle_times.empty } else { settle_times.incomplete };
        now - self.changed >= limit || now - self.since >= settle_times.empty
    }

    /// Whether it is unchanged for long enough, where no writer is seen.
    fn has_settled(&self, now: Instant, settle_times: &SettleTimes) -> bool {
        if self.is_incomplete {
            return self.is_overdue(now, settle_times);
        }
        now - self.changed >= settle_times.recheck
    }
}

impl FileReader<'_> {
    /// Updates the state of a file that now has `version`; the content, if it was read and is used.
    pub fn update(
        &mut self,
        path: &Path,
        version: FileVersion,
        known: Option<FileState>,
    ) -> (FileState, Option<Content>) {
        let name = path.file_name().unwrap_or_default();
        let is_changed = known.as_ref().is_none_or(|state| state.version != version);
        let mut state = known.unwrap_or_default();
        let is_closed =
            self.is_first || self.complete.closed.contains(name) || (self.complete.is_switched && is_changed);
        if self.folder_events.is_writing(self.folder, name) && !self.is_first {
            if !state.record_pending(version, self.now).is_overdue(self.now, &self.settle_times) {
                return (state, None);
            }
            let waited_s = self.settle_times.incomplete.as_secs();
            warn!(file = %escaped_path(path), waited_s, "manifest still open for writing; using its current content");
            self.folder_events.mark_closed(self.folder, name);
        } else if !is_closed {
            if !is_changed {
                state.pending = None;
                return (state, None);
            }
            if !state.record_pending(version, self.now).has_settled(self.now, &self.settle_times) {
                return (state, None);
            }
        }
        let content = content::read(path, self.node, self.interner);
        self.folder_events.read_pending();
        // Without a version the file could not be opened, which is an ordinary problem of a manifest.
        let read = content.version.unwrap_or(version);
        let is_written = self.folder_events.is_writing(self.folder, name) || read != version;
        if !self.is_first && (is_written || self.is_incomplete(path, &content, &mut state, is_closed)) {
            state.record_pending(read, self.now);
            return (state, None);
        }
        state.use_version(path, version, content)
    }

    /// Whether a file that was read may be incomplete; logs it once.
    fn is_incomplete(&self, path: &Path, content: &Content, state: &mut FileState, is_closed: bool) -> bool {
        let Some(version) = content.version else { return false };
        let is_now_empty = version.is_empty() && !state.objects.is_empty() && !state.is_emptied;
        let ends_in_line = !is_closed && content.ends_in_line;
        if !is_now_empty && !ends_in_line {
            return false;
        }
        let file = escaped_path(path);
        let pending = state.record_pending(version, self.now);
        if pending.is_overdue(self.now, &self.settle_times) {
            if is_now_empty {
                warn!(%file, "manifest still empty; removing its objects");
            } else {
                warn!(%file, "manifest still ends inside a line; using its current content");
            }
            return false;
        }
        if !std::mem::replace(&mut pending.is_incomplete, true) && is_now_empty {
            let for_s = self.settle_times.empty.as_secs();
            warn!(%file, for_s, "manifest is empty; its last state stays in use; delete the file to remove its objects");
        }
        true
    }
}

impl FileState {
    /// Uses `version`. Returns its content, unless it is malformed and a better one is in use.
    fn use_version(
        mut self,
        path: &Path,
        version: FileVersion,
        content: Content,
    ) -> (FileState, Option<Content>) {
        let is_new = self.version != version || self.pending.is_some();
        self.version = version;
        self.pending = None;
        log_problems(&content, path, is_new, &mut self.logged);
        let (undecodable, is_malformed) = content.undecodable();
        if is_malformed && self.was_readable {
            return (self, None);
        }
        let mut objects = content.objects();
        objects.extend(self.objects.iter().filter(|key| is_malformed || undecodable.contains(*key)).cloned());
        self.objects = Arc::new(objects);
        self.is_emptied = false;
        self.was_readable = !is_malformed;
        (self, Some(content))
    }
}
