//! What a family's tables are to hold, chain by chain as the planner takes them.

use std::collections::{BTreeMap, BTreeSet};

use super::family::View;
use super::records::{Record, find_port};
use crate::iptables::{ChainName, Rule, Table};
use crate::model::{ServiceName, ServicePortName};
use crate::plan::{Committed, Digest, FilterChain, NatChain};
use crate::policy::Selection;
use crate::rules::dispatch::{self, Key, Part};
use crate::rules::{self, Entry, Layout, Settings, SharedChain, fixed, names};

/// How `committed` is laid out.
pub(super) fn layout_of(committed: &Committed, settings: &Settings) -> Layout {
    let there = committed.nat.get(&names::KUBE_POSTROUTING).copied().flatten();
    let is_there = |rules: &[Rule]| there == Some(Digest::of(rules));
    match Layout::is_compact(settings, committed.nat.keys().copied(), is_there) {
        true => Layout::Compact,
        false => Layout::Classic { is_large: false },
    }
}

/// Services that others need to come up, as the API server and DNS.
pub(super) fn is_urgent(service: &ServiceName) -> bool {
    matches!((service.namespace(), service.name()), ("kube-system", _) | ("default", "kubernetes"))
}

/// The chains of nat that do not depend on Services.
pub(super) fn fixed_nat_chains(settings: &Settings, layout: Layout) -> Vec<rules::NatChain> {
    let of_nat = fixed::chains(settings, layout).into_iter().filter(|chain| chain.table == Table::Nat);
    of_nat.map(|chain| rules::NatChain { name: chain.name, rules: chain.rules }).collect()
}

/// Those that are written before the chains of service ports, and those that are written after them.
/// As long as there are chains that compact has made, its rule for hairpins stays.
pub(super) fn fixed_nat_chains_in_order(
    settings: &Settings,
    layout: Layout,
    committed: &Committed,
) -> (Vec<rules::NatChain>, Vec<rules::NatChain>) {
    let was_compact = layout_of(committed, settings) == Layout::Compact;
    let is_last = |chain: &rules::NatChain| {
        was_compact && layout != Layout::Compact && chain.name == names::KUBE_POSTROUTING
    };
    fixed_nat_chains(settings, layout).into_iter().partition(|chain| !is_last(chain))
}

/// The chains of filter with everything that is wanted in them.
pub(super) fn filter_chains(
    settings: &Settings,
    layout: Layout,
    records: &BTreeMap<ServicePortName, Record>,
) -> BTreeMap<ChainName, FilterChain> {
    let mut chains = BTreeMap::new();
    for chain in fixed::chains(settings, layout).into_iter().filter(|chain| chain.table == Table::Filter) {
        let is_shared_with_kubelet = chain.is_shared_with_kubelet;
        chains.insert(chain.name, FilterChain { rules: chain.rules, rank: 0, is_shared_with_kubelet });
    }
    for shared in SharedChain::ALL.into_iter().filter(|shared| shared.table() == Table::Filter) {
        let entries = records.values().flat_map(|record| &record.filter_entries);
        let entries: Vec<&Rule> =
            entries.filter(|(chain, _)| *chain == shared).map(|(_, rule)| rule).collect();
        let keys: Vec<Key> = entries.iter().filter_map(|rule| Key::of(rule)).collect();
        for chain in dispatch::shared_chains(settings, layout, shared, &keys) {
            let rule = |part| match part {
                Part::Entry(entry) => Rule::clone(entries[entry]),
                Part::Rule(rule) => *rule,
            };
            let rules = chain.parts.into_iter().map(rule).collect();
            let filter = FilterChain { rules, rank: chain.rank, is_shared_with_kubelet: false };
            chains.insert(chain.name, filter);
        }
    }
    chains
}

/// `chains` as the planner takes them.
pub(super) fn ranked(chains: &[rules::NatChain]) -> Vec<NatChain<'_>> {
    chains
        .iter()
        .map(|chain| NatChain { name: chain.name, rank: names::rank(&chain.name), rules: &chain.rules })
        .collect()
}

/// The entries of one service port in the shared chains.
pub(super) fn entries_of(settings: &Settings, view: View<'_>, name: &ServicePortName) -> Vec<Entry> {
    let Some(port) = find_port(view.snapshot, settings.family, name) else { return Vec::new() };
    let endpoints = view.snapshot.endpoints(&port, settings.family);
    rules::entries(settings, &port, Selection::new(&port, &endpoints, view.place).verdicts(&port))
}

/// The chains of one service port, callees first.
pub(super) fn nat_chains_of(
    settings: &Settings,
    layout: Layout,
    view: View<'_>,
    name: &ServicePortName,
) -> Vec<rules::NatChain> {
    let Some(port) = find_port(view.snapshot, settings.family, name) else { return Vec::new() };
    let endpoints = view.snapshot.endpoints(&port, settings.family);
    let selection = Selection::new(&port, &endpoints, view.place);
    rules::chains(settings, layout, &port, &selection)
}

/// Chains of service ports, ours or not, that the kernel holds.
pub(super) fn chains_of_service_ports(committed: &Committed) -> BTreeSet<ChainName> {
    committed.nat.keys().filter(|name| names::PortChain::of(name).is_some()).copied().collect()
}

pub(super) fn callers_first(chains: impl IntoIterator<Item = ChainName>) -> Vec<ChainName> {
    let mut chains: Vec<ChainName> = chains.into_iter().collect();
    chains.sort_unstable_by(|a, b| names::rank(b).cmp(&names::rank(a)).then(a.cmp(b)));
    chains
}
