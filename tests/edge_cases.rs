//! The edge cases of spec/edge-cases.md, each as a claim: packets first, text second.
//!
//! The doc comment of a test contains the number of its case. Where design.md ("What binds") replaces
//! kube-proxy's behaviour, the test claims ours, and the comment says so.

#[path = "edge_cases/affinity.rs"]
mod affinity;
#[path = "edge_cases/agent.rs"]
mod agent;
#[path = "edge_cases/endpoints.rs"]
mod endpoints;
#[path = "edge_cases/families.rs"]
mod families;
#[path = "edge_cases/lab.rs"]
mod lab;
#[path = "edge_cases/load_balancers.rs"]
mod load_balancers;
#[path = "edge_cases/masquerading.rs"]
mod masquerading;
#[path = "edge_cases/node_ports.rs"]
mod node_ports;
#[path = "edge_cases/objects.rs"]
mod objects;
#[path = "edge_cases/overlaps.rs"]
mod overlaps;
#[path = "edge_cases/policies.rs"]
mod policies;
#[path = "edge_cases/service_changes.rs"]
mod service_changes;
#[path = "edge_cases/services.rs"]
mod services;
#[path = "edge_cases/syncing.rs"]
mod syncing;
#[path = "edge_cases/topology.rs"]
mod topology;

use std::collections::BTreeSet;

const SOURCES: [&str; 10] = [
    include_str!("edge_cases/service_changes.rs"),
    include_str!("edge_cases/services.rs"),
    include_str!("edge_cases/families.rs"),
    include_str!("edge_cases/endpoints.rs"),
    include_str!("edge_cases/policies.rs"),
    include_str!("edge_cases/topology.rs"),
    include_str!("edge_cases/load_balancers.rs"),
    include_str!("edge_cases/node_ports.rs"),
    include_str!("edge_cases/masquerading.rs"),
    include_str!("edge_cases/syncing.rs"),
];

/// The cases that are tested elsewhere, and where.
const TESTED_ELSEWHERE: [(u32, &str); 12] = [
    (46, "families of a node: agent"),
    (124, "health::ports"),
    (125, "health::ports"),
    (126, "health::ports"),
    (150, "conditions of the first sync: sync, watch"),
    (163, "pace: sync::pacer"),
    (164, "pace: sync::pacer"),
    (170, "conntrack"),
    (171, "conntrack"),
    (172, "conntrack"),
    (173, "conntrack"),
    (174, "cleanup"),
];

/// The numbers in `/// Case 7.`, `/// Case 7, replaced: ...` and `/// Cases 7 and 8, ...`.
fn claimed(line: &str) -> Vec<u32> {
    let Some(rest) = line.strip_prefix("/// Case") else { return Vec::new() };
    let words = rest.trim_start_matches('s').split([' ', ',', '.', ';', ':']).filter(|word| !word.is_empty());
    words
        .take_while(|word| *word == "and" || word.parse::<u32>().is_ok())
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[test]
fn every_case_is_claimed_here_or_tested_elsewhere() {
    let claims: Vec<u32> = SOURCES.iter().flat_map(|source| source.lines()).flat_map(claimed).collect();
    let covered: BTreeSet<u32> = claims.iter().copied().collect();
    assert_eq!(claims.len(), covered.len(), "a case is claimed twice");
    let elsewhere: BTreeSet<u32> = TESTED_ELSEWHERE.iter().map(|(case, _)| *case).collect();
    assert!(
        covered.is_disjoint(&elsewhere),
        "claimed here and elsewhere: {:?}",
        covered.intersection(&elsewhere)
    );
    let all: BTreeSet<u32> = covered.union(&elsewhere).copied().collect();
    assert_eq!(all, (1..=178).collect());
}
