//! A proxied Service, and its service ports in one family.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ServiceName, ServicePortName};
use crate::net::{Cidr, IpFamily, PerFamily, Protocol};

/// Whether traffic may go to all endpoints or only to those on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints on the node where the packet is.
    Local,
}

/// The addresses of a Service in one family; lists keep the object's order and duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The cluster IP.
    pub cluster_ip: IpAddr,
    /// `spec.externalIPs` of this family.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` of this family with ipMode VIP.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges` of this family; empty when all sources are allowed.
    pub source_ranges: Box<[Cidr]>,
}

impl Frontend {
    /// Number of addresses.
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
    /// Port of the cluster IP, external IPs and load balancer IPs; not 0.
    pub port: u16,
    /// The node port, used whatever the Service's type.
    pub node_port: Option<u16>,
}

/// A proxied Service: it has a cluster IP, and is neither headless, nor ExternalName, nor assigned to
/// another proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its addresses; `None` in a family without a cluster IP.
    pub frontends: PerFamily<Option<Frontend>>,
    /// Its ports, unique by name and protocol.
    pub ports: Box<[Port]>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`; Local only for a Service that its type makes reachable from outside
    /// (kube-proxy's `ExternalPolicyLocal`).
    pub external_policy: TrafficPolicy,
    /// Duration of ClientIP affinity in seconds; `None` without affinity.
    pub affinity_seconds: Option<u32>,
    /// `spec.healthCheckNodePort` of a load balancer with external policy Local.
    pub health_check_node_port: Option<u16>,
    /// `metadata.creationTimestamp`, in seconds since 1970; `None` when absent, as in a file.
    pub created: Option<i64>,
}

/// Why kube-proxy does not serve a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum NotProxied {
    /// `spec.clusterIP: None`: DNS answers with the addresses of the endpoints.
    Headless,
    /// `spec.type: ExternalName`: DNS answers with another name.
    ExternalName,
    /// The label `service.kubernetes.io/service-proxy-name` leaves it to another program.
    OtherProxy,
    /// It has no cluster IP yet.
    NoClusterIp,
}

/// In a sentence with the Service as its subject.
impl fmt::Display for NotProxied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotProxied::Headless => {
                "is headless (clusterIP: None): DNS answers with the addresses of its endpoints"
            }
            NotProxied::ExternalName => "is of type ExternalName: DNS answers with another name",
            NotProxied::OtherProxy => {
                "has the label service.kubernetes.io/service-proxy-name: another program serves it"
            }
            NotProxied::NoClusterIp => "has no cluster IP yet",
        })
    }
}

/// The priority of a Service's claim to a frontend that several Services claim; the least value wins. A
/// cluster IP wins over an external IP or load balancer IP, which any namespace may set. An older Service
/// wins over a younger one; callers decide equal claims by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seniority {
    is_external: bool,
    is_undated: bool,
    created: i64,
}

impl Service {
    /// Its service ports in `family`, in the object's order; empty without a cluster IP there.
    pub fn ports_in(&self, family: IpFamily) -> impl Iterator<Item = ServicePort<'_>> {
        (0..self.ports.len()).map_while(move |place| self.port_in(family, place))
    }

    /// The priority of its claim to `ip`, or to a node port for `None`.
    pub fn seniority(&self, family: IpFamily, ip: Option<IpAddr>) -> Seniority {
        let cluster_ip = self.frontends.get(family).as_ref().map(|frontend| frontend.cluster_ip);
        Seniority {
            is_external: ip.is_some() && ip != cluster_ip,
            is_undated: self.created.is_none(),
            created: self.created.unwrap_or_default(),
        }
    }

    /// The service port at index `place` of `spec.ports`, if the Service has a cluster IP in `family`.
    pub fn port_in(&self, family: IpFamily, place: usize) -> Option<ServicePort<'_>> {
        let frontend = self.frontends.get(family).as_ref()?;
        Some(ServicePort { service: self, place, port: self.ports.get(place)?, frontend })
    }
}

/// One port of one Service in one family: the unit that rules are compiled for.
#[derive(Clone, Copy, Debug)]
pub struct ServicePort<'a> {
    /// Its Service.
    pub service: &'a Service,
    /// Its index in `spec.ports`, from 0.
    pub place: usize,
    /// Its entry of `spec.ports`.
    pub port: &'a Port,
    /// Its addresses.
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

    /// Whether it has a node port, load balancer IPs or external IPs.
    pub fn is_externally_accessible(&self) -> bool {
        self.port.node_port.is_some()
            || !self.frontend.load_balancer_ips.is_empty()
            || !self.frontend.external_ips.is_empty()
    }

    /// Whether some traffic may go to endpoints on any node. True for every externally accessible port:
    /// pods and the node itself use all endpoints even under policy Local.
    pub fn uses_cluster_endpoints(&self) -> bool {
        self.service.internal_policy == TrafficPolicy::Cluster || self.is_externally_accessible()
    }

    /// Whether some traffic may only go to endpoints on this node.
    pub fn uses_local_endpoints(&self) -> bool {
        self.service.internal_policy == TrafficPolicy::Local
            || (self.service.external_policy == TrafficPolicy::Local && self.is_externally_accessible())
    }
}
