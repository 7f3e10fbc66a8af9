//! What differs in a chain of filter, and the state between old and new.

use std::collections::BTreeSet;

use super::Committed;
use crate::iptables::{Chain, Digest, Rule};

/// What to write first for a chain of filter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Union {
    /// Nothing: everything that is wanted is there.
    AsItIs {
        /// More than that is there.
        has_leftovers: bool,
    },
    /// These rules.
    Write {
        /// Old ones first: of a REJECT and a DROP for one frontend the old one counts until nat
        /// has changed.
        rules: Vec<Rule>,
        /// Some of them are not wanted.
        has_leftovers: bool,
    },
}

/// The rules that the chain holds, or may hold, and those of `wanted` together. With `is_shared`, the
/// chain only has to be there: its rules are another program's.
pub(super) fn union(committed: &Committed, wanted: &Chain, is_shared: bool) -> Union {
    let (old, is_known) = match (committed.filter.get(&wanted.name), committed.possible.get(&wanted.name)) {
        (Some(_), _) if is_shared => return Union::AsItIs { has_leftovers: false },
        (Some(Some(old)), _) => (old, true),
        (Some(None), Some(possible)) => (possible, false),
        (Some(None) | None, _) => {
            return Union::Write { rules: wanted.rules.clone(), has_leftovers: false };
        }
    };
    if is_known && *old == wanted.rules {
        return Union::AsItIs { has_leftovers: false };
    }
    let (old_set, new_set) = (hashes(old), hashes(&wanted.rules));
    match (is_known && new_set.is_subset(&old_set), old_set.is_subset(&new_set)) {
        // Same rules in another order, or another number of times: one write does it.
        (_, true) => Union::Write { rules: wanted.rules.clone(), has_leftovers: false },
        (true, false) => Union::AsItIs { has_leftovers: true },
        (false, false) => {
            let new = wanted.rules.iter().filter(|rule| !old_set.contains(&Digest::rule(rule)));
            Union::Write { rules: old.iter().chain(new).cloned().collect(), has_leftovers: true }
        }
    }
}

/// Whether the chain, as it is or once it holds that union, has to be written once more.
pub(super) fn has_leftovers(committed: &Committed, wanted: &Chain, is_shared: bool) -> bool {
    match union(committed, wanted, is_shared) {
        Union::AsItIs { has_leftovers } | Union::Write { has_leftovers, .. } => has_leftovers,
    }
}

fn hashes(rules: &[Rule]) -> BTreeSet<u64> {
    rules.iter().map(Digest::rule).collect()
}
