//! Numbers in comments are those of the edge cases in the specification.

mod reasons;

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::model::{Conditions, Frontend, ObjectName, Port, Service, SliceEndpoint};
use crate::net::{PerFamily, Protocol};

const HERE: Place<'static> = Place { node: "here", zone: Some("east") };

/// Reads `1 here`, `2 there unready`, `3 terminating zone=east,west`, `4 dying node=here`: the last
/// byte of the address, the node if any, the conditions (ready if none is given), hints.
fn endpoint(text: &str) -> (u8, SliceEndpoint) {
    let mut words = text.split(' ');
    let n: u8 = words.next().unwrap().parse().unwrap();
    let conditions = Conditions { is_ready: true, is_serving: true, is_terminating: false };
    let ip = [10, 0, 0, n].into();
    let mut endpoint = SliceEndpoint { ip, conditions, node: None, hints: None };
    let names = |list: &str| list.split(',').map(Arc::from).collect::<Box<[Arc<str>]>>();
    for word in words {
        let Conditions { is_ready, is_serving, is_terminating } = &mut endpoint.conditions;
        match (word, word.split_once('=')) {
            ("unready", _) => (*is_ready, *is_serving) = (false, false),
            // `ready: false` without other conditions.
            ("serving", _) => *is_ready = false,
            ("terminating", _) => (*is_ready, *is_terminating) = (false, true),
            ("dying", _) => (*is_ready, *is_serving, *is_terminating) = (false, false, true),
            // With publishNotReadyAddresses.
            ("published", _) => *is_terminating = true,
            (_, Some(("zone", zones))) => endpoint.hints.get_or_insert_default().zones = names(zones),
            (_, Some(("node", nodes))) => endpoint.hints.get_or_insert_default().nodes = names(nodes),
            (node, _) => endpoint.node = Some(node.into()),
        }
    }
    (n, endpoint)
}

/// Reads `internal=Local external=Cluster node-port`; the default is policy Cluster, and the cluster IP as
/// the only frontend.
fn service(text: &str) -> Service {
    let has = |word: &str| text.split(' ').any(|other| other == word);
    let policy = |word| if has(word) { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let frontend = Frontend {
        cluster_ip: [172, 30, 0, 1].into(),
        external_ips: Box::default(),
        load_balancer_ips: if has("load-balancer") { [[1, 2, 3, 4].into()].into() } else { Box::default() },
        source_ranges: Box::default(),
    };
    let node_port = has("node-port").then_some(30080);
    Service {
        name: ObjectName::new("ns", "svc"),
        frontends: PerFamily { v4: Some(frontend), v6: None },
        ports: [Port { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port }].into(),
        internal_policy: policy("internal=Local"),
        external_policy: policy("external=Local"),
        affinity_seconds: None,
        health_check_node_port: None,
        created: None,
    }
}

/// The selection for `service` with `endpoints` at `place`, as in
/// `cluster 1 2, local 1, internal Serve, external Drop`.
fn outcome(place: Place<'_>, service_text: &str, endpoints: &[&str]) -> String {
    let service = service(service_text);
    let port = service.ports_in(crate::net::IpFamily::V4).next().unwrap();
    let sources: Vec<(u8, SliceEndpoint)> = endpoints.iter().map(|text| endpoint(text)).collect();
    let all: Vec<Endpoint<'_>> = sources
        .iter()
        .map(|(_, source)| Endpoint { address: SocketAddr::new(source.ip, 80), source })
        .collect();
    let selection = Selection::new(&port, &all, place);
    let last = |endpoint: &Endpoint<'_>| match endpoint.address.ip() {
        std::net::IpAddr::V4(ip) => format!(" {}", ip.octets()[3]),
        std::net::IpAddr::V6(ip) => unreachable!("{ip}"),
    };
    let list = |endpoints: &[Endpoint<'_>]| endpoints.iter().map(last).collect::<String>();
    let verdicts = selection.verdicts(&port);
    let reachable: Vec<String> = selection.reachable().iter().map(last).collect();
    let mut union: Vec<String> = selection.cluster.iter().chain(&selection.local).map(last).collect();
    union.sort();
    union.dedup();
    assert_eq!(reachable, union, "an endpoint has a chain if clients may be sent to it");
    assert_eq!(verdicts.has_endpoints(), selection.has_endpoints);
    format!(
        "cluster{}, local{}, internal {:?}, external {:?}",
        list(&selection.cluster),
        list(&selection.local),
        verdicts.internal,
        verdicts.external
    )
}

#[track_caller]
fn check(service: &str, endpoints: &[&str], expected: &str) {
    assert_eq!(outcome(HERE, service, endpoints), expected, "{service}: {endpoints:?}");
}

/// Checks the list for policy Cluster only.
#[track_caller]
fn check_cluster(place: Place<'_>, endpoints: &[&str], expected: &str) {
    let outcome = outcome(place, "", endpoints);
    assert_eq!(outcome.split(", ").next(), Some(expected), "{endpoints:?}");
}

#[test]
fn ready_endpoints_of_all_nodes_serve_under_policy_cluster() {
    let all = ["1 here", "2 there", "3"];
    check("", &all, "cluster 1 2 3, local, internal Serve, external Serve");
    check("node-port", &all, "cluster 1 2 3, local, internal Serve, external Serve");
}

#[test]
fn a_service_without_endpoints_is_a_reject_for_every_policy() {
    for service in
        ["", "internal=Local", "node-port external=Local", "node-port internal=Local external=Local"]
    {
        for endpoints in
            [&[][..], &["1 here unready"], &["1 here serving"], &["1 here dying", "2 there unready"]]
        {
            check(service, endpoints, "cluster, local, internal Reject, external Reject");
        }
    }
}

/// 90 to 92, 55 to 59.
#[test]
fn terminating_endpoints_serve_if_none_is_ready() {
    check_cluster(HERE, &["1 here terminating", "2 there terminating", "3 dying"], "cluster 1 2");
    check_cluster(HERE, &["1 here terminating", "2 there"], "cluster 2");
    check_cluster(HERE, &["1 here terminating", "2 there serving"], "cluster 1");
    check_cluster(HERE, &["1 published", "2 terminating"], "cluster 1");
    // Hints do not count for them.
    check_cluster(HERE, &["1 terminating zone=west", "2 terminating zone=east node=here"], "cluster 1 2");
}

/// 77, 78, 84, 85.
#[test]
fn external_policy_local_serves_here_and_drops_where_only_other_nodes_have_endpoints() {
    let check = |endpoints: &[&str], expected| check("node-port external=Local", endpoints, expected);
    check(&["1 here", "2 there"], "cluster 1 2, local 1, internal Serve, external Serve");
    check(&["2 there"], "cluster 2, local, internal Serve, external Drop");
    check(&["1 here unready", "2 there"], "cluster 2, local, internal Serve, external Drop");
}

/// 80 to 83.
#[test]
fn internal_policy_local_serves_here_and_drops_where_only_other_nodes_have_endpoints() {
    check("internal=Local", &["1 here", "2 there"], "cluster, local 1, internal Serve, external Serve");
    check("internal=Local", &["2 there"], "cluster, local, internal Drop, external Serve");
    check("internal=Local", &["2 there terminating"], "cluster, local, internal Drop, external Serve");
    check("internal=Local node-port", &["2 there"], "cluster 2, local, internal Drop, external Serve");
    let both = "internal=Local external=Local load-balancer";
    check(both, &["1 here", "2 there"], "cluster 1 2, local 1, internal Serve, external Serve");
    check(both, &["2 there"], "cluster 2, local, internal Drop, external Drop");
}

/// 89, 93.
#[test]
fn the_local_fallback_to_terminating_endpoints_does_not_depend_on_other_nodes() {
    let check = |endpoints: &[&str], expected| check("node-port external=Local", endpoints, expected);
    check(&["1 here terminating", "2 there"], "cluster 2, local 1, internal Serve, external Serve");
    check(&["1 here", "2 here terminating"], "cluster 1, local 1, internal Serve, external Serve");
    check(&["1 here unready", "2 there terminating"], "cluster 2, local, internal Serve, external Drop");
    check(&["1 here dying", "2 there terminating"], "cluster 2, local, internal Serve, external Drop");
}

/// 16, 17: without a frontend for outside traffic its policy has no effect.
#[test]
fn external_policy_without_external_addresses_has_no_effect() {
    check("external=Local", &["1 here", "2 there"], "cluster 1 2, local, internal Serve, external Drop");
}

/// 67, 68.
#[test]
fn an_endpoint_is_local_only_by_the_exact_name_of_a_known_node() {
    check(
        "internal=Local",
        &["1", "2 Here", "3 here", "4 there"],
        "cluster, local 3, internal Serve, external Serve",
    );
    let nameless = Place { node: "", zone: None };
    let outcome = outcome(nameless, "internal=Local", &["1", "2 here"]);
    assert_eq!(outcome, "cluster, local, internal Drop, external Serve");
}

/// 95, 96, 101, 105.
#[test]
fn zone_hints_narrow_when_all_ready_endpoints_have_them_and_one_fits() {
    check_cluster(HERE, &["1 zone=east", "2 zone=west", "3 zone=west,east"], "cluster 1 3");
    check_cluster(HERE, &["1 zone=east", "2"], "cluster 1 2");
    check_cluster(HERE, &["1 zone=east", "2 node=there"], "cluster 1 2");
}

/// 97 to 99.
#[test]
fn hints_of_endpoints_that_are_not_ready_do_not_count() {
    check_cluster(HERE, &["1 zone=east", "2 zone=west", "3 unready", "4 terminating"], "cluster 1");
    check_cluster(HERE, &["1 zone=west", "2 zone=north"], "cluster 1 2");
    check_cluster(HERE, &["1 zone=west", "2 unready zone=east", "3 terminating zone=east"], "cluster 1");
}

/// 100.
#[test]
fn a_node_without_a_zone_ignores_zone_hints() {
    for zone in [None, Some("")] {
        check_cluster(Place { zone, ..HERE }, &["1 zone=east", "2 zone=west"], "cluster 1 2");
    }
}

/// 102 to 104.
#[test]
fn node_hints_win_over_zone_hints_when_one_is_for_this_node() {
    let both = ["1 node=here zone=west", "2 node=there zone=east", "3 node=there,here zone=west"];
    check_cluster(HERE, &both, "cluster 1 3");
    check_cluster(HERE, &["1 node=other zone=west", "2 node=there zone=east"], "cluster 2");
    check_cluster(HERE, &["1 node=here zone=west", "2 zone=east"], "cluster 2");
    check_cluster(HERE, &["1 node=here", "2 zone=east"], "cluster 1 2");
    check_cluster(
        Place { node: "", ..HERE },
        &["1 node=here zone=east", "2 node=here zone=west"],
        "cluster 1",
    );
    check_cluster(Place { zone: None, ..HERE }, &["1 node=here", "2 node=there"], "cluster 1");
}

/// 94.
#[test]
fn hints_do_not_narrow_the_local_endpoints() {
    let endpoints = ["1 here zone=west", "2 there zone=east"];
    check("node-port external=Local", &endpoints, "cluster 2, local 1, internal Serve, external Serve");
}
