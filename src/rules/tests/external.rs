//! Traffic from outside: external IPs, load balancers, source ranges, policies.

use super::*;

const LB: &str = "type: LoadBalancer, ports: [{port: 80}]";
const REJECT: &str = "-j REJECT --reject-with icmp-port-unreachable";
const TAIL: &str = "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";

/// 28: so traffic to it passes by the source ranges.
#[test]
fn an_external_ip_comes_before_the_same_load_balancer_ip() {
    let case = service(&format!("{LB}, externalIPs: [1.2.3.4], loadBalancerSourceRanges: [203.0.113.0/25]"))
        .with_ingress("{ip: 1.2.3.4}")
        .with_endpoints("10.180.0.1");
    case.check(
        Table::Nat,
        "KUBE-SERVICES",
        &[
            "-d 172.30.0.1/32 -p tcp -m tcp --dport 80 -j SVC",
            "-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j EXT",
            "-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j FW",
            TAIL,
        ],
    );
    case.check(Table::Filter, "KUBE-PROXY-FIREWALL", &["-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j DROP"]);
}

/// 26, 27.
#[test]
fn an_address_listed_twice_has_its_rules_twice() {
    let case = service(LB).with_ingress("{ip: 1.2.3.4}, {ip: 1.2.3.4}").with_endpoints("10.180.0.1");
    let lb = "-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j EXT";
    case.check(
        Table::Nat,
        "KUBE-SERVICES",
        &["-d 172.30.0.1/32 -p tcp -m tcp --dport 80 -j SVC", lb, lb, TAIL],
    );
    let refused = service(LB).with_ingress("{ip: 1.2.3.4}, {ip: 1.2.3.4}");
    let reject = format!("-d 1.2.3.4/32 -p tcp -m tcp --dport 80 {REJECT}");
    refused.check(Table::Filter, "KUBE-EXTERNAL-SERVICES", &[&reject, &reject]);
}

/// 30.
#[test]
fn without_the_gate_external_ips_lead_nowhere() {
    let config = format!("{CLUSTER_CIDR}featureGates: {{AllowServiceExternalIPs: false}}\n");
    let case = service("externalIPs: [1.2.3.4], ports: [{port: 80}]")
        .with_endpoints("10.180.0.1")
        .with_config(&config);
    case.check_chains("EXT SEP SVC");
    case.check(Table::Nat, "KUBE-SERVICES", &["-d 172.30.0.1/32 -p tcp -m tcp --dport 80 -j SVC", TAIL]);
    let refused = service("externalIPs: [1.2.3.4], ports: [{port: 80}]").with_config(&config);
    refused.check(Table::Filter, "KUBE-EXTERNAL-SERVICES", &[]);
}

/// 86, 87, 141: and masquerade-all changes none of it.
#[test]
fn outside_traffic_is_masqueraded_under_policy_cluster() {
    for config in
        [CLUSTER_CIDR.to_owned(), String::new(), format!("{CLUSTER_CIDR}iptables: {{masqueradeAll: true}}\n")]
    {
        let case =
            service("type: NodePort, ports: [{port: 80, nodePort: 30080}]").with_endpoints("10.180.0.1");
        case.with_config(&config).check(Table::Nat, "EXT", &["-j KUBE-MARK-MASQ", "-j SVC"]);
    }
}

const LOCAL: &str = "type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]";
const FROM_NODE: [&str; 2] =
    ["-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ", "-m addrtype --src-type LOCAL -j SVC"];

/// 77, 86.
#[test]
fn under_policy_local_pods_and_the_node_reach_every_endpoint() {
    let case = service(LOCAL).with_endpoints("10.180.0.1@node-a 10.180.1.1@node-b");
    case.check(Table::Nat, "EXT", &["-s 10.180.0.0/16 -j SVC", FROM_NODE[0], FROM_NODE[1], "-j SVL"]);
    case.check_chains("EXT SEP SEP SVC SVL");
    let without_detector = service(LOCAL).with_endpoints("10.180.0.1@node-a").with_config("");
    without_detector.check(Table::Nat, "EXT", &[FROM_NODE[0], FROM_NODE[1], "-j SVL"]);
}

/// 78.
#[test]
fn under_policy_local_a_node_without_endpoints_drops_traffic_from_outside() {
    let case = service(&format!("{LOCAL}, externalIPs: [1.2.3.4]")).with_endpoints("10.180.1.1@node-b");
    case.check(Table::Nat, "EXT", &["-s 10.180.0.0/16 -j SVC", FROM_NODE[0], FROM_NODE[1]]);
    case.check_chains("EXT SEP SVC");
    case.check(
        Table::Filter,
        "KUBE-EXTERNAL-SERVICES",
        &[
            "-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j DROP",
            "-p tcp -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j DROP",
        ],
    );
    case.check(Table::Filter, "KUBE-SERVICES", &[]);
}

/// 79, 121: the health check's port is open all the same, once for each port.
#[test]
fn under_policy_local_a_service_without_endpoints_is_a_reject() {
    let spec = "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32000, \
                ports: [{name: a, port: 80}, {name: b, port: 81, protocol: UDP}]";
    let case = service(spec).with_ingress("{ip: 1.2.3.4}");
    case.check_chains("");
    case.check(
        Table::Filter,
        "KUBE-EXTERNAL-SERVICES",
        &[
            &format!("-d 1.2.3.4/32 -p tcp -m tcp --dport 80 {REJECT}"),
            &format!("-d 1.2.3.4/32 -p udp -m udp --dport 81 {REJECT}"),
        ],
    );
    let health = "-p tcp -m tcp --dport 32000 -j ACCEPT";
    case.check(Table::Filter, "KUBE-NODEPORTS", &[health, health]);
}

/// 111, 113, 114, 118, 119.
#[test]
fn source_ranges_accept_the_listed_networks_and_the_node_itself() {
    let spec = |ranges: &str| format!("{LB}, loadBalancerSourceRanges: [{ranges}]");
    let firewall = |ranges: &str, expected: &[&str]| {
        let case =
            service(&spec(ranges)).with_ingress("{ip: 1.2.3.4}, {ip: 1.2.3.5}").with_endpoints("10.180.0.1");
        case.check(Table::Nat, "FW", expected);
        case.check(
            Table::Filter,
            "KUBE-PROXY-FIREWALL",
            &[
                "-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j DROP",
                "-d 1.2.3.5/32 -p tcp -m tcp --dport 80 -j DROP",
            ],
        );
    };
    let (first, node) = ("-s 203.0.113.0/25 -j EXT", "-s 192.168.0.0/24 -j EXT");
    let vips = ["-s 1.2.3.4/32 -j EXT", "-s 1.2.3.5/32 -j EXT"];
    firewall("' 203.0.113.7/25 '", &[first, ""]);
    firewall("203.0.113.0/25, 192.168.0.0/24", &[first, node, vips[0], vips[1], ""]);
    firewall("1.2.3.0/24", &["-s 1.2.3.0/24 -j EXT", ""]);
}

/// 109, 112, 116, 117.
#[test]
fn without_addresses_endpoints_or_ranges_there_is_no_firewall() {
    let ranges = "loadBalancerSourceRanges: [203.0.113.0/25]";
    let chains = |case: Case, expected: &str| {
        case.check_chains(expected);
        case.check(Table::Filter, "KUBE-PROXY-FIREWALL", &[]);
    };
    chains(service(&format!("{LB}, {ranges}")).with_endpoints("10.180.0.1"), "SEP SVC");
    let proxied = service(&format!("{LB}, {ranges}")).with_ingress("{ip: 1.2.3.4, ipMode: Proxy}");
    chains(proxied.with_endpoints("10.180.0.1"), "SEP SVC");
    chains(service(&format!("{LB}, {ranges}")).with_ingress("{ip: 1.2.3.4}"), "");
    let open = service(&format!("{LB}, loadBalancerSourceRanges: [203.0.113.0/25, 0.0.0.0/0]"));
    chains(open.with_ingress("{ip: 1.2.3.4}").with_endpoints("10.180.0.1"), "EXT SEP SVC");
    let other_family = service(&format!("{LB}, loadBalancerSourceRanges: ['2001:db8::/32']"));
    chains(other_family.with_ingress("{ip: 1.2.3.4}").with_endpoints("10.180.0.1"), "EXT SEP SVC");
}

/// 115.
#[test]
fn a_node_of_unknown_address_counts_as_127_0_0_1() {
    let case = service(&format!("{LB}, loadBalancerSourceRanges: [127.0.0.0/8]"))
        .with_ingress("{ip: 1.2.3.4}")
        .with_endpoints("10.180.0.1");
    case.check(Table::Nat, "FW", &["-s 127.0.0.0/8 -j EXT", ""]);
    case.without_node().check(Table::Nat, "FW", &["-s 127.0.0.0/8 -j EXT", "-s 1.2.3.4/32 -j EXT", ""]);
}

/// 85.
#[test]
fn both_policies_local_with_remote_endpoints_only_drop_everywhere() {
    let spec = format!(
        "{LB}, internalTrafficPolicy: Local, externalTrafficPolicy: Local, loadBalancerSourceRanges: [203.0.113.0/25]"
    );
    let case = service(&spec).with_ingress("{ip: 1.2.3.4}").with_endpoints("10.180.1.1@node-b");
    case.check_chains("EXT FW SEP SVC");
    case.check(Table::Filter, "KUBE-SERVICES", &["-d 172.30.0.1/32 -p tcp -m tcp --dport 80 -j DROP"]);
    let drop = "-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j DROP";
    case.check(Table::Filter, "KUBE-EXTERNAL-SERVICES", &[drop]).check(
        Table::Filter,
        "KUBE-PROXY-FIREWALL",
        &[drop],
    );
    case.check(Table::Nat, "KUBE-SERVICES", &["-d 1.2.3.4/32 -p tcp -m tcp --dport 80 -j FW", TAIL]);
    case.check(Table::Nat, "SVC", &["-j SEP"]);
}
