//! Records in the metrics what the sync loop does: converts domain values to numbers, texts and durations.
#![allow(clippy::disallowed_methods, reason = "latency is measured from times of day")]

mod triggers;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::time::Instant;

use crate::apply::Stages;
use crate::iptables::Table;
use crate::metrics::{Metrics, SyncSample};
use crate::model::{ObjectKind, Problem, ServiceName};
use crate::net::{IpFamily, PerFamily};
use crate::sync::{Finding, News, Observer, Sweep, Synced};
use triggers::Triggers;

/// The observer that records the sync loop in the metrics.
pub struct SyncMeter {
    metrics: Arc<Metrics>,
    pending: Mutex<PendingChanges>,
}

/// Changes that wait for a sync.
struct PendingChanges {
    /// kube-proxy counts a change of a Service once for each family.
    n_families: usize,
    services: BTreeSet<ServiceName>,
    n_slices: usize,
    queued_at: PerFamily<Option<Instant>>,
    triggers: PerFamily<Triggers>,
}

impl SyncMeter {
    /// Without pending changes. Changes of endpoints that began before now are not measured.
    pub fn new(metrics: Arc<Metrics>) -> SyncMeter {
        let now = SystemTime::now();
        let pending = PendingChanges {
            n_families: 1,
            services: BTreeSet::new(),
            n_slices: 0,
            queued_at: PerFamily::default(),
            triggers: PerFamily { v4: Triggers::new(now), v6: Triggers::new(now) },
        };
        SyncMeter { metrics, pending: Mutex::new(pending) }
    }

    fn pending(&self) -> MutexGuard<'_, PendingChanges> {
        // Consistent even after a panic: no method changes it in two steps that belong together.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for SyncMeter {
    fn started(&self, families: &[IpFamily]) {
        self.pending().n_families = families.len();
        families.iter().for_each(|family| self.metrics.syncs.record_queued(*family));
    }

    fn changed(&self, News { touched, n_services, n_slices, .. }: &News<'_>) {
        let mut pending = self.pending();
        self.metrics.cluster.count_changes(n_services * pending.n_families, *n_slices);
        pending.services.extend(touched.changed_services.iter().cloned());
        pending.n_slices += touched.changed_slices.len();
        touched.changed_slices.iter().for_each(|change| pending.triggers.get_mut(change.family).add(change));
        self.metrics.cluster.set_pending(pending.services.len(), pending.n_slices);
    }

    fn swept(&self, sweep: &Sweep) {
        self.metrics.node.record_conntrack_sweep(sweep.family, sweep.elapsed);
        for (reason, n) in &sweep.deleted {
            self.metrics.node.count_conntrack_deleted(sweep.family, reason.as_str(), *n as u64);
        }
    }

    fn noticed(&self, finding: &Finding) {
        self.metrics.node.count_finding(finding.as_str());
    }

    fn problems(&self, kind: ObjectKind, n: usize, _: &[Problem]) {
        self.metrics.cluster.set_problems(kind.as_str(), n);
    }

    fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.metrics.syncs.set_affinity_lists_full(family, n);
    }

    fn queued(&self, family: IpFamily) {
        self.metrics.syncs.record_queued(family);
        self.pending().queued_at.get_mut(family).get_or_insert_with(Instant::now);
    }

    fn syncing(&self, family: IpFamily) {
        let mut pending = self.pending();
        pending.services.clear();
        pending.n_slices = 0;
        self.metrics.cluster.set_pending(0, 0);
        if let Some(at) = pending.queued_at.get_mut(family).take() {
            self.metrics.syncs.record_wait(family, at.elapsed());
        }
    }

    fn synced(&self, Synced { report, view, elapsed, .. }: &Synced<'_>) {
        let (family, tally) = (report.family, report.tally);
        let Stages { read, compile, plan, lock_wait, restore } = report.stages;
        self.metrics.syncs.record(&SyncSample {
            family,
            is_full: report.is_full(),
            is_success: report.outcome.is_ok(),
            n_failed_restores: report.n_failed_restores,
            elapsed: *elapsed,
            stages: [
                ("read", read),
                ("compile", compile),
                ("plan", plan),
                ("lock_wait", lock_wait),
                ("restore", restore),
            ],
            n_processes: tally.n_processes,
            n_chains: tally.n_chains + tally.n_deleted,
            n_quarantined: report.n_quarantined,
            n_overlaps: report.n_overlaps,
            n_repaired: report.n_repaired,
            rules: [
                (Table::Filter.as_str(), tally.n_filter_rules, report.n_filter_rules),
                (Table::Nat.as_str(), tally.n_rules - tally.n_filter_rules, report.n_nat_rules),
            ],
            n_service_ports: report.n_service_ports,
            n_endpoints: report.n_endpoints,
            n_dropped_internal: report.n_dropped_internal,
            n_dropped_external: report.n_dropped_external,
        });
        for reason in &report.reads {
            self.metrics.syncs.count_kernel_read(family, reason.as_str());
        }
        self.metrics.syncs.set_layout(family, report.backend.as_str(), report.layout.as_str());
        self.metrics.cluster.set_objects(ObjectKind::Service.as_str(), view.snapshot.n_services());
        self.metrics.cluster.set_objects(ObjectKind::EndpointSlice.as_str(), view.snapshot.n_slices());
        self.metrics
            .cluster
            .set_objects(ObjectKind::Node.as_str(), usize::from(view.snapshot.node().is_some()));
        if report.outcome.is_ok() {
            let seconds =
                self.pending().triggers.get_mut(family).take_elapsed(SystemTime::now(), &report.waiting);
            seconds.into_iter().for_each(|seconds| self.metrics.syncs.record_latency(family, seconds));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_measured_from_the_first_change_to_the_start() {
        let registry = prometheus::Registry::new();
        let meter = SyncMeter::new(Arc::new(Metrics::register(&registry).unwrap()));
        meter.queued(IpFamily::V4);
        tokio::time::advance(Duration::from_secs(3)).await;
        meter.queued(IpFamily::V4);
        tokio::time::advance(Duration::from_secs(2)).await;
        meter.syncing(IpFamily::V6);
        meter.syncing(IpFamily::V4);
        meter.syncing(IpFamily::V4);
        let text = crate::metrics::exposition(&registry).unwrap();
        let queue: Vec<&str> =
            text.lines().filter(|line| line.contains("_sum") && line.contains("queue")).collect();
        let expected = "chainsmith_sync_stage_duration_seconds_sum{ip_family=\"IPv4\",stage=\"queue\"} 5";
        assert_eq!(queue, [expected], "a sync that no change requested has no queue time");
    }
}
