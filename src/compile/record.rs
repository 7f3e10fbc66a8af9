//! What is kept of a compiled service port.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::in_force::InForce;
use super::source::Selected;
use crate::iptables::{ChainName, Digest, Rule, Table};
use crate::model::{Service, ServiceName, ServicePortName};
use crate::net::Protocol;
use crate::policy::{Verdict, Verdicts};
use crate::rules::dispatch::Key;
use crate::rules::ownership::ChainOwner;
use crate::rules::{self, Entry, Settings, SharedChain};

/// The records of service ports, by name.
pub(super) type Records = BTreeMap<ServicePortName, Record>;

/// What is kept of a compiled service port: no rule text.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// The Service that the entries were made from; the snapshot may hold a newer one.
    pub(super) service: Arc<Service>,
    /// The port's place in it.
    pub(super) place: usize,
    verdicts: Verdicts,
    pub(super) n_endpoints: usize,
    /// Its chains in nat; none until they are compiled.
    pub(super) chains: Box<[ChainName]>,
    /// Its entries in the shared chains.
    entries: Box<[RecordedEntry]>,
}

/// An entry of a service port in a shared chain: which packets it is for, and a hash of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordedEntry {
    pub(super) chain: SharedChain,
    pub(super) key: Key,
    pub(super) hash: u64,
}

impl Record {
    /// The record of one port of `service`.
    pub(super) fn new(settings: &Settings, service: &Arc<Service>, selected: &Selected<'_>) -> Record {
        let port = &selected.port;
        let record = Record {
            service: service.clone(),
            place: port.place,
            verdicts: selected.selection.verdicts(port),
            n_endpoints: selected.n_endpoints,
            chains: Box::default(),
            entries: Box::default(),
        };
        record.with_entries_of(settings)
    }

    /// The same with its entries made again by `settings`.
    pub(super) fn with_entries_of(mut self, settings: &Settings) -> Record {
        let recorded = |(chain, rule): Entry| {
            Some(RecordedEntry { chain, key: Key::of(&rule)?, hash: Digest::rule(&rule) })
        };
        self.entries = self.make_entries(settings).into_iter().filter_map(recorded).collect();
        self
    }

    /// The rules of its entries in the shared chains.
    pub(super) fn make_entries(&self, settings: &Settings) -> Vec<Entry> {
        let port = self.service.port_in(settings.family, self.place);
        port.map(|port| rules::entries(settings, &port, self.verdicts)).unwrap_or_default()
    }

    /// Its entries in `chain`, in their order.
    pub(super) fn entries_in(&self, chain: SharedChain) -> impl Iterator<Item = &RecordedEntry> {
        self.entries.iter().filter(move |entry| entry.chain == chain)
    }

    /// Its entries in the shared chains of `table`, in their order.
    fn entries_of_table(&self, table: Table) -> impl Iterator<Item = &RecordedEntry> {
        self.entries.iter().filter(move |entry| entry.chain.table() == table)
    }

    /// Which packets each of its entries is for.
    pub(super) fn keys(&self) -> impl Iterator<Item = (SharedChain, Key)> {
        self.entries.iter().map(|entry| (entry.chain, entry.key))
    }

    /// Whether its entries in nat are the same as those of `other`.
    pub(super) fn has_same_nat_entries(&self, other: &Record) -> bool {
        self.entries_of_table(Table::Nat).eq(other.entries_of_table(Table::Nat))
    }

    /// Whether its entries may be in force before its chains are compiled: each chain that they jump to
    /// exists, whatever its content. On a node without rules none does.
    pub(super) fn may_precede_chains(&self, settings: &Settings, in_force: &dyn InForce) -> bool {
        let entries = self.make_entries(settings).into_iter();
        let mut nat = entries.filter(|(chain, _)| chain.table() == Table::Nat);
        in_force.has_jumps()
            && nat.all(|(_, rule)| rule.callee().is_none_or(|callee| in_force.has_nat_chain(&callee)))
    }

    /// Whether `chain` is the service port's own, or a shared one in which `rule` is an entry of it.
    pub(super) fn owns(&self, (table, chain): (Table, ChainName), rule: Option<&Rule>) -> bool {
        // In compact, entries stand in chains behind the shared ones.
        let is_it = |shared: SharedChain| {
            shared.table() == table
                && (shared.name() == chain || ChainOwner::of(table, &chain) == ChainOwner::Dispatch)
        };
        table == Table::Nat && self.chains.contains(&chain)
            || rule.is_some_and(|rule| {
                let hash = Digest::rule(rule);
                self.entries.iter().any(|entry| is_it(entry.chain) && entry.hash == hash)
            })
    }
}

/// The shared chains in which the entries of two records differ.
pub(super) fn chains_that_differ<'a>(
    old: Option<&'a Record>,
    new: Option<&'a Record>,
) -> impl Iterator<Item = SharedChain> {
    SharedChain::ALL.into_iter().filter(move |chain| {
        let entries = |record: Option<&'a Record>| record.into_iter().flat_map(|it| it.entries_in(*chain));
        entries(old).ne(entries(new))
    })
}

/// What all records come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Endpoints of the service ports, whatever their conditions.
    pub n_endpoints: usize,
    /// Service ports that drop packets for their cluster IP: the policy is Local, and all endpoints are on
    /// other nodes.
    pub n_dropped_internal: usize,
    /// Service ports that drop packets from outside, for the same reason.
    pub n_dropped_external: usize,
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

/// The records of the ports of `service`.
pub(super) fn of_service<'a>(
    records: &'a Records,
    service: &'a ServiceName,
) -> impl Iterator<Item = (&'a ServicePortName, &'a Record)> {
    let first = ServicePortName { service: service.clone(), port: "".into(), protocol: Protocol::Tcp };
    records.range(first..).take_while(move |(name, _)| name.service == *service)
}

/// Removes the records of the ports of `service` from `records`, and returns them.
pub(super) fn remove_service(records: &mut Records, service: &ServiceName) -> Vec<(ServicePortName, Record)> {
    let names: Vec<ServicePortName> = of_service(records, service).map(|(name, _)| name.clone()).collect();
    names.into_iter().filter_map(|name| records.remove_entry(&name)).collect()
}
