//! The chains of a service port that lead to its balancing chains: `KUBE-EXT-` for traffic from
//! outside, `KUBE-FW-` for source ranges; and the rule that masquerades traffic to the cluster IP.
//! Both layouts have the same, compact without the comments.

use std::sync::Arc;

use super::names::{self, PortChain};
use super::port_context::PortContext;
use crate::iptables::{AddressSide, Chain, Match, MaybeNot, Rule, Target};
use crate::model::TrafficPolicy;
use crate::net::Cidr;
use crate::policy::Verdict;

/// The chains for traffic from outside, callees first; none where nothing outside reaches the service
/// port.
pub(super) fn chains(port: &PortContext<'_>) -> impl Iterator<Item = Chain> {
    let has_external = port.verdicts.has_endpoints() && port.port.is_externally_accessible();
    let external = has_external.then(|| port.chain(PortChain::External, external_rules(port)));
    let firewall = port.has_firewall().then(|| port.chain(PortChain::Firewall, firewall_rules(port)));
    external.into_iter().chain(firewall)
}

/// The rule that masquerades traffic to the cluster IP unless it comes from a pod of this node, so that
/// answers come back through the node. It stands at the head of the chain of `kind`, if the cluster IP
/// leads there.
pub(super) fn masquerade_rule(port: &PortContext<'_>, kind: PortChain) -> Option<Rule> {
    if kind != port.internal_chain() || port.verdicts.internal != Verdict::Serve {
        return None;
    }
    let target = Target::Jump(names::KUBE_MARK_MASQ);
    let mut rule = port.rule_to_address(port.port.frontend.cluster_ip, "cluster IP", target);
    if !port.settings.masquerade_all {
        port.settings.detector.as_ref()?.restrict_to_others(&mut rule);
    }
    Some(rule)
}

fn external_rules(port: &PortContext<'_>) -> Vec<Rule> {
    let comment =
        |what: &str| Match::Comment(format!("{what} for {} external destinations", port.names.text()).into());
    let rule = |matches, target| Rule { matches, target: Some(target), ..Rule::default() };
    let mark = || Target::Jump(names::KUBE_MARK_MASQ);
    let any_endpoint = || port.jump_to(PortChain::Cluster);
    if port.port.service.external_policy == TrafficPolicy::Cluster {
        return vec![rule(vec![comment("masquerade traffic")], mark()), rule(Vec::new(), any_endpoint())];
    }
    let mut rules = Vec::with_capacity(4);
    if let Some(detector) = &port.settings.detector {
        let mut from_pods = rule(vec![comment("pod traffic")], any_endpoint());
        detector.restrict_to_pods(&mut from_pods);
        rules.push(from_pods);
    }
    let from_node = |what| vec![comment(what), Match::IsLocal(AddressSide::Source)];
    rules.push(rule(from_node("masquerade LOCAL traffic"), mark()));
    rules.push(rule(from_node("route LOCAL traffic"), any_endpoint()));
    if port.verdicts.external == Verdict::Serve {
        rules.push(rule(Vec::new(), port.jump_to(PortChain::Local)));
    }
    rules
}

fn firewall_rules(port: &PortContext<'_>) -> Vec<Rule> {
    let frontend = port.port.frontend;
    let comment: Arc<str> = format!("{} loadbalancer IP", port.names.text()).into();
    let allow = |source| Rule {
        source: Some(MaybeNot::is(source)),
        matches: vec![Match::Comment(comment.clone())],
        target: Some(port.jump_to(PortChain::External)),
        ..Rule::default()
    };
    let mut rules: Vec<Rule> = frontend.source_ranges.iter().copied().map(allow).collect();
    // Where the load balancer's address is also the node's, the node reaches it from that address.
    if frontend.source_ranges.iter().any(|range| range.contains(port.settings.node_ip)) {
        rules.extend(frontend.load_balancer_ips.iter().map(|ip| allow(Cidr::host(*ip))));
    }
    let what = format!("other traffic to {} will be dropped by KUBE-PROXY-FIREWALL", port.names.text());
    rules.push(Rule { matches: vec![Match::Comment(what.into())], ..Rule::default() });
    rules
}
