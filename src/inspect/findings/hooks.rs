//! The built-in chains: whether they jump to our chains, and which rules of other programs stand before these jumps.

use std::collections::BTreeSet;

use super::chain_differences::BothRules;
use super::check_report::{CheckFinding, FindingKind, FindingSeverity};
use super::effects;
use super::service_names::ServiceNames;
use crate::iptables::{ChainContent, ChainName, Jump, Match, Rule, Ruleset, Table, Target, write};
use crate::rules::fixed;
use crate::rules::ownership::{self, ChainOwner};

/// The jumps that the rules in force lack. A table without any of our chains is reported as such.
pub(super) fn missing_jumps(both: &BothRules<'_>, names: &ServiceNames<'_>) -> Vec<CheckFinding> {
    let has_chains = |table: Table| {
        let chains = both.in_force.tables.get(&table).into_iter().flatten();
        chains.into_iter().any(|(name, _)| ChainOwner::of(table, name).is_compared())
    };
    let with_chains: Vec<Table> = Table::ALL.into_iter().filter(|table| has_chains(*table)).collect();
    let missing = fixed::jumps().into_iter().filter(|jump| with_chains.contains(&jump.table));
    let missing = missing.filter(|jump| {
        let from = both.in_force.chain(jump.table, &jump.from);
        !from.is_some_and(|chain| chain.rules.iter().any(|rule| is_jump(rule, jump)))
    });
    missing.filter_map(|jump| finding(both, &jump, names)).collect()
}

/// Whether `rule` is the jump, whatever its comment.
fn is_jump(rule: &Rule, jump: &Jump) -> bool {
    let without_comments = |rule: &Rule| {
        let mut rule = rule.clone();
        rule.matches.retain(|part| !matches!(part, Match::Comment(_)));
        rule
    };
    rule.target == jump.rule.target && without_comments(rule) == without_comments(&jump.rule)
}

fn finding(both: &BothRules<'_>, jump: &Jump, names: &ServiceNames<'_>) -> Option<CheckFinding> {
    let to = jump.rule.callee()?;
    let summary = format!("the jump to {to} is missing");
    let effect = effects::of_missing_jump(jump.table, &jump.from, to);
    let mut finding = CheckFinding::new(FindingSeverity::Error, FindingKind::JumpMissing, summary, effect);
    finding.family = Some(both.family.as_str().to_owned());
    finding.table = Some(jump.table.to_string());
    finding.chain = Some(jump.from.to_string());
    finding.desired = vec![write::rule_text(both.family, &jump.rule)];
    names.concern_all(&mut finding);
    Some(finding)
}

/// Whether a rule of another program stands before one of our jumps and may decide about a packet.
pub(super) fn has_deciding_rules(in_force: &Ruleset) -> bool {
    built_in(in_force).any(|(table, chain)| {
        let ahead = &chain.rules[..n_ahead(table, chain)];
        let returns = |rule: &Rule| rule.target == Some(Target::Return) && effects::may_match_new(rule);
        ahead.iter().any(|rule| returns(rule) || may_decide(in_force, table, rule, &mut BTreeSet::new()))
    })
}

fn built_in(rules: &Ruleset) -> impl Iterator<Item = (Table, &ChainContent)> {
    let tables = rules.tables.iter().filter(|(table, _)| **table != Table::Mangle);
    tables.flat_map(|(table, chains)| {
        chains.values().filter(|chain| chain.policy.is_some()).map(|chain| (*table, chain))
    })
}

/// Whether the rule leads to one of our top-level chains.
pub(super) fn is_ours(table: Table, rule: &Rule) -> bool {
    rule.callee().is_some_and(|callee| {
        ownership::is_top_level(&callee) || ChainOwner::of(table, &callee) == ChainOwner::SharedWithKubelet
    })
}

fn may_decide(rules: &Ruleset, table: Table, rule: &Rule, seen: &mut BTreeSet<ChainName>) -> bool {
    if is_ours(table, rule) || !effects::may_match_new(rule) {
        return false;
    }
    match &rule.target {
        None | Some(Target::SetXmark { .. } | Target::Return) => false,
        Some(Target::Jump(chain) | Target::Goto(chain)) => {
            let callee = rules.chain(table, chain).filter(|_| seen.insert(*chain));
            callee.is_some_and(|callee| callee.rules.iter().any(|rule| may_decide(rules, table, rule, seen)))
        }
        Some(Target::Other { name, .. }) => !PASSING.contains(&&**name),
        Some(_) => true,
    }
}

/// Targets after which a packet goes on with the next rule.
const PASSING: [&str; 12] =
    ["LOG", "NFLOG", "MARK", "CONNMARK", "CLASSIFY", "DSCP", "TCPMSS", "TOS", "TTL", "HL", "SET", "CT"];

/// The number of rules of a built-in chain up to our last jump.
pub(super) fn n_ahead(table: Table, chain: &ChainContent) -> usize {
    chain.rules.iter().rposition(|rule| is_ours(table, rule)).map_or(0, |last| last + 1)
}

/// Whether `rule` of the chain `chain` decides about the packets that it matches: they leave the table, or are changed.
pub(super) fn decides(table: Table, chain: &ChainName, rule: &Rule) -> bool {
    match &rule.target {
        None | Some(Target::SetXmark { .. } | Target::Jump(_) | Target::Goto(_)) => false,
        Some(Target::Return) => table.built_in().contains(&chain.as_str()),
        Some(Target::Other { name, .. }) => !PASSING.contains(&&**name),
        Some(_) => true,
    }
}

/// Gives the desired rules what other programs have on this node: their chains, policies, and their rules in built-in
/// chains, but for those that stand before our jumps.
pub(super) fn adopt_foreign_rules(desired: &mut Ruleset, in_force: &Ruleset) {
    for (table, chains) in &in_force.tables {
        for (name, chain) in chains {
            match (ChainOwner::of(*table, name), chain.policy) {
                (ChainOwner::Foreign, None) => *desired.chain_mut(*table, *name) = chain.clone(),
                (_, Some(policy)) => {
                    let content = desired.chain_mut(*table, *name);
                    content.policy = Some(policy);
                    content.rules.extend(chain.rules[n_ahead(*table, chain)..].iter().cloned());
                }
                _ => {}
            }
        }
    }
}

/// The built-in chains in force, with missing jumps at their heads.
pub(super) fn with_all_jumps(in_force: &Ruleset) -> Vec<(Table, ChainName, ChainContent)> {
    let mut repaired = Vec::new();
    for (table, chains) in &in_force.tables {
        for (name, chain) in chains.iter().filter(|(_, chain)| chain.policy.is_some()) {
            let mut content = chain.clone();
            for jump in fixed::jumps().into_iter().filter(|jump| (jump.table, jump.from) == (*table, *name)) {
                if !content.rules.iter().any(|rule| is_jump(rule, &jump)) {
                    content.rules.insert(0, jump.rule);
                }
            }
            repaired.push((*table, *name, content));
        }
    }
    repaired
}
