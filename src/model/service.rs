//! A Service as a node sees it, and its service ports in one family.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ServiceName, ServicePortName};
use crate::net::{Cidr, IpFamily, PerFamily, Protocol};

/// Whether traffic may go to endpoints on every node or to those of this node only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Those of the node that the packet is on.
    Local,
}

/// What a Service answers on in one family; lists are in the object's order, duplicates kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The cluster IP.
    pub cluster_ip: IpAddr,
    /// `spec.externalIPs` of this family.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` of this family with ipMode VIP.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges` of this family; empty when everybody may.
    pub source_ranges: Box<[Cidr]>,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, often empty.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port of cluster IP, external IPs and load balancer IPs; not 0.
    pub port: u16,
    /// The node port, taken whatever the type is.
    pub node_port: Option<u16>,
}

/// A Service that is proxied: one with a cluster IP, not headless, not ExternalName, not left to
/// another proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// What it answers on; `None` in a family in which it has no cluster IP.
    pub frontends: PerFamily<Option<Frontend>>,
    /// Its ports; no two have the same name and protocol.
    pub ports: Box<[Port]>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, Local only for a Service that is reachable from outside by
    /// its type (kube-proxy's `ExternalPolicyLocal`).
    pub external_policy: TrafficPolicy,
    /// How long a client stays with its endpoint, in seconds; `None` without ClientIP affinity.
    pub affinity_seconds: Option<u32>,
    /// `spec.healthCheckNodePort` of a load balancer with external policy Local.
    pub health_check_node_port: Option<u16>,
}

impl Service {
    /// Its service ports in `family`, in the object's order; none when it has no cluster IP there.
    pub fn ports_in(&self, family: IpFamily) -> impl Iterator<Item = ServicePort<'_>> {
        let frontend = self.frontends.get(family).as_ref();
        frontend.into_iter().flat_map(move |frontend| {
            self.ports.iter().map(move |port| ServicePort { service: self, port, frontend })
        })
    }
}

/// One port of one Service in one family: what a fragment of the ruleset is made for.
#[derive(Clone, Copy, Debug)]
pub struct ServicePort<'a> {
    /// Its Service.
    pub service: &'a Service,
    /// Its entry of `spec.ports`.
    pub port: &'a Port,
    /// What it answers on.
    pub frontend: &'a Frontend,
}

impl ServicePort<'_> {
    /// Its identity.
    pub fn name(&self) -> ServicePortName {
        ServicePortName {
            service: self.service.name.clone(),
            port: self.port.name.clone(),
            protocol: self.port.protocol,
        }
    }

    /// Whether anything but the cluster IP leads to it.
    pub fn is_externally_accessible(&self) -> bool {
        self.port.node_port.is_some()
            || !self.frontend.load_balancer_ips.is_empty()
            || !self.frontend.external_ips.is_empty()
    }

    /// Whether some traffic may go to endpoints on any node. True of every externally accessible
    /// port: pods and the node itself are sent to all endpoints even under policy Local.
    pub fn uses_cluster_endpoints(&self) -> bool {
        self.service.internal_policy == TrafficPolicy::Cluster || self.is_externally_accessible()
    }

    /// Whether some traffic may only go to endpoints of this node.
    pub fn uses_local_endpoints(&self) -> bool {
        self.service.internal_policy == TrafficPolicy::Local
            || (self.service.external_policy == TrafficPolicy::Local && self.is_externally_accessible())
    }
}
