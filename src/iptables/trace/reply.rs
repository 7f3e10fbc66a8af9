//! The way back: what conntrack does to the answer of a packet that passed.

use std::fmt;
use std::net::SocketAddr;

use super::outcome::{Branch, Delivery, PacketVerdict};
use super::packet::{Origin, Packet, TracedNode};
use crate::iptables::CtStates;
use crate::net::IpFamily;

/// The first reply to a packet that passed: addresses as the endpoint sends it and as the client sees it, and
/// whether it meets this node's conntrack, which alone turns one into the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The sender: the packet's last destination.
    pub from: SocketAddr,
    /// Where it is sent: the packet's last source, an address of the node if masqueraded. The port may be
    /// another then: the kernel picks one if the client's is taken, or with `--random-fully`.
    pub to: SocketAddr,
    /// The source that the client sees once the translation is undone: the packet's first destination.
    pub seen_from: SocketAddr,
    /// The destination once the translation is undone: the client.
    pub seen_to: SocketAddr,
    /// Whether it comes back through this node.
    pub way: ReplyWay,
}

/// Whether a reply comes back through the node that translated the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplyWay {
    /// A program of the node sends it.
    FromNode,
    /// It is sent to an address of the node, as the packet was masqueraded or comes from the node itself.
    ToNode,
    /// It is sent to the client's own address, and nothing is translated: any way is right.
    Untranslated,
    /// It is sent to the client's own address: the client gets it from the address it asked for only if
    /// routing leads it through this node, as for a client or an endpoint that is a pod of this node.
    IfRouted,
}

impl Branch {
    /// The first reply; `None` if the packet does not pass, or belongs to a connection from before, whose
    /// translation is not known.
    pub fn reply(&self, packet: &Packet, node: &TracedNode<'_>) -> Option<Reply> {
        let PacketVerdict::Accepted(delivery) = self.outcome.verdict else { return None };
        if !packet.state.contains(CtStates::NEW) {
            return None;
        }
        let (from, seen_from, seen_to) = (self.outcome.destination, packet.destination, packet.source);
        let own = node.own_address(IpFamily::of(seen_to.ip()));
        let to = self.outcome.source.unwrap_or(SocketAddr::new(own, seen_to.port()));
        let way = if delivery == Delivery::Local {
            ReplyWay::FromNode
        } else if packet.origin == Origin::Node || self.outcome.masquerade || node.is_local(to.ip()) {
            ReplyWay::ToNode
        } else if (from, to) == (seen_from, seen_to) {
            ReplyWay::Untranslated
        } else {
            ReplyWay::IfRouted
        };
        Some(Reply { from, to, seen_from, seen_to, way })
    }
}

/// `from 10.0.0.5:8080 to 192.0.2.1:999, back to this node; the client sees it from 10.96.0.1:80`
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reply { from, to, seen_from, .. } = self;
        match self.way {
            ReplyWay::FromNode => write!(f, "from {from} on this node to {to}")?,
            ReplyWay::ToNode => write!(f, "from {from} to {to}, back to this node")?,
            ReplyWay::Untranslated => return write!(f, "from {from} to {to}, nothing to undo"),
            ReplyWay::IfRouted => {
                write!(f, "from {from} to {to}, through this node only if routing leads there")?
            }
        }
        if seen_from == from { Ok(()) } else { write!(f, "; the client sees it from {seen_from}") }
    }
}
