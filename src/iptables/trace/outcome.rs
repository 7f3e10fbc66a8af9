//! What a trace finds: the ends of a packet's paths, with their probabilities.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::details::{TraceEvent, UndecidedRule};
use super::step::Step;
use super::weight::Weight;
use crate::iptables::{ChainName, Table};

/// The end of a packet's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketVerdict {
    /// It passes.
    Accepted(Delivery),
    /// It is dropped.
    Dropped,
    /// It is rejected, with an error to its sender.
    Rejected,
    /// This rule cannot be decided.
    Unknown(Step),
}

/// The way in which a packet that passes leaves the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Delivery {
    /// To a program on the node.
    Local,
    /// Out of one of its interfaces, to a pod or away.
    Forwarded,
}

/// The result for a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// Its verdict.
    pub verdict: PacketVerdict,
    /// The destination that DNAT or REDIRECT gave it, even if that is its old one.
    pub dnat: Option<SocketAddr>,
    /// Whether its source becomes an address of the node.
    pub masquerade: bool,
    /// Its source at the end; `None` when masqueraded.
    pub source: Option<SocketAddr>,
    /// Its destination at the end.
    pub destination: SocketAddr,
    /// Its mark at the end.
    pub mark: u32,
    /// The `recent` lists that its source is added to.
    pub remembered: BTreeSet<ChainName>,
}

impl Outcome {
    /// The same without what cannot be observed: earlier changes to a packet that was dropped or rejected.
    pub fn visible(mut self) -> Outcome {
        if !matches!(self.verdict, PacketVerdict::Accepted(_)) {
            (self.dnat, self.masquerade, self.source, self.mark) = (None, false, None, 0);
        }
        self
    }
}

/// One possible result for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its probability.
    pub weight: Weight,
    /// The result.
    pub outcome: Outcome,
    /// The number of rules that it is compared with, whether they match or not; the maximum over all paths
    /// with this result.
    pub n_rules: usize,
    /// The rules that it matches, on one of the paths with this result.
    pub path: Vec<Step>,
    /// Rules on the path that cannot be decided, in order; only where the trace
    /// [goes on](super::TraceOptions::passes_undecided) behind them.
    pub undecided: Vec<UndecidedRule>,
    /// The details of the path, if [asked for](super::TraceOptions::records_events).
    pub events: Vec<TraceEvent>,
}

impl Branch {
    /// The rule or policy that decided the verdict: the one that dropped or rejected the packet, that cannot
    /// be decided, or that let the packet pass in the last chain of the filter table. `None` if it passed
    /// and met no filter table.
    pub fn decided_by(&self) -> Option<Step> {
        match self.outcome.verdict {
            PacketVerdict::Unknown(step) => Some(step),
            PacketVerdict::Dropped | PacketVerdict::Rejected => self.path.last().copied(),
            PacketVerdict::Accepted(_) => {
                self.path.iter().rev().find(|step| step.table == Table::Filter).copied()
            }
        }
    }
}
