//! Restores that fail.

use super::*;
use crate::iptables::ChainName;
use crate::kernel::RestoreError;

const AUDIT: Duration = Duration::from_secs(300);

fn locked() -> RestoreError {
    RestoreError::Locked(Duration::from_secs(5))
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_tried_again_ever_later_and_counted() {
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
async fn after_a_success_the_next_failure_is_tried_again_soon() {
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
async fn a_change_while_a_failure_is_waited_out_is_tried_after_the_minimum_period() {
    let rig = Rig::settled().await;
    let now = rig.now();
    rig.kernel(|kernel| kernel.failures = vec![locked(); 4]);
    rig.change(service("t", 2)).await;
    rig.after(Duration::from_millis(3500)).await;
    assert_eq!(rig.take_syncs(), [now, now + 1000, now + 3000]);
    // The next try of its own would be four seconds after the last.
    rig.change(service("u", 3)).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.take_syncs(), [now + 4000, now + 12_000]);
    assert_eq!(rig.rules(Table::Filter, "KUBE-SERVICES"), 3);
}

#[tokio::test(start_paused = true)]
async fn one_familys_failure_does_not_hold_up_the_other() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.failures = vec![locked(); 20]);
    rig.list().await;
    rig.after(Duration::from_secs(1)).await;
    let has_rules = |n: usize| rig.kernels[n].with(|kernel| kernel.ruleset.tables[&Table::Nat].len() > 4);
    assert_eq!((has_rules(0), has_rules(1)), (false, true));
    // Nor is the other bothered again.
    let n_restores = rig.kernels[1].with(|kernel| kernel.inputs.len());
    rig.after(Duration::from_secs(100)).await;
    assert_eq!(rig.kernels[1].with(|kernel| kernel.inputs.len()), n_restores);
}

/// What a sync of `changes` says when lines that hold `refused` are refused, and whether everybody else
/// is served all the same.
fn refusal(changes: &[Change], refused: &str) -> (SyncError, bool) {
    let mut snapshot = Snapshot::default();
    changes.iter().for_each(|change| snapshot.apply(change.clone(), &mut Touched::default()));
    let view = View { snapshot: &snapshot, place: Place { node: NODE, zone: None } };
    let mut sync = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    sync.kernel().rejected_texts = vec![refused.to_owned()];
    sync.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    let report = sync.sync(view, &AtomicBool::new(false));
    match report.outcome {
        Ok(()) => (SyncError::Rejected(report.quarantined[0].1.clone()), true),
        Err(error) => {
            // Chains may have been tried, but nothing leads to them.
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
fn a_refused_line_is_named_with_its_chain_and_service_port() {
    let changes = [service("s", 1), service("t", 2), slice("s", &["east"])];
    let check = |refused: &str, about: &str| {
        let (error, are_others_served) = refusal(&changes, refused);
        let said = error.to_string();
        assert!(said.contains(refused) && said.contains("rejected by the test"), "{said}");
        assert!(said.contains(about), "{about:?} is not in {said:?}");
        assert_eq!(are_others_served, !about.contains("no single service port"), "{said}");
    };
    check("-A KUBE-SVC-", "of chain nat KUBE-SVC-IFZG2GHEQVVUVAVZ for ns/s: ");
    check(":KUBE-SEP-", "for ns/s: ");
    check("-A KUBE-SERVICES -d 172.30.0.1/32", "of chain nat KUBE-SERVICES for ns/s: ");
    check("-A KUBE-SERVICES -d 172.30.0.2/32", "of chain filter KUBE-SERVICES for ns/t: ");
    check("-A KUBE-FORWARD", "of chain filter KUBE-FORWARD for no single service port: ");
    check("COMMIT", "of chain unknown for no single service port: ");
}

#[tokio::test(start_paused = true)]
async fn a_service_port_that_was_refused_is_tried_again_at_each_audit_though_nobody_wrote() {
    let rig = Rig::settled().await;
    rig.kernel(|kernel| kernel.rejected_texts = vec!["-A KUBE-SVC-".to_owned()]);
    rig.change(slice("s", &["east"])).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 1, "left out");
    rig.after(AUDIT).await;
    let n_failures = rig.metrics.syncs.restore_failures(IpFamily::V4);
    rig.after(AUDIT).await;
    assert!(rig.metrics.syncs.restore_failures(IpFamily::V4) > n_failures, "tried, and refused again");
    rig.kernel(|kernel| kernel.rejected_texts.clear());
    rig.after(AUDIT).await;
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 2, "served");
}

#[tokio::test(start_paused = true)]
async fn after_a_refusal_the_kernel_is_read_again_for_it_may_not_be_as_it_was() {
    let rig = Rig::settled().await;
    let n_saves = rig.kernel(|kernel| kernel.n_saves);
    // Somebody flushed nat, and nobody saw it: what leads to a chain that is gone is refused.
    rig.kernel(|kernel| {
        let built_in = crate::iptables::Ruleset::with_built_in_chains();
        kernel.ruleset.tables.insert(Table::Nat, built_in.tables[&Table::Nat].clone());
    });
    rig.change(slice("s", &["east"])).await;
    rig.after(Duration::from_secs(10)).await;
    assert_eq!(rig.metrics.syncs.restore_failures(IpFamily::V4), 1);
    // Nat once more after the repair: what still reads otherwise would be a dialect.
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
    assert_eq!(rig.take_syncs().len(), 1, "it is not left to a retry");
    let n_chains = rig.kernel(|kernel| kernel.ruleset.tables[&Table::Nat].len());
    assert!(n_chains > 60, "{n_chains} chains");
    let of = |is_large: bool| {
        rig.kernel(|kernel| kernel.inputs.iter().filter(|input| (input.len() > MAX) == is_large).count())
    };
    let n_refused = of(true);
    assert!(n_refused > 0, "something was too large");
    // What was learnt stays.
    rig.change(service("s", 9)).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(of(true), n_refused);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_split_is_an_error_and_tried_again_later() {
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
async fn drift_counts_as_repaired_when_it_is_and_not_before() {
    let rig = Rig::settled().await;
    let repaired = || rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv4\"}");
    rig.kernel(|kernel| {
        kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("KUBE-SERVICES")).rules.clear();
        kernel.failures = vec![locked(); 2];
    });
    rig.written_by_somebody().await;
    rig.after(Duration::from_secs(2)).await;
    assert_eq!((rig.rules(Table::Nat, "KUBE-SERVICES"), repaired()), (0, 0.0), "both attempts failed");
    rig.after(Duration::from_secs(60)).await;
    assert_eq!((rig.rules(Table::Nat, "KUBE-SERVICES"), repaired()), (1, 1.0));
}
