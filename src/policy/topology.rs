//! The node's place in the cluster, and the endpoints that topology hints leave for it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Endpoint, Hints};

/// The node for which endpoints are selected.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its name; empty if unknown, and then no endpoint is local.
    pub node: &'a str,
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<&'a str>,
}

/// Whether hints choose among the ready endpoints of a service port. Those for nodes win over those for zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct HintsUse {
    /// Hints for nodes (`hints.forNodes`).
    pub nodes: HintsState,
    /// Hints for zones (`hints.forZones`).
    pub zones: HintsState,
}

/// Whether hints of one kind count. Only those of ready endpoints are considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum HintsState {
    /// No ready endpoint has one.
    Absent,
    /// They count: traffic under policy Cluster goes only to endpoints with a hint for this node or its zone.
    Counted,
    /// At least one ready endpoint has one, and they do not count.
    Ignored(HintsIgnored),
}

/// Why hints are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum HintsIgnored {
    /// Some ready endpoints have none.
    #[serde(rename_all = "camelCase")]
    NotAll {
        /// One of those.
        without: SocketAddr,
        /// Their number.
        n_without: usize,
    },
    /// None is for this node or its zone.
    NotHere,
    /// The node has no name or no zone.
    PlaceUnknown,
    /// Hints for nodes count, which win over hints for zones.
    NodesWin,
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
    /// The subset for `place`, and whether hints decide it. Hints count only if every ready endpoint has one of the
    /// kind and at least one is for this place, so that no node is without an endpoint and no endpoint without
    /// clients.
    pub(super) fn of(endpoints: &[Endpoint<'_>], place: Place<'p>) -> (Topology<'p>, HintsUse) {
        let (mut nodes, mut zones) = (HintCount::default(), HintCount::default());
        let zone = place.zone.unwrap_or_default();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_ready()) {
            let hints = endpoint.source.hints.as_deref();
            nodes.add(endpoint, hints.map_or(&[], |hints| &hints.nodes), place.node);
            zones.add(endpoint, hints.map_or(&[], |hints| &hints.zones), zone);
        }
        let mut hints = HintsUse { nodes: nodes.state(place.node), zones: zones.state(zone) };
        if hints.nodes == HintsState::Counted {
            if hints.zones != HintsState::Absent {
                hints.zones = HintsState::Ignored(HintsIgnored::NodesWin);
            }
            return (Topology::SameNode(place.node), hints);
        }
        let is_zone = hints.zones == HintsState::Counted;
        (if is_zone { Topology::SameZone(zone) } else { Topology::Anywhere }, hints)
    }

    /// Whether `endpoint` is in the subset.
    pub(super) fn fits(self, endpoint: &Endpoint<'_>) -> bool {
        let has = |names: fn(&Hints) -> &[Arc<str>], name| {
            endpoint.source.hints.as_deref().is_some_and(|hints| is_hinted(names(hints), name))
        };
        match self {
            Topology::Anywhere => true,
            Topology::SameNode(node) => has(|hints| &hints.nodes, node),
            Topology::SameZone(zone) => has(|hints| &hints.zones, zone),
        }
    }
}

fn is_hinted(names: &[Arc<str>], name: &str) -> bool {
    names.iter().any(|hint| **hint == *name)
}

/// The hints of one kind that ready endpoints have.
#[derive(Default)]
struct HintCount {
    has_any: bool,
    is_any_here: bool,
    first_without: Option<SocketAddr>,
    n_without: usize,
}

impl HintCount {
    fn add(&mut self, endpoint: &Endpoint<'_>, names: &[Arc<str>], here: &str) {
        if names.is_empty() {
            self.first_without.get_or_insert(endpoint.address);
            self.n_without += 1;
        }
        self.has_any |= !names.is_empty();
        self.is_any_here |= is_hinted(names, here);
    }

    /// Whether they count for the place called `here`; empty if it is unknown.
    fn state(&self, here: &str) -> HintsState {
        if !self.has_any {
            return HintsState::Absent;
        }
        match self.first_without {
            _ if here.is_empty() => HintsState::Ignored(HintsIgnored::PlaceUnknown),
            Some(without) => HintsState::Ignored(HintsIgnored::NotAll { without, n_without: self.n_without }),
            None if !self.is_any_here => HintsState::Ignored(HintsIgnored::NotHere),
            None => HintsState::Counted,
        }
    }
}
