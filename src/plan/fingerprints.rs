//! Fingerprints of the chains that we wrote or read: what tells at any size, without reading rules, whether the
//! kernel still holds them as they were left.

use std::collections::BTreeMap;

use crate::iptables::{ChainName, Fingerprint, Table, keyed_hash};

/// Up to how many chains are listed one by one until their fingerprints are recorded.
const FEW: usize = 64;

/// The fingerprints of chains whose content is known, some 25 bytes each.
///
/// A chain that is written loses its fingerprint, and a new one is *pending*. It may be recorded as long as no
/// other process has written since; once one has, it is dropped: the chain has no fingerprint until it is
/// written, or read and compared, once more.
#[derive(Clone, Debug, Default)]
pub struct Fingerprints {
    /// By a hash of table and name; `None` while a fingerprint is pending.
    of_chains: BTreeMap<u64, Option<Fingerprint>>,
    few: Vec<(Table, ChainName)>,
    is_many: bool,
}

/// Which chains' fingerprints are pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingFingerprints<'a> {
    /// None.
    Nothing,
    /// These; at least one.
    Few(&'a [(Table, ChainName)]),
    /// Too many to be listed.
    Many,
}

impl Fingerprints {
    /// Marks the fingerprint of a chain as pending, because the chain was written or read just now.
    pub fn mark_pending(&mut self, table: Table, name: ChainName) {
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

    /// Removes a chain that is gone, or whose content is not known.
    pub fn remove(&mut self, table: Table, name: ChainName) {
        self.of_chains.remove(&key(table, &name));
        self.few.retain(|one| *one != (table, name));
    }

    /// The chain's fingerprint; `None` when none was recorded since the chain was written.
    pub fn of(&self, table: Table, name: &ChainName) -> Option<Fingerprint> {
        self.of_chains.get(&key(table, name)).copied().flatten()
    }

    /// Adds a chain with a fingerprint that is known to hold.
    pub fn insert(&mut self, table: Table, name: ChainName, fingerprint: Fingerprint) {
        self.of_chains.insert(key(table, &name), Some(fingerprint));
    }

    /// Whether the chain's fingerprint is pending.
    pub fn is_pending(&self, table: Table, name: &ChainName) -> bool {
        self.of_chains.get(&key(table, name)) == Some(&None)
    }

    /// Which fingerprints are pending.
    pub fn pending(&self) -> PendingFingerprints<'_> {
        match (self.is_many, self.few.is_empty()) {
            (true, _) => PendingFingerprints::Many,
            (false, false) => PendingFingerprints::Few(&self.few),
            (false, true) => PendingFingerprints::Nothing,
        }
    }

    /// Records the fingerprint of a chain, if it is pending.
    pub fn record(&mut self, table: Table, name: &ChainName, fingerprint: Fingerprint) {
        if let Some(pending @ None) = self.of_chains.get_mut(&key(table, name)) {
            *pending = Some(fingerprint);
        }
    }

    /// Drops pending fingerprints; those chains have none.
    pub fn drop_pending(&mut self) {
        match self.is_many {
            true => self.of_chains.retain(|_, fingerprint| fingerprint.is_some()),
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
    fn a_chain_has_a_fingerprint_from_when_it_was_recorded_until_it_is_written() {
        let (mut fingerprints, fingerprint) = (Fingerprints::default(), Fingerprint::new(7));
        fingerprints.record(Table::Nat, &name(1), fingerprint);
        assert_eq!(fingerprints.of(Table::Nat, &name(1)), None, "what the chain held then is not known");
        fingerprints.mark_pending(Table::Nat, name(1));
        assert_eq!(fingerprints.pending(), PendingFingerprints::Few(&[(Table::Nat, name(1))]));
        assert!(
            fingerprints.is_pending(Table::Nat, &name(1))
                && !fingerprints.is_pending(Table::Filter, &name(1))
        );
        assert_eq!(fingerprints.of(Table::Nat, &name(1)), None);
        fingerprints.record(Table::Filter, &name(1), fingerprint);
        fingerprints.record(Table::Nat, &name(1), fingerprint);
        fingerprints.drop_pending();
        assert_eq!(
            (fingerprints.pending(), fingerprints.of(Table::Nat, &name(1))),
            (PendingFingerprints::Nothing, Some(fingerprint))
        );
        assert_eq!(fingerprints.of(Table::Filter, &name(1)), None);
        fingerprints.record(Table::Nat, &name(1), Fingerprint::new(8));
        assert_eq!(fingerprints.of(Table::Nat, &name(1)), Some(fingerprint), "it is recorded once");
        fingerprints.mark_pending(Table::Nat, name(1));
        assert_eq!(fingerprints.of(Table::Nat, &name(1)), None);
    }

    #[test]
    fn dropped_fingerprints_are_not_recorded_with_later_ones() {
        for n in [1, FEW, FEW + 1] {
            let mut fingerprints = Fingerprints::default();
            (0..n).for_each(|n| fingerprints.mark_pending(Table::Nat, name(n)));
            assert_eq!(matches!(fingerprints.pending(), PendingFingerprints::Many), n > FEW);
            fingerprints.drop_pending();
            (1_000..1_000 + 2 * FEW).for_each(|n| fingerprints.mark_pending(Table::Nat, name(n)));
            assert_eq!(fingerprints.pending(), PendingFingerprints::Many);
            (0..2_000).for_each(|n| fingerprints.record(Table::Nat, &name(n), Fingerprint::new(1)));
            fingerprints.drop_pending();
            assert_eq!(fingerprints.of(Table::Nat, &name(0)), None);
            assert_eq!(fingerprints.of(Table::Nat, &name(1_000)), Some(Fingerprint::new(1)));
        }
    }

    #[test]
    fn a_chain_that_is_gone_is_not_pending() {
        let mut fingerprints = Fingerprints::default();
        fingerprints.mark_pending(Table::Nat, name(1));
        fingerprints.remove(Table::Nat, name(1));
        assert_eq!(fingerprints.pending(), PendingFingerprints::Nothing);
        fingerprints.record(Table::Nat, &name(1), Fingerprint::new(1));
        assert_eq!(fingerprints.of(Table::Nat, &name(1)), None);
    }
}
