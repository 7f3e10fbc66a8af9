//! Faults of the server: one [`Fault`] at a time, checked by the layer that it concerns.
//!
//! A connection checks at every read and write (`line`), a request before its answer (`serve`), a
//! list and a watch while they are made. A change of the fault wakes all of them, so open requests
//! meet it, too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// One fault of the server.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Every watch and every continued or old list is 410 Gone; open watches get the ERROR event.
    Gone,
    /// A connection breaks after `after` more bytes from the server, including heads; `0` breaks
    /// idle ones, too. After `times` connections the fault ends by itself.
    Cut {
        /// Bytes that still arrive, from now on or from the start of a later connection.
        after: u64,
        /// How many connections break.
        times: u32,
    },
    /// A connection passes at most `chunk` bytes, then nothing for `pause`.
    Slow {
        /// Bytes at a time, at least 1.
        chunk: usize,
        /// The pause between two writes.
        pause: Duration,
    },
    /// Connections stay open, and nothing is read or written, as from a hung server or behind a lost route.
    Silent,
    /// Every connection is closed as soon as it is made, and open ones now.
    Away,
    /// Every request is answered with this HTTP status (401, 403, 429, 500, 503, ...).
    Status(u16),
    /// Every list is these bytes (status 200); a watch sends them as one line before its next event.
    /// No event is lost.
    Garbage(Vec<u8>),
    /// A list, and a watch at its next event, ends in the middle of an object without an error.
    HalfObject,
    /// Every list, including streaming ones, that accepts any version (`resourceVersion=0`)
    /// shows this version (or the oldest known one), as from a server that lags behind, and
    /// watches from there get no events. Lists that require the current version are current: such a server waits
    /// until it has it.
    StaleList {
        /// An earlier result of [`super::ApiServer::version`].
        at: u64,
    },
    /// The server has lost its etcd. Watches stay open and silent; requests that its cache can answer
    /// (lists and watches of any version) show `at`; everything else waits and fails.
    EtcdStopped {
        /// The result of [`super::ApiServer::version`] when it stopped.
        at: u64,
    },
    /// Like [`Fault::EtcdStopped`], of a server that starts while its etcd hangs: a request that waits
    /// for a version fails by the ERROR event of a deadline.
    Starting {
        /// The result of [`super::ApiServer::version`] when the server before it ended.
        at: u64,
    },
    /// Streaming lists are rejected with 422, as with the `WatchList` feature off.
    RefuseStreamingLists,
    /// Streaming lists are unknown, as before Kubernetes 1.27: the server sends the objects and no
    /// bookmark after them.
    IgnoreStreamingLists,
}

/// The fault in force.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// `None`: no fault.
    pub fault: Option<Fault>,
    /// Grows with each change, so that "once" differs from "again".
    pub epoch: u64,
    /// Only this resource; `None` is all. Does not restrict faults of connections.
    only: Option<String>,
}

impl Fault {
    /// The version at which a server without etcd stays.
    pub fn stuck_at(&self) -> Option<u64> {
        match self {
            Fault::EtcdStopped { at } | Fault::Starting { at } => Some(*at),
            _ => None,
        }
    }

    /// Whether it is a fault of connections, which a proxy can make too.
    pub fn is_of_connections(&self) -> bool {
        matches!(self, Fault::Cut { .. } | Fault::Slow { .. } | Fault::Silent | Fault::Away)
    }
}

impl Setting {
    /// The fault for requests about `plural`.
    pub fn on(&self, plural: &str) -> Option<&Fault> {
        self.fault.as_ref().filter(|_| self.only.as_ref().is_none_or(|only| only == plural))
    }
}

/// The active fault, and how often it was met.
#[derive(Debug, Default)]
pub struct Faults {
    setting: watch::Sender<Setting>,
    n_met: AtomicU64,
}

impl Faults {
    /// Starts `fault`, for `only` one plural or for all.
    pub fn set(&self, fault: Option<Fault>, only: Option<&str>) {
        self.n_met.store(0, Ordering::Relaxed);
        self.setting.send_modify(|setting| {
            *setting = Setting { fault, epoch: setting.epoch + 1, only: only.map(str::to_owned) };
        });
    }

    /// The active fault.
    pub fn now(&self) -> Setting {
        self.setting.borrow().clone()
    }

    /// Follows changes of the active fault.
    pub fn follow(&self) -> watch::Receiver<Setting> {
        self.setting.subscribe()
    }

    /// Counts that a client met the active fault.
    pub fn met(&self) {
        self.n_met.fetch_add(1, Ordering::Relaxed);
    }

    /// How often clients met the fault that was started last; for a stale list: how many lists
    /// they requested, stale or not.
    pub fn n_met(&self) -> u64 {
        self.n_met.load(Ordering::Relaxed)
    }

    /// Uses one of the breaks of [`Fault::Cut`], if the fault of `epoch` has one left.
    pub fn take_cut(&self, epoch: u64) -> bool {
        let mut is_taken = false;
        self.setting.send_if_modified(|setting| {
            let Some(Fault::Cut { times, .. }) = &mut setting.fault else {
                return false;
            };
            if setting.epoch != epoch || *times == 0 {
                return false;
            }
            is_taken = true;
            self.met();
            *times -= 1;
            let is_last = *times == 0;
            if is_last {
                *setting = Setting { epoch: epoch + 1, ..Setting::default() };
            }
            is_last
        });
        is_taken
    }
}
