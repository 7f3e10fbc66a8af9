//! Real packets through real iptables: simulated clusters in network namespaces, both back-ends.
//!
//! Needs root and namespaces; without them these tests fail, they are never skipped.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests are about the world: programs, files, clocks"
)]

mod by_hand;
mod cluster;
mod lab;
mod traffic;

use lab::netfilter::Backend;

/// Tries the lab and the claims on rules that are known to be right.
fn the_lab_itself_passes_with_hand_written_rules(backend: Backend) {
    for network in [lab::PodNetwork::Routes, lab::PodNetwork::Vxlan] {
        let lab = cluster::plan(backend).pod_network(network).build().expect("a lab can be built");
        by_hand::program(&lab).expect("rules can be written");
        traffic::all(&lab);
    }
}

#[test]
fn smoke() {
    the_lab_itself_passes_with_hand_written_rules(Backend::Nft);
}
#[test]
fn smokel() {
    the_lab_itself_passes_with_hand_written_rules(Backend::Legacy);
}
