//! Inputs of rule generation other than Services and endpoints, for one IP family: from configuration,
//! Node and host to [`Settings`].

use std::net::IpAddr;

use crate::config::{Config, DetectLocal, LayoutChoice, NodePortAddresses};
use crate::iptables::{Interface, MaybeNot, Rule};
use crate::model::host::{Counters, Host};
use crate::model::{Node, ServicePort};
use crate::net::{Cidr, IpFamily, MasqueradeMark};

/// How rules recognize traffic of this node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detector {
    /// By its source.
    Source(Cidr),
    /// By the interface on which it arrives.
    Interface(Interface),
}

impl Detector {
    /// Makes `rule` match pods' traffic only.
    pub fn restrict_to_pods(&self, rule: &mut Rule) {
        self.restrict(rule, false);
    }

    /// Makes `rule` match all traffic but pods'.
    pub fn restrict_to_others(&self, rule: &mut Rule) {
        self.restrict(rule, true);
    }

    fn restrict(&self, rule: &mut Rule, negated: bool) {
        match self {
            Detector::Source(cidr) => rule.source = Some(MaybeNot { negated, value: *cidr }),
            Detector::Interface(name) => {
                rule.in_interface = Some(MaybeNot { negated, value: name.clone() });
            }
        }
    }
}

/// The addresses of the node on which node ports answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// Every address of the node.
    EveryAddress,
    /// These, sorted; node ports do not answer when empty.
    Addresses(Vec<IpAddr>),
}

/// Inputs of rule generation other than Services and endpoints, for one family on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The family.
    pub family: IpFamily,
    /// The mark of packets that are to be masqueraded.
    pub mark: MasqueradeMark,
    /// Whether all traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// How rules recognize pods' traffic; `None` if they cannot.
    pub detector: Option<Detector>,
    /// The addresses on which node ports answer.
    pub node_ports: NodePorts,
    /// Whether node ports answer on 127.0.0.0/8 too.
    pub localhost_node_ports: bool,
    /// The node's own address; localhost if it is unknown.
    pub node_ip: IpAddr,
    /// Whether packets that conntrack calls INVALID are dropped.
    pub drops_invalid: bool,
    /// The nfacct counters that exist.
    pub counters: Counters,
    /// Whether masquerading picks source ports at random.
    pub random_fully: bool,
    /// Whether external IPs are served (gate AllowServiceExternalIPs).
    pub external_ips: bool,
    /// The configured layout.
    pub layout: LayoutChoice,
    /// Whether rules may have a `bpf` match, which compact uses for hairpins.
    pub bpf: bool,
}

impl Settings {
    /// The settings of `family` for `config`, the Node (if it is known) and `host`.
    pub fn new(config: &Config, node: Option<&Node>, host: &Host, family: IpFamily) -> Settings {
        let cidrs = node_port_cidrs(config, node, family);
        let localhost_node_ports = family == IpFamily::V4
            && config.localhost_node_ports
            && host.kernel.route_localnet
            && cidrs.as_ref().is_none_or(|cidrs| cidrs.iter().any(holds_loopback));
        Settings {
            family,
            mark: config.mark,
            masquerade_all: config.masquerade_all,
            detector: detector(config, node, family),
            node_ports: node_ports(cidrs, config, host, family),
            localhost_node_ports,
            node_ip: node_ip(config, node, family).unwrap_or(family.localhost()),
            drops_invalid: !(host.kernel.tcp_be_liberal || config.conntrack.tcp_be_liberal),
            counters: host.kernel.counters,
            random_fully: host.kernel.random_fully,
            external_ips: config.allow_external_ips,
            layout: config.layout,
            bpf: host.kernel.bpf,
        }
    }

    /// The external IPs of `port` that are served.
    pub fn external_ips_of<'a>(&self, port: &ServicePort<'a>) -> &'a [IpAddr] {
        if self.external_ips { &port.frontend.external_ips } else { &[] }
    }
}

/// `bindAddress` if it is one address of the family, else the Node's; `None` if neither is known.
pub(super) fn node_ip(config: &Config, node: Option<&Node>, family: IpFamily) -> Option<IpAddr> {
    let bound = config.bind_address.filter(|ip| IpFamily::of(*ip) == family && !ip.is_unspecified());
    bound.or_else(|| *node?.ips().get(family))
}

fn detector(config: &Config, node: Option<&Node>, family: IpFamily) -> Option<Detector> {
    let first = |cidrs: &[Cidr]| {
        let cidr = cidrs.iter().copied().find(|cidr| cidr.family() == family);
        // iptables rejects `! -s 0.0.0.0/0`. All traffic counts as pods' then, and needs no rule.
        cidr.filter(|cidr| !cidr.is_everything()).map(Detector::Source)
    };
    match &config.detect_local {
        DetectLocal::ClusterCidr => first(&config.cluster_cidrs),
        DetectLocal::NodeCidr => first(&node?.pod_cidrs),
        DetectLocal::BridgeInterface(name) => Interface::new(name).map(Detector::Interface),
        DetectLocal::InterfaceNamePrefix(prefix) => {
            Interface::new(&format!("{prefix}+")).map(Detector::Interface)
        }
    }
}

/// The CIDRs of the family on which node ports answer; `None` if they answer on every address, as they
/// do if no CIDR is of the family.
fn node_port_cidrs(config: &Config, node: Option<&Node>, family: IpFamily) -> Option<Vec<Cidr>> {
    let cidrs: Vec<Cidr> = match &config.node_port_addresses {
        NodePortAddresses::All => return None,
        NodePortAddresses::Primary => {
            node_ip(config, node, family).filter(|ip| !ip.is_loopback()).map(Cidr::host).into_iter().collect()
        }
        NodePortAddresses::Cidrs(cidrs) => {
            cidrs.iter().copied().filter(|cidr| cidr.family() == family).collect()
        }
    };
    (!cidrs.is_empty() && !cidrs.iter().any(Cidr::is_everything)).then_some(cidrs)
}

fn holds_loopback(cidr: &Cidr) -> bool {
    cidr.address().is_loopback() || cidr.contains(IpAddr::from([127, 0, 0, 0]))
}

fn node_ports(cidrs: Option<Vec<Cidr>>, config: &Config, host: &Host, family: IpFamily) -> NodePorts {
    let Some(cidrs) = cidrs else { return NodePorts::EveryAddress };
    let may_be_loopback = family == IpFamily::V4 && config.localhost_node_ports && host.kernel.route_localnet;
    let mut addresses: Vec<IpAddr> = host
        .addresses
        .iter()
        .copied()
        .filter(|ip| cidrs.iter().any(|cidr| cidr.contains(*ip)))
        .filter(|ip| may_be_loopback || !ip.is_loopback())
        .collect();
    addresses.sort();
    addresses.dedup();
    NodePorts::Addresses(addresses)
}
