//! Numbers in comments are those of the edge cases in the specification; 170 to 172 as issue 4
//! replaces them.

use super::*;
use crate::model::{Conditions, Frontend, ObjectName, Port, Service, SliceEndpoint, TrafficPolicy};
use crate::net::{IpFamily, PerFamily};

const NODE: &str = "192.0.2.1";

/// One Service with all kinds of addresses, port 8000 and node port 32000 in each protocol, and
/// `endpoints` (`<last byte>` or `<last byte> <conditions>`: r(eady), s(erving), t(erminating)).
fn frontends(endpoints: &[&str]) -> Frontends {
    let mut frontends = no_frontends();
    add(&mut frontends, "svc", "172.30.1.1", endpoints);
    frontends
}

fn no_frontends() -> Frontends {
    Frontends::new(NodePortIps { ips: [NODE.parse().unwrap()].into(), is_loopback_included: true })
}

fn add(frontends: &mut Frontends, name: &str, cluster_ip: &str, endpoints: &[&str]) {
    add_created(None, frontends, name, cluster_ip, endpoints);
}

fn add_created(
    created: Option<i64>,
    frontends: &mut Frontends,
    name: &str,
    cluster_ip: &str,
    endpoints: &[&str],
) {
    let family = IpFamily::of(cluster_ip.parse().unwrap());
    let port = |protocol| Port { name: "p".into(), protocol, port: 8000, node_port: Some(32000) };
    let frontend = Frontend {
        cluster_ip: cluster_ip.parse().unwrap(),
        external_ips: Box::default(),
        load_balancer_ips: ["5.6.7.8".parse().unwrap()].into(),
        source_ranges: Box::default(),
    };
    let mut both = PerFamily { v4: None, v6: None };
    *both.get_mut(family) = Some(frontend);
    let service = Service {
        name: ObjectName::new("ns", name),
        frontends: both,
        ports: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(port).into(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        health_check_node_port: None,
        created,
    };
    let sources: Vec<SliceEndpoint> = endpoints
        .iter()
        .map(|text| {
            let (byte, conditions) = text.split_once(' ').unwrap_or((text, "rs"));
            let conditions = Conditions {
                is_ready: conditions.contains('r'),
                is_serving: conditions.contains('s'),
                is_terminating: conditions.contains('t'),
            };
            let ip = match family {
                IpFamily::V4 => format!("10.0.0.{byte}"),
                IpFamily::V6 => format!("fd00::{byte}"),
            };
            SliceEndpoint { ip: ip.parse().unwrap(), conditions, node: None, hints: None }
        })
        .collect();
    let all: Vec<Endpoint<'_>> =
        sources.iter().map(|source| Endpoint { address: SocketAddr::new(source.ip, 9090), source }).collect();
    for port in service.ports_in(family) {
        frontends.add(&port, &["1.2.3.4".parse().unwrap()], &all);
    }
}

#[track_caller]
fn check(frontends: &Frontends, destination: &str, backend: &str, expected: Option<StaleReason>) {
    let flow = Flow { destination: destination.parse().unwrap(), backend: backend.parse().unwrap() };
    assert_eq!(frontends.stale_reason(&flow), expected, "{destination} -> {backend}");
}

#[test]
fn flows_to_endpoints_that_do_not_serve_are_stale_at_every_address() {
    // 170, and the vectors of the specification.
    let frontends = frontends(&["1", "2 t"]);
    let node_port = format!("{NODE}:32000");
    for to in ["172.30.1.1:8000", "1.2.3.4:8000", "5.6.7.8:8000", &node_port, "127.0.0.1:32000"] {
        check(&frontends, to, "10.0.0.1:9090", None);
        check(&frontends, to, "10.0.0.1:9091", Some(StaleReason::EndpointGone));
        check(&frontends, to, "10.0.0.2:9090", Some(StaleReason::EndpointGone));
        check(&frontends, to, "10.0.0.3:9090", Some(StaleReason::EndpointGone));
        check(&frontends, to, to, Some(StaleReason::Untranslated));
    }
}

#[test]
fn flows_of_no_service_are_not_stale() {
    let frontends = frontends(&["1"]);
    check(&frontends, "172.30.1.1:3000", "10.0.0.7:9090", None);
    check(&frontends, "8.8.8.8:53", "8.8.8.8:53", None);
    // A node port counts on the node, not on hosts that this node routes to.
    check(&frontends, "8.8.8.8:32000", "8.8.8.8:32000", None);
    check(&frontends, "8.8.8.8:32000", "10.0.0.7:1", None);
    // In the other direction: a client that uses the port number by chance.
    check(&frontends, &format!("{NODE}:8000"), "10.0.0.7:1", None);
}

#[test]
fn node_ports_count_on_the_configured_addresses() {
    let mut frontends = Frontends::new(NodePortIps::default());
    add(&mut frontends, "svc", "172.30.1.1", &["1"]);
    check(&frontends, "127.0.0.1:32000", "10.0.0.7:1", None);
    check(&frontends, &format!("{NODE}:32000"), "10.0.0.7:1", None);
}

#[test]
fn terminating_but_serving_endpoints_keep_their_flows() {
    // 173.
    let frontends = frontends(&["1 st", "3 s"]);
    for backend in ["10.0.0.1:9090", "10.0.0.3:9090"] {
        check(&frontends, "172.30.1.1:8000", backend, None);
    }
}

#[test]
fn flows_to_an_endpoint_that_is_ready_but_not_serving_are_stale_while_others_serve() {
    // `serving: false` and no `ready`.
    let some_serve = frontends(&["1", "2 r"]);
    check(&some_serve, "172.30.1.1:8000", "10.0.0.2:9090", Some(StaleReason::EndpointGone));
    // With publishNotReadyAddresses rules lead to it while no endpoint serves.
    let none_serves = frontends(&["2 r", "3 t"]);
    check(&none_serves, "172.30.1.1:8000", "10.0.0.2:9090", None);
    check(&none_serves, "172.30.1.1:8000", "10.0.0.3:9090", Some(StaleReason::EndpointGone));
}

#[test]
fn flows_of_the_last_endpoint_are_stale_once_it_is_gone() {
    // Replaces 171.
    for endpoints in [&[][..], &["1 t"]] {
        let frontends = frontends(endpoints);
        check(&frontends, "172.30.1.1:8000", "10.0.0.1:9090", Some(StaleReason::NoEndpoints));
    }
}

#[test]
fn flows_of_removed_frontends_are_stale() {
    // Replaces 172.
    let mut next = no_frontends();
    next.carry_over(&frontends(&["1"]));
    let node_port = format!("{NODE}:32000");
    for to in ["172.30.1.1:8000", "1.2.3.4:8000", &node_port] {
        check(&next, to, "10.0.0.1:9090", Some(StaleReason::FrontendGone));
        // The address is now a foreign one.
        check(&next, to, to, None);
    }
    check(&next, "8.8.8.8:32000", "10.0.0.1:9090", None);
    assert!(!next.is_empty());
    next.drop_removed();
    assert!(next.is_empty());
    check(&next, "172.30.1.1:8000", "10.0.0.1:9090", None);
}

#[test]
fn frontends_that_were_removed_before_the_last_sweep_are_carried_over() {
    let first = frontends(&["1"]);
    let mut second = no_frontends();
    second.carry_over(&first);
    let mut third = no_frontends();
    third.carry_over(&second);
    check(&third, "172.30.1.1:8000", "10.0.0.1:9090", Some(StaleReason::FrontendGone));
    // A frontend that exists again counts by its endpoints.
    let mut fourth = frontends(&["1"]);
    fourth.carry_over(&third);
    check(&fourth, "172.30.1.1:8000", "10.0.0.1:9090", None);
    check(&fourth, "172.30.1.1:8000", "10.0.0.2:9090", Some(StaleReason::EndpointGone));
}

#[test]
fn an_address_of_several_services_counts_for_the_oldest() {
    let mut frontends = no_frontends();
    add(&mut frontends, "a", "172.30.1.1", &["1"]);
    add_created(Some(20), &mut frontends, "b", "172.30.1.2", &["2"]);
    add_created(Some(10), &mut frontends, "c", "172.30.1.3", &["3"]);
    let node_port = format!("{NODE}:32000");
    for to in ["1.2.3.4:8000", "5.6.7.8:8000", &node_port] {
        check(&frontends, to, "10.0.0.3:9090", None);
        check(&frontends, to, "10.0.0.1:9090", Some(StaleReason::EndpointGone));
        check(&frontends, to, "10.0.0.2:9090", Some(StaleReason::EndpointGone));
    }
    check(&frontends, "172.30.1.1:8000", "10.0.0.1:9090", None);
    // Also when the oldest one has no endpoints.
    add_created(Some(5), &mut frontends, "d", "172.30.1.4", &[]);
    check(&frontends, "1.2.3.4:8000", "10.0.0.3:9090", Some(StaleReason::NoEndpoints));
}

#[test]
fn a_cluster_ip_counts_for_its_own_service_even_if_others_claim_it() {
    let mut frontends = no_frontends();
    // The load balancer IP of both is the cluster IP of the second, which is younger.
    add_created(Some(1), &mut frontends, "a", "172.30.1.1", &["1"]);
    add_created(Some(9), &mut frontends, "b", "5.6.7.8", &["2"]);
    check(&frontends, "5.6.7.8:8000", "10.0.0.2:9090", None);
    check(&frontends, "5.6.7.8:8000", "10.0.0.1:9090", Some(StaleReason::EndpointGone));
}

#[test]
fn ipv6_flows_are_stale_for_the_same_reasons() {
    let mut frontends = Frontends::new(NodePortIps {
        ips: ["fd01::1".parse().unwrap()].into(),
        ..no_frontends().node_port_ips
    });
    add(&mut frontends, "svc", "fd00:96::1", &["1"]);
    check(&frontends, "[fd00:96::1]:8000", "[fd00::1]:9090", None);
    check(&frontends, "[fd00:96::1]:8000", "[fd00::2]:9090", Some(StaleReason::EndpointGone));
    check(&frontends, "[fd01::1]:32000", "[fd00::2]:9090", Some(StaleReason::EndpointGone));
    check(&frontends, "[::1]:32000", "[fd00::2]:9090", None);
}

#[test]
fn each_reason_has_its_own_name() {
    let words: BTreeSet<&str> = StaleReason::ALL.into_iter().map(StaleReason::as_str).collect();
    assert_eq!(words.len(), StaleReason::ALL.len());
}
