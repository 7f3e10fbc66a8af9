//! Compares the chains in force with the desired ones, by their text in canonical form: the order of Services, the
//! spelling of rules, counters and comments do not count. (kube-proxy drops comments in a large cluster, and keeps
//! those of unchanged Services when a cluster shrinks.)

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use super::check_report::{CheckFinding, FindingKind, FindingSeverity};
use super::effects::{self, RulePlace};
use super::service_names::{ServiceNames, in_comment};
use crate::iptables::{ChainContent, ChainName, Match, Rule, Ruleset, Table, keyed_hash, write};
use crate::net::IpFamily;
use crate::rules::dispatch::Key;
use crate::rules::names::{KUBE_NODEPORTS, KUBE_SERVICES};
use crate::rules::ownership::ChainOwner;
use crate::rules::{SharedChain, names};

/// Rules that differ in one chain are shown one by one up to this number.
const MAX_RULES: usize = 5;

/// Both sets of rules of one family.
pub(super) struct BothRules<'a> {
    pub(super) family: IpFamily,
    pub(super) desired: &'a Ruleset,
    pub(super) in_force: &'a Ruleset,
    /// The rules are in kube-proxy's layout, in which the order of Services is random.
    pub(super) is_classic: bool,
    /// kube-proxy keeps chains without use for a while, as it does in a large cluster.
    pub(super) keeps_unused: bool,
}

/// What a comparison of all chains found.
#[derive(Default)]
pub(super) struct ChainComparison {
    /// How many chains were compared.
    pub(super) n_chains: usize,
    /// Those that differ.
    pub(super) different: BTreeSet<(Table, ChainName)>,
    /// What differs.
    pub(super) findings: Vec<CheckFinding>,
}

const TABLES: [Table; 2] = [Table::Filter, Table::Nat];

/// Compares every chain of ours.
pub(super) fn compare(both: &BothRules<'_>, names: &ServiceNames<'_>) -> ChainComparison {
    let mut found = ChainComparison::default();
    for table in TABLES {
        let none = BTreeMap::new();
        let desired = both.desired.tables.get(&table).unwrap_or(&none);
        let in_force = both.in_force.tables.get(&table).unwrap_or(&none);
        let ours = |(name, _): &(&ChainName, &ChainContent)| ChainOwner::of(table, name).is_compared();
        let n_desired = desired.iter().filter(ours).count();
        if n_desired > 0 && !in_force.iter().any(|chain| ours(&chain)) {
            let finding = table_empty(both.family, table, n_desired, in_force.is_empty(), names);
            found.n_chains += n_desired;
            found.different.extend(desired.iter().filter(ours).map(|(name, _)| (table, *name)));
            found.findings.push(finding);
            continue;
        }
        let all: BTreeSet<ChainName> =
            desired.iter().chain(in_force).filter(ours).map(|(name, _)| *name).collect();
        found.n_chains += all.len();
        // Needed for chains in excess only.
        let called = LazyCell::new(|| callers(in_force));
        let mut unused = Vec::new();
        for name in all {
            let comparison = ChainPair { both, names, table, name };
            let findings = match (desired.get(&name), in_force.get(&name)) {
                (Some(desired), Some(in_force)) => comparison.rules(&desired.rules, &in_force.rules),
                (Some(desired), None) => vec![comparison.missing(desired)],
                (None, Some(in_force)) if called.contains_key(&name) => {
                    comparison.added(in_force, &called[&name]).into_iter().collect()
                }
                (None, _) => {
                    unused.push(name);
                    continue;
                }
            };
            if !findings.is_empty() {
                found.different.insert((table, name));
                found.findings.extend(findings);
            }
        }
        found.findings.extend(unused_chains(both, table, &unused));
    }
    found
}

/// The chains with rules that lead to each chain.
fn callers(chains: &BTreeMap<ChainName, ChainContent>) -> BTreeMap<ChainName, BTreeSet<ChainName>> {
    let mut callers: BTreeMap<ChainName, BTreeSet<ChainName>> = BTreeMap::new();
    for (name, chain) in chains {
        for callee in chain.rules.iter().filter_map(Rule::callee) {
            callers.entry(callee).or_default().insert(*name);
        }
    }
    callers
}

fn table_empty(
    family: IpFamily,
    table: Table,
    n_desired: usize,
    is_absent: bool,
    names: &ServiceNames<'_>,
) -> CheckFinding {
    let why = if is_absent { "does not exist" } else { "was flushed, or no proxy has written to it" };
    let effect = match table {
        Table::Nat => {
            "No Service answers: no cluster IP, node port or load balancer IP leads to an endpoint."
        }
        _ => {
            "Services without endpoints do not reject clients, which wait for a time-out; source ranges do not hold."
        }
    };
    let summary = format!("table {table} has none of the {n_desired} chains: it {why}");
    let mut finding = CheckFinding::new(FindingSeverity::Error, FindingKind::TableEmpty, summary, effect);
    finding.family = Some(family.as_str().to_owned());
    finding.table = Some(table.to_string());
    names.concern_all(&mut finding);
    finding.with_next(
        "look for the process that flushed it: `nft monitor` shows commits with the program's name",
    )
}

/// ChainPair to which no rule leads: harmless, but not of the rules desired.
fn unused_chains(both: &BothRules<'_>, table: Table, unused: &[ChainName]) -> Option<CheckFinding> {
    let first = unused.first().filter(|_| !both.keeps_unused)?;
    let summary = match unused.len() {
        1 => "a chain to which no rule leads".to_owned(),
        n => format!("{n} chains to which no rule leads, the first of them {first}"),
    };
    let effect = "None: no packet reaches them. A proxy removes them with its next full sync, unless they are of another layout.";
    let mut finding = CheckFinding::new(FindingSeverity::Notice, FindingKind::ChainUnused, summary, effect);
    finding.family = Some(both.family.as_str().to_owned());
    finding.table = Some(table.to_string());
    finding.chain = Some(first.to_string());
    Some(finding)
}

/// One chain in both sets of rules.
struct ChainPair<'a> {
    both: &'a BothRules<'a>,
    names: &'a ServiceNames<'a>,
    table: Table,
    name: ChainName,
}

/// A rule with its number, from 1, and without what does not count.
#[derive(Clone)]
struct NumberedRule<'a> {
    number: usize,
    rule: &'a Rule,
    canonical: Rule,
    hash: u64,
}

/// How the rules of a chain differ.
#[derive(Default)]
struct RuleDifferences<'a> {
    missing: Vec<NumberedRule<'a>>,
    added: Vec<NumberedRule<'a>>,
    /// The first rule that is not at its place among those in both, with the one that should be there.
    misplaced: Option<(NumberedRule<'a>, NumberedRule<'a>)>,
}

impl ChainPair<'_> {
    /// Calls `effect` with the place of the chain.
    fn effect(&self, effect: impl FnOnce(&RulePlace<'_>) -> String) -> String {
        let endpoint = |rule: &Rule| {
            let of_chain = |rules: &Ruleset, callee: ChainName| {
                rules.chain(self.table, &callee)?.rules.iter().find_map(effects::dnat)
            };
            let of_callee =
                |callee| of_chain(self.both.desired, callee).or_else(|| of_chain(self.both.in_force, callee));
            effects::dnat(rule).or_else(|| rule.callee().and_then(of_callee))
        };
        let service = self.names.of_chain(&self.name);
        effect(&RulePlace { table: self.table, chain: self.name, service, endpoint: &endpoint })
    }

    fn finding(
        &self,
        severity: FindingSeverity,
        kind: FindingKind,
        summary: String,
        effect: String,
    ) -> CheckFinding {
        let mut finding = CheckFinding::new(severity, kind, summary, effect);
        finding.family = Some(self.both.family.as_str().to_owned());
        finding.table = Some(self.table.to_string());
        finding.chain = Some(self.name.to_string());
        finding
    }

    /// Names the service ports of the chain and of `rules`, and a command that shows more of the first.
    fn concern<'r>(&self, finding: &mut CheckFinding, rules: impl Iterator<Item = &'r Rule>) {
        let of_chain = self.names.of_chain(&self.name);
        let of_rules = rules.filter_map(|rule| self.names.of_rule(rule));
        let services: BTreeSet<&str> = of_chain.into_iter().chain(of_rules).collect();
        match services.is_empty() {
            true => self.names.concern_all(finding),
            false => self.names.concern(finding, services),
        }
    }

    fn texts<'r>(&self, rules: impl Iterator<Item = &'r Rule>) -> Vec<String> {
        rules.map(|rule| write::rule_text(self.both.family, rule)).collect()
    }

    fn missing(&self, desired: &ChainContent) -> CheckFinding {
        let summary = match desired.rules.len() {
            1 => "a chain of one rule is missing".to_owned(),
            n => format!("a chain of {n} rules is missing"),
        };
        let effect = self.effect(|place| effects::of_lost_chain(place, &desired.rules));
        let mut finding = self.finding(FindingSeverity::Error, FindingKind::ChainMissing, summary, effect);
        if desired.rules.is_empty() {
            finding.severity = FindingSeverity::Warning;
            finding.summary = "an empty chain is missing".to_owned();
            finding.effect = "None yet: a rule that leads to it could not be written.".to_owned();
        }
        finding.desired = self.texts(desired.rules.iter().take(MAX_RULES));
        self.concern(&mut finding, desired.rules.iter());
        finding
    }

    /// A chain in excess, to which `from` lead. Where only chains of ours do, these have a rule in excess, which is
    /// reported.
    fn added(&self, in_force: &ChainContent, from: &BTreeSet<ChainName>) -> Option<CheckFinding> {
        let foreign = from.iter().find(|name| !ChainOwner::of(self.table, name).is_ours())?;
        let summary = format!("a chain that no object asks for; a foreign rule in {foreign} leads to it");
        let (severity, effect) = match in_force.rules.is_empty() {
            true => (
                FindingSeverity::Notice,
                "None: it is empty. It stays as long as rules lead to it.".to_owned(),
            ),
            false => (FindingSeverity::Warning, "Packets that rules lead there meet its rules.".to_owned()),
        };
        let mut finding = self.finding(severity, FindingKind::ChainAdded, summary, effect);
        finding.in_force = self.texts(in_force.rules.iter().take(MAX_RULES));
        let services: BTreeSet<&str> = self.names.of_chain(&self.name).into_iter().collect();
        self.names.concern(&mut finding, services);
        Some(finding)
    }

    fn rules(&self, desired: &[Rule], in_force: &[Rule]) -> Vec<CheckFinding> {
        if desired == in_force {
            return Vec::new();
        }
        let is_unordered = self.both.is_classic && is_shared(self.table, &self.name);
        let (mut desired, mut in_force) = (numbered(desired), numbered(in_force));
        if same(&desired, &in_force) {
            return Vec::new();
        }
        let is_kubelets = ChainOwner::of(self.table, &self.name) == ChainOwner::SharedWithKubelet;
        if in_force.is_empty() {
            return vec![self.flushed(&desired)];
        }
        let mut findings = Vec::new();
        if is_unordered {
            findings.extend(self.early_tail(&in_force));
            desired.sort_by_cached_key(|rule| self.sort_key(rule));
            in_force.sort_by_cached_key(|rule| self.sort_key(rule));
        }
        let mut differences = differences(&desired, &in_force);
        if is_kubelets {
            // The kubelet has rules of its own there.
            (differences.added, differences.misplaced) = (Vec::new(), None);
        }
        findings.extend(self.shown(differences));
        findings
    }

    /// Where a rule of a shared chain stands in canonical form: by frontend and service port, the rules for node
    /// ports' addresses last.
    fn sort_key(&self, rule: &NumberedRule<'_>) -> (bool, Option<Key>, Option<String>, String) {
        let is_tail = self.is_tail(rule.rule);
        let text = if is_tail { write::rule_text(self.both.family, &rule.canonical) } else { String::new() };
        // Every rule of a shared chain names its service port in its comment.
        (is_tail, Key::of(rule.rule), in_comment(rule.rule).map(str::to_owned), text)
    }

    fn is_tail(&self, rule: &Rule) -> bool {
        (self.table, self.name) == (Table::Nat, KUBE_SERVICES) && rule.callee() == Some(KUBE_NODEPORTS)
    }

    /// The rule that leads to the node ports stands before a Service's.
    fn early_tail(&self, in_force: &[NumberedRule<'_>]) -> Option<CheckFinding> {
        let first = in_force.iter().position(|rule| self.is_tail(rule.rule))?;
        let behind =
            in_force[first..].iter().find(|rule| !self.is_tail(rule.rule) && Key::of(rule.rule).is_some())?;
        let rule = &in_force[first];
        let summary =
            format!("rule {}, which leads to the node ports, stands before Services' rules", rule.number);
        let effect = "An external IP that is also an address of this node is answered by a node port of the same number.";
        let mut finding =
            self.finding(FindingSeverity::Error, FindingKind::OrderChanged, summary, effect.to_owned());
        finding.rule = Some(rule.number);
        finding.in_force = self.texts([rule.rule, behind.rule].into_iter());
        finding.desired = self.texts([behind.rule, rule.rule].into_iter());
        self.concern(&mut finding, [behind.rule].into_iter());
        Some(finding)
    }

    fn flushed(&self, desired: &[NumberedRule<'_>]) -> CheckFinding {
        let summary = match desired.len() {
            1 => "the chain is empty; its rule is missing".to_owned(),
            n => format!("the chain is empty; its {n} rules are missing"),
        };
        let rules: Vec<Rule> = desired.iter().map(|rule| rule.rule.clone()).collect();
        let effect = self.effect(|place| effects::of_lost_chain(place, &rules));
        let mut finding = self.finding(FindingSeverity::Error, FindingKind::ChainFlushed, summary, effect);
        finding.desired = self.texts(rules.iter().take(MAX_RULES));
        self.concern(&mut finding, rules.iter());
        finding
    }

    fn shown(&self, differences: RuleDifferences<'_>) -> Vec<CheckFinding> {
        let RuleDifferences { mut missing, mut added, misplaced } = differences;
        let mut findings = Vec::new();
        // A rule that is missing and one in its place, which differ in one part, are one changed rule.
        let mut n_changed = 0;
        while n_changed < MAX_RULES {
            let pair = missing.iter().enumerate().find_map(|(n, rule)| {
                let m = added.iter().position(|other| is_variant(&rule.canonical, &other.canonical))?;
                Some((n, m))
            });
            let Some((n, m)) = pair else { break };
            let (was, is) = (missing.remove(n), added.remove(m));
            findings.push(self.changed(&was, &is));
            n_changed += 1;
        }
        let left = MAX_RULES.saturating_sub(n_changed);
        findings.extend(missing.iter().take(left).map(|rule| self.missing_rule(rule)));
        findings.extend(added.iter().take(left).map(|rule| self.added_rule(rule)));
        let n_more = missing.len().saturating_sub(left) + added.len().saturating_sub(left);
        if n_more > 0 {
            findings.push(self.more(&missing[left.min(missing.len())..], &added[left.min(added.len())..]));
        }
        findings.extend(misplaced.map(|(is, should)| self.misplaced(&is, &should)));
        findings
    }

    fn changed(&self, was: &NumberedRule<'_>, is: &NumberedRule<'_>) -> CheckFinding {
        let summary = format!("rule {} differs", is.number);
        let effect = self.effect(|place| effects::of_changed_rule(place, was.rule, is.rule));
        let mut finding = self.finding(FindingSeverity::Error, FindingKind::RuleChanged, summary, effect);
        finding.rule = Some(is.number);
        finding.desired = self.texts([was.rule].into_iter());
        finding.in_force = self.texts([is.rule].into_iter());
        self.concern(&mut finding, [was.rule, is.rule].into_iter());
        finding
    }

    fn missing_rule(&self, rule: &NumberedRule<'_>) -> CheckFinding {
        let effect = self.effect(|place| effects::of_missing_rule(place, rule.rule));
        let summary = format!("rule {} is missing", rule.number);
        let mut finding = self.finding(FindingSeverity::Error, FindingKind::RuleMissing, summary, effect);
        finding.rule = Some(rule.number);
        finding.desired = self.texts([rule.rule].into_iter());
        self.concern(&mut finding, [rule.rule].into_iter());
        finding
    }

    fn added_rule(&self, rule: &NumberedRule<'_>) -> CheckFinding {
        let effect = self.effect(|place| effects::of_added_rule(place, rule.rule));
        let summary = format!("rule {} is not one of the desired rules", rule.number);
        let mut finding = self.finding(FindingSeverity::Error, FindingKind::RuleAdded, summary, effect);
        finding.rule = Some(rule.number);
        finding.in_force = self.texts([rule.rule].into_iter());
        self.concern(&mut finding, [rule.rule].into_iter());
        finding
    }

    fn more(&self, missing: &[NumberedRule<'_>], added: &[NumberedRule<'_>]) -> CheckFinding {
        let kind = if missing.is_empty() { FindingKind::RuleAdded } else { FindingKind::RuleMissing };
        let parts = [(missing.len(), "missing"), (added.len(), "not desired")];
        let parts = parts.iter().filter(|(n, _)| *n > 0);
        let parts: Vec<String> = parts.map(|(n, what)| format!("{n} more rules are {what}")).collect();
        let summary = parts.join(", ");
        let effect = "As of the rules above: many rules of this chain are of other objects.".to_owned();
        let mut finding = self.finding(FindingSeverity::Error, kind, summary, effect);
        let rules: Vec<&Rule> = missing.iter().chain(added).map(|rule| rule.rule).collect();
        finding.desired = self.texts(missing.iter().take(MAX_RULES).map(|rule| rule.rule));
        finding.in_force = self.texts(added.iter().take(MAX_RULES).map(|rule| rule.rule));
        self.concern(&mut finding, rules.into_iter());
        finding
    }

    fn misplaced(&self, is: &NumberedRule<'_>, should: &NumberedRule<'_>) -> CheckFinding {
        let summary = format!("the rules are in another order, from rule {} on", is.number);
        let effect = self.effect(|place| effects::of_order(place, should.rule, is.rule));
        let mut finding = self.finding(FindingSeverity::Error, FindingKind::OrderChanged, summary, effect);
        finding.rule = Some(is.number);
        finding.desired = self.texts([should.rule].into_iter());
        finding.in_force = self.texts([is.rule].into_iter());
        self.concern(&mut finding, [is.rule, should.rule].into_iter());
        finding
    }
}

/// Whether the order of Services in the chain does not count.
fn is_shared(table: Table, name: &ChainName) -> bool {
    SharedChain::ALL.iter().any(|chain| (chain.table(), chain.name()) == (table, *name))
}

/// The rules with their numbers, without comments; a rule that is nothing but a comment does not count.
fn numbered(rules: &[Rule]) -> Vec<NumberedRule<'_>> {
    let canonical = |(n, rule): (usize, &'_ Rule)| {
        let mut canonical = rule.clone();
        canonical.matches.retain(|part| !matches!(part, Match::Comment(_)));
        (n + 1, canonical)
    };
    let numbered = rules.iter().enumerate().map(|(n, rule)| {
        let (number, canonical) = canonical((n, rule));
        NumberedRule { number, rule, hash: keyed_hash(&canonical), canonical }
    });
    numbered.filter(|rule| rule.canonical != Rule::default()).collect()
}

fn same(a: &[NumberedRule<'_>], b: &[NumberedRule<'_>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.canonical == b.canonical)
}

/// What is only in one of both, as often as it is there more; and of the rest the first that is not at its place.
fn differences<'a>(desired: &[NumberedRule<'a>], in_force: &[NumberedRule<'a>]) -> RuleDifferences<'a> {
    // How often each rule is desired and in force, by its hash.
    let mut counts: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    desired.iter().for_each(|rule| counts.entry(rule.hash).or_default().0 += 1);
    in_force.iter().for_each(|rule| counts.entry(rule.hash).or_default().1 += 1);
    let mut found = RuleDifferences::default();
    let mut left = counts.clone();
    let (mut common, mut common_in_force) = (Vec::new(), Vec::new());
    for rule in desired {
        match left.get_mut(&rule.hash) {
            Some((_, n)) if *n > 0 => {
                *n -= 1;
                common.push(rule);
            }
            _ => found.missing.push(rule.clone()),
        }
    }
    let mut left = counts;
    for rule in in_force {
        match left.get_mut(&rule.hash) {
            Some((n, _)) if *n > 0 => {
                *n -= 1;
                common_in_force.push(rule);
            }
            _ => found.added.push(rule.clone()),
        }
    }
    let misplaced = common.iter().zip(&common_in_force).find(|(a, b)| a.canonical != b.canonical);
    found.misplaced = misplaced.map(|(should, is)| ((*is).clone(), (*should).clone()));
    found
}

/// Whether both rules are for the same packets or lead to the same place, so that one takes the other's place.
fn is_variant(a: &Rule, b: &Rule) -> bool {
    let without_target = |rule: &Rule| Rule { target: None, ..rule.clone() };
    let is_random = |part: &Match| matches!(part, Match::Random { .. });
    let has_matches = |rule: &Rule| !rule.matches.iter().all(is_random) || rule.destination.is_some();
    (a.target == b.target && a.target.is_some()) || (has_matches(a) && without_target(a) == without_target(b))
}

/// The chains that every node has.
pub(super) fn canaries(both: &BothRules<'_>) -> Vec<CheckFinding> {
    let is_missing = |table: &Table| {
        let has = |rules: &Ruleset| rules.chain(*table, &names::KUBE_PROXY_CANARY).is_some();
        has(both.desired) && !has(both.in_force)
    };
    let missing: Vec<&str> =
        Table::ALL.iter().filter(|table| is_missing(table)).map(|t| t.as_str()).collect();
    if missing.is_empty() || missing.len() == Table::ALL.len() && both.in_force.tables.is_empty() {
        return Vec::new();
    }
    let summary =
        format!("the canary chain {} is missing in {}", names::KUBE_PROXY_CANARY, missing.join(", "));
    let effect = "None now. The proxy takes its absence in mangle for a flush of all tables, and writes its rules again.";
    let mut finding = CheckFinding::new(FindingSeverity::Warning, FindingKind::ChainMissing, summary, effect);
    finding.family = Some(both.family.as_str().to_owned());
    finding.chain = Some(names::KUBE_PROXY_CANARY.to_string());
    vec![finding]
}
