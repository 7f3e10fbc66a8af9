//! Compares a family's tables with what was left there, without reading rules; and records fingerprints, which that
//! needs. On nft; `legacy` has what differs there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use tracing::info;

use super::family_tables::{
    FEW_CHAINS, FamilyTables, Hooks, TABLES, contains, digest_of, is_compared, names_of,
};
use super::machine::{Action, Comparison, Cursor, Knowledge, Signal};
use super::reason::ReadReason;
use crate::iptables::{ChainName, Fingerprint, Jump, Table};
use crate::kernel::{Backend, Dump, Iptables};
use crate::log::v;
use crate::plan::{Committed, PendingFingerprints};
use crate::rules::names;

/// How many chains are dumped one by one before changes of the cluster are synced: some 40 ms.
const SLICE: usize = 4_000;

/// How thoroughly the legacy back-end's tables are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// By their outlines, where they are too large to be dumped each second.
    Quick,
    /// By the fingerprint of each chain.
    Whole,
}

/// What a comparison of some chains found.
#[derive(Clone, Copy, Debug, Default)]
struct ChainsCompared {
    /// The first difference.
    difference: Option<ReadReason>,
    /// Whether a chain of known content has no fingerprint.
    has_gaps: bool,
}

impl<K: Iptables> FamilyTables<K> {
    /// Does what `due` (a check or an audit) asks for. Returns why the next sync has to read the kernel, if it has to.
    pub(super) fn check(&mut self, due: Signal) -> Option<ReadReason> {
        let result = match self.signal(due) {
            Action::None => return None,
            Action::Read(reason) => return Some(reason),
            Action::Check => Signal::Checked(self.compare(Depth::Quick)),
            Action::Audit => Signal::Audited(self.compare(Depth::Whole)),
            Action::CompareSlice(cursor) => self.compare_slice(cursor),
        };
        match self.signal(result) {
            Action::Read(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether the tables are as they were left, as far as a comparison without a read shows. On nft, drops pending
    /// fingerprints.
    pub fn compare(&mut self, depth: Depth) -> Comparison {
        if let Knowledge::Unknown { reason, .. } = self.knowledge {
            return Comparison::Different { reason, is_whole: true };
        }
        let comparison = match self.kernel.backend() {
            Backend::Nft => self.compare_nft(),
            Backend::Legacy => self.compare_legacy(depth),
        };
        if self.references.flushed.is_empty() || !self.may_references_differ() {
            return comparison;
        }
        // Only reading tells whether foreign rules still refer to our chains.
        match comparison {
            Comparison::Same => Comparison::Partial { n_left: 0, is_complete: false },
            Comparison::Partial { n_left, .. } => Comparison::Partial { n_left, is_complete: false },
            Comparison::Different { reason, .. } => Comparison::Different { reason, is_whole: false },
        }
    }

    /// Whether nat may hold other foreign rules than when it was read.
    fn may_references_differ(&self) -> bool {
        match self.kernel.backend() {
            // Tables are compared only after an external commit.
            Backend::Nft => true,
            Backend::Legacy => self.legacy.is_nat_changed(),
        }
    }

    fn compare_nft(&mut self) -> Comparison {
        let Some(committed) = &mut self.committed else { return Comparison::Same };
        committed.fingerprints.drop_pending();
        let compared = match committed.n_chains() < FEW_CHAINS {
            true => self.compare_all(),
            false => self.compare_first(),
        };
        match compared {
            Ok(Some(comparison)) => comparison,
            Ok(None) => self.compare_names(),
            Err(error) => {
                let family = self.kernel.family();
                info!(%family, error = %format!("{error:#}"), "cannot dump rules; checking chain names only");
                self.compare_names()
            }
        }
    }

    /// Few chains: all at once.
    fn compare_all(&mut self) -> anyhow::Result<Option<Comparison>> {
        let mut dumps = BTreeMap::new();
        for table in TABLES {
            let Some(dump) = self.kernel.fingerprints(table, None)? else { return Ok(None) };
            dumps.insert(table, dump);
        }
        Ok(Some(match self.difference_in(&dumps) {
            Some(reason) => Comparison::Different { reason, is_whole: true },
            None => Comparison::Same,
        }))
    }

    /// The first difference in dumps of whole tables. A chain without fingerprint counts: so few chains are read.
    pub(super) fn difference_in(&mut self, dumps: &BTreeMap<Table, Dump>) -> Option<ReadReason> {
        let mut difference = None;
        if let Some(committed) = self.known() {
            for (table, dump) in dumps {
                let finding = compare_chains(committed, *table, &names_of(committed, *table), dump);
                let is_stray =
                    |name: &ChainName| is_compared(*table, name) && !contains(committed, *table, name);
                let has_strays = dump.chains.iter().any(|chain| is_stray(&chain.name));
                let gap = finding.has_gaps.then_some(ReadReason::FingerprintMissing);
                let stray = has_strays.then_some(ReadReason::ChainStray);
                difference = difference.or(finding.difference).or(stray).or(gap);
            }
        }
        difference.or_else(|| (!self.has_jumps(dumps)).then_some(ReadReason::JumpMissing))
    }

    /// Many chains: everything that a flush would change. The chains of nat are left to a scan.
    fn compare_first(&mut self) -> anyhow::Result<Option<Comparison>> {
        let Some(committed) = &self.committed else { return Ok(None) };
        let mut dumps = BTreeMap::new();
        for table in TABLES {
            let mut names: Vec<ChainName> =
                table.built_in().iter().map(|name| ChainName::literal(name)).collect();
            if table == Table::Filter {
                names.extend(committed.filter.keys());
            }
            let Some(dump) = self.kernel.fingerprints(table, Some(&names))? else { return Ok(None) };
            dumps.insert(table, dump);
        }
        let filter = names_of(committed, Table::Filter);
        let filter = compare_chains(committed, Table::Filter, &filter, &dumps[&Table::Filter]);
        let mut missing: BTreeSet<ChainName> = committed.nat.keys().copied().collect();
        let mut has_strays = false;
        self.kernel.chain_names(Table::Nat, &mut |name| {
            if let Some(name) = ChainName::new(name) {
                has_strays |= !missing.remove(&name) && is_compared(Table::Nat, &name);
            }
        })?;
        let n_left = committed.nat.len();
        let missing = (!missing.is_empty()).then_some(ReadReason::ChainMissing);
        let difference = filter.difference.or(missing).or(has_strays.then_some(ReadReason::ChainStray));
        let difference = difference.or_else(|| (!self.has_jumps(&dumps)).then_some(ReadReason::JumpMissing));
        Ok(Some(match difference {
            Some(reason) => Comparison::Different { reason, is_whole: false },
            None => Comparison::Partial { n_left, is_complete: !filter.has_gaps },
        }))
    }

    /// Compares the slice after `cursor`.
    pub(super) fn compare_slice(&mut self, mut cursor: Cursor) -> Signal {
        let Some(committed) = self.committed.as_ref() else { return Signal::Sliced(cursor) };
        // After the last chain, the scan goes on with the first.
        let last = committed.nat.last_key_value().map(|(last, _)| *last);
        cursor.after = cursor.after.filter(|after| last.is_some_and(|last| *after < last));
        let from = cursor.after.map_or(Bound::Unbounded, Bound::Excluded);
        let n = SLICE.min(cursor.n_left);
        let names = committed.nat.range((from, Bound::Unbounded)).take(n);
        let names: Vec<ChainName> = names.map(|(name, _)| *name).collect();
        cursor.after = names.last().copied();
        let family = self.kernel.family();
        match self.kernel.fingerprints(Table::Nat, Some(&names)) {
            Ok(Some(dump)) => {
                let finding = compare_chains(committed, Table::Nat, &names, &dump);
                cursor.n_left = match committed.nat.len() < n {
                    true => 0,
                    false => cursor.n_left.saturating_sub(names.len()),
                };
                cursor.is_complete &= !finding.has_gaps;
                match finding.difference {
                    Some(reason) => Signal::Checked(Comparison::Different { reason, is_whole: false }),
                    None => Signal::Sliced(cursor),
                }
            }
            failed => {
                let error = failed.err().map(|error| format!("{error:#}"));
                info!(%family, error, "cannot dump chains; comparison left to the next audit");
                Signal::Sliced(Cursor { n_left: 0, is_complete: false, ..cursor })
            }
        }
    }

    /// Where chains cannot be dumped. Where reading all is quick, that tells.
    fn compare_names(&mut self) -> Comparison {
        let Some(committed) = &self.committed else { return Comparison::Same };
        if committed.n_chains() < FEW_CHAINS {
            return Comparison::Different { reason: ReadReason::DumpFailed, is_whole: true };
        }
        let mut missing: BTreeSet<ChainName> = committed.nat.keys().copied().collect();
        let names = self.kernel.chain_names(Table::Nat, &mut |name| {
            if let Some(name) = ChainName::new(name) {
                missing.remove(&name);
            }
        });
        if names.is_ok() && !missing.is_empty() {
            return Comparison::Different { reason: ReadReason::ChainMissing, is_whole: true };
        }
        match self.jumps.iter().any(|jump| matches!(self.kernel.has_jump(jump), Ok(false))) {
            true => Comparison::Different { reason: ReadReason::JumpMissing, is_whole: true },
            false => Comparison::Partial { n_left: 0, is_complete: false },
        }
    }

    /// Whether all jumps are in place. A built-in chain with the fingerprint that it had when all jumps were seen in it
    /// is not searched: each search is a process.
    fn has_jumps(&mut self, dumps: &BTreeMap<Table, Dump>) -> bool {
        let from: BTreeSet<(Table, ChainName)> =
            self.jumps.iter().map(|jump| (jump.table, jump.from)).collect();
        for (table, from) in from {
            let Some(dump) = dumps.get(&table) else { continue };
            let now = dump.of(&from).map(|chain| chain.fingerprint);
            if now.is_some() && self.hooks.get(&(table, from)).copied() == now {
                continue;
            }
            let mut is_sure = true;
            for jump in self.jumps.iter().filter(|jump| (jump.table, jump.from) == (table, from)) {
                match self.kernel.has_jump(jump) {
                    Ok(true) => {}
                    Ok(false) => return false,
                    Err(error) => {
                        v!(3, %table, chain = %from, error = %format!("{error:#}"), "cannot check the jump");
                        is_sure = false;
                    }
                }
            }
            // Only if the chain still is as in the dump were the jumps seen among these rules.
            match now.filter(|now| is_sure && self.is_still(dump, table, &from, *now)) {
                Some(now) => drop(self.hooks.insert((table, from), now)),
                None => drop(self.hooks.remove(&(table, from))),
            }
        }
        true
    }

    /// Whether the chain still is as in `dump`, where it has this fingerprint.
    fn is_still(&mut self, dump: &Dump, table: Table, chain: &ChainName, was: Fingerprint) -> bool {
        match self.kernel.backend() {
            Backend::Nft => {
                dump.generation.is_some()
                    && matches!(self.kernel.generation(), Ok(now) if now == dump.generation)
            }
            Backend::Legacy => match self.kernel.fingerprints(table, Some(&[*chain])) {
                Ok(Some(now)) => now.of(chain).is_some_and(|now| now.fingerprint == was),
                _ => false,
            },
        }
    }

    /// Records fingerprints of what a sync wrote, where that takes a few milliseconds; what takes longer stays pending.
    /// `alone` is the ruleset's generation if no other process wrote since before the sync; else pending fingerprints are
    /// dropped. Legacy has no generations.
    pub(super) fn record_after_sync(&mut self, alone: Option<u32>) {
        let is_quick = self.known().is_some_and(|committed| {
            committed.fingerprints.pending() != PendingFingerprints::Many || committed.n_chains() < FEW_CHAINS
        });
        match (self.kernel.backend(), alone) {
            (Backend::Legacy, _) => self.record_legacy(),
            (Backend::Nft, None) => self.drop_pending_fingerprints(),
            (Backend::Nft, Some(generation)) if is_quick => self.record_fingerprints(generation),
            (Backend::Nft, Some(_)) => {}
        }
    }

    /// Records pending fingerprints, if the ruleset is still at `generation`, up to which all that is known of the tables
    /// holds; a slice of them, where they are many. Otherwise they stay pending; where dumps fail, they are dropped.
    pub(super) fn record_fingerprints(&mut self, generation: u32) {
        if self.is_known()
            && let Err(error) = self.try_record(generation)
        {
            let family = self.kernel.family();
            v!(3, %family, error = %format!("{error:#}"), "cannot dump chains; fingerprints not recorded");
            self.drop_pending_fingerprints();
        }
    }

    fn try_record(&mut self, generation: u32) -> anyhow::Result<()> {
        let Some(committed) = &mut self.committed else { return Ok(()) };
        let pending: Vec<(Table, ChainName)> = match committed.fingerprints.pending() {
            PendingFingerprints::Nothing => return Ok(()),
            // Where it costs next to nothing, the built-in chains are recorded as well the first time.
            pending
                if committed.n_chains() < FEW_CHAINS
                    && (pending == PendingFingerprints::Many || self.hooks.is_empty()) =>
            {
                return self.try_record_all(generation);
            }
            PendingFingerprints::Few(chains) => chains.to_vec(),
            PendingFingerprints::Many => {
                let of = |table| names_of(committed, table).into_iter().map(move |name| (table, name));
                let all = of(Table::Filter).chain(of(Table::Nat));
                all.filter(|(table, name)| committed.fingerprints.is_pending(*table, name))
                    .take(SLICE)
                    .collect()
            }
        };
        for table in TABLES {
            let of_table = pending.iter().filter(|(of, _)| *of == table);
            let names: Vec<ChainName> = of_table.map(|(_, name)| *name).collect();
            if names.is_empty() {
                continue;
            }
            let Some(dump) = self.kernel.fingerprints(table, Some(&names))? else { continue };
            if dump.generation != Some(generation) {
                return Ok(());
            }
            record_dump(committed, table, &dump);
        }
        if pending.len() < SLICE {
            committed.fingerprints.drop_pending();
        }
        Ok(())
    }

    fn try_record_all(&mut self, generation: u32) -> anyhow::Result<()> {
        let Some(committed) = &mut self.committed else { return Ok(()) };
        for table in TABLES {
            let Some(dump) = self.kernel.fingerprints(table, None)? else { continue };
            if dump.generation != Some(generation) {
                return Ok(());
            }
            record_dump(committed, table, &dump);
            self.hooks.extend(hooks_in(&self.jumps, &committed.jumps, table, &dump));
        }
        committed.fingerprints.drop_pending();
        Ok(())
    }
}

/// Records the fingerprints of `dump` that are pending.
pub(super) fn record_dump(committed: &mut Committed, table: Table, dump: &Dump) {
    for chain in &dump.chains {
        committed.fingerprints.record(table, &chain.name, chain.fingerprint);
    }
}

/// Compares the chains called `names` in `dump` with what was left.
fn compare_chains(committed: &Committed, table: Table, names: &[ChainName], dump: &Dump) -> ChainsCompared {
    let mut found = ChainsCompared::default();
    for name in names {
        let (was, is) = (committed.fingerprints.of(table, name), dump.of(name));
        let difference = match (was, is) {
            (_, None) => Some(ReadReason::ChainMissing),
            // Changes that the kubelet makes to its chain are no drift.
            _ if *name == names::KUBE_FIREWALL => None,
            (Some(was), Some(is)) => (is.fingerprint != was).then_some(ReadReason::FingerprintDiffers),
            // Written, and not compared since.
            (None, Some(is)) if committed.fingerprints.is_pending(table, name) => {
                let n_written = digest_of(committed, table, name).map(|digest| digest.n_rules);
                (Some(is.n_rules) != n_written).then_some(ReadReason::RuleCountDiffers)
            }
            (None, Some(_)) => None,
        };
        let is_gap = was.is_none() && !committed.fingerprints.is_pending(table, name);
        found.has_gaps |=
            is_gap && *name != names::KUBE_FIREWALL && digest_of(committed, table, name).is_some();
        if found.difference.is_none()
            && let Some(reason) = difference
        {
            v!(3, %table, chain = %name, %reason, "chain differs");
            found.difference = difference;
        }
    }
    found
}

/// Those built-in chains in `dump` that have every jump of ours, by the numbers of the jumps `in_place`; with their
/// fingerprints.
pub(super) fn hooks_in(jumps: &[Jump], in_place: &BTreeSet<usize>, table: Table, dump: &Dump) -> Hooks {
    let has_all = |from: &ChainName| {
        let mut of_chain =
            jumps.iter().enumerate().filter(|(_, jump)| (jump.table, jump.from) == (table, *from));
        of_chain.all(|(number, _)| in_place.contains(&number))
    };
    let is_hook = |name: &ChainName| table.built_in().contains(&name.as_str()) && has_all(name);
    let hooks = dump.chains.iter().filter(|chain| is_hook(&chain.name));
    hooks.map(|chain| ((table, chain.name), chain.fingerprint)).collect()
}

#[cfg(test)]
mod tests;
