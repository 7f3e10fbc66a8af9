//! What the kernel holds of our chains: a hash for each chain of nat, the rules of filter's.

use std::collections::{BTreeMap, BTreeSet};

use super::fingerprints::Fingerprints;
use crate::iptables::{ChainName, Digest, Rule, Table};

/// What one piece of an input does to the chain it is about.
#[derive(Debug)]
pub(super) enum ChainChange {
    /// A chain of nat holds this.
    SetNat(Digest),
    /// A chain of filter holds this.
    SetFilter(Vec<Rule>),
    /// The chain is gone.
    Delete,
    /// The jump of this number is in place.
    InsertJump(usize),
}

impl ChainChange {
    /// Lines of its text: a declaration and the rules, or one command.
    pub(super) fn n_lines(&self) -> usize {
        match self {
            ChainChange::SetNat(_) | ChainChange::SetFilter(_) => 1 + self.n_rules(),
            ChainChange::InsertJump(_) | ChainChange::Delete => 1,
        }
    }

    /// Rules that it writes.
    pub(super) fn n_rules(&self) -> usize {
        match self {
            ChainChange::SetNat(digest) => digest.n_rules as usize,
            ChainChange::SetFilter(rules) => rules.len(),
            ChainChange::InsertJump(_) => 1,
            ChainChange::Delete => 0,
        }
    }
}

/// What the kernel holds, as far as it is known. No rule text of nat is kept.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// Chains of nat in force; `None` when their content is not known.
    pub nat: BTreeMap<ChainName, Option<Digest>>,
    /// Chains of filter in force, with their rules; `None` when they are not known. Kept whole, because the
    /// old rules are needed while they are replaced; they are few.
    pub filter: BTreeMap<ChainName, Option<Vec<Rule>>>,
    /// The rules that chains of filter may hold whose content is not known, after a commit of unknown effect:
    /// the rules before it and its own, each once. As long as no other process writes, they hold no other
    /// rule.
    pub uncertain_filter: BTreeMap<ChainName, Vec<Rule>>,
    /// The numbers of the jumps that are in place.
    pub jumps: BTreeSet<usize>,
    /// Fingerprints of the chains, where they were recorded.
    pub fingerprints: Fingerprints,
}

/// Up to how many rules [`Committed::uncertain_filter`] keeps of a chain; of a chain with more it keeps none.
const MAX_UNCERTAIN: usize = 100_000;

impl Committed {
    /// How many chains are in force.
    pub fn n_chains(&self) -> usize {
        self.nat.len() + self.filter.len()
    }

    /// Marks the fingerprints of all chains of known content as pending: everything was read just now.
    pub fn mark_read(&mut self) {
        let nat =
            self.nat.iter().filter(|(_, content)| content.is_some()).map(|(name, _)| (Table::Nat, *name));
        let filter = self.filter.iter().filter(|(_, content)| content.is_some());
        let filter = filter.map(|(name, _)| (Table::Filter, *name));
        nat.chain(filter).for_each(|(table, name)| self.fingerprints.mark_pending(table, name));
    }

    /// How many rules of ours `table` holds.
    pub fn n_rules(&self, table: Table) -> usize {
        match table {
            Table::Nat => self.nat.values().flatten().map(|digest| digest.n_rules as usize).sum(),
            Table::Filter => self.filter.values().flatten().map(Vec::len).sum(),
            Table::Mangle | Table::Security | Table::Raw => 0,
        }
    }

    /// Records that `change` was committed.
    pub(super) fn apply(&mut self, table: Table, name: ChainName, change: ChainChange) {
        match change {
            ChainChange::SetNat(_) | ChainChange::SetFilter(_) => self.fingerprints.mark_pending(table, name),
            ChainChange::Delete => self.fingerprints.remove(table, name),
            ChainChange::InsertJump(_) => {}
        }
        if table == Table::Filter {
            self.uncertain_filter.remove(&name);
        }
        match change {
            ChainChange::SetNat(digest) => drop(self.nat.insert(name, Some(digest))),
            ChainChange::Delete if table == Table::Filter => drop(self.filter.remove(&name)),
            ChainChange::Delete => drop(self.nat.remove(&name)),
            ChainChange::SetFilter(rules) => drop(self.filter.insert(name, Some(rules))),
            ChainChange::InsertJump(number) => drop(self.jumps.insert(number)),
        }
    }

    /// Records that `change` was committed or not.
    pub(super) fn mark_uncertain(&mut self, table: Table, name: ChainName, change: &ChainChange) {
        if !matches!(change, ChainChange::InsertJump(_)) {
            self.fingerprints.remove(table, name);
        }
        match change {
            ChainChange::Delete if table == Table::Filter => self.mark_filter_uncertain(name, &[]),
            ChainChange::SetNat(_) | ChainChange::Delete => drop(self.nat.insert(name, None)),
            ChainChange::SetFilter(rules) => self.mark_filter_uncertain(name, rules),
            // Counts as in place: a jump that is there twice would do every lookup twice. Reading the
            // kernel settles it.
            ChainChange::InsertJump(number) => drop(self.jumps.insert(*number)),
        }
    }

    /// Records that a chain of filter holds its old rules or `rules`.
    fn mark_filter_uncertain(&mut self, name: ChainName, rules: &[Rule]) {
        let is_unknown =
            matches!(self.filter.get(&name), Some(None)) && !self.uncertain_filter.contains_key(&name);
        let before = self.filter.insert(name, None).flatten();
        if is_unknown {
            return;
        }
        let uncertain = self.uncertain_filter.entry(name).or_default();
        let mut known: BTreeSet<u64> = uncertain.iter().map(Digest::rule).collect();
        let more = before.iter().flatten().chain(rules).filter(|rule| known.insert(Digest::rule(rule)));
        uncertain.extend(more.cloned());
        if uncertain.len() > MAX_UNCERTAIN {
            self.uncertain_filter.remove(&name);
        }
    }
}
