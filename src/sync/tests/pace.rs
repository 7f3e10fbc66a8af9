//! When a sync begins, and what it looks at.

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
        // Not even after the time at which everything is compared once more.
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
async fn changes_that_come_together_are_synced_together() {
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
async fn changes_soon_after_a_sync_wait_for_the_minimum_period_and_then_go_together() {
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
async fn a_change_of_nothing_is_not_synced() {
    let rig = Rig::settled().await;
    rig.change(service("s", 1)).await;
    rig.change(Change::Node(Some(node("east")))).await;
    rig.after(SECOND).await;
    assert_eq!(rig.take_syncs(), []);
}

#[tokio::test(start_paused = true)]
async fn while_nobody_writes_nothing_is_read_and_nothing_written() {
    let rig = Rig::settled().await;
    let before = (rig.restores(), rig.kernel(|kernel| kernel.n_saves));
    rig.after(24 * HOUR).await;
    assert_eq!(rig.take_syncs(), []);
    assert_eq!((rig.restores(), rig.kernel(|kernel| kernel.n_saves)), before);
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_without_being_told_is_found_by_the_next_audit() {
    let rig = Rig::settled().await;
    let before = (rig.restores(), rig.kernel(|kernel| kernel.n_saves));
    rig.generation.fetch_add(1, Ordering::Relaxed);
    rig.after(HOUR).await;
    assert_eq!(rig.take_syncs(), [], "a commit that changed nothing of ours");
    assert_eq!((rig.restores(), rig.kernel(|kernel| kernel.n_saves)), before);
    rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.generation.fetch_add(1, Ordering::Relaxed);
    rig.after(HOUR).await;
    assert_eq!(rig.take_syncs().len(), 1);
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_family_that_became_small_is_classic_again_at_the_next_audit_though_nobody_wrote() {
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
    assert_eq!(rig.take_syncs().len(), 1, "and with that it is done");
    assert_eq!(rig.kernel(|kernel| kernel.n_saves), n_saves, "it is known what the kernel holds");
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_in_one_family_is_read_in_that_family_only() {
    let rig = Rig::settled().await;
    let saves = || rig.kernels.iter().map(|kernel| kernel.with(|k| k.n_saves)).collect::<Vec<_>>();
    let (before, restores) = (saves(), rig.restores());
    rig.kernels[1].with(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.written_by_somebody().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.rules_of(1, Table::Nat, "KUBE-SERVICES"), 1);
    assert_eq!((saves()[0], rig.restores()), (before[0], restores));
    assert!(saves()[1] > before[1]);
    assert_eq!(rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv6\"}"), 1.0);
    assert_eq!(rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv4\"}"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn in_tables_that_cannot_be_read_only_what_was_changed_is_written() {
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
        rig.written_by_somebody().await;
        rig.after(SECOND * 60).await;
    }
    assert_eq!(rig.restores(), n_restores, "nothing of ours was changed");
    let chain = rig.kernel(|kernel| {
        let chains = &kernel.ruleset.tables[&Table::Nat];
        *chains.keys().find(|name| name.as_str().starts_with("KUBE-SVC-")).unwrap()
    });
    let whole = rig.kernel(|kernel| {
        let whole = kernel.ruleset.clone();
        kernel.ruleset.chain_mut(Table::Nat, chain).rules.pop();
        // A chain that might be ours, and is not.
        kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("KUBE-SEP-STRAY"));
        whole
    });
    rig.written_by_somebody().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.kernel(|kernel| kernel.ruleset.clone()), whole);
    assert_eq!(rig.restores(), n_restores + 1);
    let input = rig.kernel(|kernel| kernel.inputs.last().unwrap().clone());
    assert_eq!(input.lines().filter(|line| line.starts_with(':')).count(), 2, "{input}");
    assert_eq!(rig.metric("chainsmith_drift_repaired_total{ip_family=\"IPv4\"}"), 2.0);
    assert_eq!(rig.kernel(|kernel| kernel.n_saves), 0);
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_was_written_while_somebody_else_wrote_is_not_taken_for_what_it_looks_like() {
    let rig = Rig::settled().await;
    rig.kernel(|kernel| kernel.readable = crate::kernel::Readable::NamesOnly);
    // Between our last commit and the next; it was not told yet.
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
    assert_eq!(rig.restores(), n_restores + 1, "what has no print is written anew, as nobody can read it");
    assert!(rig.kernel(|kernel| {
        let chain = chain(kernel);
        !kernel.ruleset.chain(Table::Nat, &chain).unwrap().rules.is_empty()
    }));
    // And from then on it has one.
    rig.written_by_somebody().await;
    rig.after(HOUR).await;
    assert_eq!(rig.restores(), n_restores + 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_is_repaired_soon_when_it_was_told() {
    let rig = Rig::settled().await;
    let before = rig.kernel(|kernel| (kernel.n_saves, kernel.n_jump_checks));
    rig.written_by_somebody().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.take_syncs(), []);
    assert_eq!(rig.kernel(|kernel| (kernel.n_saves, kernel.n_jump_checks)), before, "no process is started");
    let now = rig.now();
    rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.written_by_somebody().await;
    rig.after(SECOND * 60).await;
    assert_eq!(rig.take_syncs(), [now + 250]);
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 1);
}

#[tokio::test(start_paused = true)]
async fn where_rules_cannot_be_dumped_a_commit_of_somebody_else_is_read_soon() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.is_dump_broken = true);
    rig.list().await;
    rig.after(SECOND * 60).await;
    let n_saves = rig.kernel(|kernel| kernel.n_saves);
    rig.written_by_somebody().await;
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
    // Not even the minimum period is waited for.
    assert_eq!(rig.take_syncs().last(), Some(&now));
    assert_eq!(rig.kernel(|kernel| kernel.ruleset.clone()), whole);
    assert!(rig.kernels[0].with(|k| k.n_saves) > n_saves[0]);
    assert_eq!(rig.kernels[1].with(|k| k.n_saves), n_saves[1]);
}

#[tokio::test(start_paused = true)]
async fn the_loop_ends_when_told_to_and_leaves_the_rules() {
    let rig = Rig::settled().await;
    let (before, kernel) = (rig.restores(), rig.kernels[0].clone());
    // A change that comes with it is not begun any more.
    rig.shutdown.send(true).unwrap();
    rig.events.send(WatchEvent::Change(service("t", 2))).await.unwrap();
    assert_eq!(rig.ended().await, LoopEnd::Shutdown);
    assert_eq!(kernel.with(|kernel| kernel.inputs.len()), before);
}

#[tokio::test(start_paused = true)]
async fn the_loop_ends_when_its_sources_are_gone() {
    let Rig { running, events, .. } = Rig::settled().await;
    drop(events);
    assert_eq!(running.await.unwrap(), LoopEnd::SourcesGone);
}

#[tokio::test(start_paused = true)]
async fn while_the_generation_cannot_be_had_the_last_one_counts_and_it_is_asked_for_again_soon() {
    let rig = Rig::settled().await;
    let clear = || rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    let breaks = |is_broken| rig.kernel(|kernel| kernel.is_generation_broken = is_broken);
    // During a sync of ours.
    breaks(true);
    rig.change(service("t", 2)).await;
    rig.after(SECOND * 5).await;
    breaks(false);
    rig.after(SECOND * 5).await;
    clear();
    rig.written_by_somebody().await;
    rig.after(SECOND * 5).await;
    assert_ne!(rig.rules(Table::Nat, "KUBE-SERVICES"), 0, "noticed by its number, as before");
    // While another process writes.
    breaks(true);
    clear();
    rig.written_by_somebody().await;
    rig.after(SECOND * 20).await;
    assert_eq!(rig.rules(Table::Nat, "KUBE-SERVICES"), 0);
    breaks(false);
    rig.after(SECOND * 5).await;
    assert_ne!(rig.rules(Table::Nat, "KUBE-SERVICES"), 0, "looked at soon after it can be had again");
    // And with that it is quiet.
    rig.take_syncs();
    let n_dumps = rig.kernel(|kernel| kernel.n_dumps);
    rig.after(HOUR).await;
    assert_eq!((rig.take_syncs(), rig.kernel(|kernel| kernel.n_dumps)), (vec![], n_dumps));
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_cannot_be_had_at_the_first_sync_does_not_stop_the_look_for_others() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.kernel(|kernel| kernel.is_generation_broken = true);
    rig.change(service("s", 1)).await;
    rig.list().await;
    rig.after(SECOND * 5).await;
    rig.kernel(|kernel| kernel.is_generation_broken = false);
    rig.after(SECOND * 5).await;
    rig.kernel(|kernel| kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear());
    rig.written_by_somebody().await;
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
    rig.written_by_somebody().await;
    rig.after(SECOND).await;
    // Nat is read once more after the repair: a chain that still differs is spelled otherwise.
    assert_eq!((reads("fingerprint_differs"), reads("repair_written")), (1.0, 1.0));
    rig.flushed.send(IpFamily::V4).await.unwrap();
    rig.after(SECOND).await;
    assert_eq!(reads("canary_flushed"), 1.0);
    rig.kernel(|kernel| kernel.failures = vec![crate::kernel::RestoreError::Killed(9)]);
    rig.change(service("t", 2)).await;
    rig.after(SECOND * 10).await;
    assert_eq!((reads("restore_effect_unknown"), reads("start")), (1.0, 1.0));
}
