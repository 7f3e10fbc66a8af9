//! The one loop: changes of the cluster in, rules in the kernel out.
//!
//! A node's rules are one thing, so they are reconciled as a whole by one loop and not an object at
//! a time. Whatever wakes it is an [`Event`]. Changes that come together are synced together.

mod family;
mod observer;
mod pacer;
mod quarantine;
mod report;
mod stopwatch;
mod threads;

pub use family::FamilySync;
pub use observer::{Finding, News, Observer, Sweep, Synced};
pub use report::{Quarantine, Refusal, Report, SyncError};
pub use stopwatch::Stages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::compile::View;
use crate::config::{Config, DetectLocal};
use crate::drift::{DriftDetector, FamilyTables, ReadReason};
use crate::kernel::Iptables;
use crate::model::host::Host;
use crate::model::{Change, Node, Snapshot, Touched};
use crate::net::IpFamily;
use crate::policy::Place;
use crate::rules::Settings;
use crate::watch::WatchEvent;
use pacer::Pacer;

/// Whatever wakes the loop.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Event {
    /// The cluster changed, or is listed.
    Watch(WatchEvent),
    /// The tables of a family were flushed by somebody.
    TablesFlushed(IpFamily),
    /// Somebody, perhaps we, committed to nf_tables; the ruleset's generation if it is known.
    TablesWritten(Option<u32>),
    /// The node's addresses may have changed.
    AddressesChanged,
    /// It is time to check the kernel's tables for drift, or to audit them.
    DriftCheckDue,
    /// A sync may start: a change waited for the minimum period to pass.
    SyncDue,
    /// A failed sync is to be tried again.
    RetryDue,
    /// The Node has not told its addresses in time.
    NodeWaitOver,
    /// The process is to end.
    Shutdown,
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Shutdown,
    /// The Node's pod CIDRs changed, which everything in mode NodeCIDR depends on: start anew.
    PodCidrsChanged,
    /// Mode NodeCIDR, and the Node got no pod CIDRs in time.
    NoPodCidrs,
    /// Nothing can come any more: the sources are gone.
    SourcesGone,
}

/// Finds out what only the node knows; called before each sync, and when its addresses may have changed.
/// What cannot be found out is as it was last known.
pub type HostSource = Arc<dyn Fn() -> Host + Send + Sync>;

/// What the loop is made of.
pub struct Parts<K> {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// This node's name.
    pub node_name: Arc<str>,
    /// What the node knows of itself.
    pub host: HostSource,
    /// The tables, one family each.
    pub kernels: Vec<K>,
    /// Who is told what the loop does, in this order.
    pub observers: Vec<Arc<dyn Observer>>,
    /// How long to wait for what the Node has to tell.
    pub patience: Patience,
    /// Whether commits to the tables are notified; otherwise they are looked at every second.
    pub is_notified: bool,
}

/// What the loop listens to.
pub struct Inputs {
    /// The cluster.
    pub watch: mpsc::Receiver<WatchEvent>,
    /// Families whose canary is gone.
    pub flushed: mpsc::Receiver<IpFamily>,
    /// Commits to nf_tables, by generation; `None` when some were missed.
    pub written: mpsc::Receiver<Option<u32>>,
    /// Changes of the node's addresses, a few a second at most.
    pub addresses: mpsc::Receiver<()>,
    /// Set when the process is to end.
    pub shutdown: tokio::sync::watch::Receiver<bool>,
}

/// How long the first sync waits for what the Node object does not say yet, from when it is known
/// whether there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For its addresses; then on without.
    pub addresses: Duration,
    /// In mode NodeCIDR, for its pod CIDRs; then the process ends.
    pub pod_cidrs: Duration,
}

impl Patience {
    /// As kube-proxy v1.36 waits for a cluster's control plane.
    pub const CLUSTER: Patience =
        Patience { addresses: Duration::from_secs(30), pod_cidrs: Duration::from_secs(5 * 60) };
    /// For sources that nobody writes a Node's status to.
    pub const NONE: Patience = Patience { addresses: Duration::ZERO, pod_cidrs: Duration::ZERO };
}

/// The loop's state. It moves to a blocking thread for a sync, and back.
struct State<K> {
    families: Vec<FamilySync<K>>,
    snapshot: Snapshot,
    drift: DriftDetector,
}

impl<K: Iptables> State<K> {
    /// The drift detector, and the tables that it is about.
    fn drift(&mut self) -> (&mut DriftDetector, Vec<&mut FamilyTables<K>>) {
        (&mut self.drift, self.families.iter_mut().map(FamilySync::tables).collect())
    }
}

/// The loop.
pub struct Loop<K> {
    parts: Parts<()>,
    state: State<K>,
    pacer: Pacer,
    /// The Node that settings are made from: as it was when it first had an address.
    settled_node: Option<Node>,
    are_services_listed: bool,
    are_slices_listed: bool,
    /// When it was known whether there is a Node.
    node_listed_at: Option<Instant>,
    /// Whether an object changed since the last sync.
    is_changed: bool,
    stop: Arc<AtomicBool>,
}

impl<K: Iptables + 'static> Loop<K> {
    /// A loop that has seen nothing yet.
    pub fn new(parts: Parts<K>) -> Loop<K> {
        let Parts { config, node_name, host, kernels, observers, patience, is_notified } = parts;
        let families = kernels.into_iter().map(FamilySync::new).collect();
        let drift = DriftDetector::new(is_notified, config.audit_period);
        Loop {
            pacer: Pacer::new(config.min_sync_period, config.sync_period),
            state: State { families, snapshot: Snapshot::default(), drift },
            parts: Parts { config, node_name, host, kernels: Vec::new(), observers, patience, is_notified },
            settled_node: None,
            are_services_listed: false,
            are_slices_listed: false,
            node_listed_at: None,
            is_changed: false,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Runs until it is told to end, or cannot go on.
    pub async fn run(mut self, inputs: Inputs) -> Ended {
        let Inputs { mut watch, mut flushed, mut written, mut addresses, mut shutdown } = inputs;
        let families: Vec<IpFamily> = self.state.families.iter().map(FamilySync::family).collect();
        self.tell(|observer| observer.started(&families));
        loop {
            let event = tokio::select! {
                biased;
                () = until_set(&mut shutdown) => Event::Shutdown,
                Some(family) = flushed.recv() => Event::TablesFlushed(family),
                Some(generation) = written.recv() => Event::TablesWritten(generation),
                Some(()) = addresses.recv() => Event::AddressesChanged,
                event = watch.recv() => match event {
                    Some(event) => Event::Watch(event),
                    None => return Ended::SourcesGone,
                },
                event = self.due() => event,
            };
            // Changes wait for the minimum period; these have waited, or cannot.
            let is_urgent = match event {
                Event::TablesFlushed(_) | Event::SyncDue | Event::RetryDue => true,
                Event::DriftCheckDue => self.check_drift().await,
                _ => false,
            };
            let mut ended = self.take(event);
            // What came together is synced together.
            while let (None, Ok(event)) = (&ended, watch.try_recv()) {
                ended = self.take(Event::Watch(event));
            }
            if let Some(ended) = ended {
                return ended;
            }
            if *shutdown.borrow() {
                return Ended::Shutdown;
            }
            let may_start = self.may_start().is_none_or(|at| at <= Instant::now());
            if (is_urgent && self.is_listed() && self.is_dirty()) || (may_start && self.is_waiting()) {
                self.sync(&mut shutdown).await;
            }
        }
    }

    /// Waits for the next thing that the clock asks for.
    async fn due(&self) -> Event {
        let node_wait = self.node_wait_until().map(|at| (at, Event::NodeWaitOver));
        let sync = match self.pacer.retry_at() {
            _ if self.is_waiting() => Some((self.may_start().unwrap_or_else(Instant::now), Event::SyncDue)),
            retry_at => retry_at.map(|at| (at, Event::RetryDue)),
        };
        let drift = Some((self.state.drift.next_at(), Event::DriftCheckDue));
        let next = [node_wait, sync, drift].into_iter().flatten().min_by_key(|(at, _)| *at);
        match next {
            Some((at, event)) => {
                tokio::time::sleep_until(at).await;
                event
            }
            None => std::future::pending().await,
        }
    }

    /// Notes what an event changed.
    fn take(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Shutdown => return Some(Ended::Shutdown),
            Event::Watch(WatchEvent::Change(change)) => return self.change(change),
            Event::Watch(WatchEvent::ServicesListed) => self.are_services_listed = true,
            Event::Watch(WatchEvent::SlicesListed) => self.are_slices_listed = true,
            Event::Watch(WatchEvent::Problems(kind, n)) => {
                self.tell(|observer| observer.problems(kind, n));
            }
            Event::Watch(WatchEvent::NodeListed) => self.node_listed_at = Some(Instant::now()),
            Event::NodeWaitOver => return self.node_wait_over(),
            Event::TablesFlushed(family) => {
                warn!(%family, "another process flushed the tables; comparing all rules with the kernel");
                for sync in self.state.families.iter_mut().filter(|sync| sync.family() == family) {
                    sync.distrust(ReadReason::CanaryFlushed);
                }
            }
            Event::TablesWritten(generation) => {
                let (drift, mut tables) = self.state.drift();
                drift.notified(generation, &mut tables);
            }
            // The first sync looks for itself.
            Event::AddressesChanged if self.is_listed() => self.addresses_changed(),
            Event::AddressesChanged | Event::RetryDue | Event::SyncDue | Event::DriftCheckDue => {}
        }
        None
    }

    fn change(&mut self, change: Change) -> Option<Ended> {
        let old_zone = self.zone();
        let mut touched = Touched::default();
        let (n_services, n_slices) = self.state.snapshot.count_reported(&change);
        self.state.snapshot.apply(change, &mut touched);
        self.is_changed |= !touched.is_empty();
        let (is_listed, zone) = (self.is_listed(), self.zone());
        let node = self.state.snapshot.node();
        self.tell(|observer| {
            observer.changed(&News { touched: &touched, n_services, n_slices, node, is_listed })
        });
        for at in 0..self.state.families.len() {
            let family = self.state.families[at].family();
            let names = std::mem::take(touched.services.get_mut(family));
            if is_listed && !names.is_empty() || zone != old_zone {
                self.tell(|observer| observer.queued(family));
            }
            self.state.families[at].touch(names);
        }
        if !touched.node {
            return None;
        }
        if zone != old_zone {
            self.state.families.iter_mut().for_each(|sync| sync.touch_everything());
        }
        self.node_changed()
    }

    /// kube-proxy reads a Node's addresses and pod CIDRs once. So do we, but take over the first that
    /// there are of each.
    fn node_changed(&mut self) -> Option<Ended> {
        let node = self.state.snapshot.node()?;
        let unknown = Node::unknown(node.name.clone());
        let settled = self.settled_node.as_ref().unwrap_or(&unknown);
        if self.settled_node.is_none() && node.addresses.is_empty() {
            return None;
        }
        let knows_pod_cidrs = !settled.pod_cidrs.is_empty();
        if self.detects_by_pod_cidr() && knows_pod_cidrs && settled.pod_cidrs != node.pod_cidrs {
            return Some(Ended::PodCidrsChanged);
        }
        if !settled.addresses.is_empty() && settled.addresses != node.addresses {
            warn!(
                node = %node.name, was = ?settled.addresses, is = ?node.addresses,
                "the Node's addresses changed; rules keep the first until the next start"
            );
        }
        let mut settled = settled.clone();
        if settled.addresses.is_empty() && !node.addresses.is_empty() {
            info!(node = %node.name, addresses = ?node.addresses, "the Node's addresses are known");
            settled.addresses = node.addresses.clone();
            self.state.families.iter_mut().for_each(|sync| sync.touch_everything());
        }
        if settled.pod_cidrs.is_empty() {
            settled.pod_cidrs = node.pod_cidrs.clone();
        }
        self.settled_node = Some(settled);
        None
    }

    fn tell(&self, what: impl Fn(&dyn Observer)) {
        self.parts.observers.iter().for_each(|observer| what(observer.as_ref()));
    }

    fn zone(&self) -> Option<Arc<str>> {
        self.state.snapshot.node().and_then(|node| node.zone.clone())
    }

    /// Whether the first complete lists are there: rules made before would be those of half a cluster.
    fn is_listed(&self) -> bool {
        self.are_services_listed
            && self.are_slices_listed
            && self.node_listed_at.is_some()
            && self.node_wait_until().is_none()
    }

    fn detects_by_pod_cidr(&self) -> bool {
        self.parts.config.detect_local == DetectLocal::NodeCidr
    }

    /// Until when the Node is waited for; `None` when it need not be, or has told what is needed.
    fn node_wait_until(&self) -> Option<Instant> {
        let listed_at = self.node_listed_at?;
        let patience = self.parts.patience;
        if self.settled_node.is_none() {
            return Some(listed_at + patience.addresses);
        }
        let lacks_pod_cidrs = self.settled_node.as_ref().is_some_and(|node| node.pod_cidrs.is_empty());
        (self.detects_by_pod_cidr() && lacks_pod_cidrs)
            .then_some(listed_at + patience.addresses + patience.pod_cidrs)
    }

    /// Goes on with what is known of the Node.
    fn node_wait_over(&mut self) -> Option<Ended> {
        if self.settled_node.is_none() {
            let node = self.state.snapshot.node().cloned();
            if node.as_ref().is_none_or(|node| node.addresses.is_empty()) {
                let name = &self.parts.node_name;
                warn!(node = %name, "the Node has no addresses; going on with 127.0.0.1 and ::1 as the node's own");
            }
            self.settled_node = Some(node.unwrap_or_else(|| Node::unknown(self.parts.node_name.clone())));
            return None;
        }
        Some(Ended::NoPodCidrs)
    }

    /// Whether a sync is due as soon as the minimum period has passed. After a failure only a change
    /// makes it so; otherwise the retry has its own time.
    fn is_waiting(&self) -> bool {
        self.is_listed() && self.is_dirty() && (self.is_changed || self.pacer.retry_at().is_none())
    }

    fn is_dirty(&self) -> bool {
        self.state.families.iter().any(FamilySync::is_dirty)
    }

    /// When a sync may start; `None`: at once. What the last one left of a large Service does not wait for
    /// the minimum period, nor does any change that came meanwhile.
    fn may_start(&self) -> Option<Instant> {
        let goes_on =
            self.pacer.retry_at().is_none() && self.state.families.iter().any(FamilySync::is_unfinished);
        if goes_on { None } else { self.pacer.may_start() }
    }

    /// Checks the kernel's tables for drift; whether a sync is to follow at once.
    async fn check_drift(&mut self) -> bool {
        let (state, checked) = on_thread(self.take_state(), |state| {
            let (drift, mut tables) = state.drift();
            drift.check(&mut tables)
        })
        .await;
        self.state = state;
        for sync in &mut self.state.families {
            if checked.resync.contains(&sync.family()) {
                sync.touch_changed_tables();
            }
            if checked.is_audit {
                sync.full_sync_due();
            }
        }
        checked.is_audit || !checked.resync.is_empty()
    }

    fn take_state(&mut self) -> State<K> {
        let empty = State {
            families: Vec::new(),
            snapshot: Snapshot::default(),
            drift: DriftDetector::new(true, Duration::ZERO),
        };
        std::mem::replace(&mut self.state, empty)
    }

    /// Finds out what rules depend on beside the objects; the families for which that is something new.
    fn settle(&mut self) -> Vec<IpFamily> {
        let host = (self.parts.host)();
        let (config, node) = (&self.parts.config, self.settled_node.as_ref());
        let families = self.state.families.iter_mut().filter_map(|sync| {
            let family = sync.family();
            sync.set_settings(Settings::new(config, node, &host, family)).then_some(family)
        });
        families.collect()
    }

    /// Has rules follow the node's addresses.
    fn addresses_changed(&mut self) {
        for family in self.settle() {
            self.is_changed = true;
            self.tell(|observer| observer.queued(family));
        }
    }

    /// Syncs the families that have something to do, at the same time, off the async threads.
    async fn sync(&mut self, shutdown: &mut tokio::sync::watch::Receiver<bool>) {
        self.settle();
        self.is_changed = false;
        let (drift, mut tables) = self.state.drift();
        drift.sync_begins(&mut tables);
        let (node_name, stop, observers) =
            (self.parts.node_name.clone(), self.stop.clone(), self.parts.observers.clone());
        let mut work = Box::pin(on_thread(self.take_state(), move |state| {
            let done = sync_families(state, &node_name, &stop, &observers);
            let (drift, mut tables) = state.drift();
            drift.sync_ended(done.n_commits, done.is_success, done.is_drifted, &mut tables);
            done
        }));
        let (state, done) = tokio::select! {
            done = &mut work => done,
            () = until_set(shutdown) => {
                // A restore that has begun is left to end; no other is begun.
                self.stop.store(true, Ordering::Relaxed);
                work.await
            }
        };
        self.state = state;
        self.pacer.ended(Instant::now(), done.is_success);
    }
}

/// Does `work` on the state on a thread where it may block. A panic there ends the process: half a
/// state is not to be gone on with.
async fn on_thread<K: Send + 'static, T: Send + 'static>(
    mut state: State<K>,
    work: impl FnOnce(&mut State<K>) -> T + Send + 'static,
) -> (State<K>, T) {
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&mut state);
        (state, done)
    });
    match done.await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What the syncs of all families came to.
struct Done {
    /// Every family succeeded.
    is_success: bool,
    /// Commits to the kernel's tables.
    n_commits: usize,
    /// Somebody else had changed our rules.
    is_drifted: bool,
}

/// Waits until `flag` is set; for ever when nobody can set it any more.
async fn until_set(flag: &mut tokio::sync::watch::Receiver<bool>) {
    if flag.wait_for(|is_set| *is_set).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn sync_families<K: Iptables>(
    state: &mut State<K>,
    node_name: &str,
    stop: &AtomicBool,
    observers: &[Arc<dyn Observer>],
) -> Done {
    let State { families, snapshot, .. } = state;
    let zone = snapshot.node().and_then(|node| node.zone.clone());
    let view = View { snapshot, place: Place { node: node_name, zone: zone.as_deref() } };
    let dirty = families.iter_mut().filter(|sync| sync.is_dirty());
    let reports = threads::side_by_side(dirty, |sync| sync_family(sync, view, stop, observers));
    Done {
        is_success: reports.iter().all(|report| report.outcome.is_ok()),
        n_commits: reports.iter().map(|report| report.tally.n_commits).sum(),
        is_drifted: reports.iter().any(|report| !report.drift.is_empty()),
    }
}

fn sync_family<K: Iptables>(
    sync: &mut FamilySync<K>,
    view: View<'_>,
    stop: &AtomicBool,
    observers: &[Arc<dyn Observer>],
) -> Report {
    observers.iter().for_each(|observer| observer.syncing(sync.family()));
    let started = Instant::now();
    let report = sync.sync(view, stop);
    let elapsed = started.elapsed();
    if let Some(settings) = sync.settings() {
        let quarantine = sync.quarantine();
        let compiled = sync.compiled();
        let synced = Synced { report: &report, view, settings, quarantine, compiled, elapsed };
        observers.iter().for_each(|observer| observer.synced(&synced));
    }
    report
}

#[cfg(test)]
mod tests;
