//! What differs in a chain of filter, and the state between old and new.

use std::collections::BTreeSet;

use super::committed::Committed;
use crate::iptables::{Chain, Digest, Rule};

/// What to write first for a chain of filter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Union {
    /// Nothing: every desired rule is in force.
    InForce {
        /// Other rules are in force, too.
        has_obsolete: bool,
    },
    /// These rules.
    Write {
        /// Old ones first: of a REJECT and a DROP for one frontend the old one counts until nat
        /// has changed.
        rules: Vec<Rule>,
        /// Some of them are not desired.
        has_obsolete: bool,
    },
}

/// The rules that the chain holds, or may hold, and the `desired` ones together. With `is_shared`, only the
/// presence of the chain is desired.
pub(super) fn union(committed: &Committed, desired: &Chain, is_shared: bool) -> Union {
    let name = &desired.name;
    let (old, is_known) = match (committed.filter.get(name), committed.uncertain_filter.get(name)) {
        (Some(_), _) if is_shared => return Union::InForce { has_obsolete: false },
        (Some(Some(old)), _) => (old, true),
        (Some(None), Some(uncertain)) => (uncertain, false),
        (Some(None) | None, _) => {
            return Union::Write { rules: desired.rules.clone(), has_obsolete: false };
        }
    };
    if is_known && *old == desired.rules {
        return Union::InForce { has_obsolete: false };
    }
    let (old_set, new_set) = (hashes(old), hashes(&desired.rules));
    match (is_known && new_set.is_subset(&old_set), old_set.is_subset(&new_set)) {
        // Same rules in another order, or another number of times: one write does it.
        (_, true) => Union::Write { rules: desired.rules.clone(), has_obsolete: false },
        (true, false) => Union::InForce { has_obsolete: true },
        (false, false) => {
            let new = desired.rules.iter().filter(|rule| !old_set.contains(&Digest::rule(rule)));
            Union::Write { rules: old.iter().chain(new).cloned().collect(), has_obsolete: true }
        }
    }
}

/// Whether the chain, as it is or once it holds that union, has to be written once more.
pub(super) fn has_obsolete(committed: &Committed, desired: &Chain, is_shared: bool) -> bool {
    match union(committed, desired, is_shared) {
        Union::InForce { has_obsolete } | Union::Write { has_obsolete, .. } => has_obsolete,
    }
}

fn hashes(rules: &[Rule]) -> BTreeSet<u64> {
    rules.iter().map(Digest::rule).collect()
}
