//! The walk over the chains, hook by hook, and its forks.

mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::matching::{Answer, PacketAtHook};
use super::{
    Branch, Delivery, Hook, Origin, Outcome, Packet, PacketVerdict, RecentLists, Step, TracedNode, Weight,
};
use crate::iptables::{ChainContent, ChainName, CtStates, Match, Policy, RecentAction, Rule, Table};

/// The most rules that one packet is compared with, over all its branches; then the result is unknown.
/// Chains that call each other twice or more at each of many levels would otherwise never end.
const MAX_RULES: u64 = 20_000_000;

/// The most rules that one packet may match on a path, for the same reason.
const MAX_STEPS: u16 = 5_000;

/// Walks all paths of `packet` and passes the end of each to `each`.
pub(super) fn walk(
    node: &TracedNode<'_>,
    packet: &Packet,
    recent: &RecentLists,
    each: &mut dyn FnMut(Branch),
) {
    let mut walker = Walker { node, packet, recent, forks: vec![Walk::new(packet)], n_rules: 0 };
    while let Some(mut walk) = walker.forks.pop() {
        let verdict = loop {
            if let Some(verdict) = walker.step(&mut walk) {
                break verdict;
            }
        };
        each(walk.end(verdict));
    }
}

/// A part of a packet's path, between two routing decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    Arriving,
    ToNode,
    Through,
    Sending,
    /// Sent by the node to itself, arriving on `lo`. It does not meet nat, as its connection is not new any more.
    Looped,
}

impl Leg {
    /// The hooks and tables, in the order of the kernel's priorities.
    fn stages(self) -> &'static [(Hook, Table)] {
        use Hook::{Forward, Input, Output, Postrouting, Prerouting};
        use Table::{Filter, Mangle, Nat};
        match self {
            Leg::Arriving => &[(Prerouting, Mangle), (Prerouting, Nat)],
            Leg::ToNode => &[(Input, Mangle), (Input, Filter), (Input, Nat)],
            Leg::Through => {
                &[(Forward, Mangle), (Forward, Filter), (Postrouting, Mangle), (Postrouting, Nat)]
            }
            Leg::Sending => &[
                (Output, Mangle),
                (Output, Nat),
                (Output, Filter),
                (Postrouting, Mangle),
                (Postrouting, Nat),
            ],
            Leg::Looped => &[(Prerouting, Mangle), (Input, Mangle), (Input, Filter)],
        }
    }

    /// The next leg, by whether the packet's destination is the node.
    fn next(self, is_local: bool) -> Result<Leg, Delivery> {
        match (self, is_local) {
            (Leg::Arriving, true) => Ok(Leg::ToNode),
            (Leg::Arriving, false) => Ok(Leg::Through),
            (Leg::Sending, true) => Ok(Leg::Looped),
            (Leg::Sending | Leg::Through, _) => Err(Delivery::Forwarded),
            (Leg::ToNode | Leg::Looped, _) => Err(Delivery::Local),
        }
    }
}

/// A chain that is being walked.
#[derive(Clone, Copy)]
struct Frame<'a> {
    name: ChainName,
    chain: &'a ChainContent,
    /// Index of the next rule.
    next: usize,
    /// Chains entered on the way here, by jump or goto.
    depth: usize,
}

/// The steps of a walk, the last first; forks share their beginning.
struct Trail {
    step: Step,
    /// How many there are, this one included.
    n: u16,
    before: Option<Rc<Trail>>,
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
    dnat: Option<SocketAddr>,
    masquerade: bool,
    remembered: BTreeSet<ChainName>,
    trail: Option<Rc<Trail>>,
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
            dnat: None,
            masquerade: false,
            remembered: BTreeSet::new(),
            trail: None,
            n_rules: 0,
        }
    }

    fn end(self, verdict: PacketVerdict) -> Branch {
        let mut path = Vec::new();
        let mut trail = &self.trail;
        while let Some(link) = trail {
            path.push(link.step);
            trail = &link.before;
        }
        path.reverse();
        let outcome = Outcome {
            verdict,
            dnat: self.dnat,
            masquerade: self.masquerade,
            source: (!self.masquerade).then_some(self.source),
            destination: self.destination,
            mark: self.mark,
            remembered: self.remembered,
        };
        Branch { weight: self.weight, outcome, n_rules: self.n_rules, path }
    }

    fn here(&self) -> (Hook, Table) {
        self.leg.stages()[self.stage]
    }

    fn step_at(&self, chain: ChainName, rule: Option<usize>) -> Step {
        let (hook, table) = self.here();
        Step { hook, table, chain, rule }
    }

    fn note(&mut self, step: Step) {
        let n = self.n_steps() + 1;
        self.trail = Some(Rc::new(Trail { step, n, before: self.trail.take() }));
    }

    fn n_steps(&self) -> u16 {
        self.trail.as_ref().map_or(0, |trail| trail.n)
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
}

/// Whether a packet matches a rule.
enum Fit {
    Yes,
    No,
    Unknown,
}

struct Walker<'a> {
    node: &'a TracedNode<'a>,
    packet: &'a Packet,
    recent: &'a RecentLists,
    forks: Vec<Walk<'a>>,
    n_rules: u64,
}

impl<'a> Walker<'a> {
    /// One rule, or one move between chains; returns the verdict at the end of the path.
    fn step(&mut self, walk: &mut Walk<'a>) -> Option<PacketVerdict> {
        let Some(frame) = walk.frames.last_mut() else { return self.enter_stage(walk) };
        let (name, chain) = (frame.name, frame.chain);
        let Some(rule) = chain.rules.get(frame.next) else { return leave_chain(walk) };
        frame.next += 1;
        let step = walk.step_at(name, Some(walk.frames.last()?.next));
        walk.n_rules += 1;
        self.n_rules += 1;
        if self.n_rules > MAX_RULES || walk.n_steps() > MAX_STEPS {
            return Some(PacketVerdict::Unknown(step));
        }
        match self.fit(walk, rule) {
            Fit::No => None,
            Fit::Unknown => Some(PacketVerdict::Unknown(step)),
            Fit::Yes => {
                walk.note(step);
                rule.target.as_ref().and_then(|target| self.carry_out(walk, target, step))
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
            return None;
        };
        let is_met = table != Table::Nat || walk.state.contains(CtStates::NEW);
        match self.node.ruleset.chain(table, &hook.chain()).filter(|_| is_met) {
            Some(chain) => walk.frames.push(Frame { name: hook.chain(), chain, next: 0, depth: 0 }),
            None => walk.stage += 1,
        }
        None
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
        let (taken, rest) = walk.weight.split(threshold);
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
        PacketAtHook {
            node: self.node,
            hook: walk.here().0,
            is_from_node: walk.leg == Leg::Sending,
            in_interface: walk.in_interface.as_deref(),
            source: walk.source,
            destination: walk.destination,
            protocol: self.packet.protocol,
            state: walk.state,
            mark: walk.mark,
        }
    }

    fn enter(
        &self,
        walk: &mut Walk<'a>,
        name: ChainName,
        step: Step,
        is_goto: bool,
    ) -> Option<PacketVerdict> {
        let chains: Option<&'a BTreeMap<ChainName, ChainContent>> = self.node.ruleset.tables.get(&step.table);
        let depth = walk.frames.last().map_or(0, |frame| frame.depth) + 1;
        // A path without loops, which the kernel rejects, has at most as many chains as the table.
        let chain = chains.filter(|chains| depth <= chains.len()).and_then(|chains| chains.get(&name));
        let Some(chain) = chain.filter(|chain| chain.policy.is_none()) else {
            return Some(PacketVerdict::Unknown(step));
        };
        // After a goto the packet does not return here. A built-in chain stays for its policy.
        if is_goto && let [.., frame] = &mut walk.frames[..] {
            frame.next = frame.chain.rules.len();
        }
        walk.frames.push(Frame { name, chain, next: 0, depth });
        None
    }
}

fn leave_chain(walk: &mut Walk<'_>) -> Option<PacketVerdict> {
    let frame = walk.frames.pop()?;
    if !walk.frames.is_empty() {
        return None;
    }
    walk.note(walk.step_at(frame.name, None));
    match frame.chain.policy {
        Some(Policy::Drop) => Some(PacketVerdict::Dropped),
        Some(Policy::Accept) | None => {
            walk.pass();
            None
        }
    }
}
