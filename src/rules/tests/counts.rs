//! How many rules there are by size, and how names follow from objects.

use super::*;

/// Rules of filter and nat, without the jumps from the built-in chains.
fn count(case: &Case) -> (usize, usize) {
    let ruleset = case.ruleset(IpFamily::V4);
    let n = |table| {
        let chains = ruleset.tables[&table].values().filter(|chain| chain.policy.is_none());
        chains.map(|chain| chain.rules.len()).sum::<usize>()
    };
    (n(Table::Filter), n(Table::Nat))
}

fn endpoints(n: usize) -> String {
    (0..n).map(|n| format!("10.180.{}.{} ", n / 250, n % 250)).collect()
}

#[test]
fn rules_grow_with_services_and_endpoints_as_kube_proxys() {
    assert_eq!(count(&Case::new()), (4, 5));
    assert_eq!(count(&service("ports: [{port: 80}]")), (5, 5));
    assert_eq!(count(&service("ports: [{name: a, port: 80}, {name: b, port: 81}]")), (6, 5));
    for n in [1, 2, 10, 500] {
        let case = service("ports: [{port: 80}]").with_endpoints(&endpoints(n));
        assert_eq!(count(&case), (4, 5 + 2 + 3 * n), "{n}");
        let affinity =
            service("ports: [{port: 80}], sessionAffinity: ClientIP").with_endpoints(&endpoints(n));
        assert_eq!(count(&affinity), (4, 5 + 2 + 4 * n), "{n}");
    }
}

/// 165.
#[test]
fn above_a_thousand_endpoints_their_rules_have_no_comments() {
    let comments = |n| {
        let config = format!("{CLUSTER_CIDR}\nchainsmith: {{layout: classic}}");
        let case = service("ports: [{port: 80}]").with_config(&config);
        let ruleset = case.with_endpoints(&endpoints(n)).ruleset(IpFamily::V4);
        let text = write::save(IpFamily::V4, &ruleset);
        let with = |prefix: &str| {
            text.lines().filter(|line| line.starts_with(prefix) && line.contains("--comment")).count()
        };
        (with("-A KUBE-SEP-"), with("-A KUBE-SVC-"), with("-A KUBE-SERVICES"))
    };
    assert_eq!(comments(1000), (2000, 1001, 2));
    assert_eq!(comments(1001), (0, 1, 2));
}

/// 9 to 11: the chains of ports differ by name and by protocol.
#[test]
fn each_port_and_protocol_has_chains_of_its_own() {
    let spec = "ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}, {name: c, port: 80, protocol: SCTP}]";
    let case = service(spec).and_slice("s", "a", "10.180.0.1").and_slice("s", "b", "10.180.0.1");
    // The slices' port b is TCP: no service port uses it.
    case.check_chains("SEP SVC");
    case.check(
        Table::Nat,
        "KUBE-SERVICES",
        &[
            "-d 172.30.0.1/32 -p tcp -m tcp --dport 80 -j SVC",
            "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        ],
    );
    case.check(
        Table::Filter,
        "KUBE-SERVICES",
        &[
            "-d 172.30.0.1/32 -p udp -m udp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
            "-d 172.30.0.1/32 -p sctp -m sctp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
        ],
    );
}

#[test]
fn endpoints_of_a_chain_are_sorted_as_text() {
    let case = service("ports: [{port: 80}]").with_endpoints("10.0.1.2 10.0.1.1 10.0.1.10");
    let ruleset = case.ruleset(IpFamily::V4);
    let svc = ruleset.tables[&Table::Nat].iter().find(|(name, _)| short(name) == "SVC").unwrap().1;
    let comments: Vec<&str> = svc.rules.iter().filter_map(Rule::comment).collect();
    assert_eq!(
        comments,
        ["ns/s cluster IP", "ns/s -> 10.0.1.10:8080", "ns/s -> 10.0.1.1:8080", "ns/s -> 10.0.1.2:8080",]
    );
}

#[test]
fn service_ports_stand_by_name_in_the_shared_chains() {
    let mut case = Case::new();
    for (n, name) in ["web-2", "web", "db"].iter().enumerate() {
        let ports = "ports: [{name: b, port: 81}, {name: a, port: 80}, {name: a, port: 80, protocol: UDP}]";
        case = case.and_service(name, &format!("clusterIP: 172.30.0.{n}, {ports}"), "");
    }
    let ruleset = case.ruleset(IpFamily::V4);
    let rules = &ruleset.tables[&Table::Filter][&names::KUBE_SERVICES].rules;
    let order: Vec<&str> =
        rules.iter().map(|rule| rule.comment().unwrap().split(' ').next().unwrap()).collect();
    let of = |name: &'static str| [format!("ns/{name}:a"), format!("ns/{name}:a"), format!("ns/{name}:b")];
    assert_eq!(order, [of("db"), of("web"), of("web-2")].concat());
}
