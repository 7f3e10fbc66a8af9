//! Counts connections, where the configuration asks for it.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::config::ConnectionMetrics;
use crate::connections::{Connections, CountedSample, Granularity};
use crate::kernel::Iptables;
use crate::kernel::programs::KernelIptables;
use crate::metrics::{ReadServices, ServiceSample, ServiceSamples};

/// Has commits of `kernels` observed, and starts the task that counts; `None` if `metrics` are off. The result also
/// observes the loop.
pub(super) fn start(
    metrics: ConnectionMetrics,
    kernels: &mut [KernelIptables],
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> Option<Arc<Connections>> {
    let granularity = match metrics {
        ConnectionMetrics::Off => return None,
        ConnectionMetrics::Service => Granularity::Services,
        ConnectionMetrics::Endpoint => Granularity::Endpoints,
    };
    let backend = kernels.first()?.backend();
    let connections = Arc::new(Connections::new(granularity, Box::new(backend)));
    kernels.iter_mut().for_each(|kernel| kernel.observe_commits(connections.clone()));
    let running = connections.clone();
    tasks.spawn(async move {
        running.run().await;
        Ok(())
    });
    Some(connections)
}

/// Reads `connections` for a scrape.
pub(super) fn service_reader(connections: Arc<Connections>) -> ReadServices {
    Arc::new(move || {
        let connections = connections.clone();
        Box::pin(async move {
            connections.refresh().await;
            ServiceSamples {
                has_endpoints: connections.granularity() == Granularity::Endpoints,
                samples: connections.samples().into_iter().map(sample).collect(),
            }
        })
    })
}

fn sample(CountedSample { port, endpoint, counted }: CountedSample) -> ServiceSample {
    let service_port = port.map_or_else(Default::default, |port| {
        let (namespace, service) = (port.service.namespace().to_owned(), port.service.name().to_owned());
        [namespace, service, port.port.to_string(), port.protocol.to_string()]
    });
    ServiceSample {
        service_port,
        endpoint: endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        n_connections: counted.n_packets,
        n_bytes: counted.n_bytes,
    }
}
