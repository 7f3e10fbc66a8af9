//! Which endpoints serve which traffic of a service port from this node, and the verdict on traffic
//! that none serves.
//!
//! Source: kube-proxy v1.36, `CategorizeEndpoints`; KEPs 1669, 2086, 2433 and 3015.

mod topology;

use crate::model::{Endpoint, ServicePort, TrafficPolicy};
use topology::Topology;

pub use topology::Place;

/// The endpoints of one service port, by the traffic that they serve. Lists keep the order of the input.
#[derive(Clone, Debug, Default)]
pub struct Selection<'a> {
    /// For traffic under policy Cluster.
    pub cluster: Vec<Endpoint<'a>>,
    /// For traffic under policy Local: those on this node.
    pub local: Vec<Endpoint<'a>>,
    /// Whether any node has an endpoint that could serve: then traffic that this node cannot serve is
    /// dropped, not rejected.
    pub has_endpoints: bool,
}

impl<'a> Selection<'a> {
    /// Selects from `endpoints` (all those of `port`) for a node at `place`.
    pub fn new(port: &ServicePort<'_>, endpoints: &[Endpoint<'a>], place: Place<'_>) -> Selection<'a> {
        let mut selection = Selection::default();
        if port.uses_cluster_endpoints() {
            selection.cluster = cluster_endpoints(endpoints, place);
            selection.has_endpoints = !selection.cluster.is_empty();
        }
        if port.uses_local_endpoints() {
            let usable = |endpoint: &Endpoint<'_>| endpoint.is_ready() || endpoint.is_serving_terminating();
            selection.has_endpoints |= endpoints.iter().any(usable);
            selection.local = local_endpoints(endpoints, place);
        }
        selection
    }

    /// Every endpoint that this node may send to: the union of both lists, without duplicates.
    pub fn reachable(&self) -> Vec<Endpoint<'a>> {
        let mut all: Vec<Endpoint<'a>> = self.cluster.iter().chain(&self.local).copied().collect();
        all.sort_by_key(|endpoint| endpoint.address);
        all.dedup_by_key(|endpoint| endpoint.address);
        all
    }

    /// The verdicts of this node on packets for `port`.
    pub fn verdicts(&self, port: &ServicePort<'_>) -> Verdicts {
        let verdict = |policy| match policy {
            _ if !self.has_endpoints => Verdict::Reject,
            TrafficPolicy::Local if self.local.is_empty() => Verdict::Drop,
            _ => Verdict::Serve,
        };
        Verdicts {
            internal: verdict(port.service.internal_policy),
            external: verdict(port.service.external_policy),
        }
    }
}

/// Ready endpoints that fit the topology, else all endpoints that serve while they terminate.
fn cluster_endpoints<'a>(endpoints: &[Endpoint<'a>], place: Place<'_>) -> Vec<Endpoint<'a>> {
    let topology = Topology::of(endpoints, place);
    let ready: Vec<Endpoint<'a>> =
        endpoints.iter().filter(|endpoint| endpoint.is_ready() && topology.fits(endpoint)).copied().collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints.iter().filter(|endpoint| endpoint.is_serving_terminating()).copied().collect()
}

/// Ready endpoints of this node, else its endpoints that serve while they terminate, whatever the
/// hints.
fn local_endpoints<'a>(endpoints: &[Endpoint<'a>], place: Place<'_>) -> Vec<Endpoint<'a>> {
    let here = || endpoints.iter().filter(|endpoint| endpoint.is_on(place.node)).copied();
    let ready: Vec<Endpoint<'a>> = here().filter(Endpoint::is_ready).collect();
    if !ready.is_empty() {
        return ready;
    }
    here().filter(Endpoint::is_serving_terminating).collect()
}

/// The verdict of this node on a packet for a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to an endpoint.
    Serve,
    /// No node has an endpoint: the client gets an error at once.
    Reject,
    /// Only other nodes have endpoints: the packet is dropped, so that a load balancer tries another node.
    Drop,
}

/// The verdicts for the two kinds of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// On packets for the cluster IP.
    pub internal: Verdict,
    /// On packets for external IPs, load balancer IPs and node ports.
    pub external: Verdict,
}

impl Verdicts {
    /// Whether any node has an endpoint of the port.
    pub fn has_endpoints(&self) -> bool {
        self.internal != Verdict::Reject
    }
}

#[cfg(test)]
mod tests;
