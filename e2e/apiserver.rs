//! A small Kubernetes API server for tests, and the choice of a real one in its place.
//!
//! It serves what a node agent asks for: lists in pages, watches with bookmarks, streaming lists,
//! selectors, versions that expire, status patches, events; and it can be made to fail in the ways
//! of [`Fault`]. It stores objects as they are given: it checks, defaults and allocates nothing, so
//! tests can give objects that a real server would refuse.
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

#[path = "apiserver/answer.rs"]
mod answer;
#[path = "apiserver/change.rs"]
mod change;
#[path = "apiserver/cluster.rs"]
mod cluster;
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
#[path = "apiserver/selector.rs"]
mod selector;
#[path = "apiserver/serve.rs"]
mod serve;
#[path = "apiserver/store.rs"]
mod store;
#[path = "apiserver/watch.rs"]
mod watching;

#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::cluster::{Cluster, start_cluster};
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::counters::{Counters, ResourceCounters};
pub use self::fault::Fault;
use self::object::Key;
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::proxy::Proxy;
#[allow(unused_imports, reason = "each test target uses a part of this module")]
pub use self::real::RealServer;
use self::resource::Resource;
use self::store::Store;

/// Changes kept of each kind until versions before them are gone.
const HISTORY: usize = 50_000;
/// Time between bookmarks; a real server sends one each minute.
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

/// What the handle and the server's thread have in common.
#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    pulse: watch::Sender<Pulse>,
    faults: Arc<fault::Faults>,
    board: Arc<counters::Board>,
    token: Mutex<Option<String>>,
}

/// What watches are woken by.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    /// Watches of an earlier epoch end.
    epoch: u64,
    bookmark_every: Duration,
}

impl Shared {
    /// Wakes the watches; to be called after the store was changed.
    fn changed(&self) {
        self.pulse.send_modify(|_| {});
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiServer {
    /// Serves on `listen` until dropped. The socket is made on a thread of its own that first enters
    /// the network namespace behind `netns`, so that namespaces can reach it.
    ///
    /// # Errors
    /// The namespace cannot be entered or the address is taken; nothing is left running.
    pub fn start(listen: SocketAddr, netns: Option<OwnedFd>) -> anyhow::Result<ApiServer> {
        let pulse = Pulse { epoch: 0, bookmark_every: BOOKMARK_EVERY };
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(HISTORY)),
            pulse: watch::Sender::new(pulse),
            faults: Arc::default(),
            board: Arc::default(),
            token: Mutex::new(None),
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

    /// Where it really listens (port 0 resolved).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates or replaces an object of any kind in `resource::RESOURCES`, `status` included; sets
    /// uid and creationTimestamp (unless given) and resourceVersion. Returns the resourceVersion,
    /// the old one if nothing differs. A namespaced object without a namespace goes to `default`.
    pub fn put(&self, object: Value) -> u64 {
        let kind = object["kind"].as_str().expect("an object has a kind");
        let resource = known(kind);
        let name = object["metadata"]["name"].as_str().expect("an object has a name").to_owned();
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let key = key(resource, namespace.as_deref(), &name);
        let version = self.shared.store().put(resource, key, object);
        self.shared.changed();
        version
    }

    /// Puts the objects of a YAML text with several documents and Lists.
    pub fn put_yaml(&self, text: &str) {
        for object in cluster::objects_of_yaml(text) {
            self.put(object);
        }
    }

    /// Deletes an object; whether it was there.
    pub fn delete(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool {
        let resource = known(kind);
        let is_deleted = self.shared.store().delete(resource, &key(resource, namespace, name));
        self.shared.changed();
        is_deleted
    }

    /// An object as it is.
    pub fn get(&self, kind: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        let resource = known(kind);
        Some(self.shared.store().get(resource, &key(resource, namespace, name))?.value())
    }

    /// Objects of a kind that clients created with POST (events), as they are now.
    pub fn posted(&self, kind: &str) -> Vec<Value> {
        self.shared.store().posted(known(kind)).iter().map(|object| object.value()).collect()
    }

    /// The newest resourceVersion of all.
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// A kubeconfig that points here: plain http, no credentials. A server that listens on all
    /// addresses is named by loopback.
    pub fn kubeconfig(&self) -> String {
        let ip = match self.address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        self.kubeconfig_at(ip, None)
    }

    /// A kubeconfig for a client that reaches the server at `ip` and, with `token_file`, sends the
    /// token in that file.
    pub fn kubeconfig_at(&self, ip: IpAddr, token_file: Option<&Path>) -> String {
        let server = format!("http://{}", SocketAddr::new(ip, self.address.port()));
        cluster::kubeconfig(&server, None, token_file)
    }

    /// Refuses (401) every request without this bearer token; `None` lets everybody in. Open watches
    /// stay, as on a real server.
    pub fn require_token(&self, token: Option<&str>) {
        *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = token.map(str::to_owned);
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.shared.board.read()
    }

    /// Waits until `claim` holds for the counters, at most `limit`; whether it does. Woken by
    /// the counters of resources, not by those of connections. Blocks the thread: not for a test whose client runs on a runtime of this one thread.
    pub fn wait_for(&self, limit: Duration, claim: impl FnMut(&Counters) -> bool) -> bool {
        self.shared.board.wait(limit, claim)
    }

    /// Puts a fault in force, or none; requests and connections that are open meet it at once.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.faults.set(fault, None);
    }

    /// How often clients met the fault that was put in force last.
    pub fn faults_met(&self) -> u64 {
        self.shared.faults.n_met()
    }

    /// Like [`ApiServer::set_fault`], for requests about `plural` only (`services`). Faults of whole
    /// connections ([`Fault::Cut`], [`Fault::Slow`], [`Fault::Silent`], [`Fault::Away`]) meet all.
    pub fn set_fault_on(&self, plural: &str, fault: Option<Fault>) {
        self.shared.faults.set(fault, Some(plural));
    }

    /// Forgets history so that every version handed out so far is 410 Gone, and ends the watches.
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

    /// Sends a bookmark this often (default 60 s) to watches that want them, open ones included. A
    /// watch's first bookmark comes after one second at the latest.
    pub fn set_bookmark_interval(&self, every: Duration) {
        self.shared.pulse.send_modify(|pulse| pulse.bookmark_every = every);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // The thread may have ended already; a second end is none.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn known(kind: &str) -> &'static Resource {
    Resource::of_kind(kind).unwrap_or_else(|| panic!("the simulator does not serve {kind:?}"))
}

fn key(resource: &Resource, namespace: Option<&str>, name: &str) -> Key {
    let namespace = if resource.is_namespaced { namespace.unwrap_or("default") } else { "" };
    Key { namespace: namespace.to_owned(), name: name.to_owned() }
}
