//! Chains that differ, as the report shows them: what each is for, and its rules in groups.

use std::collections::BTreeSet;

use super::diff_report::{ChainDiff, EditKind, RuleLine};
use crate::inspect::labels::{ChainLabels, service_port_in};
use crate::iptables::diff::{DifferentChain, Presence, RuleEdit};
use crate::iptables::{Policy, Rule, write};
use crate::net::IpFamily;

/// Rules before and behind a group of rules that differ.
const N_AROUND: usize = 3;

/// The Services of `chains`, or of their rules that differ, `<ns>/<name>`. `labels` are of both sides.
pub(super) fn services(chains: &[DifferentChain<'_>], labels: &[ChainLabels; 2]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for chain in chains {
        let port = labels.iter().find_map(|labels| labels.service_port(&chain.name));
        match port {
            Some(port) => drop(found.insert(service_of(port).to_owned())),
            None => found.extend(chain.edits.iter().filter_map(|edit| match edit {
                RuleEdit::Kept(_) => None,
                RuleEdit::Added(rule) | RuleEdit::Removed(rule) => {
                    rule.comment().and_then(service_port_in).map(|port| service_of(port).to_owned())
                }
            })),
        }
    }
    found.into_iter().collect()
}

/// `<ns>/<name>` of `<ns>/<name>:<port>`.
fn service_of(port: &str) -> &str {
    port.split(':').next().unwrap_or(port)
}

/// `chain` for the report.
pub(super) fn describe(chain: &DifferentChain<'_>, family: IpFamily, labels: &[ChainLabels; 2]) -> ChainDiff {
    let count = |kind: EditKind| chain.edits.iter().filter(|edit| kind_of(edit) == kind).count();
    let rules: Vec<Rule> = chain.edits.iter().map(|edit| rule_of(edit).clone()).collect();
    let [old, new] = labels.each_ref().map(|labels| labels.label(chain.table, &chain.name, &rules));
    let label = if old.service_port.is_some() { old } else { new };
    ChainDiff {
        table: chain.table.to_string(),
        chain: chain.name.to_string(),
        label: label.to_string(),
        edit: match chain.presence {
            Presence::Old => EditKind::Removed,
            Presence::New => EditKind::Added,
            Presence::Both => EditKind::Kept,
        },
        policies: chain.policies.filter(|[old, new]| old != new).map(|policies| policies.map(policy_text)),
        n_added: count(EditKind::Added),
        n_removed: count(EditKind::Removed),
        hunks: hunks(&chain.edits, family),
    }
}

fn policy_text(policy: Policy) -> String {
    match policy {
        Policy::Accept => "ACCEPT".to_owned(),
        Policy::Drop => "DROP".to_owned(),
    }
}

fn kind_of(edit: &RuleEdit<'_>) -> EditKind {
    match edit {
        RuleEdit::Kept(_) => EditKind::Kept,
        RuleEdit::Added(_) => EditKind::Added,
        RuleEdit::Removed(_) => EditKind::Removed,
    }
}

fn rule_of<'a>(edit: &RuleEdit<'a>) -> &'a Rule {
    match edit {
        RuleEdit::Kept(rule) | RuleEdit::Added(rule) | RuleEdit::Removed(rule) => rule,
    }
}

/// The edits that are near a difference, in groups.
fn hunks(edits: &[RuleEdit<'_>], family: IpFamily) -> Vec<Vec<RuleLine>> {
    let mut hunks: Vec<Vec<RuleLine>> = Vec::new();
    let mut end = 0;
    for (n, _) in edits.iter().enumerate().filter(|(_, edit)| kind_of(edit) != EditKind::Kept) {
        let start = n.saturating_sub(N_AROUND);
        if start > end || hunks.is_empty() {
            hunks.push(Vec::new());
            end = start;
        }
        let until = edits.len().min(n + 1 + N_AROUND);
        let line = |edit: &RuleEdit<'_>| RuleLine {
            edit: kind_of(edit),
            rule: write::rule_text(family, rule_of(edit)),
        };
        let lines = edits[end.min(until)..until].iter().map(line);
        hunks.last_mut().expect("added above").extend(lines);
        end = until;
    }
    hunks
}
