//! What the manifests of all folders hold, and what another look at them changed.
//!
//! Only names are remembered, not objects: what a file holds is read again when it is needed. The
//! rules: of one object in several files the one in the later file counts (later folder, then later
//! name). A file that is broken, or cannot be opened, keeps what it held when it was last good; an
//! object that cannot be decoded keeps its last state. A folder that is gone, or without any object
//! where there were some, keeps all it held.

#![allow(clippy::disallowed_methods, reason = "reads the folders of manifests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::content::{Content, MOST_LINES, Name, Names, read};
use super::held::{Held, Patience, Reader};
use super::listing::{list, shown};
use super::notices::Notices;
use crate::model::decode::Interner;
use crate::model::{Change, ObjectKind};
use crate::watch::WatchEvent;

/// Position of a folder in the command line, and a file in it: the order in which later wins.
type FileId = (usize, PathBuf);

/// The folders and what was last seen in them.
pub struct Manifests {
    folders: Vec<Folder>,
    node: String,
    patience: Patience,
    interner: Interner,
    files: BTreeMap<FileId, Held>,
    /// Objects found in two files, and said to be.
    doubles: Names,
    is_listed: bool,
    /// Problems of all files by kind, as last told.
    problems: BTreeMap<ObjectKind, usize>,
}

struct Folder {
    path: PathBuf,
    /// What was last said to be wrong with it; empty when nothing is.
    trouble: String,
    /// FIFOs and the like that were logged.
    passed_over: BTreeSet<PathBuf>,
}

/// The files that hold an object.
#[derive(Default)]
struct Holders {
    /// The last one, whose copy counts.
    used: Option<FileId>,
    /// The one before.
    other: Option<FileId>,
}

impl Manifests {
    /// Knows nothing yet of `folders`; only the Node called `node` counts.
    pub fn new(folders: Vec<PathBuf>, node: String, patience: Patience) -> Manifests {
        let folder = |path| Folder { path, trouble: String::new(), passed_over: BTreeSet::new() };
        Manifests {
            folders: folders.into_iter().map(folder).collect(),
            node,
            patience,
            interner: Interner::default(),
            files: BTreeMap::new(),
            doubles: BTreeSet::new(),
            is_listed: false,
            problems: BTreeMap::new(),
        }
    }

    /// Whether another look should come soon: a file looks as if it were being written, or a folder
    /// was never seen yet.
    pub fn is_unsettled(&self) -> bool {
        !self.is_listed || self.files.values().any(Held::is_unsettled)
    }

    /// Looks at all files, reads those that changed, and says what that changed. The first time that
    /// every folder can be read, everything is sent and called listed. `notices` are of the same
    /// folders.
    pub fn look(&mut self, notices: &mut Notices, now: Instant) -> Vec<WatchEvent> {
        notices.refresh();
        if !self.is_listed && !self.folders.iter_mut().all(Folder::is_readable) {
            return Vec::new();
        }
        let before = self.files.clone();
        let mut contents = BTreeMap::new();
        for at in 0..self.folders.len() {
            self.look_at_folder(at, notices, now, &mut contents);
        }
        let (mut touched, lost) = self.touched(&before, &contents);
        touched.extend(lost.iter().cloned());
        let holders = self.holders(touched);
        for name in lost {
            self.stand_in(&holders[&name], &mut contents);
        }
        let events = self.events(holders, contents);
        let mut events = if std::mem::replace(&mut self.is_listed, true) { events } else { complete(events) };
        events.extend(self.new_problems());
        events
    }

    /// How many problems there are of each kind of which there were not as many before.
    fn new_problems(&mut self) -> Vec<WatchEvent> {
        let mut now: BTreeMap<ObjectKind, usize> = self.problems.keys().map(|kind| (*kind, 0)).collect();
        for (kind, n) in self.files.values().flat_map(|held| &held.said.problems) {
            *now.entry(*kind).or_default() += n;
        }
        let old = std::mem::replace(&mut self.problems, now.clone());
        let is_new = |(kind, n): &(ObjectKind, usize)| old.get(kind) != Some(n);
        now.into_iter().filter(is_new).map(|(kind, n)| WatchEvent::Problems(kind, n)).collect()
    }

    /// Reads the files of one folder that changed into `contents`, and forgets those that are gone.
    fn look_at_folder(
        &mut self,
        at: usize,
        notices: &mut Notices,
        now: Instant,
        contents: &mut BTreeMap<FileId, Content>,
    ) {
        let notes = notices.take_notes(at);
        let listing = match list(&self.folders[at].path) {
            Ok(listing) => listing,
            Err(error) => {
                let what = format!("cannot be read, what it held stays in force: {error}");
                return self.folders[at].say(&what);
            }
        };
        self.folders[at].say_passed_over(listing.others);
        let mut reader = Reader {
            node: &self.node,
            interner: &mut self.interner,
            notices,
            folder: at,
            notes,
            now,
            patience: self.patience,
            is_first: !self.is_listed,
        };
        let mut files: BTreeMap<FileId, Held> = BTreeMap::new();
        let mut read = BTreeMap::new();
        for (path, stamp) in listing.manifests {
            let id = (at, path);
            let (held, content) = reader.look(&id.1, stamp, self.files.get(&id).cloned());
            read.extend(content.map(|content| (id.clone(), content)));
            files.insert(id, held);
        }
        let held_some = of_folder(&self.files, at).any(|(_, held)| !held.names.is_empty());
        if held_some && files.values().all(|held| held.is_drained || held.names.is_empty()) {
            for (id, mut held) in files {
                let names = self.files.get(&id).map(|held| held.names.clone()).unwrap_or_default();
                (held.names, held.is_drained) = (names, true);
                self.files.insert(id, held);
            }
            return self.folders[at].say("holds no objects any more, what it held stays in force");
        }
        for held in files.values_mut().filter(|held| held.is_drained) {
            (held.names, held.is_drained) = (Arc::default(), false);
        }
        self.folders[at].say("");
        self.files.retain(|id, _| id.0 != at);
        self.files.append(&mut files);
        contents.append(&mut read);
    }

    /// The objects that may differ: those in the files that were read, and those that files held
    /// `before` and do not any more.
    fn touched(
        &self,
        before: &BTreeMap<FileId, Held>,
        contents: &BTreeMap<FileId, Content>,
    ) -> (Names, Names) {
        let read = contents.values().flat_map(Content::names).collect();
        let mut lost = Names::new();
        for (id, held) in before {
            let now = self.files.get(id);
            if now.is_none_or(|now| !Arc::ptr_eq(&now.names, &held.names)) {
                let is_lost = |name: &&Name| now.is_none_or(|now| !now.names.contains(*name));
                lost.extend(held.names.iter().filter(is_lost).cloned());
            }
        }
        (read, lost)
    }

    /// Which files hold each of `names`.
    fn holders(&self, names: Names) -> BTreeMap<Name, Holders> {
        let mut holders: BTreeMap<Name, Holders> =
            names.into_iter().map(|name| (name, Holders::default())).collect();
        if holders.is_empty() {
            return holders;
        }
        for (id, held) in &self.files {
            for name in &*held.names {
                if let Some(holders) = holders.get_mut(name) {
                    holders.other = holders.used.replace(id.clone());
                }
            }
        }
        holders
    }

    /// Reads the file whose copy of an object counts now that another one's is gone.
    fn stand_in(&mut self, holders: &Holders, contents: &mut BTreeMap<FileId, Content>) {
        if let Some(id) = &holders.used
            && !contents.contains_key(id)
        {
            contents.insert(id.clone(), read(&id.1, &self.node, &mut self.interner));
        }
    }

    /// What objects are now, by the files that hold them; those that are gone last, so that nothing that moves from
    /// one object to another is missing in between.
    fn events(
        &mut self,
        holders: BTreeMap<Name, Holders>,
        mut contents: BTreeMap<FileId, Content>,
    ) -> Vec<WatchEvent> {
        let (mut events, mut gone) = (Vec::new(), Vec::new());
        self.say_doubles(&holders);
        for (key, holders) in holders {
            let (kind, name) = key;
            let Some(holder) = holders.used else {
                gone.push(WatchEvent::Change(match kind {
                    ObjectKind::Service => Change::Service(name, None),
                    ObjectKind::EndpointSlice => Change::Slice(name, None),
                    ObjectKind::Node => Change::Node(None),
                }));
                continue;
            };
            let Some(content) = contents.get_mut(&holder) else { continue };
            let change = match kind {
                ObjectKind::Service => {
                    content.services.remove(&name).map(|service| Change::Service(name, service))
                }
                ObjectKind::EndpointSlice => {
                    content.slices.remove(&name).map(|slice| Change::Slice(name, slice))
                }
                ObjectKind::Node => content.node.take().map(|node| Change::Node(Some(node))),
            };
            events.extend(change.map(WatchEvent::Change));
        }
        events.append(&mut gone);
        events
    }

    /// Logs which of these objects are in two files, unless that was logged before; the first ones by
    /// name.
    fn say_doubles(&mut self, holders: &BTreeMap<Name, Holders>) {
        let mut n_new = 0;
        for (key, holders) in holders {
            let Holders { used: Some((_, used)), other: Some((_, other)) } = holders else {
                self.doubles.remove(key);
                continue;
            };
            if !self.doubles.insert(key.clone()) {
                continue;
            }
            n_new += 1;
            if n_new <= MOST_LINES {
                let (kind, object) = key;
                let (used, other) = (shown(used), shown(other));
                let object = object.to_string();
                let object = object.trim_start_matches('/');
                warn!(%kind, object, %used, %other, "object in two files, the later one is used");
            }
        }
        if n_new > MOST_LINES {
            warn!(n_more = n_new - MOST_LINES, "more objects are in two files");
        }
    }
}

/// The first events of all: complete lists instead of single objects.
fn complete(events: Vec<WatchEvent>) -> Vec<WatchEvent> {
    let (mut services, mut slices, mut found_node) = (Vec::new(), Vec::new(), None);
    for event in events {
        match event {
            WatchEvent::Change(Change::Service(_, service)) => services.extend(service),
            WatchEvent::Change(Change::Slice(name, slice)) => slices.extend(slice.map(|slice| (name, slice))),
            WatchEvent::Change(Change::Node(node)) => found_node = node,
            _ => {}
        }
    }
    info!(
        n_services = services.len(),
        n_slices = slices.len(),
        has_node = found_node.is_some(),
        "manifests read"
    );
    vec![
        WatchEvent::Change(Change::AllServices(services)),
        WatchEvent::ServicesListed,
        WatchEvent::Change(Change::AllSlices(slices)),
        WatchEvent::SlicesListed,
        WatchEvent::Change(Change::Node(found_node)),
        WatchEvent::NodeListed,
    ]
}

fn of_folder(files: &BTreeMap<FileId, Held>, at: usize) -> impl Iterator<Item = (&FileId, &Held)> {
    files.iter().filter(move |(id, _)| id.0 == at)
}

impl Folder {
    /// Whether it can be read; says so if not.
    fn is_readable(&mut self) -> bool {
        match std::fs::read_dir(&self.path) {
            Ok(_) => true,
            Err(error) => {
                self.say(&format!("cannot be read, waiting for it: {error}"));
                false
            }
        }
    }

    /// Says what is wrong with it, once; the empty text says that nothing is.
    fn say(&mut self, what: &str) {
        if self.trouble != what {
            let folder = shown(&self.path);
            if what.is_empty() {
                info!(%folder, "folder of manifests is well again");
            } else {
                warn!(%folder, "folder of manifests {what}");
            }
            what.clone_into(&mut self.trouble);
        }
    }

    /// Names what is no regular file, once as long as it is there.
    fn say_passed_over(&mut self, paths: Vec<PathBuf>) {
        let now: BTreeSet<PathBuf> = paths.into_iter().collect();
        for path in now.difference(&self.passed_over) {
            warn!(file = %shown(path), "manifest is not a regular file; ignored");
        }
        self.passed_over = now;
    }
}
