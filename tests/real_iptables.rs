//! Plans applied to the tables of a real kernel, with both back-ends and both families, each test in its
//! own namespaces. Needs root; without it these tests fail.
#![allow(clippy::disallowed_methods, reason = "tests start programs and read files")]

#[path = "real_iptables/cleanup.rs"]
mod cleanup;
#[path = "../benches/cluster.rs"]
mod cluster;
#[path = "real_iptables/compact.rs"]
mod compact;
#[path = "shared/corpus_cases.rs"]
mod corpus_cases;
#[path = "real_iptables/drift.rs"]
mod drift;
#[path = "properties/fates.rs"]
mod fates;
#[path = "real_iptables/held.rs"]
mod held;
#[path = "real_iptables/idle.rs"]
mod idle;
#[path = "real_iptables/large.rs"]
mod large;
#[path = "real_iptables/namespace.rs"]
mod namespace;
#[path = "real_iptables/restore.rs"]
mod restore;
#[path = "real_iptables/rootless.rs"]
mod rootless;
#[path = "real_iptables/start.rs"]
mod start;
#[path = "shared/starting.rs"]
mod starting;
#[path = "real_iptables/unusable.rs"]
mod unusable;
#[path = "real_iptables/unwritable_log.rs"]
mod unwritable_log;
#[path = "real_iptables/verbosity.rs"]
mod verbosity;

use chainsmith::kernel::Backend;
use chainsmith::kernel::programs::open;
use chainsmith::net::IpFamily;

use corpus_cases::{Case, live, version};
use namespace::{in_namespace, load, saved};

/// Small and large, every feature, several states in order, rules that existed before.
const SAMPLE: [&str; 14] = [
    "affinity-with-local-policies",
    "config-detect-prefix",
    "config-no-localhost-nodeports",
    "hints-with-external-local",
    "lb-source-ranges-node-ip",
    "long-names",
    "mixed-5",
    "preexisting-rules",
    "restart-after-changes",
    "restart-with-other-config",
    "transition-affinity-on-off",
    "transition-dual-stack-upgrade",
    "transition-large-cluster",
    "transition-policy-changes",
];

fn both_families(backend: Backend) {
    let cases: Vec<Case> =
        Case::all().into_iter().filter(|case| SAMPLE.contains(&case.name().as_str())).collect();
    assert_eq!(cases.len(), SAMPLE.len());
    for case in &cases {
        for family in IpFamily::BOTH {
            in_namespace(|| {
                if let Some(initial) = case.file(&format!("initial.{}.save", version(family))) {
                    load(family, backend, &initial);
                }
                let kernel = open(family, Some(backend)).expect("iptables works");
                live(case, kernel, |_| saved(family, backend));
            });
        }
    }
}

#[test]
fn in_nf_tables_an_agent_leaves_the_rules_that_kube_proxy_leaves() {
    both_families(Backend::Nft);
}

#[test]
fn in_legacy_tables_an_agent_leaves_the_rules_that_kube_proxy_leaves() {
    both_families(Backend::Legacy);
}
