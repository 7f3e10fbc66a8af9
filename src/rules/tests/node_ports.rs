//! Node ports: the addresses on which they answer, and the rules for their packets.

use super::*;

const NODE_PORT: &str = "type: NodePort, ports: [{port: 80, nodePort: 30080}]";
const LOCALHOST: &str =
    "-d 127.0.0.0/8 -p tcp -m tcp --dport 30080 -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j EXT";
const PLAIN: &str = "-p tcp -m tcp --dport 30080 -j EXT";
const MARTIANS: &str =
    "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";

fn with(config: &str) -> Case {
    Case::new().with_config(&format!("{CLUSTER_CIDR}{config}\n"))
}

/// Checks the rules that lead to the node ports, and whether they answer on 127.0.0.1.
#[track_caller]
fn check(case: &Case, family: IpFamily, tail: &[&str], on_localhost: bool) {
    case.check_in(family, Table::Nat, "KUBE-SERVICES", tail);
    let martians: &[&str] = if on_localhost { &[MARTIANS] } else { &[] };
    case.check_in(family, Table::Filter, "KUBE-FIREWALL", martians);
}

const ALL: &str = "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";
const NOT_V4_LOOPBACK: &str = "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";
const NOT_V6_LOOPBACK: &str = "! -d ::1/128 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";

/// 127, 128, 137.
#[test]
fn by_default_they_answer_on_every_address() {
    check(&Case::new(), IpFamily::V4, &[ALL], true);
    check(&Case::new(), IpFamily::V6, &[NOT_V6_LOOPBACK], false);
    check(&with("iptables: {localhostNodePorts: false}"), IpFamily::V4, &[NOT_V4_LOOPBACK], false);
    Case::new().check(Table::Nat, "KUBE-NODEPORTS", &[]);
}

/// 129, 135.
#[test]
fn primary_is_the_nodes_address() {
    let case = with("nodePortAddresses: [primary]");
    check(&case, IpFamily::V4, &["-d 192.168.0.2/32 -j KUBE-NODEPORTS"], false);
    check(&case, IpFamily::V6, &["-d 2001:db8::2/128 -j KUBE-NODEPORTS"], false);
    check(&case.without_node(), IpFamily::V4, &[ALL], true);
}

/// 130 to 134.
#[test]
fn networks_select_addresses_of_the_interfaces() {
    let loopback = "-d 127.0.0.1/32 -j KUBE-NODEPORTS";
    let first = "-d 192.168.0.2/32 -j KUBE-NODEPORTS";
    let case = with("nodePortAddresses: [192.168.0.0/16, 127.0.0.0/8]");
    check(&case, IpFamily::V4, &[loopback, first], true);
    check(&case, IpFamily::V6, &[NOT_V6_LOOPBACK], false);
    let closed =
        with("nodePortAddresses: [192.168.0.0/16, 127.0.0.0/8]\niptables: {localhostNodePorts: false}");
    check(&closed, IpFamily::V4, &[first], false);
    check(&with("nodePortAddresses: [10.99.0.0/16]"), IpFamily::V4, &[], false);
    check(&with("nodePortAddresses: ['2001:db8::/32']"), IpFamily::V4, &[ALL], true);
    check(&with("nodePortAddresses: [64.0.0.0/2]"), IpFamily::V4, &[loopback], true);
    check(&with("nodePortAddresses: [10.99.0.0/16, 0.0.0.0/0]"), IpFamily::V4, &[ALL], true);
}

/// 136.
#[test]
fn in_ipv6_loopback_is_excluded() {
    let case = with("nodePortAddresses: ['::1/128', '2001:db8::/32']");
    check(&case, IpFamily::V6, &["-d 2001:db8::2/128 -j KUBE-NODEPORTS"], false);
    check(&with("nodePortAddresses: ['::1/128']"), IpFamily::V6, &[], false);
}

/// 127, 177.
#[test]
fn connections_on_localhost_are_counted_if_the_counter_exists() {
    let case = || service(NODE_PORT).with_endpoints("10.180.0.1");
    case().check(Table::Nat, "KUBE-NODEPORTS", &[LOCALHOST, PLAIN]);
    let primary = format!("{CLUSTER_CIDR}nodePortAddresses: [primary]\n");
    case().with_config(&primary).check(Table::Nat, "KUBE-NODEPORTS", &[PLAIN]);
    let mut without_counters = case();
    without_counters.host = format!("{HOST}kernel: {{nfacct: false}}\n");
    without_counters.check(Table::Nat, "KUBE-NODEPORTS", &[PLAIN]);
    without_counters.check(Table::Filter, "KUBE-FIREWALL", &[MARTIANS]);
}

/// 138: whatever addresses they answer on.
#[test]
fn without_endpoints_they_are_rejected_on_every_address_of_the_node() {
    let config = format!("{CLUSTER_CIDR}nodePortAddresses: [10.99.0.0/16]\n");
    for case in [service(NODE_PORT), service(NODE_PORT).with_config(&config)] {
        case.check(Table::Nat, "KUBE-NODEPORTS", &[]);
        case.check(Table::Filter, "KUBE-EXTERNAL-SERVICES", &[
            "-p tcp -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j REJECT --reject-with icmp-port-unreachable",
        ]);
    }
}

/// 139.
#[test]
fn one_number_serves_two_protocols() {
    let spec = "type: NodePort, ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 80, nodePort: 30080, protocol: UDP}]";
    service(spec).check(Table::Filter, "KUBE-EXTERNAL-SERVICES", &[
        "-p tcp -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j REJECT --reject-with icmp-port-unreachable",
        "-p udp -m addrtype --dst-type LOCAL -m udp --dport 30080 -j REJECT --reject-with icmp-port-unreachable",
    ]);
}

/// 12.
#[test]
fn the_type_of_the_service_does_not_matter() {
    let case = service("type: ClusterIP, ports: [{port: 80, nodePort: 30080}]").with_endpoints("10.180.0.1");
    case.check(Table::Nat, "KUBE-NODEPORTS", &[LOCALHOST, PLAIN]);
}
