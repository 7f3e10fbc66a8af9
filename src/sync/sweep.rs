//! Has conntrack forget UDP flows that contradict the cluster, after syncs that touched UDP service
//! ports; on a task of its own, so that no sync waits for a table of a million flows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{HostSource, Observer, Synced};
use crate::compile::{SyncScope, View};
use crate::kernel::flow_table;
use crate::model::{Port, ServiceName};
use crate::net::{IpFamily, PerFamily, Protocol};
use crate::plan::UdpFrontends;
use crate::policy::flows::{Flow, Frontends, NodePortIps, Stale};
use crate::rules::{NodePorts, Settings};

/// After a sweep its time and this many times more pass before the next: where UDP endpoints come and
/// go all the time and the table is large, sweeps take a fifth of one CPU.
const REST: u32 = 4;

/// How long after a sync flows are left alone: answers to what was sent before it are on their way, and
/// without its flow an answer goes to nobody.
const IN_FLIGHT: Duration = Duration::from_millis(500);

/// The wait before flows are swept again that a sweep left behind; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(5 * 60);

/// What one sweep of a family's flows came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// The family.
    pub family: IpFamily,
    /// How long it took.
    pub elapsed: Duration,
    /// UDP flows looked at.
    pub n_seen: usize,
    /// Flows deleted, by why they were stale.
    pub deleted: BTreeMap<Stale, usize>,
    /// Flows that the kernel would not delete.
    pub n_failed: usize,
    /// What the kernel said to the first of them, as an error number.
    pub first_error: Option<i32>,
    /// The table was rebuilt again and again meanwhile: some flows may not have been looked at.
    pub is_incomplete: bool,
}

impl Sweep {
    /// All flows deleted.
    pub fn n_deleted(&self) -> usize {
        self.deleted.values().sum()
    }

    /// Whether no stale flow is left.
    fn is_complete(&self) -> bool {
        self.n_failed == 0 && !self.is_incomplete
    }
}

/// Sweeps the flows of a family; in tests something else than the kernel's.
type SweepFlows = dyn Fn(IpFamily, &Frontends) -> io::Result<Sweep> + Send + Sync;

/// Listens to syncs, and sweeps.
pub struct Sweeper {
    host: HostSource,
    sweep: Box<SweepFlows>,
    observers: Vec<Arc<dyn Observer>>,
    families: Mutex<PerFamily<State>>,
    wake: Notify,
}

/// What is known of one family.
#[derive(Default)]
struct State {
    /// What flows are judged by; settled once they were.
    frontends: Arc<Frontends>,
    /// Services with a UDP port at the last sync.
    services: BTreeSet<ServiceName>,
    is_due: bool,
    /// The last sweep left something behind: the next sync, or some time, makes one due.
    is_unfinished: bool,
}

impl Sweeper {
    /// Sweeps the flows of this network namespace; `observers` are told of each sweep.
    pub fn new(host: HostSource, observers: Vec<Arc<dyn Observer>>) -> Sweeper {
        Sweeper::with(host, observers, Box::new(sweep_kernel))
    }

    fn with(host: HostSource, observers: Vec<Arc<dyn Observer>>, sweep: Box<SweepFlows>) -> Sweeper {
        let families = Mutex::new(PerFamily { v4: State::default(), v6: State::default() });
        Sweeper { host, sweep, observers, families, wake: Notify::new() }
    }

    /// Sweeps whenever it is due; for ever.
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

    fn states(&self) -> MutexGuard<'_, PerFamily<State>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unfinished(&self) -> bool {
        let states = self.states();
        IpFamily::BOTH.into_iter().any(|family| states.get(family).is_unfinished)
    }

    fn retry_unfinished(&self) {
        let mut states = self.states();
        for family in IpFamily::BOTH {
            let state = states.get_mut(family);
            state.is_due |= state.is_unfinished;
        }
    }

    fn sweep_if_due(&self, family: IpFamily) {
        let frontends = {
            let mut states = self.states();
            let state = states.get_mut(family);
            if !std::mem::take(&mut state.is_due) || state.frontends.is_empty() {
                return;
            }
            state.frontends.clone()
        };
        let swept = (self.sweep)(family, &frontends);
        let is_complete = match &swept {
            Ok(sweep) => {
                report(sweep);
                self.observers.iter().for_each(|observer| observer.swept(sweep));
                sweep.is_complete()
            }
            Err(error) => {
                warn!(%family, %error, "cannot look through conntrack; UDP flows to dead endpoints may stay; will be tried again");
                false
            }
        };
        let mut states = self.states();
        let state = states.get_mut(family);
        state.is_unfinished = !is_complete;
        let is_newest = Arc::ptr_eq(&state.frontends, &frontends);
        drop(frontends);
        // Where a newer one waits, that remembers what is gone; it is looked for once more.
        if is_complete
            && is_newest
            && let Some(frontends) = Arc::get_mut(&mut state.frontends)
        {
            frontends.settle();
        }
    }
}

impl Observer for Sweeper {
    fn synced(&self, synced: &Synced<'_>) {
        let Synced { report, view, settings, .. } = synced;
        if report.outcome.is_err() {
            // The next sync looks at everything.
            return;
        }
        let mut states = self.states();
        let state = states.get_mut(report.family);
        if !is_udp_touched(&report.scope, &state.services, *view, settings.family) {
            if !state.is_unfinished {
                return;
            }
        } else {
            let (mut frontends, services) = frontends(*view, settings, &self.host);
            frontends.succeed(&state.frontends);
            // Services that were deleted while no process was there.
            let UdpFrontends { addresses, node_ports } = &report.inherited;
            frontends.were(addresses.iter().copied(), node_ports.iter().copied());
            state.frontends = Arc::new(frontends);
            state.services = services;
        }
        state.is_due = true;
        drop(states);
        self.wake.notify_one();
    }
}

/// Whether a Service of `scope` has a UDP port, or had one.
fn is_udp_touched(scope: &SyncScope, had: &BTreeSet<ServiceName>, view: View<'_>, family: IpFamily) -> bool {
    let SyncScope::Partial(names) = scope else { return true };
    let has_now = |name: &ServiceName| {
        let service = view.snapshot.service(name);
        service
            .is_some_and(|service| service.ports_in(family).any(|port| port.port.protocol == Protocol::Udp))
    };
    names.iter().any(|name| had.contains(name) || has_now(name))
}

/// All UDP service ports with their endpoints, and the Services they are of.
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
    let judge = |destination, backend| frontends.judge(&Flow { destination, backend });
    let swept = flow_table::sweep_udp(family, judge, |reason| *deleted.entry(reason).or_insert(0) += 1)?;
    let flow_table::Swept { n_seen, n_failed, first_error, is_incomplete, .. } = swept;
    Ok(Sweep { family, elapsed: started.elapsed(), n_seen, deleted, n_failed, first_error, is_incomplete })
}

fn report(sweep: &Sweep) {
    let (family, elapsed_ms) = (sweep.family, sweep.elapsed.as_millis() as u64);
    let count = |reason| sweep.deleted.get(&reason).copied().unwrap_or(0);
    if sweep.n_deleted() == 0 {
        debug!(%family, elapsed_ms, flows = sweep.n_seen, "no UDP flow is stale");
    } else {
        info!(
            %family, elapsed_ms, flows = sweep.n_seen, deleted = sweep.n_deleted(),
            endpoint_gone = count(Stale::EndpointGone), no_endpoints = count(Stale::NoEndpoints),
            frontend_gone = count(Stale::FrontendGone), untranslated = count(Stale::Untranslated),
            "deleted stale UDP flows"
        );
    }
    if !sweep.is_complete() {
        let error = sweep.first_error.map(|code| io::Error::from_raw_os_error(code).to_string());
        warn!(
            %family, failed = sweep.n_failed, error = error.as_deref().unwrap_or("the table was rebuilt meanwhile"),
            "stale UDP flows may be left; will be tried again"
        );
    }
}

#[cfg(test)]
mod tests;
