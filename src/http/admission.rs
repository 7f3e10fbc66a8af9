//! How many connections and listeners the servers of this process have together, and which connection is
//! closed for a new one.
//!
//! The bound is derived from the limit of open files, so that connections never take the descriptors
//! that programs and netlink need. A new connection never waits for a place: where there is none, an
//! older one is closed, of the peer that has most.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::warn;

use super::connection::{Progress, Stage};

/// Connections of all listeners together, where the limit of open files allows.
pub(super) const MAX_CONNECTIONS: usize = 512;
/// Fewer than this would not let the kubelet and a load balancer in at the same time.
const MIN_CONNECTIONS: usize = 8;
/// Descriptors that are neither for connections nor for listeners: programs, netlink, the API server.
const RESERVE: usize = 128;
/// One peer may have this part of the connections.
const PEER_SHARE: usize = 4;
/// How long a connection that has not sent a whole head is taken for one that is about to: the head of
/// an honest client follows at once.
const FRESH: Duration = Duration::from_secs(1);
/// How long not to accept after the process ran out of something.
const RECOVER: Duration = Duration::from_millis(200);

/// What befalls connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// A connection could not be accepted.
    NotAccepted,
    /// A connection was closed to make room for another.
    Evicted,
}

/// Is called for each incident.
pub type OnIncident = Box<dyn Fn(Incident) + Send + Sync>;

/// What all servers of the process share.
pub struct Admission {
    n_places: usize,
    /// One for each descriptor that a connection may hold.
    permits: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    n_listeners: usize,
    held: Mutex<Vec<Held>>,
    next_id: AtomicU64,
    n_evicted: AtomicU64,
    n_not_accepted: AtomicU64,
    on_incident: OnIncident,
}

/// A connection that has a place.
struct Held {
    id: u64,
    peer: Peer,
    progress: Progress,
    eviction: Arc<Notify>,
}

impl Admission {
    /// For a process that may have so many open files.
    pub fn new(max_open_files: u64, on_incident: OnIncident) -> Admission {
        let spare = usize::try_from(max_open_files).unwrap_or(usize::MAX).saturating_sub(RESERVE);
        let n_places = (spare / 2).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
        let n_listeners = spare.saturating_sub(n_places).clamp(MIN_CONNECTIONS, Semaphore::MAX_PERMITS);
        Admission {
            n_places,
            permits: Arc::new(Semaphore::new(n_places)),
            listeners: Arc::new(Semaphore::new(n_listeners)),
            n_listeners,
            held: Mutex::default(),
            next_id: AtomicU64::new(0),
            n_evicted: AtomicU64::new(0),
            n_not_accepted: AtomicU64::new(0),
            on_incident,
        }
    }

    /// A place among the listeners; an error when none is left.
    pub(super) fn listener(&self) -> io::Result<OwnedSemaphorePermit> {
        self.listeners.clone().try_acquire_owned().map_err(|_| {
            let n = self.n_listeners;
            io::Error::other(format!("the limit of open files leaves no more than {n} for listeners"))
        })
    }

    /// A place for a connection of `peer`, at once: an older connection is closed if need be.
    pub(super) async fn admit(self: &Arc<Self>, peer: Peer) -> Place {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (progress, eviction) = (Progress::begun(), Arc::new(Notify::new()));
        let evicted = {
            let mut held = self.held();
            let evicted = self.victim(&held, peer, Instant::now()).map(|at| held.swap_remove(at));
            held.push(Held { id, peer, progress: progress.clone(), eviction: eviction.clone() });
            evicted
        };
        if let Some(evicted) = evicted {
            evicted.eviction.notify_one();
            self.note_evicted(&evicted);
        }
        let mut place = Place { admission: self.clone(), id, progress, eviction, permit: None };
        // That of the connection just evicted, as soon as its socket is closed.
        place.permit = self.permits.clone().acquire_owned().await.ok();
        place
    }

    /// Which connection is closed for one of `peer`: one of the same peer when it has its share already,
    /// else one of the busiest peer when all places are taken.
    fn victim(&self, held: &[Held], peer: Peer, now: Instant) -> Option<usize> {
        let mut counts = BTreeMap::<Peer, usize>::new();
        held.iter().for_each(|held| *counts.entry(held.peer).or_default() += 1);
        let count = |peer: Peer| counts.get(&peer).copied().unwrap_or_default();
        let has_share = count(peer) >= (self.n_places / PEER_SHARE).max(1);
        if !has_share && held.len() < self.n_places {
            return None;
        }
        let candidates = held.iter().enumerate().filter(|(_, held)| !has_share || held.peer == peer);
        let order = |(_, held): &(usize, &Held)| {
            let (stage, since) = held.progress.state();
            let rank = match stage {
                Stage::Head if now - since >= FRESH => 0,
                Stage::Idle => 1,
                Stage::Head => 2,
                Stage::Answering | Stage::Sending => 3,
            };
            (Reverse(count(held.peer)), rank, since, held.id)
        };
        candidates.min_by_key(order).map(|(at, _)| at)
    }

    fn note_evicted(&self, evicted: &Held) {
        let n_evicted = self.n_evicted.fetch_add(1, Ordering::Relaxed) + 1;
        (self.on_incident)(Incident::Evicted);
        if n_evicted.is_power_of_two() {
            let (peer, max_connections) = (evicted.peer.0, self.n_places);
            warn!(%peer, max_connections, n_evicted, "too many connections; closed one of the busiest peer");
        }
    }

    /// Notes that a connection could not be accepted; waits where the next one could not either.
    pub(super) async fn not_accepted(&self, error: &io::Error) {
        let n_failures = self.n_not_accepted.fetch_add(1, Ordering::Relaxed) + 1;
        (self.on_incident)(Incident::NotAccepted);
        if n_failures.is_power_of_two() {
            warn!(%error, n_failures, "cannot accept a connection");
        }
        let is_short = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
            .iter()
            .any(|short| error.raw_os_error() == Some(*short as i32));
        if is_short {
            tokio::time::sleep(RECOVER).await;
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections there are.
    #[cfg(test)]
    pub(super) fn n_held(&self) -> usize {
        self.held().len()
    }
}

/// The place of one connection; dropped, it is free again.
pub(super) struct Place {
    admission: Arc<Admission>,
    id: u64,
    pub(super) progress: Progress,
    eviction: Arc<Notify>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Waits until the connection has to make room for another.
    pub(super) async fn evicted(&self) {
        self.eviction.notified().await;
    }

    /// Whether idle connections should end soon.
    pub(super) fn are_scarce(&self) -> bool {
        self.admission.held().len() > self.admission.n_places / 2
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.held().retain(|held| held.id != self.id);
        drop(self.permit.take());
    }
}

/// Where a connection is from, as far as one sender can choose it: an IPv4 address, the first 64 bits of
/// an IPv6 address. Addresses of this machine count one by one, also where pods share their network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer(IpAddr);

impl Peer {
    /// The peer of `stream`, which is at `from`.
    pub(super) fn of(stream: &TcpStream, from: SocketAddr) -> Peer {
        Peer::between(from.ip(), stream.local_addr().map(|address| address.ip()).ok())
    }

    fn between(from: IpAddr, to: Option<IpAddr>) -> Peer {
        let is_own = from.is_loopback() || to == Some(from);
        Peer(match from.to_canonical() {
            IpAddr::V6(ip) if !is_own => {
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)))
            }
            ip => ip,
        })
    }
}

#[cfg(test)]
mod tests;
