//! The state that moves to a blocking thread for a sync, and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::observer::{Observer, Synced};
use super::threads::in_parallel;
use crate::apply::{FamilySync, SyncReport};
use crate::compile::View;
use crate::drift::{Checked, DriftDetector, FamilyTables};
use crate::kernel::Iptables;
use crate::model::Snapshot;
use crate::policy::Place;

/// The families' state, and the cluster.
pub(super) struct LoopState<K> {
    pub(super) families: Vec<FamilySync<K>>,
    /// Shared while a question about it is answered.
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) drift: DriftDetector,
}

impl<K> Default for LoopState<K> {
    /// An empty state, for the time that the state is on another thread.
    fn default() -> LoopState<K> {
        let drift = DriftDetector::new(true, Duration::ZERO);
        LoopState { families: Vec::new(), snapshot: Arc::default(), drift }
    }
}

impl<K: Iptables> LoopState<K> {
    /// The drift detector, and the tables that it checks.
    pub(super) fn drift(&mut self) -> (&mut DriftDetector, Vec<&mut FamilyTables<K>>) {
        (&mut self.drift, self.families.iter_mut().map(FamilySync::tables).collect())
    }

    /// Checks the kernel's tables for drift.
    pub(super) fn check_drift(&mut self) -> Checked {
        let (drift, mut tables) = self.drift();
        drift.check(&mut tables)
    }

    pub(super) fn touch_everything(&mut self) {
        self.families.iter_mut().for_each(FamilySync::touch_everything);
    }

    /// Syncs the families that have something to do, at the same time; whether every sync succeeded.
    pub(super) fn sync(&mut self, node: &str, stop: &AtomicBool, observers: &[Arc<dyn Observer>]) -> bool {
        let LoopState { families, snapshot, .. } = self;
        let zone = snapshot.node().and_then(|node| node.zone.clone());
        let view = View { snapshot, place: Place { node, zone: zone.as_deref() } };
        let dirty = families.iter_mut().filter(|family| family.is_dirty());
        let reports = in_parallel(dirty, |family| sync_family(family, view, stop, observers));
        let is_success = reports.iter().all(|report| report.outcome.is_ok());
        let n_commits = reports.iter().map(|report| report.tally.n_commits).sum();
        let is_drifted = reports.iter().any(|report| !report.drift.is_empty());
        let (drift, mut tables) = self.drift();
        drift.sync_ended(n_commits, is_success, is_drifted, &mut tables);
        is_success
    }
}

pub(super) fn sync_family<K: Iptables>(
    family: &mut FamilySync<K>,
    view: View<'_>,
    stop: &AtomicBool,
    observers: &[Arc<dyn Observer>],
) -> SyncReport {
    observers.iter().for_each(|observer| observer.syncing(family.family()));
    let started = Instant::now();
    let report = family.sync(view, stop);
    let elapsed = started.elapsed();
    // Rules of a sync that a shutdown cut short are not all in force, though no restore failed.
    let is_cut_short = report.outcome.is_ok() && stop.load(Ordering::Relaxed);
    if let Some(settings) = family.settings().filter(|_| !is_cut_short) {
        let (quarantine, compiled) = (family.quarantine(), family.compiled());
        let synced = Synced { report: &report, view, settings, quarantine, compiled, elapsed };
        observers.iter().for_each(|observer| observer.synced(&synced));
    }
    report
}

/// Does `work` on the state on a thread where it may block. A panic there ends the process, as the state may be
/// inconsistent.
pub(super) async fn on_thread<K: Send + 'static, T: Send + 'static>(
    mut state: LoopState<K>,
    work: impl FnOnce(&mut LoopState<K>) -> T + Send + 'static,
) -> (LoopState<K>, T) {
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&mut state);
        (state, done)
    });
    match done.await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
