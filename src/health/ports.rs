//! Health check node ports: for load balancers that ask each node whether it has endpoints of a
//! Service with external policy Local.
//!
//! One task a family owns the sockets. It is told after each sync what is wanted, the newest only,
//! and tries again what could not be bound. Source: kube-proxy v1.36,
//! `pkg/proxy/healthcheck/service_health.go`; KEP 3836 for the weight.

mod wanted;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info};

use super::Health;
use crate::http::{self, Admission, JSON, Wildcard, reply};
use crate::metrics::Metrics;
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};
use crate::sync::{Observer, Synced};
pub use wanted::{Wanted, wanted};

/// The first wait after a port could not be bound; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A health check node port that cannot be opened on an address.
pub struct Refused<'a> {
    /// Whose port it is.
    pub service: &'a ServiceName,
    /// Where it should listen.
    pub address: SocketAddr,
    /// What is wrong.
    pub error: &'a io::Error,
}

/// Is told of each port that cannot be opened, each time that it is tried.
pub type OnRefused = Arc<dyn Fn(&Refused<'_>) + Send + Sync>;

/// Opens and closes health check node ports as syncs tell.
pub struct HealthPorts {
    wanted: PerFamily<watch::Sender<Wanted>>,
}

impl HealthPorts {
    /// Starts a task for each family; they end with `tasks`, and their servers share `admission`.
    pub fn start(
        admission: &Arc<Admission>,
        health: &Arc<Health>,
        metrics: &Arc<Metrics>,
        on_refused: &OnRefused,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> HealthPorts {
        let mut start = |family| {
            let (sender, receiver) = watch::channel(Wanted::default());
            let ports = Ports {
                family,
                admission: admission.clone(),
                health: health.clone(),
                metrics: metrics.clone(),
                on_refused: on_refused.clone(),
                open: BTreeMap::new(),
                failures: BTreeMap::new(),
            };
            tasks.spawn(async move {
                ports.follow(receiver).await;
                Ok(())
            });
            sender
        };
        HealthPorts { wanted: PerFamily { v4: start(IpFamily::V4), v6: start(IpFamily::V6) } }
    }
}

impl Observer for HealthPorts {
    /// What is not put into force yet is not claimed: after a failure all stays as it is, and a Service
    /// that waits stays as it was.
    fn synced(&self, synced: &Synced<'_>) {
        if synced.report.outcome.is_ok() {
            let mut wanted = wanted(synced.view, synced.settings, synced.quarantine);
            let sender = self.wanted.get(synced.report.family);
            sender.send_if_modified(|old| {
                for service in &synced.report.waiting {
                    wanted.services.remove(service);
                    wanted.services.extend(old.services.get(service).map(|port| (service.clone(), *port)));
                }
                let is_modified = wanted != *old;
                *old = std::mem::take(&mut wanted);
                is_modified
            });
        }
    }
}

/// What identifies a socket: whose it is and where it listens.
type Key = (ServiceName, SocketAddr);

struct Ports {
    family: IpFamily,
    admission: Arc<Admission>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    on_refused: OnRefused,
    open: BTreeMap<Key, Open>,
    failures: BTreeMap<Key, Failures>,
}

/// A port that is open on one address; dropped, it is closed and its connections end.
struct Open {
    n_local: Arc<AtomicUsize>,
    server: JoinSet<()>,
}

/// What could not be opened.
struct Failures {
    n: u32,
    retry_at: Instant,
}

impl Ports {
    /// Follows what is wanted until nobody can tell it any more.
    async fn follow(mut self, mut wanted: watch::Receiver<Wanted>) {
        loop {
            let now = wanted.borrow_and_update().clone();
            self.update(&now, Instant::now()).await;
            let retry_at = self.failures.values().map(|failures| failures.retry_at).min();
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }

    /// Closes what is no longer wanted, opens what is missing unless it has to wait, and passes on
    /// how many endpoints there are.
    async fn update(&mut self, wanted: &Wanted, now: Instant) {
        let keys: BTreeMap<Key, usize> = wanted
            .services
            .iter()
            .flat_map(|(name, service)| {
                let at =
                    move |ip: &IpAddr| ((name.clone(), SocketAddr::new(*ip, service.port)), service.n_local);
                wanted.addresses.iter().map(at)
            })
            .collect();
        let gone: Vec<Key> = self.open.keys().filter(|key| !keys.contains_key(*key)).cloned().collect();
        for key in gone {
            if let Some(mut open) = self.open.remove(&key) {
                // Waited for: the port may be another Service's from now on.
                open.server.shutdown().await;
            }
            let (service, address) = key;
            info!(%service, %address, "health check node port closed");
        }
        self.failures.retain(|key, _| keys.contains_key(key));
        for (key, n_local) in &keys {
            match self.open.get(key) {
                Some(open) => open.n_local.store(*n_local, Ordering::Relaxed),
                None => self.open(key, *n_local, now),
            }
        }
        let n_of = |keys: &mut dyn Iterator<Item = &Key>| {
            let mut services: Vec<&ServiceName> = keys.map(|(service, _)| service).collect();
            services.dedup();
            services.len()
        };
        let (n_open, n_failed) = (n_of(&mut self.open.keys()), n_of(&mut self.failures.keys()));
        self.metrics.node.set_health_ports(self.family, n_open, n_failed);
    }

    fn open(&mut self, key: &Key, n_local: usize, now: Instant) {
        if self.failures.get(key).is_some_and(|failures| failures.retry_at > now) {
            return;
        }
        let (service, address) = key;
        match http::bind(&self.admission, *address, Wildcard::OneFamily) {
            Ok(listener) => {
                self.failures.remove(key);
                let n_local = Arc::new(AtomicUsize::new(n_local));
                let router = answers(service.clone(), n_local.clone(), self.health.clone());
                let mut server = JoinSet::new();
                server.spawn(http::serve(self.admission.clone(), listener, router));
                self.open.insert(key.clone(), Open { n_local, server });
                info!(%service, %address, "health check node port open");
            }
            Err(error) => {
                self.metrics.node.count_bind_failure("service_health");
                let n = self.failures.get(key).map_or(1, |failures| failures.n.saturating_add(1));
                let wait = (FIRST_RETRY * 2u32.pow((n - 1).min(16))).min(LONGEST_RETRY);
                if n == 1 {
                    error!(%service, %address, %error, "cannot open the health check node port; will be tried again");
                }
                (self.on_refused)(&Refused { service, address: *address, error: &error });
                self.failures.insert(key.clone(), Failures { n, retry_at: now + wait });
            }
        }
    }
}

/// Any path, any method.
fn answers(service: ServiceName, n_local: Arc<AtomicUsize>, health: Arc<Health>) -> Router {
    Router::new().fallback(move || {
        std::future::ready(answer(&service, n_local.load(Ordering::Relaxed), health.is_healthy()))
    })
}

fn answer(service: &ServiceName, n_local: usize, is_healthy: bool) -> Response {
    let is_good = n_local > 0 && is_healthy;
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Names are DNS labels: nothing in them has to be escaped.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\
         \"localEndpoints\": {n_local},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}",
        service.namespace(),
        service.name()
    );
    let mut answer = reply(status, JSON, body);
    answer.headers_mut().insert("X-Load-Balancing-Endpoint-Weight", HeaderValue::from(n_local));
    answer
}

#[cfg(test)]
mod tests;
