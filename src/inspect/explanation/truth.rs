//! The truth table: what packets from each place to each frontend meet. The answers come from the evaluator, not from
//! the policies, so that they are what the rules do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::report::{
    AnsweringEndpoint, CellFate, CellVerdict, EndpointGroup, FrontendClass, FrontendExplanation, PacketReach,
    TruthCell,
};
use super::service_rules::split_comment;
use crate::inspect::vantage::{Vantage, VantagePoint, Vantages};
use crate::iptables::trace::{
    Branch, Delivery, Packet, PacketVerdict, RecentLists, Step, TraceOptions, Tracer, UndecidedRule, Weight,
};
use crate::iptables::{CtStates, Match, Rule, Ruleset, Table};
use crate::net::{IpFamily, Protocol};
use crate::rules::names;
use crate::rules::ownership::ChainOwner;

/// The most endpoints that a cell lists.
const MAX_SHARES: usize = 256;

/// The endpoints of a service port, by the traffic that they serve; for names of groups only.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownEndpoints {
    /// Those for traffic under policy Cluster.
    pub cluster: BTreeSet<SocketAddr>,
    /// Those for traffic under policy Local.
    pub local: BTreeSet<SocketAddr>,
    /// Why those for policy Cluster are fewer than all ready ones.
    pub narrowed: Option<EndpointGroup>,
}

/// What answers questions about packets in one family.
pub(super) struct Evaluator<'a> {
    family: IpFamily,
    ruleset: &'a Ruleset,
    vantages: &'a Vantages,
    tracer: Tracer<'a>,
    /// The address of the node to which packets for node ports go.
    node_address: IpAddr,
}

impl<'a> Evaluator<'a> {
    /// Packets for node ports go to the first address of `node_port_addresses` that is not loopback, else to the
    /// node's own address.
    pub fn new(
        family: IpFamily,
        ruleset: &'a Ruleset,
        vantages: &'a Vantages,
        node_port_addresses: Option<&[IpAddr]>,
    ) -> Evaluator<'a> {
        let in_rules: Vec<IpAddr>;
        let addresses = match node_port_addresses {
            Some(addresses) => addresses,
            None => {
                in_rules = node_port_addresses_in(ruleset);
                &in_rules
            }
        };
        let own = vantages.point(Vantage::Node).source;
        let known = addresses.iter().copied().find(|ip| !ip.is_loopback());
        let options = TraceOptions { passes_undecided: true, records_events: false };
        let tracer = Tracer::new(vantages.traced_node(ruleset), options);
        Evaluator { family, ruleset, vantages, tracer, node_address: known.unwrap_or(own) }
    }

    /// The cells of a service port, by vantage and then frontend.
    pub fn truth_table(
        &self,
        service_port: &str,
        protocol: Protocol,
        frontends: &[FrontendExplanation],
        endpoints: &KnownEndpoints,
    ) -> Vec<TruthCell> {
        let cell = |point: &VantagePoint, (n, frontend): (usize, &FrontendExplanation)| {
            let destination = self.destination(point.vantage, frontend);
            let packet = Packet::new(
                point.origin.clone(),
                SocketAddr::new(point.source, CLIENT_PORT),
                destination,
                protocol,
            );
            let branches = self.tracer.trace(&packet, &RecentLists::default());
            TruthCell {
                from: point.vantage.to_string(),
                frontend: n,
                source: point.source,
                destination,
                reach: reach(point.vantage, frontend.kind),
                fates: self.fates(service_port, &branches, endpoints),
            }
        };
        let points = self.vantages.points.iter();
        points.flat_map(|point| frontends.iter().enumerate().map(move |each| cell(point, each))).collect()
    }

    fn destination(&self, vantage: Vantage, frontend: &FrontendExplanation) -> SocketAddr {
        let ip = match (frontend.address, vantage) {
            (Some(ip), _) => ip,
            (None, Vantage::Localhost) => self.family.localhost(),
            (None, _) => self.node_address,
        };
        SocketAddr::new(ip, frontend.port)
    }

    /// The fates of a packet's branches; those that differ only in the endpoint are one.
    fn fates(&self, service_port: &str, branches: &[Branch], endpoints: &KnownEndpoints) -> Vec<CellFate> {
        let mut merged: BTreeMap<FateKey<'_>, BTreeMap<Option<SocketAddr>, Weight>> = BTreeMap::new();
        for branch in branches {
            let by_endpoint = merged.entry(self.key(service_port, branch)).or_default();
            let weight = by_endpoint.entry(branch.outcome.dnat).or_insert(Weight::ZERO);
            weight.add(&branch.weight);
        }
        let mut fates: Vec<CellFate> =
            merged.into_iter().map(|(key, weights)| key.fate(weights, endpoints)).collect();
        fates.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        fates
    }

    fn key(&self, service_port: &str, branch: &Branch) -> FateKey<'a> {
        let outcome = &branch.outcome;
        let last = branch.decided_by();
        let last = last.as_ref();
        let (verdict, reason) = match outcome.verdict {
            PacketVerdict::Accepted(_) if outcome.dnat.is_some() => (CellVerdict::Endpoint, None),
            PacketVerdict::Accepted(Delivery::Local) => (CellVerdict::ToNode, None),
            PacketVerdict::Accepted(Delivery::Forwarded) => (CellVerdict::Untranslated, None),
            PacketVerdict::Rejected => (CellVerdict::Rejected, last.map(|step| self.reason(step))),
            PacketVerdict::Dropped => (CellVerdict::Dropped, last.map(|step| self.reason(step))),
            PacketVerdict::Unknown(step) => (CellVerdict::Unknown, Some(format!("{step} cannot be decided"))),
        };
        let is_endpoint = verdict == CellVerdict::Endpoint;
        let passes = matches!(outcome.verdict, PacketVerdict::Accepted(_));
        let leaves = outcome.verdict == PacketVerdict::Accepted(Delivery::Forwarded);
        FateKey {
            verdict,
            reason,
            is_masqueraded: passes && outcome.masquerade,
            is_unanswerable: leaves && outcome.source.is_some_and(|source| source.ip().is_loopback()),
            undecided: branch.undecided.iter().map(undecided).collect(),
            other_service_port: self
                .service_port_on(&branch.path)
                .filter(|name| is_endpoint && *name != service_port),
        }
    }

    /// The service port that the dispatch rule on the path names.
    fn service_port_on(&self, path: &[Step]) -> Option<&'a str> {
        let is_dispatch = |step: &&Step| {
            let owner = ChainOwner::of(step.table, &step.chain);
            step.table == Table::Nat && matches!(owner, ChainOwner::Fixed | ChainOwner::Dispatch)
        };
        let mut named = path.iter().filter(is_dispatch).filter_map(|step| {
            let (name, _) = split_comment(self.rule(step)?.comment()?);
            name.contains('/').then_some(name)
        });
        named.next_back()
    }

    fn rule(&self, step: &Step) -> Option<&'a Rule> {
        self.ruleset.chain(step.table, &step.chain)?.rules.get(step.rule?.checked_sub(1)?)
    }

    /// Why a packet ends at `step`.
    fn reason(&self, step: &Step) -> String {
        let Some(rule) = self.rule(step) else { return format!("policy of {} {}", step.table, step.chain) };
        let (_, what) = split_comment(rule.comment().unwrap_or_default());
        let is_invalid = |part: &Match| matches!(part, Match::CtState(states) if !states.negated && states.value == CtStates::INVALID);
        match what {
            "has no endpoints" => "no endpoints".to_owned(),
            "has no local endpoints" => "no endpoint on this node".to_owned(),
            _ if what.starts_with("traffic not accepted by ") => "source not in the source ranges".to_owned(),
            _ if step.chain == names::KUBE_FIREWALL => "loopback address from outside".to_owned(),
            _ if rule.matches.iter().any(is_invalid) => "connection state INVALID".to_owned(),
            _ => step.to_string(),
        }
    }
}

/// The source port of packets; no rule matches on it.
const CLIENT_PORT: u16 = 40_000;

/// The addresses in the rules that lead to node ports, if they name any.
fn node_port_addresses_in(ruleset: &Ruleset) -> Vec<IpAddr> {
    let services = ruleset.chain(Table::Nat, &names::KUBE_SERVICES);
    let tail = services.into_iter().flat_map(|chain| &chain.rules);
    let tail = tail.filter(|rule| rule.callee() == Some(names::KUBE_NODEPORTS));
    let addresses = tail.filter_map(|rule| rule.destination).filter(|to| !to.negated);
    addresses.map(|to| to.value.address()).collect()
}

fn reach(vantage: Vantage, kind: FrontendClass) -> PacketReach {
    match (vantage, kind) {
        (Vantage::PodElsewhere, FrontendClass::NodePort) => PacketReach::ThisNode,
        (Vantage::PodElsewhere, _) => PacketReach::OwnNode,
        (Vantage::Outside, FrontendClass::ClusterIp) => PacketReach::NotRouted,
        _ => PacketReach::ThisNode,
    }
}

/// `filter FORWARD rule 3 may drop it: unknown match "set"`
fn undecided(rule: &UndecidedRule) -> String {
    let effects: Vec<String> = rule.may.keys().map(ToString::to_string).collect();
    format!("{} may {}: {}", rule.step, effects.join(" or "), rule.reasons.join(", "))
}

/// What branches of one fate have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FateKey<'a> {
    verdict: CellVerdict,
    reason: Option<String>,
    is_masqueraded: bool,
    is_unanswerable: bool,
    undecided: Vec<String>,
    other_service_port: Option<&'a str>,
}

impl FateKey<'_> {
    fn fate(self, weights: BTreeMap<Option<SocketAddr>, Weight>, known: &KnownEndpoints) -> CellFate {
        let mut total = Weight::ZERO;
        weights.values().for_each(|weight| total.add(weight));
        let is_endpoint = self.verdict == CellVerdict::Endpoint;
        let addresses: BTreeSet<SocketAddr> =
            weights.keys().copied().flatten().filter(|_| is_endpoint).collect();
        let group = is_endpoint.then(|| match () {
            () if self.other_service_port.is_some() => EndpointGroup::Some,
            () if addresses == known.cluster => known.narrowed.unwrap_or(EndpointGroup::All),
            () if addresses == known.local => EndpointGroup::Local,
            () => EndpointGroup::Some,
        });
        let shares = weights.iter().filter(|_| is_endpoint).filter_map(|(address, weight)| {
            Some(AnsweringEndpoint { address: (*address)?, probability: weight.to_f64() })
        });
        CellFate {
            verdict: self.verdict,
            probability: total.to_f64(),
            reason: self.reason,
            group,
            endpoints: shares.take(MAX_SHARES).collect(),
            n_endpoints: addresses.len(),
            is_masqueraded: self.is_masqueraded,
            is_unanswerable: self.is_unanswerable,
            undecided: self.undecided,
            other_service_port: self.other_service_port.map(str::to_owned),
        }
    }
}
