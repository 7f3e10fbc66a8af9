//! The loop in paused time, which advances only while every task waits.

mod failures;
mod kernel;
mod large;
mod node;
mod observers;
mod outage;
mod overlaps;
mod pace;
mod questions;
mod restart;

use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::apply::{SyncError, SyncReport};
use crate::compile::View;
use crate::config::Config;
use crate::iptables::Table;
use crate::kernel::Backend;
use crate::kernel::fake::FakeIptables;
use crate::measure::SyncMeter;
use crate::metrics::Metrics;
use crate::model::Node;
use crate::model::Snapshot;
use crate::model::host::Host;
use crate::model::{
    Conditions, Frontend, Hints, ObjectName, Port, Service, ServiceName, Slice, SliceEndpoint, SlicePort,
};
use crate::net::{Cidr, PerFamily, Protocol};
use crate::policy::Place;
use kernel::Shared;

const NODE: &str = "node-a";

/// A running loop, its inputs and its outputs.
struct Rig {
    kernels: Vec<Shared>,
    events: mpsc::Sender<WatchEvent>,
    flushed: mpsc::Sender<IpFamily>,
    written: mpsc::Sender<Option<u32>>,
    addresses: mpsc::Sender<()>,
    questions: mpsc::Sender<ViewRequest>,
    /// The host's facts.
    host: Arc<Mutex<Host>>,
    /// The ruleset's generation, which both families share.
    generation: Arc<AtomicU32>,
    shutdown: tokio::sync::watch::Sender<bool>,
    running: tokio::task::JoinHandle<LoopEnd>,
    metrics: Arc<Metrics>,
    registry: prometheus::Registry,
    calls: Arc<observers::CallRecorder>,
    /// When each sync began, from the start.
    syncs: Arc<Mutex<Vec<Duration>>>,
    started: Instant,
}

impl Rig {
    fn start(config: Config, node_wait: NodeWait) -> Rig {
        let generation = Arc::new(AtomicU32::new(0));
        let kernels: Vec<Shared> = IpFamily::BOTH
            .map(|family| Shared::new(FakeIptables::new(family, Backend::Nft), generation.clone()))
            .into();
        let (events, watch) = mpsc::channel(64);
        let (flushed_sender, flushed) = mpsc::channel(2);
        let (written_sender, written) = mpsc::channel(2);
        let (shutdown_sender, shutdown) = tokio::sync::watch::channel(false);
        let registry = prometheus::Registry::new();
        let metrics = Arc::new(Metrics::register(&registry).unwrap());
        let calls = Arc::new(observers::CallRecorder::default());
        let (started, syncs) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let (addresses_sender, addresses) = mpsc::channel(1);
        let (questions_sender, questions) = mpsc::channel(1);
        let (begun, known) = (syncs.clone(), Arc::new(Mutex::new(Host::default())));
        let (host, kept) = (known.clone(), known);
        // The loop looks up the host's facts at the start of each sync.
        let host: HostSource = Arc::new(move || {
            begun.lock().unwrap().push(started.elapsed());
            host.lock().unwrap().clone()
        });
        let parts = LoopParts {
            config: Arc::new(config),
            node_name: NODE.into(),
            host,
            kernels: kernels.clone(),
            observers: vec![Arc::new(SyncMeter::new(metrics.clone())), calls.clone()],
            node_wait,
            is_notified: true,
        };
        let inputs = LoopInputs { watch, flushed, written, addresses, questions, shutdown };
        let running = tokio::spawn(Loop::new(parts).run(inputs));
        Rig {
            kernels,
            events,
            flushed: flushed_sender,
            written: written_sender,
            addresses: addresses_sender,
            questions: questions_sender,
            host: kept,
            generation,
            shutdown: shutdown_sender,
            running,
            metrics,
            registry,
            calls,
            syncs,
            started,
        }
    }

    /// A loop that has synced `ns/s` once, which has no endpoints.
    async fn settled() -> Rig {
        let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
        rig.change(Change::Node(Some(node("east")))).await;
        rig.change(service("s", 1)).await;
        rig.list().await;
        rig.after(Duration::from_secs(60)).await;
        assert_eq!(rig.take_syncs(), [0]);
        rig
    }

    async fn send(&self, event: WatchEvent) {
        self.events.send(event).await.unwrap();
    }

    async fn change(&self, change: Change) {
        self.send(WatchEvent::Change(change)).await;
    }

    async fn list(&self) {
        for event in [WatchEvent::ServicesListed, WatchEvent::SlicesListed, WatchEvent::NodeListed] {
            self.send(event).await;
        }
    }

    /// Lets time pass, at once when every task waits.
    async fn after(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// When syncs began since the last take, in milliseconds from the start.
    fn take_syncs(&self) -> Vec<u128> {
        self.syncs.lock().unwrap().drain(..).map(|at| at.as_millis()).collect()
    }

    fn now(&self) -> u128 {
        self.started.elapsed().as_millis()
    }

    /// The result of `work` on the kernel's tables of IPv4.
    fn kernel<T>(&self, work: impl FnOnce(&mut FakeIptables) -> T) -> T {
        self.kernels[0].with(work)
    }

    /// How many rules a chain of IPv4 has; `usize::MAX` if it does not exist.
    fn rules(&self, table: Table, chain: &str) -> usize {
        self.rules_of(0, table, chain)
    }

    fn rules_of(&self, family: usize, table: Table, chain: &str) -> usize {
        let name = crate::iptables::ChainName::new(chain).unwrap();
        let n_rules = |kernel: &mut FakeIptables| {
            kernel.ruleset.chain(table, &name).map_or(usize::MAX, |chain| chain.rules.len())
        };
        self.kernels[family].with(n_rules)
    }

    /// Another process commits to nf_tables, with a notification.
    async fn commit_externally(&self) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.written.send(Some(generation)).await.unwrap();
    }

    /// The value of a series, by its whole name; 0 if it does not exist.
    fn metric(&self, series: &str) -> f64 {
        let text = crate::metrics::exposition(&self.registry).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    fn restores(&self) -> usize {
        self.kernel(|kernel| kernel.inputs.len())
    }

    async fn ended(self) -> LoopEnd {
        self.running.await.unwrap()
    }
}

fn node(zone: &str) -> Node {
    Node {
        name: NODE.into(),
        addresses: [[192, 168, 0, 2].into()].into(),
        pod_cidrs: Box::default(),
        zone: Some(zone.into()),
        is_leaving: false,
    }
}

fn name(text: &str) -> ServiceName {
    ObjectName::new("ns", text)
}

/// A Service at 172.30.0.`n`.
fn service(text: &str, n: u8) -> Change {
    let frontend = Frontend {
        cluster_ip: [172, 30, 0, n].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
    };
    let service = Service {
        name: name(text),
        frontends: PerFamily { v4: Some(frontend), v6: None },
        ports: [Port { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity_seconds: None,
        health_check_node_port: None,
        created: None,
    };
    Change::Service(name(text), Some(service))
}

/// Endpoints of a Service, one for each zone that they are hinted for; none is ready for the empty
/// zone.
fn slice(service: &str, zones: &[&str]) -> Change {
    let endpoint = |(n, zone): (usize, &&str)| SliceEndpoint {
        ip: [10, 180, 0, n as u8].into(),
        conditions: Conditions { is_ready: !zone.is_empty(), is_serving: true, is_terminating: false },
        node: None,
        hints: Some(Box::new(Hints { zones: [Arc::from(*zone)].into(), nodes: Box::default() })),
    };
    let slice = Slice {
        service: name(service),
        family: IpFamily::V4,
        ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: zones.iter().enumerate().map(endpoint).collect(),
        triggered_at: None,
    };
    Change::Slice(name(&format!("{service}-1")), Some(slice))
}
