//! Frontends that several service ports claim, and which of them owns each.
//!
//! Any user who may create Services may give one an external IP that is another Service's cluster IP. The
//! owner keeps such a frontend (see [`Seniority`](crate::model::Seniority)); the other service ports' entries
//! for it are omitted, in nat and in filter, whether the owner has endpoints or not. kube-proxy v1.36 writes
//! all entries in random order.

use std::collections::BTreeMap;
use std::fmt;

use super::shared_chain::{Key, SharedChain};
use crate::model::{Service, ServiceName, ServicePortName};
use crate::net::IpFamily;

/// The frontends of service ports, gathered to find overlaps.
#[derive(Default)]
pub struct Claims<'a> {
    /// In the order of names.
    owners: Vec<(&'a ServicePortName, &'a Service)>,
    /// Each frontend, with the index of its service port in `owners`.
    frontends: Vec<(Key, u32)>,
}

impl<'a> Claims<'a> {
    /// Adds the frontends of a service port of `service`: the keys of its entries. Service ports are added
    /// in the order of their names.
    pub fn add(
        &mut self,
        name: &'a ServicePortName,
        service: &'a Service,
        entries: impl Iterator<Item = (SharedChain, Key)>,
    ) {
        let owner = self.owners.len() as u32;
        self.owners.push((name, service));
        // Entries for health check node ports accept packets for every Service alike.
        let entries = entries.filter(|(chain, _)| *chain != SharedChain::FilterNodePorts);
        self.frontends.extend(entries.map(|(_, key)| (key, owner)));
    }

    /// The frontends that more than one service port claims.
    pub fn overlaps(mut self, family: IpFamily) -> Overlaps {
        self.frontends.sort_unstable();
        self.frontends.dedup();
        let groups = self.frontends.chunk_by(|(a, _), (b, _)| a == b).filter(|group| group.len() > 1);
        let overlap = |group: &[(Key, u32)]| {
            let seniority = |(key, owner): &&(Key, u32)| {
                (self.owners[*owner as usize].1.seniority(family, key.ip), *owner)
            };
            let (key, winner) = *group.iter().min_by_key(seniority)?;
            let name = |owner: u32| self.owners[owner as usize].0.clone();
            let losers = group.iter().filter(|(_, owner)| *owner != winner).map(|(_, owner)| name(*owner));
            Some((key, Overlap { owner: name(winner), losers: losers.collect() }))
        };
        Overlaps(groups.filter_map(overlap).collect())
    }
}

/// A frontend that several service ports claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The service port that answers on it.
    pub owner: ServicePortName,
    /// The other service ports, by name.
    pub losers: Box<[ServicePortName]>,
}

/// All frontends that several service ports claim; usually none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlaps(BTreeMap<Key, Overlap>);

impl Overlaps {
    /// Whether the entry of `name` for `key` in `chain` is omitted.
    pub fn leave_out(&self, name: &ServicePortName, chain: SharedChain, key: &Key) -> bool {
        chain != SharedChain::FilterNodePorts && self.0.get(key).is_some_and(|overlap| overlap.owner != *name)
    }

    /// The owner and the losers of the frontend `key`, if several service ports claim it.
    pub fn get(&self, key: &Key) -> Option<&Overlap> {
        self.0.get(key)
    }

    /// The number of omitted claims: one for each frontend and loser.
    pub fn n_lost(&self) -> usize {
        self.0.values().map(|overlap| overlap.losers.len()).sum()
    }

    /// The frontends whose owner or losers differ from `before`, with all service ports that claim or
    /// claimed them.
    pub fn changed_since<'a>(
        &'a self,
        before: &'a Overlaps,
    ) -> impl Iterator<Item = (&'a Key, impl Iterator<Item = &'a ServicePortName>)> {
        let all = self.0.iter().chain(before.0.iter().filter(|(key, _)| !self.0.contains_key(key)));
        let differs = |(key, _): &(&Key, &Overlap)| self.0.get(key) != before.0.get(key);
        all.filter(differs).map(move |(key, _)| {
            let overlaps = [self.0.get(key), before.0.get(key)].into_iter().flatten();
            (key, overlaps.flat_map(|overlap| overlap.losers.iter().chain([&overlap.owner])))
        })
    }

    /// The frontends that Services lost since `before`: one value for each two Services.
    pub fn losses_since(&self, before: &Overlaps) -> Vec<Loss> {
        let mut losses: BTreeMap<(&ServiceName, &ServiceName), (Key, usize)> = BTreeMap::new();
        for (key, overlap) in &self.0 {
            for loser in &overlap.losers {
                if !before.leave_out(loser, SharedChain::NatServices, key) {
                    let pair = (&loser.service, &overlap.owner.service);
                    losses.entry(pair).and_modify(|(_, n)| *n += 1).or_insert((*key, 1));
                }
            }
        }
        let loss = |((service, owner), (first, n)): ((&ServiceName, &ServiceName), (Key, usize))| Loss {
            service: service.clone(),
            owner: owner.clone(),
            first,
            n,
        };
        losses.into_iter().map(loss).collect()
    }
}

/// Frontends that a Service claims and another Service owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The Service that does not answer on them.
    pub service: ServiceName,
    /// The Service that does.
    pub owner: ServiceName,
    /// One of the frontends.
    pub first: Key,
    /// Their number.
    pub n: usize,
}

/// In a sentence.
impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        match self.n {
            1 => write!(f, " belongs to Service {}", self.owner),
            n => write!(f, " and {} more belong to Service {}", n - 1, self.owner),
        }
    }
}
