//! A. Services: what a change of them writes.

use chainsmith::rules::names::PortChain;

use crate::agent::{Agent, touches};
use crate::lab::*;

const PODS: [&str; 2] = ["10.180.1.5@node-1", "10.180.2.7@node-2"];
const BOTH: &str = "10.180.1.5:80, 10.180.2.7:80";

/// Case 19.
#[test]
fn a_change_that_no_rule_depends_on_touches_nothing() {
    let mut agent = Agent::new();
    agent.sync_to(&lab([web(""), pods(&PODS)]));
    let annotated = web("").replace("name: web}", "name: web, labels: {a: b}, annotations: {c: d}}");
    for object in [
        annotated,
        web("trafficDistribution: PreferClose"),
        web("publishNotReadyAddresses: true"),
        service("default/web", "clusterIP: 10.96.0.10, ports: [{name: p, port: 80, targetPort: 99}]", &[]),
    ] {
        assert!(agent.apply(&lab([object, pods(&PODS)])).is_empty());
        assert_eq!(agent.sync().tally.n_processes, 0);
    }
}

/// Case 20.
#[test]
fn a_changed_affinity_timeout_rewrites_the_rules_and_keeps_the_names() {
    let sticky = |seconds: u32| {
        let config = format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}");
        lab([web(&format!("sessionAffinity: ClientIP, {config}")), pods(&PODS)])
    };
    let mut agent = Agent::new();
    agent.sync_to(&sticky(100));
    let input = agent.sync_to(&sticky(200));
    assert!(touches(&input, &svc()) && input.contains("--rcheck --seconds 200 --reap"));
    assert!(!input.contains("-X "), "{input}");
    assert_eq!(sticky(100).chains(V4, "KUBE-SEP-"), sticky(200).chains(V4, "KUBE-SEP-"));
}

/// Case 21.
#[test]
fn without_affinity_the_next_sync_removes_the_affinity_rules() {
    let mut agent = Agent::new();
    agent.sync_to(&lab([web("sessionAffinity: ClientIP"), pods(&PODS)]));
    assert!(agent.save().contains("-m recent --set"));
    agent.sync_to(&lab([web(""), pods(&PODS)]));
    assert!(!agent.save().contains("-m recent"));
}

/// Case 22.
#[test]
fn a_renamed_port_gets_new_chains_and_rejects_until_its_slices_follow() {
    let (mut agent, renamed) = (Agent::new(), web("").replace("name: p,", "name: q,"));
    agent.sync_to(&lab([web(""), pods(&PODS)]));
    let input = agent.sync_to(&lab([renamed.clone(), pods(&PODS)]));
    for name in [svc(), sep("default/web:p", "10.180.1.5:80")] {
        assert!(input.contains(&format!("-X {name}\n")), "{input}");
    }
    lab([renamed.clone(), pods(&PODS)]).check(&[("pod -> 10.96.0.10:80", "rejected")]);
    let followed = slice("default/web", "a", "{name: q, port: 80}", &PODS);
    lab([renamed, followed]).check(&[("pod -> 10.96.0.10:80", BOTH)]);
}

/// Case 23.
#[test]
fn a_changed_protocol_is_another_service_port() {
    let (mut agent, udp) = (Agent::new(), web("").replace("port: 80}", "port: 80, protocol: UDP}"));
    agent.sync_to(&lab([web(""), pods(&PODS)]));
    let after = lab([udp, pods(&PODS)]);
    let input = agent.sync_to(&after);
    assert!(input.contains(&format!("-X {}\n", svc())), "{input}");
    after.check(&[("pod -> 10.96.0.10:80/udp", "rejected"), ("pod -> 10.96.0.10:80/tcp", "untouched")]);
}

/// Case 24, except that the chains of the remaining port are not written: they are unchanged.
#[test]
fn removing_one_port_deletes_the_chains_of_that_port_only() {
    let ports = slice("default/web", "a", "{name: p, port: 80}, {name: q, port: 81}", &PODS);
    let both = "clusterIP: 10.96.0.10, ports: [{name: p, port: 80}, {name: q, port: 81}]";
    let mut agent = Agent::new();
    agent.sync_to(&lab([service("default/web", both, &[]), ports.clone()]));
    let input = agent.sync_to(&lab([web(""), ports]));
    let gone = chain(PortChain::Cluster, "default/web:q");
    assert!(input.contains(&format!("-X {gone}\n")) && !touches(&input, &svc()), "{input}");
}

/// Case 25.
#[test]
fn a_service_deleted_and_created_again_between_two_syncs_is_not_written() {
    let (mut agent, whole) = (Agent::new(), lab([web(""), pods(&PODS)]));
    agent.sync_to(&whole);
    agent.apply(&lab([pods(&PODS)]));
    assert_eq!(agent.sync_to(&whole), "");
}
