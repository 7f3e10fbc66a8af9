//! What is not as it should be on the node beside its rules: sysctls, the other back-end, leftovers, other proxies.

use std::collections::BTreeMap;

use super::super::ClusterView;
use super::check_report::{CheckFinding, FindingKind, FindingSeverity};
use crate::config::Conntrack;
use crate::net::{Cidr, IpFamily};
use crate::rules::{Detector, Settings};

/// Facts about the node that are neither objects nor rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Sysctls by their path below `/proc/sys`, as in `net/ipv4/ip_forward`; one that cannot be read is absent.
    pub sysctls: BTreeMap<String, i64>,
    /// The sysctls of conntrack that the configuration asks for, by their path below `/proc/sys`, with their values.
    pub conntrack: BTreeMap<String, u64>,
    /// Bridges of this network namespace.
    pub bridges: Vec<String>,
    /// Chains of kube-proxy or Chainsmith in the back-end that is not in use, a line for each table.
    pub other_backend: Vec<String>,
    /// What other modes of kube-proxy left, each with the command that removes it, if there is one.
    pub leftovers: Vec<(String, Option<String>)>,
    /// Proxies in this network namespace, as in `process 7 (kube-proxy)`.
    pub proxies: Vec<String>,
}

impl NodeState {
    /// `net.ipv4.conf.all.route_localnet` as a path.
    pub const ROUTE_LOCALNET: &'static str = "net/ipv4/conf/all/route_localnet";
    /// Whether IPv4 packets are forwarded.
    pub const FORWARD_V4: &'static str = "net/ipv4/ip_forward";
    /// Whether IPv6 packets are forwarded.
    pub const FORWARD_V6: &'static str = "net/ipv6/conf/all/forwarding";
    /// Whether IPv4 packets on a bridge meet the rules.
    pub const BRIDGE_V4: &'static str = "net/bridge/bridge-nf-call-iptables";
    /// Whether IPv6 packets on a bridge meet the rules.
    pub const BRIDGE_V6: &'static str = "net/bridge/bridge-nf-call-ip6tables";
    /// The most connections that conntrack follows.
    pub const CONNTRACK_MAX: &'static str = "net/netfilter/nf_conntrack_max";
    /// The connections that conntrack follows now.
    pub const CONNTRACK_COUNT: &'static str = "net/netfilter/nf_conntrack_count";

    /// Every sysctl that a check looks at, beside those of [`NodeState::conntrack`].
    pub const SYSCTLS: [&'static str; 7] = [
        NodeState::ROUTE_LOCALNET,
        NodeState::FORWARD_V4,
        NodeState::FORWARD_V6,
        NodeState::BRIDGE_V4,
        NodeState::BRIDGE_V6,
        NodeState::CONNTRACK_MAX,
        NodeState::CONNTRACK_COUNT,
    ];

    /// The sysctls that `conntrack` asks for on a machine with `n_cpus` CPUs.
    pub fn desired_conntrack(conntrack: &Conntrack, n_cpus: u32) -> BTreeMap<String, u64> {
        let max = conntrack.max(n_cpus).map(|max| (NodeState::CONNTRACK_MAX.to_owned(), max));
        let others = conntrack.sysctls().into_iter();
        max.into_iter().chain(others.map(|(key, value)| (format!("net/netfilter/{key}"), value))).collect()
    }
}

/// A family whose rules are checked.
pub(super) struct CheckedFamily<'a> {
    pub(super) family: IpFamily,
    /// As configured, before they were adapted to the rules in force.
    pub(super) configured: &'a Settings,
    /// As the rules in force have them.
    pub(super) found: &'a Settings,
}

/// Everything that is not as it should be.
pub(super) fn findings(
    state: &NodeState,
    cluster: &ClusterView,
    interfaces: &[(String, std::net::IpAddr)],
    families: &[CheckedFamily<'_>],
) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    for checked in families {
        let n_ports =
            cluster.snapshot.services().flat_map(|service| service.ports_in(checked.family)).count();
        if n_ports > 0 {
            findings.extend(forwarding(state, checked.family));
            findings.extend(bridges(state, cluster, interfaces, checked));
        }
        findings.extend(localnet(state, cluster, checked));
    }
    findings.extend(conntrack(state));
    findings.extend(other_programs(state));
    findings
}

fn sysctl(
    severity: FindingSeverity,
    key: &str,
    is: i64,
    should: impl std::fmt::Display,
    effect: &str,
) -> CheckFinding {
    let name = key.replace('/', ".");
    let summary = format!("sysctl {name} is {is}, should be {should}");
    CheckFinding::new(severity, FindingKind::Sysctl, summary, effect)
        .with_next(format!("sysctl -w {name}={should}"))
}

fn forwarding(state: &NodeState, family: IpFamily) -> Option<CheckFinding> {
    let key = match family {
        IpFamily::V4 => NodeState::FORWARD_V4,
        IpFamily::V6 => NodeState::FORWARD_V6,
    };
    let is = *state.sysctls.get(key)?;
    let effect = "The kernel forwards nothing: pods and clients outside reach no Service through this node.";
    let mut finding = (is == 0).then(|| sysctl(FindingSeverity::Error, key, is, 1, effect))?;
    finding.family = Some(family.as_str().to_owned());
    Some(finding)
}

fn localnet(state: &NodeState, cluster: &ClusterView, checked: &CheckedFamily<'_>) -> Option<CheckFinding> {
    let is = *state.sysctls.get(NodeState::ROUTE_LOCALNET)?;
    if is != 0 || !checked.configured.localhost_node_ports {
        return None;
    }
    let ports = cluster.snapshot.services().flat_map(|service| service.ports_in(checked.family));
    let has_node_ports = ports.into_iter().any(|port| port.port.node_port.is_some());
    let (severity, effect) = match (has_node_ports, checked.found.localhost_node_ports) {
        (false, _) => (FindingSeverity::Notice, "None: no Service has a node port."),
        (true, true) => {
            (FindingSeverity::Error, "Node ports do not answer on 127.0.0.1: the kernel drops packets to it.")
        }
        (true, false) => (
            FindingSeverity::Warning,
            "Node ports do not answer on 127.0.0.1: the agent could not set it, and left out their rules.",
        ),
    };
    let mut finding = sysctl(severity, NodeState::ROUTE_LOCALNET, is, 1, effect);
    finding.family = Some(checked.family.as_str().to_owned());
    Some(finding)
}

/// Bridges on which pods are: without the sysctl, an answer between two pods of one bridge does not meet conntrack.
fn bridges(
    state: &NodeState,
    cluster: &ClusterView,
    interfaces: &[(String, std::net::IpAddr)],
    checked: &CheckedFamily<'_>,
) -> Option<CheckFinding> {
    let mut pod_cidrs: Vec<Cidr> = cluster.snapshot.node().map_or(&[][..], |node| &node.pod_cidrs).to_vec();
    let mut named = None;
    match &checked.found.detector {
        Some(Detector::Source(cidr)) => pod_cidrs.push(*cidr),
        Some(Detector::Interface(name)) => named = Some(name.as_str()),
        None => {}
    }
    let has_pods = |bridge: &&String| {
        let mut addresses = interfaces.iter().filter(|(name, _)| name == *bridge);
        named == Some(bridge.as_str())
            || addresses.any(|(_, ip)| {
                IpFamily::of(*ip) == checked.family && pod_cidrs.iter().any(|cidr| cidr.contains(*ip))
            })
    };
    let bridge = state.bridges.iter().find(has_pods)?;
    let key = match checked.family {
        IpFamily::V4 => NodeState::BRIDGE_V4,
        IpFamily::V6 => NodeState::BRIDGE_V6,
    };
    let effect = format!(
        "A pod on bridge {bridge} that connects to a Service and is sent to another pod there gets answers from the wrong address: the connection fails."
    );
    let mut finding = match state.sysctls.get(key) {
        Some(0) => sysctl(FindingSeverity::Error, key, 0, 1, &effect),
        Some(_) => return None,
        None => CheckFinding::new(
            FindingSeverity::Error,
            FindingKind::Sysctl,
            format!("sysctl {} does not exist: the module br_netfilter is not loaded", key.replace('/', ".")),
            effect,
        )
        .with_next("modprobe br_netfilter"),
    };
    finding.family = Some(checked.family.as_str().to_owned());
    Some(finding)
}

fn conntrack(state: &NodeState) -> Vec<CheckFinding> {
    let mut findings: Vec<CheckFinding> = Vec::new();
    for (key, should) in &state.conntrack {
        let Some(is) = state.sysctls.get(key) else { continue };
        let Ok(wanted) = i64::try_from(*should) else { continue };
        if *is == wanted {
            continue;
        }
        let is_lower = *is < wanted;
        let (severity, effect) = match (key.as_str(), is_lower) {
            (NodeState::CONNTRACK_MAX, true) => (
                FindingSeverity::Warning,
                "With more connections than that, the kernel drops new ones to any destination.",
            ),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", _) => (
                FindingSeverity::Warning,
                "Packets that conntrack finds out of window are INVALID: they leave untranslated, or are dropped.",
            ),
            (_, true) => (
                FindingSeverity::Warning,
                "Connections to Services that are idle for longer than that are forgotten, and then fail.",
            ),
            (_, false) => (FindingSeverity::Notice, "None, but for memory of the kernel."),
        };
        findings.push(sysctl(severity, key, *is, should, effect));
    }
    let values = [NodeState::CONNTRACK_COUNT, NodeState::CONNTRACK_MAX].map(|key| state.sysctls.get(key));
    if let [Some(count), Some(max)] = values
        && *max > 0
        && count.saturating_mul(10) > max.saturating_mul(9)
    {
        let summary = format!("conntrack holds {count} connections of at most {max}");
        let effect = "When it is full, the kernel drops new connections to any destination.";
        findings.push(
            CheckFinding::new(FindingSeverity::Warning, FindingKind::Sysctl, summary, effect)
                .with_next("conntrack -S (drop and early_drop), sysctl net.netfilter.nf_conntrack_max"),
        );
    }
    findings
}

fn other_programs(state: &NodeState) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    for text in &state.other_backend {
        findings.push(
            CheckFinding::new(
                FindingSeverity::Error,
                FindingKind::BothBackends,
                format!("the other back-end has rules too: {text}"),
                "Packets meet the rules of both back-ends; those of the other are of no objects known here, and may be old.",
            )
            .with_next("chainsmith cleanup --dry-run lists what kube-proxy and Chainsmith made"),
        );
    }
    for (text, removal) in &state.leftovers {
        findings.push(
            CheckFinding::new(
                FindingSeverity::Warning,
                FindingKind::Leftover,
                format!("another mode of kube-proxy left: {text}"),
                "It may answer for Services in place of the rules, with endpoints that are gone.",
            )
            .with_next(removal.clone().unwrap_or_else(|| "chainsmith cleanup --dry-run".to_owned())),
        );
    }
    if state.proxies.len() > 1 {
        findings.push(
            CheckFinding::new(
                FindingSeverity::Error,
                FindingKind::ConflictingProxy,
                format!(
                    "{} proxies run in this network namespace: {}",
                    state.proxies.len(),
                    state.proxies.join(", ")
                ),
                "They overwrite each other's rules; what packets meet depends on which wrote last.",
            )
            .with_next("stop all but one"),
        );
    }
    findings
}
