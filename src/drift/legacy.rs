//! Compares the tables of the legacy back-end, which announces no change: no process, no lock.
//!
//! Each check compares the outline of each table, which takes microseconds. Chains are compared by fingerprint when the
//! outlines differ, at each audit, and otherwise as often as their number allows: at each check up to 2 000 rules, each
//! 4 s at 10 000, each 80 s at 200 000. That takes 0.5 % of a CPU at any size.
//!
//! Nothing proves that no other process wrote between our commit and the dump that its fingerprints are recorded from.
//! Such fingerprints are provisional: the next audit reads the rules, between two equal dumps, whose fingerprints then
//! are those of the rules that were read. From then on audits start no process, until we write again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::compare::{Depth, hooks_in, record_dump};
use super::family_tables::{FEW_CHAINS, FamilyTables, LegacyView, TABLES};
use super::machine::Comparison;
use super::reason::ReadReason;
use crate::iptables::Table;
use crate::kernel::{Dump, Iptables, Outline};
use crate::log::failure;

/// The pause between two whole comparisons, for each rule: 200 times what comparing it takes, 2 us. A measured time
/// would include that of other processes, where the CPU is busy.
const PAUSE: Duration = Duration::from_micros(400);

impl LegacyView {
    /// Records nat as it was read.
    pub(super) fn mark_nat_read(&mut self, dump: &Dump) {
        self.nat = (Some(hash_of(dump)), Some(hash_of(dump)));
    }

    /// Whether nat differs from when it was read.
    pub(super) fn is_nat_changed(&self) -> bool {
        self.nat.0.is_none() || self.nat.0 != self.nat.1
    }
}

/// All chains of a table as one number.
fn hash_of(dump: &Dump) -> u64 {
    let mut hasher = DefaultHasher::new();
    dump.chains.hash(&mut hasher);
    hasher.finish()
}

impl<K: Iptables> FamilyTables<K> {
    /// Whether anything of ours was changed. Incomplete when fingerprints are provisional, or when tables cannot be
    /// dumped: then a process looks up a jump.
    pub(super) fn compare_legacy(&mut self, depth: Depth) -> Comparison {
        let difference = match depth {
            Depth::Quick => self.quick_difference(),
            Depth::Whole => self.whole_difference(),
        };
        let incomplete = Comparison::Partial { n_left: 0, is_complete: false };
        match difference {
            Ok(Some(reason)) => Comparison::Different { reason, is_whole: false },
            Ok(None) => {
                self.legacy.n_failures = 0;
                let is_complete = !self.legacy.is_provisional && !self.has_pending_fingerprints();
                if is_complete { Comparison::Same } else { incomplete }
            }
            Err(error) => {
                self.legacy.n_failures += 1;
                failure!(self.legacy.n_failures, family = %self.kernel.family(), error = %format!("{error:#}"), "cannot dump the tables; checking a jump with iptables instead");
                match self.is_next_jump_missing() {
                    true => Comparison::Different { reason: ReadReason::JumpMissing, is_whole: false },
                    false => incomplete,
                }
            }
        }
    }

    /// One process: the jumps in turn, one of nat and one of filter. A flush removes all jumps of a table.
    fn is_next_jump_missing(&mut self) -> bool {
        let table = if self.n_jump_checks.is_multiple_of(2) { Table::Nat } else { Table::Filter };
        let of_table: Vec<_> = self.jumps.iter().filter(|jump| jump.table == table).collect();
        let jump = of_table[self.n_jump_checks / 2 % of_table.len()];
        self.n_jump_checks += 1;
        matches!(self.kernel.has_jump(jump), Ok(false))
    }

    /// Records fingerprints of what was just written, where that is quick; else the outlines, so that our own commit is
    /// not taken for that of another process.
    pub(super) fn record_legacy(&mut self) {
        let is_quick = self.known().is_some_and(|committed| committed.n_chains() < FEW_CHAINS);
        let recorded = match is_quick {
            true => self.whole_difference().map(drop),
            false => self.outlines().map(|outlines| self.legacy.outlines = outlines),
        };
        if recorded.is_err() {
            // The next check reports it.
            self.legacy.outlines.clear();
        }
    }

    fn outlines(&mut self) -> anyhow::Result<Vec<Option<Outline>>> {
        TABLES.iter().map(|table| self.kernel.outline(*table)).collect()
    }

    fn quick_difference(&mut self) -> anyhow::Result<Option<ReadReason>> {
        let is_same = self.outlines()? == self.legacy.outlines;
        match self.legacy.whole_at {
            Some(whole_at) if is_same && Instant::now() < whole_at => Ok(None),
            _ => self.whole_difference(),
        }
    }

    /// The first difference among all chains. Records the fingerprint of a chain that was written since the last whole
    /// comparison, if it has as many rules as were written.
    fn whole_difference(&mut self) -> anyhow::Result<Option<ReadReason>> {
        let outlines = self.outlines()?;
        self.legacy.outlines.clear();
        let mut dumps = BTreeMap::new();
        for table in TABLES {
            let dump = self.kernel.fingerprints(table, None)?.context("the kernel returned no chains")?;
            dumps.insert(table, dump);
        }
        self.record_hooks(&dumps);
        if let Some(reason) = self.difference_in(&dumps) {
            return Ok(Some(reason));
        }
        self.legacy.is_provisional |= self.has_pending_fingerprints();
        if let Some(committed) = &mut self.committed {
            for (table, dump) in &dumps {
                record_dump(committed, *table, dump);
            }
            committed.fingerprints.drop_pending();
        }
        let n_entries: u32 = outlines.iter().flatten().map(|outline| outline.n_entries).sum();
        self.legacy.nat.1 = dumps.get(&Table::Nat).map(hash_of);
        self.legacy.outlines = outlines;
        self.legacy.whole_at = Some(Instant::now() + PAUSE * n_entries);
        Ok(None)
    }

    /// Records built-in chains as they are after a sync wrote our jumps.
    fn record_hooks(&mut self, dumps: &BTreeMap<Table, Dump>) {
        let Some(committed) = self.committed.as_ref().filter(|_| self.legacy.has_new_jumps) else { return };
        for (table, dump) in dumps {
            self.hooks.extend(hooks_in(&self.jumps, &committed.jumps, *table, dump));
        }
        self.legacy.has_new_jumps = false;
        self.legacy.is_provisional = true;
    }
}

#[cfg(test)]
mod tests;
