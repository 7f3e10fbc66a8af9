//! One family's rules, kept in step with the cluster: compiles what changed, plans, restores, and
//! remembers what the kernel holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::anyhow;
use tracing::{info, warn};

use super::report::{Refusal, Report, SyncError};
use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainName, Jump, Rule, Table};
use crate::kernel::{Iptables, Readable, RestoreError};
use crate::model::{ServiceName, ServicePort, ServicePortName, Snapshot};
use crate::net::{IpFamily, Protocol};
use crate::plan::{Aftermath, Committed, Digest, Failure, FilterChain, NatChain, Planner, Reader, Uncertain};
use crate::policy::{Place, Selection, Verdicts};
use crate::rules::{self, Entry, Settings, SharedChain, classic, fixed, names};

/// What has to be compiled and compared at the next sync.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dirty {
    /// Every service port.
    Everything,
    /// Those of these Services.
    Services(BTreeSet<ServiceName>),
}

/// What is remembered of a service port between syncs: no rule text but for its few entries in
/// filter.
#[derive(Clone, Debug)]
struct Record {
    verdicts: Verdicts,
    n_endpoints: usize,
    /// Its chains in nat.
    chains: Box<[ChainName]>,
    /// Hashes of its entries in nat's shared chains.
    nat_entries: Box<[(SharedChain, u64)]>,
    /// Its entries in filter's shared chains.
    filter_entries: Box<[Entry]>,
}

impl Record {
    /// Whether `chain` is the service port's, or shared and `rule` is an entry of it there.
    fn owns(&self, (table, chain): (Table, ChainName), rule: Option<&Rule>) -> bool {
        let is_it = |shared: &SharedChain| shared.table() == table && shared.name() == chain;
        table == Table::Nat && self.chains.contains(&chain)
            || rule.is_some_and(|rule| {
                let hash = Digest::rule(rule);
                self.nat_entries.iter().any(|(shared, entry)| is_it(shared) && *entry == hash)
                    || self.filter_entries.iter().any(|(shared, entry)| is_it(shared) && entry == rule)
            })
    }
}

/// The rules of one family on one node.
pub struct FamilySync<K> {
    kernel: K,
    jumps: Vec<Jump>,
    settings: Option<Settings>,
    /// `None` until the kernel was read, and when it has to be read again.
    committed: Option<Committed>,
    /// What was committed before a failure, where the kernel is too large to be read again.
    last_known: Committed,
    records: BTreeMap<ServicePortName, Record>,
    n_endpoints: usize,
    is_large: bool,
    dirty: Dirty,
}

/// The cluster and the place from which it is seen.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// All objects.
    pub snapshot: &'a Snapshot,
    /// This node.
    pub place: Place<'a>,
}

impl<K: Iptables> FamilySync<K> {
    /// Starts without knowing anything of the kernel's state.
    pub fn new(kernel: K) -> FamilySync<K> {
        FamilySync {
            kernel,
            jumps: fixed::jumps(),
            settings: None,
            committed: None,
            last_known: Committed::default(),
            records: BTreeMap::new(),
            n_endpoints: 0,
            is_large: false,
            dirty: Dirty::Everything,
        }
    }

    /// The family.
    pub fn family(&self) -> IpFamily {
        self.kernel.family()
    }

    /// The kernel's tables.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Notes that the Services called `names`, or their endpoints, changed.
    pub fn touch(&mut self, names: BTreeSet<ServiceName>) {
        if let Dirty::Services(services) = &mut self.dirty {
            services.extend(names);
        }
    }

    /// Notes that every service port has to be compared; with `reread`, with what is found in the
    /// kernel, because somebody else wrote there. What cannot be read is written again.
    pub fn touch_everything(&mut self, reread: bool) {
        self.dirty = Dirty::Everything;
        if reread {
            self.committed = None;
            self.last_known = Committed::default();
        }
    }

    /// Settles what the rules depend on beside the objects. Anything new there touches everything.
    pub fn set_settings(&mut self, settings: Settings) {
        if self.settings.as_ref() != Some(&settings) {
            self.settings = Some(settings);
            self.dirty = Dirty::Everything;
        }
    }

    /// Whether a sync has anything to look at.
    pub fn is_dirty(&self) -> bool {
        self.committed.is_none() || self.dirty != Dirty::Services(BTreeSet::new())
    }

    /// How many rules of ours the kernel holds in `table`.
    pub fn n_rules_in_force(&self, table: Table) -> usize {
        self.committed.as_ref().map_or(0, |committed| committed.n_rules(table))
    }

    /// Brings the kernel in step with `view`. After a failure everything is compared again at the
    /// next sync; what was committed before it stays known. `stop` ends it early, between batches.
    pub fn sync(&mut self, view: View<'_>, stop: &AtomicBool) -> Report {
        let mut report = Report::new(self.family(), self.dirty == Dirty::Everything);
        let Some(settings) = self.settings.clone() else { return report };
        let mut committed = self.read_kernel();
        let changed = self.compile(&settings, view);
        let outcome = self.restore(&settings, view, &changed, &mut committed, stop, &mut report);
        self.committed = Some(committed);
        report.n_service_ports = self.records.len();
        report.n_endpoints = self.n_endpoints;
        match outcome {
            Ok(()) if stop.load(Ordering::Relaxed) => self.touch_everything(false),
            Ok(()) => self.dirty = Dirty::Services(BTreeSet::new()),
            Err(failure) => {
                // A refusal may mean that the kernel is not as it was: somebody flushed it. Unless
                // nothing was tried, the old rules of filter are needed to go on from.
                let reread = failure.error.aftermath() != Aftermath::Nothing;
                report.outcome = Err(self.explain(failure));
                self.touch_everything(false);
                if reread {
                    self.last_known = self.committed.take().unwrap_or_default();
                }
            }
        }
        report
    }

    /// Reads what the kernel holds, unless that is known.
    ///
    /// A table that has too many chains, or that cannot be read (somebody put rules into it that
    /// iptables does not know), is taken by the names of its chains alone, and with what was known
    /// of them before.
    fn read_kernel(&mut self) -> Committed {
        if let Some(committed) = self.committed.take() {
            return committed;
        }
        let family = self.family();
        let known = std::mem::take(&mut self.last_known);
        let mut reader = Reader::new(family, &self.jumps, &is_tracked);
        let mut unread = Vec::new();
        for table in [Table::Filter, Table::Nat] {
            let result = match self.kernel.readable(table) {
                Ok(Readable::Rules) => self.kernel.save(table, &mut |line| reader.line(line)),
                Ok(Readable::NamesOnly) => Err(anyhow!("it has too many chains")),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                info!(%family, %table, error = %format!("{error:#}"), "the table is not read; it is written anew");
                unread.push(table);
            }
        }
        let mut committed = reader.finish();
        for table in unread {
            self.read_names(table, &known, &mut committed);
        }
        committed
    }

    /// Takes the names of the chains of `table` into `committed`; none, when they cannot be had.
    fn read_names(&mut self, table: Table, known: &Committed, committed: &mut Committed) {
        let mut names = BTreeSet::new();
        let result = self.kernel.chain_names(table, &mut |name| {
            names.extend(ChainName::new(name).filter(|name| is_tracked(table, name)));
        });
        if let Err(error) = result {
            warn!(family = %self.family(), %table, error = %format!("{error:#}"), "stale chains cannot be found");
        }
        match table {
            Table::Nat => {
                committed.nat =
                    names.iter().map(|name| (*name, known.nat.get(name).copied().flatten())).collect();
            }
            Table::Filter => committed.filter = names.iter().map(|name| (*name, None)).collect(),
            Table::Mangle => {}
        }
        for (number, jump) in self.jumps.iter().enumerate().filter(|(_, jump)| jump.table == table) {
            match self.kernel.has_jump(jump) {
                Ok(true) => drop(committed.jumps.insert(number)),
                Ok(false) => drop(committed.jumps.remove(&number)),
                // A jump that may be there twice costs time; one that is missing cuts the node off.
                Err(error) => {
                    warn!(family = %self.family(), error = %format!("{error:#}"), "writing the jump once more")
                }
            }
        }
    }

    /// Makes the records of what is dirty again.
    fn compile(&mut self, settings: &Settings, view: View<'_>) -> Changed {
        let old = match &self.dirty {
            Dirty::Everything => std::mem::take(&mut self.records),
            Dirty::Services(services) => {
                services.iter().flat_map(|name| take_records(&mut self.records, name)).collect()
            }
        };
        let mut changed = Changed { ports: BTreeSet::new(), old, shared: BTreeSet::new() };
        let services: Vec<_> = match &self.dirty {
            Dirty::Everything => view.snapshot.services().collect(),
            Dirty::Services(names) => names.iter().filter_map(|name| view.snapshot.service(name)).collect(),
        };
        for service in services {
            for port in service.ports_in(settings.family) {
                let name = port.name();
                self.records.insert(name.clone(), record(settings, view, &port));
                changed.ports.insert(name);
            }
        }
        changed.find_shared(&self.records, self.dirty == Dirty::Everything);
        self.count_endpoints(&changed);
        let is_large = self.n_endpoints > rules::LARGE_CLUSTER_ENDPOINTS;
        if is_large != self.is_large {
            self.is_large = is_large;
            // kube-proxy leaves chains of unchanged Services as they are until its next full sync;
            // here the same objects always give the same rules.
            for (name, record) in &self.records {
                changed.old.entry(name.clone()).or_insert_with(|| record.clone());
                changed.ports.insert(name.clone());
            }
        }
        changed
    }

    fn count_endpoints(&mut self, changed: &Changed) {
        let count = |records: &mut dyn Iterator<Item = &Record>| {
            records.map(|record| record.n_endpoints).sum::<usize>()
        };
        if self.dirty == Dirty::Everything {
            self.n_endpoints = count(&mut self.records.values());
            return;
        }
        self.n_endpoints += count(&mut changed.ports.iter().filter_map(|name| self.records.get(name)));
        self.n_endpoints -= count(&mut changed.old.values());
    }

    fn restore(
        &mut self,
        settings: &Settings,
        view: View<'_>,
        changed: &Changed,
        committed: &mut Committed,
        stop: &AtomicBool,
        report: &mut Report,
    ) -> Result<(), Failure<RestoreError>> {
        let filter =
            if changed.touches(Table::Filter) { self.filter_chains(settings) } else { BTreeMap::new() };
        let shared: Vec<(SharedChain, u8, Digest)> =
            [(SharedChain::NatNodePorts, 6), (SharedChain::NatServices, 7)]
                .into_iter()
                .filter(|(chain, _)| changed.shared.contains(chain))
                .map(|(chain, rank)| (chain, rank, self.shared_digest(settings, chain)))
                .collect();
        let limits = self.kernel.limits();
        let mut planner = Planner::new(settings.family, committed, &self.jumps, limits, &mut self.kernel);
        let steps = || -> Result<(), Failure<RestoreError>> {
            planner.filter_first(&filter)?;
            // Together, so that the mark that is set is always the mark that is looked for.
            let fixed = fixed::chains(settings);
            let fixed: Vec<NatChain<'_>> = fixed
                .iter()
                .filter(|chain| chain.table == Table::Nat)
                .map(|chain| NatChain { name: chain.name, rank: 0, rules: &chain.rules })
                .collect();
            planner.nat_chains(&fixed)?;
            let mut stale = changed.chains_before();
            for name in &changed.ports {
                if stop.load(Ordering::Relaxed) {
                    return planner.finish();
                }
                let Some(port) = find_port(view.snapshot, settings.family, name) else { continue };
                let endpoints = view.snapshot.endpoints(&port, settings.family);
                let selection = Selection::new(&port, &endpoints, view.place);
                let chains = classic::chains(settings, &port, &selection, self.is_large);
                for chain in &chains {
                    stale.remove(&chain.name);
                }
                if let Some(record) = self.records.get_mut(name) {
                    record.chains = chains.iter().map(|chain| chain.name).collect();
                }
                let ranked: Vec<NatChain<'_>> = chains
                    .iter()
                    .map(|chain| NatChain { name: chain.name, rank: rank(&chain.name), rules: &chain.rules })
                    .collect();
                planner.nat_chains(&ranked)?;
            }
            for (chain, rank, digest) in shared {
                planner.nat_shared(chain.name(), rank, digest, |each| {
                    shared_rules(settings, view.snapshot, &self.records, chain, each);
                })?;
            }
            let stale = match self.dirty {
                Dirty::Everything => unwanted(planner.committed(), &self.records),
                Dirty::Services(_) => callers_first(stale),
            };
            planner.nat_last(&stale)?;
            planner.filter_last(&filter)?;
            planner.finish()
        };
        let outcome = steps();
        report.tally = planner.tally();
        outcome
    }

    /// The chains of filter with everything that is wanted in them.
    fn filter_chains(&self, settings: &Settings) -> BTreeMap<ChainName, FilterChain> {
        let mut chains = BTreeMap::new();
        for chain in fixed::chains(settings).into_iter().filter(|chain| chain.table == Table::Filter) {
            let is_shared_with_kubelet = chain.is_shared_with_kubelet;
            chains.insert(chain.name, FilterChain { rules: chain.rules, is_shared_with_kubelet });
        }
        for shared in SharedChain::ALL.into_iter().filter(|shared| shared.table() == Table::Filter) {
            let entries = self.records.values().flat_map(|record| &record.filter_entries);
            let rules = entries.filter(|(chain, _)| *chain == shared).map(|(_, rule)| rule.clone()).collect();
            chains.insert(shared.name(), FilterChain { rules, is_shared_with_kubelet: false });
        }
        chains
    }

    fn shared_digest(&self, settings: &Settings, chain: SharedChain) -> Digest {
        let entries = self.records.values().flat_map(|record| &record.nat_entries);
        let digest = entries
            .filter(|(shared, _)| *shared == chain)
            .fold(Digest::EMPTY, |digest, (_, hash)| digest.then(*hash));
        tail(settings, chain).iter().fold(digest, |digest, rule| digest.then(Digest::rule(rule)))
    }

    /// Finds out whom a failed restore is about.
    fn explain(&self, failure: Failure<RestoreError>) -> SyncError {
        let RestoreError::Refused { line, text, message } = failure.error else {
            return SyncError::Restore(failure.error);
        };
        let chain = failure.lines.chain_at(line).map(|(table, chain, _)| (table, chain));
        let rule = text.as_deref().and_then(|text| match parse::line(self.kernel.family(), text) {
            Ok(Line::Append(_, rule)) => Some(rule),
            _ => None,
        });
        let service_port = chain.and_then(|chain| {
            let is_owner = |record: &Record| record.owns(chain, rule.as_ref());
            self.records.iter().find(|(_, record)| is_owner(record)).map(|(name, _)| name.clone())
        });
        SyncError::Refused(Refusal { line, text, message, chain, service_port })
    }
}

/// Whether the content of the chain is compared: it is ours, or the kubelet's that we may write to.
fn is_tracked(table: Table, name: &ChainName) -> bool {
    names::is_ours(table, name) || (table == Table::Filter && *name == names::KUBE_FIREWALL)
}

/// What a compilation changed.
struct Changed {
    /// Service ports that were compiled.
    ports: BTreeSet<ServicePortName>,
    /// Their records before, also of those that are gone.
    old: BTreeMap<ServicePortName, Record>,
    /// Shared chains whose entries differ.
    shared: BTreeSet<SharedChain>,
}

impl Changed {
    fn touches(&self, table: Table) -> bool {
        self.shared.iter().any(|chain| chain.table() == table)
    }

    /// The chains of the changed service ports as they were.
    fn chains_before(&self) -> BTreeSet<ChainName> {
        self.old.values().flat_map(|record| record.chains.iter().copied()).collect()
    }

    fn find_shared(&mut self, new: &BTreeMap<ServicePortName, Record>, everything: bool) {
        if everything {
            self.shared.extend(SharedChain::ALL);
            return;
        }
        for name in self.ports.iter().chain(self.old.keys()) {
            let (old, new) = (self.old.get(name), new.get(name));
            let nat =
                |record: Option<&Record>| record.map(|record| record.nat_entries.clone()).unwrap_or_default();
            if nat(old) != nat(new) {
                self.shared.extend(nat(old).iter().chain(&nat(new)).map(|(chain, _)| *chain));
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

fn record(settings: &Settings, view: View<'_>, port: &ServicePort<'_>) -> Record {
    let endpoints = view.snapshot.endpoints(port, settings.family);
    let verdicts = Selection::new(port, &endpoints, view.place).verdicts(port);
    let (nat, filter): (Vec<Entry>, Vec<Entry>) = classic::entries(settings, port, verdicts)
        .into_iter()
        .partition(|(chain, _)| chain.table() == Table::Nat);
    Record {
        verdicts,
        n_endpoints: endpoints.len(),
        chains: Box::default(),
        nat_entries: nat.iter().map(|(chain, rule)| (*chain, Digest::rule(rule))).collect(),
        filter_entries: filter.into(),
    }
}

/// Takes the records of the ports of `service` out of `records`.
fn take_records(
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

fn find_port<'a>(
    snapshot: &'a Snapshot,
    family: IpFamily,
    name: &ServicePortName,
) -> Option<ServicePort<'a>> {
    let service = snapshot.service(&name.service)?;
    service.ports_in(family).find(|port| port.port.name == name.port && port.port.protocol == name.protocol)
}

/// All rules of a shared chain of nat, in order.
fn shared_rules(
    settings: &Settings,
    snapshot: &Snapshot,
    records: &BTreeMap<ServicePortName, Record>,
    chain: SharedChain,
    each: &mut dyn FnMut(&Rule),
) {
    for (name, record) in records {
        if !record.nat_entries.iter().any(|(shared, _)| *shared == chain) {
            continue;
        }
        let Some(port) = find_port(snapshot, settings.family, name) else { continue };
        for (shared, rule) in classic::entries(settings, &port, record.verdicts) {
            if shared == chain {
                each(&rule);
            }
        }
    }
    tail(settings, chain).iter().for_each(each);
}

fn tail(settings: &Settings, chain: SharedChain) -> Vec<Rule> {
    if chain == SharedChain::NatServices { fixed::node_ports_tail(settings) } else { Vec::new() }
}

/// Callees have a lower rank than their callers.
fn rank(name: &ChainName) -> u8 {
    names::PortChain::of(name).map_or(0, |kind| 1 + kind as u8)
}

/// Chains of service ports that the kernel holds and nobody wants.
fn unwanted(committed: &Committed, records: &BTreeMap<ServicePortName, Record>) -> Vec<ChainName> {
    let wanted: BTreeSet<ChainName> =
        records.values().flat_map(|record| record.chains.iter().copied()).collect();
    let ours = committed.nat.keys().filter(|name| names::PortChain::of(name).is_some());
    callers_first(ours.filter(|name| !wanted.contains(*name)).copied())
}

fn callers_first(chains: impl IntoIterator<Item = ChainName>) -> Vec<ChainName> {
    let mut chains: Vec<ChainName> = chains.into_iter().collect();
    chains.sort_unstable_by(|a, b| rank(b).cmp(&rank(a)).then(a.cmp(b)));
    chains
}
