use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::apply::{Quarantine, SyncError, SyncReport};
use crate::compile::Compiled;
use crate::config::Config;
use crate::model::host::Host;
use crate::model::{
    Change, Conditions, Frontend, ObjectName, Port, Service, Slice, SliceEndpoint, SlicePort, Snapshot,
    Touched, TrafficPolicy,
};
use crate::policy::Place;

const VIP: &str = "10.96.0.1:53";

fn service(name: &str, protocol: Protocol) -> Service {
    let frontend = Frontend {
        cluster_ip: "10.96.0.1".parse().unwrap(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
    };
    Service {
        name: ObjectName::new("ns", name),
        frontends: PerFamily { v4: Some(frontend), v6: None },
        ports: [Port { name: "".into(), protocol, port: 53, node_port: Some(30053) }].into(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        health_check_node_port: None,
        created: None,
    }
}

fn slice(name: &str, protocol: Protocol, ips: &[&str]) -> Change {
    let conditions = Conditions { is_ready: true, is_serving: true, is_terminating: false };
    let endpoint = |ip: &&str| SliceEndpoint { ip: ip.parse().unwrap(), conditions, node: None, hints: None };
    let slice = Slice {
        service: ObjectName::new("ns", name),
        family: IpFamily::V4,
        ports: [SlicePort { name: "".into(), protocol, port: 53 }].into(),
        endpoints: ips.iter().map(endpoint).collect(),
        triggered_at: None,
    };
    Change::Slice(ObjectName::new("ns", name), Some(slice))
}

/// A sweeper whose kernel holds three flows to the Service's address, and one to its node port.
struct Rig {
    sweeper: Arc<Sweeper>,
    snapshot: Snapshot,
    settings: Settings,
    is_broken: Arc<AtomicBool>,
    n_calls: Arc<AtomicUsize>,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard(Mutex<Vec<BTreeMap<StaleReason, usize>>>);

impl Observer for Heard {
    fn swept(&self, sweep: &Sweep) {
        self.0.lock().unwrap().push(sweep.deleted.clone());
    }
}

impl Rig {
    fn new() -> Rig {
        let host = || Host { addresses: vec!["192.0.2.1".parse().unwrap()], ..Host::default() };
        let settings = Settings::new(&Config::default(), None, &host(), IpFamily::V4);
        let is_broken = Arc::new(AtomicBool::new(false));
        let n_calls = Arc::new(AtomicUsize::new(0));
        let heard = Arc::new(Heard::default());
        let (broken, calls) = (is_broken.clone(), n_calls.clone());
        let flows =
            [(VIP, "10.0.0.1:53"), (VIP, "10.0.0.2:53"), ("192.0.2.1:30053", "10.0.0.1:53"), (VIP, VIP)];
        let sweep = move |family, frontends: &Frontends| {
            calls.fetch_add(1, Ordering::Relaxed);
            if broken.load(Ordering::Relaxed) {
                return Err(io::Error::from_raw_os_error(1));
            }
            let mut deleted = BTreeMap::new();
            for (destination, backend) in flows {
                let flow =
                    Flow { destination: destination.parse().unwrap(), backend: backend.parse().unwrap() };
                if let Some(reason) = frontends.stale_reason(&flow) {
                    *deleted.entry(reason).or_insert(0) += 1;
                }
            }
            let elapsed = Duration::ZERO;
            Ok(Sweep {
                family,
                elapsed,
                n_seen: 4,
                deleted,
                n_failed: 0,
                first_error: None,
                is_incomplete: false,
            })
        };
        let sweeper = Sweeper::with(Arc::new(host), vec![heard.clone()], Box::new(sweep));
        Rig { sweeper: Arc::new(sweeper), snapshot: Snapshot::default(), settings, is_broken, n_calls, heard }
    }

    fn apply(&mut self, change: Change) {
        self.snapshot.apply(change, &mut Touched::default());
    }

    fn synced(&self, scope: SyncScope, outcome: Result<(), SyncError>) {
        let mut report = SyncReport::new(IpFamily::V4, crate::kernel::Backend::Nft, scope);
        report.outcome = outcome;
        self.reported(&report);
    }

    fn reported(&self, report: &SyncReport) {
        let view = View { snapshot: &self.snapshot, place: Place { node: "n", zone: None } };
        let (settings, quarantine) = (&self.settings, &Quarantine::new());
        let synced = Synced {
            report,
            view,
            settings,
            quarantine,
            compiled: &Compiled::default(),
            elapsed: Duration::ZERO,
        };
        self.sweeper.synced(&synced);
    }

    /// What was deleted after a sync of `scope`; `None` when conntrack was not looked at.
    fn after(&self, scope: SyncScope) -> Option<Vec<(StaleReason, usize)>> {
        self.synced(scope, Ok(()));
        self.sweep()
    }

    fn sweep(&self) -> Option<Vec<(StaleReason, usize)>> {
        self.sweeper.sweep_if_due(IpFamily::V4);
        let heard = std::mem::take(&mut *self.heard.0.lock().unwrap());
        assert!(heard.len() <= 1, "{heard:?}");
        heard.into_iter().next().map(|deleted| deleted.into_iter().collect())
    }

    fn n_calls(&self) -> usize {
        self.n_calls.swap(0, Ordering::Relaxed)
    }
}

fn only(name: &str) -> SyncScope {
    SyncScope::Partial([ObjectName::new("ns", name)].into())
}

#[test]
fn udp_service_ports_are_swept_after_syncs_that_touched_them() {
    let mut rig = Rig::new();
    assert_eq!(rig.after(SyncScope::Full), None, "there is no UDP at all");
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Udp))));
    rig.apply(slice("dns", Protocol::Udp, &["10.0.0.1", "10.0.0.2"]));
    assert_eq!(rig.after(SyncScope::Full), Some(vec![(StaleReason::Untranslated, 1)]));
    assert_eq!(rig.after(only("web")), None, "dns was not touched");
    rig.apply(slice("dns", Protocol::Udp, &["10.0.0.2"]));
    assert_eq!(
        rig.after(only("dns")),
        Some(vec![(StaleReason::EndpointGone, 2), (StaleReason::Untranslated, 1)])
    );
    rig.apply(slice("dns", Protocol::Udp, &[]));
    assert_eq!(
        rig.after(only("dns")),
        Some(vec![(StaleReason::NoEndpoints, 3), (StaleReason::Untranslated, 1)])
    );
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), None));
    assert_eq!(rig.after(only("dns")), Some(vec![(StaleReason::FrontendGone, 3)]));
    assert_eq!(rig.after(only("dns")), None, "it is gone, and so are its flows");
    assert_eq!(rig.n_calls(), 4);
}

#[test]
fn flows_of_services_that_an_earlier_process_had_rules_for_go_unless_the_services_are_there() {
    let mut rig = Rig::new();
    let mut report = SyncReport::new(IpFamily::V4, crate::kernel::Backend::Nft, SyncScope::Full);
    report.inherited.addresses.insert(VIP.parse().unwrap());
    report.inherited.node_ports.insert(30053);
    rig.reported(&report);
    assert_eq!(rig.sweep(), Some(vec![(StaleReason::FrontendGone, 3)]), "there is no Service");
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Udp))));
    rig.apply(slice("dns", Protocol::Udp, &["10.0.0.1", "10.0.0.2"]));
    rig.reported(&report);
    assert_eq!(rig.sweep(), Some(vec![(StaleReason::Untranslated, 1)]), "the Service is there");
}

#[test]
fn a_service_of_another_protocol_touches_nothing() {
    let mut rig = Rig::new();
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Tcp))));
    assert_eq!(rig.after(only("dns")), None);
    assert_eq!(rig.n_calls(), 0);
}

#[test]
fn after_a_failed_sync_nothing_is_swept_as_old_rules_are_in_force() {
    let mut rig = Rig::new();
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Udp))));
    rig.synced(SyncScope::Full, Err(SyncError::Restore(crate::kernel::RestoreError::Killed(9))));
    assert_eq!(rig.sweep(), None);
}

#[test]
fn a_sweep_that_failed_is_made_up_for_after_the_next_sync() {
    let mut rig = Rig::new();
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Udp))));
    rig.after(SyncScope::Full);
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), None));
    rig.is_broken.store(true, Ordering::Relaxed);
    assert_eq!(rig.after(only("dns")), None);
    assert_eq!(rig.sweep(), None, "it is not tried again at once");
    assert_eq!(rig.n_calls(), 2);
    rig.is_broken.store(false, Ordering::Relaxed);
    // Not touched, and yet what was gone is remembered.
    assert_eq!(rig.after(only("web")), Some(vec![(StaleReason::FrontendGone, 3)]));
    assert_eq!(rig.after(only("web")), None);
}

#[test]
fn what_changes_while_a_sweep_waits_is_swept_with_it() {
    let mut rig = Rig::new();
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Udp))));
    rig.apply(slice("dns", Protocol::Udp, &["10.0.0.1"]));
    rig.synced(SyncScope::Full, Ok(()));
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), None));
    assert_eq!(rig.after(only("dns")), Some(vec![(StaleReason::FrontendGone, 3)]));
}

#[tokio::test(start_paused = true)]
async fn a_sync_wakes_the_sweeper() {
    let mut rig = Rig::new();
    let running = tokio::spawn(rig.sweeper.clone().run());
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Udp))));
    rig.synced(SyncScope::Full, Ok(()));
    while rig.n_calls() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_failed_is_tried_again_on_a_quiet_node_with_growing_pauses() {
    let mut rig = Rig::new();
    rig.is_broken.store(true, Ordering::Relaxed);
    let running = tokio::spawn(rig.sweeper.clone().run());
    rig.apply(Change::Service(ObjectName::new("ns", "dns"), Some(service("dns", Protocol::Udp))));
    rig.apply(slice("dns", Protocol::Udp, &["10.0.0.1"]));
    rig.synced(SyncScope::Full, Ok(()));
    let mut waits = Vec::new();
    let mut last = Instant::now();
    while waits.len() < 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if rig.n_calls() > 0 {
            waits.push(last.elapsed().as_secs());
            last = Instant::now();
        }
    }
    assert_eq!(waits, [0, 5, 10, 20, 40, 80, 160, 300, 300, 300]);
    rig.is_broken.store(false, Ordering::Relaxed);
    tokio::time::sleep(LONGEST_RETRY + Duration::from_secs(1)).await;
    assert_eq!(rig.n_calls(), 1);
    let expected = BTreeMap::from([(StaleReason::EndpointGone, 1), (StaleReason::Untranslated, 1)]);
    assert_eq!(*rig.heard.0.lock().unwrap(), [expected]);
    tokio::time::sleep(LONGEST_RETRY * 10).await;
    assert_eq!(rig.n_calls(), 0, "all is done");
    running.abort();
}
