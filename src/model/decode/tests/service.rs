//! Tests of reading Services: edge-cases.md, sections A and B.

use super::{service_with, slice_with};
use crate::model::{Frontend, Service, TrafficPolicy};
use crate::net::IpFamily;

/// One line for each family and port.
fn summary(service: &Service) -> Vec<String> {
    let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(",") };
    let mut lines = Vec::new();
    for family in IpFamily::BOTH {
        if let Some(Frontend { cluster_ip, external_ips, load_balancer_ips, source_ranges }) =
            service.frontends.get(family)
        {
            lines.push(format!(
                "{family} {cluster_ip} external {} lb {} from {}",
                list(external_ips.iter().map(ToString::to_string).collect()),
                list(load_balancer_ips.iter().map(ToString::to_string).collect()),
                list(source_ranges.iter().map(ToString::to_string).collect()),
            ));
        }
    }
    for port in &service.ports {
        let node_port = port.node_port.map(|port| format!(" node port {port}")).unwrap_or_default();
        lines.push(format!("{}:{}/{}{node_port}", port.name, port.port, port.protocol));
    }
    lines
}

fn check(spec: &str, more: &str, expected: &[&str]) {
    let (service, problems) = service_with(spec, more);
    assert_eq!(problems, [""; 0], "{spec}");
    let service = service.unwrap_or_else(|| panic!("not proxied: {spec}"));
    assert_eq!(summary(&service), expected, "{spec}");
}

/// Invalid fields: the messages, and what is used.
fn check_bad(spec: &str, more: &str, problems: &[&str], left: &[&str]) {
    let (service, found) = service_with(spec, more);
    let problems: Vec<String> = problems.iter().map(|text| format!("Service ns/web: {text}")).collect();
    assert_eq!(found, problems, "{spec}");
    assert_eq!(service.as_ref().map(summary).unwrap_or_default(), left, "{spec}");
}

fn check_skipped(spec: &str, more: &str) {
    assert_eq!(service_with(spec, more), (None, Vec::new()), "{spec}");
}

#[test]
fn services_without_a_cluster_ip_are_not_proxied() {
    check_skipped("clusterIP: None\nports: [{port: 80}]", "");
    check_skipped("clusterIP: ''\nports: [{port: 80}]", "");
    check_skipped("ports: [{port: 80}]", "");
    check_skipped("{type: ClusterIP}", "");
}

#[test]
fn external_names_are_not_proxied_even_with_a_cluster_ip() {
    check_skipped("type: ExternalName\nclusterIP: 10.0.0.1\nexternalName: example.org", "");
}

#[test]
fn services_of_another_proxy_are_not_proxied_whatever_the_labels_value() {
    for value in ["other", "''", "kube-proxy"] {
        let text = format!(
            "kind: Service\nmetadata:\n  name: web\n  namespace: ns\n  labels:\n    \
             service.kubernetes.io/service-proxy-name: {value}\nspec: {{clusterIP: 10.0.0.1}}\n"
        );
        let super::Object::Service(object) = super::only(&text) else { panic!("{text}") };
        let decoded = super::super::service(&object, &mut super::Interner::default());
        assert!(matches!(decoded.named, Some((_, None))), "{value}");
        assert!(decoded.problems.is_empty());
    }
}

#[test]
fn a_service_without_ports_is_not_a_problem() {
    check("clusterIP: 10.0.0.1", "", &["IPv4 10.0.0.1 external - lb - from -"]);
}

#[test]
fn cluster_ips_are_at_the_index_of_their_family() {
    check(
        "clusterIPs: ['fd00::1', 10.0.0.1]\nclusterIP: 'fd00::1'\nipFamilies: [IPv6, IPv4]",
        "",
        &["IPv4 10.0.0.1 external - lb - from -", "IPv6 fd00::1 external - lb - from -"],
    );
}

#[test]
fn a_family_without_its_cluster_ip_is_skipped() {
    check("clusterIPs: [10.0.0.1]\nipFamilies: [IPv4, IPv6]", "", &["IPv4 10.0.0.1 external - lb - from -"]);
}

#[test]
fn without_families_the_cluster_ip_decides_the_family() {
    check("clusterIP: 'FD00:0::1'", "", &["IPv6 fd00::1 external - lb - from -"]);
    check(
        "clusterIPs: [10.0.0.1, 'fd00::1']",
        "",
        &["IPv4 10.0.0.1 external - lb - from -", "IPv6 fd00::1 external - lb - from -"],
    );
}

#[test]
fn an_ipv4_mapped_cluster_ip_is_ipv4() {
    check("clusterIP: '::ffff:10.0.0.1'", "", &["IPv4 10.0.0.1 external - lb - from -"]);
}

#[test]
fn leading_zeros_are_decimal_everywhere() {
    check(
        "type: LoadBalancer\nclusterIP: 172.30.0.041\nexternalIPs: [192.168.099.022]\n\
         loadBalancerSourceRanges: [203.0.113.000/025]",
        "status: {loadBalancer: {ingress: [{ip: 1.2.3.004}]}}",
        &["IPv4 172.30.0.41 external 192.168.99.22 lb 1.2.3.4 from 203.0.113.0/25"],
    );
}

#[test]
fn external_addresses_go_to_their_family_in_order_with_duplicates() {
    check(
        "clusterIPs: [10.0.0.1, 'fd00::1']\nexternalIPs: [192.0.2.9, '2001:db8::1', 192.0.2.1, 192.0.2.9]",
        "status: {loadBalancer: {ingress: [{ip: '2001:db8::9'}, {ip: 192.0.2.7}, {ip: 192.0.2.7}]}}",
        &[
            "IPv4 10.0.0.1 external 192.0.2.9,192.0.2.1,192.0.2.9 lb 192.0.2.7,192.0.2.7 from -",
            "IPv6 fd00::1 external 2001:db8::1 lb 2001:db8::9 from -",
        ],
    );
}

#[test]
fn addresses_of_a_family_without_cluster_ip_are_dropped_silently() {
    check(
        "clusterIP: 10.0.0.1\nexternalIPs: ['2001:db8::1']\nloadBalancerSourceRanges: ['2001:db8::/32']",
        "status: {loadBalancer: {ingress: [{ip: '2001:db8::9'}]}}",
        &["IPv4 10.0.0.1 external - lb - from -"],
    );
}

#[test]
fn an_invalid_external_ip_is_ignored_and_a_blank_one_is_not_a_problem() {
    check_bad(
        "clusterIP: 10.0.0.1\nexternalIPs: [bogus, '', ' ', ' 192.0.2.2', 192.0.2.1]",
        "",
        &[r#"spec.externalIPs[0]: "bogus" is not an IP address; ignored (and 1 more: " 192.0.2.2")"#],
        &["IPv4 10.0.0.1 external 192.0.2.1 lb - from -"],
    );
}

#[test]
fn only_ingress_with_an_ip_in_mode_vip_is_used_whatever_the_type() {
    check(
        "clusterIP: 10.0.0.1\ntype: NodePort",
        "status: {loadBalancer: {ingress: [{hostname: a.example}, {ip: 192.0.2.1, ipMode: Proxy}, \
         {ip: 192.0.2.2, ipMode: VIP}, {ip: '', hostname: b}, {ip: 192.0.2.3}]}}",
        &["IPv4 10.0.0.1 external - lb 192.0.2.2,192.0.2.3 from -"],
    );
    check_bad(
        "clusterIP: 10.0.0.1",
        "status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: vip}, {ip: 192.0.2}]}}",
        &[
            r#"status.loadBalancer.ingress[0].ipMode: "vip" is not VIP or Proxy; address ignored"#,
            r#"status.loadBalancer.ingress[1].ip: "192.0.2" is not an IP address; ignored"#,
        ],
        &["IPv4 10.0.0.1 external - lb - from -"],
    );
}

#[test]
fn the_requested_load_balancer_ip_is_not_used() {
    check("clusterIP: 10.0.0.1\nloadBalancerIP: 192.0.2.1", "", &["IPv4 10.0.0.1 external - lb - from -"]);
}

#[test]
fn source_ranges_are_trimmed_and_masked() {
    check(
        "clusterIP: 10.0.0.1\nloadBalancerSourceRanges: [' 203.0.113.7/25 ', '', ' ', \"\\t10.1.2.3/8\\n\"]",
        "",
        &["IPv4 10.0.0.1 external - lb - from 203.0.113.0/25,10.0.0.0/8"],
    );
    check_bad(
        "clusterIP: 10.0.0.1\nloadBalancerSourceRanges: [10.0.0.0, 10.0.0.0/8]",
        "",
        &[r#"spec.loadBalancerSourceRanges[0]: "10.0.0.0" is not a CIDR; ignored"#],
        &["IPv4 10.0.0.1 external - lb - from 10.0.0.0/8"],
    );
}

#[test]
fn a_range_of_all_addresses_empties_only_its_familys_list() {
    let ips = "clusterIPs: [10.0.0.1, 'fd00::1']\n";
    check(
        &format!("{ips}loadBalancerSourceRanges: [10.0.0.0/8, 0.0.0.0/0, 'fd00::/8']"),
        "",
        &["IPv4 10.0.0.1 external - lb - from -", "IPv6 fd00::1 external - lb - from fd00::/8"],
    );
    check(
        &format!("{ips}loadBalancerSourceRanges: [10.0.0.0/8, '::/0']"),
        "",
        &["IPv4 10.0.0.1 external - lb - from 10.0.0.0/8", "IPv6 fd00::1 external - lb - from -"],
    );
}

#[test]
fn ports_keep_their_order_and_node_ports_are_used_whatever_the_type() {
    check(
        "clusterIP: 10.0.0.1\nports:\n- {name: b, port: 81, nodePort: 30081}\n\
         - {name: a, port: 80, protocol: UDP, targetPort: http}\n- {name: c, port: 82, protocol: SCTP, nodePort: 0}",
        "",
        &["IPv4 10.0.0.1 external - lb - from -", "b:81/TCP node port 30081", "a:80/UDP", "c:82/SCTP"],
    );
}

#[test]
fn the_same_name_with_another_protocol_is_another_port() {
    check(
        "clusterIP: 10.0.0.1\nports: [{name: dns, port: 53}, {name: dns, port: 53, protocol: UDP}]",
        "",
        &["IPv4 10.0.0.1 external - lb - from -", "dns:53/TCP", "dns:53/UDP"],
    );
}

#[test]
fn of_two_ports_with_the_same_name_and_protocol_the_later_is_used() {
    check_bad(
        "clusterIP: 10.0.0.1\nports: [{port: 80}, {name: a, port: 90}, {port: 81}]",
        "",
        &[
            r#"spec.ports[2].name is the name of an earlier port of the same protocol; the earlier one is ignored"#,
        ],
        &["IPv4 10.0.0.1 external - lb - from -", "a:90/TCP", ":81/TCP"],
    );
}

#[test]
fn an_invalid_port_is_ignored_and_so_is_only_the_node_port_if_that_is_invalid() {
    check_bad(
        "clusterIP: 10.0.0.1\nports:\n- {name: a, port: 0}\n- {name: b, port: 65536}\n- {name: c, port: -1}\n\
         - {name: d, port: 4, protocol: tcp}\n- {name: E, port: 5}\n- {name: f, port: 6, nodePort: 70000}",
        "",
        &[
            r#"spec.ports[0].port: "0" is not a port number; port ignored (and 2 more: "65536", "-1")"#,
            r#"spec.ports[3].protocol: "tcp" is not TCP, UDP or SCTP; port ignored"#,
            r#"spec.ports[4].name: "E" is not a DNS label; port ignored"#,
            r#"spec.ports[5].nodePort: "70000" is not a port number; ignored"#,
        ],
        &["IPv4 10.0.0.1 external - lb - from -", "f:6/TCP"],
    );
}

#[test]
fn an_invalid_cluster_ip_removes_its_family() {
    check_bad(
        "clusterIP: 10.0.0.256",
        "",
        &[r#"spec.clusterIP: "10.0.0.256" is not an IP address; not proxied at it"#],
        &[],
    );
    check_bad(
        "clusterIPs: [10.0.0.1, 10.0.0.2]\nipFamilies: [IPv4, IPv6]",
        "",
        &[
            r#"spec.clusterIPs[1]: "10.0.0.2" is not an IPv6 address, as spec.ipFamilies says; not proxied in IPv6"#,
        ],
        &["IPv4 10.0.0.1 external - lb - from -"],
    );
    check_bad(
        "clusterIPs: [10.0.0.1, 'fd00::1']\nipFamilies: [ipv4, IPv6]",
        "",
        &[r#"spec.ipFamilies[0]: "ipv4" is not IPv4 or IPv6; ignored"#],
        &["IPv6 fd00::1 external - lb - from -"],
    );
}

fn policies(spec: &str) -> (TrafficPolicy, TrafficPolicy) {
    let (service, problems) = service_with(&format!("clusterIP: 10.0.0.1\n{spec}"), "");
    assert_eq!(problems, [""; 0], "{spec}");
    let service = service.unwrap();
    (service.internal_policy, service.external_policy)
}

#[test]
fn external_policy_local_applies_where_the_type_or_an_external_ip_allows_it() {
    use TrafficPolicy::{Cluster, Local};
    let check = |spec: &str, external| assert_eq!(policies(spec), (Cluster, external), "{spec}");
    check("type: ClusterIP", Cluster);
    check("type: NodePort\nexternalTrafficPolicy: Local", Local);
    check("type: LoadBalancer\nexternalTrafficPolicy: Local\nhealthCheckNodePort: 30000", Local);
    check("type: LoadBalancer\nexternalTrafficPolicy: Cluster", Cluster);
    check("externalTrafficPolicy: Local\nports: [{port: 80, nodePort: 30080}]", Cluster);
    check("externalTrafficPolicy: Local\nexternalIPs: [192.0.2.1]", Local);
    // The raw list decides, before it is split by family.
    check("externalTrafficPolicy: Local\nexternalIPs: ['2001:db8::1']", Local);
}

#[test]
fn internal_policy_local_is_read_and_the_default_is_cluster() {
    assert_eq!(policies("internalTrafficPolicy: Local").0, TrafficPolicy::Local);
    assert_eq!(policies("internalTrafficPolicy: Cluster").0, TrafficPolicy::Cluster);
    assert_eq!(policies("internalTrafficPolicy: null").0, TrafficPolicy::Cluster);
}

#[test]
fn unknown_values_are_treated_as_the_default() {
    check_bad(
        "clusterIP: 10.0.0.1\ntype: Clusterip\nsessionAffinity: clientIP\ninternalTrafficPolicy: local\n\
         externalTrafficPolicy: Global",
        "",
        &[
            r#"spec.internalTrafficPolicy: "local" is not Cluster or Local; taken as Cluster"#,
            r#"spec.externalTrafficPolicy: "Global" is not Cluster or Local; taken as Cluster"#,
            r#"spec.type: "Clusterip" is not ClusterIP, NodePort, LoadBalancer or ExternalName; taken as ClusterIP"#,
            r#"spec.sessionAffinity: "clientIP" is not None or ClientIP; taken as None"#,
        ],
        &["IPv4 10.0.0.1 external - lb - from -"],
    );
}

#[test]
fn affinity_lasts_the_given_time_or_three_hours() {
    let check = |spec: &str, seconds: Option<u32>, n_problems: usize| {
        let (service, problems) = service_with(&format!("clusterIP: 10.0.0.1\n{spec}"), "");
        assert_eq!(service.unwrap().affinity_seconds, seconds, "{spec}");
        assert_eq!(problems.len(), n_problems, "{problems:?}");
    };
    let with = |seconds: &str| {
        format!(
            "sessionAffinity: ClientIP\nsessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"
        )
    };
    check("sessionAffinity: None", None, 0);
    check("sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}", None, 0);
    check("sessionAffinity: ClientIP", Some(10_800), 0);
    check("sessionAffinity: ClientIP\nsessionAffinityConfig: {clientIP: {}}", Some(10_800), 0);
    check(&with("1"), Some(1), 0);
    check(&with("86400"), Some(86_400), 0);
    check(&with("0"), Some(10_800), 1);
    check(&with("86401"), Some(10_800), 1);
    check(&with("-5"), Some(10_800), 1);
}

#[test]
fn only_a_load_balancer_with_local_policy_has_a_health_check_port() {
    let check = |spec: &str, port: Option<u16>, n_problems: usize| {
        let (service, problems) = service_with(&format!("clusterIP: 10.0.0.1\n{spec}"), "");
        assert_eq!(service.unwrap().health_check_node_port, port, "{spec}");
        assert_eq!(problems.len(), n_problems, "{problems:?}");
    };
    let local = "externalTrafficPolicy: Local\nhealthCheckNodePort";
    check(&format!("type: LoadBalancer\n{local}: 32000"), Some(32_000), 0);
    check(&format!("type: LoadBalancer\n{local}: 0"), None, 1);
    check("type: LoadBalancer\nexternalTrafficPolicy: Local", None, 1);
    check(&format!("type: LoadBalancer\n{local}: 65536"), None, 1);
    check(&format!("type: NodePort\n{local}: 32000"), None, 0);
    check("type: LoadBalancer\nexternalTrafficPolicy: Cluster\nhealthCheckNodePort: 32000", None, 0);
}

#[test]
fn names_are_shared_between_a_service_and_its_slices() {
    let mut interner = super::Interner::default();
    let first = interner.object_name("ns", "web");
    let (slice, _) = slice_with("addressType: IPv4\nports: []");
    assert_eq!(slice.unwrap().service, first);
}

#[test]
fn the_creation_time_is_read_and_an_invalid_one_is_ignored() {
    let check = |metadata: &str, expected: Option<i64>, n_problems: usize| {
        let text = format!(
            "kind: Service\nmetadata: {{name: web, namespace: ns{metadata}}}\nspec: {{clusterIP: 10.0.0.1}}\n"
        );
        let super::Object::Service(object) = super::only(&text) else { panic!("not a Service: {text}") };
        let decoded = super::super::service(&object, &mut super::Interner::default());
        assert_eq!(decoded.problems.len(), n_problems, "{text}: {:?}", decoded.problems);
        assert_eq!(decoded.value().expect("a proxied Service").created, expected, "{text}");
    };
    check("", None, 0);
    check(", creationTimestamp: null", None, 0);
    check(", creationTimestamp: '1970-01-02T00:00:01Z'", Some(86_401), 0);
    check(", creationTimestamp: yesterday", None, 0);
    check(", creationTimestamp: [1]", None, 1);
}
