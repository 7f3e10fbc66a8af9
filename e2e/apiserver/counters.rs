//! What clients asked for, so that a test can claim it or wait for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// All counters at one moment.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By plural: `services`.
    pub resources: BTreeMap<String, ResourceCounters>,
    /// TCP connections accepted.
    pub connections: u64,
    /// Requests of every kind, refused ones included.
    pub requests: u64,
    /// Bytes written to all connections, heads and compressed bodies as they went.
    pub wire_bytes: u64,
}

/// The counters of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceCounters {
    /// List requests that began a list.
    pub lists: u64,
    /// List requests in all, continued ones included.
    pub pages: u64,
    /// Lists and pages that a real server reads from etcd, not from its watch cache: with a limit or a
    /// token to go on by, unless as of any version.
    pub pages_from_etcd: u64,
    /// Watch requests in all.
    pub watches: u64,
    /// Watch requests that asked for initial events (streaming lists).
    pub streaming_lists: u64,
    /// Watches open now.
    pub open_watches: u64,
    /// Events sent to watchers, initial ones included, bookmarks not.
    pub events: u64,
    /// Bookmarks sent to watchers.
    pub bookmarks: u64,
    /// Lists and watches refused with 410.
    pub gone: u64,
    /// POST, PUT, PATCH and DELETE that took effect.
    pub writes: u64,
    /// Bytes of list and watch bodies before compression.
    pub bytes: u64,
}

impl Counters {
    /// The counters of `plural`; all zero if nobody asked for it.
    pub fn of(&self, plural: &str) -> ResourceCounters {
        self.resources.get(plural).cloned().unwrap_or_default()
    }
}

/// The counters as they are kept.
#[derive(Debug, Default)]
pub struct Board {
    resources: Mutex<BTreeMap<&'static str, ResourceCounters>>,
    changed: Condvar,
    connections: AtomicU64,
    requests: AtomicU64,
    wire_bytes: AtomicU64,
}

impl Board {
    /// Changes the counters of one kind and wakes those who wait for them.
    pub fn count(&self, plural: &'static str, change: impl FnOnce(&mut ResourceCounters)) {
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        change(resources.entry(plural).or_default());
        self.changed.notify_all();
    }

    /// A connection was accepted.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has come.
    pub fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// `n_bytes` were written to a connection.
    pub fn wrote(&self, n_bytes: usize) {
        self.wire_bytes.fetch_add(n_bytes as u64, Ordering::Relaxed);
    }

    /// All of them now.
    pub fn read(&self) -> Counters {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        self.copy(&resources)
    }

    /// Waits until `claim` holds, at most `limit`; whether it does.
    pub fn wait(&self, limit: Duration, mut claim: impl FnMut(&Counters) -> bool) -> bool {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(resources, limit, |now| !claim(&self.copy(now)));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn copy(&self, resources: &BTreeMap<&'static str, ResourceCounters>) -> Counters {
        Counters {
            resources: resources.iter().map(|(name, counts)| ((*name).to_owned(), counts.clone())).collect(),
            connections: self.connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
        }
    }
}
