//! What is remembered of service ports between syncs, and what one compilation changes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::iptables::{ChainName, Digest, Rule, Table};
use crate::model::{Endpoint, Service, ServiceName, ServicePort, ServicePortName};
use crate::net::{IpFamily, Protocol};
use crate::plan::{Committed, When};
use crate::policy::{Place, Selection, Verdict, Verdicts};
use crate::rules::dispatch::Key;
use crate::rules::overlap::{Claims, Overlaps};
use crate::rules::ownership::Owner;
use crate::rules::{self, Entry, Settings, SharedChain};

/// What is remembered of a service port between syncs: no rule text but for its few entries in
/// filter.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// The Service that the entries were made from; the snapshot may hold a newer one.
    pub(super) service: Arc<Service>,
    /// The port's place in it.
    pub(super) place: usize,
    pub(super) verdicts: Verdicts,
    pub(super) n_endpoints: usize,
    /// Its chains in nat.
    pub(super) chains: Box<[ChainName]>,
    /// Its entries in nat's shared chains: which packets they are for, and hashes of the rules.
    pub(super) nat_entries: Box<[(SharedChain, Key, u64)]>,
    /// Its entries in filter's shared chains.
    pub(super) filter_entries: Box<[Entry]>,
}

impl Record {
    /// The same with entries that fit `settings`.
    pub(super) fn remade(mut self, settings: &Settings) -> Record {
        let entries = self.entries(settings).into_iter();
        let (nat, filter): (Vec<Entry>, Vec<Entry>) =
            entries.partition(|(chain, _)| chain.table() == Table::Nat);
        let known = |(chain, rule): &Entry| Some((*chain, Key::of(rule)?, Digest::rule(rule)));
        self.nat_entries = nat.iter().filter_map(known).collect();
        self.filter_entries = filter.into();
        self
    }

    /// Whether its entries may be in force before its chains are compiled: all that they jump to is
    /// `committed`, whatever it holds. On a node without rules nothing is.
    pub(super) fn may_precede_chains(&self, settings: &Settings, committed: &Committed) -> bool {
        let is_there = |chain: ChainName| committed.nat.contains_key(&chain);
        let entries = self.entries(settings).into_iter().filter(|(chain, _)| chain.table() == Table::Nat);
        !committed.jumps.is_empty() && entries.filter_map(|(_, rule)| rule.callee()).all(is_there)
    }

    /// Which packets each of its entries is for.
    pub(super) fn keys(&self) -> impl Iterator<Item = (SharedChain, Key)> {
        let nat = self.nat_entries.iter().map(|(chain, key, _)| (*chain, *key));
        let filter = self.filter_entries.iter();
        nat.chain(filter.filter_map(|(chain, rule)| Some((*chain, Key::of(rule)?))))
    }

    /// The entries in the shared chains that it remembers, made again.
    pub(super) fn entries(&self, settings: &Settings) -> Vec<Entry> {
        let port = self.service.port_in(settings.family, self.place);
        port.map(|port| rules::entries(settings, &port, self.verdicts)).unwrap_or_default()
    }

    /// Whether `chain` is the service port's, or shared and `rule` is an entry of it there.
    pub(super) fn owns(&self, (table, chain): (Table, ChainName), rule: Option<&Rule>) -> bool {
        // In compact, entries stand in chains behind the shared ones.
        let is_it = |shared: &SharedChain| {
            shared.table() == table && (shared.name() == chain || Owner::of(table, &chain) == Owner::Dispatch)
        };
        table == Table::Nat && self.chains.contains(&chain)
            || rule.is_some_and(|rule| {
                let hash = Digest::rule(rule);
                self.nat_entries.iter().any(|(shared, _, entry)| is_it(shared) && *entry == hash)
                    || self.filter_entries.iter().any(|(shared, entry)| is_it(shared) && entry == rule)
            })
    }
}

/// What all records come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) n_endpoints: usize,
    pub(super) n_dropped_internal: usize,
    pub(super) n_dropped_external: usize,
}

impl Sums {
    pub(super) fn add(&mut self, record: &Record) {
        self.n_endpoints += record.n_endpoints;
        self.n_dropped_internal += usize::from(record.verdicts.internal == Verdict::Drop);
        self.n_dropped_external += usize::from(record.verdicts.external == Verdict::Drop);
    }

    pub(super) fn subtract(&mut self, record: &Record) {
        self.n_endpoints -= record.n_endpoints;
        self.n_dropped_internal -= usize::from(record.verdicts.internal == Verdict::Drop);
        self.n_dropped_external -= usize::from(record.verdicts.external == Verdict::Drop);
    }
}

/// What a compilation changed.
pub(super) struct Changed {
    /// Service ports that were compiled.
    pub(super) ports: BTreeSet<ServicePortName>,
    /// Their records before, also of those that are gone.
    pub(super) old: BTreeMap<ServicePortName, Record>,
    /// Shared chains whose entries differ.
    pub(super) shared: BTreeSet<SharedChain>,
}

impl Changed {
    pub(super) fn touches(&self, table: Table) -> bool {
        self.shared.iter().any(|chain| chain.table() == table)
    }

    /// When the chains of `name` may be written: with the dispatch, if packets that the old one sends
    /// there would fare by neither the old nor the new rules.
    pub(super) fn when(&self, name: &ServicePortName, new: &BTreeMap<ServicePortName, Record>) -> When {
        match (self.old.get(name), new.get(name)) {
            (Some(old), Some(new)) if old.nat_entries != new.nat_entries => When::WithDispatch,
            _ => When::Now,
        }
    }

    /// The chains of the changed service ports as they were.
    pub(super) fn chains_before(&self) -> BTreeSet<ChainName> {
        self.old.values().flat_map(|record| record.chains.iter().copied()).collect()
    }

    /// Whether others may have the frontends that several claim now.
    pub(super) fn may_change_owners(&self, new: &BTreeMap<ServicePortName, Record>) -> bool {
        let is_redated = |(name, old): (&ServicePortName, &Record)| {
            new.get(name).is_some_and(|new| new.service.created != old.service.created)
        };
        !self.shared.is_empty() || self.old.iter().any(is_redated)
    }

    /// Adds the shared chains whose entries differ because frontends have other owners than `before`.
    pub(super) fn add_overlaps(
        &mut self,
        new: &BTreeMap<ServicePortName, Record>,
        overlaps: &Overlaps,
        before: &Overlaps,
    ) {
        for (key, names) in overlaps.changed_since(before) {
            let records = names.flat_map(|name| [self.old.get(name), new.get(name)]).flatten();
            let chains = records.flat_map(Record::keys).filter(|(_, other)| other == key);
            self.shared.extend(chains.map(|(chain, _)| chain));
        }
    }

    pub(super) fn find_shared(&mut self, new: &BTreeMap<ServicePortName, Record>, everything: bool) {
        if everything {
            self.shared.extend(SharedChain::ALL);
            return;
        }
        for name in self.ports.iter().chain(self.old.keys()) {
            let (old, new) = (self.old.get(name), new.get(name));
            let nat =
                |record: Option<&Record>| record.map(|record| record.nat_entries.clone()).unwrap_or_default();
            if nat(old) != nat(new) {
                self.shared.extend(nat(old).iter().chain(&nat(new)).map(|(chain, ..)| *chain));
            }
            let filter = |record: Option<&Record>| {
                record.map(|record| record.filter_entries.clone()).unwrap_or_default()
            };
            if filter(old) != filter(new) {
                self.shared.extend(filter(old).iter().chain(&filter(new)).map(|(chain, _)| *chain));
            }
        }
    }
}

/// What is remembered of `port`, which is one of `service` and has `endpoints`.
pub(super) fn record(
    settings: &Settings,
    place: Place<'_>,
    service: &Arc<Service>,
    port: &ServicePort<'_>,
    endpoints: &[Endpoint<'_>],
) -> Record {
    let verdicts = Selection::new(port, endpoints, place).verdicts(port);
    let record = Record {
        service: service.clone(),
        place: port.place,
        verdicts,
        n_endpoints: endpoints.len(),
        chains: Box::default(),
        nat_entries: Box::default(),
        filter_entries: Box::default(),
    };
    record.remade(settings)
}

/// Which frontends several of `records` claim.
pub(super) fn overlaps<'a>(
    family: IpFamily,
    records: impl Iterator<Item = (&'a ServicePortName, &'a Record)>,
) -> Overlaps {
    let mut records: Vec<_> = records.collect();
    records.sort_by_key(|(name, _)| *name);
    let mut claims = Claims::default();
    records.into_iter().for_each(|(name, record)| claims.add(name, &record.service, record.keys()));
    claims.overlaps(family)
}

/// The records of the ports of `service`.
pub(super) fn of_service<'a>(
    records: &'a BTreeMap<ServicePortName, Record>,
    service: &'a ServiceName,
) -> impl Iterator<Item = (&'a ServicePortName, &'a Record)> {
    let first = ServicePortName { service: service.clone(), port: "".into(), protocol: Protocol::Tcp };
    records.range(first..).take_while(move |(name, _)| name.service == *service)
}

/// Takes the records of the ports of `service` out of `records`.
pub(super) fn take_records(
    records: &mut BTreeMap<ServicePortName, Record>,
    service: &ServiceName,
) -> Vec<(ServicePortName, Record)> {
    let names: Vec<ServicePortName> = of_service(records, service).map(|(name, _)| name.clone()).collect();
    names.into_iter().filter_map(|name| records.remove_entry(&name)).collect()
}
