//! The `ip` commands and sysctls that turn namespaces into machines of one network.
//!
//! All traffic of pods is routed by their node, none is bridged past it: a pod's address is a /32
//! (/128) and everything else, also its own subnet, goes through the gateway. So NAT sees both directions of a
//! flow with and without `br_netfilter`. Hairpin is on at each port as CNI's bridge plug-in sets it.

use std::fmt::Write;

use anyhow::Result;

use super::PodNetwork;
use super::address::{self, DualStack, FAMILIES, Family};
use super::host::{Node, Pod};
use super::namespace::Namespace;

/// The VNI and port of flannel's vxlan.
const VXLAN: &str = "id 1 dstport 8472 nolearning";

/// Sysctls of every namespace of a lab, which not every kernel has: no kernel
/// rate limits on ICMP errors, no redirects, no filtering of bridged packets.
const EVERYWHERE: [(&str, &str); 14] = [
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
];

/// Makes `namespace` a host, or with `forwards` a router. Before any link is made: an
/// interface takes its settings (such as no duplicate address detection) when it appears.
pub(super) fn prepare(namespace: &Namespace, forwards: bool) -> Result<()> {
    if forwards {
        // First, because this resets other keys.
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    namespace.sysctls_if_present(&EVERYWHERE)
}

/// The fabric: a bridge, an address for the API server, the ends of `hosts`' links
/// (their names with their namespaces), and an ICMP "unreachable" for everything that ends up here.
pub(super) fn fabric(fabric: &Namespace, hosts: &[(&str, &Namespace)], n_nodes: u8) -> Result<()> {
    let mut lines = String::from("link set lo up\n");
    bridge(&mut lines, "wire", "02:00:00:00:ff:01", address::fabric());
    for (name, namespace) in hosts {
        cable(&mut lines, name, namespace, "wire");
    }
    for range in address::SERVICE_CIDRS.iter().chain(&address::EXTERNAL_CIDRS).chain(&["0.0.0.0/0", "::/0"]) {
        writeln!(lines, "route add unreachable {range}")?;
    }
    routes_to_pods(&mut lines, 1..=n_nodes);
    fabric.ip(&lines)
}

/// The client outside: a neighbour of the nodes, without pods.
pub(super) fn outside(outside: &Namespace, n_nodes: u8) -> Result<()> {
    let mut lines = on_the_wire(address::outside());
    routes_to_pods(&mut lines, 1..=n_nodes);
    outside.ip(&lines)
}

/// A node: its link to the fabric, a bridge for its pods, and routes to the pods of the other nodes.
pub(super) fn node(node: &Node, network: PodNetwork, n_nodes: u8) -> Result<()> {
    let mut lines = on_the_wire(node.address());
    let others = (1..=n_nodes).filter(|other| *other != node.number);
    bridge(&mut lines, "cbr0", &mac(0xcb, node.number), node.bridge_address());
    match network {
        PodNetwork::Routes => routes_to_pods(&mut lines, others),
        PodNetwork::Vxlan => vxlan(&mut lines, node.number, others)?,
    }
    node.namespace.ip(&lines)?;
    match network {
        PodNetwork::Routes => Ok(()),
        PodNetwork::Vxlan => forwarding_database(node, n_nodes),
    }
}

/// A pod and its link to the node's bridge.
pub(super) fn pod(node: &Node, pod: &Pod) -> Result<()> {
    let port = format!("veth{}", pod.address.v4.octets()[3]);
    let mut lines = String::new();
    cable(&mut lines, &port, &pod.namespace, "cbr0");
    writeln!(lines, "link set {port} type bridge_slave hairpin on")?;
    node.namespace.ip(&lines)?;

    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    for family in FAMILIES {
        let (own, gateway) = (pod.address.of(family), node.bridge_address().of(family));
        writeln!(lines, "address add {own} dev eth0{}", without_dad(family))?;
        writeln!(lines, "route add {gateway} dev eth0")?;
        writeln!(lines, "route add {} via {gateway}", everything(family))?;
    }
    pod.namespace.ip(&lines)
}

/// A bridge that forwards at once, with a hardware address that stays the same whatever joins it.
fn bridge(lines: &mut String, name: &str, mac: &str, address: DualStack) {
    let length = |family| if family == Family::V4 { 24 } else { 64 };
    *lines += &format!("link add {name} address {mac} type bridge stp_state 0 mcast_snooping 0\n");
    for family in FAMILIES {
        let (own, length) = (address.of(family), length(family));
        *lines += &format!("address add {own}/{length} dev {name}{}\n", without_dad(family));
    }
    *lines += &format!("link set {name} up\n");
}

/// A veth pair: `port` on `bridge` here, `eth0` in the other namespace.
fn cable(lines: &mut String, port: &str, far_end: &Namespace, bridge: &str) {
    *lines += &format!("link add {port} type veth peer name eth0 netns {}\n", far_end.path());
    *lines += &format!("link set {port} master {bridge} up\n");
}

/// Loopback, `eth0` with `address`, and a default route to the fabric.
fn on_the_wire(address: DualStack) -> String {
    let DualStack { v4, v6 } = address;
    let gateway = address::fabric();
    format!(
        "link set lo up\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n\
         link set eth0 up\nroute add 0.0.0.0/0 via {}\nroute add ::/0 via {}\n",
        gateway.v4, gateway.v6
    )
}

fn routes_to_pods(lines: &mut String, nodes: impl Iterator<Item = u8>) {
    for number in nodes {
        for (cidr, family) in address::pod_cidrs(number).iter().zip(FAMILIES) {
            *lines += &format!("route add {cidr} via {}\n", address::node(number).of(family));
        }
    }
}

/// A vxlan device as flannel makes it: one neighbour and one route per other node.
fn vxlan(lines: &mut String, number: u8, others: impl Iterator<Item = u8>) -> Result<()> {
    let (own, wire) = (address::overlay(number), address::node(number));
    writeln!(lines, "link add vxlan.1 address {} type vxlan {VXLAN} local {}", mac(0xf1, number), wire.v4)?;
    writeln!(lines, "address add {}/32 dev vxlan.1", own.v4)?;
    writeln!(lines, "address add {}/128 dev vxlan.1 nodad", own.v6)?;
    writeln!(lines, "link set vxlan.1 up")?;
    for other in others {
        for (cidr, family) in address::pod_cidrs(other).iter().zip(FAMILIES) {
            let far = address::overlay(other).of(family);
            writeln!(lines, "neighbour add {far} lladdr {} dev vxlan.1 nud permanent", mac(0xf1, other))?;
            writeln!(lines, "route add {cidr} via {far} dev vxlan.1 onlink")?;
        }
    }
    Ok(())
}

/// Sets on which machine each other vxlan device is.
fn forwarding_database(node: &Node, n_nodes: u8) -> Result<()> {
    let mut lines = String::new();
    for other in (1..=n_nodes).filter(|other| *other != node.number) {
        writeln!(lines, "fdb append {} dev vxlan.1 dst {}", mac(0xf1, other), address::node(other).v4)?;
    }
    node.namespace.command("bridge", &["-batch", "-"], &lines).map(drop)
}

/// A hardware address that shows its kind (`kind`) and its node.
fn mac(kind: u8, number: u8) -> String {
    format!("02:00:00:00:{kind:02x}:{number:02x}")
}

fn everything(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    }
}

/// IPv6 addresses are usable at once, without a search for duplicates.
fn without_dad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}
