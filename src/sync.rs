//! The one loop: changes of the cluster in, rules in the kernel out.
//!
//! The rules of a node are one thing, so one loop reconciles them as a whole, not object by object. Whatever wakes
//! it is a [`LoopEvent`]. Changes that arrive together are synced together.

mod loop_state;
mod observer;
mod pacer;
mod settled_node;
mod threads;
mod wiring;

pub use observer::{Finding, News, Observer, Sweep, Synced};
pub use wiring::{
    HostSource, LoopEnd, LoopEvent, LoopFamily, LoopInputs, LoopParts, LoopView, NodeWait, ViewRequest,
};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use loop_state::{LoopState, on_thread};
use pacer::Pacer;
use settled_node::{NodeEffect, SettledNode};

use crate::apply::FamilySync;
use crate::config::DetectLocal;
use crate::drift::{DriftDetector, ReadReason};
use crate::kernel::Iptables;
use crate::model::{Change, Touched};
use crate::net::IpFamily;
use crate::rules::Settings;
use crate::watch::WatchEvent;

/// The loop.
pub struct Loop<K> {
    parts: LoopParts<()>,
    state: LoopState<K>,
    pacer: Pacer,
    settled_node: SettledNode,
    are_services_listed: bool,
    are_slices_listed: bool,
    /// Whether an object changed since the last sync.
    is_changed: bool,
    stop: Arc<AtomicBool>,
}

impl<K: Iptables + 'static> Loop<K> {
    /// A loop that knows nothing of the cluster and the kernel.
    pub fn new(parts: LoopParts<K>) -> Loop<K> {
        let LoopParts { config, node_name, host, kernels, observers, node_wait, is_notified } = parts;
        let families = kernels.into_iter().map(FamilySync::new).collect();
        let drift = DriftDetector::new(is_notified, config.audit_period);
        let needs_pod_cidrs = config.detect_local == DetectLocal::NodeCidr;
        Loop {
            pacer: Pacer::new(config.min_sync_period, config.sync_period),
            settled_node: SettledNode::new(node_name.clone(), node_wait, needs_pod_cidrs),
            state: LoopState { families, snapshot: Arc::default(), drift },
            parts: LoopParts {
                config,
                node_name,
                host,
                kernels: Vec::new(),
                observers,
                node_wait,
                is_notified,
            },
            are_services_listed: false,
            are_slices_listed: false,
            is_changed: false,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Runs until the process is to exit, or the loop cannot go on.
    pub async fn run(mut self, inputs: LoopInputs) -> LoopEnd {
        let LoopInputs { mut watch, mut flushed, mut written, mut addresses, mut questions, mut shutdown } =
            inputs;
        let families: Vec<IpFamily> = self.state.families.iter().map(FamilySync::family).collect();
        self.notify(|observer| observer.started(&families));
        loop {
            let event = tokio::select! {
                biased;
                () = until_set(&mut shutdown) => LoopEvent::Shutdown,
                Some(family) = flushed.recv() => LoopEvent::TablesFlushed(family),
                Some(generation) = written.recv() => LoopEvent::TablesWritten(generation),
                Some(()) = addresses.recv() => LoopEvent::AddressesChanged,
                Some(request) = questions.recv() => LoopEvent::Asked(request),
                event = watch.recv() => match event {
                    Some(event) => LoopEvent::Watch(event),
                    None => return LoopEnd::SourcesGone,
                },
                event = self.next_due() => event,
            };
            // Changes wait for the minimum period. These events have waited, or cannot.
            let is_urgent = match event {
                LoopEvent::TablesFlushed(_) | LoopEvent::SyncDue | LoopEvent::RetryDue => true,
                LoopEvent::DriftCheckDue => self.check_drift().await,
                _ => false,
            };
            let mut end = self.handle(event);
            // Changes that arrive together are synced together.
            while let (None, Ok(event)) = (&end, watch.try_recv()) {
                end = self.handle(LoopEvent::Watch(event));
            }
            if let Some(end) = end {
                return end;
            }
            if *shutdown.borrow() {
                return LoopEnd::Shutdown;
            }
            let may_start = self.may_start().is_none_or(|at| at <= Instant::now());
            if (is_urgent && self.is_listed() && self.is_dirty()) || (may_start && self.is_waiting()) {
                self.sync(&mut shutdown, &mut questions).await;
            }
        }
    }

    /// Waits for the next event that the clock causes.
    async fn next_due(&self) -> LoopEvent {
        let node_wait = self.settled_node.wait_until().map(|at| (at, LoopEvent::NodeWaitOver));
        let sync = match self.pacer.retry_at() {
            _ if self.is_waiting() => {
                Some((self.may_start().unwrap_or_else(Instant::now), LoopEvent::SyncDue))
            }
            retry_at => retry_at.map(|at| (at, LoopEvent::RetryDue)),
        };
        let drift = Some((self.state.drift.next_at(), LoopEvent::DriftCheckDue));
        let next = [node_wait, sync, drift].into_iter().flatten().min_by_key(|(at, _)| *at);
        match next {
            Some((at, event)) => {
                tokio::time::sleep_until(at).await;
                event
            }
            None => std::future::pending().await,
        }
    }

    /// Records what an event changed.
    fn handle(&mut self, event: LoopEvent) -> Option<LoopEnd> {
        match event {
            LoopEvent::Shutdown => return Some(LoopEnd::Shutdown),
            LoopEvent::Watch(WatchEvent::Change(change)) => return self.change(change),
            LoopEvent::Watch(WatchEvent::ServicesListed) => self.are_services_listed = true,
            LoopEvent::Watch(WatchEvent::SlicesListed) => self.are_slices_listed = true,
            LoopEvent::Watch(WatchEvent::NodeListed) => self.settled_node.mark_listed(),
            LoopEvent::Watch(WatchEvent::Problems(kind, n, first)) => {
                self.notify(|observer| observer.problems(kind, n, &first));
            }
            LoopEvent::NodeWaitOver => return self.settled_node.end_wait(self.state.snapshot.node()),
            LoopEvent::TablesFlushed(family) => {
                warn!(%family, "another process flushed the tables; comparing all rules with the kernel");
                for sync in self.state.families.iter_mut().filter(|sync| sync.family() == family) {
                    sync.distrust(ReadReason::CanaryFlushed);
                }
            }
            LoopEvent::TablesWritten(generation) => {
                let (drift, mut tables) = self.state.drift();
                drift.notified(generation, &mut tables);
            }
            // The first sync looks them up.
            LoopEvent::AddressesChanged if self.is_listed() => self.addresses_changed(),
            LoopEvent::Asked(request) => answer(request, self.view()),
            LoopEvent::AddressesChanged
            | LoopEvent::RetryDue
            | LoopEvent::SyncDue
            | LoopEvent::DriftCheckDue => {}
        }
        None
    }

    fn change(&mut self, change: Change) -> Option<LoopEnd> {
        let old_zone = self.zone();
        let mut touched = Touched::default();
        let (n_services, n_slices) = self.state.snapshot.count_reported(&change);
        Arc::make_mut(&mut self.state.snapshot).apply(change, &mut touched);
        self.is_changed |= !touched.is_empty();
        let (is_listed, zone) = (self.is_listed(), self.zone());
        let node = self.state.snapshot.node();
        self.notify(|observer| {
            observer.changed(&News { touched: &touched, n_services, n_slices, node, is_listed })
        });
        for at in 0..self.state.families.len() {
            let family = self.state.families[at].family();
            let names = std::mem::take(touched.services.get_mut(family));
            if is_listed && !names.is_empty() || zone != old_zone {
                self.notify(|observer| observer.queued(family));
            }
            self.state.families[at].touch(names);
        }
        if !touched.node {
            return None;
        }
        if zone != old_zone {
            self.state.touch_everything();
        }
        match self.settled_node.update(self.state.snapshot.node()?) {
            NodeEffect::None => {}
            NodeEffect::Settled => self.state.touch_everything(),
            NodeEffect::Ends(end) => return Some(end),
        }
        None
    }

    fn notify(&self, call: impl Fn(&dyn Observer)) {
        self.parts.observers.iter().for_each(|observer| call(observer.as_ref()));
    }

    fn zone(&self) -> Option<Arc<str>> {
        self.state.snapshot.node().and_then(|node| node.zone.clone())
    }

    /// Whether the first lists are complete: earlier rules would be those of half a cluster.
    fn is_listed(&self) -> bool {
        self.are_services_listed && self.are_slices_listed && self.settled_node.is_ready()
    }

    /// Whether a sync is due as soon as the minimum period has passed. After a failure only a change makes it
    /// due; otherwise the retry has its own time.
    fn is_waiting(&self) -> bool {
        self.is_listed() && self.is_dirty() && (self.is_changed || self.pacer.retry_at().is_none())
    }

    fn is_dirty(&self) -> bool {
        self.state.families.iter().any(FamilySync::is_dirty)
    }

    /// When a sync may start; `None`: at once. The rest of a large Service does not wait for the minimum period,
    /// nor do changes that arrived during its last part.
    fn may_start(&self) -> Option<Instant> {
        let goes_on =
            self.pacer.retry_at().is_none() && self.state.families.iter().any(FamilySync::is_unfinished);
        if goes_on { None } else { self.pacer.may_start() }
    }

    /// Checks the kernel's tables for drift; whether a sync is to follow at once.
    async fn check_drift(&mut self) -> bool {
        let (state, checked) = on_thread(std::mem::take(&mut self.state), LoopState::check_drift).await;
        self.state = state;
        for family in &mut self.state.families {
            if checked.resync.contains(&family.family()) {
                family.touch_changed_tables();
            }
            if checked.is_audit {
                family.audit_due();
            }
        }
        checked.is_audit || !checked.resync.is_empty()
    }

    /// Looks up the inputs of rules other than Services and endpoints; the families for which they changed.
    fn update_settings(&mut self) -> Vec<IpFamily> {
        let host = (self.parts.host)();
        let (config, node) = (&self.parts.config, self.settled_node.node());
        let families = self.state.families.iter_mut().filter_map(|sync| {
            let family = sync.family();
            sync.set_settings(Settings::new(config, node, &host, family)).then_some(family)
        });
        families.collect()
    }

    /// Lets rules follow the node's addresses.
    fn addresses_changed(&mut self) {
        for family in self.update_settings() {
            self.is_changed = true;
            self.notify(|observer| observer.queued(family));
        }
    }

    /// What questions about the rules need.
    fn view(&mut self) -> LoopView {
        LoopView {
            snapshot: self.state.snapshot.clone(),
            node_name: self.parts.node_name.clone(),
            families: self.state.families.iter_mut().map(LoopFamily::of).collect(),
            is_listed: self.is_listed(),
        }
    }

    /// Syncs the families that have something to do, on a blocking thread.
    async fn sync(
        &mut self,
        shutdown: &mut watch::Receiver<bool>,
        questions: &mut mpsc::Receiver<ViewRequest>,
    ) {
        self.update_settings();
        self.is_changed = false;
        let (drift, mut tables) = self.state.drift();
        drift.sync_begins(&mut tables);
        let (node, stop, observers) =
            (self.parts.node_name.clone(), self.stop.clone(), self.parts.observers.clone());
        let view = self.view();
        let state = std::mem::take(&mut self.state);
        let mut work = Box::pin(on_thread(state, move |state| state.sync(&node, &stop, &observers)));
        let (state, is_success) = loop {
            tokio::select! {
                done = &mut work => break done,
                Some(request) = questions.recv() => answer(request, view.clone()),
                () = until_set(shutdown) => {
                    // A restore in progress ends by itself; no other begins.
                    self.stop.store(true, Ordering::Relaxed);
                    break work.await;
                }
            }
        };
        drop(view);
        self.state = state;
        self.pacer.record_end(Instant::now(), is_success);
    }
}

/// Sends what the loop knows.
fn answer(request: ViewRequest, view: LoopView) {
    // Whoever asked may have gone.
    let _ = request.send(view);
}

/// Waits until `flag` is set; for ever when its sender is gone.
async fn until_set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|is_set| *is_set).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
