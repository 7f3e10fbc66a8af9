//! One manifest file: which version of it counts, and whether another one is complete.
//!
//! A version counts when its writer has closed it, or it was moved into the folder. Where inotify
//! sees no writer (links, network file systems, lost events), a version counts when it stayed the
//! same for a second and ends like a document. A file that stays open, ends in the middle of a line,
//! or holds nothing where it held objects, keeps its last state for a limited time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::content::{self, Content, Names, Said, say};
use super::listing::{Stamp, shown};
use super::notices::{Notes, Notices};
use crate::model::decode::Interner;

/// How long a version that may be incomplete is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// So long has a version to stay the same that no writer was seen to close.
    pub recheck: Duration,
    /// So long after its last change a version counts that is open or does not end a line.
    pub incomplete: Duration,
    /// So long after its last change an empty file counts, and after this whatever is written to
    /// again and again without being closed.
    pub empty: Duration,
}

/// What is known of one file.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The version that counts.
    stamp: Stamp,
    /// Another version, which is waited for.
    unsettled: Option<Unsettled>,
    /// The objects it holds.
    pub names: Arc<Names>,
    /// It holds nothing any more; `names` are what it held, kept because its whole folder is empty.
    pub is_drained: bool,
    /// Whether the text was readable to its end when it was last taken over.
    was_good: bool,
    /// What was logged of it.
    pub said: Said,
}

#[derive(Clone, Copy, Debug)]
struct Unsettled {
    stamp: Stamp,
    /// Since when there is a version that does not count yet.
    since: Instant,
    /// Since when there is this one.
    changed: Instant,
    /// Whether it was read, and may be incomplete.
    is_doubtful: bool,
}

/// What is needed to look at the files of one folder.
pub struct Reader<'a> {
    /// This node.
    pub node: &'a str,
    /// Texts are shared through it.
    pub interner: &'a mut Interner,
    /// What is reported of the folders.
    pub notices: &'a mut Notices,
    /// Position of the folder among them.
    pub folder: usize,
    /// What was reported of its files.
    pub notes: Notes,
    /// When the look began.
    pub now: Instant,
    /// How long to wait.
    pub patience: Patience,
    /// Whether nothing was read before: everything counts as it is.
    pub is_first: bool,
}

impl Held {
    /// Whether another look should come soon.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.is_some()
    }

    /// There is a version that does not count yet.
    fn wait(&mut self, stamp: Stamp, now: Instant) -> &mut Unsettled {
        let new = Unsettled { stamp, since: now, changed: now, is_doubtful: false };
        let unsettled = self.unsettled.get_or_insert(new);
        if unsettled.stamp != stamp {
            *unsettled = Unsettled { since: unsettled.since, ..new };
        }
        unsettled
    }
}

impl Unsettled {
    /// Whether it counts, complete or not.
    fn is_overdue(&self, now: Instant, patience: &Patience) -> bool {
        let limit = if self.stamp.is_empty() { patience.empty } else { patience.incomplete };
        now - self.changed >= limit || now - self.since >= patience.empty
    }

    /// Whether it has stayed the same for long enough, where no writer is seen.
    fn has_settled(&self, now: Instant, patience: &Patience) -> bool {
        if self.is_doubtful {
            return self.is_overdue(now, patience);
        }
        now - self.changed >= patience.recheck
    }
}

impl Reader<'_> {
    /// What a file holds now, and its content if it was read and is to be taken over.
    pub fn look(&mut self, path: &Path, stamp: Stamp, known: Option<Held>) -> (Held, Option<Content>) {
        let name = path.file_name().unwrap_or_default();
        let is_changed = known.as_ref().is_none_or(|held| held.stamp != stamp);
        let mut held = known.unwrap_or_default();
        let is_closed =
            self.is_first || self.notes.closed.contains(name) || (self.notes.is_swapped && is_changed);
        if self.notices.is_writing(self.folder, name) && !self.is_first {
            if !held.wait(stamp, self.now).is_overdue(self.now, &self.patience) {
                return (held, None);
            }
            let waited_s = self.patience.incomplete.as_secs();
            warn!(file = %shown(path), waited_s, "manifest was written and not closed; using what it holds");
            self.notices.forget_writing(self.folder, name);
        } else if !is_closed {
            if !is_changed {
                held.unsettled = None;
                return (held, None);
            }
            if !held.wait(stamp, self.now).has_settled(self.now, &self.patience) {
                return (held, None);
            }
        }
        let content = content::read(path, self.node, self.interner);
        self.notices.drain();
        // Without a stamp it could not be opened, which is a problem like others.
        let read = content.stamp.unwrap_or(stamp);
        let is_written = self.notices.is_writing(self.folder, name) || read != stamp;
        if !self.is_first && (is_written || self.is_doubtful(path, &content, &mut held, is_closed)) {
            held.wait(read, self.now);
            return (held, None);
        }
        held.take_over(path, stamp, content)
    }

    /// Whether a file that was read may be incomplete and is to be waited for; logs it once.
    fn is_doubtful(&self, path: &Path, content: &Content, held: &mut Held, is_closed: bool) -> bool {
        let Some(stamp) = content.stamp else { return false };
        let is_emptied = stamp.is_empty() && !held.names.is_empty() && !held.is_drained;
        let is_cut = !is_closed && content.is_cut;
        if !is_emptied && !is_cut {
            return false;
        }
        let file = shown(path);
        let unsettled = held.wait(stamp, self.now);
        if unsettled.is_overdue(self.now, &self.patience) {
            if is_emptied {
                warn!(%file, "manifest is still empty; using it as it is");
            } else {
                warn!(%file, "manifest still ends in the middle of a line; using what it holds");
            }
            return false;
        }
        if !std::mem::replace(&mut unsettled.is_doubtful, true) && is_emptied {
            let for_s = self.patience.empty.as_secs();
            warn!(%file, for_s, "manifest is empty; its last state stays; delete the file if its objects are to go");
        }
        true
    }
}

impl Held {
    /// Makes what was read of version `stamp` the one that counts; the content, unless it is broken
    /// and there is a better one.
    fn take_over(mut self, path: &Path, stamp: Stamp, content: Content) -> (Held, Option<Content>) {
        let is_new = self.stamp != stamp || self.unsettled.is_some();
        self.stamp = stamp;
        self.unsettled = None;
        say(&content, path, is_new, &mut self.said);
        let (lost, is_broken) = content.lost();
        if is_broken && self.was_good {
            return (self, None);
        }
        let mut names = content.names();
        names.extend(self.names.iter().filter(|name| is_broken || lost.contains(*name)).cloned());
        self.names = Arc::new(names);
        self.is_drained = false;
        self.was_good = !is_broken;
        (self, Some(content))
    }
}
