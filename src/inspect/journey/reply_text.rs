//! The way of a reply, or what the client sees instead of one, in a sentence.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::trace_report::{EndKind, EndVerdict, MasqueradeAnswer};
use crate::inspect::Subject;
use crate::inspect::vantage::Vantage;
use crate::iptables::trace::{Branch, Packet, ReplyWay, TracedNode};
use crate::net::Protocol;

/// What is known of the way back of one packet.
pub(super) struct ReplyFacts<'a> {
    pub packet: &'a Packet,
    pub vantage: Vantage,
    pub node: TracedNode<'a>,
    /// The name of this node; empty if unknown.
    pub here: &'a str,
    /// The node of each endpoint, where slices name it.
    pub nodes: BTreeMap<IpAddr, &'a str>,
}

/// The nodes of all endpoints and Pods of `subject`.
pub(super) fn nodes_of(subject: &Subject) -> BTreeMap<IpAddr, &str> {
    let Some(cluster) = &subject.cluster else { return BTreeMap::new() };
    let endpoints = cluster.snapshot.slices().flat_map(|(_, slice)| &slice.endpoints);
    let of_slices = endpoints.filter_map(|endpoint| Some((endpoint.ip, endpoint.node.as_deref()?)));
    let of_pods = cluster.pods.values().flat_map(|pod| {
        pod.ips.iter().filter_map(|ip| Some((*ip, pod.node.as_deref()?))).collect::<Vec<_>>()
    });
    of_slices.chain(of_pods).collect()
}

impl ReplyFacts<'_> {
    pub(super) fn node_of(&self, ip: IpAddr) -> Option<&str> {
        self.nodes.get(&ip).copied()
    }

    /// In a sentence; of `n_endpoints` the branch is one.
    pub(super) fn sentence(
        &self,
        branch: &Branch,
        verdict: &EndVerdict,
        masquerade: Option<&MasqueradeAnswer>,
        n_endpoints: usize,
    ) -> String {
        match verdict.kind {
            EndKind::Rejected if self.packet.protocol == Protocol::Tcp => {
                return "none: the client gets an ICMP error at once (connection refused)".to_owned();
            }
            EndKind::Rejected => return "none: the client gets an ICMP error at once".to_owned(),
            EndKind::Dropped => {
                return "none: the client gets no answer and waits until it gives up".to_owned();
            }
            EndKind::Unknown => return "cannot be told".to_owned(),
            EndKind::Forwarded | EndKind::Local => {}
        }
        let Some(reply) = branch.reply(self.packet, &self.node) else {
            return "as conntrack recorded when the connection began".to_owned();
        };
        let client = reply.seen_to.ip();
        let who = if n_endpoints > 1 { "the endpoint".to_owned() } else { reply.from.to_string() };
        let seen = match reply.seen_from == reply.from {
            true => String::new(),
            false => format!("; conntrack makes it one from {}", reply.seen_from),
        };
        match reply.way {
            ReplyWay::Untranslated => format!("goes to {client} as it comes; nothing is translated"),
            ReplyWay::ToNode if reply.to.ip() != client => {
                let node = match masquerade.map(|answer| &answer.sources[..]) {
                    Some([only]) => format!("{only}, this node"),
                    _ => "this node".to_owned(),
                };
                let and = if seen.is_empty() { "; conntrack" } else { " and" };
                format!("{who} replies to {node}{seen}{and} sends it to {client}")
            }
            ReplyWay::FromNode | ReplyWay::ToNode => format!("{who} replies to {client}{seen}"),
            ReplyWay::IfRouted => {
                let passes = format!("{who} replies to {client}{seen} on this node");
                match self.may_bypass(reply.from.ip()) {
                    true => format!(
                        "{passes}. If it does not pass this node, {client} gets it from an address that it never \
                         called"
                    ),
                    false => passes,
                }
            }
        }
    }

    /// Whether neither client nor endpoint is on this node, as far as is known.
    fn may_bypass(&self, endpoint: IpAddr) -> bool {
        let is_client_here = matches!(self.vantage, Vantage::PodHere | Vantage::Node | Vantage::Localhost);
        let is_elsewhere = self.node_of(endpoint).is_some_and(|node| node != self.here);
        !is_client_here && is_elsewhere && !self.here.is_empty()
    }
}
