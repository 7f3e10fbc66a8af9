//! What observers are notified of.
#![allow(clippy::disallowed_methods, reason = "trigger times are times of day")]

use super::*;

/// Records its calls. The first sync waits for the receiver, if there is one.
#[derive(Default)]
pub struct CallRecorder(Mutex<Vec<String>>, pub Mutex<Option<std::sync::mpsc::Receiver<()>>>);

impl CallRecorder {
    fn record(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    /// The calls since the last take, sorted, as both families sync at the same time.
    fn take(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut *self.0.lock().unwrap());
        calls.sort();
        calls
    }
}

impl Observer for CallRecorder {
    fn started(&self, families: &[IpFamily]) {
        self.record(format!("started {families:?}"));
    }

    fn changed(&self, news: &News<'_>) {
        let services = news.touched.services.v4.len();
        self.record(format!("changed {services} of IPv4, listed {}", news.is_listed));
    }

    fn queued(&self, family: IpFamily) {
        self.record(format!("queued {family}"));
    }

    fn syncing(&self, _: IpFamily) {
        let gate = self.1.lock().unwrap().take();
        gate.into_iter().for_each(|gate| gate.recv().unwrap());
    }

    fn synced(&self, synced: &Synced<'_>) {
        let report = synced.report;
        assert_eq!((synced.settings.family, synced.view.place.node), (report.family, NODE));
        let (scope, is_ok) = (&report.scope, report.outcome.is_ok());
        self.record(format!("synced {} {scope:?}, success {is_ok}", report.family));
    }
}

#[tokio::test(start_paused = true)]
async fn observers_are_notified_of_every_change_queued_sync_and_sync() {
    let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
    rig.change(Change::Node(Some(node("east")))).await;
    rig.change(service("s", 1)).await;
    rig.list().await;
    rig.after(Duration::from_secs(60)).await;
    let expected = [
        "changed 0 of IPv4, listed false",
        "changed 1 of IPv4, listed false",
        "queued IPv4",
        "queued IPv6",
        "started [V4, V6]",
        "synced IPv4 Full, success true",
        "synced IPv6 Full, success true",
    ];
    assert_eq!(rig.calls.take(), expected, "a zone queues a sync at once, Services once all are listed");

    rig.change(service("s", 2)).await;
    rig.after(Duration::from_secs(60)).await;
    let services = r#"Partial({ObjectName("ns/s")})"#;
    let expected = [
        "changed 1 of IPv4, listed true".to_owned(),
        "queued IPv4".to_owned(),
        format!("synced IPv4 {services}, success true"),
    ];
    assert_eq!(rig.calls.take(), expected);

    rig.change(service("s", 2)).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.calls.take(), ["changed 0 of IPv4, listed true"], "an equal object queues nothing");
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_next_sync_is_a_full_one() {
    let rig = Rig::settled().await;
    rig.calls.take();
    rig.kernel(|kernel| kernel.failures.push(crate::kernel::RestoreError::Killed(9)));
    rig.change(service("s", 2)).await;
    rig.after(Duration::from_secs(60)).await;
    let synced: Vec<String> =
        rig.calls.take().into_iter().filter(|text| text.starts_with("synced IPv4")).collect();
    let services = r#"Partial({ObjectName("ns/s")})"#;
    let expected =
        ["synced IPv4 Full, success true".to_owned(), format!("synced IPv4 {services}, success false")];
    assert_eq!(synced, expected);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_changes_at_once_are_synced_together_and_the_last_state_is_in_force() {
    let rig = Rig::settled().await;
    for n in 0..10_000 {
        let zones = ["", "east", "west"];
        rig.change(slice("s", &zones[..1 + n % 3])).await;
    }
    rig.change(slice("s", &["east", "east"])).await;
    rig.after(Duration::from_secs(60)).await;
    let syncs = rig.take_syncs();
    assert!(syncs.len() <= 3, "{syncs:?}");
    assert_eq!(
        rig.kernel(|kernel| {
            let nat = &kernel.ruleset.tables[&Table::Nat];
            nat.keys().filter(|name| name.to_string().starts_with("KUBE-SEP-")).count()
        }),
        2
    );
    assert_eq!(rig.metric("kubeproxy_sync_proxy_rules_endpoint_changes_total"), 10_001.0);
    assert_eq!(rig.metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending"), 0.0);
}

/// `slice`, following a change that begins now.
fn triggered(change: Change) -> Change {
    match change {
        Change::Slice(name, Some(slice)) => {
            let triggered_at = Some(std::time::SystemTime::now());
            Change::Slice(name, Some(Slice { triggered_at, ..slice }))
        }
        other => other,
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_endpoints_is_measured_once_in_force_even_after_failures() {
    let rig = Rig::settled().await;
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    rig.kernel(|kernel| kernel.failures.push(crate::kernel::RestoreError::Killed(9)));
    rig.change(triggered(slice("s", &["east"]))).await;
    rig.after(Duration::from_millis(500)).await;
    assert_eq!((rig.take_syncs().len(), rig.metric(count)), (1, 0.0), "it failed");
    rig.after(Duration::from_secs(60)).await;
    assert_eq!((rig.take_syncs().len(), rig.metric(count)), (1, 1.0));
    rig.change(triggered(slice("s", &["east"]))).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.metric(count), 1.0, "nothing else differs");
}

#[tokio::test(start_paused = true)]
async fn syncs_are_counted_by_kind_and_pending_changes_until_they_are_synced() {
    let rig = Rig::settled().await;
    let of = |kind: &str| {
        rig.metric(&format!("kubeproxy_sync_{kind}_proxy_rules_duration_seconds_count{{ip_family=\"IPv4\"}}"))
    };
    assert_eq!((of("full"), of("partial")), (1.0, 0.0));
    rig.change(service("t", 7)).await;
    rig.after(Duration::from_millis(100)).await;
    rig.change(service("u", 8)).await;
    rig.after(Duration::from_secs(60)).await;
    // The first one is synced at once, the second one after the minimum period.
    assert_eq!((of("full"), of("partial")), (1.0, 2.0));
    // Each counts for both families, the first Service too.
    assert_eq!(rig.metric("kubeproxy_sync_proxy_rules_service_changes_total"), 6.0);
    let queue = "chainsmith_sync_stage_duration_seconds_count{ip_family=\"IPv4\",stage=\"queue\"}";
    assert_eq!(rig.metric(queue), 3.0);
    let rules = |table: &str| {
        rig.metric(&format!(
            "kubeproxy_sync_proxy_rules_iptables_total{{ip_family=\"IPv4\",table=\"{table}\"}}"
        ))
    };
    let in_kernel = |table: Table| {
        rig.kernel(|kernel| {
            let chains = kernel.ruleset.tables[&table].iter();
            chains
                .filter(|(name, _)| name.to_string().starts_with("KUBE-"))
                .map(|(_, chain)| chain.rules.len())
                .sum::<usize>()
        })
    };
    assert_eq!(
        (rules("nat"), rules("filter")),
        (in_kernel(Table::Nat) as f64, in_kernel(Table::Filter) as f64)
    );
}

/// "Rules in force" would be wrong, and leftovers of another mode may still serve the node.
#[test]
fn a_sync_that_a_shutdown_cut_short_is_not_reported_as_a_sync() {
    let (recorder, mut snapshot) = (Arc::new(CallRecorder::default()), Snapshot::default());
    for change in [service("a", 1), slice("a", &["east"])] {
        snapshot.apply(change, &mut Touched::default());
    }
    let view = View { snapshot: &snapshot, place: Place { node: NODE, zone: None } };
    let observers: [Arc<dyn Observer>; 1] = [recorder.clone()];
    let kernel = Shared::new(FakeIptables::new(IpFamily::V4, Backend::Nft), Arc::default());
    let mut family = FamilySync::new(kernel);
    family.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    let report = loop_state::sync_family(&mut family, view, &AtomicBool::new(true), &observers);
    assert_eq!(report.outcome, Ok(()));
    assert!(recorder.take().iter().all(|call| !call.starts_with("synced")));
    loop_state::sync_family(&mut family, view, &AtomicBool::new(false), &observers);
    assert!(recorder.take().iter().any(|call| call.starts_with("synced")));
}
