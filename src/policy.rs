//! Which endpoints serve which traffic of a service port from this node, and the verdict on traffic
//! that none serves.
//!
//! Source: kube-proxy v1.36, `CategorizeEndpoints`; KEPs 1669, 2086, 2433 and 3015.

mod choice;
mod service_slices;
mod topology;

use crate::model::{Endpoint, ServicePort, TrafficPolicy};

pub use choice::{Choice, EndpointUse, Unused};
pub use service_slices::{
    EndpointCandidate, PortCandidates, ServiceSlices, SliceOfOtherFamily, Superseded, UnmatchedPort,
};
pub use topology::{HintsIgnored, HintsState, HintsUse, Place};

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
        let choice = Choice::new(port, endpoints, place);
        let serving = |policy| {
            let is_used =
                |endpoint: &&Endpoint<'a>| choice.of(policy, endpoint).is_some_and(EndpointUse::is_used);
            endpoints.iter().filter(is_used).copied().collect()
        };
        let (cluster, local): (Vec<_>, _) = (serving(TrafficPolicy::Cluster), serving(TrafficPolicy::Local));
        let usable = |endpoint: &Endpoint<'_>| endpoint.is_ready() || endpoint.is_serving_terminating();
        let has_endpoints =
            !cluster.is_empty() || port.uses_local_endpoints() && endpoints.iter().any(usable);
        Selection { cluster, local, has_endpoints }
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
