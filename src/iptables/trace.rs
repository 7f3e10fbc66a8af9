//! The path of a packet through a node: which rules of a [`Ruleset`](super::Ruleset) it meets, and its verdict.
//!
//! Rules with `statistic` split the path, so the result is a distribution with exact weights. Nothing is
//! guessed: where a match or a target is unknown, or depends on missing input, that part of the
//! distribution ends in [`PacketVerdict::Unknown`] and names the rule, or goes on and names the rule in
//! [`Branch::undecided`] with what it might do ([`TraceOptions`]).
//!
//! Everything other than the rules is simplified. 127.0.0.0/8 and ::1 always belong to the node. MASQUERADE,
//! and REDIRECT of packets that arrive, use the first of the node's other addresses. Only new connections
//! meet the nat table; packets of other connections keep their addresses, as the entries of conntrack are
//! unknown.

mod clauses;
mod details;
mod matching;
mod outcome;
mod packet;
mod recent;
mod reply;
mod rule_index;
mod step;
mod trail;
mod walk;
mod weight;

use std::collections::BTreeMap;

pub use details::{Effect, Route, RoutingDecision, TraceEvent, UndecidedRule, Visit};
pub use outcome::{Branch, Delivery, Outcome, PacketVerdict};
pub use packet::{Hook, Origin, Packet, TracedNode};
pub use recent::RecentLists;
pub use reply::{Reply, ReplyWay};
pub use step::Step;
pub use weight::Weight;

/// What a trace does beside finding outcomes. By default it ends at a rule that it cannot decide, and records no
/// details.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceOptions {
    /// At a rule that cannot be decided, whether the walk goes on as if the rule did not match; then
    /// [`Branch::undecided`] names it, if it could change the packet's fate. Otherwise the walk ends there, in
    /// [`PacketVerdict::Unknown`].
    pub passes_undecided: bool,
    /// Whether [`Branch::events`] tells the details of each path.
    pub records_events: bool,
}

impl TraceOptions {
    /// For an answer to a person: all details, on to the end.
    pub const DETAILED: TraceOptions = TraceOptions { passes_undecided: true, records_events: true };
}

/// A node that many packets are traced through, with an index of its long chains.
#[derive(Debug)]
pub struct Tracer<'a> {
    node: TracedNode<'a>,
    index: rule_index::RuleIndex,
    options: TraceOptions,
}

impl<'a> Tracer<'a> {
    /// Indexes the rules of `node`.
    pub fn new(node: TracedNode<'a>, options: TraceOptions) -> Tracer<'a> {
        Tracer { node, index: rule_index::RuleIndex::of(node.ruleset), options }
    }

    /// The possible results for `packet`, as [`trace()`] returns them.
    pub fn trace(&self, packet: &Packet, recent: &RecentLists) -> Vec<Branch> {
        collect(walk::Walker::new(&self.node, Some(&self.index), packet, recent, self.options))
    }
}

/// The possible results for one `packet` on `node`, without details: each outcome once, in order; the weights add up to 1.
///
/// `recent` holds the lists of `recent`. They stay as they are, since the packet takes one of several
/// branches: see [`RecentLists::remember`]. For many packets, or details, use a [`Tracer`].
///
/// ```
/// use std::collections::BTreeSet;
/// use chainsmith::iptables::parse;
/// use chainsmith::iptables::trace::{Origin, Packet, PacketVerdict, RecentLists, TracedNode, trace};
/// use chainsmith::net::{IpFamily, Protocol};
///
/// let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.0.0.1/32 -j DROP\nCOMMIT\n";
/// let ruleset = parse::save(IpFamily::V4, rules)?;
/// let node = TracedNode { ruleset: &ruleset, local_addresses: &BTreeSet::new(), routes: &[] };
/// let (from, to) = ("10.0.9.9:999".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
/// let packet = Packet::new(Origin::Arrives(Some("eth0".into())), from, to, Protocol::Tcp);
/// let branches = trace(&node, &packet, &RecentLists::default());
/// assert_eq!(branches[0].outcome.verdict, PacketVerdict::Dropped);
/// assert_eq!(branches[0].path[0].to_string(), "filter FORWARD rule 1");
/// # Ok::<(), chainsmith::iptables::parse::ParseError>(())
/// ```
pub fn trace(node: &TracedNode<'_>, packet: &Packet, recent: &RecentLists) -> Vec<Branch> {
    collect(walk::Walker::new(node, None, packet, recent, TraceOptions::default()))
}

/// Each outcome once, with each list of undecided rules.
fn collect(walker: walk::Walker<'_>) -> Vec<Branch> {
    let mut merged: BTreeMap<(Outcome, Vec<UndecidedRule>), Branch> = BTreeMap::new();
    walker.run(&mut |branch| {
        merged
            .entry((branch.outcome.clone(), branch.undecided.clone()))
            .and_modify(|known| {
                known.weight.add(&branch.weight);
                known.n_rules = known.n_rules.max(branch.n_rules);
            })
            .or_insert(branch);
    });
    merged.into_values().collect()
}

#[cfg(test)]
mod tests;
