//! Looks at a family's tables without reading them: whether they are as they were left.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use tracing::{debug, info};

use super::{Tables, contains, digest, is_tracked};
use crate::iptables::{ChainName, Fingerprint, Jump, Table};
use crate::kernel::{Backend, Dump, Iptables};
use crate::plan::{Committed, Pending};
use crate::rules::names;

/// Up to how many chains a suspicion is settled by reading everything, and all are dumped at once.
pub(super) const CHEAP_CHAINS: usize = 2_000;

/// How many chains are dumped one by one before changes of the cluster may take their turn: some 40 ms.
const SLICE: usize = 4_000;

/// What a look tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Something is otherwise than it was left, or only reading can tell: the tables are to be read.
    pub is_wrong: bool,
    /// Not everything was compared, and a reading for what is wrong does not make up for it.
    pub is_unread: bool,
}

/// How closely the legacy back-end's tables are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// At the numbers of tables that are too large to be looked at whole each second.
    Quick,
    /// At each chain.
    Whole,
}

impl Look {
    /// Everything is to be read.
    const WRONG: Look = Look { is_wrong: true, is_unread: false };
}

/// The chains of a large nat, compared a slice at a time since somebody else wrote.
#[derive(Debug)]
pub(super) struct Scan {
    /// The last that was compared; the next foreign commit has the round begin behind it.
    after: Option<ChainName>,
    n_left: usize,
    /// Whether all so far had prints.
    is_whole: bool,
}

impl Scan {
    /// Nothing more is compared, though not everything was.
    const LEFT_TO_AUDIT: Scan = Scan { after: None, n_left: 0, is_whole: false };
}

impl<K: Iptables> Tables<K> {
    /// Whether somebody else, who wrote to the tables, changed anything of ours, as far as it can be told
    /// without reading. Chains whose print is due are given up.
    pub(in crate::sync) fn look(&mut self, depth: Depth) -> Look {
        let Some(committed) = &mut self.committed else { return Look::WRONG };
        if self.kernel.backend() == Backend::Legacy {
            return self.look_at_legacy(depth);
        }
        committed.fingerprints.drop_pending();
        let is_cheap = committed.n_chains() < CHEAP_CHAINS;
        let look = if is_cheap { self.look_at_all() } else { self.look_at_first() };
        match look {
            Ok(Some(look)) => look,
            Ok(None) => self.look_at_names(),
            Err(error) => {
                let family = self.kernel.family();
                info!(%family, error = %format!("{error:#}"), "chains are looked at by name alone");
                self.look_at_names()
            }
        }
    }

    /// A table of few chains: all prints at once.
    fn look_at_all(&mut self) -> anyhow::Result<Option<Look>> {
        let mut dumps = BTreeMap::new();
        for table in [Table::Filter, Table::Nat] {
            let Some(dump) = self.kernel.fingerprints(table, None)? else { return Ok(None) };
            dumps.insert(table, dump);
        }
        let is_wrong = self.is_wrong(&dumps);
        self.scan = None;
        Ok(Some(Look { is_wrong, is_unread: false }))
    }

    /// Whether anything of ours is otherwise than it was left, in whole tables.
    pub(super) fn is_wrong(&mut self, dumps: &BTreeMap<Table, Dump>) -> bool {
        let Some(committed) = &self.committed else { return true };
        let mut is_wrong = false;
        for (table, dump) in dumps {
            let names = names_of(committed, *table);
            let compared = compare(committed, *table, names, dump);
            // What has no print is read.
            is_wrong |= compared.is_wrong || compared.is_unread;
            let is_stray = |name: &ChainName| is_tracked(*table, name) && !contains(committed, *table, name);
            is_wrong |= dump.chains.iter().any(|shown| is_stray(&shown.name));
        }
        is_wrong || !self.has_jumps(dumps)
    }

    /// A table of many chains: what a flush would change. The rest is compared a slice at a time.
    fn look_at_first(&mut self) -> anyhow::Result<Option<Look>> {
        let mut dumps = BTreeMap::new();
        let Some(committed) = &self.committed else { return Ok(None) };
        for table in [Table::Filter, Table::Nat] {
            let mut names: Vec<ChainName> =
                table.built_in().iter().map(|name| ChainName::literal(name)).collect();
            if table == Table::Filter {
                names.extend(committed.filter.keys());
            }
            let Some(dump) = self.kernel.fingerprints(table, Some(&names))? else { return Ok(None) };
            dumps.insert(table, dump);
        }
        let filter =
            compare(committed, Table::Filter, names_of(committed, Table::Filter), &dumps[&Table::Filter]);
        let mut wanted: BTreeSet<ChainName> = committed.nat.keys().copied().collect();
        let mut is_wrong = filter.is_wrong;
        self.kernel.chain_names(Table::Nat, &mut |name| {
            if let Some(name) = ChainName::new(name) {
                is_wrong |= !wanted.remove(&name) && is_tracked(Table::Nat, &name);
            }
        })?;
        is_wrong |= !wanted.is_empty();
        let n_left = committed.nat.len();
        is_wrong |= !is_wrong && !self.has_jumps(&dumps);
        let after = self.scan.as_ref().and_then(|scan| scan.after);
        self.scan = Some(Scan { after, n_left, is_whole: !filter.is_unread });
        Ok(Some(Look { is_wrong, is_unread: true }))
    }

    /// Whether chains wait to be compared.
    pub(in crate::sync) fn is_scanning(&self) -> bool {
        self.committed.is_some() && self.scan.as_ref().is_some_and(|scan| scan.n_left > 0)
    }

    /// Compares a slice of the chains that wait for it. With the last one it is told whether any of them
    /// could not be compared.
    pub(in crate::sync) fn scan(&mut self) -> Look {
        let same = Look { is_wrong: false, is_unread: false };
        let (Some(committed), Some(scan)) = (&self.committed, &mut self.scan) else { return same };
        if scan.n_left == 0 {
            return Look { is_wrong: false, is_unread: !scan.is_whole };
        }
        // Behind the last chain, the round goes on with the first.
        if scan
            .after
            .is_none_or(|after| committed.nat.last_key_value().is_none_or(|(last, _)| after >= *last))
        {
            scan.after = None;
        }
        let from = scan.after.map_or(Bound::Unbounded, Bound::Excluded);
        let n = SLICE.min(scan.n_left);
        let names = committed.nat.range((from, Bound::Unbounded)).take(n);
        let names: Vec<ChainName> = names.map(|(name, _)| *name).collect();
        scan.after = names.last().copied();
        let family = self.kernel.family();
        match self.kernel.fingerprints(Table::Nat, Some(&names)) {
            Ok(Some(dump)) => {
                let compared = compare(committed, Table::Nat, names.clone(), &dump);
                scan.n_left = scan.n_left.saturating_sub(names.len());
                if committed.nat.len() < n {
                    scan.n_left = 0;
                }
                scan.is_whole &= !compared.is_unread;
                let is_unread = scan.n_left == 0 && !scan.is_whole;
                Look { is_wrong: compared.is_wrong, is_unread }
            }
            Ok(None) => {
                *scan = Scan::LEFT_TO_AUDIT;
                Look { is_wrong: false, is_unread: true }
            }
            Err(error) => {
                info!(%family, error = %format!("{error:#}"), "chains are not compared before the next audit");
                *scan = Scan::LEFT_TO_AUDIT;
                Look { is_wrong: false, is_unread: true }
            }
        }
    }

    /// One process: the jumps in turns, one of nat and one of filter. No flush spares any of them.
    pub(super) fn look_at_a_jump(&mut self) -> bool {
        let table = if self.n_looks.is_multiple_of(2) { Table::Nat } else { Table::Filter };
        let of_table: Vec<_> = self.jumps.iter().filter(|jump| jump.table == table).collect();
        let jump = of_table[self.n_looks / 2 % of_table.len()];
        self.n_looks += 1;
        matches!(self.kernel.has_jump(jump), Ok(false))
    }

    /// Where there are no prints. Where reading all is quick, it is left to that.
    fn look_at_names(&mut self) -> Look {
        let Some(committed) = &self.committed else { return Look::WRONG };
        if committed.n_chains() < CHEAP_CHAINS {
            return Look::WRONG;
        }
        self.scan = Some(Scan::LEFT_TO_AUDIT);
        let mut wanted: BTreeSet<ChainName> = committed.nat.keys().copied().collect();
        let names = self.kernel.chain_names(Table::Nat, &mut |name| {
            if let Some(name) = ChainName::new(name) {
                wanted.remove(&name);
            }
        });
        let are_jumps_gone = self.jumps.iter().any(|jump| matches!(self.kernel.has_jump(jump), Ok(false)));
        match names.is_ok() && !wanted.is_empty() || are_jumps_gone {
            true => Look::WRONG,
            false => Look { is_wrong: false, is_unread: true },
        }
    }

    /// Whether all jumps are in place. Those in a built-in chain that looks as when they were last seen
    /// there need not be looked for: it would be a process each.
    fn has_jumps(&mut self, dumps: &BTreeMap<Table, Dump>) -> bool {
        let from: BTreeSet<(Table, ChainName)> =
            self.jumps.iter().map(|jump| (jump.table, jump.from)).collect();
        for (table, from) in from {
            let Some(dump) = dumps.get(&table) else { continue };
            let shown = dump.of(&from).map(|shown| shown.fingerprint);
            if shown.is_some() && self.doors.get(&(table, from)).copied() == shown {
                continue;
            }
            let mut is_sure = true;
            for jump in self.jumps.iter().filter(|jump| (jump.table, jump.from) == (table, from)) {
                match self.kernel.has_jump(jump) {
                    Ok(true) => {}
                    Ok(false) => return false,
                    Err(error) => {
                        debug!(%table, %from, error = %format!("{error:#}"), "a jump cannot be looked for");
                        is_sure = false;
                    }
                }
            }
            // Only if the chain still looks as in the dump were the jumps seen among these rules.
            match shown.filter(|print| is_sure && self.is_still(dump, table, &from, *print)) {
                Some(print) => drop(self.doors.insert((table, from), print)),
                None => drop(self.doors.remove(&(table, from))),
            }
        }
        true
    }

    /// Whether the chain looks as in `dump`, where it has this print.
    fn is_still(&mut self, dump: &Dump, table: Table, chain: &ChainName, print: Fingerprint) -> bool {
        match self.kernel.backend() {
            Backend::Nft => {
                dump.generation.is_some()
                    && matches!(self.kernel.generation(), Ok(now) if now == dump.generation)
            }
            Backend::Legacy => match self.kernel.fingerprints(table, Some(&[*chain])) {
                Ok(Some(now)) => now.of(chain).is_some_and(|now| now.fingerprint == print),
                _ => false,
            },
        }
    }

    /// Whether prints are due.
    pub(in crate::sync) fn has_due_prints(&self) -> bool {
        self.committed.as_ref().is_some_and(|committed| committed.fingerprints.pending() != Pending::Nothing)
    }

    /// Whether those that are due are taken in a few milliseconds.
    pub(in crate::sync) fn are_due_prints_quick(&self) -> bool {
        self.committed.as_ref().is_some_and(|committed| {
            committed.fingerprints.pending() != Pending::Many || committed.n_chains() < CHEAP_CHAINS
        })
    }

    /// Discards due prints, because another process wrote. On legacy, where that is not known, the next audit
    /// reads instead.
    pub(in crate::sync) fn give_up_prints(&mut self) {
        if self.kernel.backend() == Backend::Legacy {
            return;
        }
        for committed in [&mut self.committed, &mut self.left].into_iter().flatten() {
            committed.fingerprints.drop_pending();
        }
    }

    /// Takes prints that are due, if the ruleset is still at `generation`, up to which all that is known of
    /// the tables holds; a slice of them, where they are many. Otherwise they stay due; what cannot be
    /// dumped is given up. On legacy there is no generation.
    pub(in crate::sync) fn take_prints(&mut self, generation: Option<u32>) {
        if self.kernel.backend() == Backend::Legacy {
            self.take_legacy_prints();
        } else if let Some(generation) = generation
            && let Err(error) = self.try_prints(generation)
        {
            let family = self.kernel.family();
            debug!(%family, error = %format!("{error:#}"), "prints are not taken");
            self.give_up_prints();
        }
    }

    fn try_prints(&mut self, generation: u32) -> anyhow::Result<()> {
        let Some(committed) = &mut self.committed else { return Ok(()) };
        let due: Vec<(Table, ChainName)> = match committed.fingerprints.pending() {
            Pending::Nothing => return Ok(()),
            // Where it costs next to nothing, the built-in chains are taken along the first time.
            due if committed.n_chains() < CHEAP_CHAINS && (due == Pending::Many || self.doors.is_empty()) => {
                return self.try_all_prints(generation);
            }
            Pending::Few(chains) => chains.to_vec(),
            Pending::Many => {
                let of = |table| names_of(committed, table).into_iter().map(move |name| (table, name));
                let all = of(Table::Filter).chain(of(Table::Nat));
                all.filter(|(table, name)| committed.fingerprints.is_pending(*table, name))
                    .take(SLICE)
                    .collect()
            }
        };
        for table in [Table::Filter, Table::Nat] {
            let of_table = due.iter().filter(|(of, _)| *of == table);
            let names: Vec<ChainName> = of_table.map(|(_, name)| *name).collect();
            if names.is_empty() {
                continue;
            }
            let Some(dump) = self.kernel.fingerprints(table, Some(&names))? else { continue };
            if dump.generation != Some(generation) {
                return Ok(());
            }
            dump.chains
                .iter()
                .for_each(|shown| committed.fingerprints.record(table, &shown.name, shown.fingerprint));
        }
        if due.len() < SLICE {
            committed.fingerprints.drop_pending();
        }
        Ok(())
    }

    fn try_all_prints(&mut self, generation: u32) -> anyhow::Result<()> {
        let Some(committed) = &mut self.committed else { return Ok(()) };
        for table in [Table::Filter, Table::Nat] {
            let Some(dump) = self.kernel.fingerprints(table, None)? else { continue };
            if dump.generation != Some(generation) {
                return Ok(());
            }
            dump.chains
                .iter()
                .for_each(|shown| committed.fingerprints.record(table, &shown.name, shown.fingerprint));
            self.doors.extend(doors_of(&self.jumps, &committed.jumps, table, &dump));
        }
        committed.fingerprints.drop_pending();
        Ok(())
    }
}

fn names_of(committed: &Committed, table: Table) -> Vec<ChainName> {
    match table {
        Table::Nat => committed.nat.keys().copied().collect(),
        _ => committed.filter.keys().copied().collect(),
    }
}

/// Whether the chains called `names` look in `dump` as they were left; unread when one has no print.
fn compare(committed: &Committed, table: Table, names: Vec<ChainName>, dump: &Dump) -> Look {
    let mut look = Look { is_wrong: false, is_unread: false };
    for name in names {
        let (was, is) = (committed.fingerprints.of(table, &name), dump.of(&name));
        look.is_wrong |= is.is_none();
        // What the kubelet does with its chain is its own business.
        if name == names::KUBE_FIREWALL {
            continue;
        }
        match was {
            Some(was) => look.is_wrong |= is.is_some_and(|is| is.fingerprint != was),
            // Written, and not looked at since.
            None if committed.fingerprints.is_pending(table, &name) => {
                look.is_wrong |= is.map(|is| is.n_rules) != n_rules(committed, table, &name);
            }
            None => look.is_unread |= digest(committed, table, &name).is_some(),
        }
    }
    look
}

fn n_rules(committed: &Committed, table: Table, chain: &ChainName) -> Option<u32> {
    match table {
        Table::Nat => committed.nat.get(chain).copied().flatten().map(|digest| digest.n_rules),
        _ => committed.filter.get(chain)?.as_ref().map(|rules| rules.len() as u32),
    }
}

/// Of the built-in chains in `dump`, those in which every jump of ours is in place.
pub(super) fn doors_of(
    jumps: &[Jump],
    in_place: &BTreeSet<usize>,
    table: Table,
    dump: &Dump,
) -> Vec<((Table, ChainName), Fingerprint)> {
    let has_all = |from: &ChainName| {
        let mut of_chain =
            jumps.iter().enumerate().filter(|(_, jump)| (jump.table, jump.from) == (table, *from));
        of_chain.all(|(number, _)| in_place.contains(&number))
    };
    let is_door = |name: &ChainName| table.built_in().contains(&name.as_str()) && has_all(name);
    let doors = dump.chains.iter().filter(|shown| is_door(&shown.name));
    doors.map(|shown| ((table, shown.name), shown.fingerprint)).collect()
}

/// The prints of built-in chains, as they were when every jump of ours was seen in them.
pub(super) type Doors = BTreeMap<(Table, ChainName), Fingerprint>;
