//! Combines the manifests of all folders, and finds what a scan changed.
//!
//! Only names of objects are kept; a file is read again when its objects are needed. For an object in
//! several files, the later file is used (later folder, then later name). A file that is unreadable or
//! malformed keeps its last readable state; an undecodable object keeps its last state. A folder that
//! disappears, or loses all its objects at once, keeps them.

#![allow(clippy::disallowed_methods, reason = "reads the folders of manifests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::content::{Content, MAX_LINES, ObjectKey, ObjectKeys, read};
use super::file_state::{FileReader, FileState, SettleTimes};
use super::folder_events::FolderEvents;
use super::listing::{escaped_path, list};
use crate::log::v;
use crate::model::decode::Interner;
use crate::model::{Change, ObjectKind, Problem};
use crate::watch::{MAX_PROBLEMS, WatchEvent};

/// Position of a folder on the command line, and a file in it; sorted by precedence, the last one is used.
type FileId = (usize, PathBuf);

/// The folders and their state at the last scan.
pub struct ManifestFolders {
    folders: Vec<FolderStatus>,
    node: String,
    settle_times: SettleTimes,
    interner: Interner,
    files: BTreeMap<FileId, FileState>,
    /// Objects in two files, already logged.
    duplicates: ObjectKeys,
    is_listed: bool,
    /// Number of problems by kind and the first ones, as sent last.
    problems: BTreeMap<ObjectKind, (usize, Vec<Problem>)>,
}

/// Why the objects of a folder cannot be updated.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FolderProblem {
    /// The folder was never readable, with this error.
    NotReadableYet(String),
    /// The folder is no longer readable, with this error.
    Unreadable(String),
    /// All objects disappeared at once.
    Emptied,
}

struct FolderStatus {
    path: PathBuf,
    /// The problem that was logged last.
    problem: Option<FolderProblem>,
    /// FIFOs, sockets and devices that were logged.
    ignored: BTreeSet<PathBuf>,
}

/// The files that contain an object.
#[derive(Default)]
struct FilesWithObject {
    /// The last one, which is used.
    used: Option<FileId>,
    /// The one before it.
    shadowed: Option<FileId>,
}

impl ManifestFolders {
    /// Starts without objects. Of all Nodes, only `node` is used.
    pub fn new(folders: Vec<PathBuf>, node: String, settle_times: SettleTimes) -> ManifestFolders {
        let folder = |path| FolderStatus { path, problem: None, ignored: BTreeSet::new() };
        ManifestFolders {
            folders: folders.into_iter().map(folder).collect(),
            node,
            settle_times,
            interner: Interner::default(),
            files: BTreeMap::new(),
            duplicates: BTreeSet::new(),
            is_listed: false,
            problems: BTreeMap::new(),
        }
    }

    /// Whether another scan should follow soon: a file may still be written, or a folder was never
    /// readable.
    pub fn has_pending_file(&self) -> bool {
        !self.is_listed || self.files.values().any(FileState::is_pending)
    }

    /// Scans all files, reads the changed ones and returns the changes. The first time that every folder is
    /// readable, returns all objects as complete lists. `folder_events` cover the same folders.
    pub fn scan(&mut self, folder_events: &mut FolderEvents, now: Instant) -> Vec<WatchEvent> {
        folder_events.refresh();
        if !self.is_listed && !self.folders.iter_mut().all(FolderStatus::is_readable) {
            return Vec::new();
        }
        let before = self.files.clone();
        let mut contents = BTreeMap::new();
        for at in 0..self.folders.len() {
            self.scan_folder(at, folder_events, now, &mut contents);
        }
        let (mut affected, removed) = self.affected_objects(&before, &contents);
        affected.extend(removed.iter().cloned());
        let files = self.find_files_with(affected);
        for key in removed {
            self.read_fallback(&files[&key], &mut contents);
        }
        let events = self.events(files, contents);
        let mut events =
            if std::mem::replace(&mut self.is_listed, true) { events } else { first_lists(events) };
        events.extend(self.changed_problems());
        events
    }

    /// The problems of each kind, where they have changed.
    fn changed_problems(&mut self) -> Vec<WatchEvent> {
        let mut now: BTreeMap<ObjectKind, (usize, Vec<Problem>)> =
            self.problems.keys().map(|kind| (*kind, (0, Vec::new()))).collect();
        for logged in self.files.values().map(|state| &state.logged) {
            for (kind, n) in &logged.problems {
                now.entry(*kind).or_default().0 += n;
            }
            for problem in logged.first.iter() {
                let (_, first) = now.entry(problem.kind).or_default();
                if first.len() < MAX_PROBLEMS {
                    first.push(problem.clone());
                }
            }
        }
        let mut old = std::mem::replace(&mut self.problems, now.clone());
        let changed = now.into_iter().filter(|(kind, problems)| old.remove(kind).as_ref() != Some(problems));
        changed.map(|(kind, (n, first))| WatchEvent::Problems(kind, n, first)).collect()
    }

    /// Reads the changed files of one folder into `contents`, and removes deleted files.
    fn scan_folder(
        &mut self,
        at: usize,
        folder_events: &mut FolderEvents,
        now: Instant,
        contents: &mut BTreeMap<FileId, Content>,
    ) {
        let complete = folder_events.take_complete_files(at);
        let listing = match list(&self.folders[at].path) {
            Ok(listing) => listing,
            Err(error) => {
                return self.folders[at].set_problem(Some(FolderProblem::Unreadable(error.to_string())));
            }
        };
        self.folders[at].log_ignored(listing.not_regular);
        let mut reader = FileReader {
            node: &self.node,
            interner: &mut self.interner,
            folder_events,
            folder: at,
            complete,
            now,
            settle_times: self.settle_times,
            is_first: !self.is_listed,
        };
        let mut files: BTreeMap<FileId, FileState> = BTreeMap::new();
        let mut read = BTreeMap::new();
        for (path, version) in listing.manifests {
            let id = (at, path);
            let (state, content) = reader.update(&id.1, version, self.files.get(&id).cloned());
            read.extend(content.map(|content| (id.clone(), content)));
            files.insert(id, state);
        }
        let had_objects = files_of(&self.files, at).any(|(_, state)| !state.objects.is_empty());
        if had_objects && files.values().all(|state| state.is_emptied || state.objects.is_empty()) {
            for (id, mut state) in files {
                let objects = self.files.get(&id).map(|state| state.objects.clone()).unwrap_or_default();
                (state.objects, state.is_emptied) = (objects, true);
                self.files.insert(id, state);
            }
            return self.folders[at].set_problem(Some(FolderProblem::Emptied));
        }
        for state in files.values_mut().filter(|state| state.is_emptied) {
            (state.objects, state.is_emptied) = (Arc::default(), false);
        }
        self.folders[at].set_problem(None);
        self.files.retain(|id, _| id.0 != at);
        self.files.append(&mut files);
        contents.append(&mut read);
    }

    /// The objects that may have changed: those in files that were read, and those removed from a file
    /// since `before`.
    fn affected_objects(
        &self,
        before: &BTreeMap<FileId, FileState>,
        contents: &BTreeMap<FileId, Content>,
    ) -> (ObjectKeys, ObjectKeys) {
        let read = contents.values().flat_map(Content::objects).collect();
        let mut removed = ObjectKeys::new();
        for (id, state) in before {
            let now = self.files.get(id);
            if now.is_none_or(|now| !Arc::ptr_eq(&now.objects, &state.objects)) {
                let is_removed = |key: &&ObjectKey| now.is_none_or(|now| !now.objects.contains(*key));
                removed.extend(state.objects.iter().filter(is_removed).cloned());
            }
        }
        (read, removed)
    }

    /// The files that contain each of `objects`.
    fn find_files_with(&self, objects: ObjectKeys) -> BTreeMap<ObjectKey, FilesWithObject> {
        let mut found: BTreeMap<ObjectKey, FilesWithObject> =
            objects.into_iter().map(|key| (key, FilesWithObject::default())).collect();
        if found.is_empty() {
            return found;
        }
        for (id, state) in &self.files {
            for key in &*state.objects {
                if let Some(files) = found.get_mut(key) {
                    files.shadowed = files.used.replace(id.clone());
                }
            }
        }
        found
    }

    /// Reads the file that is used after the object was removed from another one.
    fn read_fallback(&mut self, files: &FilesWithObject, contents: &mut BTreeMap<FileId, Content>) {
        if let Some(id) = &files.used
            && !contents.contains_key(id)
        {
            contents.insert(id.clone(), read(&id.1, &self.node, &mut self.interner));
        }
    }

    /// The changes of objects, by the files that contain them. Deletions come last, so that nothing that
    /// moves from one object to another is missing in between.
    fn events(
        &mut self,
        affected: BTreeMap<ObjectKey, FilesWithObject>,
        mut contents: BTreeMap<FileId, Content>,
    ) -> Vec<WatchEvent> {
        let (mut events, mut deletions) = (Vec::new(), Vec::new());
        self.log_duplicates(&affected);
        for (key, files) in affected {
            let (kind, name) = key;
            let Some(file) = files.used else {
                v!(4, %kind, object = %name, "object deleted");
                deletions.push(WatchEvent::Change(match kind {
                    ObjectKind::Service => Change::Service(name, None),
                    ObjectKind::EndpointSlice => Change::Slice(name, None),
                    ObjectKind::Node => Change::Node(None),
                }));
                continue;
            };
            let Some(content) = contents.get_mut(&file) else { continue };
            v!(4, %kind, object = %name, "object added or changed");
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
        events.append(&mut deletions);
        events
    }

    /// Logs the objects that are in two files and were not logged yet; the first ones by name, then their
    /// number.
    fn log_duplicates(&mut self, affected: &BTreeMap<ObjectKey, FilesWithObject>) {
        let mut n_new = 0;
        for (key, files) in affected {
            let FilesWithObject { used: Some((_, used)), shadowed: Some((_, shadowed)) } = files else {
                self.duplicates.remove(key);
                continue;
            };
            if !self.duplicates.insert(key.clone()) {
                continue;
            }
            n_new += 1;
            if n_new <= MAX_LINES {
                let (kind, object) = key;
                let (used, shadowed) = (escaped_path(used), escaped_path(shadowed));
                let object = object.to_string();
                let object = object.trim_start_matches('/');
                warn!(%kind, object, %used, %shadowed, "object in two files; using the later file");
            }
        }
        if n_new > MAX_LINES {
            warn!(n_more = n_new - MAX_LINES, "more objects are in two files");
        }
    }
}

/// Turns the first events into complete lists.
fn first_lists(events: Vec<WatchEvent>) -> Vec<WatchEvent> {
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

fn files_of(files: &BTreeMap<FileId, FileState>, at: usize) -> impl Iterator<Item = (&FileId, &FileState)> {
    files.iter().filter(move |(id, _)| id.0 == at)
}

impl FolderStatus {
    /// Whether it is readable; logs if not.
    fn is_readable(&mut self) -> bool {
        match std::fs::read_dir(&self.path) {
            Ok(_) => true,
            Err(error) => {
                self.set_problem(Some(FolderProblem::NotReadableYet(error.to_string())));
                false
            }
        }
    }

    /// Sets the problem of the folder, and logs it if it changed.
    fn set_problem(&mut self, problem: Option<FolderProblem>) {
        if self.problem == problem {
            return;
        }
        let folder = escaped_path(&self.path);
        match &problem {
            Some(FolderProblem::NotReadableYet(error)) => {
                warn!(%folder, error, "cannot read folder of manifests; waiting for it");
            }
            Some(FolderProblem::Unreadable(error)) => {
                warn!(%folder, error, "cannot read folder of manifests; its last objects stay in use");
            }
            Some(FolderProblem::Emptied) => {
                warn!(%folder, "folder of manifests has lost all objects; its last objects stay in use");
            }
            None => info!(%folder, "folder of manifests recovered"),
        }
        self.problem = problem;
    }

    /// Logs manifests that are not regular files, each once while it exists.
    fn log_ignored(&mut self, paths: Vec<PathBuf>) {
        let now: BTreeSet<PathBuf> = paths.into_iter().collect();
        for path in now.difference(&self.ignored) {
            warn!(file = %escaped_path(path), "manifest is not a regular file; ignored");
        }
        self.ignored = now;
    }
}
