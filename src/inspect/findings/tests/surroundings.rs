//! What is beside the rules: configuration, sysctls, other programs.

use super::*;

fn healthy() -> NodeState {
    let sysctls = [
        (NodeState::ROUTE_LOCALNET, 1),
        (NodeState::FORWARD_V4, 1),
        (NodeState::FORWARD_V6, 1),
        (NodeState::BRIDGE_V4, 1),
        (NodeState::BRIDGE_V6, 1),
        (NodeState::CONNTRACK_MAX, 131_072),
        (NodeState::CONNTRACK_COUNT, 100),
        ("net/netfilter/nf_conntrack_tcp_timeout_established", 86_400),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", 3_600),
    ];
    NodeState {
        sysctls: sysctls.map(|(key, value)| (key.to_owned(), value)).into(),
        conntrack: NodeState::desired_conntrack(&Config::default().conntrack, 4),
        bridges: vec!["cni0".to_owned()],
        proxies: vec!["process 7 (kube-proxy)".to_owned()],
        ..NodeState::default()
    }
}

#[track_caller]
fn found(family: IpFamily, spoil: impl FnOnce(&mut NodeState)) -> CheckFinding {
    let mut node = Spoiled::new(family, LayoutChoice::Classic);
    let mut state = healthy();
    spoil(&mut state);
    node.state = Some(state);
    node.only()
}

#[test]
fn a_healthy_state_has_no_finding() {
    everywhere(|mut node| {
        node.state = Some(healthy());
        assert_eq!(node.check().findings, []);
    });
}

#[test]
fn each_wrong_sysctl_is_found() {
    let check = |family, key: &str, value: i64, severity, effect: &str| {
        let finding = found(family, |state| state.sysctls.extend([(key.to_owned(), value)]));
        assert_eq!((finding.kind, finding.severity), (FindingKind::Sysctl, severity), "{finding:#?}");
        assert!(finding.effect.contains(effect), "{effect:?}: {finding:#?}");
        assert!(finding.summary.contains(&key.replace('/', ".")) || key.ends_with("count"), "{finding:#?}");
    };
    use FindingSeverity::{Error, Notice, Warning};
    let (v4, v6) = (IpFamily::V4, IpFamily::V6);
    check(v4, NodeState::ROUTE_LOCALNET, 0, Error, "do not answer on 127.0.0.1");
    check(v4, NodeState::FORWARD_V4, 0, Error, "forwards nothing");
    check(v6, NodeState::FORWARD_V6, 0, Error, "forwards nothing");
    check(v4, NodeState::BRIDGE_V4, 0, Error, "bridge cni0");
    check(v6, NodeState::BRIDGE_V6, 0, Error, "bridge cni0");
    check(v4, NodeState::CONNTRACK_MAX, 65_536, Warning, "drops new ones");
    check(v4, NodeState::CONNTRACK_MAX, 262_144, Notice, "None");
    check(v4, NodeState::CONNTRACK_COUNT, 130_000, Warning, "When it is full");
    check(v4, "net/netfilter/nf_conntrack_tcp_timeout_established", 600, Warning, "idle for longer");
}

#[test]
fn a_bridge_without_pods_needs_no_sysctl() {
    let mut node = Spoiled::new(IpFamily::V4, LayoutChoice::Classic);
    let mut state = healthy();
    state.sysctls.remove(NodeState::BRIDGE_V4);
    state.bridges = vec!["docker0".to_owned(), "eth0".to_owned()];
    node.state = Some(state);
    assert_eq!(node.check().findings, []);
    let module = found(IpFamily::V4, |state| state.sysctls.retain(|key, _| key != NodeState::BRIDGE_V4));
    assert!(module.summary.contains("br_netfilter is not loaded"), "{module:#?}");
}

#[test]
fn other_programs_are_found() {
    let text = "IPv4 nat of iptables-legacy: 7 chains, 3 jumps to them";
    let both = found(IpFamily::V4, |state| state.other_backend.push(text.to_owned()));
    assert_eq!((both.kind, both.severity), (FindingKind::BothBackends, FindingSeverity::Error));
    let removal = Some("ip link delete kube-ipvs0".to_owned());
    let device = ("interface kube-ipvs0 of ipvs mode".to_owned(), removal.clone());
    let leftover = found(IpFamily::V4, |state| state.leftovers.push(device));
    assert_eq!((leftover.kind, Some(leftover.next)), (FindingKind::Leftover, removal));
    let second = found(IpFamily::V4, |state| state.proxies.push("process 9 (chainsmith)".to_owned()));
    assert_eq!(second.kind, FindingKind::ConflictingProxy);
    assert!(second.summary.contains("process 9 (chainsmith)"), "{second:#?}");
}

#[test]
fn another_configuration_is_one_finding() {
    everywhere(|mut node| {
        node.flags = vec![("cluster-cidr", "10.200.0.0/16,fd00:10:200::/48")];
        let finding = node.only();
        assert_eq!((finding.kind, finding.severity), (FindingKind::Configuration, FindingSeverity::Warning));
        assert!(finding.summary.contains("by the source"), "{finding:#?}");
        node.flags = vec![("cluster-cidr", CLUSTER_CIDR), ("iptables-masquerade-bit", "13")];
        let finding = node.only();
        assert!(finding.summary.contains("0x4000, the configuration with 0x2000"), "{finding:#?}");
    });
}

/// An agent that could not set the sysctl leaves out the rules for 127.0.0.1, and says so.
#[test]
fn rules_without_localhost_node_ports_are_right_where_the_sysctl_cannot_be_set() {
    let flags = vec![("cluster-cidr", CLUSTER_CIDR)];
    let mut made = cluster(&flags);
    made.settings.v4.localhost_node_ports = false;
    let mut node =
        Spoiled { rules: made.ruleset(IpFamily::V4), ..Spoiled::new(IpFamily::V4, LayoutChoice::Classic) };
    let mut state = healthy();
    state.sysctls.insert(NodeState::ROUTE_LOCALNET.to_owned(), 0);
    node.state = Some(state);
    let finding = node.only();
    assert_eq!((finding.kind, finding.severity), (FindingKind::Sysctl, FindingSeverity::Warning));
}

#[test]
fn without_the_bpf_match_compact_is_told_so() {
    let flags = vec![("cluster-cidr", CLUSTER_CIDR)];
    let mut made = cluster(&flags);
    (made.settings.v4.layout, made.settings.v4.bpf) = (LayoutChoice::Compact, false);
    let node =
        Spoiled { rules: made.ruleset(IpFamily::V4), ..Spoiled::new(IpFamily::V4, LayoutChoice::Classic) };
    let finding = node.only();
    assert_eq!((finding.kind, finding.severity), (FindingKind::MatchUnsupported, FindingSeverity::Notice));
    assert_eq!(node.check().families[0].layout, "compact without the bpf match");
}
