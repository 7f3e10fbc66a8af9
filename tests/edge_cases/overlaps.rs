//! Frontends that several Services claim: each has one owner, which names do not decide.

use chainsmith::iptables::Table;

use crate::lab::*;

/// `default/kubernetes`, which is as old as the cluster, and a tenant's Service whose name sorts first and
/// that claims the same address and port as external IP and load balancer IP.
fn taken(owner: &[&str], layout: &str) -> Lab {
    let kubernetes = "clusterIP: 10.96.0.1, ports: [{name: https, port: 443}]";
    let tenant = "type: LoadBalancer, clusterIP: 10.96.0.66, externalIPs: [10.96.0.1], \
                  loadBalancerSourceRanges: [10.180.0.0/16], \
                  ports: [{name: p, port: 443, nodePort: 30443}, {name: q, port: 80}]";
    lab([
        created("2020-01-01T00:00:00Z", service("default/kubernetes", kubernetes, &[])),
        created("2010-01-01T00:00:00Z", service("aaa/tenant", tenant, &["10.96.0.1"])),
        slice("default/kubernetes", "x", "{name: https, port: 6443}", owner),
        slice("aaa/tenant", "x", "{name: p, port: 8443}, {name: q, port: 8080}", &["10.180.1.66"]),
    ])
    .flag("layout", layout)
}

/// `service` with a time of creation.
fn created(time: &str, service: String) -> String {
    service.replacen("metadata: {", &format!("metadata: {{creationTimestamp: '{time}', "), 1)
}

const LAYOUTS: [&str; 2] = ["classic", "compact"];

#[test]
fn a_cluster_ip_is_not_lost_to_an_external_ip_of_an_older_service_whose_name_sorts_first() {
    for layout in LAYOUTS {
        let lab = taken(&["10.180.2.6"], layout);
        lab.check(&[
            ("pod -> 10.96.0.1:443", "10.180.2.6:6443"),
            ("outside -> 10.96.0.1:443", "masqueraded 10.180.2.6:6443"),
            // Frontends without another claim are the tenant's.
            ("pod -> 10.96.0.66:443", "10.180.1.66:8443"),
            ("pod -> 10.96.0.1:80", "masqueraded 10.180.1.66:8080"),
            ("outside -> 192.0.2.1:30443", "masqueraded 10.180.1.66:8443"),
        ]);
    }
}

#[test]
fn a_cluster_ip_without_endpoints_is_rejected_and_not_served_by_another_service() {
    for layout in LAYOUTS {
        let lab = taken(&[], layout);
        lab.check(&[("pod -> 10.96.0.1:443", "rejected"), ("pod -> 10.96.0.66:443", "10.180.1.66:8443")]);
        let text = lab.save(V4);
        let entries = text.lines().filter(|line| line.contains("-d 10.96.0.1/32") && line.contains("443"));
        assert_eq!(entries.count(), 1, "the owner's, in filter: {text}");
    }
}

#[test]
fn the_older_service_owns_a_shared_external_ip_or_node_port() {
    let claim = |name: &str, ip: &str, endpoint: &str| {
        let spec = format!(
            "type: NodePort, clusterIP: {ip}, externalIPs: [203.0.113.80], \
             ports: [{{name: p, port: 80, nodePort: 30080}}]"
        );
        (service(name, &spec, &[]), slice(name, "x", "{name: p, port: 80}", &[endpoint]))
    };
    let (a, slice_a) = claim("default/a", "10.96.0.2", "10.180.1.2");
    let (b, slice_b) = claim("default/b", "10.96.0.3", "10.180.1.3");
    let check = |a: String, b: String, serves: &str| {
        for layout in LAYOUTS {
            let lab = lab([a.clone(), b.clone(), slice_a.clone(), slice_b.clone()]).flag("layout", layout);
            let serves = format!("masqueraded {serves}");
            lab.check(&[
                ("outside -> 203.0.113.80:80", &serves),
                ("outside -> 192.0.2.1:30080", &serves),
                ("pod -> 10.96.0.2:80", "10.180.1.2:80"),
                ("pod -> 10.96.0.3:80", "10.180.1.3:80"),
            ]);
        }
    };
    let at = |hour: u8, service: &str| created(&format!("2025-01-01T{hour:02}:00:00Z"), service.to_owned());
    check(at(2, &a), at(1, &b), "10.180.1.3:80");
    check(at(1, &a), at(2, &b), "10.180.1.2:80");
    // Without a creation time, as in a file, a Service counts as the youngest.
    check(a.clone(), at(2, &b), "10.180.1.3:80");
    check(a, b, "10.180.1.2:80");
}

#[test]
fn the_same_port_of_another_protocol_is_not_a_conflict() {
    let claim = |name: &str, ip: &str, protocol: &str| {
        let ports = format!("ports: [{{name: p, port: 53, protocol: {protocol}}}]");
        service(name, &format!("clusterIP: {ip}, externalIPs: [203.0.113.53], {ports}"), &[])
    };
    let objects = |protocol: &str| {
        lab([
            claim("default/a", "10.96.0.2", "TCP"),
            claim("default/b", "10.96.0.3", protocol),
            slice("default/a", "x", "{name: p, port: 53}", &["10.180.1.2"]),
            slice("default/b", "x", &format!("{{name: p, port: 53, protocol: {protocol}}}"), &["10.180.1.3"]),
        ])
    };
    objects("UDP").check(&[
        ("outside -> 203.0.113.53:53", "masqueraded 10.180.1.2:53"),
        ("outside -> 203.0.113.53:53/udp", "masqueraded 10.180.1.3:53"),
    ]);
    let n_rules = |lab: &Lab| lab.rules(V4, Table::Nat, "KUBE-SERVICES").len();
    assert_eq!(n_rules(&objects("UDP")), n_rules(&objects("TCP")) + 1);
}
