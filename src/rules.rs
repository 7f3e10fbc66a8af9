//! What a node's rules are: the fixed chains, and for each service port a [`Fragment`].
//!
//! A fragment holds the chains of one service port and its entries in the shared chains. The
//! ruleset is the fixed chains plus the sum of all fragments in the order of their names, laid out in
//! one of two ways ([`Layout`]). Every `KUBE-` word is in this module.

pub mod advice;
pub mod classic;
pub mod compact;
pub mod dispatch;
pub mod fixed;
mod layout;
pub mod names;
pub mod overlap;
pub mod ownership;
mod settings;

pub use layout::{LARGE_CLUSTER_ENDPOINTS, Layout, SMALL_CLUSTER_ENDPOINTS};
pub use settings::{Detector, NodePorts, Settings};

use dispatch::{Key, Part};
use overlap::Claims;

use crate::iptables::{Chain, ChainName, Rule, Ruleset, Table};
use crate::model::{Service, ServicePort, ServicePortName, Snapshot};
use crate::net::IpFamily;
use crate::policy::{Place, Selection, Verdicts};

/// A chain in which every service port may have entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SharedChain {
    /// filter `KUBE-SERVICES`: rejected and dropped cluster IPs.
    FilterServices,
    /// filter `KUBE-EXTERNAL-SERVICES`: rejected and dropped external addresses and node ports.
    FilterExternalServices,
    /// filter `KUBE-NODEPORTS`: accepted health check node ports.
    FilterNodePorts,
    /// filter `KUBE-PROXY-FIREWALL`: dropped sources of load balancer addresses.
    FilterFirewall,
    /// nat `KUBE-SERVICES`: dispatch by address.
    NatServices,
    /// nat `KUBE-NODEPORTS`: dispatch by node port.
    NatNodePorts,
}

impl SharedChain {
    /// All of them.
    pub const ALL: [SharedChain; 6] = [
        SharedChain::FilterServices,
        SharedChain::FilterExternalServices,
        SharedChain::FilterNodePorts,
        SharedChain::FilterFirewall,
        SharedChain::NatServices,
        SharedChain::NatNodePorts,
    ];

    /// Its table.
    pub fn table(self) -> Table {
        match self {
            SharedChain::NatServices | SharedChain::NatNodePorts => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// Its name.
    pub fn name(self) -> ChainName {
        match self {
            SharedChain::FilterServices | SharedChain::NatServices => names::KUBE_SERVICES,
            SharedChain::FilterExternalServices => names::KUBE_EXTERNAL_SERVICES,
            SharedChain::FilterNodePorts | SharedChain::NatNodePorts => names::KUBE_NODEPORTS,
            SharedChain::FilterFirewall => names::KUBE_PROXY_FIREWALL,
        }
    }
}

/// One rule in a shared chain.
pub type Entry = (SharedChain, Rule);

/// What one service port adds to the ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Whose it is.
    pub port: ServicePortName,
    /// Its own chains, callees before callers.
    pub chains: Vec<Chain>,
    /// Its entries in the shared chains; those of one chain in the order in which they stand there.
    pub entries: Vec<Entry>,
}

/// All Services of `snapshot` that have a cluster IP in the family, with their ports' endpoints
/// counted as kube-proxy counts them for large-cluster mode.
pub fn count_endpoints(snapshot: &Snapshot, family: IpFamily) -> usize {
    let services = snapshot.services().map(|service| snapshot.ports_of(service, family));
    services.map(|ports| ports.iter().map(|port| ports.endpoints(&port).len()).sum::<usize>()).sum()
}

/// The fragments of `service`, one for each of its ports in the family, in the order of their names.
pub fn fragments(
    settings: &Settings,
    snapshot: &Snapshot,
    place: Place<'_>,
    service: &Service,
    layout: Layout,
) -> Vec<Fragment> {
    let ports = snapshot.ports_of(service, settings.family);
    let fragment = |port: ServicePort<'_>| {
        let endpoints = ports.endpoints(&port);
        let selection = Selection::new(&port, &endpoints, place);
        Fragment {
            port: port.name(),
            chains: chains(settings, layout, &port, &selection),
            entries: entries(settings, &port, selection.verdicts(&port)),
        }
    };
    ports.iter().map(fragment).collect()
}

/// The chains of `port`, callees before callers; none without endpoints.
pub fn chains(
    settings: &Settings,
    layout: Layout,
    port: &ServicePort<'_>,
    selection: &Selection<'_>,
) -> Vec<Chain> {
    match layout {
        Layout::Classic { is_large } => classic::chains(settings, port, selection, is_large),
        Layout::Compact => compact::chains(settings, port, selection),
    }
}

/// The entries of `port` in the shared chains; the same in both layouts.
pub fn entries(settings: &Settings, port: &ServicePort<'_>, verdicts: Verdicts) -> Vec<Entry> {
    classic::entries(settings, port, verdicts)
}

/// The whole ruleset of a node: what `iptables-save` shows on a node that has nothing else, jumps and
/// canaries included. `auto` is decided by the number of endpoints alone.
pub fn ruleset(settings: &Settings, snapshot: &Snapshot, place: Place<'_>) -> Ruleset {
    let layout = Layout::plain(settings.layout, count_endpoints(snapshot, settings.family));
    let mut ruleset = Ruleset::with_built_in_chains();
    for chain in fixed::chains(settings, layout) {
        ruleset.set_chain(chain);
    }
    for table in Table::ALL {
        ruleset.chain_mut(table, names::KUBE_PROXY_CANARY);
    }
    let mut owners = Vec::new();
    for service in snapshot.services() {
        for Fragment { port, chains, entries } in fragments(settings, snapshot, place, service, layout) {
            chains.into_iter().for_each(|chain| ruleset.set_chain(chain));
            owners.push((service, port, entries));
        }
    }
    let mut claims = Claims::default();
    for (service, port, entries) in &owners {
        claims.add(port, service, entries.iter().filter_map(|(chain, rule)| Some((*chain, Key::of(rule)?))));
    }
    let overlaps = claims.overlaps(settings.family);
    let mut entries: [Vec<Rule>; SharedChain::ALL.len()] = Default::default();
    for (_, port, all) in owners {
        let is_left_out =
            |(chain, rule): &Entry| Key::of(rule).is_some_and(|key| overlaps.leave_out(&port, *chain, &key));
        for (shared, rule) in all.into_iter().filter(|entry| !is_left_out(entry)) {
            entries[shared as usize].push(rule);
        }
    }
    for shared in SharedChain::ALL {
        let rules = &entries[shared as usize];
        let keys: Vec<Key> = rules.iter().filter_map(Key::of).collect();
        for chain in dispatch::shared_chains(settings, layout, shared, &keys) {
            let rule = |part| match part {
                Part::Entry(entry) => rules[entry].clone(),
                Part::Rule(rule) => *rule,
            };
            ruleset.chain_mut(shared.table(), chain.name).rules = chain.parts.into_iter().map(rule).collect();
        }
    }
    for jump in fixed::jumps() {
        ruleset.chain_mut(jump.table, jump.from).rules.insert(0, jump.rule);
    }
    ruleset
}

#[cfg(test)]
mod tests;
