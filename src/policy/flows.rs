//! Which UDP flows that conntrack remembers contradict the cluster: their packets would go on to where
//! the first one went, whatever the rules say by now.
//!
//! Flows of other protocols end by themselves, or answer for themselves. Source: kube-proxy v1.36,
//! `pkg/proxy/conntrack`; unlike there, flows of a service port without endpoints, or that is gone,
//! are stale too (k/k#139628), and a node port is one on the node's own addresses only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::model::{Endpoint, Seniority, ServicePort};
use crate::net::{IpFamily, Protocol};

/// A UDP flow: where its first packet was sent to, and where it was taken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The destination as the client wrote it.
    pub destination: SocketAddr,
    /// Where answers come from: the endpoint, or the destination itself if nobody translated it.
    pub backend: SocketAddr,
}

impl Flow {
    fn is_translated(&self) -> bool {
        self.destination != self.backend
    }
}

/// Why a flow is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stale {
    /// It goes to an endpoint that does not serve any more; others do.
    EndpointGone,
    /// Nobody serves its service port any more.
    NoEndpoints,
    /// Its service port, or the address or node port it was sent to, is gone.
    FrontendGone,
    /// It began while there were no rules, and goes to the service address itself.
    Untranslated,
}

impl Stale {
    /// All reasons.
    pub const ALL: [Stale; 4] =
        [Stale::EndpointGone, Stale::NoEndpoints, Stale::FrontendGone, Stale::Untranslated];

    /// As logs and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Stale::EndpointGone => "endpoint-gone",
            Stale::NoEndpoints => "no-endpoints",
            Stale::FrontendGone => "frontend-gone",
            Stale::Untranslated => "untranslated",
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

/// What a UDP service port answers on: an address and port, or a node port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Doors {
    addresses: BTreeSet<SocketAddr>,
    node_ports: BTreeSet<u16>,
}

/// The service port that has a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    seniority: Seniority,
    /// The place of its endpoints.
    at: usize,
}

/// The UDP service ports of one family with the endpoints that serve them, and what lately was one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Each address and port, with whose it is.
    addresses: BTreeMap<SocketAddr, Owner>,
    /// Likewise each node port.
    node_ports: BTreeMap<u16, Owner>,
    /// The serving endpoints of each service port, else those that are ready, sorted.
    backends: Vec<Box<[SocketAddr]>>,
    node_port_ips: NodePortIps,
    former: Doors,
}

impl Frontends {
    /// None yet; node ports answer on `node_port_ips`.
    pub fn new(node_port_ips: NodePortIps) -> Frontends {
        Frontends { node_port_ips, ..Frontends::default() }
    }

    /// Adds `port` with its `external_ips` (those that are served) and `endpoints` (all of them,
    /// sorted by address). Other protocols than UDP are left out. Of several service ports with one
    /// frontend one owns it, as in the rules. They are added in the order of their names.
    pub fn add(&mut self, port: &ServicePort<'_>, external_ips: &[IpAddr], endpoints: &[Endpoint<'_>]) {
        if port.port.protocol != Protocol::Udp {
            return;
        }
        // Not ready but serving is as good, ready but not serving is not (kube-proxy's `serving` only). Where
        // none serves, rules lead to those that publishNotReadyAddresses has ready, and their flows live.
        let any_serves = endpoints.iter().any(|endpoint| endpoint.source.conditions.is_serving);
        let usable = endpoints.iter().filter(|endpoint| {
            let conditions = &endpoint.source.conditions;
            if any_serves { conditions.is_serving } else { conditions.is_ready }
        });
        self.backends.push(usable.map(|endpoint| endpoint.address).collect());
        let at = self.backends.len() - 1;
        let frontend = port.frontend;
        let family = IpFamily::of(frontend.cluster_ip);
        let owner = |ip| Owner { seniority: port.service.seniority(family, ip), at };
        let take_over = |held: &mut Owner, new: Owner| {
            if new.seniority < held.seniority {
                *held = new;
            }
        };
        let ips = [frontend.cluster_ip].into_iter();
        for ip in ips.chain(external_ips.iter().copied()).chain(frontend.load_balancer_ips.iter().copied()) {
            let (address, owner) = (SocketAddr::new(ip, port.port.port), owner(Some(ip)));
            self.addresses.entry(address).and_modify(|held| take_over(held, owner)).or_insert(owner);
        }
        if let Some(node_port) = port.port.node_port {
            let owner = owner(None);
            self.node_ports.entry(node_port).and_modify(|held| take_over(held, owner)).or_insert(owner);
        }
    }

    /// Takes over from `earlier`: what it had and is gone now is remembered as such.
    pub fn succeed(&mut self, earlier: &Frontends) {
        let addresses = earlier.addresses.keys().chain(&earlier.former.addresses);
        let node_ports = earlier.node_ports.keys().chain(&earlier.former.node_ports);
        self.were(addresses.copied(), node_ports.copied());
    }

    /// Takes each of these that is none any more for one that lately was.
    pub fn were(
        &mut self,
        addresses: impl IntoIterator<Item = SocketAddr>,
        node_ports: impl IntoIterator<Item = u16>,
    ) {
        let is_former = |address: &SocketAddr| !self.addresses.contains_key(address);
        self.former.addresses.extend(addresses.into_iter().filter(is_former));
        let is_former = |port: &u16| !self.node_ports.contains_key(port);
        self.former.node_ports.extend(node_ports.into_iter().filter(is_former));
    }

    /// Forgets what was one: no flow to it is left. Forgets endpoints too, which the next to succeed
    /// has no use for.
    pub fn settle(&mut self) {
        self.former = Doors::default();
        self.backends = Vec::new();
    }

    /// Whether no flow can be stale.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.node_ports.is_empty() && self.former == Doors::default()
    }

    /// Why `flow` is stale; `None` when it is not, or is none of ours. Not to be asked once it is
    /// settled.
    pub fn judge(&self, flow: &Flow) -> Option<Stale> {
        let (destination, port) = (flow.destination, flow.destination.port());
        if let Some(owner) = self.addresses.get(&destination) {
            return self.judge_backend(owner.at, flow);
        }
        let is_on_node = self.node_port_ips.contains(destination.ip());
        if let Some(owner) = self.node_ports.get(&port).filter(|_| is_on_node) {
            return self.judge_backend(owner.at, flow);
        }
        let is_former = self.former.addresses.contains(&destination)
            || (is_on_node && self.former.node_ports.contains(&port));
        (is_former && flow.is_translated()).then_some(Stale::FrontendGone)
    }

    fn judge_backend(&self, at: usize, flow: &Flow) -> Option<Stale> {
        let backends = self.backends.get(at)?;
        if backends.binary_search(&flow.backend).is_ok() {
            return None;
        }
        Some(if !flow.is_translated() {
            Stale::Untranslated
        } else if backends.is_empty() {
            Stale::NoEndpoints
        } else {
            Stale::EndpointGone
        })
    }
}

#[cfg(test)]
mod tests;
