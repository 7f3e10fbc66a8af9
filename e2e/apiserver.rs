//! A small Kubernetes API server for tests, and the choice of a real one in its place.
//!
//! It serves the requests of a node agent as a real server was recorded to (`testdata/apiserver`): lists
//! in pages, watches with bookmarks, streaming lists, selectors, versions that expire, status patches,
//! events, over plain http and https, HTTP/1.1 and HTTP/2, on one port; and it can fail on demand in
//! the ways of [`Fault`]. It checks objects from HTTP and from [`Cluster`] as a real server does;
//! [`ApiServer::put`] stores objects unchecked, so that tests can store any.
//!
//! Each file includes this module with `#[path]`, so its own files are named by path, too.

#![allow(dead_code, reason = "each test target uses a part of this module")]
#![allow(clippy::missing_panics_doc, reason = "a panic is how a test hears of its own mistake")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

#[path = "apiserver/access.rs"]
mod access;
#[path = "apiserver/answer.rs"]
mod answer;
#[path = "apiserver/begin.rs"]
mod begin;
#[path = "apiserver/change.rs"]
mod change;
#[path = "apiserver/cluster.rs"]
mod cluster;
#[path = "apiserver/control.rs"]
mod control;
#[path = "apiserver/counters.rs"]
mod counters;
#[path = "apiserver/events.rs"]
mod events;
#[path = "apiserver/fault.rs"]
mod fault;
#[path = "apiserver/line.rs"]
mod line;
#[path = "apiserver/list.rs"]
mod list;
#[path = "apiserver/object.rs"]
mod object;
#[path = "apiserver/programs.rs"]
mod programs;
#[path = "apiserver/proxy.rs"]
mod proxy;
#[path = "apiserver/real.rs"]
mod real;
#[path = "apiserver/request.rs"]
mod request;
#[path = "apiserver/resource.rs"]
mod resource;
#[path = "apiserver/route.rs"]
mod route;
#[path = "apiserver/selector.rs"]
mod selector;
#[path = "apiserver/serve.rs"]
mod serve;
#[path = "apiserver/store.rs"]
mod store;
#[path = "apiserver/tls.rs"]
mod tls;
#[path = "apiserver/valid.rs"]
mod valid;
#[path = "apiserver/watch.rs"]
mod watching;
#[path = "apiserver/without_etcd.rs"]
mod without_etcd;

#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::access::{Trust, User, kubeconfig};

#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::cluster::{Cluster, start_cluster};
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::counters::{Counters, ResourceCounters};
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::events::Gzip;
pub use self::fault::Fault;
use self::object::Key;
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::programs::TOKEN;
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::proxy::Proxy;
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::real::RealServer;
use self::resource::Resource;
use self::serve::Door;
use self::store::Store;
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::tls::ClientCertificate;

/// Number of changes of each kind that are kept; older versions are expired.
const HISTORY: usize = 50_000;
/// Time between bookmarks; a real server sends one every minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// A small Kubernetes API server for tests: list, watch, resourceVersion, bookmarks, pages, 410 Gone,
/// status. Ends when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// State that the handle and the server's thread share.
#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    pulse: watch::Sender<Pulse>,
    faults: Arc<fault::Faults>,
    board: Arc<counters::Board>,
    access: Mutex<access::Access>,
    authority: tls::Authority,
    door: watch::Sender<Door>,
}

/// The etcd behind the server, as far as clients can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Etcd {
    /// 3.4.25, 3.5.8 and newer: it reports its progress, so bookmarks come without events, and the server
    /// offers streaming lists.
    #[default]
    V3_6,
    /// Older ones, without `RequestWatchProgress`.
    V3_4,
}

/// Behaviour of watches, and the signal that wakes them.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    /// Watches of an earlier epoch end.
    epoch: u64,
    /// The latest time at which all watches end.
    ends_at: Option<Instant>,
    bookmark_every: Duration,
    etcd: Etcd,
    /// How streaming lists are compressed, for clients that accept it.
    compression: Option<Gzip>,
    /// Divides the times for which requests wait.
    pace: u32,
}

impl Shared {
    /// Wakes the watches; the caller does this after each change of the store.
    fn changed(&self) {
        self.pulse.send_modify(|_| {});
    }

    /// How long a request waits that would wait for `limit` on a real server.
    fn paced(&self, limit: Duration) -> Duration {
        limit / self.pulse.borrow().pace
    }

    fn access(&self) -> MutexGuard<'_, access::Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiServer {
    /// Serves on `listen` until dropped. A thread that first enters the network namespace behind `netns` makes the
    /// socket, so that namespaces can reach it.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the address is in use; nothing keeps running.
    pub fn start(listen: SocketAddr, netns: Option<OwnedFd>) -> anyhow::Result<ApiServer> {
        let pulse = Pulse {
            epoch: 0,
            ends_at: None,
            bookmark_every: BOOKMARK_EVERY,
            etcd: Etcd::default(),
            compression: None,
            pace: 1,
        };
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(HISTORY)),
            pulse: watch::Sender::new(pulse),
            faults: Arc::default(),
            board: Arc::default(),
            access: Mutex::default(),
            authority: tls::Authority::new(),
            door: watch::Sender::new(Door { is_open: true, n_goaways: 0 }),
        });
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || serve::run(served, listen, netns, &ready, stopped))
            .context("starting the thread of the API server")?;
        let address = is_ready.recv().context("waiting for the API server to listen")??;
        Ok(ApiServer { shared, address, stop: Some(stop), thread: Some(thread) })
    }

    /// The address of the socket (port 0 resolved).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates or replaces an object of any kind in `resource::RESOURCES`, `status` included; sets
    /// uid and creationTimestamp (unless present) and resourceVersion. Returns the resourceVersion,
    /// the old one if nothing differs. A namespaced object without a namespace goes to `default`.
    pub fn put(&self, object: Value) -> u64 {
        let (resource, key) = place(&object);
        let version = self.shared.store().put(resource, key, object);
        self.shared.changed();
        version
    }

    /// Like [`ApiServer::put`] for an object that a real server accepts; stores it as a real server returns it.
    ///
    /// # Errors
    /// The message with which a real server rejects it; nothing is changed.
    pub fn apply(&self, mut object: Value) -> Result<u64, String> {
        let (resource, key) = place(&object);
        let version = {
            let mut store = self.shared.store();
            let old = store.get(resource, &key).map(|old| old.value());
            valid::complete(resource, &mut object);
            let checked = valid::check(resource, &key.name, &object, old.as_ref());
            checked.map_err(|refusal| refusal.object()["message"].to_string())?;
            store.put(resource, key, object)
        };
        self.shared.changed();
        Ok(version)
    }

    /// Puts the objects of a YAML text with several documents and Lists.
    pub fn put_yaml(&self, text: &str) {
        for object in cluster::objects_of_yaml(text) {
            self.put(object);
        }
    }

    /// Deletes an object; returns whether it existed.
    pub fn delete(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool {
        let resource = known(kind);
        let is_deleted = self.shared.store().delete(resource, &key(resource, namespace, name));
        self.shared.changed();
        is_deleted
    }

    /// An object as stored.
    pub fn get(&self, kind: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        let resource = known(kind);
        Some(self.shared.store().get(resource, &key(resource, namespace, name))?.value())
    }

    /// Objects of a kind that clients created with POST (events), as stored.
    pub fn posted(&self, kind: &str) -> Vec<Value> {
        self.shared.store().posted(known(kind)).iter().map(|object| object.value()).collect()
    }

    /// The newest resourceVersion of all.
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// A kubeconfig for this server: plain http, no credentials. For a server that listens on all
    /// addresses it names loopback.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_at(self.reachable(), None)
    }

    /// A kubeconfig for a client that reaches the server at `ip` by plain http and, with `token_file`,
    /// sends the token in that file.
    pub fn kubeconfig_at(&self, ip: IpAddr, token_file: Option<&Path>) -> String {
        let server = format!("http://{}", SocketAddr::new(ip, self.address.port()));
        let user = token_file.map_or(User::Anonymous, |file| User::TokenFile(file.to_owned()));
        kubeconfig(&server, &Trust::Plain, &user)
    }

    /// A kubeconfig for a client that reaches the server at `ip` by https, trusts its authority, and has the
    /// credentials `user`.
    pub fn kubeconfig_https(&self, ip: IpAddr, user: &User) -> String {
        let server = format!("https://{}", SocketAddr::new(ip, self.address.port()));
        kubeconfig(&server, &Trust::Authority(self.shared.authority.pem()), user)
    }

    /// The address at which clients in its namespace reach it.
    pub fn reachable(&self) -> IpAddr {
        match self.address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The certificate of its authority, as PEM.
    pub fn authority(&self) -> String {
        self.shared.authority.pem()
    }

    /// Replaces the authority by another one for connections and client certificates from now
    /// on; open connections stay.
    pub fn replace_authority(&self) {
        self.shared.authority.replace();
    }

    /// A certificate for a client, which [`ApiServer::require_certificate`] can ask for.
    pub fn client_certificate(&self, name: &str) -> ClientCertificate {
        self.shared.authority.client(name)
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.shared.board.read()
    }

    /// Waits until `claim` holds for the counters, at most for `limit`; returns whether it holds. The
    /// counters of resources wake it, those of connections do not. Blocks the thread: not for a test whose client runs on a runtime of this one thread.
    pub fn wait_for(&self, limit: Duration, claim: impl FnMut(&Counters) -> bool) -> bool {
        self.shared.board.wait(limit, claim)
    }

    /// Starts a fault, or ends it; open requests and connections meet it at once.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.faults.set(fault, None);
    }

    /// How often clients met the fault that was started last.
    pub fn faults_met(&self) -> u64 {
        self.shared.faults.n_met()
    }

    /// Like [`ApiServer::set_fault`], for requests about `plural` only (`services`). Faults of whole
    /// connections ([`Fault::Cut`], [`Fault::Slow`], [`Fault::Silent`], [`Fault::Away`]) affect all requests.
    pub fn set_fault_on(&self, plural: &str, fault: Option<Fault>) {
        self.shared.faults.set(fault, Some(plural));
    }

    /// Discards history, so that every version sent so far is 410 Gone, and ends the watches.
    pub fn compact(&self) {
        self.shared.store().compact();
        self.drop_watches();
    }

    /// Keeps at most `n_changes` changes of each kind; watchers further behind are 410 Gone.
    pub fn set_history(&self, n_changes: usize) {
        self.shared.store().set_history(n_changes);
    }

    /// Ends all open watches (a clean end of the stream).
    pub fn drop_watches(&self) {
        self.shared.pulse.send_modify(|pulse| pulse.epoch += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // The thread may have ended already; then there is nothing to do.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The namespace and name of an object, from its own metadata.
fn place(object: &Value) -> (&'static Resource, Key) {
    let resource = known(object["kind"].as_str().expect("an object has a kind"));
    let name = object["metadata"]["name"].as_str().expect("an object has a name");
    (resource, key(resource, object["metadata"]["namespace"].as_str(), name))
}

fn known(kind: &str) -> &'static Resource {
    Resource::of_kind(kind).unwrap_or_else(|| panic!("the simulator does not serve {kind:?}"))
}

fn key(resource: &Resource, namespace: Option<&str>, name: &str) -> Key {
    let namespace = if resource.is_namespaced { namespace.unwrap_or("default") } else { "" };
    Key { namespace: namespace.to_owned(), name: name.to_owned() }
}
