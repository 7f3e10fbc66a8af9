//! F. Load balancers, source ranges, ipMode.

use crate::lab::*;

const PODS: [&str; 2] = ["10.180.1.5@node-1", "10.180.2.7@node-2"];
const ALL: &str = "masqueraded 10.180.1.5:80, 10.180.2.7:80";
const SPEC: &str = "type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{name: p, port: 80, nodePort: 30080}]";

fn balanced(more: &str, ingress: &[&str]) -> Lab {
    lab([service("default/web", &format!("{SPEC}, {more}"), ingress), pods(&PODS)])
}

fn ranged(ranges: &str) -> Lab {
    balanced(&format!("loadBalancerSourceRanges: [{ranges}]"), &["203.0.113.90"])
}

/// Case 109.
#[test]
fn an_address_in_proxy_mode_is_left_to_the_load_balancer() {
    let proxied = "{ip: 203.0.113.90, ipMode: Proxy}";
    let lab = balanced("", &[proxied, "203.0.113.91"]);
    lab.check(&[
        ("outside -> 203.0.113.90:80", "untouched"),
        ("outside -> 203.0.113.91:80", ALL),
        ("outside -> 192.0.2.1:30080", ALL),
    ]);
    assert!(!lab.save(V4).contains("203.0.113.90"));
    let alone = balanced("loadBalancerSourceRanges: [10.0.0.0/8]", &[proxied]);
    assert_eq!(alone.chains(V4, "KUBE-FW-"), [""; 0]);
}

/// Case 110.
#[test]
fn a_load_balancer_with_a_host_name_only_has_no_address() {
    let lab = balanced("", &["{hostname: lb.example.org}"]);
    assert_eq!(lab.read().1, [""; 0]);
    assert!(!lab.save(V4).contains("loadbalancer IP"));
}

/// Case 111.
#[test]
fn ranges_are_trimmed_and_masked() {
    let lab = ranged("' 203.0.113.7/25 '");
    lab.check(&[("203.0.113.1 -> 203.0.113.90:80", ALL), ("203.0.113.200 -> 203.0.113.90:80", "dropped")]);
    assert!(lab.nat(&fw())[0].starts_with("-s 203.0.113.0/25 "));
}

/// Case 112.
#[test]
fn an_invalid_range_is_ignored() {
    let some = ranged("bad, 198.51.100.0/24");
    some.check_problem("spec.loadBalancerSourceRanges[0]: \"bad\"");
    some.check(&[("outside -> 203.0.113.90:80", ALL), ("192.0.2.77 -> 203.0.113.90:80", "dropped")]);
    let none = ranged("bad");
    none.check(&[("192.0.2.77 -> 203.0.113.90:80", ALL)]);
    assert_eq!(none.chains(V4, "KUBE-FW-"), [""; 0]);
}

/// Case 113.
#[test]
fn a_range_with_the_node_allows_the_load_balancers_own_address() {
    let lab = ranged("192.0.2.0/24");
    lab.check(&[
        ("node -> 203.0.113.90:80", ALL),
        ("203.0.113.90%eth0 -> 203.0.113.90:80", ALL),
        ("outside -> 203.0.113.90:80", "dropped"),
    ]);
    let comment = "-m comment --comment \"default/web:p loadbalancer IP\"";
    assert_eq!(
        lab.nat(&fw()),
        [
            format!("-s 192.0.2.0/24 {comment} -j {}", ext()),
            format!("-s 203.0.113.90/32 {comment} -j {}", ext()),
            "-m comment --comment \"other traffic to default/web:p will be dropped by KUBE-PROXY-FIREWALL\""
                .to_owned(),
        ]
    );
    assert_eq!(
        lab.filter("KUBE-PROXY-FIREWALL"),
        [format!(
            "-d 203.0.113.90/32 -p tcp -m comment --comment \"default/web:p traffic not accepted by {}\" \
             -m tcp --dport 80 -j DROP",
            fw()
        )]
    );
}

/// Case 114.
#[test]
fn a_range_with_the_load_balancer_adds_nothing() {
    let lab = ranged("203.0.113.0/24");
    lab.check(&[("203.0.113.90%eth0 -> 203.0.113.90:80", ALL), ("node -> 203.0.113.90:80", "dropped")]);
    assert_eq!(lab.nat(&fw()).len(), 2);
}

/// Case 115.
#[test]
fn a_node_with_an_unknown_address_counts_as_localhost() {
    let lab = ranged("127.0.0.0/8");
    assert_eq!(lab.nat(&fw()).len(), 2);
    assert_eq!(lab.on("").nat(&fw()).len(), 3);
}

/// Case 116.
#[test]
fn ranges_without_a_load_balancer_address_restrict_nothing() {
    for kind in ["ClusterIP", "NodePort"] {
        let spec = SPEC.replace("LoadBalancer", kind);
        let spec = format!("{spec}, loadBalancerSourceRanges: [10.0.0.0/8]");
        let lab = lab([service("default/web", &spec, &[]), pods(&PODS)]);
        lab.check(&[("outside -> 192.0.2.1:30080", ALL)]);
        assert_eq!(lab.chains(V4, "KUBE-FW-"), [""; 0]);
    }
}

/// Case 117.
#[test]
fn without_endpoints_ranges_write_no_firewall() {
    let spec = format!("{SPEC}, loadBalancerSourceRanges: [10.0.0.0/8]");
    let lab = lab([service("default/web", &spec, &["203.0.113.90"])]);
    lab.check(&[("outside -> 203.0.113.90:80", "rejected"), ("10.1.1.1 -> 203.0.113.90:80", "rejected")]);
    assert_eq!((lab.chains(V4, "KUBE-FW-").len(), lab.filter("KUBE-PROXY-FIREWALL").len()), (0, 0));
    assert_eq!(lab.filter("KUBE-EXTERNAL-SERVICES").len(), 2, "the address and the node port");
}

/// Case 118.
#[test]
fn ranges_restrict_neither_node_ports_nor_external_ips() {
    let lab = lab([open("loadBalancerSourceRanges: [10.0.0.0/8]"), pods(&PODS)]);
    lab.check(&[
        ("outside -> 203.0.113.80:80", ALL),
        ("outside -> 192.0.2.1:30080", ALL),
        ("outside -> 203.0.113.90:80", "dropped"),
    ]);
}

/// Case 119.
#[test]
fn two_addresses_and_two_ranges_share_one_firewall_chain() {
    let lab =
        balanced("loadBalancerSourceRanges: [10.0.0.0/8, 192.0.2.0/24]", &["203.0.113.90", "203.0.113.91"]);
    let sources: Vec<String> = lab
        .nat(&fw())
        .iter()
        .filter_map(|rule| Some(rule.strip_prefix("-s ")?.split(' ').next()?.to_owned()))
        .collect();
    assert_eq!(sources, ["10.0.0.0/8", "192.0.2.0/24", "203.0.113.90/32", "203.0.113.91/32"]);
    assert_eq!((lab.nat(&fw()).len(), lab.filter("KUBE-PROXY-FIREWALL").len()), (5, 2));
    for to in ["203.0.113.90:80", "203.0.113.91:80"] {
        lab.check(&[(&format!("outside -> {to}"), "dropped"), (&format!("10.1.1.1 -> {to}"), ALL)]);
    }
}

/// Case 120.
#[test]
fn a_pod_outside_of_all_ranges_is_dropped() {
    ranged("198.51.100.0/24").check(&[("pod -> 203.0.113.90:80", "dropped")]);
}

/// Case 121.
#[test]
fn health_checks_are_allowed_once_for_each_port() {
    let spec = "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30999, clusterIP: 10.96.0.10, \
                ports: [{name: p, port: 80}, {name: q, port: 81, protocol: UDP}]";
    let lab = lab([service("default/web", spec, &[])]).beside("*filter\n:INPUT DROP [0:0]\nCOMMIT\n");
    let rule = |port| {
        format!(
            "-p tcp -m comment --comment \"default/web:{port} health check node port\" -m tcp --dport 30999 -j ACCEPT"
        )
    };
    assert_eq!(lab.filter("KUBE-NODEPORTS"), [rule("p"), rule("q")]);
    lab.check(&[("outside -> 192.0.2.1:30999", "untouched"), ("outside -> 192.0.2.1:30998", "dropped")]);
}

/// Case 122.
#[test]
fn a_missing_health_check_port_is_a_problem_and_no_rule() {
    let lab = balanced("externalTrafficPolicy: Local", &[]);
    lab.check_problem("spec.healthCheckNodePort is absent");
    assert_eq!(lab.filter("KUBE-NODEPORTS"), [""; 0]);
}

/// Case 123.
#[test]
fn a_health_check_port_is_used_only_for_a_load_balancer_with_policy_local() {
    let cluster = balanced("healthCheckNodePort: 30999", &[]);
    let spec = SPEC.replace("LoadBalancer", "NodePort");
    let spec = format!("{spec}, externalTrafficPolicy: Local, healthCheckNodePort: 30999");
    let node_port = lab([service("default/web", &spec, &[]), pods(&PODS)]);
    for lab in [cluster, node_port] {
        assert_eq!(lab.filter("KUBE-NODEPORTS"), [""; 0]);
    }
}
