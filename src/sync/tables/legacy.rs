//! Looks at the tables of the legacy back-end, which says nothing by itself: no process, no lock.
//!
//! Each look asks for the numbers of each table, which takes microseconds. The chains are compared by their
//! prints when the numbers differ, at each audit, and otherwise as often as their number allows: at each look
//! up to 2 000 rules, each 4 s at 10 000, each 80 s at 200 000. That takes 0.5 % of a CPU at any size.
//!
//! Nothing proves that no other process wrote between our commit and the dump that its prints are taken from.
//! Such prints are provisional: the next audit reads the rules, between two equal dumps, whose prints then are
//! those of rules that were read. From then on audits need no process, until we write again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;
use tracing::warn;

use super::look::{CHEAP_CHAINS, Depth, Look, doors_of};
use super::{TABLES, Tables};
use crate::iptables::Table;
use crate::kernel::{Dump, Iptables, Outline};

/// The pause between two whole looks, for each rule: 200 times what a look takes, 2 us. A measured time would
/// be that of other processes too, where the CPU is busy.
const PAUSE: Duration = Duration::from_micros(400);

/// What was seen of the tables.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Of each table, at the last whole look that found nothing wrong, or after our last commit.
    outlines: Vec<Option<Outline>>,
    /// When to look at whole tables though their numbers are the same.
    whole_at: Option<Instant>,
    /// Whether any print was taken that another process may have had a hand in.
    is_provisional: bool,
    /// Jumps in place when the tables were taken out for a sync.
    n_jumps: usize,
    /// Whether the sync made some: built-in chains look otherwise for our own doing.
    are_doors_due: bool,
    /// How all of nat looked when it was read, and at the last whole look.
    nat: (Option<u64>, Option<u64>),
    /// How often in a row the tables could not be looked at.
    n_failures: u32,
}

impl Watched {
    /// Notes that the tables were read, with so many jumps in place; `is_undisturbed` when each print is that
    /// of the rules that were read.
    pub(super) fn read(&mut self, is_undisturbed: bool, n_jumps: usize) {
        self.is_provisional = !is_undisturbed;
        self.n_jumps = n_jumps;
    }

    /// Notes how nat looked when it was read.
    pub(super) fn nat_read(&mut self, dump: &Dump) {
        self.nat = (Some(sum(dump)), Some(sum(dump)));
    }

    /// Has whole looks that nothing asks for wait until `whole_at`.
    pub(super) fn delay(&mut self, whole_at: Instant) {
        self.whole_at = Some(whole_at);
    }

    /// Whether nat looks otherwise than when it was read.
    pub(super) fn is_nat_changed(&self) -> bool {
        self.nat.0.is_none() || self.nat.0 != self.nat.1
    }

    /// Notes with how many jumps the tables are put back.
    pub(super) fn put_back(&mut self, n_jumps: usize) {
        self.are_doors_due |= n_jumps > self.n_jumps;
        self.n_jumps = n_jumps;
    }
}

/// All chains of a table as one number.
fn sum(dump: &Dump) -> u64 {
    let mut hasher = DefaultHasher::new();
    dump.chains.hash(&mut hasher);
    hasher.finish()
}

impl<K: Iptables> Tables<K> {
    /// Whether anything of ours was changed. Unread when prints are provisional, or the tables cannot be
    /// looked at: then a process looks at a jump.
    pub(super) fn look_at_legacy(&mut self, depth: Depth) -> Look {
        let looked = match depth {
            Depth::Quick => self.quick_look(),
            Depth::Whole => self.whole_look(),
        };
        match looked {
            Ok(true) => Look { is_wrong: true, is_unread: true },
            Ok(false) => {
                self.watched.n_failures = 0;
                Look { is_wrong: false, is_unread: self.watched.is_provisional || self.has_due_prints() }
            }
            Err(error) => {
                self.watched.n_failures += 1;
                if self.watched.n_failures.is_power_of_two() {
                    let (family, n_failures) = (self.kernel.family(), self.watched.n_failures);
                    warn!(%family, n_failures, error = %format!("{error:#}"), "cannot look at the tables; looking for a jump with iptables instead");
                }
                Look { is_wrong: self.look_at_a_jump(), is_unread: true }
            }
        }
    }

    /// Takes prints of what was just written, where that is quick; else notes how large the tables are now,
    /// so that our own commit is not taken for a foreign one.
    pub(super) fn take_legacy_prints(&mut self) {
        let is_quick = self.committed.as_ref().is_some_and(|committed| committed.n_chains() < CHEAP_CHAINS);
        let looked = match is_quick {
            true => self.whole_look().map(drop),
            false => self.outlines().map(|outlines| self.watched.outlines = outlines),
        };
        if looked.is_err() {
            // The next look says so.
            self.watched.outlines.clear();
        }
    }

    fn outlines(&mut self) -> anyhow::Result<Vec<Option<Outline>>> {
        TABLES.iter().map(|table| self.kernel.outline(*table)).collect()
    }

    fn quick_look(&mut self) -> anyhow::Result<bool> {
        let is_same = self.outlines()? == self.watched.outlines;
        match self.watched.whole_at {
            Some(whole_at) if is_same && Instant::now() < whole_at => Ok(false),
            _ => self.whole_look(),
        }
    }

    /// Compares each chain; whether anything is wrong. What was written since the last whole look has its
    /// print taken, if it has as many rules as were written.
    fn whole_look(&mut self) -> anyhow::Result<bool> {
        let outlines = self.outlines()?;
        self.watched.outlines.clear();
        let mut dumps = BTreeMap::new();
        for table in TABLES {
            let dump = self.kernel.fingerprints(table, None)?.context("the tables show no chains")?;
            dumps.insert(table, dump);
        }
        self.take_doors(&dumps);
        if self.is_wrong(&dumps) {
            return Ok(true);
        }
        self.watched.is_provisional |= self.has_due_prints();
        if let Some(committed) = &mut self.committed {
            for (table, dump) in &dumps {
                dump.chains
                    .iter()
                    .for_each(|shown| committed.fingerprints.record(*table, &shown.name, shown.fingerprint));
            }
            committed.fingerprints.drop_pending();
        }
        let n_entries: u32 = outlines.iter().flatten().map(|outline| outline.n_entries).sum();
        self.watched.nat.1 = dumps.get(&Table::Nat).map(sum);
        self.watched.outlines = outlines;
        self.watched.delay(Instant::now() + PAUSE * n_entries);
        Ok(false)
    }

    /// Takes built-in chains as they look after we put our jumps there.
    fn take_doors(&mut self, dumps: &BTreeMap<Table, Dump>) {
        let Some(committed) = self.committed.as_ref().filter(|_| self.watched.are_doors_due) else { return };
        for (table, dump) in dumps {
            self.doors.extend(doors_of(&self.jumps, &committed.jumps, *table, dump));
        }
        self.watched.are_doors_due = false;
        self.watched.is_provisional = true;
    }
}
