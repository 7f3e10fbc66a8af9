//! Restores that fail.

use super::*;
use crate::kernel::RestoreError;

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
    assert_eq!(rig.metrics.restore_failures(IpFamily::V4), 7);
    assert_eq!(rig.metrics.restore_failures(IpFamily::V6), 0);
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
    let rig = Rig::start(Config::default(), Patience::NONE);
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

/// What a sync of two Services says when every line that holds `refused` is refused; and what is in
/// force then.
fn refusal(refused: &str) -> (Report, crate::iptables::Ruleset) {
    let mut snapshot = Snapshot::default();
    for change in [service("s", 1), service("t", 2), slice("s", &["east"])] {
        snapshot.apply(change, &mut Touched::default());
    }
    let mut sync = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    sync.kernel().refused_texts = vec![refused.to_owned()];
    sync.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    let view = View { snapshot: &snapshot, place: Place { node: NODE, zone: None } };
    let report = sync.sync(view, &AtomicBool::new(false));
    (report, sync.kernel().ruleset.clone())
}

#[test]
fn a_refused_line_is_named_with_its_chain_and_service_port() {
    let check = |refused: &str, chain: &str, port: &str| {
        let (report, _) = refusal(refused);
        assert_eq!(report.outcome, Ok(()), "{refused}");
        let [(name, refusal)] = &report.quarantined[..] else {
            panic!("{refused}: {:?}", report.quarantined)
        };
        let named = refusal.chain.map(|(table, chain)| format!("{table} {chain}"));
        assert_eq!((name.to_string().as_str(), named.as_deref()), (port, Some(chain)), "{refused}");
        assert!(refusal.text.as_ref().unwrap().contains(refused), "{refused}: {refusal:?}");
    };
    check("-A KUBE-SVC-", "nat KUBE-SVC-IFZG2GHEQVVUVAVZ", "ns/s");
    check("-A KUBE-SERVICES -d 172.30.0.1/32", "nat KUBE-SERVICES", "ns/s");
    check("-A KUBE-SERVICES -d 172.30.0.2/32", "filter KUBE-SERVICES", "ns/t");
}

#[test]
fn a_refused_line_that_nobody_in_particular_needs_is_named_with_its_chain() {
    let (report, in_force) = refusal("-A KUBE-FORWARD -m mark");
    let said = report.outcome.unwrap_err().to_string();
    for part in ["-A KUBE-FORWARD -m mark", "of chain filter KUBE-FORWARD for no single service port"] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    assert_eq!(
        in_force.tables[&Table::Filter],
        crate::iptables::Ruleset::with_built_in_chains().tables[&Table::Filter]
    );
    assert_eq!(report.quarantined, []);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_because_somebody_flushed_is_made_good_in_the_same_sync() {
    let rig = Rig::settled().await;
    let n_saves = rig.kernel(|kernel| kernel.n_saves);
    // Nobody saw it: what leads to a chain that is gone is refused.
    rig.kernel(|kernel| {
        let built_in = crate::iptables::Ruleset::with_built_in_chains();
        kernel.ruleset.tables.insert(Table::Nat, built_in.tables[&Table::Nat].clone());
    });
    rig.change(slice("s", &["east"])).await;
    rig.after(Duration::from_millis(1)).await;
    assert!(rig.kernel(|kernel| kernel.n_saves) > n_saves);
    assert_eq!(rig.rules(Table::Nat, "KUBE-MARK-MASQ"), 1);
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 2);
}
