//! The machines of a lab: nodes, pods, and the client outside.

use std::net::SocketAddr;

use anyhow::Result;

use super::address::{self, DualStack, FAMILIES};
use super::client::Host;
use super::namespace::Namespace;
use super::netfilter::{Backend, Netfilter};
use super::server::Server;

/// The port that pods listen on, TCP and UDP.
pub const POD_PORT: u16 = 8080;

/// A simulated machine of the cluster: its own network, `/run` and netfilter.
#[derive(Debug)]
pub struct Node {
    pub(super) namespace: Namespace,
    pub(super) number: u8,
    pub(super) backend: Backend,
}

impl Node {
    /// `node-<number>`.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Counted from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its addresses in the fabric.
    pub fn address(&self) -> DualStack {
        address::node(self.number)
    }

    /// The addresses of its bridge, the gateway of its pods.
    pub fn bridge_address(&self) -> DualStack {
        address::pod(self.number, 1)
    }

    /// Whether `source` is an address of this node itself, on any of its interfaces.
    pub fn owns(&self, source: SocketAddr) -> bool {
        let overlay = address::overlay(self.number);
        [self.address(), self.bridge_address(), overlay].iter().any(|own| own.contains(source.ip()))
    }

    /// The iptables implementation of this node.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Its tables and flows.
    pub fn netfilter(&self) -> Netfilter<'_> {
        Netfilter { namespace: &self.namespace, backend: self.backend }
    }
}

impl Host for Node {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// A pod: a namespace on a node's bridge with servers in it.
#[derive(Debug)]
pub struct Pod {
    pub(super) namespace: Namespace,
    pub(super) node: u8,
    pub(super) address: DualStack,
    pub(super) servers: Vec<Server>,
}

impl Pod {
    /// Its name, which its answers contain.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// The number of the node it is on (from 1).
    pub fn node(&self) -> u8 {
        self.node
    }

    /// Its addresses.
    pub fn address(&self) -> DualStack {
        self.address
    }

    /// Closes its servers and their connections; the pod itself remains.
    pub fn stop_serving(&mut self) {
        self.servers.clear();
    }
}

impl Host for Pod {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// The client outside the cluster, in the fabric like the nodes; it answers as `outside`.
#[derive(Debug)]
pub struct Outside {
    pub(super) namespace: Namespace,
    pub(super) _server: Server,
}

impl Outside {
    /// Its addresses.
    pub fn address(&self) -> DualStack {
        address::outside()
    }

    /// Routes all cluster IPs, load balancer addresses and external IPs to `node` from now
    /// on, like a router or a load balancer.
    pub fn enter_by(&self, node: &Node) -> Result<()> {
        let mut lines = String::new();
        let ranges = [address::SERVICE_CIDRS, address::EXTERNAL_CIDRS].concat();
        for range in ranges {
            let family = FAMILIES[usize::from(range.contains(':'))];
            lines += &format!("route replace {range} via {}\n", node.address().of(family));
        }
        self.namespace.ip(&lines)
    }
}

impl Host for Outside {
    fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}
