//! The classic layout: kube-proxy's own rules, to the byte.
//!
//! Source: kube-proxy v1.36 as described in `ruleset.md` 6; the order of rules within a service
//! port is part of it.

use std::net::IpAddr;
use std::sync::Arc;

use super::names::{self, PortChain, PortNames};
use super::{Entry, Settings, SharedChain, fixed};
use crate::iptables::{
    AddressSide, Chain, ChainName, L4Protocol, Match, MaybeNot, PortRange, RecentAction, Rule, Table, Target,
};
use crate::model::{Endpoint, ServicePort, TrafficPolicy};
use crate::net::{self, Cidr, IpFamily, Protocol};
use crate::policy::{Selection, Verdict, Verdicts};

/// The entries of `port` in the shared chains.
pub fn entries(settings: &Settings, port: &ServicePort<'_>, verdicts: Verdicts) -> Vec<Entry> {
    let names = PortNames::new(&port.name());
    let mut writer = EntryWriter { settings, port, names: &names, verdicts, entries: Vec::with_capacity(1) };
    writer.cluster_ip();
    writer.external_ips();
    writer.load_balancer_ips();
    writer.node_port();
    writer.health_check_node_port();
    writer.entries
}

struct EntryWriter<'a> {
    settings: &'a Settings,
    port: &'a ServicePort<'a>,
    names: &'a PortNames,
    verdicts: Verdicts,
    entries: Vec<Entry>,
}

impl EntryWriter<'_> {
    fn push(&mut self, chain: SharedChain, rule: Rule) {
        self.entries.push((chain, rule));
    }

    /// A rule on packets to `ip` at the service's port.
    fn to_address(&self, ip: IpAddr, what: &str, target: Target) -> Rule {
        Rule {
            destination: Some(MaybeNot::is(Cidr::host(ip))),
            target: Some(target),
            ..to_port(self.port.port.protocol, self.port.port.port, self.comment(what))
        }
    }

    fn comment(&self, what: &str) -> Match {
        Match::Comment(format!("{} {what}", self.names.text()).into())
    }

    fn cluster_ip(&mut self) {
        let ip = self.port.frontend.cluster_ip;
        match refusal(self.verdicts.internal) {
            None => {
                let rule = self.to_address(
                    ip,
                    "cluster IP",
                    Target::Jump(self.names.chain(internal_chain(self.port))),
                );
                self.push(SharedChain::NatServices, rule);
            }
            Some((what, target)) => {
                let rule = self.to_address(ip, what, target);
                self.push(SharedChain::FilterServices, rule);
            }
        }
    }

    fn external_ips(&mut self) {
        for ip in self.settings.external_ips_of(self.port) {
            if self.verdicts.has_endpoints() {
                let target = Target::Jump(self.names.chain(PortChain::External));
                let rule = self.to_address(*ip, "external IP", target);
                self.push(SharedChain::NatServices, rule);
            }
            self.refuse_external(*ip);
        }
    }

    fn refuse_external(&mut self, ip: IpAddr) {
        if let Some((what, target)) = refusal(self.verdicts.external) {
            let rule = self.to_address(ip, what, target);
            self.push(SharedChain::FilterExternalServices, rule);
        }
    }

    fn load_balancer_ips(&mut self) {
        let frontend = self.port.frontend;
        let firewall = has_firewall(self.port, self.verdicts).then(|| self.names.chain(PortChain::Firewall));
        for ip in self.verdicts.has_endpoints().then_some(&*frontend.load_balancer_ips).into_iter().flatten()
        {
            let target = firewall.unwrap_or_else(|| self.names.chain(PortChain::External));
            let rule = self.to_address(*ip, "loadbalancer IP", Target::Jump(target));
            self.push(SharedChain::NatServices, rule);
            if let Some(firewall) = firewall {
                let what = format!("traffic not accepted by {firewall}");
                let rule = self.to_address(*ip, &what, Target::Drop);
                self.push(SharedChain::FilterFirewall, rule);
            }
        }
        frontend.load_balancer_ips.iter().for_each(|ip| self.refuse_external(*ip));
    }

    fn node_port(&mut self) {
        let Some(node_port) = self.port.port.node_port else { return };
        let protocol = self.port.port.protocol;
        if self.verdicts.has_endpoints() {
            let target = Some(Target::Jump(self.names.chain(PortChain::External)));
            let comment = || Match::Comment(self.names.text().into());
            let plain = Rule { target, ..to_port(protocol, node_port, comment()) };
            if self.settings.localhost_node_ports && self.settings.counters.localhost {
                let mut counted = plain.clone();
                counted.destination = Some(MaybeNot::is(Cidr::new(IpFamily::V4.localhost(), 8)));
                counted.matches.push(Match::Nfacct(fixed::LOCALHOST_COUNTER.into()));
                self.push(SharedChain::NatNodePorts, counted);
            }
            self.push(SharedChain::NatNodePorts, plain);
        }
        if let Some((what, target)) = refusal(self.verdicts.external) {
            let mut rule = Rule { target: Some(target), ..to_port(protocol, node_port, self.comment(what)) };
            rule.matches.insert(1, Match::IsLocal(AddressSide::Destination));
            self.push(SharedChain::FilterExternalServices, rule);
        }
    }

    fn health_check_node_port(&mut self) {
        if let Some(node_port) = self.port.service.health_check_node_port {
            let comment = self.comment("health check node port");
            let rule = Rule { target: Some(Target::Accept), ..to_port(Protocol::Tcp, node_port, comment) };
            self.push(SharedChain::FilterNodePorts, rule);
        }
    }
}

/// What is said of traffic that is not served, and what it meets.
fn refusal(verdict: Verdict) -> Option<(&'static str, Target)> {
    match verdict {
        Verdict::Serve => None,
        Verdict::Reject => Some(("has no endpoints", Target::Reject)),
        Verdict::Drop => Some(("has no local endpoints", Target::Drop)),
    }
}

/// A rule on packets of `protocol` to `port`.
fn to_port(protocol: Protocol, port: u16, comment: Match) -> Rule {
    let destination_ports = Some(PortRange { first: port, last: port });
    Rule {
        protocol: Some(MaybeNot::is(L4Protocol::Service(protocol))),
        matches: vec![comment, Match::L4 { protocol, destination_ports }],
        ..Rule::default()
    }
}

fn internal_chain(port: &ServicePort<'_>) -> PortChain {
    match port.service.internal_policy {
        TrafficPolicy::Cluster => PortChain::Cluster,
        TrafficPolicy::Local => PortChain::Local,
    }
}

fn has_firewall(port: &ServicePort<'_>, verdicts: Verdicts) -> bool {
    let frontend = port.frontend;
    verdicts.has_endpoints() && !frontend.load_balancer_ips.is_empty() && !frontend.source_ranges.is_empty()
}

/// The chains of `port`, callees before callers; none without endpoints.
///
/// `is_large` leaves comments out of rules for endpoints, as kube-proxy does in a large cluster.
pub fn chains(
    settings: &Settings,
    port: &ServicePort<'_>,
    selection: &Selection<'_>,
    is_large: bool,
) -> Vec<Chain> {
    let writer = ChainWriter::new(settings, port, selection, is_large);
    let reachable = writer.reachable(&selection.reachable());
    let mut chains: Vec<Chain> = Vec::with_capacity(reachable.len() + 2);
    let text: Arc<str> = writer.names.text().into();
    chains.extend(reachable.iter().map(|endpoint| writer.chain_of(endpoint, &text)));
    for (kind, endpoints) in [(PortChain::Local, &selection.local), (PortChain::Cluster, &selection.cluster)]
    {
        if !endpoints.is_empty() {
            chains.push(writer.balancing_chain(kind, endpoints, &reachable));
        }
    }
    chains.extend(writer.outer_chains());
    chains
}

/// Writes the chains of one service port.
pub(super) struct ChainWriter<'a> {
    settings: &'a Settings,
    port: &'a ServicePort<'a>,
    names: PortNames,
    verdicts: Verdicts,
    is_large: bool,
}

/// An endpoint with the texts made from it.
struct Reachable<'a> {
    endpoint: Endpoint<'a>,
    /// `<ip>:<port>` or `[<ip6>]:<port>`.
    text: String,
    chain: ChainName,
}

impl<'a> ChainWriter<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        port: &'a ServicePort<'a>,
        selection: &Selection<'_>,
        is_large: bool,
    ) -> ChainWriter<'a> {
        let names = PortNames::new(&port.name());
        ChainWriter { settings, port, names, verdicts: selection.verdicts(port), is_large }
    }

    pub(super) fn names(&self) -> &PortNames {
        &self.names
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.port.port.protocol
    }

    pub(super) fn affinity_seconds(&self) -> Option<u32> {
        self.port.service.affinity_seconds
    }

    /// The chains that lead to the balancing ones.
    pub(super) fn outer_chains(&self) -> Vec<Chain> {
        let external = self.verdicts.has_endpoints() && self.port.is_externally_accessible();
        let firewall = has_firewall(self.port, self.verdicts);
        let external = external.then(|| self.external_chain());
        external.into_iter().chain(firewall.then(|| self.firewall_chain())).collect()
    }

    /// `endpoints` in the order of rules: that of their texts, byte by byte.
    fn reachable<'e>(&self, endpoints: &[Endpoint<'e>]) -> Vec<Reachable<'e>> {
        let mut reachable: Vec<Reachable<'e>> = endpoints
            .iter()
            .map(|endpoint| {
                let mut text = String::with_capacity("255.255.255.255:65535".len());
                net::push_socket(&mut text, endpoint.address);
                Reachable { endpoint: *endpoint, chain: self.names.endpoint(&text), text }
            })
            .collect();
        reachable.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        reachable
    }

    /// The comment of a rule for an endpoint, unless the cluster is too large for it.
    fn endpoint_matches(&self, comment: impl FnOnce() -> Arc<str>, n_more: usize) -> Vec<Match> {
        let mut matches = Vec::with_capacity(1 + n_more);
        if !self.is_large {
            matches.push(Match::Comment(comment()));
        }
        matches
    }

    /// The chain of `endpoint`.
    pub(super) fn endpoint_chain(&self, endpoint: Endpoint<'_>) -> Chain {
        let chain = self.names.endpoint_at(endpoint.address);
        self.chain_of(&Reachable { endpoint, text: String::new(), chain }, &self.names.text().into())
    }

    fn chain_of(&self, to: &Reachable<'_>, text: &Arc<str>) -> Chain {
        let protocol = self.port.port.protocol;
        let hairpin = Rule {
            source: Some(MaybeNot::is(Cidr::host(to.endpoint.address.ip()))),
            matches: self.endpoint_matches(|| text.clone(), 0),
            target: Some(Target::Jump(names::KUBE_MARK_MASQ)),
            ..Rule::default()
        };
        let mut matches = self.endpoint_matches(|| text.clone(), 2);
        if self.port.service.affinity_seconds.is_some() {
            matches.push(Match::Recent { action: RecentAction::Set, list: to.chain });
        }
        matches.push(Match::L4 { protocol, destination_ports: None });
        let translate = Rule {
            protocol: Some(MaybeNot::is(L4Protocol::Service(protocol))),
            matches,
            target: Some(Target::Dnat(to.endpoint.address)),
            ..Rule::default()
        };
        Chain { table: Table::Nat, name: to.chain, rules: vec![hairpin, translate] }
    }

    /// The chain that picks one of `endpoints`, each as likely as the others. `reachable` holds
    /// them all, in the order of rules.
    fn balancing_chain(
        &self,
        kind: PortChain,
        endpoints: &[Endpoint<'_>],
        reachable: &[Reachable<'_>],
    ) -> Chain {
        let is_in = |to: &&Reachable<'_>| {
            endpoints.len() == reachable.len()
                || endpoints.binary_search_by_key(&to.endpoint.address, |endpoint| endpoint.address).is_ok()
        };
        let chosen: Vec<&Reachable<'_>> = reachable.iter().filter(is_in).collect();
        let comments: Vec<Arc<str>> = match self.is_large {
            true => Vec::new(),
            false => chosen.iter().map(|to| format!("{} -> {}", self.names.text(), to.text).into()).collect(),
        };
        let rule = |n: usize, extra: Option<Match>| {
            let mut matches = self.endpoint_matches(|| comments[n].clone(), 1);
            matches.extend(extra);
            Rule { matches, target: Some(Target::Jump(chosen[n].chain)), ..Rule::default() }
        };
        let mut rules = Vec::with_capacity(1 + chosen.len());
        rules.extend(self.masquerade_rule_in(kind));
        if let Some(seconds) = self.port.service.affinity_seconds {
            rules.extend(chosen.iter().enumerate().map(|(n, to)| {
                rule(n, Some(Match::Recent { action: RecentAction::Check { seconds }, list: to.chain }))
            }));
        }
        rules.extend((0..chosen.len()).map(|n| rule(n, one_of(chosen.len() - n))));
        Chain { table: Table::Nat, name: self.names.chain(kind), rules }
    }

    /// The masquerading rule, where the chain of `kind` is the one that the cluster IP leads to.
    pub(super) fn masquerade_rule_in(&self, kind: PortChain) -> Option<Rule> {
        (kind == internal_chain(self.port)).then(|| self.masquerade_rule()).flatten()
    }

    /// Packets to the cluster IP that do not come from a pod of this node leave with the node's
    /// address, so that the answer comes back this way.
    fn masquerade_rule(&self) -> Option<Rule> {
        if self.verdicts.internal != Verdict::Serve {
            return None;
        }
        let comment = Match::Comment(format!("{} cluster IP", self.names.text()).into());
        let mut rule = Rule {
            destination: Some(MaybeNot::is(Cidr::host(self.port.frontend.cluster_ip))),
            target: Some(Target::Jump(names::KUBE_MARK_MASQ)),
            ..to_port(self.port.port.protocol, self.port.port.port, comment)
        };
        if !self.settings.masquerade_all {
            self.settings.detector.as_ref()?.restrict_to_others(&mut rule);
        }
        Some(rule)
    }

    fn external_chain(&self) -> Chain {
        let said = |what: &str| {
            Match::Comment(format!("{what} for {} external destinations", self.names.text()).into())
        };
        let rule = |matches, target| Rule { matches, target: Some(Target::Jump(target)), ..Rule::default() };
        let everybody = self.names.chain(PortChain::Cluster);
        let name = self.names.chain(PortChain::External);
        if self.port.service.external_policy == TrafficPolicy::Cluster {
            let masquerade = rule(vec![said("masquerade traffic")], names::KUBE_MARK_MASQ);
            return Chain { table: Table::Nat, name, rules: vec![masquerade, rule(Vec::new(), everybody)] };
        }
        let mut rules = Vec::with_capacity(4);
        if let Some(detector) = &self.settings.detector {
            let mut from_pods = rule(vec![said("pod traffic")], everybody);
            detector.restrict_to_pods(&mut from_pods);
            rules.push(from_pods);
        }
        let from_here = || Match::IsLocal(AddressSide::Source);
        rules.push(rule(vec![said("masquerade LOCAL traffic"), from_here()], names::KUBE_MARK_MASQ));
        rules.push(rule(vec![said("route LOCAL traffic"), from_here()], everybody));
        if self.verdicts.external == Verdict::Serve {
            rules.push(rule(Vec::new(), self.names.chain(PortChain::Local)));
        }
        Chain { table: Table::Nat, name, rules }
    }

    fn firewall_chain(&self) -> Chain {
        let frontend = self.port.frontend;
        let comment: Arc<str> = format!("{} loadbalancer IP", self.names.text()).into();
        let allow = |source| Rule {
            source: Some(MaybeNot::is(source)),
            matches: vec![Match::Comment(comment.clone())],
            target: Some(Target::Jump(self.names.chain(PortChain::External))),
            ..Rule::default()
        };
        let mut rules: Vec<Rule> = frontend.source_ranges.iter().copied().map(allow).collect();
        // Where the load balancer's address is also the node's, the node reaches it from that address.
        if frontend.source_ranges.iter().any(|range| range.contains(self.settings.node_ip)) {
            rules.extend(frontend.load_balancer_ips.iter().map(|ip| allow(Cidr::host(*ip))));
        }
        let what = format!("other traffic to {} will be dropped by KUBE-PROXY-FIREWALL", self.names.text());
        rules.push(Rule { matches: vec![Match::Comment(what.into())], ..Rule::default() });
        Chain { table: Table::Nat, name: self.names.chain(PortChain::Firewall), rules }
    }
}

/// Matches one packet in `n`; nothing is needed for the last.
///
/// kube-proxy writes 1/n with ten decimals, and the kernel keeps that in units of 2^-31: both
/// roundings are part of the rule.
fn one_of(n: usize) -> Option<Match> {
    if n == 1 {
        return None;
    }
    let decimals = (1e10 / n as f64).round() / 1e10;
    let threshold = (decimals * f64::from(1u32 << 31)).round() as u32;
    Some(Match::Random { threshold })
}

#[cfg(test)]
mod tests;
