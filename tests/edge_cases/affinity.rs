//! Session affinity, which the numbered cases cover only partly.

use chainsmith::iptables::trace::RecentLists;

use crate::lab::*;

const PODS: [&str; 2] = ["10.180.1.5@node-1", "10.180.2.7@node-2"];
const BOTH: &str = "10.180.1.5:80, 10.180.2.7:80";
const STICKY: &str = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 300}}";

/// The lists after a connection of `packet` to `endpoint`.
fn after(lab: &Lab, packet: &str, endpoint: &str) -> RecentLists {
    let packet = lab.packet(packet);
    let branches = lab.trace(&packet);
    let branch = branches.iter().find(|branch| branch.outcome.destination.to_string() == endpoint).unwrap();
    let mut recent = lab.recent.clone();
    recent.remember(&branch.outcome.remembered, packet.source.ip());
    recent
}

#[test]
fn a_client_stays_with_its_endpoint_until_the_timeout() {
    let mut lab = lab([web(STICKY), pods(&PODS)]);
    lab.check(&[("pod -> 10.96.0.10:80", BOTH)]);
    lab.recent = after(&lab, "pod -> 10.96.0.10:80", "10.180.2.7:80");
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.2.7:80"), ("elsewhere -> 10.96.0.10:80", BOTH)]);
    lab.recent.now = 300;
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.2.7:80")]);
    lab.recent.now = 301;
    lab.check(&[("pod -> 10.96.0.10:80", BOTH)]);
}

#[test]
fn each_connection_restarts_the_timeout() {
    let mut lab = lab([web(STICKY), pods(&PODS)]);
    lab.recent = after(&lab, "pod -> 10.96.0.10:80", "10.180.2.7:80");
    lab.recent.now = 200;
    lab.recent = after(&lab, "pod -> 10.96.0.10:80", "10.180.2.7:80");
    lab.recent.now = 400;
    lab.check(&[("pod -> 10.96.0.10:80", "10.180.2.7:80")]);
}

#[test]
fn a_client_keeps_its_endpoint_on_all_addresses_of_the_service() {
    let mut lab = lab([open(STICKY), pods(&PODS)]);
    lab.recent = after(&lab, "outside -> 203.0.113.80:80", "10.180.2.7:80");
    lab.check(&[
        ("outside -> 192.0.2.1:30080", "masqueraded 10.180.2.7:80"),
        ("outside -> 203.0.113.90:80", "masqueraded 10.180.2.7:80"),
        ("outside -> 10.96.0.10:80", "masqueraded 10.180.2.7:80"),
    ]);
}

#[test]
fn a_client_of_a_removed_endpoint_gets_another() {
    let mut before = lab([web(STICKY), pods(&PODS)]);
    before.recent = after(&before, "pod -> 10.96.0.10:80", "10.180.2.7:80");
    let mut now = lab([web(STICKY), pods(&["10.180.1.5@node-1", "10.180.2.8@node-2"])]);
    now.recent = before.recent;
    now.check(&[("pod -> 10.96.0.10:80", "10.180.1.5:80, 10.180.2.8:80")]);
}

#[test]
fn local_policy_has_precedence_over_affinity() {
    let local = format!("{STICKY}, externalTrafficPolicy: Local, healthCheckNodePort: 30999");
    let mut lab = lab([open(&local), pods(&PODS)]);
    lab.recent = after(&lab, "pod -> 203.0.113.80:80", "10.180.2.7:80");
    // The same address as an external client: only local endpoints are used.
    lab = lab.without_flag("cluster-cidr");
    lab.check(&[("pod -> 203.0.113.80:80", "10.180.1.5:80")]);
}
