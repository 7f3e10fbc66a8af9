//! What happens to one packet under each of two rulesets, and whether that is the same.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::inspect::vantage::Vantages;
use crate::iptables::trace::{
    Branch, Delivery, Packet, PacketVerdict, RecentLists, Step, TraceOptions, Tracer, UndecidedRule,
};
use crate::iptables::{ChainName, Rule, Ruleset, write};
use crate::net::IpFamily;

/// How far two shares may be apart and still count as equal: 16 units of the kernel's probabilities.
///
/// A probability in a text is rounded to a unit, 2^-31, and kube-proxy writes ten decimals, which may be off by
/// another tenth. The share of an endpoint moves by at most that for its own rule. For the rules before it, which
/// take the rest in equal parts, it moves by less than two units in all, as each of them has a small share itself. The compact layout
/// has at most three levels of such choices. Any greater change of a probability is found.
pub(super) const TOLERANCE: f64 = 16.0 / (1u64 << 31) as f64;

/// Both rulesets, ready to trace many packets.
pub(super) struct Sides<'a> {
    rulesets: [&'a Ruleset; 2],
    tracers: [Tracer<'a>; 2],
}

/// What happens to a packet: each end with its share.
#[derive(Clone, Debug)]
pub(super) struct TracedFate {
    /// Each end once, sorted.
    pub ends: Vec<FateEnd>,
    /// The rules that the packet matches on any of its ways; some more than once.
    pub steps: Vec<Step>,
}

/// One of the ends of a packet.
#[derive(Clone, Debug)]
pub(super) struct FateEnd {
    /// What can be seen of it.
    pub seen: Visible,
    /// Its probability.
    pub share: f64,
    /// The rule or policy that decided it.
    pub decided_by: Option<Step>,
    /// The `recent` lists that then hold the packet's source.
    pub lists: BTreeSet<ChainName>,
}

/// What can be seen of an end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Visible {
    /// The verdict.
    pub verdict: FateVerdict,
    /// The new destination, if it was translated.
    pub dnat: Option<SocketAddr>,
    /// Whether the source becomes an address of the node.
    pub is_masqueraded: bool,
    /// Source, destination and mark of a packet that passes; no source when masqueraded.
    pub packet: Option<(Option<SocketAddr>, SocketAddr, u32)>,
    /// Whether a `recent` list holds the source afterwards.
    pub is_remembered: bool,
    /// Rules that cannot be decided, and what they may do.
    pub undecided: Vec<String>,
}

/// The verdict of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FateVerdict {
    /// It passes.
    Accepted(Delivery),
    /// It is rejected.
    Rejected,
    /// It is dropped.
    Dropped,
    /// A rule cannot be decided.
    Undecided,
}

impl<'a> Sides<'a> {
    pub(super) fn new(rulesets: [&'a Ruleset; 2], vantages: &'a Vantages) -> Sides<'a> {
        let options = TraceOptions { passes_undecided: true, records_events: false };
        let tracers = rulesets.map(|ruleset| Tracer::new(vantages.traced_node(ruleset), options));
        Sides { rulesets, tracers }
    }

    /// What happens to `packet` on each side.
    pub(super) fn fates(&self, packet: &Packet) -> [TracedFate; 2] {
        let none = RecentLists::default();
        self.fates_with(packet, [&none, &none])
    }

    /// The same with these lists of `recent`.
    pub(super) fn fates_with(&self, packet: &Packet, recent: [&RecentLists; 2]) -> [TracedFate; 2] {
        [0, 1].map(|side| {
            let branches = self.tracers[side].trace(packet, recent[side]);
            self.fate(side, branches, IpFamily::of(packet.source.ip()))
        })
    }

    fn fate(&self, side: usize, branches: Vec<Branch>, family: IpFamily) -> TracedFate {
        let mut steps: Vec<Step> = Vec::new();
        let mut last: &[Step] = &[];
        for branch in &branches {
            // Ways begin alike.
            let n_common = branch.path.iter().zip(last).take_while(|(a, b)| a == b).count();
            steps.extend(&branch.path[n_common..]);
            last = &branch.path;
        }
        let mut ends: Vec<FateEnd> =
            branches.into_iter().map(|branch| self.end(side, branch, family)).collect();
        ends.sort_by(|a, b| a.seen.cmp(&b.seen));
        ends.dedup_by(|later, earlier| {
            let is_same = later.seen == earlier.seen;
            earlier.share += if is_same { later.share } else { 0.0 };
            is_same
        });
        TracedFate { ends, steps }
    }

    fn end(&self, side: usize, branch: Branch, family: IpFamily) -> FateEnd {
        let outcome = &branch.outcome;
        let verdict = match outcome.verdict {
            PacketVerdict::Accepted(delivery) => FateVerdict::Accepted(delivery),
            PacketVerdict::Rejected => FateVerdict::Rejected,
            PacketVerdict::Dropped => FateVerdict::Dropped,
            PacketVerdict::Unknown(_) => FateVerdict::Undecided,
        };
        let passes = matches!(verdict, FateVerdict::Accepted(_));
        let mut undecided: Vec<String> =
            branch.undecided.iter().map(|rule| self.undecided_text(side, rule, family)).collect();
        if let PacketVerdict::Unknown(step) = outcome.verdict {
            undecided.extend(self.rule(side, &step).map(|rule| write::rule_text(family, rule)));
        }
        FateEnd {
            seen: Visible {
                verdict,
                dnat: outcome.dnat.filter(|_| passes),
                is_masqueraded: passes && outcome.masquerade,
                packet: passes.then_some((outcome.source, outcome.destination, outcome.mark)),
                is_remembered: passes && !outcome.remembered.is_empty(),
                undecided,
            },
            share: branch.weight.to_f64(),
            decided_by: branch.decided_by(),
            lists: branch.outcome.remembered,
        }
    }

    /// The rule, without its number, which may differ between the sides.
    fn undecided_text(&self, side: usize, undecided: &UndecidedRule, family: IpFamily) -> String {
        let rule = self.rule(side, &undecided.step).map(|rule| write::rule_text(family, rule));
        let may: Vec<String> = undecided.may.keys().map(ToString::to_string).collect();
        let step = &undecided.step;
        format!("{} {}: {}: may {}", step.table, step.chain, rule.unwrap_or_default(), may.join(" or "))
    }

    /// The rule of `step`; `None` for a policy.
    pub(super) fn rule(&self, side: usize, step: &Step) -> Option<&'a Rule> {
        self.rulesets[side].chain(step.table, &step.chain)?.rules.get(step.rule?.checked_sub(1)?)
    }
}

impl TracedFate {
    /// Whether nothing observable differs, apart from the kernel's rounding of probabilities.
    pub(super) fn is_same(&self, other: &TracedFate) -> bool {
        let is_same =
            |(a, b): (&FateEnd, &FateEnd)| a.seen == b.seen && (a.share - b.share).abs() < TOLERANCE;
        self.ends.len() == other.ends.len() && self.ends.iter().zip(&other.ends).all(is_same)
    }

    /// The rules that cannot be decided.
    pub(super) fn undecided(&self) -> BTreeSet<&str> {
        self.ends.iter().flat_map(|end| end.seen.undecided.iter().map(String::as_str)).collect()
    }

    /// The new destinations.
    pub(super) fn targets(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.ends.iter().filter_map(|end| end.seen.dnat)
    }
}
