//! A cluster in a box: nodes, pods and an outside client as network namespaces of this process,
//! joined by veth pairs, with real netfilter in each.
//!
//! ```text
//!                    fabric: bridge "wire" 192.0.2.250 (API server)
//!        +-----------------+------------------+------------------+
//!   eth0 | 192.0.2.1       | 192.0.2.11       | 192.0.2.12       | 192.0.2.200
//!      node-1            node-2             node-3            outside
//!   cbr0 10.128.0.1      10.128.1.1         10.128.2.1
//!    |      |             |
//!  web-1  web-2         web-3      pods: 10.128.<n-1>.5, .6, ... on port 8080, TCP and UDP
//! ```
//!
//! and the same in IPv6 (2001:db8::/64, fd00:10:128:<n-1>::/64). A packet that no rule redirects
//! ends in the fabric, which answers "unreachable"; so a client can tell an untouched packet
//! (`Unreachable`) from a dropped one (`TimedOut`) and a rejected one (`Refused`).
//!
//! Nothing has a name outside this process: when it dies, also by SIGKILL, nothing stays.

pub mod address;
pub mod agent;
pub mod client;
pub mod host;
pub mod http;
pub mod namespace;
pub mod netfilter;
pub mod poll;
pub mod process;
mod server;
mod spy;
mod wiring;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use self::address::FAMILIES;
use self::agent::{Agent, AgentOptions};
use self::host::{Node, Outside, POD_PORT, Pod};
use self::namespace::Namespace;
use self::netfilter::Backend;
use self::server::Server;

/// The last number of the address of a node's first pod.
const FIRST_POD: u8 = 5;

/// How pods of different nodes reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNetwork {
    /// Each node has a route to the pods of each other node.
    #[default]
    Routes,
    /// Packets between pods of different nodes travel in vxlan, as with flannel.
    Vxlan,
}

/// A plan of a lab; [`LabPlan::build`] makes it.
#[derive(Clone, Debug)]
pub struct LabPlan {
    backend: Backend,
    network: PodNetwork,
    nodes: Vec<Vec<String>>,
}

impl LabPlan {
    /// Adds the next node with pods of these names.
    pub fn node(mut self, pods: &[&str]) -> Self {
        self.nodes.push(pods.iter().map(|&pod| pod.to_owned()).collect());
        self
    }

    /// Joins the pods of different nodes by `network` instead of routes.
    pub fn pod_network(mut self, network: PodNetwork) -> Self {
        self.network = network;
        self
    }

    /// Makes the namespaces and links and starts the pods' servers.
    pub fn build(self) -> Result<Lab> {
        let n_nodes = u8::try_from(self.nodes.len()).context("too many nodes")?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let fabric = Namespace::network("fabric")?;
        let outside = Namespace::network("outside")?;
        let nodes = (1..=n_nodes)
            .map(|number| {
                let namespace = Namespace::network_and_run(&format!("node-{number}"))?;
                Ok(Node { namespace, number, backend: self.backend })
            })
            .collect::<Result<Vec<_>>>()?;

        wiring::prepare(&fabric, true)?;
        wiring::prepare(&outside, false)?;
        for node in &nodes {
            wiring::prepare(&node.namespace, true)?;
        }
        let ends: Vec<_> = nodes.iter().map(|node| &node.namespace).chain([&outside]).collect();
        let hosts: Vec<_> = ends.iter().map(|end| (end.name(), *end)).collect();
        wiring::fabric(&fabric, &hosts, n_nodes)?;
        wiring::outside(&outside, n_nodes)?;
        for node in &nodes {
            wiring::node(node, self.network, n_nodes)?;
        }
        let listen = FAMILIES.map(|family| SocketAddr::new(address::outside().of(family), POD_PORT));
        let server = Server::start(runtime.handle(), &outside, "outside", &listen)?;
        let outside = Outside { namespace: outside, _server: server };
        let folder = folder_for_files()?;
        let mut lab = Lab { pods: BTreeMap::new(), outside, nodes, fabric, folder, runtime };
        for (number, pods) in (1..).zip(&self.nodes) {
            for (host, name) in (FIRST_POD..).zip(pods) {
                lab.add_pod(number, host, name)?;
            }
        }
        Ok(lab)
    }
}

/// A folder that is removed with its value; if the process is killed, it stays below the target folder, where
/// `cargo clean` removes it.
fn folder_for_files() -> Result<TempDir> {
    let parent = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new().prefix("lab-").tempdir_in(parent).context("making a folder")
}

/// A running lab; dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    pods: BTreeMap<String, Pod>,
    outside: Outside,
    nodes: Vec<Node>,
    fabric: Namespace,
    folder: TempDir,
    runtime: Runtime,
}

impl Lab {
    /// An empty plan, for nodes with this iptables.
    pub fn plan(backend: Backend) -> LabPlan {
        LabPlan { backend, network: PodNetwork::default(), nodes: Vec::new() }
    }

    /// The nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number - 1)]
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The pod called `name`.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("no pod {name} in this lab"))
    }

    /// The pod called `name`, for changes.
    pub fn pod_mut(&mut self, name: &str) -> &mut Pod {
        self.pods.get_mut(name).unwrap_or_else(|| panic!("no pod {name} in this lab"))
    }

    /// The node that `pod` is on.
    pub fn node_of(&self, pod: &Pod) -> &Node {
        self.node(pod.node)
    }

    /// The client outside.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// The namespace of the fabric, where an API server listens on [`address::fabric`].
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// A folder that is removed with the lab.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds a serving pod to node `number` (from 1), with `host` as the last number of its address.
    pub fn add_pod(&mut self, number: u8, host: u8, name: &str) -> Result<&Pod> {
        ensure!(!self.pods.contains_key(name), "there is a pod {name} already");
        let namespace = Namespace::network(name)?;
        wiring::prepare(&namespace, false)?;
        let mut pod =
            Pod { namespace, node: number, address: address::pod(number, host), servers: Vec::new() };
        wiring::pod(self.node(number), &pod).with_context(|| format!("wiring {name}"))?;
        pod.servers.push(self.server_of(&pod, POD_PORT)?);
        Ok(self.pods.entry(name.to_owned()).or_insert(pod))
    }

    /// Makes a pod serve on another port too.
    pub fn serve_also(&mut self, name: &str, port: u16) -> Result<()> {
        let server = self.server_of(self.pod(name), port)?;
        self.pod_mut(name).servers.push(server);
        Ok(())
    }

    fn server_of(&self, pod: &Pod, port: u16) -> Result<Server> {
        let listen = FAMILIES.map(|family| SocketAddr::new(pod.address.of(family), port));
        Server::start(self.runtime.handle(), &pod.namespace, pod.name(), &listen)
    }

    /// Removes a pod with its namespace and its cable.
    pub fn remove_pod(&mut self, name: &str) {
        self.pods.remove(name);
    }

    /// Starts `chainsmith run` on `node`.
    pub fn start_chainsmith(&self, node: &Node, options: &AgentOptions) -> Result<Agent> {
        Agent::start(node, self.folder.path(), options)
    }
}
