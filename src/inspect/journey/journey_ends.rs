//! What may become of a packet: the branches of its trace, of which those that differ only in their endpoint are one
//! end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::masquerade_reason::masquerade_answer;
use super::reply_text::ReplyFacts;
use super::rule_book::RuleBook;
use super::share::shares;
use super::trace_report::{
    EndKind, EndVerdict, EndpointShare, JourneyEnd, MasqueradeAnswer, MasqueradeReason, PathPart,
    UndecidedNote, VerdictReason,
};
use super::trace_summary::end_summary;
use super::verdict_reason::{end_verdict, is_dnat};
use crate::inspect::Subject;
use crate::iptables::Table;
use crate::iptables::trace::{Branch, Effect, Hook, Packet, TraceEvent, UndecidedRule, Weight};
use crate::net::IpFamily;

/// A packet with its branches, on one node.
pub(super) struct TracedPacket<'a> {
    pub subject: &'a Subject,
    pub book: &'a RuleBook<'a>,
    pub packet: &'a Packet,
    pub branches: &'a [Branch],
    /// The node's address, where that of the interface is unknown.
    pub node_address: IpAddr,
    /// The service port that the packet is for, if known.
    pub service_port: Option<&'a str>,
    pub reply: &'a ReplyFacts<'a>,
}

/// A branch, with the part of its events in which the endpoint is chosen.
struct CutBranch<'a> {
    branch: &'a Branch,
    /// Events up to and with the stage that gave it its destination; all if none did.
    n_choosing: usize,
    verdict: EndVerdict,
    masquerade: Option<MasqueradeAnswer>,
}

/// What makes ends different.
type EndKey =
    (EndKind, VerdictReason, Option<String>, Option<(bool, MasqueradeReason)>, Vec<UndecidedRule>, bool);

impl TracedPacket<'_> {
    /// The common beginning of all ways, and the ends.
    pub(super) fn ends(&self) -> (Vec<PathPart>, Vec<JourneyEnd>) {
        let cuts: Vec<CutBranch<'_>> = self.branches.iter().map(|branch| self.cut(branch)).collect();
        let common = CommonPath::of(&cuts);
        let path = self.parts(common.events(&cuts), Some(&common));
        let mut groups: BTreeMap<EndKey, Vec<&CutBranch<'_>>> = BTreeMap::new();
        for cut in &cuts {
            groups.entry(key(cut)).or_default().push(cut);
        }
        let mut groups: Vec<(Weight, Vec<&CutBranch<'_>>)> = groups
            .into_values()
            .map(|group| {
                let mut weight = Weight::ZERO;
                group.iter().for_each(|cut| weight.add(&cut.branch.weight));
                (weight, group)
            })
            .collect();
        groups.sort_by(|(a, _), (b, _)| b.cmp(a));
        let n_endpoints: usize = groups.iter().map(|(_, group)| group.len()).sum();
        let ends =
            shares(&groups.iter().map(|(weight, group)| (weight.clone(), group.len())).collect::<Vec<_>>());
        let each = cuts.iter().map(|cut| (cut.branch.weight.clone(), 1)).collect::<Vec<_>>();
        debug_assert_eq!(each.len(), n_endpoints);
        let each: BTreeMap<*const Branch, _> =
            cuts.iter().map(|cut| std::ptr::from_ref(cut.branch)).zip(shares(&each)).collect();
        let ends = groups.iter().zip(ends).map(|((_, group), share)| {
            let (first, rest) = (group[0], &group[1..]);
            let from =
                if is_sent_on(first) { first.n_choosing.max(common.n_events) } else { common.n_events };
            let differs =
                rest.iter().any(|cut| !is_same_way(&first.branch.events[from..], tail(cut, &common)));
            let endpoints = group.iter().filter(|cut| is_sent_on(cut)).filter_map(|cut| {
                Some(EndpointShare {
                    address: cut.branch.outcome.dnat?,
                    share: each[&std::ptr::from_ref(cut.branch)].clone(),
                    pod: self.pod_of(cut.branch.outcome.dnat?),
                    node: self.node_of(cut.branch.outcome.dnat?),
                    rules: common.choosing_rules(cut),
                })
            });
            let mut endpoints: Vec<EndpointShare> = endpoints.collect();
            endpoints.sort_by_key(|endpoint| endpoint.address);
            let sources =
                group.iter().filter_map(|cut| cut.masquerade.as_ref()).flat_map(|answer| &answer.sources);
            let sources: BTreeSet<IpAddr> = sources.copied().collect();
            let masquerade = first
                .masquerade
                .clone()
                .map(|answer| MasqueradeAnswer { sources: sources.into_iter().collect(), ..answer });
            let reply =
                self.reply.sentence(first.branch, &first.verdict, masquerade.as_ref(), endpoints.len());
            JourneyEnd {
                share,
                summary: end_summary(&first.verdict, masquerade.as_ref(), &endpoints),
                verdict: first.verdict.clone(),
                masquerade,
                path_of: first.branch.outcome.dnat.filter(|_| differs),
                path: self.parts(&first.branch.events[from..], None),
                rules_tested: group.iter().map(|cut| cut.branch.n_rules).max().unwrap_or_default(),
                undecided: first.branch.undecided.iter().map(|rule| self.undecided(rule)).collect(),
                reply,
                endpoints,
            }
        });
        (path, ends.collect())
    }

    fn cut<'a>(&self, branch: &'a Branch) -> CutBranch<'a> {
        let chooses = |step: &&crate::iptables::trace::Step| self.book.rule(step).is_some_and(is_dnat);
        let chosen_at = branch.path.iter().find(chooses).filter(|_| branch.outcome.dnat.is_some());
        let is_stage = |event: &TraceEvent, hook: Hook| match event {
            TraceEvent::Entered(visit) => (visit.hook, visit.table) == (hook, Table::Nat),
            TraceEvent::Routed(_) => false,
        };
        let n_choosing = chosen_at.and_then(|step| {
            let last = branch.events.iter().rposition(|event| is_stage(event, step.hook))?;
            Some(last + 1)
        });
        CutBranch {
            branch,
            n_choosing: n_choosing.unwrap_or(branch.events.len()),
            verdict: end_verdict(self.book, branch, self.packet, self.service_port),
            masquerade: masquerade_answer(
                self.book,
                branch,
                self.packet,
                self.address_towards(branch.outcome.destination),
            ),
        }
    }

    /// The events for a report. Of a common path, only what all branches matched.
    fn parts(&self, events: &[TraceEvent], common: Option<&CommonPath>) -> Vec<PathPart> {
        let part = |(n, event): (usize, &TraceEvent)| match event {
            TraceEvent::Entered(visit) => {
                let n_matched = common.map_or(usize::MAX, |common| common.n_matched[n]);
                let mut shown = self.book.shown(visit, n_matched);
                if let Some(common) = common {
                    shown.rules_tested = common.n_rules[n];
                    shown.chooses |= common.differs[n];
                }
                PathPart::Chain(Box::new(shown))
            }
            TraceEvent::Routed(decision) => PathPart::Routing(decision.to_string()),
        };
        events.iter().enumerate().map(part).collect()
    }

    /// The address that masquerading gives to packets for `destination`: that of the interface on which they leave.
    fn address_towards(&self, destination: SocketAddr) -> IpAddr {
        let family = IpFamily::of(destination.ip());
        let host = &self.subject.host;
        let fitting = host.routes.iter().filter(|(cidr, _)| cidr.contains(destination.ip()));
        let interface =
            fitting.max_by_key(|(cidr, _)| cidr.length()).map(|(_, interface)| interface.as_str());
        let addresses = host.interfaces.iter().filter(|entry| IpFamily::of(entry.ip) == family);
        let mut addresses = addresses.filter(|entry| Some(&*entry.interface) == interface);
        addresses.next().map_or(self.node_address, |entry| entry.ip)
    }

    fn undecided(&self, rule: &UndecidedRule) -> UndecidedNote {
        let may = rule.may.iter().map(|(effect, step)| {
            let it =
                if matches!(effect, Effect::Drop | Effect::Reject | Effect::Accept) { " it" } else { "" };
            match *step == rule.step {
                true => format!("{effect}{it}"),
                false => format!("{effect}{it} at {step}"),
            }
        });
        UndecidedNote { rule: self.book.named(&rule.step), why: rule.reasons.clone(), may: may.collect() }
    }

    fn pod_of(&self, address: SocketAddr) -> Option<String> {
        let mut pods = self.subject.cluster.iter().flat_map(|cluster| cluster.pods.values());
        pods.find(|pod| pod.ips.contains(&address.ip())).map(|pod| pod.name.to_string())
    }

    fn node_of(&self, address: SocketAddr) -> Option<String> {
        self.reply.node_of(address.ip()).map(str::to_owned)
    }
}

fn is_sent_on(cut: &CutBranch<'_>) -> bool {
    cut.branch.outcome.dnat.is_some()
}

fn key(cut: &CutBranch<'_>) -> EndKey {
    let rule = cut.verdict.rule.as_ref().map(|rule| format!("{} {} {:?}", rule.table, rule.chain, rule.rule));
    let masquerade = cut.masquerade.as_ref().map(|answer| (answer.is_masqueraded, answer.code));
    (cut.verdict.kind, cut.verdict.code, rule, masquerade, cut.branch.undecided.clone(), is_sent_on(cut))
}

fn tail<'a>(cut: &CutBranch<'a>, common: &CommonPath) -> &'a [TraceEvent] {
    let from = if is_sent_on(cut) { cut.n_choosing.max(common.n_events) } else { common.n_events };
    &cut.branch.events[from..]
}

/// Whether both meet the same chains and match the same rules there.
fn is_same_way(a: &[TraceEvent], b: &[TraceEvent]) -> bool {
    let is_same = |(a, b): (&TraceEvent, &TraceEvent)| match (a, b) {
        (TraceEvent::Entered(a), TraceEvent::Entered(b)) => {
            (a.hook, a.table, a.chain, &a.matched, a.met_policy)
                == (b.hook, b.table, b.chain, &b.matched, b.met_policy)
        }
        (TraceEvent::Routed(a), TraceEvent::Routed(b)) => a.route == b.route,
        _ => false,
    };
    a.len() == b.len() && a.iter().zip(b).all(is_same)
}

/// The events that all branches have in common before their endpoints are chosen.
struct CommonPath {
    n_events: usize,
    /// For each visit: how many of its matched rules are common; 0 for a routing decision.
    n_matched: Vec<usize>,
    /// For each visit: the most rules tested.
    n_rules: Vec<usize>,
    /// For each visit: whether some branch matches more of its rules.
    differs: Vec<bool>,
}

impl CommonPath {
    fn of(cuts: &[CutBranch<'_>]) -> CommonPath {
        let mut common =
            CommonPath { n_events: 0, n_matched: Vec::new(), n_rules: Vec::new(), differs: Vec::new() };
        let Some((first, rest)) = cuts.split_first() else { return common };
        let n_most = cuts.iter().map(|cut| cut.n_choosing).min().unwrap_or_default();
        for (n, event) in first.branch.events[..n_most].iter().enumerate() {
            let (mut n_matched, mut n_rules) = match event {
                TraceEvent::Entered(visit) => (visit.matched.len(), visit.n_rules),
                TraceEvent::Routed(_) => (0, 0),
            };
            let mut n_most_matched = n_matched;
            for other in rest.iter().map(|cut| &cut.branch.events[n]) {
                match (event, other) {
                    (TraceEvent::Entered(a), TraceEvent::Entered(b))
                        if (a.hook, a.table, a.chain, a.source, a.destination, a.mark)
                            == (b.hook, b.table, b.chain, b.source, b.destination, b.mark) =>
                    {
                        let n_same = a.matched.iter().zip(&b.matched).take_while(|(a, b)| a == b).count();
                        n_matched = n_matched.min(n_same);
                        n_rules = n_rules.max(b.n_rules);
                        n_most_matched = n_most_matched.max(b.matched.len());
                    }
                    (TraceEvent::Routed(a), TraceEvent::Routed(b)) if a == b => {}
                    _ => return common,
                }
            }
            common.n_events = n + 1;
            common.n_matched.push(n_matched);
            common.n_rules.push(n_rules);
            common.differs.push(n_most_matched > n_matched);
        }
        common
    }

    fn events<'a>(&self, cuts: &[CutBranch<'a>]) -> &'a [TraceEvent] {
        cuts.first().map_or(&[], |cut| &cut.branch.events[..self.n_events])
    }

    /// The rules of `cut` that choose its endpoint: those that not all branches match.
    fn choosing_rules(&self, cut: &CutBranch<'_>) -> Vec<String> {
        let mut rules = Vec::new();
        for (n, event) in cut.branch.events[..cut.n_choosing].iter().enumerate() {
            let TraceEvent::Entered(visit) = event else { continue };
            let n_common = self.n_matched.get(n).copied().unwrap_or_default();
            let chosen = visit.matched.iter().skip(n_common);
            rules.extend(chosen.map(|number| format!("{} {} rule {number}", visit.table, visit.chain)));
        }
        rules
    }
}
