//! Reads the kernel when its tables are unknown, and compares what it finds with what was left.
//!
//! Rules are read with `iptables-save`, which on nft takes too long where there are very many chains. There the chains
//! are listed by name and compared by fingerprint, so that a commit of another process does not have such a table
//! rewritten.

use std::collections::BTreeSet;

use anyhow::anyhow;
use tracing::{info, warn};

use super::compare::hooks_in;
use super::difference::Drift;
use super::family_tables::{FamilyTables, TABLES, contains, digest_of, is_compared, names_of};
use super::machine::{Knowledge, Signal, Unread};
use super::reason::ReadReason;
use crate::iptables::{ChainName, Table};
use crate::kernel::{Backend, Dump, Iptables, Readable};
use crate::plan::{Committed, ReadBack, SaveReader};
use crate::rules::names;

/// What a read found in the kernel.
struct TablesRead {
    found: Committed,
    /// Chains that differ by fingerprint, where their rules cannot be read.
    changed: Vec<(Table, ChainName)>,
    /// Whether each chain was read or compared.
    is_complete: bool,
    /// On legacy, whether fingerprints are those of the rules that were read: no other process wrote meanwhile.
    is_undisturbed: bool,
}

impl<K: Iptables> FamilyTables<K> {
    /// Takes the committed state out, after a read of the kernel if the tables are unknown; with the drift that the read
    /// found.
    pub fn take(&mut self) -> (Committed, Drift) {
        let left = self.committed.take();
        let (reason, unread) = match self.knowledge {
            Knowledge::Unknown { reason, unread } => (reason, unread),
            _ => match left {
                Some(committed) => return (committed, Drift::default()),
                None => (ReadReason::Start, Unread::Rewritten),
            },
        };
        self.record_read(reason);
        let TablesRead { mut found, changed, is_complete, is_undisturbed } =
            self.read(&TABLES, left.as_ref(), unread);
        self.legacy.is_provisional = !is_undisturbed;
        self.legacy.n_jumps = found.jumps.len();
        let mut drift = left.map_or_else(Drift::default, |left| self.difference(&left, &mut found));
        drift.chains.extend(changed);
        self.signal(Signal::Read { is_complete });
        (found, drift)
    }

    /// Reads the chains of `repaired` back, right after they were written. A chain that reads as before the repair is an
    /// equivalent spelling: it is logged once, from then on counts as equal, and is no drift. An equivalent has as many
    /// rules as were written. Any other difference was made by another process since the repair: returns whether there
    /// is one, so that the caller repairs it, too.
    #[must_use]
    pub fn learn_equivalents(&mut self, repaired: &mut Drift) -> bool {
        let is_of = |table: &Table| repaired.chains.iter().any(|(of, _)| of == table);
        let tables: Vec<Table> = TABLES.into_iter().filter(is_of).collect();
        let is_readable = |table: &Table| matches!(self.kernel.readable(*table), Ok(Readable::Rules));
        let tables: Vec<Table> = tables.into_iter().filter(is_readable).collect();
        if tables.is_empty() {
            return false;
        }
        let Some(committed) = self.committed.take() else { return false };
        self.record_read(ReadReason::RepairWritten);
        let found = self.read(&tables, None, Unread::Rewritten).found;
        let mut is_changed_again = false;
        repaired.chains.retain(|(table, chain)| {
            let (written, read) = (digest_of(&committed, *table, chain), digest_of(&found, *table, chain));
            if let (Some(written), Some(read)) = (written, read)
                && written != read
            {
                let before = self.drifted.get(&(*table, *chain));
                if before != Some(&read) || written.n_rules != read.n_rules {
                    is_changed_again = true;
                    return true;
                }
                let family = self.kernel.family();
                info!(%family, %table, %chain, "chain reads back in another spelling; treated as equal");
                self.equivalents.insert((*table, *chain), (written, read));
                return false;
            }
            true
        });
        self.equivalents.retain(|(table, chain), _| digest_of(&committed, *table, chain).is_some());
        self.committed = Some(committed);
        is_changed_again
    }

    /// Reads nat for the references of foreign rules to our chains; nothing where it cannot be read.
    pub fn read_referenced(&mut self) {
        if !matches!(self.kernel.readable(Table::Nat), Ok(Readable::Rules)) {
            return;
        }
        let family = self.kernel.family();
        self.record_read(ReadReason::StaleChainReferenced);
        let mut reader = SaveReader::new(family, &[], &is_compared);
        match self.kernel.save(Table::Nat, &mut |line| reader.line(line)) {
            Ok(()) => self.references.replace(reader.finish().referenced),
            Err(error) => {
                info!(%family, error = %format!("{error:#}"), "cannot dump rules; referenced stale chains are found one by one");
            }
        }
    }

    /// Logs a read of the kernel's tables, and counts it for the metric.
    fn record_read(&mut self, reason: ReadReason) {
        info!(family = %self.kernel.family(), %reason, "reading the kernel's tables");
        self.reads.push(reason);
    }

    /// What differs between what was `left` and what was `found`. Equivalent spellings become what was written.
    fn difference(&mut self, left: &Committed, found: &mut Committed) -> Drift {
        self.drifted.clear();
        let mut drift = Drift { chains: Vec::new(), n_jumps: left.jumps.difference(&found.jumps).count() };
        for table in TABLES {
            let names: BTreeSet<ChainName> =
                names_of(left, table).into_iter().chain(names_of(found, table)).collect();
            for chain in names {
                let (was, is) = (digest_of(left, table, &chain), digest_of(found, table, &chain));
                let (was_there, is_there) = (contains(left, table, &chain), contains(found, table, &chain));
                let is_same = was_there && is_there && (was.is_none() || is.is_none() || was == is);
                // Changes that the kubelet makes to its chain are no drift.
                if is_same || (chain == names::KUBE_FIREWALL && is_there) {
                    continue;
                }
                match (was, is) {
                    (Some(was), Some(is)) if self.equivalents.get(&(table, chain)) == Some(&(was, is)) => {
                        restore_spelling(left, found, table, chain);
                    }
                    (_, is) => {
                        self.drifted.extend(is.map(|is| ((table, chain), is)));
                        drift.chains.push((table, chain));
                    }
                }
            }
        }
        drift
    }

    /// Reads `tables`.
    ///
    /// A table that has too many chains, or that cannot be read (another process put rules into it that iptables does not
    /// know), is listed by the names of its chains and compared by fingerprint with what was `left`.
    fn read(&mut self, tables: &[Table], left: Option<&Committed>, unread: Unread) -> TablesRead {
        let family = self.kernel.family();
        let jumps = self.jumps.clone();
        let mut reader = SaveReader::new(family, &jumps, &is_compared);
        let mut failed = Vec::new();
        let mut dumps = Vec::new();
        for table in tables.iter().copied() {
            let before = self.legacy_dump(table);
            let result = match self.kernel.readable(table) {
                Ok(Readable::Rules) => self.kernel.save(table, &mut |line| reader.line(line)),
                Ok(Readable::NamesOnly) => Err(anyhow!("too many chains")),
                Err(error) => Err(error),
            };
            match result {
                // The rules that were read are those of the dump, if the same are there now.
                Ok(()) => {
                    let is_same = |dump: &Dump| self.legacy_dump(table).as_ref() == Some(dump);
                    dumps.extend(before.filter(is_same).map(|dump| (table, dump)));
                }
                Err(error) => failed.push((table, error)),
            }
        }
        let ReadBack { committed: mut found, inherited_udp, referenced } = reader.finish();
        self.inherited.get_or_insert(inherited_udp);
        if tables.contains(&Table::Nat) && !failed.iter().any(|(table, _)| *table == Table::Nat) {
            self.references.replace(referenced);
        }
        found.mark_read();
        for (table, dump) in &dumps {
            dump.chains
                .iter()
                .for_each(|chain| found.fingerprints.record(*table, &chain.name, chain.fingerprint));
            self.hooks.extend(hooks_in(&jumps, &found.jumps, *table, dump));
        }
        if let Some((_, dump)) = dumps.iter().find(|(table, _)| *table == Table::Nat) {
            self.legacy.mark_nat_read(dump);
        }
        let is_undisturbed = dumps.len() == tables.len();
        if is_undisturbed {
            found.fingerprints.drop_pending();
        }
        let mut reading = TablesRead { found, changed: Vec::new(), is_complete: true, is_undisturbed };
        for (table, error) in failed {
            self.read_names(table, error, left, unread, &mut reading);
        }
        reading
    }

    /// The chains of `table` with their fingerprints, on the legacy back-end.
    fn legacy_dump(&mut self, table: Table) -> Option<Dump> {
        match self.kernel.backend() {
            Backend::Legacy => self.kernel.fingerprints(table, None).ok().flatten(),
            Backend::Nft => None,
        }
    }

    /// Those of the chains `names` that have a recorded fingerprint, with their fingerprints now.
    fn dump_recorded(
        &mut self,
        table: Table,
        names: &BTreeSet<ChainName>,
        left: Option<&Committed>,
    ) -> Option<Dump> {
        let left = left?;
        let family = self.kernel.family();
        let is_recorded = |name: &&ChainName| left.fingerprints.of(table, name).is_some();
        let names: Vec<ChainName> = names.iter().filter(is_recorded).copied().collect();
        self.kernel.fingerprints(table, Some(&names)).unwrap_or_else(|error| {
            info!(%family, %table, error = %format!("{error:#}"), "cannot dump chains; comparison skipped");
            None
        })
    }

    /// Lists the chains of `table`, whose rules are not read because of `why`, with what is known of them; no chains, when
    /// they cannot be listed.
    fn read_names(
        &mut self,
        table: Table,
        why: anyhow::Error,
        left: Option<&Committed>,
        unread: Unread,
        TablesRead { found, changed, is_complete, .. }: &mut TablesRead,
    ) {
        let family = self.kernel.family();
        let mut names = BTreeSet::new();
        let result = self.kernel.chain_names(table, &mut |name| {
            names.extend(ChainName::new(name).filter(|name| is_compared(table, name)));
        });
        if let Err(error) = result {
            warn!(%family, %table, error = %format!("{error:#}"), "cannot list chains; stale chains kept");
        }
        let dump = self.dump_recorded(table, &names, left);
        let is_assumed = match unread {
            Unread::AsCommitted | Unread::Unverified => true,
            Unread::UnverifiedIfDumped => dump.is_some(),
            Unread::Rewritten => false,
        };
        let mut n_unknown = 0;
        for name in names {
            let was = left.and_then(|left| left.fingerprints.of(table, &name));
            let is = dump.as_ref().and_then(|dump| dump.of(&name)).map(|chain| chain.fingerprint);
            let holds = match (was, is) {
                (Some(was), Some(is)) if was == is => {
                    found.fingerprints.insert(table, name, was);
                    true
                }
                // The kubelet's chain only has to exist.
                (Some(_), Some(_)) if name != names::KUBE_FIREWALL => {
                    changed.push((table, name));
                    false
                }
                _ => {
                    let is_known = left.is_some_and(|left| digest_of(left, table, &name).is_some());
                    *is_complete &= !(is_assumed && is_known) || name == names::KUBE_FIREWALL;
                    is_assumed
                }
            };
            let left = left.filter(|_| holds);
            // The sync that failed wrote it: as long as no other process wrote, its fingerprint may be recorded.
            if unread <= Unread::Unverified
                && left.is_some_and(|left| left.fingerprints.is_pending(table, &name))
            {
                found.fingerprints.mark_pending(table, name);
            }
            n_unknown += usize::from(left.is_none());
            match table {
                Table::Nat => {
                    let known = left.and_then(|left| left.nat.get(&name).copied().flatten());
                    found.nat.insert(name, known);
                }
                // The old rules are needed while they are replaced.
                Table::Filter => {
                    let known = left.and_then(|left| left.filter.get(&name).cloned().flatten());
                    found.filter.insert(name, known);
                    let uncertain = left.and_then(|left| left.uncertain_filter.get(&name).cloned());
                    found.uncertain_filter.extend(uncertain.map(|rules| (name, rules)));
                }
                Table::Mangle | Table::Security | Table::Raw => {}
            }
        }
        let cause = format!("{why:#}");
        info!(%family, %table, cause, n_unknown, "skipping the table dump; rewriting chains of unknown content");
        for (number, jump) in self.jumps.iter().enumerate().filter(|(_, jump)| jump.table == table) {
            match self.kernel.has_jump(jump) {
                Ok(true) => drop(found.jumps.insert(number)),
                Ok(false) => drop(found.jumps.remove(&number)),
                // A jump that is there twice costs time; a missing one cuts the node off.
                Err(error) => {
                    warn!(%family, error = %format!("{error:#}"), "cannot check the jump; inserting it again");
                }
            }
        }
    }
}

/// Gives `chain` in `found` the content that was `left`.
fn restore_spelling(left: &Committed, found: &mut Committed, table: Table, chain: ChainName) {
    match table {
        Table::Nat => drop(left.nat.get(&chain).map(|digest| found.nat.insert(chain, *digest))),
        _ => drop(left.filter.get(&chain).map(|rules| found.filter.insert(chain, rules.clone()))),
    }
}

#[cfg(test)]
mod tests;
