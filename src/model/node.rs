//! The fields of a Node that its rules depend on.

use std::net::IpAddr;
use std::sync::Arc;

use crate::net::{Cidr, IpFamily, PerFamily};

/// The Node for which rules are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// InternalIPs, then ExternalIPs, each in the object's order.
    pub addresses: Box<[IpAddr]>,
    /// `spec.podCIDRs`, in order.
    pub pod_cidrs: Box<[Cidr]>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Whether the Node is being deleted, or is tainted `ToBeDeletedByClusterAutoscaler`.
    pub is_leaving: bool,
}

impl Node {
    /// A Node of which only the name is known.
    pub fn unknown(name: Arc<str>) -> Node {
        Node { name, addresses: Box::default(), pod_cidrs: Box::default(), zone: None, is_leaving: false }
    }

    /// Its address in each family: the first address, and the first one of the other family.
    pub fn ips(&self) -> PerFamily<Option<IpAddr>> {
        let first = |family| self.addresses.iter().copied().find(|ip| IpFamily::of(*ip) == family);
        PerFamily { v4: first(IpFamily::V4), v6: first(IpFamily::V6) }
    }

    /// The family of its first address.
    pub fn primary_family(&self) -> Option<IpFamily> {
        self.addresses.first().map(|ip| IpFamily::of(*ip))
    }
}
