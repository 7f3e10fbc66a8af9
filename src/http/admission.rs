//! One bound on the connections and listeners of all servers of this process, and the choice of the connection that is
//! closed for a new one.
//!
//! The bound follows from the limit of open files, so that connections never use the descriptors that programs and
//! netlink need. A new connection never waits for a slot: if all are taken, an older connection is closed, of the peer
//! that has most.

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

use super::progress::{ConnectionStage, Progress};

/// Connections of all listeners together, where the limit of open files allows.
pub(super) const MAX_CONNECTIONS: usize = 512;
/// With fewer, the kubelet and a load balancer could not connect at the same time.
const MIN_CONNECTIONS: usize = 8;
/// Descriptors for everything but connections and listeners: programs, netlink, the API server.
const RESERVE: usize = 128;
/// One peer may have the connections divided by this.
const PEER_SHARE: usize = 4;
/// How long a connection may lack a complete head before it counts as stalled: a well-behaved client sends the head
/// at once.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// How long to stop accepting after the process ran out of descriptors or memory.
const RECOVER: Duration = Duration::from_millis(200);

/// Why a client was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// A connection could not be accepted.
    NotAccepted,
    /// A connection was closed to make room for a new one.
    Evicted,
}

/// Called for each incident.
pub type OnIncident = Box<dyn Fn(Incident) + Send + Sync>;

/// The slots for connections and the permits for listeners that all servers of the process share.
pub struct Admission {
    n_slots: usize,
    /// One permit for each descriptor that a connection may use.
    permits: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    n_listeners: usize,
    open: Mutex<OpenConnections>,
    next_id: AtomicU64,
    n_evicted: AtomicU64,
    n_not_accepted: AtomicU64,
    on_incident: OnIncident,
}

/// The connections that have a slot.
#[derive(Default)]
struct OpenConnections {
    n: usize,
    /// No list is empty.
    by_peer: BTreeMap<Peer, Vec<OpenConnection>>,
}

/// A connection that has a slot.
struct OpenConnection {
    id: u64,
    progress: Progress,
    eviction: Arc<Notify>,
}

impl Admission {
    /// For a process that may have `max_open_files`.
    pub fn new(max_open_files: u64, on_incident: OnIncident) -> Admission {
        let spare = usize::try_from(max_open_files).unwrap_or(usize::MAX).saturating_sub(RESERVE);
        let n_slots = (spare / 2).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
        let n_listeners = spare.saturating_sub(n_slots).clamp(MIN_CONNECTIONS, Semaphore::MAX_PERMITS);
        Admission {
            n_slots,
            permits: Arc::new(Semaphore::new(n_slots)),
            listeners: Arc::new(Semaphore::new(n_listeners)),
            n_listeners,
            open: Mutex::default(),
            next_id: AtomicU64::new(0),
            n_evicted: AtomicU64::new(0),
            n_not_accepted: AtomicU64::new(0),
            on_incident,
        }
    }

    /// A permit for a listener; an error when none is left.
    pub(super) fn listener(&self) -> io::Result<OwnedSemaphorePermit> {
        self.listeners.clone().try_acquire_owned().map_err(|_| {
            let n = self.n_listeners;
            io::Error::other(format!("the limit of open files leaves no more than {n} for listeners"))
        })
    }

    /// A slot for a connection of `peer`, at once: if all are taken, an older connection is closed.
    pub(super) async fn admit(self: &Arc<Self>, peer: Peer) -> ConnectionSlot {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (progress, eviction) = (Progress::begun(), Arc::new(Notify::new()));
        let evicted = {
            let mut open = self.open();
            let victim = open.victim(peer, self.n_slots, Instant::now());
            let evicted = victim.and_then(|(peer, id)| Some((peer, open.remove(peer, id)?)));
            open.insert(peer, OpenConnection { id, progress: progress.clone(), eviction: eviction.clone() });
            evicted
        };
        if let Some((peer, evicted)) = evicted {
            evicted.eviction.notify_one();
            self.report_eviction(peer);
        }
        let mut slot = ConnectionSlot { admission: self.clone(), peer, id, progress, eviction, permit: None };
        // An evicted connection returns its permit when its socket is closed.
        slot.permit = self.permits.clone().acquire_owned().await.ok();
        slot
    }

    fn report_eviction(&self, peer: Peer) {
        let n_evicted = self.n_evicted.fetch_add(1, Ordering::Relaxed) + 1;
        (self.on_incident)(Incident::Evicted);
        if n_evicted.is_power_of_two() {
            let max_connections = self.n_slots;
            warn!(%peer, max_connections, n_evicted, "too many connections; closed one of the peer with most");
        }
    }

    /// Reports that a connection could not be accepted. Waits if the next one could not be accepted either.
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

    fn open(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections are open.
    #[cfg(test)]
    pub(super) fn n_open(&self) -> usize {
        self.open().n
    }
}

impl OpenConnections {
    /// Peer and number of the connection to close for a new one of `peer`: one of `peer` if it has its share already,
    /// else, if all of `n_slots` are taken, one of the peer with most connections.
    fn victim(&self, peer: Peer, n_slots: usize, now: Instant) -> Option<(Peer, u64)> {
        let n_own = self.by_peer.get(&peer).map_or(0, Vec::len);
        let has_share = n_own >= (n_slots / PEER_SHARE).max(1);
        if !has_share && self.n < n_slots {
            return None;
        }
        let n_most = self.by_peer.values().map(Vec::len).max()?;
        let is_candidate = |(of, open): &(&Peer, &Vec<OpenConnection>)| {
            if has_share { **of == peer } else { open.len() == n_most }
        };
        let candidates = self.by_peer.iter().filter(is_candidate);
        let each = candidates.flat_map(|(peer, open)| open.iter().map(move |connection| (*peer, connection)));
        each.min_by_key(|(_, connection)| connection.worth(now))
            .map(|(peer, connection)| (peer, connection.id))
    }

    fn insert(&mut self, peer: Peer, connection: OpenConnection) {
        self.by_peer.entry(peer).or_default().push(connection);
        self.n += 1;
    }

    fn remove(&mut self, peer: Peer, id: u64) -> Option<OpenConnection> {
        let of_peer = self.by_peer.get_mut(&peer)?;
        let at = of_peer.iter().position(|connection| connection.id == id)?;
        let removed = of_peer.swap_remove(at);
        if of_peer.is_empty() {
            self.by_peer.remove(&peer);
        }
        self.n -= 1;
        Some(removed)
    }
}

impl OpenConnection {
    /// The connection with the least value is closed first: stalled before a complete head, then idle, then without a
    /// complete head yet, then in use; of equal ones the oldest.
    fn worth(&self, now: Instant) -> (u8, Instant, u64) {
        let (stage, since) = self.progress.state();
        let rank = match stage {
            ConnectionStage::Head if now.saturating_duration_since(since) >= STALLED_AFTER => 0,
            ConnectionStage::Idle => 1,
            ConnectionStage::Head => 2,
            ConnectionStage::Answering | ConnectionStage::Sending => 3,
        };
        (rank, since, self.id)
    }
}

/// The slot of one connection; dropping it frees the slot.
pub(super) struct ConnectionSlot {
    admission: Arc<Admission>,
    peer: Peer,
    id: u64,
    pub(super) progress: Progress,
    eviction: Arc<Notify>,
    permit: Option<OwnedSemaphorePermit>,
}

impl ConnectionSlot {
    /// Waits until the connection has to make room for a new one.
    pub(super) async fn evicted(&self) {
        self.eviction.notified().await;
    }

    /// Whether so many slots are taken that idle connections should end soon.
    pub(super) fn are_scarce(&self) -> bool {
        self.admission.open().n > self.admission.n_slots / 2
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.admission.open().remove(self.peer, self.id);
        drop(self.permit.take());
    }
}

/// The source of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// As coarse as one host can choose it: an IPv4 address, or the first 64 bits of an IPv6 address. Each address of
    /// this machine is a peer, although pods may share its 64 bits.
    Network(IpAddr),
    /// All clients of Unix sockets together.
    Local,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Network(ip) => ip.fmt(f),
            Peer::Local => f.write_str("Unix socket"),
        }
    }
}

impl Peer {
    /// The peer of `stream`, which is at `from`.
    pub(super) fn of(stream: &TcpStream, from: SocketAddr) -> Peer {
        Peer::between(from.ip(), stream.local_addr().map(|address| address.ip()).ok())
    }

    fn between(from: IpAddr, to: Option<IpAddr>) -> Peer {
        let is_own = from.is_loopback() || to == Some(from);
        Peer::Network(match from.to_canonical() {
            IpAddr::V6(ip) if !is_own => {
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)))
            }
            ip => ip,
        })
    }
}

#[cfg(test)]
mod tests;
