//! Health check node ports: load balancers ask each node whether it has endpoints of a Service with external policy
//! Local.
//!
//! One task for each family owns the sockets. After each sync it receives the desired ports, only the newest, and it
//! retries ports that could not be bound. Source: kube-proxy v1.36, `pkg/proxy/healthcheck/service_health.go`; KEP 3836
//! for the weight.

mod desired_ports;

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
use tracing::info;

use super::proxy_health::Health;
use crate::http::{self, Admission, JSON, Wildcard, reply};
use crate::log::failure;
use crate::metrics::Metrics;
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};
use crate::sync::{Observer, Synced};
use desired_ports::{DesiredPorts, desired_ports};

/// The pause after the first failure to bind a port; doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A failure to open a health check node port on an address.
pub struct HealthPortFailure<'a> {
    /// The Service of the port.
    pub service: &'a ServiceName,
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub error: &'a io::Error,
}

/// Called for each failure to open a port.
pub type OnHealthPortFailure = Arc<dyn Fn(&HealthPortFailure<'_>) + Send + Sync>;

/// The observer that opens and closes health check node ports after each sync.
pub struct HealthPorts {
    desired: PerFamily<watch::Sender<DesiredPorts>>,
}

impl HealthPorts {
    /// Starts a task for each family among `tasks`. Their servers share `admission`.
    pub fn start(
        admission: &Arc<Admission>,
        health: &Arc<Health>,
        metrics: &Arc<Metrics>,
        on_failure: &OnHealthPortFailure,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> HealthPorts {
        let mut start = |family| {
            let (sender, receiver) = watch::channel(DesiredPorts::default());
            let ports = PortServers {
                family,
                admission: admission.clone(),
                health: health.clone(),
                metrics: metrics.clone(),
                on_failure: on_failure.clone(),
                open: BTreeMap::new(),
                failures: BTreeMap::new(),
            };
            tasks.spawn(async move {
                ports.follow(receiver).await;
                Ok(())
            });
            sender
        };
        HealthPorts { desired: PerFamily { v4: start(IpFamily::V4), v6: start(IpFamily::V6) } }
    }
}

impl Observer for HealthPorts {
    /// Ports follow the rules in force: after a failed sync they stay as they are, and so does the port of a Service
    /// that waits for its sync.
    fn synced(&self, synced: &Synced<'_>) {
        if synced.report.outcome.is_ok() {
            let mut desired = desired_ports(synced.view, synced.settings, synced.quarantine);
            let sender = self.desired.get(synced.report.family);
            sender.send_if_modified(|old| {
                for service in &synced.report.waiting {
                    desired.services.remove(service);
                    desired.services.extend(old.services.get(service).map(|port| (service.clone(), *port)));
                }
                let is_modified = desired != *old;
                *old = std::mem::take(&mut desired);
                is_modified
            });
        }
    }
}

/// The Service and address of a socket.
type ServiceAddress = (ServiceName, SocketAddr);

/// The open ports of one family.
struct PortServers {
    family: IpFamily,
    admission: Arc<Admission>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    on_failure: OnHealthPortFailure,
    open: BTreeMap<ServiceAddress, OpenPort>,
    failures: BTreeMap<ServiceAddress, PortFailures>,
}

/// A port that is open on one address. Dropping it closes the port and its connections.
struct OpenPort {
    n_local: Arc<AtomicUsize>,
    server: JoinSet<()>,
}

/// Failures to open a port on one address.
struct PortFailures {
    n: u32,
    retry_at: Instant,
}

impl PortServers {
    /// Follows the desired ports until their sender is gone.
    async fn follow(mut self, mut desired: watch::Receiver<DesiredPorts>) {
        loop {
            let now = desired.borrow_and_update().clone();
            self.update(&now, Instant::now()).await;
            let retry_at = self.failures.values().map(|failures| failures.retry_at).min();
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }

    /// Closes ports that are no longer desired, opens missing ones unless their retry is due later, and sets the
    /// number of endpoints of each.
    async fn update(&mut self, desired: &DesiredPorts, now: Instant) {
        let keys: BTreeMap<ServiceAddress, usize> = desired
            .services
            .iter()
            .flat_map(|(name, service)| {
                let at =
                    move |ip: &IpAddr| ((name.clone(), SocketAddr::new(*ip, service.port)), service.n_local);
                desired.addresses.iter().map(at)
            })
            .collect();
        let gone: Vec<ServiceAddress> =
            self.open.keys().filter(|key| !keys.contains_key(*key)).cloned().collect();
        for key in gone {
            if let Some(mut open) = self.open.remove(&key) {
                // Awaited, because the port may belong to another Service now.
                open.server.shutdown().await;
            }
            let (service, address) = key;
            info!(%service, %address, "closed health check node port");
        }
        self.failures.retain(|key, _| keys.contains_key(key));
        for (key, n_local) in &keys {
            match self.open.get(key) {
                Some(open) => open.n_local.store(*n_local, Ordering::Relaxed),
                None => self.open(key, *n_local, now),
            }
        }
        let n_of = |keys: &mut dyn Iterator<Item = &ServiceAddress>| {
            let mut services: Vec<&ServiceName> = keys.map(|(service, _)| service).collect();
            services.dedup();
            services.len()
        };
        let (n_open, n_failed) = (n_of(&mut self.open.keys()), n_of(&mut self.failures.keys()));
        self.metrics.node.set_health_ports(self.family, n_open, n_failed);
    }

    fn open(&mut self, key: &ServiceAddress, n_local: usize, now: Instant) {
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
                self.open.insert(key.clone(), OpenPort { n_local, server });
                info!(%service, %address, "opened health check node port");
            }
            Err(error) => {
                self.metrics.node.count_bind_failure("service_health");
                let n = self.failures.get(key).map_or(1, |failures| failures.n.saturating_add(1));
                let wait = (FIRST_RETRY * 2u32.pow((n - 1).min(16))).min(LONGEST_RETRY);
                failure!(n, %service, %address, %error, retry_in = ?wait, "cannot open health check node port");
                (self.on_failure)(&HealthPortFailure { service, address: *address, error: &error });
                self.failures.insert(key.clone(), PortFailures { n, retry_at: now + wait });
            }
        }
    }
}

/// Answers every path and method.
fn answers(service: ServiceName, n_local: Arc<AtomicUsize>, health: Arc<Health>) -> Router {
    Router::new().fallback(move || {
        std::future::ready(answer(&service, n_local.load(Ordering::Relaxed), health.is_healthy()))
    })
}

fn answer(service: &ServiceName, n_local: usize, is_healthy: bool) -> Response {
    let is_good = n_local > 0 && is_healthy;
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Names are DNS labels, so JSON needs no escapes.
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
