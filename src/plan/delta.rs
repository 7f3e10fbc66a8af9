//! What differs in a chain of filter, and the state between old and new.

use std::collections::BTreeSet;

use super::committed::Committed;
use crate::iptables::{Chain, Digest, Rule};

/// What to write first for a chain of filter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Union {
    /// These rules; `None` where every desired rule is in force. Old ones come first: of a REJECT and a DROP
    /// for one frontend the old one counts until nat has changed.
    pub(super) rules: Option<Vec<Rule>>,
    /// Whether the chain holds other rules than the desired ones then.
    pub(super) has_obsolete: bool,
}

/// The rules that the chain holds, or may hold, and the `desired` ones together. With `is_shared`, only the
/// presence of the chain is desired.
pub(super) fn union(committed: &Committed, desired: &Chain, is_shared: bool) -> Union {
    let name = &desired.name;
    let only_desired = || Union { rules: Some(desired.rules.clone()), has_obsolete: false };
    let (old, is_known) = match (committed.filter.get(name), committed.uncertain_filter.get(name)) {
        (Some(_), _) if is_shared => return Union::default(),
        (Some(Some(old)), _) => (old, true),
        (Some(None), Some(uncertain)) => (uncertain, false),
        (Some(None) | None, _) => return only_desired(),
    };
    if is_known && *old == desired.rules {
        return Union::default();
    }
    let (old_set, new_set) = (hashes(old), hashes(&desired.rules));
    if old_set.is_subset(&new_set) {
        // Same rules in another order, or another number of times: one write does it.
        return only_desired();
    }
    if is_known && new_set.is_subset(&old_set) {
        return Union { rules: None, has_obsolete: true };
    }
    let new = desired.rules.iter().filter(|rule| !old_set.contains(&Digest::rule(rule)));
    Union { rules: Some(old.iter().chain(new).cloned().collect()), has_obsolete: true }
}

fn hashes(rules: &[Rule]) -> BTreeSet<u64> {
    rules.iter().map(Digest::rule).collect()
}
