//! A. Services: which and what.

use chainsmith::iptables::Table;
use chainsmith::rules::names::PortChain;

use crate::agent::Agent;
use crate::lab::*;

const PODS: [&str; 2] = ["10.180.1.5@node-1", "10.180.2.7@node-2"];
const BOTH: &str = "10.180.1.5:80, 10.180.2.7:80";

fn check_ignored(object: String) {
    let lab = lab([object, pods(&PODS)]);
    lab.check(&[("pod -> 10.96.0.10:80", "untouched")]);
    lab.check_no_rules(V4);
    lab.check_no_rules(V6);
}

fn labelled(object: String) -> String {
    object.replace("name: web}", "name: web, labels: {service.kubernetes.io/service-proxy-name: ''}}")
}

/// Case 1.
#[test]
fn a_headless_service_has_no_rules() {
    check_ignored(service("default/web", "clusterIP: None, ports: [{name: p, port: 80}]", &[]));
}

/// Case 2.
#[test]
fn a_service_without_a_cluster_ip_has_no_rules() {
    check_ignored(service("default/web", "clusterIP: '', ports: [{name: p, port: 80}]", &[]));
}

/// Case 3.
#[test]
fn an_external_name_has_no_rules_even_with_a_cluster_ip() {
    check_ignored(web("type: ExternalName, externalName: example.org"));
}

/// Case 4.
#[test]
fn a_service_of_another_proxy_loses_its_rules_while_it_has_the_label() {
    check_ignored(labelled(web("")));
    let mut agent = Agent::new();
    agent.sync_to(&lab([web(""), pods(&PODS)]));
    let input = agent.sync_to(&lab([labelled(web("")), pods(&PODS)]));
    assert!(input.contains(&format!("-X {}", svc())), "{input}");
    agent.sync_to(&lab([web(""), pods(&PODS)]));
}

/// Case 5.
#[test]
fn a_service_that_becomes_headless_loses_its_chains_in_the_same_sync() {
    let mut agent = Agent::new();
    agent.sync_to(&lab([
        open("externalTrafficPolicy: Local, loadBalancerSourceRanges: [10.0.0.0/8]"),
        pods(&PODS),
    ]));
    let headless = service("default/web", "clusterIP: None, ports: [{name: p, port: 80}]", &[]);
    let input = agent.sync_to(&lab([headless, pods(&PODS)]));
    let local_pod = sep("default/web:p", "10.180.1.5:80");
    for name in [svc(), svl(), ext(), fw(), local_pod] {
        assert!(input.contains(&format!("-X {name}\n")), "{name} in {input}");
    }
}

/// Case 6.
#[test]
fn a_service_without_ports_has_no_rules() {
    let object = service("default/web", "clusterIP: 10.96.0.10", &[]);
    assert_eq!(lab([object.clone()]).read().1, [""; 0]);
    check_ignored(object);
}

/// Case 7.
#[test]
fn a_service_without_slices_is_rejected_on_all_its_addresses() {
    let lab = lab([open("")]);
    for from in ["pod", "elsewhere", "outside"] {
        for to in [CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER_IP, NODE_PORT] {
            lab.check(&[(&format!("{from} -> {to}"), "rejected")]);
        }
    }
    lab.check(&[("node -> 10.96.0.10:80", "rejected"), ("node -> 192.0.2.1:30080", "rejected")]);
    // kube-proxy has no jump from OUTPUT to KUBE-EXTERNAL-SERVICES.
    lab.check(&[("node -> 203.0.113.80:80", "untouched"), ("node -> 203.0.113.90:80", "untouched")]);
    assert_eq!(lab.port_chains(V4), [""; 0]);
    assert_eq!(
        lab.filter("KUBE-SERVICES"),
        [
            "-d 10.96.0.10/32 -p tcp -m comment --comment \"default/web:p has no endpoints\" -m tcp --dport 80 \
          -j REJECT --reject-with icmp-port-unreachable"
        ]
    );
    assert_eq!(lab.filter("KUBE-EXTERNAL-SERVICES").len(), 3);
    assert!(lab.nat("KUBE-SERVICES").iter().all(|rule| rule.contains("service nodeports")));
}

/// Case 8.
#[test]
fn an_unnamed_port_has_the_name_of_its_service_without_a_colon() {
    let lab = lab([
        service("default/nginx", "clusterIP: 10.96.0.20, ports: [{port: 80}]", &[]),
        slice("default/nginx", "a", "{name: '', port: 80}", &PODS),
    ]);
    lab.check(&[("pod -> 10.96.0.20:80", BOTH)]);
    assert_eq!(
        lab.nat("KUBE-SERVICES")[0],
        "-d 10.96.0.20/32 -p tcp -m comment --comment \"default/nginx cluster IP\" -m tcp --dport 80 \
         -j KUBE-SVC-2CMXP7HKUVJN7L6M"
    );
}

/// Case 9.
#[test]
fn one_port_number_may_serve_each_protocol_separately() {
    let ports =
        "{name: t, port: 53}, {name: u, port: 53, protocol: UDP}, {name: s, port: 53, protocol: SCTP}";
    let lab = lab([
        service("default/dns", &format!("clusterIP: 10.96.0.30, ports: [{ports}]"), &[]),
        slice(
            "default/dns",
            "a",
            "{name: t, port: 1}, {name: u, port: 2, protocol: UDP}, {name: s, port: 3, protocol: SCTP}",
            &["10.180.1.5@node-1"],
        ),
    ]);
    lab.check(&[
        ("pod -> 10.96.0.30:53/tcp", "10.180.1.5:1"),
        ("pod -> 10.96.0.30:53/udp", "10.180.1.5:2"),
        ("pod -> 10.96.0.30:53/sctp", "10.180.1.5:3"),
    ]);
    assert_eq!((lab.chains(V4, "KUBE-SVC-").len(), lab.chains(V4, "KUBE-SEP-").len()), (3, 3));
    let rules = lab.nat("KUBE-SERVICES").join("\n");
    for protocol in ["tcp", "udp", "sctp"] {
        assert!(rules.contains(&format!("-p {protocol} ")) && rules.contains(&format!("-m {protocol} ")));
    }
}

/// Case 10.
#[test]
fn ports_with_one_name_and_two_protocols_are_two_service_ports() {
    let ports = "{name: p, port: 53}, {name: p, port: 53, protocol: UDP}";
    let lab = lab([
        service("default/dns", &format!("clusterIP: 10.96.0.30, ports: [{ports}]"), &[]),
        slice("default/dns", "a", "{name: p, port: 1}, {name: p, port: 2, protocol: UDP}", &["10.180.1.5"]),
    ]);
    lab.check(&[("pod -> 10.96.0.30:53/tcp", "10.180.1.5:1"), ("pod -> 10.96.0.30:53/udp", "10.180.1.5:2")]);
    let mut expected =
        ["tcp", "udp"].map(|protocol| chain(PortChain::Cluster, &format!("default/dns:p/{protocol}")));
    expected.sort();
    assert_eq!(lab.chains(V4, "KUBE-SVC-"), expected);
}

/// Case 11.
#[test]
fn two_ports_with_one_target_have_endpoint_chains_of_their_own() {
    let lab = lab([
        service(
            "default/web",
            "clusterIP: 10.96.0.10, ports: [{name: a, port: 80}, {name: b, port: 81}]",
            &[],
        ),
        slice("default/web", "a", "{name: a, port: 8080}, {name: b, port: 8080}", &["10.180.1.5"]),
    ]);
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.1.5:8080"), ("pod -> 10.96.0.10:81", "10.180.1.5:8080")]);
    for port in ["default/web:a", "default/web:b"] {
        assert!(
            lab.nat(&sep(port, "10.180.1.5:8080"))[1].ends_with("-j DNAT --to-destination 10.180.1.5:8080")
        );
    }
}

/// Case 12.
#[test]
fn a_node_port_is_used_whatever_the_type() {
    let spec = "type: ClusterIP, clusterIP: 10.96.0.10, ports: [{name: p, port: 80, nodePort: 30080}]";
    let lab = lab([service("default/web", spec, &[]), pods(&PODS)]);
    lab.check(&[("outside -> 192.0.2.1:30080", &format!("masqueraded {BOTH}"))]);
}

/// Case 13.
#[test]
fn load_balancer_addresses_are_used_whatever_the_type() {
    for kind in ["ClusterIP", "NodePort"] {
        let spec = format!("type: {kind}, clusterIP: 10.96.0.10, ports: [{{name: p, port: 80}}]");
        let lab = lab([service("default/web", &spec, &["203.0.113.90"]), pods(&PODS)]);
        lab.check(&[("outside -> 203.0.113.90:80", &format!("masqueraded {BOTH}"))]);
    }
}

/// Case 14.
#[test]
fn external_ips_are_used_whatever_the_type() {
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        let lab = lab([web(&format!("type: {kind}, externalIPs: [203.0.113.80]")), pods(&PODS)]);
        lab.check(&[("outside -> 203.0.113.80:80", &format!("masqueraded {BOTH}"))]);
    }
}

/// Case 15.
#[test]
fn external_policy_local_applies_to_a_cluster_ip_service_with_external_ips() {
    let lab = lab([web("externalIPs: [203.0.113.80], externalTrafficPolicy: Local"), pods(&PODS)]);
    lab.check(&[("outside -> 203.0.113.80:80", "10.180.1.5:80"), ("pod -> 203.0.113.80:80", BOTH)]);
    assert_eq!((lab.nat(&ext()).len(), lab.nat(&svl()).len()), (4, 1));
}

/// Case 16.
#[test]
fn external_policy_local_has_no_effect_on_a_cluster_ip_service_without_external_ips() {
    let spec = "type: ClusterIP, externalTrafficPolicy: Local, clusterIP: 10.96.0.10, \
                ports: [{name: p, port: 80, nodePort: 30080}]";
    let lab = lab([service("default/web", spec, &["203.0.113.90"]), pods(&PODS)]);
    for to in [LOAD_BALANCER_IP, NODE_PORT] {
        lab.check(&[(&format!("outside -> {to}"), &format!("masqueraded {BOTH}"))]);
    }
    assert_eq!(lab.chains(V4, "KUBE-SVL-"), [""; 0]);
}

/// Case 17.
#[test]
fn external_ips_of_the_other_family_make_nothing_accessible() {
    let lab = lab([web("externalIPs: ['2001:db8::80'], externalTrafficPolicy: Local"), pods(&PODS)]);
    lab.check(&[("pod -> 10.96.0.10:80", BOTH)]);
    assert_eq!((lab.chains(V4, "KUBE-EXT-"), lab.chains(V4, "KUBE-SVL-")), (vec![], vec![]));
}

/// Case 18.
#[test]
fn without_an_internal_policy_all_endpoints_serve() {
    lab([web(""), pods(&PODS)]).check(&[("pod -> 10.96.0.10:80", BOTH)]);
    let object = serde_json::from_value(serde_json::json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"]},
    }))
    .unwrap();
    let service = chainsmith::model::decode::service(&object, &mut Default::default()).value().unwrap();
    assert_eq!(service.internal_policy, chainsmith::model::TrafficPolicy::Cluster);
}

/// Case 26, replaced: kube-proxy writes both rules, and their random order decides which Service serves.
#[test]
fn of_two_services_with_one_external_ip_the_first_by_name_serves() {
    let claim = |name: &str, ip: &str| {
        service(
            name,
            &format!("clusterIP: {ip}, externalIPs: [203.0.113.80], ports: [{{name: p, port: 80}}]"),
            &[],
        )
    };
    let lab = lab([
        claim("default/b", "10.96.0.2"),
        claim("default/a", "10.96.0.1"),
        slice("default/a", "x", "{name: p, port: 80}", &["10.180.1.1"]),
        slice("default/b", "x", "{name: p, port: 80}", &["10.180.1.2"]),
    ]);
    lab.check(&[("outside -> 203.0.113.80:80", "masqueraded 10.180.1.1:80")]);
    assert_eq!(lab.nat("KUBE-SERVICES").iter().filter(|rule| rule.contains("203.0.113.80")).count(), 1);
}

/// Case 27.
#[test]
fn an_address_given_twice_has_its_rules_twice() {
    let spec = "type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{name: p, port: 80}]";
    let lab = lab([service("default/web", spec, &["203.0.113.90", "203.0.113.90"]), pods(&PODS)]);
    lab.check(&[("outside -> 203.0.113.90:80", &format!("masqueraded {BOTH}"))]);
    assert_eq!(lab.nat("KUBE-SERVICES").iter().filter(|rule| rule.contains("203.0.113.90")).count(), 2);
}

/// Case 28.
#[test]
fn an_external_ip_that_is_also_a_load_balancer_ip_bypasses_the_firewall() {
    let spec = "type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{name: p, port: 80}], \
                externalIPs: [203.0.113.90], loadBalancerSourceRanges: [10.0.0.0/8]";
    let lab = lab([service("default/web", spec, &["203.0.113.90"]), pods(&PODS)]);
    lab.check(&[("outside -> 203.0.113.90:80", &format!("masqueraded {BOTH}"))]);
    let rules = lab.nat("KUBE-SERVICES");
    let at = |text: &str| rules.iter().position(|rule| rule.contains(text)).unwrap();
    assert!(at("web:p external IP") < at("web:p loadbalancer IP"));
    assert!(!lab.nat(&fw()).is_empty() && lab.filter("KUBE-PROXY-FIREWALL").len() == 1);
}

/// Case 29.
#[test]
fn an_invalid_external_ip_is_a_problem_and_an_empty_one_is_not() {
    let lab = lab([web("externalIPs: [bogus, '', 203.0.113.80]"), pods(&PODS)]);
    lab.check_problem("spec.externalIPs[0]: \"bogus\" is not an IP address");
    lab.check(&[("outside -> 203.0.113.80:80", &format!("masqueraded {BOTH}"))]);
}

/// Case 30.
#[test]
fn with_the_gate_off_external_ips_are_not_served() {
    let lab = lab([web("externalIPs: [203.0.113.80]"), pods(&PODS)])
        .flag("feature-gates", "AllowServiceExternalIPs=false");
    lab.check(&[("outside -> 203.0.113.80:80", "untouched"), ("pod -> 10.96.0.10:80", BOTH)]);
    assert!(!lab.save(V4).contains("203.0.113.80"));
    assert_eq!(lab.nat(&ext()).len(), 2, "there all the same, as in kube-proxy");
}

/// Case 31.
#[test]
fn leading_zeros_are_decimal_everywhere() {
    let spec = "type: LoadBalancer, clusterIP: 172.30.0.041, ports: [{name: p, port: 80}], \
                externalIPs: [192.168.099.022], loadBalancerSourceRanges: [203.0.113.000/025]";
    let lab = lab([service("default/web", spec, &["1.2.3.004"]), pods(&["10.180.00.001"])]);
    lab.check(&[
        ("pod -> 172.30.0.41:80", "10.180.0.1:80"),
        ("outside -> 192.168.99.22:80", "masqueraded 10.180.0.1:80"),
        ("203.0.113.127 -> 1.2.3.4:80", "masqueraded 10.180.0.1:80"),
        ("203.0.113.128 -> 1.2.3.4:80", "dropped"),
    ]);
    assert!(lab.save(V4).contains("-s 203.0.113.0/25 "));
}

/// Case 32.
#[test]
fn a_requested_load_balancer_ip_is_not_served() {
    let lab = lab([web("type: LoadBalancer, loadBalancerIP: 203.0.113.90"), pods(&PODS)]);
    lab.check(&[("outside -> 203.0.113.90:80", "untouched")]);
    assert!(!lab.save(V4).contains("203.0.113.90") && lab.rules(V4, Table::Nat, &ext()).is_empty());
}
