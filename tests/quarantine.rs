//! A service port that the kernel rejects affects only itself, and costs few extra processes.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use chainsmith::apply::{FamilySync, SyncReport};
use chainsmith::compile;
use chainsmith::compile::View;
use chainsmith::config::Config;
use chainsmith::iptables::Table;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::kernel::{Backend, RestoreError};
use chainsmith::model::decode::{Interner, manifest};
use chainsmith::model::host::Host;
use chainsmith::model::{Change, Inventory, ObjectName, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::policy::Place;
use chainsmith::rules::{Layout, Settings, names};

const PLACE: Place<'_> = Place { node: "n", zone: None };

/// `n` Services called `s0`, `s1`, ... with two endpoints each.
fn cluster(n: usize) -> Snapshot {
    read(&(0..n).map(service).collect::<String>())
}

fn read(text: &str) -> Snapshot {
    let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
    let outcome = manifest::read(text.as_bytes(), "test", &mut |object| {
        assert_eq!(inventory.add(&object, &mut interner), []);
    });
    assert_eq!((outcome.n_objects, outcome.problems), (text.lines().count(), Vec::new()));
    inventory.snapshot_for("n")
}

fn service(n: usize) -> String {
    let (high, low) = (n / 250, n % 250 + 1);
    let service = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n}")},
        "spec": {"clusterIP": format!("10.96.{high}.{low}"), "ports": [{"port": 80}]},
    });
    let slice = serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("s{n}-1"), "labels": {"kubernetes.io/service-name": format!("s{n}")}},
        "addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [
            {"addresses": [format!("10.1.{high}.{low}")]},
            {"addresses": [format!("10.2.{high}.{low}")]},
        ],
    });
    format!("{service}\n{slice}\n")
}

fn sync(family: &mut FamilySync<FakeIptables>, snapshot: &Snapshot) -> SyncReport {
    family.sync(View { snapshot, place: PLACE }, &AtomicBool::new(false))
}

/// Inputs of the rules other than the cluster; their size selects the layout.
fn settings() -> Settings {
    Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4)
}

/// One of `n` Services is rejected by a line that contains `text`: afterwards only that Service is missing,
/// at a cost of at most `max_extra` additional processes.
fn check(n: usize, text: &str, is_vague: bool, bad: &str, max_extra: usize) {
    let snapshot = cluster(n);
    let start = |refused: &[String]| {
        let mut kernel = FakeIptables::new(IpFamily::V4, Backend::Nft);
        kernel.rejected_texts = refused.to_vec();
        kernel.is_vague = is_vague;
        let mut family = FamilySync::new(kernel);
        family.set_settings(settings());
        family
    };
    let mut healthy = start(&[]);
    let n_usual = sync(&mut healthy, &snapshot).tally.n_processes;

    let mut family = start(&[text.to_owned()]);
    let report = sync(&mut family, &snapshot);
    assert_eq!(report.outcome, Ok(()));
    let names: Vec<String> = report.quarantined.iter().map(|(port, _)| port.to_string()).collect();
    assert_eq!(names, [bad]);
    assert_eq!((family.quarantine().len(), report.n_service_ports), (1, n - 1));
    let n_extra = report.tally.n_processes - n_usual;
    assert!(n_extra <= max_extra, "{n_extra} extra processes of at most {max_extra}");

    // All other service ports have the same rules as without it.
    let mut others = snapshot.clone();
    let (namespace, name) = bad.split_once('/').expect("a name");
    others.apply(Change::Service(ObjectName::new(namespace, name), None), &mut Touched::default());
    let desired = compile::ruleset(&settings(), &others, PLACE);
    let mut held = family.kernel().ruleset.clone();
    for table in Table::ALL {
        held.chain_mut(table, names::KUBE_PROXY_CANARY);
    }
    assert_eq!(held, desired);

    // It stays quarantined, without further attempts, until its Service changes.
    assert!(!family.is_dirty());
    family.kernel().rejected_texts.clear();
    family.touch(BTreeSet::from([ObjectName::new(namespace, name)]));
    let report = sync(&mut family, &snapshot);
    assert_eq!((report.outcome, family.quarantine().len()), (Ok(()), 0));
    assert_eq!(family.kernel().ruleset, healthy.kernel().ruleset);
}

/// ceil(log2(n)) + 2.
fn bound(n: usize) -> usize {
    n.next_power_of_two().ilog2() as usize + 2
}

#[test]
fn a_rejected_rule_in_its_own_chain_quarantines_a_service_port() {
    check(20, "10.1.0.8/32", false, "default/s7", 2);
    check(20, "10.1.0.8/32", true, "default/s7", bound(20));
}

#[test]
fn a_rejected_entry_in_a_shared_chain_quarantines_its_service_port() {
    check(20, "-d 10.96.0.8/32", false, "default/s7", 2);
    check(1_000, "-d 10.96.0.8/32", false, "default/s7", 2);
}

/// It has no chain of its own that could be rejected.
#[test]
fn a_rejected_entry_is_also_found_by_halving() {
    check(20, "-d 10.96.0.8/32", true, "default/s7", bound(20));
}

#[test]
fn two_service_ports_with_rejected_entries_are_quarantined() {
    let snapshot = cluster(20);
    let mut kernel = FakeIptables::new(IpFamily::V4, Backend::Nft);
    kernel.rejected_texts = vec!["-d 10.96.0.8/32".to_owned(), "-d 10.96.0.11/32".to_owned()];
    let mut family = FamilySync::new(kernel);
    family.set_settings(settings());
    let report = sync(&mut family, &snapshot);
    let names: Vec<String> = report.quarantined.iter().map(|(port, _)| port.to_string()).collect();
    assert_eq!((report.outcome, report.n_service_ports), (Ok(()), 18));
    assert_eq!(names, ["default/s10", "default/s7"]);
}

/// Without endpoints, a Service has only one rule, in filter.
#[test]
fn a_rejected_reject_rule_quarantines_its_service_port() {
    let mut snapshot = cluster(20);
    for n in [7, 10] {
        snapshot.apply(
            Change::Slice(ObjectName::new("default", &format!("s{n}-1")), None),
            &mut Touched::default(),
        );
    }
    for is_vague in [true, false] {
        let mut kernel = FakeIptables::new(IpFamily::V4, Backend::Nft);
        kernel.rejected_texts = vec!["-j REJECT".to_owned()];
        kernel.is_vague = is_vague;
        let mut family = FamilySync::new(kernel);
        family.set_settings(settings());
        let report = sync(&mut family, &snapshot);
        assert_eq!((report.outcome, report.n_service_ports, report.quarantined.len()), (Ok(()), 18, 2));
    }
}

#[test]
fn a_held_lock_during_the_search_removes_no_rules() {
    let snapshot = cluster(20);
    for n_before in 1..6 {
        let mut kernel = FakeIptables::new(IpFamily::V4, Backend::Legacy);
        kernel.rejected_texts = vec!["10.1.0.8/32".to_owned()];
        kernel.is_vague = true;
        let refused = || RestoreError::Refused { line: 1, text: None, message: "no".to_owned() };
        let mut failures = vec![RestoreError::Locked(std::time::Duration::from_secs(5))];
        failures.extend((0..n_before).map(|_| refused()));
        kernel.failures = failures;
        let mut family = FamilySync::new(kernel);
        family.set_settings(settings());
        let report = sync(&mut family, &snapshot);
        assert!(report.outcome.is_err(), "{n_before}: {:?}", report.outcome);
        let innocent = report.quarantined.iter().any(|(port, _)| port.to_string() != "default/s7");
        assert!(!innocent, "{n_before}: {:?}", report.quarantined);
        assert!(family.quarantine().len() <= 1);
    }
}

#[test]
fn one_bad_service_among_5000_leaves_4999_programmed() {
    check(5_000, "10.1.17.3:80", false, "default/s4252", bound(5_000));
    check(5_000, "10.1.17.3:80", true, "default/s4252", bound(5_000));
}

#[test]
fn a_failure_without_a_responsible_service_port_quarantines_none() {
    let snapshot = cluster(10);
    let mut kernel = FakeIptables::new(IpFamily::V4, Backend::Nft);
    kernel.rejected_texts = vec!["-A KUBE-POSTROUTING".to_owned()];
    let mut family = FamilySync::new(kernel);
    family.set_settings(settings());
    let report = sync(&mut family, &snapshot);
    assert!(report.outcome.is_err());
    assert_eq!((report.quarantined.len(), family.quarantine().len()), (0, 0));
    family.kernel().rejected_texts.clear();
    assert_eq!(sync(&mut family, &snapshot).outcome, Ok(()));
}

#[test]
fn a_rejection_that_does_not_repeat_removes_no_rules() {
    let snapshot = cluster(10);
    let mut family = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    family.set_settings(settings());
    for line in [1, 3, 20, 1_000] {
        family.kernel().failures =
            vec![RestoreError::Refused { line, text: None, message: "no memory".to_owned() }];
        family.kernel().ruleset = FakeIptables::new(IpFamily::V4, Backend::Nft).ruleset;
        family.distrust(chainsmith::drift::ReadReason::AuditDue);
        let report = sync(&mut family, &snapshot);
        assert_eq!((report.outcome, report.quarantined.len(), report.n_failed_restores), (Ok(()), 0, 1));
        assert_eq!((family.quarantine().len(), report.n_service_ports), (0, 10));
    }
}

#[test]
fn an_external_flush_quarantines_no_service_port() {
    let snapshot = cluster(10);
    let mut family = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    family.set_settings(settings());
    assert_eq!(sync(&mut family, &snapshot).outcome, Ok(()));
    let whole = family.kernel().ruleset.clone();
    // All chains are gone, and a change arrives before the flush is detected: its dispatch refers to
    // missing chains.
    family.kernel().ruleset = FakeIptables::new(IpFamily::V4, Backend::Nft).ruleset;
    let mut smaller = snapshot.clone();
    let mut touched = Touched::default();
    smaller.apply(Change::Service(ObjectName::new("default", "s3"), None), &mut touched);
    family.touch(touched.services.v4.clone());
    let report = sync(&mut family, &smaller);
    assert_eq!((report.outcome, report.quarantined.len()), (Ok(()), 0));
    family.touch(touched.services.v4);
    assert_eq!(sync(&mut family, &snapshot).outcome, Ok(()));
    assert_eq!(family.kernel().ruleset, whole);
}

#[test]
fn endpoints_of_a_retried_service_port_count_once_for_the_layout() {
    let endpoints: Vec<_> = (0..500)
        .map(|n| serde_json::json!({"addresses": [format!("10.3.{}.{}", n / 250, n % 250 + 1)]}))
        .collect();
    let crowd = serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "s7-2", "labels": {"kubernetes.io/service-name": "s7"}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints,
    });
    let snapshot = read(&format!("{}{crowd}\n", (0..200).map(service).collect::<String>()));
    let mut kernel = FakeIptables::new(IpFamily::V4, Backend::Nft);
    kernel.rejected_texts = vec!["-d 10.96.0.8/32".to_owned()];
    let mut family = FamilySync::new(kernel);
    family.set_settings(settings());
    for _ in 0..3 {
        let report = sync(&mut family, &snapshot);
        assert_eq!((report.outcome, report.n_endpoints, report.n_quarantined), (Ok(()), 398, 1));
        assert_eq!(family.layout(), Layout::Classic { is_large: false }, "of 900 endpoints");
        family.touch(BTreeSet::from([ObjectName::new("default", "s7")]));
    }
}
