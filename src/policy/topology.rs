//! The node's place in the cluster, and the endpoints that topology hints leave for it.

use crate::model::{Endpoint, Hints};

/// The node for which endpoints are selected.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its name; empty if unknown, and then no endpoint is local.
    pub node: &'a str,
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<&'a str>,
}

/// The subset of a service port's ready endpoints that serves a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topology<'p> {
    /// Those with a hint for the node.
    SameNode(&'p str),
    /// Those with a hint for the zone.
    SameZone(&'p str),
    /// All.
    Anywhere,
}

impl<'p> Topology<'p> {
    /// Hints count only if every ready endpoint has one of the kind and at least one is for this
    /// place, so that no node is without an endpoint and no endpoint without clients.
    pub(super) fn of(endpoints: &[Endpoint<'_>], place: Place<'p>) -> Topology<'p> {
        let ready = || endpoints.iter().filter(|endpoint| endpoint.is_ready());
        let all_have = |has: fn(&Hints) -> bool| {
            ready().all(|endpoint| endpoint.source.hints.as_deref().is_some_and(has))
        };
        let same_node = Topology::SameNode(place.node);
        if !place.node.is_empty()
            && all_have(|hints| !hints.nodes.is_empty())
            && ready().any(|endpoint| same_node.fits(endpoint))
        {
            return same_node;
        }
        let Some(zone) = place.zone.filter(|zone| !zone.is_empty()) else { return Topology::Anywhere };
        let same_zone = Topology::SameZone(zone);
        if all_have(|hints| !hints.zones.is_empty()) && ready().any(|endpoint| same_zone.fits(endpoint)) {
            return same_zone;
        }
        Topology::Anywhere
    }

    /// Whether `endpoint` is in the subset.
    pub(super) fn fits(self, endpoint: &Endpoint<'_>) -> bool {
        let hints = endpoint.source.hints.as_deref();
        match self {
            Topology::Anywhere => true,
            Topology::SameNode(node) => {
                hints.is_some_and(|hints| hints.nodes.iter().any(|name| **name == *node))
            }
            Topology::SameZone(zone) => {
                hints.is_some_and(|hints| hints.zones.iter().any(|name| **name == *zone))
            }
        }
    }
}
