//! D. Traffic policies, local endpoints.

use crate::lab::*;

const PODS: [&str; 2] = ["10.180.1.5@node-1", "10.180.2.7@node-2"];
const BOTH: &str = "10.180.1.5:80, 10.180.2.7:80";
const REMOTE: [&str; 2] = ["10.180.2.7@node-2", "10.180.3.8@node-3"];
const LOCAL_POLICY: &str = "externalTrafficPolicy: Local, healthCheckNodePort: 30999";

fn internal_local(more: &str) -> String {
    web(&format!("internalTrafficPolicy: Local, {more}"))
}

/// Checks packets from `from` to all external frontends of [`open`].
#[track_caller]
fn check_external(lab: &Lab, from: &str, expected: &str) {
    for to in EXTERNAL {
        lab.check(&[(&format!("{from} -> {to}"), expected)]);
    }
}

/// Case 77.
#[test]
fn external_policy_local_sends_external_clients_to_local_endpoints_and_pods_to_all() {
    let lab = lab([open(LOCAL_POLICY), pods(&PODS)]);
    check_external(&lab, "outside", "10.180.1.5:80");
    check_external(&lab, "pod", BOTH);
    check_external(&lab, "node", &format!("masqueraded {BOTH}"));
    lab.check(&[("pod -> 10.96.0.10:80", BOTH)]);
    let name = "default/web:p external destinations";
    assert_eq!(
        lab.nat(&ext()),
        [
            format!("-s 10.180.0.0/16 -m comment --comment \"pod traffic for {name}\" -j {}", svc()),
            format!(
                "-m comment --comment \"masquerade LOCAL traffic for {name}\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"
            ),
            format!(
                "-m comment --comment \"route LOCAL traffic for {name}\" -m addrtype --src-type LOCAL -j {}",
                svc()
            ),
            format!("-j {}", svl()),
        ]
    );
    assert_eq!((lab.nat(&svl()).len(), lab.nat(&svc()).len(), lab.chains(V4, "KUBE-SEP-").len()), (1, 3, 2));
}

/// Case 78.
#[test]
fn external_policy_local_without_local_endpoints_drops_external_clients() {
    let lab = lab([open(LOCAL_POLICY), pods(&REMOTE)]);
    let all = "10.180.2.7:80, 10.180.3.8:80";
    check_external(&lab, "outside", "dropped");
    check_external(&lab, "pod", all);
    check_external(&lab, "node", &format!("masqueraded {all}"));
    lab.check(&[("pod -> 10.96.0.10:80", all)]);
    assert_eq!((lab.nat(&ext()).len(), lab.chains(V4, "KUBE-SVL-").len()), (3, 0));
    let drops = lab.filter("KUBE-EXTERNAL-SERVICES");
    assert_eq!(
        drops[2],
        "-p tcp -m comment --comment \"default/web:p has no local endpoints\" -m addrtype --dst-type LOCAL \
         -m tcp --dport 30080 -j DROP"
    );
    assert!(drops.len() == 3 && drops.iter().all(|rule| rule.ends_with("-j DROP")));
}

/// Case 79.
#[test]
fn external_policy_local_without_any_endpoints_rejects() {
    let lab = lab([open(LOCAL_POLICY)]);
    check_external(&lab, "outside", "rejected");
    check_external(&lab, "pod", "rejected");
    assert_eq!(lab.chains(V4, "KUBE-EXT-"), [""; 0]);
    assert_eq!(lab.filter("KUBE-NODEPORTS").len(), 1, "health checks are let in all the same");
}

/// Case 80.
#[test]
fn internal_policy_local_serves_from_local_endpoints_only() {
    let lab = lab([internal_local(""), pods(&PODS)]);
    lab.check(&[
        ("pod -> 10.96.0.10:80", "10.180.1.5:80"),
        ("outside -> 10.96.0.10:80", "masqueraded 10.180.1.5:80"),
    ]);
    assert!(lab.nat("KUBE-SERVICES")[0].ends_with(&svl()));
    assert!(lab.nat(&svl())[0].contains("! -s 10.180.0.0/16 -d 10.96.0.10/32"));
    assert_eq!((lab.chains(V4, "KUBE-SVC-").len(), lab.chains(V4, "KUBE-SEP-").len()), (0, 1));
}

/// Case 81.
#[test]
fn internal_policy_local_without_local_endpoints_drops() {
    let lab = lab([internal_local(""), pods(&REMOTE)]);
    lab.check(&[("pod -> 10.96.0.10:80", "dropped"), ("node -> 10.96.0.10:80", "dropped")]);
    assert!(lab.filter("KUBE-SERVICES")[0].contains("has no local endpoints"));
    assert_eq!(lab.port_chains(V4), [""; 0]);
}

/// Case 82.
#[test]
fn internal_policy_local_without_any_endpoints_rejects() {
    let lab = lab([internal_local(""), pods(&["10.180.2.7@node-2 unready"])]);
    lab.check(&[("pod -> 10.96.0.10:80", "rejected")]);
}

/// Case 83.
#[test]
fn internal_policy_local_does_not_affect_external_clients() {
    let lab = lab([open("internalTrafficPolicy: Local"), pods(&REMOTE)]);
    lab.check(&[("pod -> 10.96.0.10:80", "dropped")]);
    check_external(&lab, "outside", "masqueraded 10.180.2.7:80, 10.180.3.8:80");
    assert!(!lab.nat(&svc()).join("\n").contains("cluster IP"));
}

/// Case 84.
#[test]
fn with_both_policies_local_each_kind_of_traffic_has_its_chain() {
    let lab = lab([open(&format!("internalTrafficPolicy: Local, {LOCAL_POLICY}")), pods(&PODS)]);
    lab.check(&[
        ("pod -> 10.96.0.10:80", "10.180.1.5:80"),
        ("node -> 10.96.0.10:80", "masqueraded 10.180.1.5:80"),
    ]);
    check_external(&lab, "outside", "10.180.1.5:80");
    check_external(&lab, "pod", BOTH);
    assert!(lab.nat(&svl())[0].contains("cluster IP") && !lab.nat(&svc())[0].contains("cluster IP"));
}

/// Case 85.
#[test]
fn with_both_policies_local_and_remote_endpoints_external_clients_are_dropped() {
    let ranges = "loadBalancerSourceRanges: [198.51.100.0/24]";
    let lab = lab([open(&format!("internalTrafficPolicy: Local, {LOCAL_POLICY}, {ranges}")), pods(&REMOTE)]);
    lab.check(&[("pod -> 10.96.0.10:80", "dropped")]);
    check_external(&lab, "outside", "dropped");
    lab.check(&[
        ("pod -> 203.0.113.80:80", "10.180.2.7:80, 10.180.3.8:80"),
        ("pod -> 203.0.113.90:80", "dropped"),
    ]);
    assert_eq!((lab.filter("KUBE-SERVICES").len(), lab.filter("KUBE-EXTERNAL-SERVICES").len()), (1, 3));
    assert_eq!(
        (lab.filter("KUBE-PROXY-FIREWALL").len(), lab.nat(&fw()).len(), lab.nat(&ext()).len()),
        (1, 2, 3)
    );
    assert_eq!(lab.chains(V4, "KUBE-SVC-"), [svc()]);
}

/// Case 86.
#[test]
fn without_a_detector_pods_are_treated_as_external_clients() {
    let lab = lab([open(LOCAL_POLICY), pods(&PODS)]).without_flag("cluster-cidr");
    check_external(&lab, "pod", "10.180.1.5:80");
    assert!(!lab.nat(&ext()).join("\n").contains("pod traffic"));
}

/// Case 87.
#[test]
fn external_policy_cluster_masquerades_all_clients() {
    let with = lab([open(""), pods(&PODS)]);
    for lab in [with.clone(), with.without_flag("cluster-cidr")] {
        for from in ["pod", "elsewhere", "node", "outside"] {
            check_external(&lab, from, &format!("masqueraded {BOTH}"));
        }
        assert_eq!(
            lab.nat(&ext())[0],
            "-m comment --comment \"masquerade traffic for default/web:p external destinations\" -j KUBE-MARK-MASQ"
        );
    }
}

/// Case 88.
#[test]
fn a_pod_reaches_its_service_on_external_frontends_as_on_the_cluster_ip() {
    let lab = lab([open(LOCAL_POLICY), pods(&PODS)]);
    lab.check(&[
        ("pod -> 203.0.113.90:80", BOTH),
        ("10.180.1.5 -> 203.0.113.90:80", "10.180.2.7:80; masqueraded 10.180.1.5:80"),
    ]);
}

/// Case 89.
#[test]
fn a_terminating_local_endpoint_serves_external_clients_while_others_are_ready_elsewhere() {
    let lab =
        lab([open(LOCAL_POLICY), pods(&["10.180.1.5@node-1 unready terminating", "10.180.2.7@node-2"])]);
    check_external(&lab, "outside", "10.180.1.5:80");
    check_external(&lab, "pod", "10.180.2.7:80");
    assert_eq!(lab.chains(V4, "KUBE-SEP-").len(), 2);
}

/// Case 90.
#[test]
fn when_no_endpoint_is_ready_all_terminating_ones_serve_whatever_their_hints() {
    let lab = lab([
        open(""),
        pods(&[
            "10.180.1.5@node-1 unready terminating zone=zone-a",
            "10.180.2.7@node-2 unready terminating zone=zone-b",
        ]),
    ]);
    lab.check(&[("pod -> 10.96.0.10:80", BOTH)]);
    check_external(&lab, "outside", &format!("masqueraded {BOTH}"));
}

/// Case 91.
#[test]
fn one_ready_endpoint_is_preferred_to_all_terminating_ones() {
    let lab = lab([web(""), pods(&["10.180.2.7@node-2", "10.180.1.5@node-1 unready terminating"])]);
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.2.7:80")]);
}

/// Case 92.
#[test]
fn endpoints_that_terminate_without_serving_are_not_used() {
    let lab = lab([open(""), pods(&["10.180.1.5@node-1 unready unserving terminating"])]);
    lab.check(&[("pod -> 10.96.0.10:80", "rejected")]);
    check_external(&lab, "outside", "rejected");
}

/// Case 93.
#[test]
fn an_unready_local_endpoint_does_not_serve_external_clients() {
    let lab = lab([
        open(LOCAL_POLICY),
        pods(&["10.180.1.5@node-1 unready", "10.180.2.7@node-2 unready terminating"]),
    ]);
    check_external(&lab, "outside", "dropped");
    check_external(&lab, "pod", "10.180.2.7:80");
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.2.7:80")]);
}

/// Case 94.
#[test]
fn a_local_endpoint_with_a_hint_for_another_zone_serves_local_traffic() {
    let lab =
        lab([open(LOCAL_POLICY), pods(&["10.180.1.5@node-1 zone=zone-b", "10.180.2.7@node-2 zone=zone-a"])]);
    check_external(&lab, "outside", "10.180.1.5:80");
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.2.7:80")]);
    assert_eq!(lab.chains(V4, "KUBE-SEP-").len(), 2);
}
