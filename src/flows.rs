//! Which UDP flows in conntrack contradict the cluster: their packets go on to the destination of the first
//! packet, whatever the rules say by now.
//!
//! Flows of other protocols end with their connection. Source: kube-proxy v1.36, `pkg/proxy/conntrack`; unlike
//! there, flows of a service port that has no endpoints or no longer exists are stale too (k/k#139628), and
//! a node port counts on the node's own addresses only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::model::{Endpoint, Seniority, ServicePort};
use crate::net::{IpFamily, Protocol};

/// A UDP flow: the destination of its first packet, before and after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The destination that the client sent to.
    pub destination: SocketAddr,
    /// The source of answers: the endpoint, or the destination itself if no rule translated it.
    pub backend: SocketAddr,
}

impl Flow {
    fn is_translated(&self) -> bool {
        self.destination != self.backend
    }
}

/// Why a flow is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StaleReason {
    /// It goes to an endpoint that no longer serves; other endpoints do.
    EndpointGone,
    /// Its service port has no endpoint that serves.
    NoEndpoints,
    /// Its service port, or the address or node port that it was sent to, no longer exists.
    FrontendGone,
    /// It began while no rules were in force, and goes to the service address itself.
    Untranslated,
}

impl StaleReason {
    /// All reasons.
    pub const ALL: [StaleReason; 4] = [
        StaleReason::EndpointGone,
        StaleReason::NoEndpoints,
        StaleReason::FrontendGone,
        StaleReason::Untranslated,
    ];

    /// As logs and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            StaleReason::EndpointGone => "endpoint-gone",
            StaleReason::NoEndpoints => "no-endpoints",
            StaleReason::FrontendGone => "frontend-gone",
            StaleReason::Untranslated => "untranslated",
        }
    }
}

/// The addresses of the node that node ports answer on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortIps {
    /// Each of them.
    pub ips: BTreeSet<IpAddr>,
    /// Whether all of 127.0.0.0/8 is among them.
    pub is_loopback_included: bool,
}

impl NodePortIps {
    fn contains(&self, ip: IpAddr) -> bool {
        self.ips.contains(&ip) || (self.is_loopback_included && ip.is_ipv4() && ip.is_loopback())
    }
}

/// UDP frontends that no longer exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RemovedFrontends {
    addresses: BTreeSet<SocketAddr>,
    node_ports: BTreeSet<u16>,
}

/// The service port that owns a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrontendOwner {
    seniority: Seniority,
    /// The place of its endpoints.
    at: usize,
}

/// The UDP frontends of one family with the endpoints that serve them, and frontends that were removed lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Each address and port, with its owner.
    addresses: BTreeMap<SocketAddr, FrontendOwner>,
    /// Each node port, with its owner.
    node_ports: BTreeMap<u16, FrontendOwner>,
    /// The serving endpoints of each service port, else those that are ready, sorted.
    backends: Vec<Box<[SocketAddr]>>,
    node_port_ips: NodePortIps,
    removed: RemovedFrontends,
}

impl Frontends {
    /// None yet; node ports answer on `node_port_ips`.
    pub fn new(node_port_ips: NodePortIps) -> Frontends {
        Frontends { node_port_ips, ..Frontends::default() }
    }

    /// Adds `port` with those of its external IPs that are served, `external_ips`, and all its `endpoints`, sorted
    /// by address. Ports of other protocols than UDP are ignored. One of several service ports with the
    /// same frontend owns it, as in the rules. Ports are added in the order of their names.
    pub fn add(&mut self, port: &ServicePort<'_>, external_ips: &[IpAddr], endpoints: &[Endpoint<'_>]) {
        if port.port.protocol != Protocol::Udp {
            return;
        }
        // An endpoint that serves counts, ready or not (kube-proxy's `serving`). Where none serves, rules lead to
        // endpoints that are ready by publishNotReadyAddresses, and their flows are right.
        let any_serves = endpoints.iter().any(|endpoint| endpoint.source.conditions.is_serving);
        let usable = endpoints.iter().filter(|endpoint| {
            let conditions = &endpoint.source.conditions;
            if any_serves { conditions.is_serving } else { conditions.is_ready }
        });
        self.backends.push(usable.map(|endpoint| endpoint.address).collect());
        let at = self.backends.len() - 1;
        let frontend = port.frontend;
        let family = IpFamily::of(frontend.cluster_ip);
        let owner = |ip| FrontendOwner { seniority: port.service.seniority(family, ip), at };
        let take_over = |current: &mut FrontendOwner, new: FrontendOwner| {
            if new.seniority < current.seniority {
                *current = new;
            }
        };
        let ips = [frontend.cluster_ip].into_iter();
        for ip in ips.chain(external_ips.iter().copied()).chain(frontend.load_balancer_ips.iter().copied()) {
            let (address, owner) = (SocketAddr::new(ip, port.port.port), owner(Some(ip)));
            self.addresses.entry(address).and_modify(|current| take_over(current, owner)).or_insert(owner);
        }
        if let Some(node_port) = port.port.node_port {
            let owner = owner(None);
            self.node_ports.entry(node_port).and_modify(|current| take_over(current, owner)).or_insert(owner);
        }
    }

    /// Carries over the frontends of the previous state, `earlier`, that no longer exist.
    pub fn carry_over(&mut self, earlier: &Frontends) {
        let addresses = earlier.addresses.keys().chain(&earlier.removed.addresses);
        let node_ports = earlier.node_ports.keys().chain(&earlier.removed.node_ports);
        self.mark_removed(addresses.copied(), node_ports.copied());
    }

    /// Records those of these frontends that do not exist, so that their flows count as stale.
    pub fn mark_removed(
        &mut self,
        addresses: impl IntoIterator<Item = SocketAddr>,
        node_ports: impl IntoIterator<Item = u16>,
    ) {
        let is_removed = |address: &SocketAddr| !self.addresses.contains_key(address);
        self.removed.addresses.extend(addresses.into_iter().filter(is_removed));
        let is_removed = |port: &u16| !self.node_ports.contains_key(port);
        self.removed.node_ports.extend(node_ports.into_iter().filter(is_removed));
    }

    /// Drops removed frontends, as no flow to them is left, and endpoints, which the next state does not need.
    pub fn drop_removed(&mut self) {
        self.removed = RemovedFrontends::default();
        self.backends = Vec::new();
    }

    /// Whether no flow can be stale.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.node_ports.is_empty() && self.removed == RemovedFrontends::default()
    }

    /// Why `flow` is stale; `None` when it is not, or does not belong to a Service. Not to be called after
    /// [`Frontends::drop_removed`].
    pub fn stale_reason(&self, flow: &Flow) -> Option<StaleReason> {
        let (destination, port) = (flow.destination, flow.destination.port());
        if let Some(owner) = self.addresses.get(&destination) {
            return self.stale_backend_reason(owner.at, flow);
        }
        let is_on_node = self.node_port_ips.contains(destination.ip());
        if let Some(owner) = self.node_ports.get(&port).filter(|_| is_on_node) {
            return self.stale_backend_reason(owner.at, flow);
        }
        let is_removed = self.removed.addresses.contains(&destination)
            || (is_on_node && self.removed.node_ports.contains(&port));
        (is_removed && flow.is_translated()).then_some(StaleReason::FrontendGone)
    }

    fn stale_backend_reason(&self, at: usize, flow: &Flow) -> Option<StaleReason> {
        let backends = self.backends.get(at)?;
        if backends.binary_search(&flow.backend).is_ok() {
            return None;
        }
        Some(if !flow.is_translated() {
            StaleReason::Untranslated
        } else if backends.is_empty() {
            StaleReason::NoEndpoints
        } else {
            StaleReason::EndpointGone
        })
    }
}

#[cfg(test)]
mod tests;
