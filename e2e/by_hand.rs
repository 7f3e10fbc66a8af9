//! Rules for the cluster of [`crate::cluster`], written by hand in kube-proxy's shape. They test
//! the lab: its claims must pass on right rules before they judge Chainsmith.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use anyhow::Result;

use crate::cluster::{self, EMPTY, LOCAL, LOCAL_PODS, OWN, Service, WEB, WEB_PODS};
use crate::lab::address::{self, FAMILIES, Family};
use crate::lab::host::{Node, POD_PORT};
use crate::lab::netfilter::Backend;
use crate::lab::{Lab, PodNetwork};
use crate::traffic::{self, Claim};

const FILTER: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
";

const NAT: &str = "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
";

/// A mistake in rules: its name; the second text replaces the first in each line that has it (an empty
/// text removes the line); and the claim that must fail.
type Mistake = (&'static str, [&'static str; 2], Claim);

const MISTAKES: &[Mistake] = &[
    ("no rules", ["-A PREROUTING", ""], traffic::pods_keep_their_source_to_a_cluster_ip),
    ("uneven", ["0.33333333349", "0.6"], traffic::cluster_ip_spreads_over_all_nodes),
    (
        "masquerades pods",
        ["! -s 10.128.0.0/14", "-s 10.0.0.0/8"],
        traffic::pods_keep_their_source_to_a_cluster_ip,
    ),
    ("marks nothing", ["-A KUBE-MARK-MASQ -j MARK", ""], traffic::nodes_are_masqueraded_to_a_cluster_ip),
    ("masquerades nothing", ["-j MASQUERADE", ""], traffic::outside_is_masqueraded_to_a_cluster_ip),
    ("no node ports", ["-j KUBE-NODEPORTS", ""], traffic::node_port_is_served_by_every_node),
    ("no external IPs", ["-d 203.0.113.110", ""], traffic::load_balancer_and_external_ips_are_served),
    (
        "masquerades in spite of Local",
        ["LOCAL-TCP -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ", "LOCAL-TCP -j KUBE-MARK-MASQ"],
        traffic::local_policy_keeps_the_client,
    ),
    ("refuses instead of drops", ["-j DROP", "-j REJECT"], traffic::local_policy_keeps_the_client),
    ("Local binds pods", ["-s 10.128.0.0/14 -j", ""], traffic::local_policy_is_cluster_for_pods),
    ("no hairpin", ["-A KUBE-SEP-OWN-TCP-web-1 -s", ""], traffic::hairpin_works),
    (
        "drops instead of refuses",
        ["-j REJECT", "-j DROP"],
        traffic::without_endpoints_clients_are_rejected_at_once,
    ),
    (
        "marks all",
        ["-A PREROUTING", "-A PREROUTING -j KUBE-MARK-MASQ\n-A PREROUTING"],
        traffic::other_traffic_is_untouched,
    ),
];

/// The lab works, with routes and with vxlan, and right rules pass all claims.
pub fn the_lab_itself_passes_with_hand_written_rules(backend: Backend) {
    for network in [PodNetwork::Routes, PodNetwork::Vxlan] {
        let lab = cluster::plan(backend).pod_network(network).build().expect("a lab can be built");
        program(&lab, ["", ""]).expect("rules can be written");
        traffic::all(&lab);
    }
}

/// Wrong rules do not pass: for each mistake the claim that forbids it fails.
pub fn the_claims_detect_wrong_rules(backend: Backend) {
    thread::scope(|scope| {
        for (mistake, change, claim) in MISTAKES {
            scope.spawn(move || {
                let lab = cluster::build(backend).expect("a lab can be built");
                program(&lab, *change).expect("wrong rules can be written");
                let passed = catch_unwind(AssertUnwindSafe(|| claim(&lab))).is_ok();
                assert!(!passed, "no claim failed: {mistake}");
            });
        }
    });
}

/// Puts the rules into each node of `lab`, both families, with a mistake if `wrong` is not empty.
fn program(lab: &Lab, [right, wrong]: [&str; 2]) -> Result<()> {
    for node in lab.nodes() {
        for family in FAMILIES {
            let rules = ruleset(lab, node, family)?;
            let change = |line: &str| match () {
                () if right.is_empty() || !line.starts_with("-A") || !line.contains(right) => {
                    format!("{line}\n")
                }
                () if wrong.is_empty() => String::new(),
                () => line.replace(right, wrong) + "\n",
            };
            node.netfilter().restore(family, &rules.lines().map(change).collect::<String>())?;
        }
    }
    Ok(())
}

/// The rules of `node`, as input for `iptables-restore`.
fn ruleset(lab: &Lab, node: &Node, family: Family) -> Result<String> {
    let (mut filter, mut nat) = (FILTER.to_owned(), NAT.to_owned());
    for protocol in ["tcp", "udp"] {
        for (service, pods) in [(WEB, &WEB_PODS[..]), (LOCAL, &LOCAL_PODS), (OWN, &WEB_PODS[..1])] {
            served(&mut nat, &mut filter, &Port { lab, node, family, protocol, service, pods })?;
        }
        for (chain, matches) in frontends(EMPTY, family, protocol) {
            writeln!(filter, "-A {chain} {matches} -j REJECT")?;
        }
    }
    writeln!(nat, "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")?;
    Ok(format!("{filter}COMMIT\n{nat}COMMIT\n"))
}

/// A service port with endpoints, as one node sees it.
struct Port<'a> {
    lab: &'a Lab,
    node: &'a Node,
    family: Family,
    protocol: &'a str,
    service: Service,
    pods: &'a [&'a str],
}

/// Where connections for a service port arrive in the filter table, with their matches.
fn frontends(service: Service, family: Family, protocol: &str) -> [(&'static str, String); 4] {
    let to = |at: std::net::SocketAddr| format!("-d {} -p {protocol} --dport {}", at.ip(), at.port());
    let number = service.node_port_number();
    [
        ("KUBE-SERVICES", to(service.cluster_ip(family))),
        ("KUBE-EXTERNAL-SERVICES", to(service.load_balancer(family))),
        ("KUBE-EXTERNAL-SERVICES", to(service.external_ip(family))),
        ("KUBE-EXTERNAL-SERVICES", format!("-m addrtype --dst-type LOCAL -p {protocol} --dport {number}")),
    ]
}

/// The rules of one service port with endpoints.
fn served(nat: &mut String, filter: &mut String, port: &Port<'_>) -> Result<()> {
    let Port { lab, node, family, protocol, service, pods } = *port;
    let suffix = format!("{}-{protocol}", service.name).to_uppercase();
    let (svc, ext, svl) =
        (format!("KUBE-SVC-{suffix}"), format!("KUBE-EXT-{suffix}"), format!("KUBE-SVL-{suffix}"));
    let (cluster_cidr, _) = address::CLUSTER_CIDR.split_once(',').expect("a CIDR of each family");
    let cluster_cidr = if family == Family::V4 { cluster_cidr } else { "fd00:10:128::/48" };
    let is_local_policy = service.name == LOCAL.name;
    let local: Vec<&str> = pods.iter().copied().filter(|pod| lab.pod(pod).node() == node.number()).collect();

    writeln!(nat, ":{svc} - [0:0]\n:{ext} - [0:0]\n:{svl} - [0:0]")?;
    for pod in pods {
        let sep = format!("KUBE-SEP-{suffix}-{pod}");
        let address = lab.pod(pod).address().of(family);
        let to = std::net::SocketAddr::new(address, POD_PORT);
        writeln!(nat, ":{sep} - [0:0]\n-A {sep} -s {address} -j KUBE-MARK-MASQ")?;
        writeln!(nat, "-A {sep} -p {protocol} -j DNAT --to-destination {to}")?;
    }
    let [(_, cluster_ip), external @ .., node_port] = frontends(service, family, protocol);
    writeln!(nat, "-A KUBE-SERVICES {cluster_ip} -j {svc}")?;
    for (_, matches) in &external {
        writeln!(nat, "-A KUBE-SERVICES {matches} -j {ext}")?;
    }
    writeln!(nat, "-A KUBE-NODEPORTS -p {protocol} --dport {} -j {ext}", service.node_port_number())?;
    writeln!(nat, "-A {svc} ! -s {cluster_cidr} {cluster_ip} -j KUBE-MARK-MASQ")?;
    if is_local_policy {
        writeln!(nat, "-A {ext} -s {cluster_cidr} -j {svc}")?;
        writeln!(nat, "-A {ext} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ")?;
        writeln!(nat, "-A {ext} -m addrtype --src-type LOCAL -j {svc}")?;
        if local.is_empty() {
            for (chain, matches) in external.iter().chain([&node_port]) {
                writeln!(filter, "-A {chain} {matches} -j DROP")?;
            }
        } else {
            writeln!(nat, "-A {ext} -j {svl}")?;
        }
    } else {
        writeln!(nat, "-A {ext} -j KUBE-MARK-MASQ\n-A {ext} -j {svc}")?;
    }
    balance(nat, port, &svc, pods)?;
    balance(nat, port, &svl, &local)?;
    Ok(())
}

/// One jump per pod from `chain`, all with the same probability.
fn balance(nat: &mut String, port: &Port<'_>, chain: &str, pods: &[&str]) -> Result<()> {
    let suffix = format!("{}-{}", port.service.name, port.protocol).to_uppercase();
    for (pod, left) in pods.iter().zip((1..=pods.len()).rev()) {
        let share = match left {
            1 => "",
            2 => "-m statistic --mode random --probability 0.5 ",
            3 => "-m statistic --mode random --probability 0.33333333349 ",
            _ => unreachable!("no Service here has more than three pods"),
        };
        writeln!(nat, "-A {chain} {share}-j KUBE-SEP-{suffix}-{pod}")?;
    }
    Ok(())
}
