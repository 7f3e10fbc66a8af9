//! Restores that fail.

use super::*;
use crate::iptables::ChainName;
use crate::kernel::RestoreError;

const AUDIT: Duration = Duration::from_secs(300);

fn locked() -> RestoreError {
    RestoreError::Locked(Duration::from_secs(5))
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_retried_with_growing_delays_and_counted() {
    let rig = Rig::settled().await;
    let now = rig.now();
    rig.kernel(|kernel| kernel.failures = vec![locked(); 7]);
    rig.change(service("t", 2)).await;
    rig.after(Duration::from_secs(3600)).await;
    let waits: Vec<u128> = rig.take_syncs().iter().map(|at| (at - now) / 1000).collect();
    assert_eq!(waits[..8], [0, 1, 3, 7, 15, 31, 61, 91]);
    assert_eq!(rig.metrics.syncs.restore_failures(IpFamily::V4), 7);
    assert_eq!(rig.metrics.syncs.restore_failures(IpFamily::V6), 0);
    assert_eq!(rig.rules(Table::Filter, "KUBE-SERVICES"), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_success_retry_delays_begin_anew() {
    let rig = Rig::settled().await;
    for n in [2, 3] {
        let now = rig.now();
        rig.kernel(|kernel| kernel.failures = vec![locked(); 3]);
        rig.change(service("t", n)).await;
        rig.after(Duration::from_secs(100)).await;
        let waits: Vec<u128> = rig.take_syncs().iter().map(|at| (at - now) / 1000).collect();
        assert_eq!(waits, [0, 1, 3, 7]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_during_a_retry_delay_is_synced_after_the_minimum_period() {
    let rig = Rig::settled().await;
    let now = rig.now();
    rig.kernel(|kernel| kernel.failures = vec![locked(); 4]);
    rig.change(service("t", 2)).await;
    rig.after(Duration::from_millis(3500)).await;
    assert_eq!(rig.take_syncs(), [now, now + 1000, now + 3000]);
    // Without a change, the next retry would be four seconds after the last one.
    rig.change(service("u", 3)).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.take_syncs(), [now + 4000, now + 12_000]);
    assert_eq!(rig.rules(Table::Filter, "KUBE-SERVICES"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_one_family_does_not_delay_the_other() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.failures = vec![locked(); 20]);
    rig.list().await;
    rig.after(Duration::from_secs(1)).await;
    let has_rules = |n: usize| rig.kernels[n].with(|kernel| kernel.ruleset.tables[&Table::Nat].len() > 4);
    assert_eq!((has_rules(0), has_rules(1)), (false, true));
    // The other is not synced again either.
    let n_restores = rig.kernels[1].with(|kernel| kernel.inputs.len());
    rig.after(Duration::from_secs(100)).await;
    assert_eq!(rig.kernels[1].with(|kernel| kernel.inputs.len()), n_restores);
}

/// The error of a sync of `changes` when lines with `rejected` are rejected, and whether the rules of all other
/// service ports are in force.
fn rejection(changes: &[Change], rejected: &str) -> (SyncError, bool) {
    let mut snapshot = Snapshot::default();
    changes.iter().for_each(|change| snapshot.apply(change.clone(), &mut Touched::default()));
    let view = View { snapshot: &snapshot, place: Place { node: NODE, zone: None } };
    let mut sync = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    sync.kernel().rejected_texts = vec![rejected.to_owned()];
    sync.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    let report = sync.sync(view, &AtomicBool::new(false));
    match report.outcome {
        Ok(()) => (SyncError::Rejected(report.quarantined[0].1.clone()), true),
        Err(error) => {
            // Chains may have been tried, but no rule jumps to them.
            let built_in = crate::iptables::Ruleset::with_built_in_chains();
            let tables = sync.kernel().ruleset.tables.clone();
            let is_empty = |(table, name): (&Table, &str)| {
                tables[table][&crate::iptables::ChainName::literal(name)].rules.is_empty()
            };
            let mut all =
                built_in.tables.keys().flat_map(|t| t.built_in().iter().map(move |name| (t, *name)));
            assert!(all.all(is_empty));
            (error, false)
        }
    }
}

#[test]
fn a_rejected_line_is_reported_with_its_chain_and_service_port() {
    let changes = [service("s", 1), service("t", 2), slice("s", &["east"])];
    let check = |rejected: &str, about: &str| {
        let (error, are_others_served) = rejection(&changes, rejected);
        let error = error.to_string();
        assert!(error.contains(rejected) && error.contains("rejected by the test"), "{error}");
        assert!(error.contains(about), "{about:?} is not in {error:?}");
        assert_eq!(are_others_served, !about.contains("no single service port"), "{error}");
    };
    check("-A KUBE-SVC-", "of chain nat KUBE-SVC-IFZG2GHEQVVUVAVZ for ns/s: ");
    check(":KUBE-SEP-", "for ns/s: ");
    check("-A KUBE-SERVICES -d 172.30.0.1/32", "of chain nat KUBE-SERVICES for ns/s: ");
    check("-A KUBE-SERVICES -d 172.30.0.2/32", "of chain filter KUBE-SERVICES for ns/t: ");
    check("-A KUBE-FORWARD", "of chain filter KUBE-FORWARD for no single service port: ");
    check("COMMIT", "of chain unknown for no single service port: ");
}

#[tokio::test(start_paused = true)]
async fn a_quarantined_service_port_is_retried_at_each_audit_without_an_external_change() {
    let rig = Rig::settled().await;
    rig.kernel(|kernel| kernel.rejected_texts = vec!["-A KUBE-SVC-".to_owned()]);
    rig.change(slice("s", &["east"])).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 1, "quarantined");
    rig.after(AUDIT).await;
    let n_failures = rig.metrics.syncs.restore_failures(IpFamily::V4);
    rig.after(AUDIT).await;
    assert!(rig.metrics.syncs.restore_failures(IpFamily::V4) > n_failures, "retried, and rejected again");
    rig.kernel(|kernel| kernel.rejected_texts.clear());
    rig.after(AUDIT).await;
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 2, "served");
}

#[tokio::test(start_paused = true)]
async fn after_a_rejection_the_kernel_is_read_as_another_process_may_have_changed_it() {
    let rig = Rig::settled().await;
    let n_saves = rig.kernel(|kernel| kernel.n_saves);
    // Another process flushed nat, without a notification: a jump to a chain that is gone is rejected.
    rig.kernel(|kernel| {
        let built_in = crate::iptables::Ruleset::with_built_in_chains();
        kernel.ruleset.tables.insert(Table::Nat, built_in.tables[&Table::Nat].clone());
    });
    rig.change(slice("s", &["east"])).await;
    rig.after(Duration::from_secs(10)).await;
    assert_eq!(rig.metrics.syncs.restore_failures(IpFamily::V4), 1);
    // Nat is read once more after the repair: a chain that still differs would be an equivalent read-back.
    assert_eq!(rig.kernel(|kernel| kernel.n_saves), n_saves + 3);
    assert_eq!(rig.rules(Table::Nat, "KUBE-MARK-MASQ"), 1);
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_is_too_large_is_split_within_the_sync() {
    const MAX: usize = 16_000;
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.max_bytes = MAX);
    for n in 1..=60 {
        rig.change(service(&format!("t{n}"), 100 + n)).await;
        rig.change(slice(&format!("t{n}"), &["east", "west"])).await;
    }
    rig.list().await;
    rig.after(Duration::from_millis(500)).await;
    assert_eq!(rig.take_syncs().len(), 1, "within one sync");
    let n_chains = rig.kernel(|kernel| kernel.ruleset.tables[&Table::Nat].len());
    assert!(n_chains > 60, "{n_chains} chains");
    let of = |is_large: bool| {
        rig.kernel(|kernel| kernel.inputs.iter().filter(|input| (input.len() > MAX) == is_large).count())
    };
    let n_rejected = of(true);
    assert!(n_rejected > 0, "an input was too large");
    // The smaller limits stay.
    rig.change(service("s", 9)).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(of(true), n_rejected);
}

#[tokio::test(start_paused = true)]
async fn an_input_that_cannot_be_split_is_an_error_and_retried_later() {
    let rig = Rig::settled().await;
    rig.kernel(|kernel| kernel.max_bytes = 10);
    rig.change(service("t", 2)).await;
    rig.after(Duration::from_secs(10)).await;
    assert!(rig.metrics.syncs.restore_failures(IpFamily::V4) > 0);
    rig.kernel(|kernel| kernel.max_bytes = usize::MAX);
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.rules(Table::Filter, "KUBE-SERVICES"), 2);
}

#[tokio::test(start_paused = true)]
async fn drift_counts_as_repaired_once_it_is_repaired_and_not_before() {
    let rig = Rig::settled().await;
    let repaired = || rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv4\"}");
    rig.kernel(|kernel| {
        kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("KUBE-SERVICES")).rules.clear();
        kernel.failures = vec![locked(); 2];
    });
    rig.commit_externally().await;
    rig.after(Duration::from_secs(2)).await;
    assert_eq!((rig.rules(Table::Nat, "KUBE-SERVICES"), repaired()), (0, 0.0), "both attempts failed");
    rig.after(Duration::from_secs(60)).await;
    assert_eq!((rig.rules(Table::Nat, "KUBE-SERVICES"), repaired()), (1, 1.0));
}

/// A change of equal size must not count as another spelling of the repaired rule.
#[test]
fn a_rule_replaced_between_its_repair_and_the_read_back_is_repaired_by_the_next_sync() {
    let snapshot = Snapshot::default();
    let view = View { snapshot: &snapshot, place: Place { node: NODE, zone: None } };
    let mut sync = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    sync.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    assert_eq!(sync.sync(view, &AtomicBool::new(false)).outcome, Ok(()));
    let desired = sync.kernel().ruleset.clone();
    let tampered = |target: crate::iptables::Target| {
        let mut ruleset = desired.clone();
        let chain = ruleset.chain_mut(Table::Nat, crate::rules::names::KUBE_MARK_MASQ);
        chain.rules[0].target = Some(target);
        ruleset
    };
    let kernel = sync.kernel();
    kernel.ruleset = tampered(crate::iptables::Target::Drop);
    // Two calls read filter and nat; the third reads the repaired table back.
    kernel.replaced_at_save.insert(kernel.n_saves + 3, tampered(crate::iptables::Target::Return));
    sync.distrust(crate::drift::ReadReason::AuditDue);
    let report = sync.sync(view, &AtomicBool::new(false));
    assert_eq!((report.outcome, report.drift.len()), (Ok(()), 1));
    assert!(sync.kernel().ruleset != desired && sync.is_dirty());
    let report = sync.sync(view, &AtomicBool::new(false));
    assert_eq!((report.outcome, report.drift.len()), (Ok(()), 1));
    assert!(sync.kernel().ruleset == desired && !sync.is_dirty());
}
