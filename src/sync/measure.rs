//! What the loop does, as the metrics count it.
#![allow(clippy::disallowed_methods, reason = "latency is measured from times of day")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::time::Instant;

use super::triggers::Triggers;
use super::{Finding, News, Observer, Sweep, Synced};
use crate::iptables::Table;
use crate::metrics::{Metrics, SyncSample};
use crate::model::{ObjectKind, ServiceName};
use crate::net::{IpFamily, PerFamily};

/// Tells the metrics of what the loop does.
pub struct Meter {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

/// What waits for a sync.
struct State {
    /// Families are counted separately in some metrics.
    n_families: usize,
    services: BTreeSet<ServiceName>,
    n_slices: usize,
    queued_at: PerFamily<Option<Instant>>,
    triggers: PerFamily<Triggers>,
}

impl Meter {
    /// Starts with nothing waiting. Changes of endpoints that began before now are not measured.
    pub fn new(metrics: Arc<Metrics>) -> Meter {
        let now = SystemTime::now();
        let state = State {
            n_families: 1,
            services: BTreeSet::new(),
            n_slices: 0,
            queued_at: PerFamily::default(),
            triggers: PerFamily { v4: Triggers::new(now), v6: Triggers::new(now) },
        };
        Meter { metrics, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing here leaves half a state behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Meter {
    fn started(&self, families: &[IpFamily]) {
        self.state().n_families = families.len();
        families.iter().for_each(|family| self.metrics.queued(*family));
    }

    fn changed(&self, News { touched, .. }: &News<'_>) {
        let mut state = self.state();
        self.metrics.heard(touched.n_services_heard * state.n_families, touched.n_slices_heard);
        state.services.extend(touched.changed_services.iter().cloned());
        state.n_slices += touched.changed_slices.len();
        touched.changed_slices.iter().for_each(|change| state.triggers.get_mut(change.family).note(change));
        self.metrics.pending(state.services.len(), state.n_slices);
    }

    fn swept(&self, sweep: &Sweep) {
        self.metrics.conntrack_reconciled(sweep.family, sweep.elapsed);
        for (reason, n) in &sweep.deleted {
            self.metrics.conntrack_deleted(sweep.family, reason.as_str(), *n as u64);
        }
    }

    fn noticed(&self, finding: &Finding) {
        self.metrics.found(finding.as_str());
    }

    fn problems(&self, kind: ObjectKind, n: usize) {
        self.metrics.problems(kind.as_str(), n);
    }

    fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.metrics.affinity_lists_full(family, n);
    }

    fn queued(&self, family: IpFamily) {
        self.metrics.queued(family);
        self.state().queued_at.get_mut(family).get_or_insert_with(Instant::now);
    }

    fn syncing(&self, family: IpFamily) {
        let mut state = self.state();
        state.services.clear();
        state.n_slices = 0;
        self.metrics.pending(0, 0);
        if let Some(at) = state.queued_at.get_mut(family).take() {
            self.metrics.waited(family, at.elapsed());
        }
    }

    fn synced(&self, Synced { report, view, elapsed, .. }: &Synced<'_>) {
        let (family, tally) = (report.family, report.tally);
        self.metrics.synced(&SyncSample {
            family,
            is_full: report.is_full(),
            is_success: report.outcome.is_ok(),
            n_failed_restores: report.n_failed_restores,
            elapsed: *elapsed,
            stages: report.stages,
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
        self.metrics.layout(family, report.backend.as_str(), report.layout.as_str());
        self.metrics.objects(ObjectKind::Service.as_str(), view.snapshot.n_services());
        self.metrics.objects(ObjectKind::EndpointSlice.as_str(), view.snapshot.n_slices());
        self.metrics.objects(ObjectKind::Node.as_str(), usize::from(view.snapshot.node().is_some()));
        if report.outcome.is_ok() {
            let seconds = self.state().triggers.get_mut(family).take(SystemTime::now(), &report.waiting);
            seconds.into_iter().for_each(|seconds| self.metrics.programmed(family, seconds));
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
        let meter = Meter::new(Arc::new(Metrics::register(&registry).unwrap()));
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
        assert_eq!(queue, [expected], "a sync that nobody asked for waited for nothing");
    }
}
