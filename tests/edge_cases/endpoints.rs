//! C. EndpointSlices and endpoints.

use crate::agent::Agent;
use crate::lab::*;

/// Checks the fates of a packet to the Service with these endpoints in one slice.
#[track_caller]
fn check(endpoints: &[&str], expected: &str) {
    lab([web(""), pods(endpoints)]).check(&[("pod -> 10.96.0.10:80", expected)]);
}

#[track_caller]
fn check_slices(slices: &[String], expected: &str) {
    lab([web("")].into_iter().chain(slices.iter().cloned())).check(&[("pod -> 10.96.0.10:80", expected)]);
}

fn second(endpoints: &[&str]) -> String {
    slice("default/web", "b", "{name: p, port: 80}", endpoints)
}

/// A slice as an API server may send it, without defaults.
fn raw_slice(ports: serde_json::Value) -> (Option<chainsmith::model::Slice>, Vec<String>) {
    let object = serde_json::from_value(serde_json::json!({
        "metadata": {
            "namespace": "default", "name": "web-a", "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4", "ports": ports, "endpoints": [{"addresses": ["10.180.1.5"]}],
    }))
    .unwrap();
    let decoded = chainsmith::model::decode::slice(&object, &mut Default::default());
    let problems = decoded.problems.iter().map(ToString::to_string).collect();
    (decoded.value(), problems)
}

/// Case 48.
#[test]
fn a_slice_without_a_service_is_ignored() {
    let nobodys = pods(&["10.180.1.5"]).replace("kubernetes.io/service-name: web", "app: web");
    check_slices(&[nobodys], "rejected");
}

/// Case 49.
#[test]
fn a_slice_port_without_a_name_is_ignored_and_reported() {
    let (slice, problems) = raw_slice(serde_json::json!([{"port": 80, "protocol": "TCP"}]));
    assert!(
        slice.unwrap().ports.is_empty() && problems[0].contains("ports[0].name is absent"),
        "{problems:?}"
    );
    let (slice, problems) = raw_slice(serde_json::json!([{"name": "", "port": 80, "protocol": "TCP"}]));
    assert_eq!((slice.unwrap().ports.len(), problems.len()), (1, 0));
}

/// Case 50.
#[test]
fn a_named_slice_port_does_not_serve_an_unnamed_service_port() {
    let unnamed = service("default/web", "clusterIP: 10.96.0.10, ports: [{port: 80}]", &[]);
    let http = slice("default/web", "a", "{name: http, port: 80}", &["10.180.1.5"]);
    lab([unnamed, http]).check(&[("pod -> 10.96.0.10:80", "rejected")]);
}

/// Case 51.
#[test]
fn a_slice_port_without_a_number_is_ignored_and_reported() {
    for ports in [serde_json::json!([{"name": "p"}]), serde_json::json!([{"name": "p", "port": 0}])] {
        let (slice, problems) = raw_slice(ports);
        assert!(slice.unwrap().ports.is_empty() && problems.len() == 1, "{problems:?}");
    }
}

/// Case 52.
#[test]
fn a_slice_port_of_another_protocol_does_not_serve_the_port() {
    check_slices(
        &[slice("default/web", "a", "{name: p, port: 80, protocol: UDP}", &["10.180.1.5"])],
        "rejected",
    );
}

/// Case 53.
#[test]
fn the_first_address_of_an_endpoint_is_used() {
    check_slices(
        &[pods(&["10.180.1.5"]).replace("'10.180.1.5'", "'10.180.1.5', '10.180.1.6'")],
        "10.180.1.5:80",
    );
}

/// Case 54.
#[test]
fn an_endpoint_without_addresses_is_ignored() {
    let lab = lab([web(""), pods(&["10.180.1.5", "10.180.1.6"]).replace("'10.180.1.5'", "")]);
    lab.check_problem("endpoints[0].addresses is empty");
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.1.6:80")]);
}

/// Case 55.
#[test]
fn an_endpoint_without_conditions_is_ready() {
    check(&["10.180.1.5"], "10.180.1.5:80");
}

/// Case 56.
#[test]
fn an_unready_endpoint_that_is_not_terminating_is_not_used() {
    check(&["10.180.1.5 unready"], "rejected");
    check(&["10.180.1.5 unready", "10.180.1.6"], "10.180.1.6:80");
}

/// Case 57.
#[test]
fn a_terminating_endpoint_serves_by_default() {
    check(&["10.180.1.5 unready terminating"], "10.180.1.5:80");
}

/// Case 58.
#[test]
fn a_terminating_endpoint_that_does_not_serve_is_never_used() {
    check(&["10.180.1.5 unready unserving terminating"], "rejected");
}

/// Case 59.
#[test]
fn a_ready_endpoint_is_used_even_if_terminating() {
    check(&["10.180.1.5 ready terminating", "10.180.1.6"], "10.180.1.5:80, 10.180.1.6:80");
}

/// Case 60.
#[test]
fn the_slices_of_a_service_are_merged() {
    let lab = lab([web(""), pods(&["10.180.1.7"]), second(&["10.180.1.5"])]);
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.1.5:80, 10.180.1.7:80")]);
    assert!(lab.nat(&svc())[1].contains("-> 10.180.1.5:80"), "sorted together");
}

/// Case 61.
#[test]
fn an_address_that_terminates_in_one_slice_and_is_ready_in_another_is_ready() {
    let (leaving, ready) = (["10.180.1.5 unready terminating", "10.180.1.9"], ["10.180.1.5"]);
    let expected = "10.180.1.5:80, 10.180.1.9:80";
    check_slices(&[pods(&leaving), second(&ready)], expected);
    check_slices(&[pods(&ready), second(&leaving)], expected);
}

/// Case 62; kube-proxy leaves it open which slice wins.
#[test]
fn an_address_unready_in_one_slice_and_ready_in_another_has_the_state_of_the_last_slice_by_name() {
    check_slices(&[pods(&["10.180.1.5 unready"]), second(&["10.180.1.5"])], "10.180.1.5:80");
    check_slices(&[second(&["10.180.1.5 unready"]), pods(&["10.180.1.5"])], "rejected");
}

/// Case 63.
#[test]
fn of_one_address_twice_in_a_slice_the_later_is_used() {
    check(&["10.180.1.5 unready", "10.180.1.5"], "10.180.1.5:80");
    check(&["10.180.1.5", "10.180.1.5 unready"], "rejected");
}

/// Case 64.
#[test]
fn a_second_terminating_entry_does_not_make_an_address_terminating() {
    check(&["10.180.1.5", "10.180.1.5 unready terminating", "10.180.1.9"], "10.180.1.5:80, 10.180.1.9:80");
}

/// Case 65.
#[test]
fn one_address_on_two_ports_is_two_endpoints() {
    let eighty_eighty = slice("default/web", "b", "{name: p, port: 8080}", &["10.180.1.5"]);
    let lab = lab([web(""), pods(&["10.180.1.5"]), eighty_eighty]);
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.1.5:80, 10.180.1.5:8080")]);
    let rules = lab.nat(&svc());
    assert!(rules[1].contains("10.180.1.5:80\"") && rules[2].contains("10.180.1.5:8080\""), "{rules:?}");
}

/// Case 66.
#[test]
fn endpoints_are_sorted_as_text() {
    let order = |endpoints: &[&str]| -> Vec<String> {
        let rules = lab([web(""), pods(endpoints)]).nat(&svc());
        let target =
            |rule: &String| rule.split("-> ").nth(1).map(|rest| rest.split('"').next().unwrap().to_owned());
        rules.iter().filter_map(target).collect()
    };
    assert_eq!(order(&["10.0.1.1", "10.0.1.2", "10.0.1.10"]), ["10.0.1.10:80", "10.0.1.1:80", "10.0.1.2:80"]);
    assert_eq!(order(&["10.180.0.3", "10.180.0.13"]), ["10.180.0.13:80", "10.180.0.3:80"]);
}

/// Case 67.
#[test]
fn an_endpoint_without_a_node_is_never_local() {
    let lab = lab([web("internalTrafficPolicy: Local"), pods(&["10.180.1.5"])]);
    lab.check(&[("pod -> 10.96.0.10:80", "dropped")]);
}

/// Case 68.
#[test]
fn names_of_nodes_are_compared_exactly() {
    let lab = lab([web("internalTrafficPolicy: Local"), pods(&["10.180.1.5@Node-1"])]);
    lab.check(&[("pod -> 10.96.0.10:80", "dropped")]);
}

/// Case 69, replaced: kube-proxy leaves the old Service with a stale copy for good.
#[test]
fn a_slice_that_moves_to_another_service_leaves_the_old_one() {
    let other = service("default/other", "clusterIP: 10.96.0.11, ports: [{name: p, port: 80}]", &[]);
    let moved = pods(&["10.180.1.5"]).replace("service-name: web", "service-name: other");
    let mut agent = Agent::new();
    agent.sync_to(&lab([web(""), other.clone(), pods(&["10.180.1.5"])]));
    let after = lab([web(""), other, moved]);
    agent.sync_to(&after);
    after.check(&[("pod -> 10.96.0.10:80", "rejected"), ("pod -> 10.96.0.11:80", "10.180.1.5:80")]);
}

/// Case 70.
#[test]
fn an_endpoint_stays_while_any_slice_has_it() {
    let mut agent = Agent::new();
    agent.sync_to(&lab([web(""), pods(&["10.180.1.5"]), second(&["10.180.1.5"])]));
    assert_eq!(agent.sync_to(&lab([web(""), second(&["10.180.1.5"])])), "");
}

/// Case 71, except that nothing is compared: kube-proxy syncs.
#[test]
fn a_slice_with_only_a_new_version_touches_nothing() {
    let mut agent = Agent::new();
    agent.sync_to(&lab([web(""), pods(&["10.180.1.5"])]));
    let newer = pods(&["10.180.1.5"]).replace("metadata: {", "metadata: {resourceVersion: '7', ");
    assert!(agent.apply(&lab([web(""), newer])).is_empty());
}

/// Case 72.
#[test]
fn a_slice_created_and_deleted_between_two_syncs_has_no_effect() {
    let (mut agent, before) = (Agent::new(), lab([web(""), pods(&["10.180.1.5"])]));
    agent.sync_to(&before);
    agent.apply(&lab([web(""), pods(&["10.180.1.5"]), second(&["10.180.1.6"])]));
    assert_eq!(agent.sync_to(&before), "");
}

/// Case 73.
#[test]
fn without_slices_one_restore_deletes_the_chains_and_rejects_clients() {
    let mut agent = Agent::new();
    agent.sync_to(&lab([web(""), pods(&["10.180.1.5"])]));
    let n_before = agent.sync.kernel().inputs.len();
    let after = lab([web("")]);
    let input = agent.sync_to(&after);
    assert_eq!(agent.sync.kernel().inputs.len(), n_before + 1, "one process");
    for name in [svc(), sep("default/web:p", "10.180.1.5:80")] {
        assert!(input.contains(&format!("-X {name}\n")), "{input}");
    }
    after.check(&[("pod -> 10.96.0.10:80", "rejected")]);
}

/// Case 74.
#[test]
fn endpoints_for_ports_the_service_lacks_have_no_effect() {
    let many: Vec<String> = (0..1200).map(|n| format!("10.180.{}.{}", 4 + n / 250, 1 + n % 250)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let other = slice("default/web", "b", "{name: q, port: 81}", &many);
    let lab = lab([web(""), pods(&["10.180.1.5"]), other]);
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.1.5:80")]);
    assert_eq!(lab.chains(V4, "KUBE-SEP-").len(), 1);
    assert!(lab.nat(&svc())[1].contains("--comment"), "not a large cluster");
}

/// Case 75.
#[test]
fn seven_endpoints_get_equal_shares() {
    let seven: Vec<String> = (1..=7).map(|n| format!("10.180.1.{n}")).collect();
    let seven: Vec<&str> = seven.iter().map(String::as_str).collect();
    let lab = lab([web(""), pods(&seven)]);
    let targets: Vec<String> = (1..=7).map(|n| format!("10.180.1.{n}:80")).collect();
    lab.check(&[("pod -> 10.96.0.10:80", &targets.join(", "))]);
    let probabilities: Vec<String> = lab
        .nat(&svc())
        .iter()
        .filter_map(|rule| Some(rule.split("--probability ").nth(1)?.split(' ').next()?.to_owned()))
        .collect();
    assert_eq!(
        probabilities,
        [
            "0.14285714272",
            "0.16666666651",
            "0.20000000019",
            "0.25000000000",
            "0.33333333349",
            "0.50000000000"
        ]
    );
    assert!(!lab.nat(&svc()).last().unwrap().contains("statistic"));
}

/// Case 76.
#[test]
fn one_endpoint_needs_no_choice() {
    let lab = lab([web(""), pods(&["10.180.1.5"])]);
    let rules = lab.nat(&svc());
    let chain = sep("default/web:p", "10.180.1.5:80");
    assert_eq!(rules[1..], [format!("-m comment --comment \"default/web:p -> 10.180.1.5:80\" -j {chain}")]);
    assert!(!lab.save(V4).contains("-m statistic"));
}
