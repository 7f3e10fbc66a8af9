//! The walk over the chains, hook by hook, and its forks.

mod explore;
mod leg;
mod targets;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use self::leg::Leg;
use super::TraceOptions;
use super::details::{RoutingDecision, Visit};
use super::matching::{Answer, PacketAtHook};
use super::outcome::{Branch, Outcome, PacketVerdict};
use super::packet::{Hook, Origin, Packet, TracedNode};
use super::recent::RecentLists;
use super::rule_index::{ChainIndex, RuleIndex};
use super::step::Step;
use super::trail::{Met, Trail};
use super::weight::Weight;
use crate::iptables::parse::threshold;
use crate::iptables::{ChainContent, ChainName, CtStates, Match, Policy, RecentAction, Rule, Table};

/// The most rules that one packet is compared with, over all its branches; then the result is unknown.
/// Chains that call each other twice or more at each of many levels would otherwise never end.
const MAX_RULES: u64 = 20_000_000;

/// The most rules that one packet may match on a path, for the same reason.
const MAX_STEPS: u16 = 5_000;

/// A chain that is being walked.
#[derive(Clone, Copy)]
struct Frame<'a> {
    name: ChainName,
    chain: &'a ChainContent,
    index: Option<&'a ChainIndex>,
    /// Index of the next rule.
    next: usize,
    /// How many rules the packet may meet here: all, or after a goto those so far.
    end: usize,
    /// Chains entered on the way here, by jump or goto.
    depth: usize,
}

/// One possible path of the packet, so far.
#[derive(Clone)]
struct Walk<'a> {
    weight: Weight,
    leg: Leg,
    /// Index in the leg's stages; the frames are of that stage.
    stage: usize,
    frames: Vec<Frame<'a>>,
    in_interface: Option<Arc<str>>,
    source: SocketAddr,
    destination: SocketAddr,
    state: CtStates,
    mark: u32,
    /// Of the entry of conntrack; `None` if the packet belongs to one from before.
    connmark: Option<u32>,
    dnat: Option<SocketAddr>,
    masquerade: bool,
    remembered: BTreeSet<ChainName>,
    trail: Trail,
    n_rules: usize,
}

impl<'a> Walk<'a> {
    fn new(packet: &Packet) -> Walk<'a> {
        let (leg, in_interface) = match &packet.origin {
            Origin::Node => (Leg::Sending, None),
            Origin::Arrives(interface) => (Leg::Arriving, interface.clone()),
        };
        Walk {
            weight: Weight::ONE,
            leg,
            stage: 0,
            frames: Vec::new(),
            in_interface,
            source: packet.source,
            destination: packet.destination,
            state: packet.state,
            mark: packet.mark,
            connmark: packet.state.contains(CtStates::NEW).then_some(0),
            dnat: None,
            masquerade: false,
            remembered: BTreeSet::new(),
            trail: Trail::default(),
            n_rules: 0,
        }
    }

    fn end(self, verdict: PacketVerdict, options: TraceOptions) -> Branch {
        let last = if let PacketVerdict::Unknown(step) = verdict { step.rule } else { None };
        let events = if options.records_events { self.trail.events(last) } else { Vec::new() };
        let undecided = if options.passes_undecided { self.trail.undecided() } else { Vec::new() };
        let outcome = Outcome {
            verdict,
            dnat: self.dnat,
            masquerade: self.masquerade,
            source: (!self.masquerade).then_some(self.source),
            destination: self.destination,
            mark: self.mark,
            remembered: self.remembered,
        };
        let path = self.trail.path();
        Branch { weight: self.weight, outcome, n_rules: self.n_rules, path, undecided, events }
    }

    fn here(&self) -> (Hook, Table) {
        self.leg.stages()[self.stage]
    }

    fn step_at(&self, chain: ChainName, rule: Option<usize>) -> Step {
        let (hook, table) = self.here();
        Step { hook, table, chain, rule }
    }

    /// The states that `table` sees. In raw the packet has no entry of conntrack, unless it comes back on `lo`.
    fn states_in(&self, table: Table) -> CtStates {
        let is_seen = self.leg == Leg::Looped || self.state.contains(CtStates::UNTRACKED);
        if table == Table::Raw && !is_seen { CtStates::INVALID } else { self.state }
    }

    /// Leaves the chains of this hook and table.
    fn pass(&mut self) {
        self.frames.clear();
        self.stage += 1;
    }

    /// Changes the destination. The connection counts as translated only if the new one differs.
    fn set_destination(&mut self, to: SocketAddr) {
        if to != self.destination {
            self.state = self.state.and(CtStates::DNAT);
        }
        self.destination = to;
        self.dnat = Some(to);
    }

    fn set_source(&mut self, from: SocketAddr) {
        self.source = from;
        self.state = self.state.and(CtStates::SNAT);
    }

    /// The index of the next rule of `frame`, the innermost, that `packet` may fit; the end if there is none.
    fn candidate(&self, frame: &Frame<'a>, packet: &Packet) -> usize {
        let next = match frame.index {
            Some(index) => index.next(frame.next, self.source, self.destination, packet.protocol),
            None => Some(frame.next),
        };
        next.unwrap_or(frame.end).min(frame.end)
    }
}

/// Whether a packet matches a rule.
enum Fit {
    Yes,
    No,
    Unknown,
}

/// What to do at a rule that cannot be decided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtUndecided {
    /// The walk ends.
    End,
    /// The rule is recorded, and the walk goes on as if it did not match.
    Record,
    /// The walk goes on as if it did not match.
    Pass,
    /// The walk goes on both ways.
    Fork,
}

/// Follows one packet along all its paths.
pub(super) struct Walker<'a> {
    node: &'a TracedNode<'a>,
    index: Option<&'a RuleIndex>,
    packet: &'a Packet,
    recent: &'a RecentLists,
    options: TraceOptions,
    at_undecided: AtUndecided,
    forks: Vec<Walk<'a>>,
    /// Walks that ended at an undecided rule, had it matched.
    ended: Vec<(Walk<'a>, PacketVerdict)>,
    /// Rules compared so far, on all paths.
    n_rules: u64,
    /// The most of them.
    max_rules: u64,
    /// Rules compared to find out what undecided rules might do.
    n_explored: u64,
}

impl<'a> Walker<'a> {
    pub(super) fn new(
        node: &'a TracedNode<'a>,
        index: Option<&'a RuleIndex>,
        packet: &'a Packet,
        recent: &'a RecentLists,
        options: TraceOptions,
    ) -> Walker<'a> {
        let at_undecided = if options.passes_undecided { AtUndecided::Record } else { AtUndecided::End };
        Walker {
            node,
            index,
            packet,
            recent,
            options,
            at_undecided,
            forks: vec![Walk::new(packet)],
            ended: Vec::new(),
            n_rules: 0,
            max_rules: MAX_RULES,
            n_explored: 0,
        }
    }

    /// Walks all paths and passes the end of each to `each`.
    pub(super) fn run(mut self, each: &mut dyn FnMut(Branch)) {
        while let Some(mut walk) = self.forks.pop() {
            let verdict = loop {
                if let Some(verdict) = self.step(&mut walk) {
                    break verdict;
                }
            };
            each(walk.end(verdict, self.options));
        }
    }

    /// One rule, or one move between chains; returns the verdict at the end of the path.
    fn step(&mut self, walk: &mut Walk<'a>) -> Option<PacketVerdict> {
        let Some(frame) = walk.frames.last() else { return self.enter_stage(walk) };
        let (name, chain, end) = (frame.name, frame.chain, frame.end);
        let at = walk.candidate(frame, self.packet);
        let is_at_end = at >= end;
        let frame = walk.frames.last_mut()?;
        walk.n_rules += at - frame.next + usize::from(!is_at_end);
        frame.next = at + usize::from(!is_at_end);
        if is_at_end {
            return self.leave_chain(walk);
        }
        let rule = &chain.rules[at];
        let step = walk.step_at(name, Some(at + 1));
        self.n_rules += 1;
        if self.n_rules > self.max_rules || walk.trail.n_steps() > MAX_STEPS {
            return Some(PacketVerdict::Unknown(step));
        }
        match self.fit(walk, rule) {
            Fit::No => None,
            Fit::Unknown => self.meet_undecided(walk, rule, step),
            Fit::Yes => {
                walk.trail.push(Met::Matched(step));
                rule.target.as_ref().and_then(|target| match self.carry_out(walk, target, step) {
                    Some(PacketVerdict::Unknown(_)) => self.meet_undecided(walk, rule, step),
                    carried_out => carried_out,
                })
            }
        }
    }

    /// Enters the built-in chain of the next stage, or ends the path.
    fn enter_stage(&self, walk: &mut Walk<'a>) -> Option<PacketVerdict> {
        let Some((hook, table)) = walk.leg.stages().get(walk.stage).copied() else {
            match walk.leg.next(self.node.is_local(walk.destination.ip())) {
                Ok(leg) => (walk.leg, walk.stage) = (leg, 0),
                Err(delivery) => return Some(PacketVerdict::Accepted(delivery)),
            }
            if walk.leg == Leg::Looped {
                walk.in_interface = Some("lo".into());
            }
            self.record_route(walk);
            return None;
        };
        if (walk.leg, hook) == (Leg::Sending, Hook::Postrouting) && table == Table::Mangle {
            self.record_route(walk);
        }
        let is_met = table != Table::Nat || walk.state.contains(CtStates::NEW);
        match self.node.ruleset.chain(table, &hook.chain()).filter(|_| is_met) {
            Some(chain) => self.push_frame(walk, hook.chain(), chain, 0),
            None => walk.stage += 1,
        }
        None
    }

    fn push_frame(&self, walk: &mut Walk<'a>, name: ChainName, chain: &'a ChainContent, depth: usize) {
        let (hook, table) = walk.here();
        if self.options.records_events {
            walk.trail.push(Met::Entered(Visit {
                hook,
                table,
                chain: name,
                depth,
                source: walk.source,
                destination: walk.destination,
                mark: walk.mark,
                n_rules: 0,
                matched: Vec::new(),
                undecided: Vec::new(),
                met_policy: false,
            }));
        }
        let index = self.index.and_then(|index| index.chain(table, name, chain));
        walk.frames.push(Frame { name, chain, index, next: 0, end: chain.rules.len(), depth });
    }

    fn record_route(&self, walk: &mut Walk<'a>) {
        if self.options.records_events {
            let ip = walk.destination.ip();
            let route = walk.leg.route(self.node.is_local(ip));
            let interface = self.node.route(ip).filter(|_| !self.node.is_local(ip)).map(Into::into);
            walk.trail.push(Met::Routed(RoutingDecision { route, destination: walk.destination, interface }));
        }
    }

    fn fit(&mut self, walk: &mut Walk<'a>, rule: &Rule) -> Fit {
        let mut is_known = true;
        match self.packet_at_hook(walk).fits_basics(rule) {
            Some(false) => return Fit::No,
            answer => is_known &= answer.is_some(),
        }
        for part in &rule.matches {
            match self.fits_match(walk, part, is_known) {
                Some(false) => return Fit::No,
                answer => is_known &= answer.is_some(),
            }
        }
        if is_known { Fit::Yes } else { Fit::Unknown }
    }

    /// Neither splits the walk nor changes lists once the rule is undecided.
    fn fits_match(&mut self, walk: &mut Walk<'a>, part: &Match, is_known: bool) -> Answer {
        match part {
            Match::Random { .. } | Match::Recent { .. } if !is_known => None,
            Match::Random { threshold } => Some(self.split(walk, *threshold)),
            Match::Other { module, words } if is_known && **module == *"statistic" => {
                let [mode, random, not, option, chance] = &words[..] else { return None };
                let is_it = [mode, random, not, option].map(|word| &**word);
                let threshold =
                    threshold(chance).filter(|_| is_it == ["--mode", "random", "!", "--probability"])?;
                Some(self.split(walk, (1 << 31) - threshold))
            }
            Match::Recent { action: RecentAction::Set, list } => {
                walk.remembered.insert(*list);
                Some(true)
            }
            Match::Recent { action: RecentAction::Check { seconds }, list } => {
                Some(walk.remembered.contains(list) || self.recent.holds(list, walk.source.ip(), *seconds))
            }
            _ => self.packet_at_hook(walk).fits_match(part),
        }
    }

    /// Continues with the part that matches; the rest becomes a fork that continues behind the rule.
    fn split(&mut self, walk: &mut Walk<'a>, threshold: u32) -> bool {
        // An exploration finds fates, not their probabilities.
        let explores = matches!(self.at_undecided, AtUndecided::Fork | AtUndecided::Pass);
        let (taken, rest) = if explores { share(threshold) } else { walk.weight.split(threshold) };
        if taken.is_zero() {
            return false;
        }
        if !rest.is_zero() {
            self.forks.push(Walk { weight: rest, ..walk.clone() });
        }
        walk.weight = taken;
        true
    }

    fn packet_at_hook<'w>(&self, walk: &'w Walk<'a>) -> PacketAtHook<'w>
    where
        'a: 'w,
    {
        let (hook, table) = walk.here();
        PacketAtHook {
            node: self.node,
            hook,
            table,
            is_from_node: walk.leg == Leg::Sending,
            in_interface: walk.in_interface.as_deref(),
            source: walk.source,
            destination: walk.destination,
            protocol: self.packet.protocol,
            states: walk.states_in(table),
            is_new: walk.state.contains(CtStates::NEW),
            original: (self.packet.source, self.packet.destination),
            mark: walk.mark,
            connmark: walk.connmark,
        }
    }

    fn enter(
        &self,
        walk: &mut Walk<'a>,
        name: ChainName,
        step: Step,
        is_goto: bool,
    ) -> Option<PacketVerdict> {
        let depth = walk.frames.last().map_or(0, |frame| frame.depth) + 1;
        let Some(chain) = self.callee(step.table, &name, depth) else {
            return Some(PacketVerdict::Unknown(step));
        };
        // After a goto the packet does not return here. A built-in chain stays for its policy.
        if is_goto && let [.., frame] = &mut walk.frames[..] {
            frame.end = frame.next;
        }
        self.push_frame(walk, name, chain, depth);
        None
    }

    /// The user-defined chain `name`, called at `depth`. A path without loops, which the kernel rejects, has at
    /// most as many chains as the table.
    fn callee(&self, table: Table, name: &ChainName, depth: usize) -> Option<&'a ChainContent> {
        let chains = self.node.ruleset.tables.get(&table)?;
        chains.get(name).filter(|chain| depth <= chains.len() && chain.policy.is_none())
    }

    fn leave_chain(&self, walk: &mut Walk<'a>) -> Option<PacketVerdict> {
        let frame = walk.frames.pop()?;
        if self.options.records_events {
            walk.trail.push(Met::Left(frame.next));
        }
        if !walk.frames.is_empty() {
            return None;
        }
        walk.trail.push(Met::Matched(walk.step_at(frame.name, None)));
        match frame.chain.policy {
            Some(Policy::Drop) => Some(PacketVerdict::Dropped),
            Some(Policy::Accept) | None => {
                walk.pass();
                None
            }
        }
    }
}

/// One for each side that has a chance.
fn share(threshold: u32) -> (Weight, Weight) {
    let one_if = |is_possible| if is_possible { Weight::ONE } else { Weight::ZERO };
    (one_if(threshold > 0), one_if(threshold < 1 << 31))
}
