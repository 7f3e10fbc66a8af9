//! For each endpoint of a service port and each kind of traffic: whether it serves from this node, and if not, why.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::topology::{HintsUse, Place, Topology};
use crate::model::{Endpoint, ServicePort, TrafficPolicy};

/// What decides about the endpoints of one service port on one node. [`Selection`](super::Selection) lists those
/// that serve.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'p> {
    place: Place<'p>,
    topology: Topology<'p>,
    hints: HintsUse,
    has_ready: bool,
    has_ready_here: bool,
    uses_cluster_endpoints: bool,
    uses_local_endpoints: bool,
}

/// Whether an endpoint serves one kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum EndpointUse {
    /// It is ready, and serves.
    Ready,
    /// It serves while it terminates, because none is ready that could serve instead.
    Fallback,
    /// It does not serve.
    Unused(Unused),
}

/// Why an endpoint does not serve a kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Unused {
    /// It is neither ready nor terminating.
    NotReady,
    /// It terminates, and serves no more.
    NotServing,
    /// It terminates and still serves, but others are ready: any for policy Cluster, on this node for policy Local.
    Terminating,
    /// Hints for zones count, and it has none for this node's zone.
    OtherZone,
    /// Hints for nodes count, and it has none for this node.
    OtherNode,
    /// It is on another node, and the policy is Local.
    NotLocal,
    /// Its slice does not name its node, and the policy is Local.
    NodeUnknown,
}

impl EndpointUse {
    /// Whether it serves.
    pub fn is_used(self) -> bool {
        !matches!(self, EndpointUse::Unused(_))
    }
}

/// In a few words.
impl fmt::Display for EndpointUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointUse::Ready => f.write_str("used"),
            EndpointUse::Fallback => f.write_str("used, terminating"),
            EndpointUse::Unused(reason) => reason.fmt(f),
        }
    }
}

/// In a few words.
impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unused::NotReady => "not ready",
            Unused::NotServing => "terminating, not serving",
            Unused::Terminating => "terminating, others are ready",
            Unused::OtherZone => "hint for another zone",
            Unused::OtherNode => "hint for another node",
            Unused::NotLocal => "not on this node",
            Unused::NodeUnknown => "node unknown",
        })
    }
}

impl<'p> Choice<'p> {
    /// What decides about `endpoints` (all those of `port`) on a node at `place`.
    pub fn new(port: &ServicePort<'_>, endpoints: &[Endpoint<'_>], place: Place<'p>) -> Choice<'p> {
        let (topology, hints) = Topology::of(endpoints, place);
        let mut ready = endpoints.iter().filter(|endpoint| endpoint.is_ready()).peekable();
        Choice {
            place,
            topology,
            hints,
            has_ready: ready.peek().is_some(),
            has_ready_here: ready.any(|endpoint| endpoint.is_on(place.node)),
            uses_cluster_endpoints: port.uses_cluster_endpoints(),
            uses_local_endpoints: port.uses_local_endpoints(),
        }
    }

    /// Whether `endpoint` serves traffic under `policy`; `None` if the service port has no such traffic.
    pub fn of(&self, policy: TrafficPolicy, endpoint: &Endpoint<'_>) -> Option<EndpointUse> {
        let (has_traffic, has_ready) = match policy {
            TrafficPolicy::Cluster => (self.uses_cluster_endpoints, self.has_ready),
            TrafficPolicy::Local => (self.uses_local_endpoints, self.has_ready_here),
        };
        has_traffic.then(|| {
            let outside = match policy {
                TrafficPolicy::Cluster => self.outside_topology(endpoint),
                TrafficPolicy::Local => self.not_local(endpoint),
            };
            let conditions = endpoint.source.conditions;
            match outside {
                Some(reason) => EndpointUse::Unused(reason),
                None if endpoint.is_ready() => EndpointUse::Ready,
                None if !endpoint.is_serving_terminating() => {
                    let is_terminating = conditions.is_terminating;
                    EndpointUse::Unused(if is_terminating { Unused::NotServing } else { Unused::NotReady })
                }
                None if has_ready => EndpointUse::Unused(Unused::Terminating),
                None => EndpointUse::Fallback,
            }
        })
    }

    /// Whether hints choose among the endpoints for policy Cluster.
    pub fn hints(&self) -> HintsUse {
        self.hints
    }

    /// Why hints leave out `endpoint`; those that are not ready have no say and are left out for that.
    fn outside_topology(&self, endpoint: &Endpoint<'_>) -> Option<Unused> {
        if !endpoint.is_ready() || self.topology.fits(endpoint) {
            return None;
        }
        match self.topology {
            Topology::SameNode(_) => Some(Unused::OtherNode),
            Topology::SameZone(_) => Some(Unused::OtherZone),
            Topology::Anywhere => None,
        }
    }

    fn not_local(&self, endpoint: &Endpoint<'_>) -> Option<Unused> {
        match endpoint.source.node {
            None => Some(Unused::NodeUnknown),
            Some(_) => (!endpoint.is_on(self.place.node)).then_some(Unused::NotLocal),
        }
    }
}
