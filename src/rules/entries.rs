//! The entries of a service port in the shared chains: one rule for each frontend. Both layouts have the
//! same.
//!
//! Source: kube-proxy v1.36 as described in `ruleset.md` 6; the order of the rules of a service port
//! is part of it.

use std::net::IpAddr;

use super::fixed;
use super::names::PortChain;
use super::port_context::{PortContext, rule_to_port};
use super::shared_chain::{Entry, SharedChain};
use crate::iptables::{AddressSide, Match, MaybeNot, Rule, Target};
use crate::net::{Cidr, IpFamily, Protocol};
use crate::policy::Verdict;

/// The entries of `port` in the shared chains.
pub(super) fn entries(port: &PortContext<'_>) -> Vec<Entry> {
    let mut writer = EntryWriter { port, entries: Vec::with_capacity(1) };
    writer.push_cluster_ip();
    writer.push_external_ips();
    writer.push_load_balancer_ips();
    writer.push_node_port();
    writer.push_health_check_node_port();
    writer.entries
}

struct EntryWriter<'a> {
    port: &'a PortContext<'a>,
    entries: Vec<Entry>,
}

impl EntryWriter<'_> {
    fn push(&mut self, chain: SharedChain, rule: Rule) {
        self.entries.push((chain, rule));
    }

    fn push_cluster_ip(&mut self) {
        let port = self.port;
        let ip = port.port.frontend.cluster_ip;
        match unserved(port.verdicts.internal) {
            None => {
                let target = port.jump_to(port.internal_chain());
                self.push(SharedChain::NatServices, port.rule_to_address(ip, "cluster IP", target));
            }
            Some((what, target)) => {
                self.push(SharedChain::FilterServices, port.rule_to_address(ip, what, target));
            }
        }
    }

    fn push_external_ips(&mut self) {
        let port = self.port;
        for ip in port.settings.external_ips_of(port.port) {
            if port.verdicts.has_endpoints() {
                let rule = port.rule_to_address(*ip, "external IP", port.jump_to(PortChain::External));
                self.push(SharedChain::NatServices, rule);
            }
            self.push_unserved_external(*ip);
        }
    }

    fn push_unserved_external(&mut self, ip: IpAddr) {
        if let Some((what, target)) = unserved(self.port.verdicts.external) {
            self.push(SharedChain::FilterExternalServices, self.port.rule_to_address(ip, what, target));
        }
    }

    fn push_load_balancer_ips(&mut self) {
        let port = self.port;
        let ips = &*port.port.frontend.load_balancer_ips;
        let firewall = port.has_firewall().then(|| port.names.chain(PortChain::Firewall));
        for ip in port.verdicts.has_endpoints().then_some(ips).into_iter().flatten() {
            let target = firewall.map_or_else(|| port.jump_to(PortChain::External), Target::Jump);
            self.push(SharedChain::NatServices, port.rule_to_address(*ip, "loadbalancer IP", target));
            if let Some(firewall) = firewall {
                let what = format!("traffic not accepted by {firewall}");
                self.push(SharedChain::FilterFirewall, port.rule_to_address(*ip, &what, Target::Drop));
            }
        }
        ips.iter().for_each(|ip| self.push_unserved_external(*ip));
    }

    fn push_node_port(&mut self) {
        let port = self.port;
        let Some(node_port) = port.port.port.node_port else { return };
        if port.verdicts.has_endpoints() {
            let target = Some(port.jump_to(PortChain::External));
            let comment = Match::Comment(port.names.text().into());
            let plain = Rule { target, ..rule_to_port(port.protocol(), node_port, comment) };
            if port.settings.localhost_node_ports && port.settings.counters.localhost {
                let mut counted = plain.clone();
                counted.destination = Some(MaybeNot::is(Cidr::new(IpFamily::V4.localhost(), 8)));
                counted.matches.push(Match::Nfacct(fixed::LOCALHOST_COUNTER.into()));
                self.push(SharedChain::NatNodePorts, counted);
            }
            self.push(SharedChain::NatNodePorts, plain);
        }
        if let Some((what, target)) = unserved(port.verdicts.external) {
            let mut rule = rule_to_port(port.protocol(), node_port, port.comment(what));
            rule.target = Some(target);
            rule.matches.insert(1, Match::IsLocal(AddressSide::Destination));
            self.push(SharedChain::FilterExternalServices, rule);
        }
    }

    fn push_health_check_node_port(&mut self) {
        if let Some(node_port) = self.port.port.service.health_check_node_port {
            let comment = self.port.comment("health check node port");
            let rule =
                Rule { target: Some(Target::Accept), ..rule_to_port(Protocol::Tcp, node_port, comment) };
            self.push(SharedChain::FilterNodePorts, rule);
        }
    }
}

/// Comment and target of the rule for traffic that is not served.
fn unserved(verdict: Verdict) -> Option<(&'static str, Target)> {
    match verdict {
        Verdict::Serve => None,
        Verdict::Reject => Some(("has no endpoints", Target::Reject)),
        Verdict::Drop => Some(("has no local endpoints", Target::Drop)),
    }
}
