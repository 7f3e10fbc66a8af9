//! E. Hints and topology. The node is in zone-a.

use crate::agent::Agent;
use crate::lab::*;

const HERE: &str = "10.180.1.5:80";
const THERE: &str = "10.180.2.7:80";
const BOTH: &str = "10.180.1.5:80, 10.180.2.7:80";

#[track_caller]
fn check(endpoints: &[&str], expected: &str) {
    lab([web(""), pods(endpoints)]).check(&[("pod -> 10.96.0.10:80", expected)]);
}

/// Case 95.
#[test]
fn with_hints_on_all_endpoints_those_for_the_zone_serve() {
    let endpoints = ["10.180.1.5 zone=zone-a", "10.180.2.7 zone=zone-b"];
    check(&endpoints, HERE);
    assert_eq!(lab([web(""), pods(&endpoints)]).chains(V4, "KUBE-SEP-").len(), 1);
}

/// Case 96.
#[test]
fn a_ready_endpoint_without_hints_makes_all_serve() {
    check(
        &["10.180.1.5 zone=zone-a", "10.180.2.7 zone=zone-b", "10.180.2.8"],
        "10.180.1.5:80, 10.180.2.7:80, 10.180.2.8:80",
    );
}

/// Case 97.
#[test]
fn an_unready_endpoint_without_hints_changes_nothing() {
    check(&["10.180.1.5 zone=zone-a", "10.180.2.7 zone=zone-b", "10.180.2.8 unready"], HERE);
}

/// Case 98.
#[test]
fn when_no_endpoint_has_a_hint_for_the_zone_all_serve() {
    check(&["10.180.1.5 zone=zone-b", "10.180.2.7 zone=zone-c"], BOTH);
}

/// Case 99.
#[test]
fn when_only_unready_endpoints_have_a_hint_for_the_zone_all_serve() {
    check(&["10.180.1.5 zone=zone-b", "10.180.2.7 zone=zone-c", "10.180.2.8 unready zone=zone-a"], BOTH);
}

/// Case 100.
#[test]
fn a_node_without_a_zone_ignores_zones() {
    let lab = lab([web(""), pods(&["10.180.1.5 zone=zone-a", "10.180.2.7 zone=zone-b"])]);
    let nowhere = NODE.replace(", labels: {topology.kubernetes.io/zone: zone-a}", "");
    lab.on(&nowhere).check(&[("pod -> 10.96.0.10:80", BOTH)]);
}

/// Case 101.
#[test]
fn an_endpoint_may_have_hints_for_several_zones() {
    check(&["10.180.1.5 zone=zone-b,zone-a", "10.180.2.7 zone=zone-b"], HERE);
}

/// Case 102.
#[test]
fn hints_for_the_node_have_precedence_over_hints_for_its_zone() {
    check(&["10.180.1.5 node=node-1 zone=zone-b", "10.180.2.7 node=node-2 zone=zone-a"], HERE);
}

/// Case 103.
#[test]
fn when_no_endpoint_has_a_hint_for_the_node_zones_are_used() {
    check(&["10.180.1.5 node=node-3 zone=zone-b", "10.180.2.7 node=node-2 zone=zone-a"], THERE);
}

/// Case 104.
#[test]
fn when_some_endpoints_have_no_node_hint_zones_are_used() {
    check(&["10.180.1.5 zone=zone-b", "10.180.2.7 node=node-1 zone=zone-a"], THERE);
    check(&["10.180.1.5 node=node-1 zone=zone-b", "10.180.2.7 zone=zone-a"], THERE);
}

/// Case 105.
#[test]
fn hints_are_used_whatever_the_service_sets() {
    let endpoints = ["10.180.1.5 zone=zone-a", "10.180.2.7 zone=zone-b"];
    check(&endpoints, HERE);
    lab([web("trafficDistribution: PreferClose"), pods(&endpoints)]).check(&[("pod -> 10.96.0.10:80", HERE)]);
}

/// Case 106.
#[test]
fn without_hints_a_preferred_distribution_has_no_effect() {
    let lab = lab([web("trafficDistribution: PreferClose"), pods(&["10.180.1.5", "10.180.2.7"])]);
    lab.check(&[("pod -> 10.96.0.10:80", BOTH)]);
}

/// Case 107.
#[test]
fn a_node_with_a_new_zone_gets_new_rules() {
    let before = lab([web(""), pods(&["10.180.1.5 zone=zone-a", "10.180.2.7 zone=zone-b"])]);
    let moved = before.clone().on(&NODE.replace("zone-a", "zone-b"));
    let mut agent = Agent::new();
    agent.sync_to(&before);
    assert!(agent.apply(&moved).node);
    agent.sync_to(&moved);
    moved.check(&[("pod -> 10.96.0.10:80", THERE)]);
}

/// Case 108.
#[test]
fn the_zone_of_an_endpoint_is_not_a_hint() {
    let zoned = pods(&["10.180.1.5", "10.180.2.7"])
        .replace("addresses: ['10.180.1.5']", "addresses: ['10.180.1.5'], zone: zone-a")
        .replace("addresses: ['10.180.2.7']", "addresses: ['10.180.2.7'], zone: zone-b");
    lab([web(""), zoned]).check(&[("pod -> 10.96.0.10:80", BOTH)]);
}
