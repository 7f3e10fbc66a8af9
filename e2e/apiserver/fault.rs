//! What can be wrong with the server: one [`Fault`] at a time, looked up by the layer it belongs to.
//!
//! A connection asks at every read and write (`line`), a request before it is answered (`serve`), a
//! list and a watch while they are made. All of them wake when the fault changes, so a fault meets
//! what is open already.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// One thing that is wrong with the server.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Every watch and every continued or old list is 410 Gone; open watches get the ERROR event.
    Gone,
    /// A connection breaks after `after` more bytes from the server, heads included; `0` breaks
    /// those that are idle too. After `times` connections the fault clears itself.
    Cut {
        /// Bytes that still arrive, counted from now or from the start of a later connection.
        after: u64,
        /// How many connections break.
        times: u32,
    },
    /// A connection passes at most `chunk` bytes, then nothing for `pause`.
    Slow {
        /// Bytes in one go, at least 1.
        chunk: usize,
        /// The time between two.
        pause: Duration,
    },
    /// Connections stay open, and nothing is read or written: a hung server, a lost route.
    Silent,
    /// Every connection is closed as soon as it is made, and those that are open now.
    Away,
    /// Every request is answered with this HTTP status (401, 403, 429, 500, 503, ...).
    Status(u16),
    /// Every list is these bytes (status 200); a watch has them as one line before its next event.
    /// No event is lost.
    Garbage(Vec<u8>),
    /// A list, and a watch at its next event, ends in the middle of an object as if it were whole.
    HalfObject,
    /// Every list, streaming ones included, that is asked for as of any version (`resourceVersion=0`)
    /// is as of this version (or the oldest that is known), as from a server behind the others, and
    /// watches from there hear nothing new. Lists that are to be as of now are: such a server waits
    /// until it knows.
    StaleList {
        /// What [`super::ApiServer::version`] gave once.
        at: u64,
    },
    /// The server has lost its etcd. Watches stay open and are silent; what its cache can answer
    /// (lists and watches as of any version) is as of `at`; everything else waits and fails.
    EtcdStopped {
        /// What [`super::ApiServer::version`] gave when it stopped.
        at: u64,
    },
    /// Like [`Fault::EtcdStopped`], of a server that just starts while its etcd hangs: what waits
    /// for a version fails by the ERROR event of a deadline.
    Starting {
        /// What [`super::ApiServer::version`] gave when the server before it ended.
        at: u64,
    },
    /// Streaming lists are refused with 422, as with the `WatchList` feature off.
    RefuseStreamingLists,
    /// Streaming lists are not understood, as before Kubernetes 1.27: the objects come, the
    /// bookmark that ends them does not.
    IgnoreStreamingLists,
}

/// The fault in force.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// Nothing is wrong if `None`.
    pub fault: Option<Fault>,
    /// Rises with each change, so that "once" can be told from "again".
    pub epoch: u64,
    /// Only this resource; `None` is all. Does not limit faults of connections.
    only: Option<String>,
}

impl Fault {
    /// The version that a server without etcd is stuck at.
    pub fn stuck_at(&self) -> Option<u64> {
        match self {
            Fault::EtcdStopped { at } | Fault::Starting { at } => Some(*at),
            _ => None,
        }
    }

    /// Whether it is one of connections, which a proxy can make too.
    pub fn is_of_connections(&self) -> bool {
        matches!(self, Fault::Cut { .. } | Fault::Slow { .. } | Fault::Silent | Fault::Away)
    }
}

impl Setting {
    /// The fault as it concerns requests about `plural`.
    pub fn on(&self, plural: &str) -> Option<&Fault> {
        self.fault.as_ref().filter(|_| self.only.as_ref().is_none_or(|only| only == plural))
    }
}

/// Where the fault in force is kept, and how often it was met.
#[derive(Debug, Default)]
pub struct Faults {
    setting: watch::Sender<Setting>,
    n_met: AtomicU64,
}

impl Faults {
    /// Puts `fault` in force, for `only` one plural or for all.
    pub fn set(&self, fault: Option<Fault>, only: Option<&str>) {
        self.n_met.store(0, Ordering::Relaxed);
        self.setting.send_modify(|setting| {
            *setting = Setting { fault, epoch: setting.epoch + 1, only: only.map(str::to_owned) };
        });
    }

    /// The fault in force.
    pub fn now(&self) -> Setting {
        self.setting.borrow().clone()
    }

    /// Follows the fault in force.
    pub fn follow(&self) -> watch::Receiver<Setting> {
        self.setting.subscribe()
    }

    /// A client met the fault in force.
    pub fn met(&self) {
        self.n_met.fetch_add(1, Ordering::Relaxed);
    }

    /// How often clients met the fault that was put in force last; of a stale list: how many lists
    /// they asked for, stale or not.
    pub fn n_met(&self) -> u64 {
        self.n_met.load(Ordering::Relaxed)
    }

    /// Takes one of the breaks of [`Fault::Cut`], if the fault of `epoch` has one left.
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
