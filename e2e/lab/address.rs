//! The address plan of a lab: the addresses of each machine in each family.
//!
//! It is the plan of the recorded cases (`node-1` is 192.0.2.1, its pods 10.128.0.0/24), so that
//! their objects work in a lab unchanged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One of the two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families, IPv4 first.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The pod networks of all nodes together, in the form of `--cluster-cidr`.
pub const CLUSTER_CIDR: &str = "10.128.0.0/14,fd00:10:128::/48";

/// The ranges of cluster IPs; no machine has an address in them.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/108"];

/// Ranges of load balancer addresses and external IPs; no machine has an address in them.
pub const EXTERNAL_CIDRS: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualStack {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl DualStack {
    /// The address of `family`.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Whether `address` is one of the two.
    pub fn contains(self, address: IpAddr) -> bool {
        self.v4 == address || self.v6 == address
    }
}

/// Host `n` in the fabric: 192.0.2.n and 2001:db8::n (n in hexadecimal of the same digits).
pub fn on_the_wire(host: u8) -> DualStack {
    let v6 = format!("2001:db8::{host}").parse().expect("decimal digits are hexadecimal digits");
    DualStack { v4: Ipv4Addr::new(192, 0, 2, host), v6 }
}

/// The address of the fabric itself, where the API server listens.
pub fn fabric() -> DualStack {
    on_the_wire(250)
}

/// The address of the client outside the cluster.
pub fn outside() -> DualStack {
    on_the_wire(200)
}

/// The address of node `number` (from 1): .1, then .11, .12, ...
pub fn node(number: u8) -> DualStack {
    on_the_wire(if number == 1 { 1 } else { number + 9 })
}

/// The address `host` in the pod network of node `number` (from 1); 1 is the node's bridge.
pub fn pod(number: u8, host: u8) -> DualStack {
    let v6 = format!("fd00:10:128:{}::{host}", number - 1).parse();
    DualStack {
        v4: Ipv4Addr::new(10, 128, number - 1, host),
        v6: v6.expect("decimal digits are hexadecimal digits"),
    }
}

/// The addresses of node `number` (from 1) on its vxlan device: the first of its pod network.
pub fn overlay(number: u8) -> DualStack {
    pod(number, 0)
}

/// The pod networks of node `number` (from 1), IPv4 first.
pub fn pod_cidrs(number: u8) -> [String; 2] {
    let DualStack { v4, v6 } = pod(number, 0);
    [format!("{v4}/24"), format!("{v6}/64")]
}
