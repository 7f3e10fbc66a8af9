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

impl Frontend {
    /// How many addresses it has.
    pub fn n_addresses(&self) -> usize {
        1 + self.external_ips.len() + self.load_balancer_ips.len()
    }
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
    /// `metadata.creationTimestamp`, in seconds since 1970; `None` when the object has none, as in a file.
    pub created: Option<i64>,
}

/// How strong a Service's claim to a frontend is that others claim too; the least wins. A cluster IP is
/// stronger than an external IP or load balancer IP, which any namespace may ask for; an older Service is
/// stronger than a younger one. Of two equal ones the first by name wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seniority {
    is_external: bool,
    is_undated: bool,
    created: i64,
}

impl Service {
    /// Its service ports in `family`, in the object's order; none when it has no cluster IP there.
    pub fn ports_in(&self, family: IpFamily) -> impl Iterator<Item = ServicePort<'_>> {
        (0..self.ports.len()).map_while(move |place| self.port_in(family, place))
    }

    /// How strong its claim to `ip` is, or to a node port when there is none.
    pub fn seniority(&self, family: IpFamily, ip: Option<IpAddr>) -> Seniority {
        let cluster_ip = self.frontends.get(family).as_ref().map(|frontend| frontend.cluster_ip);
        Seniority {
            is_external: ip.is_some() && ip != cluster_ip,
            is_undated: self.created.is_none(),
            created: self.created.unwrap_or_default(),
        }
    }

    /// The service port at `place` of its list of ports, if it has a cluster IP in `family`.
    pub fn port_in(&self, family: IpFamily, place: usize) -> Option<ServicePort<'_>> {
        let frontend = self.frontends.get(family).as_ref()?;
        Some(ServicePort { service: self, place, port: self.ports.get(place)?, frontend })
    }
}

/// One port of one Service in one family: what a fragment of the ruleset is made for.
#[derive(Clone, Copy, Debug)]
pub struct ServicePort<'a> {
    /// Its Service.
    pub service: &'a Service,
    /// Its place in `spec.ports`, from 0.
    pub place: usize,
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
