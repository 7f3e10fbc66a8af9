mod failures;
mod filter;
mod nat;
mod reader;

use super::*;
use crate::iptables::parse::{self, Line};

/// Takes everything, and fails as it is told.
#[derive(Default)]
struct Recorder {
    inputs: Vec<String>,
    /// How each of the next restores goes, the last one first.
    failures: Vec<Option<Aftermath>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Failed(Aftermath);

impl Uncertain for Failed {
    fn aftermath(&self) -> Aftermath {
        self.0
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
        self.failures.pop().flatten().map_or(Ok(()), |aftermath| Err(Failed(aftermath)))
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

/// No chain of filter is another program's.
fn unshared(_: &Chain) -> bool {
    false
}

/// Plans with `steps` from `committed`, and returns what was sent.
fn plan(
    committed: &mut Committed,
    jumps: &[Jump],
    limits: Limits,
    steps: impl FnOnce(&mut Planner<'_, Recorder>) -> Result<(), Failure<Failed>>,
) -> (Vec<String>, Tally) {
    let mut recorder = Recorder::default();
    let mut planner = Planner::new(IpFamily::V4, committed, jumps, limits, &mut recorder);
    steps(&mut planner).unwrap();
    planner.finish().unwrap();
    let tally = planner.tally();
    (recorder.inputs, tally)
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
