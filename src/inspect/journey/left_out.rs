//! Endpoints of a Service that get none of the traffic, and why.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::known_frontends::{FrontendKind, KnownFrontend};
use super::trace_report::{JourneyEnd, LeftOutEndpoint, VerdictReason};
use crate::inspect::vantage::Vantage;
use crate::inspect::{ClusterView, RulesOrigin, Subject};
use crate::model::{ServicePort, ServicePortName, TrafficPolicy};
use crate::net::IpFamily;
use crate::policy::{HintsIgnored, HintsState, PortCandidates, ServiceSlices};

/// What the objects say of a frontend whose packets were traced.
pub(super) struct ObjectsView<'a> {
    pub subject: &'a Subject,
    pub family: IpFamily,
    pub frontend: &'a KnownFrontend,
    pub vantage: Vantage,
    pub ends: &'a [JourneyEnd],
}

impl ObjectsView<'_> {
    /// The endpoints that get none of the traffic, and notes on the service port; nothing without objects.
    pub(super) fn left_out(&self) -> (Vec<LeftOutEndpoint>, Vec<String>) {
        let mut notes = Vec::new();
        let Some(cluster) = &self.subject.cluster else { return (Vec::new(), notes) };
        let Some(service) = cluster.snapshot.service(&self.frontend.service) else {
            return (Vec::new(), notes);
        };
        let is_port = |port: &ServicePort<'_>| {
            *port.port.name == *self.frontend.port_name && port.port.protocol == self.frontend.protocol
        };
        let Some(port) = service.ports_in(self.family).find(is_port) else { return (Vec::new(), notes) };
        let slices = ServiceSlices::of(&cluster.snapshot, service, self.family);
        let candidates = slices.candidates(&port, cluster.place());
        self.note_port(cluster, &port, &slices, &candidates, &mut notes);
        (self.unserved(&port, &candidates), notes)
    }

    fn policy(&self, port: &ServicePort<'_>) -> TrafficPolicy {
        match self.frontend.kind {
            FrontendKind::ClusterIp => port.service.internal_policy,
            // Pods and the node itself use all endpoints, also under policy Local.
            _ if matches!(self.vantage, Vantage::Outside | Vantage::PodElsewhere) => {
                port.service.external_policy
            }
            _ => TrafficPolicy::Cluster,
        }
    }

    fn unserved(&self, port: &ServicePort<'_>, candidates: &PortCandidates<'_>) -> Vec<LeftOutEndpoint> {
        let served: BTreeSet<SocketAddr> =
            self.ends.iter().flat_map(|end| &end.endpoints).map(|endpoint| endpoint.address).collect();
        let is_sent = self.ends.iter().any(|end| end.verdict.code == VerdictReason::Served);
        let policy = self.policy(port);
        let left_out =
            candidates.endpoints.iter().filter(|candidate| !served.contains(&candidate.endpoint.address));
        left_out
            .filter_map(|candidate| {
                let usage = match policy {
                    TrafficPolicy::Cluster => candidate.cluster,
                    TrafficPolicy::Local => candidate.local,
                };
                let reason = match usage {
                    Some(usage) if !usage.is_used() => usage.to_string(),
                    // What the packet meets before it decides, not the endpoint.
                    _ if !is_sent => return None,
                    _ if self.subject.origin == RulesOrigin::Objects => "not in these rules".to_owned(),
                    _ => "should serve, but the rules have no way to it".to_owned(),
                };
                Some(LeftOutEndpoint {
                    address: candidate.endpoint.address,
                    node: candidate.endpoint.source.node.as_deref().map(str::to_owned),
                    reason,
                })
            })
            .collect()
    }

    fn note_port(
        &self,
        cluster: &ClusterView,
        port: &ServicePort<'_>,
        slices: &ServiceSlices<'_>,
        candidates: &PortCandidates<'_>,
        notes: &mut Vec<String>,
    ) {
        let name: ServicePortName = port.name();
        if let Some(message) = cluster.quarantined.get(self.family).get(&name) {
            notes.push(format!("{name} is quarantined, the kernel rejected its rules: {message}"));
        }
        if let Some(seconds) = port.service.affinity_seconds {
            notes.push(format!(
                "session affinity: a client stays with its endpoint for {seconds} s; this is a client without one"
            ));
        }
        let hints = candidates.choice.hints();
        for (kind, state) in [("nodes", hints.nodes), ("zones", hints.zones)] {
            notes.extend(hint_note(kind, state));
        }
        let n_other: usize = slices.other_family.iter().map(|slice| slice.n_endpoints).sum();
        if n_other > 0 && candidates.endpoints.is_empty() {
            let other = self.family.other();
            notes.push(format!(
                "{n_other} endpoints of {other} are in slices of that family and serve {other} only"
            ));
        }
        for unmatched in slices.unmatched.iter().filter(|_| candidates.endpoints.is_empty()).take(3) {
            notes.push(format!(
                "slice {} has the port {:?}/{}, which no port of the Service has",
                unmatched.slice, unmatched.port.name, unmatched.port.protocol
            ));
        }
    }
}

fn hint_note(kind: &str, state: HintsState) -> Option<String> {
    let why = match state {
        HintsState::Absent | HintsState::Counted | HintsState::Ignored(HintsIgnored::NodesWin) => {
            return None;
        }
        HintsState::Ignored(HintsIgnored::NotAll { without, n_without: 1 }) => format!("{without} has none"),
        HintsState::Ignored(HintsIgnored::NotAll { without, n_without }) => {
            format!("{without} and {} more have none", n_without - 1)
        }
        HintsState::Ignored(HintsIgnored::NotHere) => "none is for this node".to_owned(),
        HintsState::Ignored(HintsIgnored::PlaceUnknown) => "the place of the node is unknown".to_owned(),
    };
    Some(format!("hints for {kind} are ignored: {why}"))
}
