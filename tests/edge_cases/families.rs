//! B. Dual stack and families.

use crate::lab::*;

const V4_POD: [&str; 1] = ["10.180.1.5@node-1"];
const V6_POD: [&str; 1] = ["fd00:10:180:1::5@node-1"];

fn dual(more: &str, ingress: &[&str]) -> String {
    let spec = "ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:10:96::10'], \
                ipFamilies: [IPv4, IPv6], ports: [{name: p, port: 80, nodePort: 30080}]";
    service("default/web", &format!("{spec}, {more}"), ingress)
}

fn v6_pods() -> String {
    slice("default/web", "six", "{name: p, port: 80}", &V6_POD)
}

/// Case 33.
#[test]
fn a_service_of_one_family_has_no_rules_in_the_other() {
    let lab = lab([
        web("type: NodePort").replace("port: 80}", "port: 80, nodePort: 30080}"),
        pods(&V4_POD),
        v6_pods(),
    ]);
    lab.check(&[("outside -> [2001:db8::1]:30080", "untouched")]);
    lab.check_no_rules(V6);
}

/// Case 34.
#[test]
fn a_family_without_endpoints_rejects() {
    let lab = lab([dual("type: NodePort", &[]), pods(&V4_POD)]);
    lab.check(&[
        ("pod -> 10.96.0.10:80", "10.180.1.5:80"),
        ("pod -> [fd00:10:96::10]:80", "rejected"),
        ("outside -> [2001:db8::1]:30080", "rejected"),
    ]);
    assert!(lab.save(V6).contains("--reject-with icmp6-port-unreachable"));
}

/// Case 35.
#[test]
fn cluster_ips_are_in_the_order_of_the_families() {
    let spec = "clusterIP: 'fd00:10:96::10', clusterIPs: ['fd00:10:96::10', 10.96.0.10], \
                ipFamilies: [IPv6, IPv4], ports: [{name: p, port: 80}]";
    let lab = lab([service("default/web", spec, &[]), pods(&V4_POD), v6_pods()]);
    lab.check(&[
        ("pod -> 10.96.0.10:80", "10.180.1.5:80"),
        ("pod -> [fd00:10:96::10]:80", "[fd00:10:180:1::5]:80"),
    ]);
}

/// Case 36.
#[test]
fn a_family_without_a_cluster_ip_is_not_served() {
    let spec = "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4, IPv6], ports: [{name: p, port: 80}]";
    let lab = lab([service("default/web", spec, &[]), pods(&V4_POD), v6_pods()]);
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.1.5:80")]);
    lab.check_no_rules(V6);
}

/// Case 37.
#[test]
fn without_families_the_cluster_ip_decides_the_family() {
    let object = serde_json::from_value(serde_json::json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "fd00:10:96::10", "ports": [{"port": 80}]},
    }))
    .unwrap();
    let service = chainsmith::model::decode::service(&object, &mut Default::default()).value().unwrap();
    assert_eq!((service.ports_in(V4).count(), service.ports_in(V6).count()), (0, 1));
}

/// Case 38.
#[test]
fn external_ips_are_served_in_their_own_family() {
    let lab = lab([dual("externalIPs: [203.0.113.80, '2001:db8::80']", &[]), pods(&V4_POD), v6_pods()]);
    assert_eq!(lab.read().1, [""; 0]);
    lab.check(&[
        ("outside -> 203.0.113.80:80", "masqueraded 10.180.1.5:80"),
        ("outside -> [2001:db8::80]:80", "masqueraded [fd00:10:180:1::5]:80"),
    ]);
    assert!(!lab.save(V4).contains("2001:db8::80") && !lab.save(V6).contains("203.0.113.80"));
}

/// Case 39.
#[test]
fn load_balancer_addresses_of_a_family_the_service_lacks_are_ignored() {
    let spec = "type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{name: p, port: 80}]";
    let lab = lab([service("default/web", spec, &["203.0.113.90", "2001:db8::90"]), pods(&V4_POD)]);
    assert_eq!(lab.read().1, [""; 0]);
    lab.check(&[("outside -> 203.0.113.90:80", "masqueraded 10.180.1.5:80")]);
    lab.check_no_rules(V6);
}

/// Case 40.
#[test]
fn source_ranges_of_only_the_other_family_allow_all_sources() {
    let lab = lab([open("loadBalancerSourceRanges: ['2001:db8::/32']"), pods(&V4_POD)]);
    lab.check(&[("outside -> 203.0.113.90:80", "masqueraded 10.180.1.5:80")]);
    assert_eq!(lab.chains(V4, "KUBE-FW-"), [""; 0]);
}

/// Case 41.
#[test]
fn all_sources_in_one_family_are_not_all_sources_in_the_other() {
    let lab = lab([open("loadBalancerSourceRanges: [10.0.0.0/8, '::/0']"), pods(&V4_POD)]);
    lab.check(&[
        ("10.1.2.3 -> 203.0.113.90:80", "masqueraded 10.180.1.5:80"),
        ("outside -> 203.0.113.90:80", "dropped"),
    ]);
}

/// Case 42.
#[test]
fn a_range_of_all_addresses_needs_no_firewall() {
    let lab = lab([open("loadBalancerSourceRanges: [10.0.0.0/8, 0.0.0.0/0]"), pods(&V4_POD)]);
    lab.check(&[("outside -> 203.0.113.90:80", "masqueraded 10.180.1.5:80")]);
    assert_eq!(lab.chains(V4, "KUBE-FW-"), [""; 0]);
}

/// Case 43.
#[test]
fn slices_of_a_family_the_service_lacks_are_not_used() {
    let lab = lab([web(""), pods(&V4_POD), v6_pods()]);
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.1.5:80")]);
    lab.check_no_rules(V6);
}

/// Case 44.
#[test]
fn a_slice_of_host_names_is_a_problem_and_has_no_endpoint() {
    let names = pods(&["10.180.1.5"]).replace("IPv4", "FQDN").replace("10.180.1.5", "pod.example.org");
    let lab = lab([web(""), names]);
    lab.check_problem("addressType: \"FQDN\"");
    lab.check(&[("pod -> 10.96.0.10:80", "rejected")]);
}

/// Case 45.
#[test]
fn ipv6_endpoints_stand_in_brackets_where_a_port_follows() {
    let lab = lab([dual("", &[]), v6_pods()]);
    lab.check(&[
        ("pod -> [fd00:10:96::10]:80", "[fd00:10:180:1::5]:80"),
        ("fd00:10:180:1::5 -> [fd00:10:96::10]:80", "masqueraded [fd00:10:180:1::5]:80"),
    ]);
    let chain = sep("default/web:p", "[fd00:10:180:1::5]:80");
    assert_eq!(
        lab.rules(V6, chainsmith::iptables::Table::Nat, &chain),
        [
            "-s fd00:10:180:1::5/128 -m comment --comment \"default/web:p\" -j KUBE-MARK-MASQ",
            "-p tcp -m comment --comment \"default/web:p\" -m tcp -j DNAT --to-destination [fd00:10:180:1::5]:80",
        ]
    );
    assert!(lab.save(V6).contains("--comment \"default/web:p -> [fd00:10:180:1::5]:80\""));
}

/// Case 47.
#[test]
fn chains_have_the_same_names_in_both_families_except_those_of_endpoints() {
    let lab = lab([dual("type: NodePort, externalTrafficPolicy: Local", &[]), pods(&V4_POD), v6_pods()]);
    for prefix in ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-"] {
        assert_eq!(lab.chains(V4, prefix), lab.chains(V6, prefix));
    }
    assert_ne!(lab.chains(V4, "KUBE-SEP-"), lab.chains(V6, "KUBE-SEP-"));
}
