//! A real API server: `etcd` and `kube-apiserver` from a folder, at the address of the simulator,
//! behind a proxy that has the faults of connections.
//!
//! One thread enters the network namespace, starts both programs there (children inherit it), and
//! then executes the test's orders through the kube client. When it ends, both are killed.

#![allow(clippy::disallowed_methods, reason = "waits for programs by the clock")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::access::{Trust, User, kubeconfig};
use super::cluster::Cluster;
use super::fault::Fault;
use super::programs::{Processes, TOKEN, api_arguments, etcd_arguments, last_words};
use super::proxy::Proxy;
use super::resource::Resource;

/// Both programs need a few seconds on a small machine.
const START_LIMIT: Duration = Duration::from_secs(90);

/// A running `etcd` and `kube-apiserver`; both end when this is dropped.
#[derive(Debug)]
pub struct RealServer {
    proxy: Proxy,
    authority: String,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// An order for the thread in the namespace.
enum Order {
    Put(Value, Sender<anyhow::Result<u64>>),
    Delete(&'static Resource, String, String, Sender<anyhow::Result<bool>>),
    Events(Sender<anyhow::Result<Vec<Value>>>),
}

impl RealServer {
    /// Starts both programs of `folder` and waits until the API server answers on `listen`.
    ///
    /// # Errors
    /// A program is missing or does not start (the error has the end of its log); nothing keeps
    /// running.
    pub fn start(folder: &Path, listen: SocketAddr, netns: Option<OwnedFd>) -> anyhow::Result<RealServer> {
        let folder = folder.to_owned();
        let (ready, is_ready) = channel();
        let (orders, to_do) = channel();
        let proxy_netns = netns.as_ref().map(OwnedFd::try_clone).transpose()?;
        let own = SocketAddr::new(listen.ip(), 0);
        let work = move || match Running::start(&folder, own, netns) {
            Ok(running) => {
                let _ = ready.send(running.authority().map(|authority| (running.address, authority)));
                running.work(&to_do);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name("kube-apiserver".to_owned()).spawn(work);
        let thread = thread.context("starting the thread of the API server")?;
        let (own, authority) = is_ready.recv().context("waiting for the API server to be ready")??;
        let upstream = SocketAddr::new(reachable(own.ip()), own.port());
        // Without a sender of orders the thread ends, and the programs with it.
        let proxy = Proxy::start(listen, proxy_netns, upstream)?;
        Ok(RealServer { proxy, authority, orders: Some(orders), thread: Some(thread) })
    }

    fn order<T>(&self, order: impl FnOnce(Sender<anyhow::Result<T>>) -> Order) -> T {
        let (reply, answer) = channel();
        let orders = self.orders.as_ref().expect("taken only by drop");
        orders.send(order(reply)).expect("the thread works until drop");
        let answer = answer.recv().expect("every order is answered");
        answer.unwrap_or_else(|error| panic!("the API server refused: {error:#}"))
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Cluster for RealServer {
    fn put(&self, object: Value) -> u64 {
        self.order(|reply| Order::Put(object, reply))
    }

    fn delete(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool {
        let resource = Resource::of_kind(kind).expect("a kind that the tests use");
        let namespace = namespace.unwrap_or("default").to_owned();
        self.order(|reply| Order::Delete(resource, namespace, name.to_owned(), reply))
    }

    fn events(&self) -> Vec<Value> {
        self.order(Order::Events)
    }

    fn kubeconfig(&self) -> String {
        self.kubeconfig_at(reachable(self.proxy.address().ip()))
    }

    fn kubeconfig_at(&self, ip: IpAddr) -> String {
        let server = format!("https://{}", SocketAddr::new(ip, self.proxy.address().port()));
        kubeconfig(&server, &Trust::Unverified, &user())
    }

    fn authority(&self) -> String {
        self.authority.clone()
    }

    fn set_fault(&self, fault: Option<Fault>) {
        self.proxy.set_fault(fault);
    }

    fn faults_met(&self) -> u64 {
        self.proxy.faults_met()
    }
}

/// Both programs, and a client; lives on the thread in the namespace.
struct Running {
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
    client: Client,
    // Dropped in this order: the programs end before their folder is removed.
    _processes: Processes,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start(programs: &Path, listen: SocketAddr, netns: Option<OwnedFd>) -> anyhow::Result<Running> {
        if let Some(netns) = netns {
            setns(netns, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
        }
        let folder = tempfile::tempdir().context("making a folder for the API server")?;
        let address = SocketAddr::new(listen.ip(), port(listen)?);
        let etcd_url = format!("http://127.0.0.1:{}", port((Ipv4Addr::LOCALHOST, 0).into())?);
        let peer_url = format!("http://127.0.0.1:{}", port((Ipv4Addr::LOCALHOST, 0).into())?);
        let mut processes = Processes::default();
        let etcd = etcd_arguments(folder.path(), &etcd_url, &peer_url);
        processes.start(programs, "etcd", &etcd, folder.path())?;
        let api = api_arguments(folder.path(), &etcd_url, address, reachable(address.ip()))?;
        processes.start(programs, "kube-apiserver", &api, folder.path())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let server = format!("https://{}", SocketAddr::new(reachable(address.ip()), address.port()));
        let client = runtime.block_on(connect(&kubeconfig(&server, &Trust::Unverified, &user())))?;
        let running = Running { address, runtime, client, _processes: processes, _folder: folder };
        running.wait_until_ready()?;
        Ok(running)
    }

    /// It makes its certificate itself, and appends the authority's to the same file.
    fn authority(&self) -> anyhow::Result<String> {
        let file = self._folder.path().join("certificates/apiserver.crt");
        std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    fn wait_until_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let request = axum::http::Request::get("/readyz").body(Vec::new())?;
            match self.runtime.block_on(self.client.request_text(request)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    let folder = self._folder.path();
                    let words = last_words(folder, "etcd") + &last_words(folder, "kube-apiserver");
                    bail!("the API server is not ready after {}s: {error}\n{words}", START_LIMIT.as_secs());
                }
                // Nothing reports when another process begins to listen.
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn work(&self, orders: &Receiver<Order>) {
        for order in orders {
            // A test that no longer waits for the answer has failed already.
            match order {
                Order::Put(object, reply) => {
                    let _ = reply.send(self.runtime.block_on(self.put(object)));
                }
                Order::Delete(resource, namespace, name, reply) => {
                    let _ = reply.send(self.runtime.block_on(self.delete(resource, &namespace, &name)));
                }
                Order::Events(reply) => {
                    let _ = reply.send(self.runtime.block_on(self.events()));
                }
            }
        }
    }

    /// Server-side apply creates and replaces in one request; `status` needs one of its own.
    async fn put(&self, mut object: Value) -> anyhow::Result<u64> {
        let kind = object["kind"].as_str().context("an object without a kind")?;
        let resource = Resource::of_kind(kind).with_context(|| format!("unknown kind {kind:?}"))?;
        let name = object["metadata"]["name"].as_str().context("an object without a name")?.to_owned();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        if resource.is_namespaced {
            let namespaces = Resource::of_kind("Namespace").expect("in the table");
            let given = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
            self.apply(namespaces, "", &namespace, &given).await?;
        }
        let fields = object.as_object_mut().context("an object that is not a map")?;
        let status = fields.remove("status");
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"] {
                metadata.remove(field);
            }
        }
        let mut stored = self.apply(resource, &namespace, &name, &object).await?;
        if let Some(status) = status {
            let patch = Patch::Merge(json!({ "status": status }));
            let api = self.api(resource, &namespace);
            stored = api.patch_status(&name, &PatchParams::default(), &patch).await?;
        }
        let version = stored.metadata.resource_version.context("an object without a version")?;
        version.parse().with_context(|| format!("resourceVersion {version:?}"))
    }

    async fn apply(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> anyhow::Result<DynamicObject> {
        let how = PatchParams::apply("chainsmith-test").force();
        let applied = self.api(resource, namespace).patch(name, &how, &Patch::Apply(object)).await;
        applied.with_context(|| format!("applying {} {namespace}/{name}", resource.kind))
    }

    async fn delete(&self, resource: &Resource, namespace: &str, name: &str) -> anyhow::Result<bool> {
        match self.api(resource, namespace).delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("deleting {} {namespace}/{name}", resource.kind))
            }
        }
    }

    async fn events(&self) -> anyhow::Result<Vec<Value>> {
        let resource = Resource::of_kind("Event").expect("in the table");
        let list = self.api(resource, "default").list(&Default::default()).await?;
        list.items.into_iter().map(|event| Ok(serde_json::to_value(event)?)).collect()
    }

    fn api(&self, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = resource.api_version.split_once('/').unwrap_or(("", resource.api_version));
        let kind = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: resource.api_version.to_owned(),
            kind: resource.kind.to_owned(),
            plural: resource.plural.to_owned(),
        };
        if resource.is_namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind)
        } else {
            Api::all_with(self.client.clone(), &kind)
        }
    }
}

fn user() -> User {
    User::Token(TOKEN.to_owned())
}

async fn connect(kubeconfig: &str) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // Without the machine's proxy.
    config.proxy_url = None;
    Client::try_from(config).context("making a client of the API server")
}

/// The port of `address`; if it is 0, a free one.
fn port(address: SocketAddr) -> anyhow::Result<u16> {
    if address.port() != 0 {
        return Ok(address.port());
    }
    let listener =
        TcpListener::bind(address).with_context(|| format!("looking for a free port on {address}"))?;
    Ok(listener.local_addr()?.port())
}

/// `ip`, or loopback if it means all addresses.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
