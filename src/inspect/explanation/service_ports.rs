//! The service ports of one Service in one family: from objects where they are given, else from the comments of rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::question::ExplainQuestion;
use super::report::{
    EndpointExplanation, EndpointGroup, FrontendClass, FrontendExplanation, PortExplanation,
    SliceEntryExplanation,
};
use super::service_rules::{NamedEntry, PortChains};
use super::truth::KnownEndpoints;
use crate::compile::{PortCompiler, Source, View};
use crate::inspect::ClusterView;
use crate::inspect::labels::hash_of;
use crate::iptables::Ruleset;
use crate::model::{Endpoint, Service, ServicePort, ServicePortName};
use crate::net::{IpFamily, Protocol};
use crate::policy::{EndpointCandidate, EndpointUse, HintsState, PortCandidates, ServiceSlices};
use crate::rules::dispatch::{self, Key};
use crate::rules::names::{PortChain, PortNames};
use crate::rules::overlap::{Claims, Overlaps};
use crate::rules::{NodePorts, Settings, SharedChain};

/// The most endpoints that a report lists of a service port.
const MAX_ENDPOINTS: usize = 1_000;
/// The most other entries of slices that a report lists of a service port.
const MAX_OTHER_ENTRIES: usize = 100;

/// A service port on its way into the report.
pub(super) struct KnownPort<'a> {
    pub explanation: PortExplanation,
    pub protocol: Protocol,
    pub endpoints: KnownEndpoints,
    pub chains: PortChains<'a>,
}

impl KnownPort<'_> {
    /// Whether `entry` is one of this service port.
    pub fn has_entry(&self, entry: &NamedEntry<'_>) -> bool {
        let is_protocol = entry.key.protocol == self.protocol || entry.is_health_check();
        entry.service_port == self.explanation.service_port && is_protocol
    }
}

/// The ports of `service` that `question` asks for, at most `limit`, and how many more there are.
pub(super) fn of_objects<'a>(
    cluster: &ClusterView,
    service: &Service,
    family: IpFamily,
    ruleset: &'a Ruleset,
    (question, limit): (&ExplainQuestion, usize),
) -> (Vec<KnownPort<'a>>, usize) {
    let asked: Vec<ServicePort<'_>> = service
        .ports_in(family)
        .filter(|port| question.asks_for(&port.port.name, Some(port.port.port)))
        .collect();
    let n_more = asked.len().saturating_sub(limit);
    let asked = &asked[..asked.len() - n_more];
    let settings = cluster.settings.get(family);
    let slices = ServiceSlices::of(&cluster.snapshot, service, family);
    let overlaps = overlaps(cluster, family, asked);
    let ports = asked.iter().map(|port| {
        let name = port.name();
        let candidates = slices.candidates(port, cluster.place());
        let quarantined = cluster.quarantined.get(family).get(&name);
        let hash = hash_of(&PortNames::new(&name).chain(PortChain::Cluster)).map(str::to_owned);
        let count = |list: fn(&EndpointCandidate<'_>) -> Option<EndpointUse>, applies: bool| {
            let used = candidates.endpoints.iter().filter_map(list).filter(|of| of.is_used());
            applies.then(|| used.count())
        };
        let explanation = PortExplanation {
            family: family.to_string(),
            service_port: name.to_string(),
            name: port.port.name.to_string(),
            protocol: port.port.protocol.to_string(),
            port: Some(port.port.port),
            quarantined: quarantined.cloned(),
            frontends: frontends(settings, port, &overlaps),
            source_ranges: port.frontend.source_ranges.iter().map(ToString::to_string).collect(),
            endpoints: candidates.endpoints.iter().take(MAX_ENDPOINTS).map(endpoint).collect(),
            n_more_endpoints: candidates.endpoints.len().saturating_sub(MAX_ENDPOINTS),
            n_cluster: count(|candidate| candidate.cluster, port.uses_cluster_endpoints()),
            n_local: count(|candidate| candidate.local, port.uses_local_endpoints()),
            hints: Some(candidates.choice.hints()),
            other_entries: other_entries(&slices, &candidates),
            chains: Vec::new(),
            n_more_chains: 0,
            entries: Vec::new(),
            truth_table: Vec::new(),
        };
        KnownPort {
            explanation,
            protocol: port.port.protocol,
            endpoints: known_endpoints(&candidates),
            chains: hash.map(|hash| PortChains::of(ruleset, &hash)).unwrap_or_default(),
        }
    });
    (ports.collect(), n_more)
}

fn known_endpoints(candidates: &PortCandidates<'_>) -> KnownEndpoints {
    let used = |list: fn(&EndpointCandidate<'_>) -> Option<EndpointUse>| {
        let used = candidates.endpoints.iter().filter(move |one| list(one).is_some_and(EndpointUse::is_used));
        used.map(|candidate| candidate.endpoint.address).collect::<BTreeSet<SocketAddr>>()
    };
    let cluster = used(|candidate| candidate.cluster);
    let n_ready = candidates.endpoints.iter().filter(|candidate| candidate.endpoint.is_ready()).count();
    let hints = candidates.choice.hints();
    let narrowed = match () {
        () if n_ready <= cluster.len() => None,
        () if hints.nodes == HintsState::Counted => Some(EndpointGroup::NodeHint),
        () if hints.zones == HintsState::Counted => Some(EndpointGroup::Zone),
        () => None,
    };
    KnownEndpoints { cluster, local: used(|candidate| candidate.local), narrowed }
}

fn endpoint(candidate: &EndpointCandidate<'_>) -> EndpointExplanation {
    let Endpoint { address, source } = candidate.endpoint;
    let names = |names: &[std::sync::Arc<str>]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    EndpointExplanation {
        address,
        slice: Some(candidate.slice.name().to_owned()),
        node: source.node.as_deref().map(str::to_owned),
        hinted_zones: source.hints.as_ref().map(|hints| names(&hints.zones)).unwrap_or_default(),
        hinted_nodes: source.hints.as_ref().map(|hints| names(&hints.nodes)).unwrap_or_default(),
        cluster: candidate.cluster,
        local: candidate.local,
    }
}

/// Entries of slices that are no endpoints. Those for no port of the Service and those of the other family are of
/// interest only to a port that has no endpoints.
fn other_entries(slices: &ServiceSlices<'_>, candidates: &PortCandidates<'_>) -> Vec<SliceEntryExplanation> {
    let superseded = candidates.superseded.iter().map(|entry| SliceEntryExplanation::Superseded {
        address: entry.address,
        slice: entry.slice.name().to_owned(),
        by: entry.by.name().to_owned(),
    });
    let unmatched = slices.unmatched.iter().map(|entry| SliceEntryExplanation::NoSuchPort {
        slice: entry.slice.name().to_owned(),
        port_name: entry.port.name.to_string(),
        protocol: entry.port.protocol.to_string(),
        n_endpoints: entry.n_endpoints,
    });
    let other_family = slices.other_family.iter().map(|entry| SliceEntryExplanation::OtherFamily {
        slice: entry.slice.name().to_owned(),
        family: entry.family.to_string(),
        n_endpoints: entry.n_endpoints,
    });
    let has_none = candidates.endpoints.is_empty();
    let elsewhere = unmatched.chain(other_family).filter(|_| has_none);
    superseded.chain(elsewhere).take(MAX_OTHER_ENTRIES).collect()
}

fn frontends(settings: &Settings, port: &ServicePort<'_>, overlaps: &Overlaps) -> Vec<FrontendExplanation> {
    let mut frontends: Vec<FrontendExplanation> = Vec::new();
    let name = port.name();
    let protocol = port.port.protocol;
    let mut add = |kind, address: Option<IpAddr>, number| {
        // An address may be listed twice.
        let is_known = |known: &FrontendExplanation| (known.kind, known.address) == (kind, address);
        if frontends.iter().any(is_known) {
            return;
        }
        let overlap = overlaps.get(&Key { ip: address, protocol, port: number });
        let owner = overlap.map(|overlap| &overlap.owner).filter(|owner| **owner != name);
        let losers = overlap.map_or(&[][..], |overlap| &overlap.losers);
        let node_addresses = match &settings.node_ports {
            NodePorts::Addresses(addresses) if kind == FrontendClass::NodePort => Some(addresses.clone()),
            _ => None,
        };
        frontends.push(FrontendExplanation {
            kind,
            address,
            port: number,
            node_addresses,
            owned_by: owner.map(ToString::to_string),
            claimed_by: losers.iter().filter(|loser| **loser != name).map(ToString::to_string).collect(),
        });
    };
    let number = port.port.port;
    add(FrontendClass::ClusterIp, Some(port.frontend.cluster_ip), number);
    if let Some(node_port) = port.port.node_port {
        add(FrontendClass::NodePort, None, node_port);
    }
    for ip in &port.frontend.load_balancer_ips {
        add(FrontendClass::LoadBalancerIp, Some(*ip), number);
    }
    for ip in settings.external_ips_of(port) {
        add(FrontendClass::ExternalIp, Some(*ip), number);
    }
    frontends
}

/// The frontends of `ports` that other service ports claim too.
fn overlaps(cluster: &ClusterView, family: IpFamily, ports: &[ServicePort<'_>]) -> Overlaps {
    let settings = cluster.settings.get(family);
    let own: BTreeSet<Key> = ports.iter().flat_map(|port| keys(settings, port)).collect();
    let view = View { snapshot: &cluster.snapshot, place: cluster.place() };
    let mut compiler = PortCompiler::new(Source { settings, view });
    let mut claimants: Vec<(ServicePortName, &Service)> = Vec::new();
    for service in cluster.snapshot.services() {
        let ports =
            service.ports_in(family).filter(|port| keys(settings, port).any(|key| own.contains(&key)));
        claimants.extend(ports.map(|port| (port.name(), &**service)));
    }
    claimants.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut claims = Claims::default();
    for (name, service) in &claimants {
        let entries: Vec<(SharedChain, Key)> = compiler
            .entries(name)
            .iter()
            .filter_map(|(chain, rule)| Some((*chain, Key::of(rule)?)))
            .collect();
        claims.add(name, service, entries.into_iter());
    }
    claims.overlaps(family)
}

/// The packets that the frontends of `port` are for.
fn keys<'a>(settings: &'a Settings, port: &ServicePort<'a>) -> impl Iterator<Item = Key> + use<'a> {
    let (protocol, number) = (port.port.protocol, port.port.port);
    let frontend = port.frontend;
    let addresses = std::iter::once(frontend.cluster_ip)
        .chain(frontend.load_balancer_ips.iter().copied())
        .chain(settings.external_ips_of(port).iter().copied());
    let node_port = port.port.node_port.map(|port| Key { ip: None, protocol, port });
    addresses.map(move |ip| Key { ip: Some(ip), protocol, port: number }).chain(node_port)
}

/// The service ports that `entries` name, with what rules alone tell; at most `limit`, and how many more there are.
pub(super) fn of_rules<'a>(
    ruleset: &'a Ruleset,
    family: IpFamily,
    entries: &[NamedEntry<'a>],
    (question, limit): (&ExplainQuestion, usize),
) -> (Vec<KnownPort<'a>>, usize) {
    let mut by_port: BTreeMap<(&str, Protocol), Vec<NamedEntry<'a>>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !entry.is_health_check()) {
        by_port.entry((entry.service_port, entry.key.protocol)).or_default().push(*entry);
    }
    let mut ports: Vec<KnownPort<'a>> = Vec::new();
    let mut n_more = 0;
    for ((service_port, protocol), entries) in by_port {
        let name = service_port.split_once(':').map_or("", |(_, name)| name);
        let number = entries.iter().find(|entry| entry.key.ip.is_some()).map(|entry| entry.key.port);
        if !question.asks_for(name, number) {
            continue;
        }
        if ports.len() == limit {
            n_more += 1;
            continue;
        }
        let chains = PortChains::of_entries(ruleset, &entries);
        let destinations = chains.destinations();
        let local = chains.local().destinations();
        let endpoints = destinations.iter().map(|address| EndpointExplanation {
            address: *address,
            slice: None,
            node: None,
            hinted_zones: Vec::new(),
            hinted_nodes: Vec::new(),
            cluster: None,
            local: None,
        });
        ports.push(KnownPort {
            explanation: PortExplanation {
                family: family.to_string(),
                service_port: service_port.to_owned(),
                name: name.to_owned(),
                protocol: protocol.to_string(),
                port: number,
                quarantined: None,
                frontends: frontends_of_entries(&entries),
                source_ranges: chains.source_ranges(),
                endpoints: endpoints.take(MAX_ENDPOINTS).collect(),
                n_more_endpoints: destinations.len().saturating_sub(MAX_ENDPOINTS),
                n_cluster: None,
                n_local: None,
                hints: None,
                other_entries: Vec::new(),
                chains: Vec::new(),
                n_more_chains: 0,
                entries: Vec::new(),
                truth_table: Vec::new(),
            },
            protocol,
            endpoints: KnownEndpoints { cluster: destinations, local, narrowed: None },
            chains,
        });
    }
    (ports, n_more)
}

fn frontends_of_entries(entries: &[NamedEntry<'_>]) -> Vec<FrontendExplanation> {
    let mut frontends: Vec<FrontendExplanation> = Vec::new();
    // Entries that tell the kind come first: a rejecting one may stand for the same address.
    let mut kinds: Vec<(FrontendClass, Key)> =
        entries.iter().map(|entry| (kind_of(entry), entry.key)).collect();
    kinds.sort();
    for (kind, key) in kinds {
        if frontends.iter().any(|known| (known.address, known.port) == (key.ip, key.port)) {
            continue;
        }
        frontends.push(FrontendExplanation {
            kind,
            address: key.ip,
            port: key.port,
            node_addresses: None,
            owned_by: None,
            claimed_by: Vec::new(),
        });
    }
    frontends
}

fn kind_of(entry: &NamedEntry<'_>) -> FrontendClass {
    match entry.what {
        _ if entry.key.ip.is_none() => FrontendClass::NodePort,
        "cluster IP" => FrontendClass::ClusterIp,
        "external IP" => FrontendClass::ExternalIp,
        "loadbalancer IP" => FrontendClass::LoadBalancerIp,
        // In filter, cluster IPs have a chain of their own, and in compact chains behind it.
        _ if dispatch::leads_to(SharedChain::FilterServices, entry.table, &entry.chain) => {
            FrontendClass::ClusterIp
        }
        _ => FrontendClass::External,
    }
}
