//! How the claims observe traffic: the pod that answered, the source that it saw, the counters of rules.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::lab::Lab;
use crate::lab::address::FAMILIES;
use crate::lab::client::{Attempt, Host, Outcome, PATIENCE, Protocol};
use crate::lab::host::Node;

/// Attempts after which each of three pods has answered, but once in 10^10.
const UNTIL_ALL_ANSWERED: u32 = 60;

/// Connects until each of `pods` has answered; passes each answer to `check`.
#[track_caller]
pub(super) fn each_pod(
    pods: &[&str],
    host: &dyn Host,
    protocol: Protocol,
    to: SocketAddr,
    check: impl Fn(&Attempt),
) {
    let mut missing = pods.to_vec();
    for _ in 0..UNTIL_ALL_ANSWERED {
        let attempt = host.attempt(protocol, to, PATIENCE);
        let context = format!("{} over {protocol:?} to {to}: {attempt:?}", host.namespace().name());
        assert!(matches!(attempt.outcome, Outcome::Answered { .. }), "{context}");
        assert!(pods.contains(&attempt.pod()), "{context}");
        missing.retain(|pod| *pod != attempt.pod());
        check(&attempt);
        if missing.is_empty() {
            return;
        }
    }
    panic!("{missing:?} never answered {} over {protocol:?} to {to}", host.namespace().name());
}

/// Asserts that the pod saw the client's own address. (The port may differ: when conntrack still
/// has a flow between the same two, through a Service, it chooses a free one.)
#[track_caller]
pub(super) fn assert_source_kept(attempt: &Attempt) {
    let from = attempt.from.map(|from| from.ip());
    assert_eq!(Some(attempt.seen().ip()), from, "what the pod saw, and the client: {attempt:?}");
}

/// Asserts that the pod saw the address that `node` itself would use.
#[track_caller]
pub(super) fn assert_masqueraded_by(node: &Node, lab: &Lab, attempt: &Attempt) {
    let seen = attempt.seen();
    let own_pod = lab.pod(attempt.pod()).node() == node.number();
    if own_pod {
        assert!(node.bridge_address().contains(seen.ip()), "not masqueraded by {}: {attempt:?}", node.name());
    } else {
        assert!(node.owns(seen), "not masqueraded by {}: {attempt:?}", node.name());
        assert!(!node.bridge_address().contains(seen.ip()), "left by the wrong interface: {attempt:?}");
    }
}

/// How many packets `KUBE-MARK-MASQ` marked so far: on each node, in each family.
pub(super) fn marked(lab: &Lab) -> Vec<u64> {
    let mut counts = Vec::new();
    for node in lab.nodes() {
        for family in FAMILIES {
            let rules = node.netfilter().save_with_counters(family).expect("rules can be read");
            let is_mark = |line: &&str| line.contains("-A KUBE-MARK-MASQ ");
            let line = rules.lines().find(is_mark).expect("there is a rule that marks");
            // [packets:bytes] -A KUBE-MARK-MASQ ...
            let (packets, _) = line.trim_start_matches('[').split_once(':').expect("counters stand first");
            counts.push(packets.parse().expect("a number of packets"));
        }
    }
    counts
}

/// One attempt each, all at the same time, in the given order.
pub(super) fn at_the_same_time(
    attempts: &[(&(dyn Host + Sync), Protocol, SocketAddr)],
    patience: Duration,
) -> Vec<Attempt> {
    thread::scope(|scope| {
        let clients: Vec<_> = attempts
            .iter()
            .map(|(host, protocol, to)| scope.spawn(move || host.attempt(*protocol, *to, patience)))
            .collect();
        clients.into_iter().map(|client| client.join().expect("an attempt does not panic")).collect()
    })
}
