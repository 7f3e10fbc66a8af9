//! The differences between two rulesets, as chains and rules.
//!
//! Rules are compared as values, so spelling and counters do not count. The order of two rules counts unless
//! no packet can match both, or both have the same verdict: then exchanging them changes nothing (see `exchange`).

mod canonical;
mod exchange;

use std::collections::{BTreeMap, BTreeSet};

use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::{ChainContent, ChainName, Policy, Rule, Ruleset, Table, Target};

/// A chain that is not the same in both rulesets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DifferentChain<'a> {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: ChainName,
    /// In which of the rulesets it exists. A built-in chain exists in both.
    pub presence: Presence,
    /// The policies of a built-in chain, old and new.
    pub policies: Option<[Policy; 2]>,
    /// The rules of both, merged; the order is that of the texts, or a canonical one where that has fewer
    /// edits.
    pub edits: Vec<RuleEdit<'a>>,
}

/// In which of two rulesets a chain exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// In the old one.
    Old,
    /// In the new one.
    New,
    /// In both.
    Both,
}

/// A rule of one of two chains, or of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleEdit<'a> {
    /// In both.
    Kept(&'a Rule),
    /// In the old one.
    Removed(&'a Rule),
    /// In the new one.
    Added(&'a Rule),
}

/// The chains that differ, by table and name.
///
/// ```
/// use chainsmith::iptables::{diff, replay};
/// use chainsmith::net::IpFamily;
///
/// let of = |rules: &str| replay::text(IpFamily::V4, &format!("*filter\n:A - [0:0]\n{rules}COMMIT\n"));
/// let (tcp, udp) = ("-A A -p tcp -j DROP\n", "-A A -p udp -j ACCEPT\n");
/// assert_eq!(diff::compare(&of(&format!("{tcp}{udp}"))?, &of(&format!("{udp}{tcp}"))?), []);
/// assert_eq!(diff::compare(&of(tcp)?, &of(udp)?).len(), 1);
/// # Ok::<(), chainsmith::iptables::parse::ParseError>(())
/// ```
pub fn compare<'a>(old: &'a Ruleset, new: &'a Ruleset) -> Vec<DifferentChain<'a>> {
    let tables: BTreeSet<Table> = old.tables.keys().chain(new.tables.keys()).copied().collect();
    tables.into_iter().flat_map(|table| compare_table(table, old, new)).collect()
}

fn compare_table<'a>(table: Table, old: &'a Ruleset, new: &'a Ruleset) -> Vec<DifferentChain<'a>> {
    static ABSENT: BTreeMap<ChainName, ChainContent> = BTreeMap::new();
    let [old, new] = [old, new].map(|ruleset| ruleset.tables.get(&table).unwrap_or(&ABSENT));
    let order_counts = [old, new].iter().any(|chains| chains.values().any(rewrites_addresses));
    let names: BTreeSet<ChainName> = old.keys().chain(new.keys()).copied().collect();
    let mut different = Vec::new();
    for name in names {
        let is_built_in = table.built_in().contains(&name.as_str());
        let (old, new) = (old.get(&name), new.get(&name));
        let presence = match (old, new) {
            (Some(_), None) if !is_built_in => Presence::Old,
            (None, Some(_)) if !is_built_in => Presence::New,
            _ => Presence::Both,
        };
        let policy =
            |chain: Option<&ChainContent>| chain.and_then(|chain| chain.policy).unwrap_or(Policy::Accept);
        let policies = is_built_in.then(|| [policy(old), policy(new)]);
        let [old, new] = [old, new].map(|chain| chain.map_or(&[][..], |chain| &chain.rules));
        let is_same_policy = policies.is_none_or(|[old, new]| old == new);
        if presence == Presence::Both && is_same_policy && old == new {
            continue;
        }
        let edits = edits(old, new, order_counts);
        let is_same = edits.iter().all(|edit| matches!(edit, RuleEdit::Kept(_)));
        if presence != Presence::Both || !is_same_policy || !is_same {
            different.push(DifferentChain { table, name, presence, policies, edits });
        }
    }
    different
}

/// Whether a packet goes on with other addresses behind a rule of `chain`: then it may match two rules whose
/// addresses exclude each other.
fn rewrites_addresses(chain: &ChainContent) -> bool {
    let rewrites =
        |target: &Target| matches!(target, Target::Other { name, .. } if ["DNPT", "SNPT"].contains(&&**name));
    chain.rules.iter().filter_map(|rule| rule.target.as_ref()).any(rewrites)
}

/// From `old` to `new`, in the order of the texts or in the canonical one, whichever has fewer edits.
fn edits<'a>(old: &'a [Rule], new: &'a [Rule], order_counts: bool) -> Vec<RuleEdit<'a>> {
    let as_written = edits_in_order(&old.iter().collect::<Vec<_>>(), &new.iter().collect::<Vec<_>>());
    if order_counts {
        return as_written;
    }
    let (Some(old), Some(new)) = (canonical::order(old), canonical::order(new)) else { return as_written };
    let in_canonical_order = edits_in_order(&old, &new);
    let n_edits =
        |edits: &[RuleEdit<'_>]| edits.iter().filter(|edit| !matches!(edit, RuleEdit::Kept(_))).count();
    if n_edits(&in_canonical_order) < n_edits(&as_written) { in_canonical_order } else { as_written }
}

fn edits_in_order<'a>(old: &[&'a Rule], new: &[&'a Rule]) -> Vec<RuleEdit<'a>> {
    let (old_keys, new_keys) = (occurrences(old), occurrences(new));
    // Every key is unique, so this algorithm takes n log n steps, whatever the texts are.
    let operations = capture_diff_slices(Algorithm::Hunt, &old_keys, &new_keys);
    let mut edits = Vec::with_capacity(old.len().max(new.len()));
    for operation in operations {
        let (old, new) = (&old[operation.old_range()], &new[operation.new_range()]);
        if let DiffOp::Equal { .. } = operation {
            edits.extend(old.iter().map(|rule| RuleEdit::Kept(rule)));
        } else {
            edits.extend(old.iter().map(|rule| RuleEdit::Removed(rule)));
            edits.extend(new.iter().map(|rule| RuleEdit::Added(rule)));
        }
    }
    edits
}

/// Each rule with the number of equal rules before it.
fn occurrences<'a>(rules: &[&'a Rule]) -> Vec<(&'a Rule, usize)> {
    let mut seen: BTreeMap<&Rule, usize> = BTreeMap::new();
    let mut count = |rule: &'a Rule| {
        let n = seen.entry(rule).or_default();
        *n += 1;
        (rule, *n)
    };
    rules.iter().map(|rule| count(rule)).collect()
}

#[cfg(test)]
mod tests;
