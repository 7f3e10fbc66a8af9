//! What is known of a family's tables: read when it is not known, compared with what we left, and
//! looked at when somebody else may have written.
//!
//! Rules are read with `iptables-save`, which on nft takes too long where there are very many chains. So
//! that nobody else's commit makes us write such a table anew, a print of each chain is kept: what the
//! kernel shows of it right after it was written ([`crate::plan::Prints`]).

mod legacy;
mod look;

pub use look::{Depth, Look};

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use tracing::{info, warn};

use legacy::Watched;
use look::{Doors, Scan, doors_of};

use super::report::Drift;
use crate::iptables::{ChainName, Digest, Jump, Table};
use crate::kernel::{Backend, Dump, Iptables, Readable};
use crate::plan::{Committed, ReadBack, SaveReader, UdpFrontends};
use crate::rules::ownership::ChainOwner;
use crate::rules::{fixed, names};

/// Those that hold what is ours, in the order in which they are read.
const TABLES: [Table; 2] = [Table::Filter, Table::Nat];

/// Why the kernel is read again: what is taken to be as it was left, where rules cannot be read and
/// prints do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    /// For a failure of ours: everything.
    Failure,
    /// Somebody else changed something, but not all of it can be compared: as above. The audit does not
    /// trust what this leaves.
    Look,
    /// Somebody else wrote: nothing.
    Foreign,
}

/// A family's tables and what is known of them.
pub(super) struct Tables<K> {
    pub(super) kernel: K,
    pub(super) jumps: Vec<Jump>,
    /// `None` until the kernel was read, when it has to be read again, and during a sync.
    committed: Option<Committed>,
    /// What we had left there, while a new reading is due.
    left: Option<Committed>,
    /// Why a reading is due.
    doubt: Doubt,
    /// Chains that read back otherwise than they are written, with both: the release of iptables
    /// spells them in its own way.
    dialects: BTreeMap<(Table, ChainName), (Digest, Digest)>,
    n_looks: usize,
    doors: Doors,
    scan: Option<Scan>,
    /// Of the legacy back-end.
    watched: Watched,
    /// Chains that foreign rules lead to, when nat was read since that was asked for.
    referenced: Option<BTreeSet<ChainName>>,
    /// What UDP rules answered on that were there before this process, once they were read.
    inherited: Option<UdpFrontends>,
}

impl<K: Iptables> Tables<K> {
    pub(super) fn new(kernel: K) -> Tables<K> {
        let (committed, left) = (None, None);
        Tables {
            kernel,
            jumps: fixed::jumps(),
            committed,
            left,
            doubt: Doubt::Failure,
            dialects: BTreeMap::new(),
            n_looks: 0,
            doors: Doors::new(),
            scan: None,
            watched: Watched::default(),
            referenced: None,
            inherited: None,
        }
    }

    /// What UDP rules of an earlier process answered on; told once. Nothing where the rules were too
    /// many to be read.
    pub(super) fn take_inherited(&mut self) -> UdpFrontends {
        self.inherited.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Chains of nat that rules in foreign chains lead to, if nat was read since this was asked last.
    pub(super) fn take_referenced(&mut self) -> Option<BTreeSet<ChainName>> {
        self.referenced.take()
    }

    /// Whether nat may hold other foreign rules than when it was read.
    pub(super) fn is_nat_changed(&self) -> bool {
        match self.kernel.backend() {
            // It is looked at only after a foreign commit.
            Backend::Nft => true,
            Backend::Legacy => self.watched.is_nat_changed(),
        }
    }

    /// Reads nat for [`Tables::take_referenced`] alone; nothing where it cannot be read.
    pub(super) fn read_referenced(&mut self) {
        if !matches!(self.kernel.readable(Table::Nat), Ok(Readable::Rules)) {
            return;
        }
        let mut reader = SaveReader::new(self.kernel.family(), &[], &is_tracked);
        match self.kernel.save(Table::Nat, &mut |line| reader.line(line)) {
            Ok(()) => self.referenced = Some(reader.finish().referenced),
            Err(error) => {
                let family = self.kernel.family();
                info!(%family, error = %format!("{error:#}"), "cannot dump rules; referenced stale chains are found one by one");
            }
        }
    }

    /// What the kernel holds, when that is known.
    pub(super) fn committed(&self) -> Option<&Committed> {
        self.committed.as_ref()
    }

    /// How many rules of ours `table` holds; as it was left, while that is in doubt.
    pub(super) fn n_rules(&self, table: Table) -> usize {
        self.committed.as_ref().or(self.left.as_ref()).map_or(0, |committed| committed.n_rules(table))
    }

    /// Forgets what the kernel holds, because somebody else may have written there: it is read before
    /// it is used again, and what cannot be read is written again unless its print tells that it is as it
    /// was left.
    pub(super) fn forget(&mut self) {
        self.doubt_for(Doubt::Foreign);
    }

    /// Has the kernel read again after a look that found something wrong. What can neither be read nor
    /// compared by print is taken to be as it was left.
    pub(super) fn suspect(&mut self) {
        self.doubt_for(Doubt::Look);
    }

    /// Has the kernel read again after a failure of ours. What can neither be read nor compared by print is
    /// taken to be as it was left.
    pub(super) fn doubt(&mut self) {
        self.doubt_for(Doubt::Failure);
    }

    fn doubt_for(&mut self, why: Doubt) {
        match self.committed.take() {
            Some(committed) => {
                self.left = Some(committed);
                self.doubt = why;
            }
            None => self.doubt = self.doubt.max(why),
        }
    }

    /// Takes what is known out, reading the kernel if need be; and what was found there otherwise than
    /// we had left it.
    pub(super) fn take(&mut self) -> (Committed, Drift) {
        if let Some(committed) = self.committed.take() {
            return (committed, Drift::default());
        }
        let left = self.left.take();
        if self.doubt == Doubt::Foreign {
            // What a look had still to compare is compared now, or written.
            self.scan = None;
        }
        let Reading { mut found, changed, is_undisturbed } = self.read(&TABLES, left.as_ref());
        self.watched.read(is_undisturbed, found.jumps.len());
        let mut drift = left.map_or_else(Drift::default, |left| self.compare(&left, &mut found));
        drift.chains.extend(changed);
        (found, drift)
    }

    /// Gives back what was taken out.
    pub(super) fn put_back(&mut self, committed: Committed) {
        self.watched.put_back(committed.jumps.len());
        self.committed = Some(committed);
    }

    /// Reads the chains of `repaired` back, right after they were written. What still differs is a
    /// dialect: it is logged once, from now on counts as equal, and is no drift. A dialect spells rules, it
    /// has as many of them: with another number, somebody wrote once more before it was read.
    pub(super) fn learn_dialects(&mut self, repaired: &mut Drift) {
        let is_of = |table: &Table| repaired.chains.iter().any(|(of, _)| of == table);
        let tables: Vec<Table> = TABLES.into_iter().filter(is_of).collect();
        let is_readable = |table: &Table| matches!(self.kernel.readable(*table), Ok(Readable::Rules));
        let tables: Vec<Table> = tables.into_iter().filter(is_readable).collect();
        let Some(committed) = self.committed.take() else { return };
        let found = self.read(&tables, None).found;
        repaired.chains.retain(|(table, chain)| {
            let (written, read) = (digest(&committed, *table, chain), digest(&found, *table, chain));
            if let (Some(written), Some(read)) = (written, read)
                && written != read
                && written.n_rules == read.n_rules
            {
                let family = self.kernel.family();
                info!(%family, %table, %chain, "this iptables prints the chain otherwise than it was written; taken as it is");
                self.dialects.insert((*table, *chain), (written, read));
                return false;
            }
            true
        });
        self.dialects.retain(|(table, chain), _| digest(&committed, *table, chain).is_some());
        self.committed = Some(committed);
    }

    /// What differs between what we `left` and what was `found`. Chains that only read otherwise are
    /// taken for what was written.
    fn compare(&self, left: &Committed, found: &mut Committed) -> Drift {
        let mut drift = Drift { chains: Vec::new(), n_jumps: left.jumps.difference(&found.jumps).count() };
        for table in [Table::Filter, Table::Nat] {
            for chain in names_in(left, found, table) {
                let (was, is) = (digest(left, table, &chain), digest(found, table, &chain));
                let (is_known, is_there) = (contains(left, table, &chain), contains(found, table, &chain));
                let is_same = is_known && is_there && (was.is_none() || is.is_none() || was == is);
                // What the kubelet does with its chain is its own business.
                if is_same || (chain == names::KUBE_FIREWALL && is_there) {
                    continue;
                }
                match (was, is) {
                    (Some(was), Some(is)) if self.dialects.get(&(table, chain)) == Some(&(was, is)) => {
                        restate(left, found, table, chain);
                    }
                    _ => drift.chains.push((table, chain)),
                }
            }
        }
        drift
    }

    /// Reads `tables`.
    ///
    /// A table that has too many chains, or that cannot be read (somebody put rules into it that
    /// iptables does not know), is taken by the names of its chains and their prints, with what was
    /// `left`.
    fn read(&mut self, tables: &[Table], left: Option<&Committed>) -> Reading {
        let family = self.kernel.family();
        let jumps = self.jumps.clone();
        let mut reader = SaveReader::new(family, &jumps, &is_tracked);
        let mut unread = Vec::new();
        let mut dumps = Vec::new();
        for table in tables.iter().copied() {
            let before = self.legacy_dump(table);
            let result = match self.kernel.readable(table) {
                Ok(Readable::Rules) => self.kernel.save(table, &mut |line| reader.line(line)),
                Ok(Readable::NamesOnly) => Err(anyhow!("it has too many chains")),
                Err(error) => Err(error),
            };
            match result {
                // The rules that were read are those of the dump, if the same are there now.
                Ok(()) => {
                    let is_same = |dump: &Dump| self.legacy_dump(table).as_ref() == Some(dump);
                    dumps.extend(before.filter(is_same).map(|dump| (table, dump)));
                }
                Err(error) => unread.push((table, error)),
            }
        }
        let ReadBack { committed: mut found, inherited_udp, referenced } = reader.finish();
        self.inherited.get_or_insert(inherited_udp);
        if tables.contains(&Table::Nat) && !unread.iter().any(|(table, _)| *table == Table::Nat) {
            self.referenced = Some(referenced);
        }
        found.mark_read();
        for (table, dump) in &dumps {
            dump.chains
                .iter()
                .for_each(|shown| found.fingerprints.record(*table, &shown.name, shown.fingerprint));
            self.doors.extend(doors_of(&jumps, &found.jumps, *table, dump));
        }
        if let Some((_, dump)) = dumps.iter().find(|(table, _)| *table == Table::Nat) {
            self.watched.nat_read(dump);
        }
        let is_undisturbed = dumps.len() == tables.len();
        if is_undisturbed {
            found.fingerprints.drop_pending();
        }
        let mut reading = Reading { found, changed: Vec::new(), is_undisturbed };
        for (table, error) in unread {
            self.read_names(table, error, left, &mut reading);
        }
        reading
    }

    /// How the chains of `table` look, on the legacy back-end.
    fn legacy_dump(&mut self, table: Table) -> Option<Dump> {
        match self.kernel.backend() {
            Backend::Legacy => self.kernel.fingerprints(table, None).ok().flatten(),
            Backend::Nft => None,
        }
    }

    /// How those of the chains `names` look that have a print to be compared with.
    fn shown(&mut self, table: Table, names: &BTreeSet<ChainName>, left: Option<&Committed>) -> Option<Dump> {
        let left = left?;
        let family = self.kernel.family();
        let has_print = |name: &&ChainName| left.fingerprints.of(table, name).is_some();
        let names: Vec<ChainName> = names.iter().filter(has_print).copied().collect();
        self.kernel.fingerprints(table, Some(&names)).unwrap_or_else(|error| {
            info!(%family, %table, error = %format!("{error:#}"), "what cannot be read cannot be compared either");
            None
        })
    }

    /// Takes the names of the chains of `table`, which is not read for `why`, with what is known of them;
    /// no names, when they cannot be had.
    fn read_names(
        &mut self,
        table: Table,
        why: anyhow::Error,
        left: Option<&Committed>,
        Reading { found, changed, .. }: &mut Reading,
    ) {
        let family = self.kernel.family();
        let mut names = BTreeSet::new();
        let result = self.kernel.chain_names(table, &mut |name| {
            names.extend(ChainName::new(name).filter(|name| is_tracked(table, name)));
        });
        if let Err(error) = result {
            warn!(%family, %table, error = %format!("{error:#}"), "stale chains cannot be found");
        }
        let shown = self.shown(table, &names, left);
        let is_trusted = match self.doubt {
            Doubt::Failure => true,
            Doubt::Look => shown.is_some(),
            Doubt::Foreign => false,
        };
        let mut n_unknown = 0;
        for name in names {
            let was = left.and_then(|left| left.fingerprints.of(table, &name));
            let is = shown.as_ref().and_then(|dump| dump.of(&name)).map(|shown| shown.fingerprint);
            let holds = match (was, is) {
                (Some(was), Some(is)) if was == is => {
                    found.fingerprints.insert(table, name, was);
                    true
                }
                // The kubelet's chain only has to be there.
                (Some(_), Some(_)) if name != names::KUBE_FIREWALL => {
                    changed.push((table, name));
                    false
                }
                _ => is_trusted,
            };
            let left = left.filter(|_| holds);
            // Written by the sync that failed: as long as nobody else wrote, the print may be taken.
            if self.doubt == Doubt::Failure
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
                    let possible = left.and_then(|left| left.uncertain_filter.get(&name).cloned());
                    found.uncertain_filter.extend(possible.map(|rules| (name, rules)));
                }
                Table::Mangle => {}
            }
        }
        let reason = format!("{why:#}");
        info!(%family, %table, reason, n_unknown, "the table is not read; its chains of unknown content are written anew");
        for (number, jump) in self.jumps.iter().enumerate().filter(|(_, jump)| jump.table == table) {
            match self.kernel.has_jump(jump) {
                Ok(true) => drop(found.jumps.insert(number)),
                Ok(false) => drop(found.jumps.remove(&number)),
                // A jump that may be there twice costs time; one that is missing cuts the node off.
                Err(error) => warn!(%family, error = %format!("{error:#}"), "writing the jump once more"),
            }
        }
    }
}

/// What was found in the kernel.
struct Reading {
    found: Committed,
    /// Chains that look otherwise than they were left, where what they hold cannot be read.
    changed: Vec<(Table, ChainName)>,
    /// On legacy, whether prints are those of the rules that were read: no other process wrote meanwhile.
    is_undisturbed: bool,
}

/// Whether the content of the chain is compared: it is ours, or the kubelet's that we may write to.
fn is_tracked(table: Table, name: &ChainName) -> bool {
    ChainOwner::of(table, name).is_compared()
}

fn names_in(left: &Committed, found: &Committed, table: Table) -> BTreeSet<ChainName> {
    match table {
        Table::Nat => left.nat.keys().chain(found.nat.keys()).copied().collect(),
        _ => left.filter.keys().chain(found.filter.keys()).copied().collect(),
    }
}

fn contains(committed: &Committed, table: Table, chain: &ChainName) -> bool {
    match table {
        Table::Nat => committed.nat.contains_key(chain),
        _ => committed.filter.contains_key(chain),
    }
}

/// The content of `chain`; `None` when it is not there or not known.
fn digest(committed: &Committed, table: Table, chain: &ChainName) -> Option<Digest> {
    match table {
        Table::Nat => committed.nat.get(chain).copied().flatten(),
        _ => committed.filter.get(chain)?.as_ref().map(Digest::of),
    }
}

/// Takes the content of `chain` in `found` for what was `left`.
fn restate(left: &Committed, found: &mut Committed, table: Table, chain: ChainName) {
    match table {
        Table::Nat => drop(left.nat.get(&chain).map(|digest| found.nat.insert(chain, *digest))),
        _ => drop(left.filter.get(&chain).map(|rules| found.filter.insert(chain, rules.clone()))),
    }
}

#[cfg(test)]
mod legacy_tests;
#[cfg(test)]
mod look_tests;

#[cfg(test)]
mod tests;
