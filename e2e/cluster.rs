//! The cluster of the traffic tests: its pods, its Services, and their addresses.
//!
//! `cluster.yaml` holds the same as API objects; each change must be made in both.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};

use crate::lab::address::{Family, pod_cidrs};
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::{Lab, LabPlan};

/// The objects of the cluster: two nodes, and the Services below with their slices.
pub const OBJECTS: &str = include_str!("cluster.yaml");

/// Pods that serve [`WEB`]: the first two on node-1, the third on node-2.
pub const WEB_PODS: [&str; 3] = ["web-1", "web-2", "web-3"];

/// Pods that serve [`LOCAL`], both on node-1.
pub const LOCAL_PODS: [&str; 2] = ["web-1", "web-2"];

/// Pods of no Service: one on node-1, one on node-2.
pub const CLIENTS: [&str; 2] = ["client-1", "client-2"];

/// The Service `web`: load balancer, external IP, node port, traffic policies `Cluster`.
pub const WEB: Service = Service { name: "web", host: 10 };

/// The Service `local`: like `web`, externalTrafficPolicy `Local`, with pods on node-1 only.
pub const LOCAL: Service = Service { name: "local", host: 11 };

/// The Service `empty`: like `web`, without endpoints.
pub const EMPTY: Service = Service { name: "empty", host: 12 };

/// The Service `own`: like `web`, with web-1 as its only endpoint.
pub const OWN: Service = Service { name: "own", host: 13 };

/// A plan of the lab for this cluster.
pub fn plan(backend: Backend) -> LabPlan {
    Lab::plan(backend).node(&["web-1", "web-2", "client-1"]).node(&["web-3", "client-2"])
}

/// The lab for this cluster, without rules.
pub fn build(backend: Backend) -> Result<Lab> {
    plan(backend).build()
}

/// A Service of type LoadBalancer in the namespace `default`. All of its addresses accept TCP and
/// UDP on port 80; node ports have their own numbers.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// The last number of its addresses.
    pub host: u8,
}

impl Service {
    /// Its cluster IP: 10.96.0.x or fd00:10:96::x.
    pub fn cluster_ip(self, family: Family) -> SocketAddr {
        self.at(family, [10, 96, 0], "fd00:10:96")
    }

    /// Its load balancer's address: 203.0.113.x or 2001:db8:113::x.
    pub fn load_balancer(self, family: Family) -> SocketAddr {
        self.at(family, [203, 0, 113], "2001:db8:113")
    }

    /// Its external IP: 203.0.113.1xx or 2001:db8:113::1xx.
    pub fn external_ip(self, family: Family) -> SocketAddr {
        Self { host: self.host + 100, ..self }.load_balancer(family)
    }

    /// Its node port number: 300xx.
    pub fn node_port_number(self) -> u16 {
        30000 + u16::from(self.host)
    }

    /// Its node port at `node`'s address on the fabric.
    pub fn node_port(self, node: &Node, family: Family) -> SocketAddr {
        SocketAddr::new(node.address().of(family), self.node_port_number())
    }

    fn at(self, family: Family, [a, b, c]: [u8; 3], prefix: &str) -> SocketAddr {
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, self.host)),
            Family::V6 => {
                format!("{prefix}::{}", self.host).parse().expect("decimal digits are hexadecimal digits")
            }
        };
        SocketAddr::new(address, 80)
    }
}

/// The IPv4 slice of the Service `own` with these addresses.
pub fn own_slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| {
            let node = if address.starts_with("10.128.0.") { "node-1" } else { "node-2" };
            let conditions = json!({"ready": true, "serving": true, "terminating": false});
            json!({"addresses": [address], "conditions": conditions, "nodeName": node})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "own-v4",
            "namespace": "default",
            "labels": {
                "kubernetes.io/service-name": "own",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 8080},
            {"name": "echo", "protocol": "UDP", "port": 8080},
        ],
        "endpoints": endpoints,
    })
}

/// The Node object of a node that is not in `cluster.yaml`.
pub fn node_object(node: &Node) -> Value {
    let (name, address, pod_cidrs) = (node.name(), node.address(), pod_cidrs(node.number()));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs},
        "status": {"addresses": [
            {"type": "InternalIP", "address": address.v4},
            {"type": "InternalIP", "address": address.v6},
            {"type": "Hostname", "address": name},
        ]},
    })
}
