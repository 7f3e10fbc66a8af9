//! When a sync begins, and what it looks at.

use super::*;

const HOUR: Duration = Duration::from_secs(60 * 60);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn nothing_is_synced_before_services_slices_and_node_are_listed() {
    let listed = || [WatchEvent::ServicesListed, WatchEvent::SlicesListed, WatchEvent::NodeListed];
    for missing in 0..3 {
        let rig = Rig::start(Config::default(), Patience::CLUSTER);
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
    let rig = Rig::start(config, Patience::CLUSTER);
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
async fn a_commit_of_somebody_else_that_was_not_told_is_read_at_the_next_audit() {
    let rig = Rig::settled().await;
    let before = (rig.restores(), rig.kernel(|kernel| kernel.n_saves));
    rig.generation.fetch_add(1, Ordering::Relaxed);
    rig.after(HOUR).await;
    assert_eq!(rig.take_syncs(), [300_000]);
    assert_eq!((rig.restores(), rig.kernel(|kernel| kernel.n_saves)), (before.0, before.1 + 2));
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
async fn a_commit_of_somebody_else_that_was_told_is_read_soon() {
    let rig = Rig::settled().await;
    let now = rig.now();
    let generation = rig.generation.fetch_add(1, Ordering::Relaxed) + 1;
    rig.written.send(Some(generation)).await.unwrap();
    rig.after(SECOND * 60).await;
    assert_eq!(rig.take_syncs(), [now + 250]);
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
    assert_eq!(rig.ended().await, Ended::Shutdown);
    assert_eq!(kernel.with(|kernel| kernel.inputs.len()), before);
}

#[tokio::test(start_paused = true)]
async fn the_loop_ends_when_its_sources_are_gone() {
    let Rig { running, events, .. } = Rig::settled().await;
    drop(events);
    assert_eq!(running.await.unwrap(), Ended::SourcesGone);
}
