//! Looks at a family's tables without reading them: whether they are as they were left.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{debug, info};

use super::{Tables, contains, digest, is_tracked};
use crate::iptables::{ChainName, Table};
use crate::kernel::{Backend, Dump, Iptables};
use crate::plan::{Due, Print};
use crate::rules::names;

/// Up to how many chains a suspicion is settled by reading everything.
const CHEAP_CHAINS: usize = 2_000;

/// What a look tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Something is otherwise than it was left, or only reading can tell: the tables are to be read.
    pub is_wrong: bool,
    /// Not everything was compared, and a reading for what is wrong does not make up for it.
    pub is_unread: bool,
}

impl Look {
    /// Everything is to be read.
    const WRONG: Look = Look { is_wrong: true, is_unread: false };
}

impl<K: Iptables> Tables<K> {
    /// Whether somebody else, who wrote to the tables, changed anything of ours, as far as it can be told
    /// without reading. Chains whose print is due are given up.
    pub(in crate::sync) fn look(&mut self) -> Look {
        let Some(committed) = &mut self.committed else { return Look::WRONG };
        if self.kernel.backend() == Backend::Legacy {
            return Look { is_wrong: self.look_at_a_jump(), is_unread: true };
        }
        committed.prints.settle();
        match self.dumps() {
            Ok(Some(dumps)) => self.compare_prints(&dumps),
            Ok(None) => self.look_at_names(),
            Err(error) => {
                let family = self.kernel.family();
                info!(%family, error = %format!("{error:#}"), "chains are looked at by name alone");
                self.look_at_names()
            }
        }
    }

    /// One process: the jumps in turns, one of nat and one of filter. No flush spares any of them.
    fn look_at_a_jump(&mut self) -> bool {
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

    /// How both tables look now; `None` where that cannot be told.
    fn dumps(&mut self) -> anyhow::Result<Option<BTreeMap<Table, Dump>>> {
        let mut dumps = BTreeMap::new();
        for table in [Table::Filter, Table::Nat] {
            match self.kernel.prints(table, None)? {
                Some(dump) => drop(dumps.insert(table, dump)),
                None => return Ok(None),
            }
        }
        Ok(Some(dumps))
    }

    fn compare_prints(&mut self, dumps: &BTreeMap<Table, Dump>) -> Look {
        let Some(committed) = &self.committed else { return Look::WRONG };
        let (mut is_wrong, mut is_whole) = (false, true);
        for (table, dump) in dumps {
            let names: Vec<&ChainName> = match table {
                Table::Nat => committed.nat.keys().collect(),
                _ => committed.filter.keys().collect(),
            };
            for name in names {
                let (was, is) = (committed.prints.of(*table, name), dump.of(name));
                is_wrong |= is.is_none();
                // What the kubelet does with its chain is its own business.
                if *name == names::KUBE_FIREWALL {
                    continue;
                }
                match was {
                    Some(_) => is_wrong |= was != is,
                    None => is_whole &= digest(committed, *table, name).is_none(),
                }
            }
            let is_stray = |name: &ChainName| is_tracked(*table, name) && !contains(committed, *table, name);
            is_wrong |= dump.chains.iter().any(|(name, _)| is_stray(name));
        }
        let is_cheap = committed.n_chains() < CHEAP_CHAINS;
        is_wrong |= is_cheap && !is_whole;
        is_wrong |= !is_wrong && !self.has_jumps(dumps);
        Look { is_wrong, is_unread: !is_whole && !is_cheap }
    }

    /// Whether all jumps are in place. Those in a built-in chain that looks as when they were last seen
    /// there need not be looked for: it would be a process each.
    fn has_jumps(&mut self, dumps: &BTreeMap<Table, Dump>) -> bool {
        let from: BTreeSet<(Table, ChainName)> =
            self.jumps.iter().map(|jump| (jump.table, jump.from)).collect();
        for (table, from) in from {
            let Some(dump) = dumps.get(&table) else { continue };
            let shown = dump.of(&from);
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
            // Seen at the generation of the dump, or nobody knows which rules they were seen among.
            match shown.filter(|_| is_sure && self.kernel.generation() == Some(dump.generation)) {
                Some(print) => drop(self.doors.insert((table, from), print)),
                None => drop(self.doors.remove(&(table, from))),
            }
        }
        true
    }

    /// Whether prints are due.
    pub(in crate::sync) fn has_due_prints(&self) -> bool {
        self.committed.as_ref().is_some_and(|committed| committed.prints.due() != Due::Nothing)
    }

    /// Whether those that are due are taken in a few milliseconds.
    pub(in crate::sync) fn are_due_prints_quick(&self) -> bool {
        self.committed.as_ref().is_some_and(|committed| {
            committed.prints.due() != Due::Many || committed.n_chains() < CHEAP_CHAINS
        })
    }

    /// Has no print be due any more, because somebody else wrote.
    pub(in crate::sync) fn give_up_prints(&mut self) {
        if let Some(committed) = &mut self.committed {
            committed.prints.settle();
        }
    }

    /// Takes the prints that are due, if the ruleset is still at `generation`, up to which all that is
    /// known of the tables holds. Otherwise they stay due.
    pub(in crate::sync) fn take_prints(&mut self, generation: u32) {
        if let Err(error) = self.try_prints(generation) {
            let family = self.kernel.family();
            debug!(%family, error = %format!("{error:#}"), "prints are not taken");
        }
    }

    fn try_prints(&mut self, generation: u32) -> anyhow::Result<()> {
        let Some(committed) = &mut self.committed else { return Ok(()) };
        let due: Vec<(Table, Option<Vec<ChainName>>)> = match committed.prints.due() {
            Due::Nothing => return Ok(()),
            Due::Many => vec![(Table::Filter, None), (Table::Nat, None)],
            // Where it costs next to nothing, the built-in chains are taken along the first time.
            Due::Few(_) if self.doors.is_empty() && committed.n_chains() < CHEAP_CHAINS => {
                vec![(Table::Filter, None), (Table::Nat, None)]
            }
            Due::Few(chains) => {
                let of = |table| chains.iter().filter(move |(of, _)| *of == table).map(|(_, name)| *name);
                let few = [Table::Filter, Table::Nat].map(|table| (table, Some(of(table).collect())));
                few.into_iter()
                    .filter(|(_, names): &(_, Option<Vec<_>>)| names != &Some(Vec::new()))
                    .collect()
            }
        };
        for (table, only) in due {
            let Some(dump) = self.kernel.prints(table, only.as_deref())? else { continue };
            if dump.generation != generation {
                return Ok(());
            }
            for (name, print) in &dump.chains {
                committed.prints.take(table, name, *print);
            }
            if only.is_none() {
                let has_all = |from: &ChainName| {
                    let jumps = self.jumps.iter().enumerate();
                    let mut jumps = jumps.filter(|(_, jump)| (jump.table, jump.from) == (table, *from));
                    jumps.all(|(number, _)| committed.jumps.contains(&number))
                };
                let doors = dump
                    .chains
                    .iter()
                    .filter(|(name, _)| table.built_in().contains(&name.as_str()) && has_all(name));
                self.doors.extend(doors.map(|(name, print)| ((table, *name), *print)));
            }
        }
        committed.prints.settle();
        Ok(())
    }
}

/// The prints of built-in chains, as they were when every jump of ours was seen in them.
pub(super) type Doors = BTreeMap<(Table, ChainName), Print>;
