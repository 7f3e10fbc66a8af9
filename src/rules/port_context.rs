//! What the rules of one service port are made from, and the rules that entries and chains share.

use std::net::IpAddr;

use super::Settings;
use super::names::{PortChain, PortNames};
use crate::iptables::{Chain, L4Protocol, Match, MaybeNot, PortRange, Rule, Table, Target};
use crate::model::{ServicePort, TrafficPolicy};
use crate::net::{Cidr, Protocol};
use crate::policy::Verdicts;

/// A service port on this node.
pub(super) struct PortContext<'a> {
    pub settings: &'a Settings,
    pub port: &'a ServicePort<'a>,
    pub names: PortNames,
    pub verdicts: Verdicts,
}

impl<'a> PortContext<'a> {
    pub fn new(settings: &'a Settings, port: &'a ServicePort<'a>, verdicts: Verdicts) -> PortContext<'a> {
        PortContext { settings, port, names: PortNames::new(&port.name()), verdicts }
    }

    pub fn protocol(&self) -> Protocol {
        self.port.port.protocol
    }

    /// How long a client stays with its endpoint, in seconds; `None` without session affinity.
    pub fn affinity_seconds(&self) -> Option<u32> {
        self.port.service.affinity_seconds
    }

    /// The chain that balances the traffic to the cluster IP.
    pub fn internal_chain(&self) -> PortChain {
        match self.port.service.internal_policy {
            TrafficPolicy::Cluster => PortChain::Cluster,
            TrafficPolicy::Local => PortChain::Local,
        }
    }

    /// Whether source ranges restrict the load balancer's addresses.
    pub fn has_firewall(&self) -> bool {
        let frontend = self.port.frontend;
        let is_restricted = !frontend.load_balancer_ips.is_empty() && !frontend.source_ranges.is_empty();
        self.verdicts.has_endpoints() && is_restricted
    }

    /// `<ns>/<name>:<port> <what>`.
    pub fn comment(&self, what: &str) -> Match {
        Match::Comment(format!("{} {what}", self.names.text()).into())
    }

    pub fn jump_to(&self, kind: PortChain) -> Target {
        Target::Jump(self.names.chain(kind))
    }

    /// The chain of `kind` in nat.
    pub fn chain(&self, kind: PortChain, rules: Vec<Rule>) -> Chain {
        Chain { table: Table::Nat, name: self.names.chain(kind), rules }
    }

    /// A rule for packets to `ip` and the service's port.
    pub fn rule_to_address(&self, ip: IpAddr, what: &str, target: Target) -> Rule {
        Rule {
            destination: Some(MaybeNot::is(Cidr::host(ip))),
            target: Some(target),
            ..rule_to_port(self.protocol(), self.port.port.port, self.comment(what))
        }
    }
}

/// A rule for packets of `protocol` to `port`, without a target.
pub(super) fn rule_to_port(protocol: Protocol, port: u16, comment: Match) -> Rule {
    let destination_ports = Some(PortRange { first: port, last: port });
    Rule {
        protocol: Some(MaybeNot::is(L4Protocol::Service(protocol))),
        matches: vec![comment, Match::L4 { protocol, destination_ports }],
        ..Rule::default()
    }
}
