//! The way of a reply, or what the client sees instead of one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::sender::Sender;
use super::trace_report::{EndKind, EndVerdict, VerdictReason};
use crate::inspect::Subject;
use crate::inspect::vantage::{Vantage, Vantages};
use crate::iptables::trace::Branch;
use crate::net::Protocol;

/// What is known of the way back.
pub(super) struct ReplyWay<'a> {
    pub sender: &'a Sender,
    pub vantages: &'a Vantages,
    pub destination: std::net::SocketAddr,
    pub protocol: Protocol,
    pub node_address: IpAddr,
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

impl ReplyWay<'_> {
    pub(super) fn node_of(&self, ip: IpAddr) -> Option<&str> {
        self.nodes.get(&ip).copied()
    }

    /// In a sentence; of `n_endpoints` the branch is one.
    pub(super) fn of(&self, branch: &Branch, verdict: &EndVerdict, n_endpoints: usize) -> String {
        let client = self.sender.source.ip();
        match verdict.kind {
            EndKind::Rejected if self.protocol == Protocol::Tcp => {
                return "none: the client gets an ICMP error at once (connection refused)".to_owned();
            }
            EndKind::Rejected => return "none: the client gets an ICMP error at once".to_owned(),
            EndKind::Dropped => {
                return "none: the client gets no answer and waits until it gives up".to_owned();
            }
            EndKind::Unknown => return "cannot be told".to_owned(),
            EndKind::Forwarded | EndKind::Local => {}
        }
        let Some(to) = branch.outcome.dnat else {
            return match branch.outcome.masquerade || branch.outcome.source.is_none_or(|ip| ip.ip() != client)
            {
                true => format!("comes to the node's address and is sent on to {client} by conntrack"),
                false => format!("goes to {client} as it comes; nothing is translated"),
            };
        };
        let original = self.destination;
        let who = if n_endpoints > 1 { "the endpoint".to_owned() } else { to.to_string() };
        let from_service = format!("conntrack makes it one from {original}");
        if branch.outcome.masquerade {
            let node = self.node_address;
            return format!("{who} replies to {node}, this node; {from_service} and sends it to {client}");
        }
        let passes = format!("{who} replies to {client}; {from_service} on this node");
        match self.may_bypass(to.ip(), verdict) {
            true => format!(
                "{passes}. If it does not pass this node, {client} gets it from an address that it never called"
            ),
            false => passes,
        }
    }

    /// Whether neither client nor endpoint is on this node, as far as is known.
    fn may_bypass(&self, endpoint: IpAddr, verdict: &EndVerdict) -> bool {
        let is_client_here =
            matches!(self.sender.vantage, Vantage::PodHere | Vantage::Node | Vantage::Localhost);
        let is_endpoint_here = verdict.kind == EndKind::Local
            || self.vantages.local_addresses.contains(&endpoint)
            || self.node_of(endpoint).is_some_and(|node| node == self.here);
        let is_known = self.node_of(endpoint).is_some() && !self.here.is_empty();
        verdict.code == VerdictReason::Served && !is_client_here && !is_endpoint_here && is_known
    }
}
