//! How chains looked in the kernel right after they were written: what tells at any size, without
//! reading rules, whether they are as they were left.

use std::collections::BTreeMap;
use std::num::NonZero;

use crate::iptables::{ChainName, Table, keyed_hash};

/// How the rules of a chain look in the kernel: a hash of what it shows of them. Equal prints are taken
/// for equal rules; what the rules are cannot be told. Lives as long as the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Print(NonZero<u64>);

impl Print {
    /// The print with this hash.
    pub fn new(hash: u64) -> Print {
        Print(NonZero::new(hash).unwrap_or(NonZero::<u64>::MIN))
    }
}

/// Up to how many chains are remembered one by one until their prints are taken.
const FEW: usize = 64;

/// The prints of chains whose content is known, some 25 bytes each.
///
/// A chain that is written loses its print, and a new one is *due*. It may be taken as long as nobody
/// else has written since; when somebody has, it is given up: the chain has no print until it is
/// written, or read and compared, once more.
#[derive(Clone, Debug, Default)]
pub struct Prints {
    /// By a hash of table and name; `None` while a print is due.
    of_chains: BTreeMap<u64, Option<Print>>,
    few: Vec<(Table, ChainName)>,
    is_many: bool,
}

/// Of which chains a print is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due<'a> {
    /// Of none.
    Nothing,
    /// Of these; at least one.
    Few(&'a [(Table, ChainName)]),
    /// Of too many to be listed.
    Many,
}

impl Prints {
    /// Notes that the content of a chain is known from now on, because it was written or read: a print is
    /// due.
    pub fn known(&mut self, table: Table, name: ChainName) {
        self.of_chains.insert(key(table, &name), None);
        if self.is_many || self.few.contains(&(table, name)) {
            return;
        }
        self.few.push((table, name));
        if self.few.len() > FEW {
            self.few = Vec::new();
            self.is_many = true;
        }
    }

    /// Notes that a chain is gone, or that nobody knows what it holds.
    pub fn unknown(&mut self, table: Table, name: ChainName) {
        self.of_chains.remove(&key(table, &name));
        self.few.retain(|one| *one != (table, name));
    }

    /// How the chain looked; `None` when no print was taken since it was written.
    pub fn of(&self, table: Table, name: &ChainName) -> Option<Print> {
        self.of_chains.get(&key(table, name)).copied().flatten()
    }

    /// Takes over a print that still holds.
    pub fn keep(&mut self, table: Table, name: ChainName, print: Print) {
        self.of_chains.insert(key(table, &name), Some(print));
    }

    /// Whether the print of the chain is due.
    pub fn is_due(&self, table: Table, name: &ChainName) -> bool {
        self.of_chains.get(&key(table, name)) == Some(&None)
    }

    /// Which prints are due.
    pub fn due(&self) -> Due<'_> {
        match (self.is_many, self.few.is_empty()) {
            (true, _) => Due::Many,
            (false, false) => Due::Few(&self.few),
            (false, true) => Due::Nothing,
        }
    }

    /// Takes the print of a chain, if it is due.
    pub fn take(&mut self, table: Table, name: &ChainName, print: Print) {
        if let Some(due @ None) = self.of_chains.get_mut(&key(table, name)) {
            *due = Some(print);
        }
    }

    /// Has no print be due any more. Chains of which none was taken stay without.
    pub fn settle(&mut self) {
        match self.is_many {
            true => self.of_chains.retain(|_, print| print.is_some()),
            false => {
                for (table, name) in &self.few {
                    let key = key(*table, name);
                    if self.of_chains.get(&key) == Some(&None) {
                        self.of_chains.remove(&key);
                    }
                }
            }
        }
        self.few = Vec::new();
        self.is_many = false;
    }
}

fn key(table: Table, name: &ChainName) -> u64 {
    keyed_hash((table, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> ChainName {
        ChainName::new(&format!("KUBE-SVC-{n}")).unwrap()
    }

    #[test]
    fn a_chain_has_a_print_from_when_it_was_taken_until_it_is_written() {
        let (mut prints, print) = (Prints::default(), Print::new(7));
        prints.take(Table::Nat, &name(1), print);
        assert_eq!(prints.of(Table::Nat, &name(1)), None, "nobody knows what it held then");
        prints.known(Table::Nat, name(1));
        assert_eq!(prints.due(), Due::Few(&[(Table::Nat, name(1))]));
        assert!(prints.is_due(Table::Nat, &name(1)) && !prints.is_due(Table::Filter, &name(1)));
        assert_eq!(prints.of(Table::Nat, &name(1)), None);
        prints.take(Table::Filter, &name(1), print);
        prints.take(Table::Nat, &name(1), print);
        prints.settle();
        assert_eq!((prints.due(), prints.of(Table::Nat, &name(1))), (Due::Nothing, Some(print)));
        assert_eq!(prints.of(Table::Filter, &name(1)), None);
        prints.take(Table::Nat, &name(1), Print::new(8));
        assert_eq!(prints.of(Table::Nat, &name(1)), Some(print), "it is taken once");
        prints.known(Table::Nat, name(1));
        assert_eq!(prints.of(Table::Nat, &name(1)), None);
    }

    #[test]
    fn what_was_given_up_is_not_taken_with_what_is_written_later() {
        for n in [1, FEW, FEW + 1] {
            let mut prints = Prints::default();
            (0..n).for_each(|n| prints.known(Table::Nat, name(n)));
            assert_eq!(matches!(prints.due(), Due::Many), n > FEW);
            prints.settle();
            (1_000..1_000 + 2 * FEW).for_each(|n| prints.known(Table::Nat, name(n)));
            assert_eq!(prints.due(), Due::Many);
            (0..2_000).for_each(|n| prints.take(Table::Nat, &name(n), Print::new(1)));
            prints.settle();
            assert_eq!(prints.of(Table::Nat, &name(0)), None);
            assert_eq!(prints.of(Table::Nat, &name(1_000)), Some(Print::new(1)));
        }
    }

    #[test]
    fn a_chain_that_is_gone_is_not_due() {
        let mut prints = Prints::default();
        prints.known(Table::Nat, name(1));
        prints.unknown(Table::Nat, name(1));
        assert_eq!(prints.due(), Due::Nothing);
        prints.take(Table::Nat, &name(1), Print::new(1));
        assert_eq!(prints.of(Table::Nat, &name(1)), None);
    }
}
