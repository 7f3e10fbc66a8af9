//! What a rule that cannot be decided could do to a packet: the walk goes on both ways, and the fates are
//! compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::leg::Leg;
use super::{AtUndecided, Walk, Walker};
use crate::iptables::trace::details::{Effect, UndecidedRule};
use crate::iptables::trace::outcome::PacketVerdict;
use crate::iptables::trace::packet::Hook;
use crate::iptables::trace::step::Step;
use crate::iptables::trace::trail::{Met, Trail};
use crate::iptables::{ChainName, CtStates, Rule, Table};

/// The most rules that one exploration compares, of those that all of a packet's explorations may compare;
/// beyond, the rule may do anything.
const MAX_EXPLORED: u64 = 50_000;

/// The most rules that all explorations for one packet compare.
const MAX_EXPLORED_IN_ALL: u64 = 400_000;

/// An end of a packet, as far as it can be observed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fate {
    verdict: PacketVerdict,
    /// Of a packet that passes.
    addresses: Option<Addresses>,
}

/// Source, unless masqueraded, and destination.
type Addresses = (Option<SocketAddr>, SocketAddr);

/// The rules on the way to a fate.
#[derive(Clone, Copy)]
struct Way {
    /// The rule or policy that was met last.
    last: Option<Step>,
    /// The rule that changed the destination.
    destination: Option<Step>,
    /// The rule that changed the source.
    source: Option<Step>,
}

/// Every fate that a walk can have; those of packets that do not pass with the rule or policy that decides.
type Fates = BTreeMap<(Fate, Option<Step>), Way>;

/// Where a walk stands, and with what packet.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    leg: Leg,
    stage: usize,
    frames: Vec<(ChainName, usize, usize)>,
    addresses: (SocketAddr, SocketAddr),
    states: CtStates,
    marks: (u32, Option<u32>),
    translation: (Option<SocketAddr>, bool),
    remembered: BTreeSet<ChainName>,
}

impl Position {
    fn of(walk: &Walk<'_>) -> Position {
        Position {
            leg: walk.leg,
            stage: walk.stage,
            frames: walk.frames.iter().map(|frame| (frame.name, frame.next, frame.end)).collect(),
            addresses: (walk.source, walk.destination),
            states: walk.state,
            marks: (walk.mark, walk.connmark),
            translation: (walk.dnat, walk.masquerade),
            remembered: walk.remembered.clone(),
        }
    }
}

impl<'a> Walker<'a> {
    /// Goes on behind a rule that cannot be decided, or ends the walk there.
    pub(super) fn meet_undecided(
        &mut self,
        walk: &mut Walk<'a>,
        rule: &'a Rule,
        step: Step,
    ) -> Option<PacketVerdict> {
        match self.at_undecided {
            AtUndecided::End => return Some(PacketVerdict::Unknown(step)),
            AtUndecided::Pass => {}
            AtUndecided::Fork => {
                let mut matched = walk.clone();
                match self.match_anyway(&mut matched, rule, step) {
                    Some(verdict) => self.ended.push((matched, verdict)),
                    None => self.forks.push(matched),
                }
            }
            AtUndecided::Record => {
                let may = self.effects(walk, rule, step);
                if !may.is_empty() {
                    let reasons = self.packet_at_hook(walk).reasons(rule);
                    walk.trail.push(Met::Undecided(UndecidedRule { step, reasons, may }));
                }
            }
        }
        None
    }

    fn match_anyway(&self, walk: &mut Walk<'a>, rule: &Rule, step: Step) -> Option<PacketVerdict> {
        walk.trail.push(Met::Matched(step));
        rule.target.as_ref().and_then(|target| self.carry_out(walk, target, step))
    }

    /// What `rule` could do if it matched; empty if the packet's fate would be the same.
    fn effects(&mut self, walk: &Walk<'a>, rule: &'a Rule, step: Step) -> BTreeMap<Effect, Step> {
        let base = Walk { trail: Trail::default(), ..walk.clone() };
        let mut matched = base.clone();
        let verdict = self.match_anyway(&mut matched, rule, step);
        if verdict.is_none() && Position::of(&matched) == Position::of(&base) {
            return BTreeMap::new();
        }
        let explored = (|| {
            let matched = match verdict {
                Some(verdict) => Fates::from([fate(matched, verdict)]),
                None => self.explore(matched, AtUndecided::Fork)?,
            };
            let unmatched = self.explore(base.clone(), AtUndecided::Fork)?;
            if are_same(&matched, &unmatched) {
                return Some(BTreeMap::new());
            }
            let likely = self.explore(base, AtUndecided::Pass)?;
            Some(differences(&matched, &unmatched, &likely, step))
        })();
        explored.unwrap_or_else(|| BTreeMap::from([(Effect::Anything, step)]))
    }

    /// All fates of `start`; `None` if that takes too many rules.
    fn explore(&mut self, start: Walk<'a>, at_undecided: AtUndecided) -> Option<Fates> {
        let mut explorer = Walker::new(self.node, self.index, self.packet, self.recent, Default::default());
        explorer.at_undecided = at_undecided;
        explorer.max_rules = MAX_EXPLORED.min(MAX_EXPLORED_IN_ALL.saturating_sub(self.n_explored));
        explorer.forks = vec![start];
        let (mut fates, mut seen) = (Fates::new(), BTreeSet::new());
        while let Some(mut walk) = explorer.forks.pop() {
            if !seen.insert(Position::of(&walk)) {
                continue;
            }
            let verdict = loop {
                if let Some(verdict) = explorer.step(&mut walk) {
                    break verdict;
                }
            };
            let ended = std::mem::take(&mut explorer.ended).into_iter().chain([(walk, verdict)]);
            fates.extend(ended.map(|(walk, verdict)| fate(walk, verdict)));
            if explorer.n_rules > explorer.max_rules {
                break;
            }
        }
        self.n_explored += explorer.n_rules;
        (explorer.n_rules <= explorer.max_rules).then_some(fates)
    }
}

fn fate(walk: Walk<'_>, verdict: PacketVerdict) -> ((Fate, Option<Step>), Way) {
    let last_in = |hooks: [Hook; 2]| {
        move |step: &&Step| step.table == Table::Nat && step.rule.is_some() && hooks.contains(&step.hook)
    };
    let path = walk.trail.path();
    let way = Way {
        last: path.last().copied(),
        destination: path.iter().rev().find(last_in([Hook::Prerouting, Hook::Output])).copied(),
        source: path.iter().rev().find(last_in([Hook::Postrouting, Hook::Input])).copied(),
    };
    let passes = matches!(verdict, PacketVerdict::Accepted(_));
    let source = (!walk.masquerade).then_some(walk.source);
    let addresses = passes.then_some((source, walk.destination));
    ((Fate { verdict, addresses }, way.last.filter(|_| !passes)), way)
}

/// Whether the packet fares the same: all its fates are one, or both have the same, decided by the same rules.
fn are_same(a: &Fates, b: &Fates) -> bool {
    let mut fates = a.keys().chain(b.keys()).map(|(fate, _)| fate);
    let first = fates.next();
    fates.all(|fate| Some(fate) == first) || a.keys().eq(b.keys())
}

/// What `matched` brings about beside what the packet meets anyway: `unmatched` with rules behind that cannot be
/// decided either, `likely` without them. If that is nothing, the rule keeps the packet from rules behind it.
fn differences(matched: &Fates, unmatched: &Fates, likely: &Fates, step: Step) -> BTreeMap<Effect, Step> {
    let (fates, addresses) = (fates_of(likely), addresses_of(likely));
    let of_the_rule = matched.iter().filter(|(key, _)| !unmatched.contains_key(key));
    let mut may = effects_beside(of_the_rule, &fates, &addresses_of(unmatched), step);
    if may.is_empty() {
        may = effects_beside(matched.iter(), &fates, &addresses, step);
    }
    if may.is_empty() {
        may.insert(Effect::Accept, step);
    }
    may
}

fn fates_of(fates: &Fates) -> BTreeSet<&Fate> {
    fates.keys().map(|(fate, _)| fate).collect()
}

fn addresses_of(fates: &Fates) -> Vec<Addresses> {
    fates.keys().filter_map(|(fate, _)| fate.addresses).collect()
}

/// The effects in `matched` that neither `fates` nor `addresses` have.
fn effects_beside<'f>(
    matched: impl Iterator<Item = (&'f (Fate, Option<Step>), &'f Way)>,
    fates: &BTreeSet<&Fate>,
    addresses: &[Addresses],
    step: Step,
) -> BTreeMap<Effect, Step> {
    let sources: BTreeSet<_> = addresses.iter().map(|(source, _)| *source).collect();
    let destinations: BTreeSet<_> = addresses.iter().map(|(_, destination)| *destination).collect();
    let mut may = BTreeMap::new();
    for ((fate, _), way) in matched.filter(|((fate, _), _)| !fates.contains(fate)) {
        let mut add = |effect, at: Option<Step>| {
            may.entry(effect).or_insert(at.unwrap_or(step));
        };
        match (fate.verdict, fate.addresses) {
            (PacketVerdict::Dropped, _) => add(Effect::Drop, way.last),
            (PacketVerdict::Rejected, _) => add(Effect::Reject, way.last),
            (PacketVerdict::Unknown(at), _) => add(Effect::Anything, Some(at)),
            (PacketVerdict::Accepted(_), Some(_)) if addresses.is_empty() => add(Effect::Accept, None),
            (PacketVerdict::Accepted(_), Some((source, destination))) => {
                if !destinations.contains(&destination) {
                    add(Effect::TranslateDestination, way.destination);
                }
                if !sources.contains(&source) {
                    add(Effect::TranslateSource, way.source);
                }
            }
            (PacketVerdict::Accepted(_), None) => {}
        }
    }
    may
}
