//! What a family's tables are to hold, chain by chain as the planner takes them.

use std::collections::{BTreeMap, BTreeSet};

use super::family::View;
use super::records::Record;
use crate::iptables::{Chain, ChainName, Digest, Rule, Table};
use crate::model::{
    Endpoint, Port, Service, ServiceName, ServicePort, ServicePortName, ServicePorts, Snapshot,
};
use crate::net::IpFamily;
use crate::plan::Committed;
use crate::policy::Selection;
use crate::rules::dispatch::{self, Key, Part};
use crate::rules::overlap::Overlaps;
use crate::rules::ownership::{self, Owner};
use crate::rules::{self, Entry, Layout, Settings, SharedChain, fixed, names};

/// How `committed` is laid out.
pub(super) fn layout_of(committed: &Committed, settings: &Settings) -> Layout {
    let there = committed.nat.get(&names::KUBE_POSTROUTING).copied().flatten();
    let is_there = |rules: &[Rule]| there == Some(Digest::of(rules));
    match ownership::is_compact(settings, committed.nat.keys().copied(), is_there) {
        true => Layout::Compact,
        false => Layout::Classic { is_large: false },
    }
}

/// Services that others need to come up, as the API server and DNS.
pub(super) fn is_urgent(service: &ServiceName) -> bool {
    matches!((service.namespace(), service.name()), ("kube-system", _) | ("default", "kubernetes"))
}

/// The chains of nat that do not depend on Services.
pub(super) fn fixed_nat_chains(settings: &Settings, layout: Layout) -> Vec<Chain> {
    fixed::chains(settings, layout).into_iter().filter(|chain| chain.table == Table::Nat).collect()
}

/// Those that are written before the chains of service ports, and those that are written after them.
/// As long as there are chains that compact has made, its rule for hairpins stays.
pub(super) fn fixed_nat_chains_in_order(
    settings: &Settings,
    layout: Layout,
    committed: &Committed,
) -> (Vec<Chain>, Vec<Chain>) {
    let was_compact = layout_of(committed, settings) == Layout::Compact;
    let is_last =
        |chain: &Chain| was_compact && layout != Layout::Compact && chain.name == names::KUBE_POSTROUTING;
    fixed_nat_chains(settings, layout).into_iter().partition(|chain| !is_last(chain))
}

/// The chains of filter with everything that is wanted in them.
pub(super) fn filter_chains(
    settings: &Settings,
    layout: Layout,
    records: &BTreeMap<ServicePortName, Record>,
    overlaps: &Overlaps,
) -> Vec<Chain> {
    let fixed = fixed::chains(settings, layout).into_iter().filter(|chain| chain.table == Table::Filter);
    let mut chains: Vec<Chain> = fixed.collect();
    for shared in SharedChain::ALL.into_iter().filter(|shared| shared.table() == Table::Filter) {
        let (mut entries, mut keys) = (Vec::new(), Vec::new());
        for (name, record) in records {
            for (_, rule) in record.filter_entries.iter().filter(|(chain, _)| *chain == shared) {
                if let Some(key) = Key::of(rule).filter(|key| !overlaps.leave_out(name, shared, key)) {
                    entries.push(rule);
                    keys.push(key);
                }
            }
        }
        for chain in dispatch::shared_chains(settings, layout, shared, &keys) {
            let rule = |part| match part {
                Part::Entry(entry) => Rule::clone(entries[entry]),
                Part::Rule(rule) => *rule,
            };
            let rules = chain.parts.into_iter().map(rule).collect();
            chains.push(Chain { table: Table::Filter, name: chain.name, rules });
        }
    }
    chains
}

/// The ports of `service`, or those of them that are in `only`.
pub(super) fn ports_among<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
    family: IpFamily,
    only: Option<&BTreeSet<ServicePortName>>,
) -> ServicePorts<'a> {
    let name = |port: &Port| ServicePortName {
        service: service.name.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
    };
    snapshot.ports_among(service, family, |port| only.is_none_or(|only| only.contains(&name(port))))
}

/// Makes rules for service ports that are named one after another. The slices of a Service are looked
/// through once for all of its ports that follow each other.
pub(super) struct Compiler<'a> {
    settings: &'a Settings,
    view: View<'a>,
    /// No other service ports are asked for.
    only: Option<&'a BTreeSet<ServicePortName>>,
    last: Option<(&'a ServiceName, ServicePorts<'a>)>,
    n_entries_read: usize,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(settings: &'a Settings, view: View<'a>) -> Compiler<'a> {
        Compiler { settings, view, only: None, last: None, n_entries_read: 0 }
    }

    /// One that is asked for no other service ports than `names`.
    pub(super) fn among(self, names: &'a BTreeSet<ServicePortName>) -> Compiler<'a> {
        Compiler { only: Some(names), ..self }
    }

    /// How many port entries of slices were looked at so far.
    pub(super) fn n_entries_read(&self) -> usize {
        self.n_entries_read
    }

    /// The service port called `name`, and its endpoints.
    pub(super) fn find(&mut self, name: &ServicePortName) -> Option<(ServicePort<'a>, Vec<Endpoint<'a>>)> {
        if self.last.as_ref().is_none_or(|(last, _)| **last != name.service) {
            let service = self.view.snapshot.service(&name.service)?;
            let ports = ports_among(self.view.snapshot, service, self.settings.family, self.only);
            self.n_entries_read += ports.n_entries_read();
            self.last = Some((&service.name, ports));
        }
        let (_, ports) = self.last.as_ref()?;
        let port = ports.get(name)?;
        Some((port, ports.endpoints(&port)))
    }

    /// The entries of one service port in the shared chains.
    pub(super) fn entries(&mut self, name: &ServicePortName) -> Vec<Entry> {
        let Some((port, endpoints)) = self.find(name) else { return Vec::new() };
        let selection = Selection::new(&port, &endpoints, self.view.place);
        rules::entries(self.settings, &port, selection.verdicts(&port))
    }

    /// The chains of one service port, callees first.
    pub(super) fn nat_chains(&mut self, layout: Layout, name: &ServicePortName) -> Vec<Chain> {
        let Some((port, endpoints)) = self.find(name) else { return Vec::new() };
        let selection = Selection::new(&port, &endpoints, self.view.place);
        rules::chains(self.settings, layout, &port, &selection)
    }
}

/// Chains of service ports, ours or not, that the kernel holds.
pub(super) fn chains_of_service_ports(committed: &Committed) -> BTreeSet<ChainName> {
    committed.nat.keys().filter(|name| Owner::of(Table::Nat, name).depends_on_services()).copied().collect()
}

/// Chains of service ports in `committed` that none of `records` tells of; those of `changed` are not
/// known yet.
pub(super) fn unknown_chains(
    committed: &Committed,
    records: &BTreeMap<ServicePortName, Record>,
    changed: &BTreeSet<ServicePortName>,
) -> BTreeSet<ChainName> {
    let mut unknown = chains_of_service_ports(committed);
    for (_, record) in records.iter().filter(|(name, _)| !changed.contains(*name)) {
        record.chains.iter().for_each(|chain| _ = unknown.remove(chain));
    }
    unknown
}
