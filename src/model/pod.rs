//! The fields of a Pod that a question about it needs. No rule depends on Pods: only a name in a question does.

use std::net::IpAddr;
use std::sync::Arc;

use super::ObjectName;

/// A Pod as a sender of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `<namespace>/<name>`.
    pub name: ObjectName,
    /// `spec.nodeName`; `None` while it is not scheduled.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`, in order, at most one of each family; empty before it has one and after its end.
    pub ips: Box<[IpAddr]>,
    /// Whether it uses the network of its node: its packets are those of the node.
    pub is_host_network: bool,
}
