//! Reports full lists of session affinity: the kernel keeps a bounded list of clients of each endpoint, and a
//! client that is added to a full list replaces the one not seen for the longest time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::compile::{Compiled, SyncScope};
use crate::iptables::ChainName;
use crate::kernel::affinity_lists::{AffinityLists, FullLists};
use crate::model::{ServiceName, ServicePortName};
use crate::net::{IpFamily, PerFamily};
use crate::rules::Layout;
use crate::sync::{Observer, Synced};

/// How often the lists are read, unless audits are more frequent.
const MAX_PERIOD: Duration = Duration::from_secs(60);

/// Reads the lists from time to time, and logs once for each service port that one of its lists is full.
pub struct AffinityObserver {
    period: Duration,
    observers: Vec<Arc<dyn Observer>>,
    families: Mutex<PerFamily<StickyServices>>,
}

/// A service port and the names of its chains.
type ServicePortChains = (ServicePortName, Box<[ChainName]>);

/// The Services of one family with session affinity.
#[derive(Default)]
struct StickyServices {
    /// Whether the family is proxied.
    is_proxied: bool,
    /// The layout that their chains have; `None` before the first sync.
    layout: Option<Layout>,
    /// The chains of each service port. The list of an endpoint has the name of its chain.
    chains: BTreeMap<ServiceName, Vec<ServicePortChains>>,
    /// Service ports with a full list that was logged.
    reported: BTreeSet<ServicePortName>,
}

impl AffinityObserver {
    /// Notifies `observers` of the number of full lists after each reading.
    pub fn new(audit_period: Duration, observers: Vec<Arc<dyn Observer>>) -> AffinityObserver {
        AffinityObserver { period: audit_period.min(MAX_PERIOD), observers, families: Mutex::default() }
    }

    /// Reads `lists` at the end of each period; never returns.
    pub async fn run(self: Arc<AffinityObserver>, lists: AffinityLists) {
        let mut is_readable = true;
        loop {
            tokio::time::sleep(self.period).await;
            let lists = lists.clone();
            // There may be very many lists.
            match tokio::task::spawn_blocking(move || lists.full()).await {
                Ok(full) => is_readable = self.check(full, is_readable),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }

    fn families(&self) -> MutexGuard<'_, PerFamily<StickyServices>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports the `full` lists; whether they can be read.
    fn check(&self, full: io::Result<FullLists>, was_readable: bool) -> bool {
        let full = match full {
            Ok(full) => full,
            Err(error) => {
                if was_readable {
                    warn!(%error, "cannot read affinity lists; full lists are not reported");
                }
                return false;
            }
        };
        for family in IpFamily::BOTH {
            let mut families = self.families();
            let services = families.get_mut(family);
            if services.is_proxied {
                let n = services.report(family, &full);
                drop(families);
                self.observers.iter().for_each(|observer| observer.affinity_lists_full(family, n));
            }
        }
        true
    }
}

impl Observer for AffinityObserver {
    fn started(&self, families: &[IpFamily]) {
        families.iter().for_each(|family| self.families().get_mut(*family).is_proxied = true);
    }

    fn synced(&self, Synced { report, view, compiled, .. }: &Synced<'_>) {
        let mut families = self.families();
        let services = families.get_mut(report.family);
        let has_affinity = |name: &ServiceName| {
            view.snapshot.service(name).is_some_and(|service| service.affinity_seconds.is_some())
        };
        match &report.scope {
            SyncScope::Partial(names)
                if report.is_scope_exact() && services.layout == Some(report.layout) =>
            {
                names.iter().for_each(|name| services.update(name, has_affinity(name), compiled));
            }
            _ => {
                services.chains.clear();
                let all = view.snapshot.services().map(|service| &service.name);
                all.filter(|name| has_affinity(name)).for_each(|name| services.update(name, true, compiled));
            }
        }
        services.layout = Some(report.layout);
    }
}

impl StickyServices {
    /// Takes over the chains of a Service that was compiled.
    fn update(&mut self, name: &ServiceName, has_affinity: bool, compiled: &Compiled) {
        if !has_affinity {
            self.chains.remove(name);
            return;
        }
        let ports = compiled.chains_of(name).map(|(port, chains)| (port.clone(), chains.into()));
        self.chains.insert(name.clone(), ports.collect());
    }

    /// Logs the service ports that have a full list for the first time; how many full lists belong to the family.
    fn report(&mut self, family: IpFamily, full: &FullLists) -> usize {
        let StickyServices { chains, reported, .. } = self;
        reported.retain(|port| {
            chains.get(&port.service).is_some_and(|ports| ports.iter().any(|(name, _)| name == port))
        });
        let mut n = 0;
        for (port, chains) in chains.values().flatten() {
            for list in chains.iter().filter(|chain| full.names.binary_search(chain).is_ok()) {
                n += 1;
                if reported.insert(port.clone()) {
                    warn!(
                        %family, service_port = %port, protocol = %port.protocol, %list, clients = full.capacity,
                        "affinity list full; the oldest clients lose affinity; raise xt_recent ip_list_tot"
                    );
                }
            }
        }
        n
    }
}

#[cfg(test)]
mod tests;
