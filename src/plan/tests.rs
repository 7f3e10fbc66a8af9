mod failure_effects;
mod filter_steps;
mod nat_steps;
mod saved_text;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::*;
use crate::iptables::parse::{self, Line};
use crate::iptables::{Chain, ChainName, Digest, Jump, Rule, Table};
use crate::net::IpFamily;

/// Records every input; restores fail as `failures` says.
#[derive(Default)]
struct Recorder {
    inputs: Vec<String>,
    /// The effect of each of the next restores that fails, the last one first.
    failures: Vec<Option<FailureEffect>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Failed(FailureEffect);

impl From<&Failed> for FailureEffect {
    fn from(failed: &Failed) -> FailureEffect {
        failed.0
    }
}

impl Restore for Recorder {
    type Error = Failed;

    fn begin(&mut self) {
        self.inputs.push(String::new());
    }

    fn write(&mut self, text: &str) {
        self.inputs.last_mut().unwrap().push_str(text);
    }

    fn end(&mut self) -> Result<(), Failed> {
        self.failures.pop().flatten().map_or(Ok(()), |effect| Err(Failed(effect)))
    }
}

const UNLIMITED: Limits = Limits::LEGACY;

fn name(text: &str) -> ChainName {
    ChainName::new(text).unwrap()
}

fn rule(text: &str) -> Rule {
    match parse::line(IpFamily::V4, &format!("-A X {text}")) {
        Ok(Line::Append(_, rule)) => rule,
        other => panic!("{text}: {other:?}"),
    }
}

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| rule(text)).collect()
}

fn chain(table: Table, text: &str, texts: &[&str]) -> Chain {
    Chain { table, name: name(text), rules: rules(texts) }
}

/// Chains of filter, each with its rules.
fn filter_chains(chains: &[(&str, &[&str])]) -> Vec<Chain> {
    chains.iter().map(|(text, texts)| chain(Table::Filter, text, texts)).collect()
}

/// Chains of nat, each with its rules.
fn nat_chains(chains: &[(&str, &[&str])]) -> Vec<Chain> {
    chains.iter().map(|(text, texts)| chain(Table::Nat, text, texts)).collect()
}

/// Desired rules in memory.
#[derive(Default)]
struct Desired {
    filter: Vec<Chain>,
    is_filter_shared: bool,
    fixed: FixedNat,
    groups: Vec<(Vec<Chain>, When)>,
    /// After how many groups the plan is asked to stop.
    stops_after: Option<usize>,
    dispatch: Vec<Chain>,
    /// How often the rules of the dispatch were made.
    n_made: Cell<usize>,
    stale: BTreeSet<ChainName>,
    kept: BTreeSet<ChainName>,
    probes: Vec<Chain>,
}

impl DesiredRules for Desired {
    fn filter(&mut self) -> Vec<Chain> {
        self.filter.clone()
    }

    fn is_shared(&self, _: &Chain) -> bool {
        self.is_filter_shared
    }

    fn fixed_nat(&mut self, _: &Committed) -> FixedNat {
        self.fixed.clone()
    }

    fn service_ports<E>(
        &mut self,
        write: &mut dyn FnMut(&[Chain], When) -> Result<(), E>,
    ) -> Result<ControlFlow<()>, E> {
        for (n, (chains, when)) in self.groups.iter().enumerate() {
            if self.stops_after == Some(n) {
                return Ok(ControlFlow::Break(()));
            }
            write(chains, *when)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn dispatch(&self) -> Vec<SharedNat<'_>> {
        let shared = |chain: &'_ Chain| SharedNat {
            name: chain.name,
            digest: Digest::of(&chain.rules),
            each_rule: Box::new({
                let rules = chain.rules.clone();
                move |each: &mut dyn FnMut(&Rule)| {
                    self.n_made.update(|n| n + 1);
                    rules.iter().for_each(each);
                }
            }),
        };
        self.dispatch.iter().map(shared).collect()
    }

    fn stale_candidates(&mut self, _: &Committed) -> BTreeSet<ChainName> {
        self.stale.clone()
    }

    fn keeps_stale(&mut self, name: ChainName) -> bool {
        self.kept.contains(&name)
    }

    fn probe(&mut self, table: Table) -> Option<Chain> {
        self.probes.iter().find(|chain| chain.table == table).cloned()
    }
}

impl Desired {
    fn filter(chains: &[(&str, &[&str])]) -> Desired {
        Desired { filter: filter_chains(chains), ..Desired::default() }
    }

    /// Each of `groups` is one service port's chains.
    fn groups(groups: &[&[(&str, &[&str])]]) -> Desired {
        let groups = groups.iter().map(|chains| (nat_chains(chains), When::Now)).collect();
        Desired { groups, ..Desired::default() }
    }

    fn stale(names: &[&str]) -> Desired {
        Desired { stale: names.iter().map(|text| name(text)).collect(), ..Desired::default() }
    }
}

/// Plans from `committed`, and returns what was sent.
fn plan(
    committed: &mut Committed,
    jumps: &[Jump],
    limits: Limits,
    desired: &mut Desired,
) -> (Vec<String>, RestoreCounts) {
    let mut recorder = Recorder::default();
    let planner = Planner::new(IpFamily::V4, committed, jumps, limits, &mut recorder);
    let (counts, result) = planner.run(StepOrder::FilterAroundNat, desired);
    result.unwrap();
    (recorder.inputs, counts)
}

/// Plans from `committed` with restores that fail as `failures` says, the last one first.
fn fail(
    committed: &mut Committed,
    jumps: &[Jump],
    limits: Limits,
    failures: &[Option<FailureEffect>],
    desired: &mut Desired,
) -> (Recorder, RestoreCounts, RestoreFailure<Failed>) {
    let mut recorder = Recorder { failures: failures.to_vec(), ..Recorder::default() };
    let planner = Planner::new(IpFamily::V4, committed, jumps, limits, &mut recorder);
    let (counts, result) = planner.run(StepOrder::FilterAroundNat, desired);
    (recorder, counts, result.unwrap_err())
}

/// The lines of a text that is indented as the source is.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

#[track_caller]
fn check(inputs: &[String], expected: &[&str]) {
    let inputs: Vec<Vec<&str>> = inputs.iter().map(|input| lines(input)).collect();
    let expected: Vec<Vec<&str>> = expected.iter().map(|input| lines(input)).collect();
    assert_eq!(inputs, expected, "\n{inputs:#?}");
}
