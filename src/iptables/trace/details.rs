//! The details of a packet's path: chains entered, routing decisions, and rules that cannot be decided.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::packet::Hook;
use super::step::Step;
use crate::iptables::{ChainName, Table};

/// A part of a packet's path, in walking order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// It entered a chain. What it met in the chains that this one calls follows as events of their own.
    Entered(Visit),
    /// The kernel decided where the packet goes.
    Routed(RoutingDecision),
}

/// One visit to a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Where in the kernel.
    pub hook: Hook,
    /// The table.
    pub table: Table,
    /// The chain.
    pub chain: ChainName,
    /// Jumps and gotos that led here from the built-in chain; 0 for that chain.
    pub depth: usize,
    /// The packet's source on entering.
    pub source: SocketAddr,
    /// The packet's destination on entering.
    pub destination: SocketAddr,
    /// The packet's mark on entering.
    pub mark: u32,
    /// How many rules of this chain were compared with the packet: the first so many.
    pub n_rules: usize,
    /// Numbers of the rules that matched, from 1, in order.
    pub matched: Vec<usize>,
    /// Numbers of the rules in [`Branch::undecided`](super::Branch::undecided), from 1, in order.
    pub undecided: Vec<usize>,
    /// Whether the packet reached the end of a built-in chain and met its policy.
    pub met_policy: bool,
}

/// The way that a routing decision sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// To a program of the node (INPUT).
    Input,
    /// Through the node, out of an interface (FORWARD).
    Forward,
    /// Sent by the node, out of an interface.
    Output,
    /// Sent by the node to itself: it comes back on `lo`.
    Loopback,
}

/// A routing decision, and its reason: whether the destination is an address of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingDecision {
    /// The way.
    pub route: Route,
    /// The destination that was looked up.
    pub destination: SocketAddr,
    /// The interface on which it leaves; `None` if it does not leave, or no known route has the destination.
    pub interface: Option<Arc<str>>,
}

/// `10.0.0.5 is no address of the node: forwarded through cni0`
impl fmt::Display for RoutingDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.destination.ip();
        match self.route {
            Route::Input => write!(f, "{ip} is an address of the node: to a program of the node"),
            Route::Loopback => write!(f, "{ip} is an address of the node: back through lo"),
            Route::Forward => write!(f, "{ip} is no address of the node: forwarded"),
            Route::Output => write!(f, "{ip} is no address of the node: sent out"),
        }?;
        match (&self.interface, self.route) {
            (Some(interface), Route::Forward | Route::Output) => write!(f, " through {interface}"),
            _ => Ok(()),
        }
    }
}

/// What a rule might do to a packet, if it matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Drop it.
    Drop,
    /// Reject it, with an error to its sender.
    Reject,
    /// Let it pass, where later rules would not.
    Accept,
    /// Send it to another destination.
    TranslateDestination,
    /// Give it another source.
    TranslateSource,
    /// Anything: a target that the tracer does not know, or more rules behind it than it follows.
    Anything,
}

/// `drop`, `send elsewhere`
impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Drop => "drop",
            Effect::Reject => "reject",
            Effect::Accept => "accept",
            Effect::TranslateDestination => "change the destination",
            Effect::TranslateSource => "change the source",
            Effect::Anything => "do anything",
        })
    }
}

/// A rule on a packet's path that cannot be decided, and whose answer could change the packet's fate. The
/// trace went on as if it did not match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UndecidedRule {
    /// The rule.
    pub step: Step,
    /// Why it cannot be decided; never empty: one text for each match that is not known, or for the target.
    pub reasons: Vec<String>,
    /// What it might do, with the rule that would do it: itself, or one behind it. Never empty.
    pub may: BTreeMap<Effect, Step>,
}
