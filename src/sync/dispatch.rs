//! The shared chains of nat, and those that lead on from them: only what differs is written.

use std::collections::{BTreeMap, BTreeSet};

use super::records::Record;
use crate::iptables::{ChainName, Digest, Rule, Table};
use crate::kernel::RestoreError;
use crate::model::ServicePortName;
use crate::plan::{Failure, Planner, Restore};
use crate::rules::dispatch::{Key, Part, SharedPart, shared_chains};
use crate::rules::overlap::Overlaps;
use crate::rules::ownership::Owner;
use crate::rules::{Layout, Settings, SharedChain};

/// What the dispatch is made of.
pub(super) struct Dispatch<'a> {
    pub(super) settings: &'a Settings,
    pub(super) layout: Layout,
    pub(super) records: &'a BTreeMap<ServicePortName, Record>,
    pub(super) overlaps: &'a Overlaps,
}

/// The entries of one shared chain, in the order of their service ports.
struct Entries<'a> {
    dispatch: &'a Dispatch<'a>,
    chain: SharedChain,
    /// Whose each is, and which of his in this chain.
    owners: Vec<(&'a ServicePortName, usize)>,
    keys: Vec<Key>,
    hashes: Vec<u64>,
}

impl Dispatch<'_> {
    /// Hands what differs to `planner`, and takes what is wanted out of `stale`; adds what is no
    /// longer wanted.
    pub(super) fn restore<R: Restore<Error = RestoreError>>(
        &self,
        planner: &mut Planner<'_, R>,
        stale: &mut BTreeSet<ChainName>,
    ) -> Result<(), Failure<RestoreError>> {
        let chains = [SharedChain::NatNodePorts, SharedChain::NatServices].map(|chain| self.entries(chain));
        let parts: Vec<(&Entries<'_>, SharedPart)> = chains
            .iter()
            .flat_map(|entries| entries.chains().into_iter().map(move |part| (entries, part)))
            .collect();
        let there =
            planner.committed().nat.keys().filter(|name| Owner::of(Table::Nat, name) == Owner::Dispatch);
        stale.extend(there);
        for (_, part) in &parts {
            stale.remove(&part.name);
        }
        let (new, there): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, part)| {
            // What nothing leads to yet need not wait for what is committed together.
            planner.has_deferred() && !planner.committed().nat.contains_key(&part.name)
        });
        for (entries, part) in new {
            entries.restore(planner, &part)?;
        }
        planner.nat_dispatch();
        for (entries, part) in there {
            entries.restore(planner, &part)?;
        }
        Ok(())
    }

    fn entries(&self, chain: SharedChain) -> Entries<'_> {
        let (mut owners, mut keys, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        for (name, record) in self.records {
            let of_chain = record.nat_entries.iter().filter(|(shared, ..)| *shared == chain).enumerate();
            let left_out = |key| self.overlaps.leave_out(name, chain, key);
            for (n, (_, key, hash)) in of_chain.filter(|(_, (_, key, _))| !left_out(key)) {
                owners.push((name, n));
                keys.push(*key);
                hashes.push(*hash);
            }
        }
        Entries { dispatch: self, chain, owners, keys, hashes }
    }
}

impl Entries<'_> {
    fn chains(&self) -> Vec<SharedPart> {
        shared_chains(self.dispatch.settings, self.dispatch.layout, self.chain, &self.keys)
    }

    fn restore<R: Restore<Error = RestoreError>>(
        &self,
        planner: &mut Planner<'_, R>,
        chain: &SharedPart,
    ) -> Result<(), Failure<RestoreError>> {
        let hash = |part: &Part| match part {
            Part::Entry(entry) => self.hashes[*entry],
            Part::Rule(rule) => Digest::rule(rule),
        };
        let digest = chain.parts.iter().fold(Digest::EMPTY, |digest, part| digest.then(hash(part)));
        planner.nat_shared(chain.name, digest, |each| self.each_rule(chain, each))
    }

    /// Makes the rules again, those of one service port that follow each other at once.
    fn each_rule(&self, chain: &SharedPart, each: &mut dyn FnMut(&Rule)) {
        let mut last: Option<(&ServicePortName, Vec<Rule>)> = None;
        for part in &chain.parts {
            match part {
                Part::Rule(rule) => each(rule),
                Part::Entry(entry) => {
                    let (owner, n) = self.owners[*entry];
                    if last.as_ref().is_none_or(|(name, _)| *name != owner) {
                        last = Some((owner, self.rules_of(owner)));
                    }
                    if let Some(rule) = last.as_ref().and_then(|(_, rules)| rules.get(n)) {
                        each(rule);
                    }
                }
            }
        }
    }

    /// The entries of one service port in this chain.
    fn rules_of(&self, name: &ServicePortName) -> Vec<Rule> {
        let Dispatch { settings, records, .. } = self.dispatch;
        let entries = records.get(name).map(|record| record.entries(settings)).unwrap_or_default();
        entries.into_iter().filter(|(chain, _)| *chain == self.chain).map(|(_, rule)| rule).collect()
    }
}
