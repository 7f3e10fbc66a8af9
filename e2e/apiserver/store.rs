//! All objects and the recent history of each kind, under one rising version as in etcd.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::object::{Key, Object, metadata};
use super::resource::Resource;

/// Objects of one kind, in the order of a list.
pub type Objects = BTreeMap<Key, Arc<Object>>;

/// The requested version is older than the kept history (410).
#[derive(Debug, PartialEq)]
pub struct Gone {
    /// The oldest version that can still be requested.
    pub floor: u64,
}

/// One step of one object: created (no `before`), changed, or deleted (no `after`).
#[derive(Debug)]
pub struct Change {
    /// The version of the step.
    pub version: u64,
    /// The object before it.
    pub before: Option<Arc<Object>>,
    /// The object after it.
    pub after: Option<Arc<Object>>,
    deleted: OnceLock<Bytes>,
}

impl Change {
    /// The object of a DELETED event; made when the first watcher needs it.
    pub fn deleted(&self, resource: &Resource) -> &[u8] {
        let before = self.before.as_ref().expect("only what was there can go");
        self.deleted.get_or_init(|| before.as_deleted(resource, self.version))
    }
}

/// The objects of every kind.
#[derive(Debug)]
pub struct Store {
    version: u64,
    n_made: u64,
    history: usize,
    collections: BTreeMap<&'static str, Collection>,
}

#[derive(Debug, Default)]
struct Collection {
    // Behind an Arc, so that a page or a watch can keep a state: the first change after that
    // copies the map (not the objects), the next ones do not.
    objects: Arc<Objects>,
    log: VecDeque<Arc<Change>>,
    floor: u64,
    posted: BTreeSet<Key>,
}

impl Store {
    /// An empty store that keeps `history` changes of each kind.
    pub fn new(history: usize) -> Store {
        // Version 0 means "any" in requests, so the empty store is version 1.
        Store { version: 1, n_made: 0, history, collections: BTreeMap::new() }
    }

    /// The version of the newest change of any kind.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Keeps at most `history` changes of each kind from now on.
    pub fn set_history(&mut self, history: usize) {
        self.history = history;
    }

    /// Creates or replaces an object; returns its version, the old one if nothing differs (then a real
    /// server makes no event either).
    pub fn put(&mut self, resource: &'static Resource, key: Key, mut value: Value) -> u64 {
        let before = self.get(resource, &key);
        self.complete_metadata(resource, &key, before.as_deref(), &mut value);
        if let Some(before) = &before {
            let same = Object::new(resource, key.clone(), before.version, value.clone());
            if same.bytes() == before.bytes() {
                return before.version;
            }
        }
        self.version += 1;
        let after = Arc::new(Object::new(resource, key, self.version, value));
        self.record(resource, before, Some(after));
        self.version
    }

    /// Deletes an object, if it exists.
    pub fn delete(&mut self, resource: &'static Resource, key: &Key) -> bool {
        let Some(before) = self.get(resource, key) else {
            return false;
        };
        self.version += 1;
        self.record(resource, Some(before), None);
        true
    }

    /// The object now.
    pub fn get(&self, resource: &Resource, key: &Key) -> Option<Arc<Object>> {
        self.collections.get(resource.plural)?.objects.get(key).cloned()
    }

    /// Records that a client created this object.
    pub fn mark_posted(&mut self, resource: &'static Resource, key: Key) {
        self.collections.entry(resource.plural).or_default().posted.insert(key);
    }

    /// The objects that clients created and that still exist.
    pub fn posted(&self, resource: &Resource) -> Vec<Arc<Object>> {
        let Some(collection) = self.collections.get(resource.plural) else {
            return Vec::new();
        };
        collection.posted.iter().filter_map(|key| collection.objects.get(key).cloned()).collect()
    }

    /// All objects of a kind at `version`.
    pub fn state_at(&self, resource: &Resource, version: u64) -> Result<Arc<Objects>, Gone> {
        let Some(collection) = self.collections.get(resource.plural) else {
            return Ok(Arc::default());
        };
        let later = collection.after(version)?;
        let mut objects = Arc::clone(&collection.objects);
        for change in collection.log.range(later..).rev() {
            let objects = Arc::make_mut(&mut objects);
            match (&change.before, &change.after) {
                (Some(before), _) => objects.insert(before.key.clone(), Arc::clone(before)),
                (None, Some(after)) => objects.remove(&after.key),
                (None, None) => None,
            };
        }
        Ok(objects)
    }

    /// All objects of a kind now.
    pub fn state(&self, resource: &Resource) -> Arc<Objects> {
        self.collections.get(resource.plural).map(|found| Arc::clone(&found.objects)).unwrap_or_default()
    }

    /// Up to `limit` changes after `version`, and the version up to which they are complete.
    pub fn changes_after(
        &self,
        resource: &Resource,
        version: u64,
        limit: usize,
    ) -> Result<(Vec<Arc<Change>>, u64), Gone> {
        let newest = self.version.max(version);
        let Some(collection) = self.collections.get(resource.plural) else {
            return Ok((Vec::new(), newest));
        };
        let later = collection.after(version)?;
        let changes: Vec<_> = collection.log.range(later..).take(limit).cloned().collect();
        let upto = if changes.len() < limit { newest } else { changes[limit - 1].version };
        Ok((changes, upto))
    }

    /// The version of the newest recorded change of a kind.
    pub fn last_change(&self, resource: &Resource) -> Option<u64> {
        Some(self.collections.get(resource.plural)?.log.back()?.version)
    }

    /// Discards all history: every version sent so far is gone.
    pub fn compact(&mut self) {
        // A version of its own; otherwise a client that has seen everything would not notice.
        self.version += 1;
        for resource in &super::resource::RESOURCES {
            let collection = self.collections.entry(resource.plural).or_default();
            collection.log.clear();
            collection.floor = self.version;
        }
    }

    fn record(
        &mut self,
        resource: &'static Resource,
        before: Option<Arc<Object>>,
        after: Option<Arc<Object>>,
    ) {
        let collection = self.collections.entry(resource.plural).or_default();
        let objects = Arc::make_mut(&mut collection.objects);
        match (&before, &after) {
            (_, Some(after)) => objects.insert(after.key.clone(), Arc::clone(after)),
            (Some(before), None) => objects.remove(&before.key),
            (None, None) => None,
        };
        let change = Change { version: self.version, before, after, deleted: OnceLock::new() };
        collection.log.push_back(Arc::new(change));
        while collection.log.len() > self.history {
            let dropped = collection.log.pop_front().expect("longer than the limit");
            collection.floor = dropped.version;
        }
    }

    /// Name, namespace, uid and creation time; given ones stay, and those of the object before are kept.
    fn complete_metadata(
        &mut self,
        resource: &Resource,
        key: &Key,
        before: Option<&Object>,
        value: &mut Value,
    ) {
        let old = before.map(Object::value);
        let keep = |field: &str| old.as_ref().map(|old| old["metadata"][field].clone());
        let n_made = &mut self.n_made;
        let metadata = metadata(value);
        // Go clients send `creationTimestamp: null` for an unset field.
        metadata.retain(|_, value| !value.is_null());
        metadata.insert("name".into(), key.name.clone().into());
        if resource.is_namespaced {
            metadata.insert("namespace".into(), key.namespace.clone().into());
        }
        metadata.entry("uid").or_insert_with(|| {
            keep("uid").unwrap_or_else(|| {
                *n_made += 1;
                format!("00000000-0000-4000-8000-{n_made:012x}").into()
            })
        });
        metadata.entry("creationTimestamp").or_insert_with(|| {
            keep("creationTimestamp").unwrap_or_else(|| serde_json::json!(Time(Timestamp::now())))
        });
    }
}

impl Collection {
    /// The position in the log of the first change after `version`.
    fn after(&self, version: u64) -> Result<usize, Gone> {
        if version < self.floor {
            return Err(Gone { floor: self.floor });
        }
        Ok(self.log.partition_point(|change| change.version <= version))
    }
}
