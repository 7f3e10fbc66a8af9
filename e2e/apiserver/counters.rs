//! Counters of what clients requested, so that a test can claim it or wait for it.

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
    /// Requests of every kind, including rejected ones.
    pub requests: u64,
    /// Bytes written to all connections, including heads and compressed bodies.
    pub wire_bytes: u64,
}

/// The counters of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceCounters {
    /// List requests for the first page.
    pub lists: u64,
    /// All list requests.
    pub pages: u64,
    /// Lists and pages that a real server reads from etcd, not from its watch cache: with a limit or a
    /// token to continue, unless any version is accepted.
    pub pages_from_etcd: u64,
    /// All watch requests.
    pub watches: u64,
    /// Watch requests that asked for initial events (streaming lists).
    pub streaming_lists: u64,
    /// Open watches.
    pub open_watches: u64,
    /// Events sent to watchers, including initial ones, without bookmarks.
    pub events: u64,
    /// Bookmarks sent to watchers.
    pub bookmarks: u64,
    /// Lists and watches rejected with 410.
    pub gone: u64,
    /// POST, PUT, PATCH and DELETE that took effect.
    pub writes: u64,
    /// Bytes of list and watch bodies before compression.
    pub bytes: u64,
}

impl Counters {
    /// The counters of `plural`; all zero without requests.
    pub fn of(&self, plural: &str) -> ResourceCounters {
        self.resources.get(plural).cloned().unwrap_or_default()
    }
}

/// The counters as stored.
#[derive(Debug, Default)]
pub struct Board {
    resources: Mutex<BTreeMap<&'static str, ResourceCounters>>,
    changed: Condvar,
    connections: AtomicU64,
    requests: AtomicU64,
    wire_bytes: AtomicU64,
}

impl Board {
    /// Changes the counters of one kind and wakes the waiting tests.
    pub fn count(&self, plural: &'static str, change: impl FnOnce(&mut ResourceCounters)) {
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        change(resources.entry(plural).or_default());
        self.changed.notify_all();
    }

    /// Counts an accepted connection.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request.
    pub fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `n_bytes` written to a connection.
    pub fn wrote(&self, n_bytes: usize) {
        self.wire_bytes.fetch_add(n_bytes as u64, Ordering::Relaxed);
    }

    /// All counters now.
    pub fn read(&self) -> Counters {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        self.copy(&resources)
    }

    /// Waits until `claim` holds, at most for `limit`; returns whether it holds.
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
