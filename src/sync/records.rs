//! What is remembered of service ports between syncs, and what one compilation changes of it.

use std::collections::{BTreeMap, BTreeSet};

use super::family::View;
use crate::iptables::{ChainName, Rule, Table};
use crate::model::{ServiceName, ServicePort, ServicePortName, Snapshot};
use crate::net::{IpFamily, Protocol};
use crate::plan::{Digest, When};
use crate::policy::{Selection, Verdict, Verdicts};
use crate::rules::dispatch::Key;
use crate::rules::{self, Entry, Settings, SharedChain, names};

/// What is remembered of a service port between syncs: no rule text but for its few entries in
/// filter.
#[derive(Clone, Debug)]
pub(super) struct Record {
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
    /// Whether `chain` is the service port's, or shared and `rule` is an entry of it there.
    pub(super) fn owns(&self, (table, chain): (Table, ChainName), rule: Option<&Rule>) -> bool {
        // In compact, entries stand in chains behind the shared ones.
        let is_it = |shared: &SharedChain| {
            shared.table() == table && (shared.name() == chain || names::is_dispatch(table, &chain))
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

pub(super) fn record(settings: &Settings, view: View<'_>, port: &ServicePort<'_>) -> Record {
    let endpoints = view.snapshot.endpoints(port, settings.family);
    let verdicts = Selection::new(port, &endpoints, view.place).verdicts(port);
    let (nat, filter): (Vec<Entry>, Vec<Entry>) = rules::entries(settings, port, verdicts)
        .into_iter()
        .partition(|(chain, _)| chain.table() == Table::Nat);
    Record {
        verdicts,
        n_endpoints: endpoints.len(),
        chains: Box::default(),
        nat_entries: nat
            .iter()
            .filter_map(|(chain, rule)| Some((*chain, Key::of(rule)?, Digest::rule(rule))))
            .collect(),
        filter_entries: filter.into(),
    }
}

/// Takes the records of the ports of `service` out of `records`.
pub(super) fn take_records(
    records: &mut BTreeMap<ServicePortName, Record>,
    service: &ServiceName,
) -> Vec<(ServicePortName, Record)> {
    let first = ServicePortName { service: service.clone(), port: "".into(), protocol: Protocol::Tcp };
    let names: Vec<ServicePortName> = records
        .range(first..)
        .take_while(|(name, _)| name.service == *service)
        .map(|(name, _)| name.clone())
        .collect();
    names.into_iter().filter_map(|name| records.remove_entry(&name)).collect()
}

pub(super) fn find_port<'a>(
    snapshot: &'a Snapshot,
    family: IpFamily,
    name: &ServicePortName,
) -> Option<ServicePort<'a>> {
    let service = snapshot.service(&name.service)?;
    service.ports_in(family).find(|port| port.port.name == name.port && port.port.protocol == name.protocol)
}
