//! Deletes UDP flows that contradict the cluster from conntrack, after syncs that touched UDP service ports. A task
//! of its own does it, so that no sync waits for a table of a million flows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::compile::{SyncScope, View};
use crate::flows::{Flow, Frontends, NodePortIps, StaleReason};
use crate::kernel::flow_table;
use crate::log::v;
use crate::model::{Port, ServiceName};
use crate::net::{IpFamily, PerFamily, Protocol};
use crate::plan::UdpFrontends;
use crate::rules::{NodePorts, Settings};
use crate::sync::{HostSource, Observer, Sweep, Synced};

/// The pause after a sweep, in multiples of its duration: where UDP endpoints change all the time and the table is
/// large, sweeps take a fifth of one CPU.
const REST: u32 = 4;

/// The pause between a sync and a sweep: answers to packets sent before the sync are on their way, and without
/// its flow an answer is not translated back.
const IN_FLIGHT: Duration = Duration::from_millis(500);

/// The pause before a retry of an incomplete sweep; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(5 * 60);

/// Sweeps the flows of a family: the kernel's, or in tests those of a fake.
type SweepFlows = dyn Fn(IpFamily, &Frontends) -> io::Result<Sweep> + Send + Sync;

/// Observes syncs, and sweeps conntrack after them.
pub struct Sweeper {
    host: HostSource,
    sweep: Box<SweepFlows>,
    observers: Vec<Arc<dyn Observer>>,
    families: Mutex<PerFamily<FamilyFlows>>,
    wake: Notify,
}

/// What the flows of one family are compared with.
#[derive(Default)]
struct FamilyFlows {
    /// Removed frontends are dropped from it after a complete sweep.
    frontends: Arc<Frontends>,
    /// Services with a UDP port at the last sync.
    services: BTreeSet<ServiceName>,
    is_due: bool,
    /// Whether the last sweep was incomplete: after the next sync, or a pause, there is another.
    is_unfinished: bool,
}

impl Sweeper {
    /// Sweeps the flows of this network namespace, and notifies `observers` of each sweep.
    pub fn new(host: HostSource, observers: Vec<Arc<dyn Observer>>) -> Sweeper {
        Sweeper::with(host, observers, Box::new(sweep_kernel))
    }

    fn with(host: HostSource, observers: Vec<Arc<dyn Observer>>, sweep: Box<SweepFlows>) -> Sweeper {
        let families = Mutex::new(PerFamily { v4: FamilyFlows::default(), v6: FamilyFlows::default() });
        Sweeper { host, sweep, observers, families, wake: Notify::new() }
    }

    /// Sweeps whenever it is due; never returns.
    pub async fn run(self: Arc<Sweeper>) {
        let mut wait = FIRST_RETRY;
        loop {
            if self.is_unfinished() {
                tokio::select! {
                    () = self.wake.notified() => {}
                    // On a quiet node there may be no other sync for days.
                    () = tokio::time::sleep(wait) => {
                        self.retry_unfinished();
                        wait = (wait * 2).min(LONGEST_RETRY);
                    }
                }
            } else {
                wait = FIRST_RETRY;
                self.wake.notified().await;
            }
            tokio::time::sleep(IN_FLIGHT).await;
            let started = Instant::now();
            for family in IpFamily::BOTH {
                let sweeper = self.clone();
                let done = tokio::task::spawn_blocking(move || sweeper.sweep_if_due(family)).await;
                if let Err(error) = done {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            tokio::time::sleep(started.elapsed() * REST).await;
        }
    }

    fn families(&self) -> MutexGuard<'_, PerFamily<FamilyFlows>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unfinished(&self) -> bool {
        let families = self.families();
        IpFamily::BOTH.into_iter().any(|family| families.get(family).is_unfinished)
    }

    fn retry_unfinished(&self) {
        let mut families = self.families();
        for family in IpFamily::BOTH {
            let state = families.get_mut(family);
            state.is_due |= state.is_unfinished;
        }
    }

    fn sweep_if_due(&self, family: IpFamily) {
        let frontends = {
            let mut families = self.families();
            let state = families.get_mut(family);
            if !std::mem::take(&mut state.is_due) || state.frontends.is_empty() {
                return;
            }
            state.frontends.clone()
        };
        let swept = (self.sweep)(family, &frontends);
        let is_complete = match &swept {
            Ok(sweep) => {
                log_sweep(sweep);
                self.observers.iter().for_each(|observer| observer.swept(sweep));
                sweep.is_complete()
            }
            Err(error) => {
                warn!(%family, %error, "cannot dump conntrack; stale UDP flows may remain until a retry");
                false
            }
        };
        let mut families = self.families();
        let state = families.get_mut(family);
        state.is_unfinished = !is_complete;
        let is_newest = Arc::ptr_eq(&state.frontends, &frontends);
        drop(frontends);
        // A newer state has carried over what was removed; the next sweep looks for it once more.
        if is_complete
            && is_newest
            && let Some(frontends) = Arc::get_mut(&mut state.frontends)
        {
            frontends.drop_removed();
        }
    }
}

impl Observer for Sweeper {
    fn synced(&self, synced: &Synced<'_>) {
        let Synced { report, view, settings, .. } = synced;
        if report.outcome.is_err() {
            // The next sync is a full one.
            return;
        }
        let mut families = self.families();
        let state = families.get_mut(report.family);
        if report.is_scope_exact() && !is_udp_touched(&report.scope, &state.services, *view, settings.family)
        {
            if !state.is_unfinished {
                return;
            }
        } else {
            let (mut frontends, services) = frontends(*view, settings, &self.host);
            frontends.carry_over(&state.frontends);
            // Services that were deleted while the agent did not run.
            let UdpFrontends { addresses, node_ports } = &report.inherited;
            frontends.mark_removed(addresses.iter().copied(), node_ports.iter().copied());
            state.frontends = Arc::new(frontends);
            state.services = services;
        }
        state.is_due = true;
        drop(families);
        self.wake.notify_one();
    }
}

/// Whether a Service of `scope` has a UDP port, or is one of those that `had` one.
fn is_udp_touched(scope: &SyncScope, had: &BTreeSet<ServiceName>, view: View<'_>, family: IpFamily) -> bool {
    let SyncScope::Partial(names) = scope else { return true };
    let has_now = |name: &ServiceName| {
        let service = view.snapshot.service(name);
        service
            .is_some_and(|service| service.ports_in(family).any(|port| port.port.protocol == Protocol::Udp))
    };
    names.iter().any(|name| had.contains(name) || has_now(name))
}

/// All UDP service ports with their endpoints, and their Services.
fn frontends(view: View<'_>, settings: &Settings, host: &HostSource) -> (Frontends, BTreeSet<ServiceName>) {
    let mut frontends = Frontends::new(node_port_ips(settings, host));
    let mut services = BTreeSet::new();
    for service in view.snapshot.services() {
        let is_udp = |port: &Port| port.protocol == Protocol::Udp;
        let ports = view.snapshot.ports_among(service, settings.family, is_udp);
        for port in ports.iter() {
            frontends.add(&port, settings.external_ips_of(&port), &ports.endpoints(&port));
        }
        if ports.iter().next().is_some() {
            services.insert(service.name.clone());
        }
    }
    (frontends, services)
}

fn node_port_ips(settings: &Settings, host: &HostSource) -> NodePortIps {
    let is_loopback_included = settings.localhost_node_ports;
    let ips = match &settings.node_ports {
        NodePorts::Addresses(ips) => ips.iter().copied().collect(),
        NodePorts::EveryAddress => {
            let ips = host().addresses.into_iter().filter(|ip| IpFamily::of(*ip) == settings.family);
            ips.filter(|ip| is_loopback_included || !ip.is_loopback()).collect()
        }
    };
    NodePortIps {
        ips,
        is_loopback_included: is_loopback_included && settings.node_ports == NodePorts::EveryAddress,
    }
}

fn sweep_kernel(family: IpFamily, frontends: &Frontends) -> io::Result<Sweep> {
    let started = Instant::now();
    let mut deleted = BTreeMap::new();
    let stale_reason = |destination, backend| frontends.stale_reason(&Flow { destination, backend });
    let swept =
        flow_table::sweep_udp(family, stale_reason, |reason| *deleted.entry(reason).or_insert(0) += 1)?;
    let flow_table::Swept { n_seen, n_failed, first_error, is_incomplete, .. } = swept;
    Ok(Sweep { family, elapsed: started.elapsed(), n_seen, deleted, n_failed, first_error, is_incomplete })
}

fn log_sweep(sweep: &Sweep) {
    let (family, elapsed_ms) = (sweep.family, sweep.elapsed.as_millis() as u64);
    let count = |reason| sweep.deleted.get(&reason).copied().unwrap_or(0);
    if sweep.n_deleted() == 0 {
        v!(2, %family, elapsed_ms, flows = sweep.n_seen, "no stale UDP flows");
    } else {
        info!(
            %family, elapsed_ms, flows = sweep.n_seen, deleted = sweep.n_deleted(),
            endpoint_gone = count(StaleReason::EndpointGone), no_endpoints = count(StaleReason::NoEndpoints),
            frontend_gone = count(StaleReason::FrontendGone), untranslated = count(StaleReason::Untranslated),
            "deleted stale UDP flows"
        );
    }
    if !sweep.is_complete() {
        let error = sweep.first_error.map(|code| io::Error::from_raw_os_error(code).to_string());
        warn!(
            %family, failed = sweep.n_failed, error = error.as_deref().unwrap_or("the table was resized meanwhile"),
            "stale UDP flows may be left; retrying later"
        );
    }
}

#[cfg(test)]
mod tests;
