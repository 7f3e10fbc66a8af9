//! The Node that rules depend on: its first addresses and pod CIDRs.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::wiring::{LoopEnd, NodeWait};
use crate::model::Node;

/// The Node as it was when it first had each of the fields that rules depend on. kube-proxy reads them once.
pub(super) struct SettledNode {
    name: Arc<str>,
    wait: NodeWait,
    /// Whether rules depend on its pod CIDRs.
    needs_pod_cidrs: bool,
    node: Option<Node>,
    /// When it was known whether there is a Node.
    listed_at: Option<Instant>,
}

/// What a change of the Node means for the loop.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NodeEffect {
    /// Nothing.
    None,
    /// Addresses are known for the first time: all rules may differ.
    Settled,
    /// The loop ends.
    Ends(LoopEnd),
}

impl SettledNode {
    pub(super) fn new(name: Arc<str>, wait: NodeWait, needs_pod_cidrs: bool) -> SettledNode {
        SettledNode { name, wait, needs_pod_cidrs, node: None, listed_at: None }
    }

    /// The Node; `None` until it has addresses, or the wait for them is over.
    pub(super) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Starts the wait: it is known whether there is a Node.
    pub(super) fn mark_listed(&mut self) {
        self.listed_at = Some(Instant::now());
    }

    /// Whether the Node is listed and has all fields that are waited for.
    pub(super) fn is_ready(&self) -> bool {
        self.listed_at.is_some() && self.wait_until().is_none()
    }

    /// Until when the loop waits for the Node; `None` when it need not.
    pub(super) fn wait_until(&self) -> Option<Instant> {
        let listed_at = self.listed_at?;
        let NodeWait { addresses, pod_cidrs } = self.wait;
        match &self.node {
            None => Some(listed_at + addresses),
            Some(node) if self.needs_pod_cidrs && node.pod_cidrs.is_empty() => {
                Some(listed_at + addresses + pod_cidrs)
            }
            Some(_) => None,
        }
    }

    /// Ends the wait: goes on with the fields that the Node has, or ends the loop.
    pub(super) fn end_wait(&mut self, node: Option<&Node>) -> Option<LoopEnd> {
        if self.node.is_some() {
            return Some(LoopEnd::NoPodCidrs);
        }
        if node.is_none_or(|node| node.addresses.is_empty()) {
            warn!(node = %self.name, "the Node has no addresses; using 127.0.0.1 and ::1");
        }
        self.node = Some(node.cloned().unwrap_or_else(|| Node::unknown(self.name.clone())));
        None
    }

    /// Takes over fields that `node` has for the first time.
    pub(super) fn update(&mut self, node: &Node) -> NodeEffect {
        if self.node.is_none() && node.addresses.is_empty() {
            return NodeEffect::None;
        }
        let mut settled = self.node.take().unwrap_or_else(|| Node::unknown(node.name.clone()));
        let mut effect = NodeEffect::None;
        let has_pod_cidrs = !settled.pod_cidrs.is_empty();
        if self.needs_pod_cidrs && has_pod_cidrs && settled.pod_cidrs != node.pod_cidrs {
            effect = NodeEffect::Ends(LoopEnd::PodCidrsChanged);
        } else if settled.addresses.is_empty() && !node.addresses.is_empty() {
            info!(node = %node.name, addresses = ?node.addresses, "the Node's addresses are known");
            settled.addresses = node.addresses.clone();
            effect = NodeEffect::Settled;
        } else if settled.addresses != node.addresses {
            warn!(
                node = %node.name, in_use = ?settled.addresses, addresses = ?node.addresses,
                "the Node's addresses changed; rules keep the first ones until a restart"
            );
        }
        if settled.pod_cidrs.is_empty() {
            settled.pod_cidrs = node.pod_cidrs.clone();
        }
        self.node = Some(settled);
        effect
    }
}
