//! When a sync begins, and what it compares.

use super::*;
use crate::iptables::ChainName;
use crate::rules::names::KUBE_SERVICES;

const HOUR: Duration = Duration::from_secs(60 * 60);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn nothing_is_synced_before_services_slices_and_node_are_listed() {
    let listed = || [WatchEvent::ServicesListed, WatchEvent::SlicesListed, WatchEvent::NodeListed];
    for missing in 0..3 {
        let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
        rig.change(Change::Node(Some(node("east")))).await;
        rig.change(service("s", 1)).await;
        for (n, event) in listed().into_iter().enumerate() {
            if n != missing {
                rig.send(event).await;
            }
        }
        // Not even after the audit period.
        rig.after(3 * HOUR).await;
        rig.flushed.send(IpFamily::V4).await.unwrap();
        rig.after(SECOND).await;
        assert_eq!((rig.take_syncs(), rig.restores()), (vec![], 0), "without the {missing}th");
        rig.send(listed()[missing].clone()).await;
        rig.after(SECOND).await;
        assert_eq!((rig.take_syncs().len(), rig.restores()), (1, 1), "with the {missing}th");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_change_after_quiet_is_synced_at_once() {
    let rig = Rig::settled().await;
    let now = rig.now();
    rig.change(service("t", 2)).await;
    rig.after(SECOND).await;
    assert_eq!((rig.take_syncs(), rig.rules(Table::Filter, "KUBE-SERVICES")), (vec![now], 2));
}

#[tokio::test(start_paused = true)]
async fn changes_that_arrive_together_are_synced_together() {
    let rig = Rig::settled().await;
    let n_restores = rig.restores();
    for n in 2..40 {
        rig.change(service(&format!("t{n}"), n)).await;
    }
    rig.after(SECOND).await;
    assert_eq!((rig.take_syncs().len(), rig.restores()), (1, n_restores + 1));
    assert_eq!(rig.rules(Table::Filter, "KUBE-SERVICES"), 39);
}

#[tokio::test(start_paused = true)]
async fn changes_soon_after_a_sync_wait_for_the_minimum_period_and_are_synced_together() {
    let rig = Rig::settled().await;
    let now = rig.now();
    for n in 2..7 {
        rig.change(service(&format!("t{n}"), n)).await;
        rig.after(Duration::from_millis(100)).await;
    }
    rig.after(SECOND * 10).await;
    assert_eq!(rig.take_syncs(), [now, now + 1000]);
    assert_eq!(rig.rules(Table::Filter, "KUBE-SERVICES"), 6);
}

#[tokio::test(start_paused = true)]
async fn without_a_minimum_period_each_change_is_synced_at_once() {
    let config = Config { min_sync_period: Duration::ZERO, ..Config::default() };
    let rig = Rig::start(config, NodeWait::CLUSTER);
    rig.change(Change::Node(Some(node("east")))).await;
    rig.list().await;
    rig.after(SECOND).await;
    for n in 1..4 {
        rig.change(service("s", n)).await;
        rig.after(Duration::from_millis(1)).await;
    }
    assert_eq!(rig.take_syncs(), [0, 1000, 1001, 1002]);
}

#[tokio::test(start_paused = true)]
async fn an_equal_object_causes_no_sync() {
    let rig = Rig::settled().await;
    rig.change(service("s", 1)).await;
    rig.change(Change::Node(Some(node("east")))).await;
    rig.after(SECOND).await;
    assert_eq!(rig.take_syncs(), []);
}

#[tokio::test(start_paused = true)]
async fn without_external_changes_nothing_is_read_or_written() {
    let rig = Rig::settled().await;
    let before = (rig.restores(), rig.kernel(|kernel| kernel.n_saves));
    rig.after(24 * HOUR).await;
    assert_eq!(rig.take_syncs(), []);
    assert_eq!((rig.restores(), rig.kernel(|kernel| kernel.n_saves)), before);
}

#[tokio::test(start_paused = true)]
async fn an_external_change_without_a_notification_is_found_by_the_next_audit() {
    let rig = Rig::settled().await;
    let before = (rig.restores(), rig.kernel(|kernel| kernel.n_saves));
    rig.generation.fetch_add(1, Ordering::Relaxed);
    rig.after(HOUR).await;
    assert_eq!(rig.take_syncs(), [], "a commit that did not change our rules");
    assert_eq!((rig.restores(), rig.kernel(|kernel| kernel.n_saves)), before);
    rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.generation.fetch_add(1, Ordering::Relaxed);
    rig.after(HOUR).await;
    assert_eq!(rig.take_syncs().len(), 1);
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_family_that_became_small_is_classic_again_at_the_next_audit_without_an_external_change() {
    let rig = Rig::settled().await;
    let is = |layout: &str| {
        let series =
            format!("chainsmith_rules_info{{backend=\"nft\",ip_family=\"IPv4\",layout=\"{layout}\"}}");
        rig.metric(&series) == 1.0
    };
    assert!(is("classic"));
    for n in 2..7 {
        rig.change(service(&format!("t{n}"), n)).await;
        rig.change(slice(&format!("t{n}"), &["east"; 250])).await;
    }
    rig.after(60 * SECOND).await;
    assert!(is("compact"), "1 250 endpoints");
    rig.change(slice("t2", &[])).await;
    rig.after(HOUR).await;
    assert!(is("compact"), "1 000 endpoints");
    let n_saves = rig.kernel(|kernel| kernel.n_saves);
    rig.change(slice("t3", &[])).await;
    rig.after(SECOND).await;
    assert!(is("compact"), "750 endpoints, and a partial sync");
    rig.take_syncs();
    rig.after(HOUR).await;
    assert!(is("classic"), "750 endpoints, and a full sync");
    assert_eq!(rig.take_syncs().len(), 1, "once");
    assert_eq!(rig.kernel(|kernel| kernel.n_saves), n_saves, "the kernel is not read");
}

#[tokio::test(start_paused = true)]
async fn an_external_change_of_one_family_is_read_in_that_family_only() {
    let rig = Rig::settled().await;
    let saves = || rig.kernels.iter().map(|kernel| kernel.with(|k| k.n_saves)).collect::<Vec<_>>();
    let (before, restores) = (saves(), rig.restores());
    rig.kernels[1].with(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.commit_externally().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.rules_of(1, Table::Nat, "KUBE-SERVICES"), 1);
    assert_eq!((saves()[0], rig.restores()), (before[0], restores));
    assert!(saves()[1] > before[1]);
    assert_eq!(rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv6\"}"), 1.0);
    assert_eq!(rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv4\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn in_tables_that_cannot_be_read_only_changed_chains_are_written() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.readable = crate::kernel::Readable::NamesOnly);
    for n in 1..=100 {
        rig.change(service(&format!("t{n}"), n)).await;
        rig.change(slice(&format!("t{n}"), &["east"])).await;
    }
    rig.list().await;
    rig.after(SECOND * 60).await;
    let n_restores = rig.restores();
    for _ in 0..10 {
        rig.commit_externally().await;
        rig.after(SECOND * 60).await;
    }
    assert_eq!(rig.restores(), n_restores, "our rules did not change");
    let chain = rig.kernel(|kernel| {
        let chains = &kernel.ruleset.tables[&Table::Nat];
        *chains.keys().find(|name| name.as_str().starts_with("KUBE-SVC-")).unwrap()
    });
    let whole = rig.kernel(|kernel| {
        let whole = kernel.ruleset.clone();
        kernel.ruleset.chain_mut(Table::Nat, chain).rules.pop();
        // A foreign chain with a name like ours.
        kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("KUBE-SEP-STRAY"));
        whole
    });
    rig.commit_externally().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.kernel(|kernel| kernel.ruleset.clone()), whole);
    assert_eq!(rig.restores(), n_restores + 1);
    let input = rig.kernel(|kernel| kernel.inputs.last().unwrap().clone());
    assert_eq!(input.lines().filter(|line| line.starts_with(':')).count(), 2, "{input}");
    assert_eq!(rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv4\"}"), 2.0);
    assert_eq!(rig.kernel(|kernel| kernel.n_saves), 0);
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_was_written_during_an_external_change_gets_no_fingerprint() {
    let rig = Rig::settled().await;
    rig.kernel(|kernel| kernel.readable = crate::kernel::Readable::NamesOnly);
    // Between our last commit and the next; the notification is not there yet.
    let generation = rig.generation.fetch_add(1, Ordering::Relaxed) + 1;
    rig.change(slice("s", &["east"])).await;
    rig.after(Duration::from_millis(100)).await;
    let n_restores = rig.restores();
    let chain = |kernel: &mut FakeIptables| {
        let chains = &kernel.ruleset.tables[&Table::Nat];
        *chains.keys().find(|name| name.as_str().starts_with("KUBE-SVC-")).unwrap()
    };
    rig.kernel(|kernel| {
        let chain = chain(kernel);
        kernel.ruleset.chain_mut(Table::Nat, chain).rules.clear();
    });
    rig.written.send(Some(generation + 2)).await.unwrap();
    rig.after(SECOND * 60).await;
    assert_eq!(
        rig.restores(),
        n_restores + 1,
        "a chain without a fingerprint is rewritten, as it cannot be read"
    );
    assert!(rig.kernel(|kernel| {
        let chain = chain(kernel);
        !kernel.ruleset.chain(Table::Nat, &chain).unwrap().rules.is_empty()
    }));
    // From then on it has a fingerprint.
    rig.commit_externally().await;
    rig.after(HOUR).await;
    assert_eq!(rig.restores(), n_restores + 1);
}

#[tokio::test(start_paused = true)]
async fn a_notified_external_change_is_repaired_soon() {
    let rig = Rig::settled().await;
    let before = rig.kernel(|kernel| (kernel.n_saves, kernel.n_jump_checks));
    rig.commit_externally().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.take_syncs(), []);
    assert_eq!(rig.kernel(|kernel| (kernel.n_saves, kernel.n_jump_checks)), before, "no process starts");
    let now = rig.now();
    rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.commit_externally().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.take_syncs(), [now + 250]);
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 1);
}

#[tokio::test(start_paused = true)]
async fn where_rules_cannot_be_dumped_an_external_commit_is_read_soon() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.is_dump_broken = true);
    rig.list().await;
    rig.after(SECOND * 60).await;
    let n_saves = rig.kernel(|kernel| kernel.n_saves);
    rig.commit_externally().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.kernel(|kernel| kernel.n_saves), n_saves + 2);
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_read_and_repaired_at_once_in_its_family_only() {
    let rig = Rig::settled().await;
    rig.change(service("t", 2)).await;
    rig.after(Duration::from_millis(1)).await;
    let n_saves = rig.kernels.iter().map(|kernel| kernel.with(|k| k.n_saves)).collect::<Vec<_>>();
    let whole = rig.kernel(|kernel| {
        std::mem::replace(&mut kernel.ruleset, crate::iptables::Ruleset::with_built_in_chains())
    });
    let now = rig.now();
    rig.flushed.send(IpFamily::V4).await.unwrap();
    rig.after(Duration::from_millis(1)).await;
    // It does not even wait for the minimum period.
    assert_eq!(rig.take_syncs().last(), Some(&now));
    assert_eq!(rig.kernel(|kernel| kernel.ruleset.clone()), whole);
    assert!(rig.kernels[0].with(|k| k.n_saves) > n_saves[0]);
    assert_eq!(rig.kernels[1].with(|k| k.n_saves), n_saves[1]);
}

#[tokio::test(start_paused = true)]
async fn the_loop_ends_on_shutdown_and_leaves_the_rules() {
    let rig = Rig::settled().await;
    let (before, kernel) = (rig.restores(), rig.kernels[0].clone());
    // A change that arrives with the shutdown is not synced.
    rig.shutdown.send(true).unwrap();
    rig.events.send(WatchEvent::Change(service("t", 2))).await.unwrap();
    assert_eq!(rig.ended().await, LoopEnd::Shutdown);
    assert_eq!(kernel.with(|kernel| kernel.inputs.len()), before);
}

#[tokio::test(start_paused = true)]
async fn the_loop_ends_without_sources() {
    let Rig { running, events, .. } = Rig::settled().await;
    drop(events);
    assert_eq!(running.await.unwrap(), LoopEnd::SourcesGone);
}

#[tokio::test(start_paused = true)]
async fn while_the_generation_cannot_be_read_the_last_one_counts_and_it_is_read_again_soon() {
    let rig = Rig::settled().await;
    let clear = || rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    let breaks = |is_broken| rig.kernel(|kernel| kernel.is_generation_broken = is_broken);
    // During our sync.
    breaks(true);
    rig.change(service("t", 2)).await;
    rig.after(SECOND * 5).await;
    breaks(false);
    rig.after(SECOND * 5).await;
    clear();
    rig.commit_externally().await;
    rig.after(SECOND * 5).await;
    assert_ne!(rig.rules(Table::Nat, "KUBE-SERVICES"), 0, "detected by the generation, as before");
    // While another process writes.
    breaks(true);
    clear();
    rig.commit_externally().await;
    rig.after(SECOND * 20).await;
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 0);
    breaks(false);
    rig.after(SECOND * 5).await;
    assert_ne!(
        rig.rules(Table::Nat, "KUBE-SERVICES"),
        0,
        "checked soon after the generation can be read again"
    );
    // Then nothing else is checked.
    rig.take_syncs();
    let n_dumps = rig.kernel(|kernel| kernel.n_dumps);
    rig.after(HOUR).await;
    assert_eq!((rig.take_syncs(), rig.kernel(|kernel| kernel.n_dumps)), (vec![], n_dumps));
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_cannot_be_read_at_the_first_sync_does_not_stop_drift_detection() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.is_generation_broken = true);
    rig.change(service("s", 1)).await;
    rig.list().await;
    rig.after(SECOND * 5).await;
    rig.kernel(|kernel| kernel.is_generation_broken = false);
    rig.after(SECOND * 5).await;
    rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.commit_externally().await;
    rig.after(SECOND * 5).await;
    assert_ne!(rig.rules(Table::Nat, "KUBE-SERVICES"), 0);
}

#[tokio::test(start_paused = true)]
async fn each_read_of_the_kernel_is_counted_with_its_reason() {
    let rig = Rig::settled().await;
    let reads = |reason: &str| {
        rig.metric(&format!("chainsmith_kernel_reads_total{{ip_family=\"IPv4\",reason=\"{reason}\"}}"))
    };
    assert_eq!(reads("start"), 1.0);
    rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.commit_externally().await;
    rig.after(SECOND).await;
    // Nat is read once more after the repair: a chain that still differs is an equivalent read-back.
    assert_eq!((reads("fingerprint_differs"), reads("repair_written")), (1.0, 1.0));
    rig.flushed.send(IpFamily::V4).await.unwrap();
    rig.after(SECOND).await;
    assert_eq!(reads("canary_flushed"), 1.0);
    rig.kernel(|kernel| kernel.failures = vec![crate::kernel::RestoreError::Killed(9)]);
    rig.change(service("t", 2)).await;
    rig.after(SECOND * 10).await;
    assert_eq!((reads("restore_effect_unknown"), reads("start")), (1.0, 1.0));
}
