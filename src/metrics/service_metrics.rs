//! `/metrics/services`: new connections of the busiest service ports, with labels that name objects; apart from
//! `/metrics`, so that a node with many Services does not slow every scrape.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context;
use prometheus::{IntCounterVec, Opts, Registry};

use super::exposition::exposition;

/// One service port, or one endpoint of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSample {
    /// Values of the labels `namespace`, `service`, `port`, `protocol`; all are empty for the sum of all others.
    pub service_port: [String; 4],
    /// The value of the label `endpoint`; empty for the sum of all others.
    pub endpoint: String,
    /// New connections.
    pub n_connections: u64,
    /// Bytes of their first packets.
    pub n_bytes: u64,
}

/// What a scrape of `/metrics/services` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSamples {
    /// Whether samples have the label `endpoint`.
    pub has_endpoints: bool,
    /// Each with other labels.
    pub samples: Vec<ServiceSample>,
}

/// Reads the counts at each scrape; bounded in number and time by whoever keeps them.
pub type ReadServices = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ServiceSamples> + Send>> + Send + Sync>;

/// The text of `/metrics/services`.
pub(super) fn service_exposition(services: &ServiceSamples) -> anyhow::Result<String> {
    let registry = Registry::new();
    let mut labels = vec!["namespace", "service", "port", "protocol"];
    if services.has_endpoints {
        labels.push("endpoint");
    }
    let define = |name: &str, help: &str| -> anyhow::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), &labels);
        let counters = counters.with_context(|| format!("creating the metric {name}"))?;
        registry.register(Box::new(counters.clone())).with_context(|| format!("registering {name}"))?;
        Ok(counters)
    };
    let connections = define(
        "chainsmith_service_connections_total",
        "New connections by service port, for the busiest; the sample with empty labels is the sum of all others",
    )?;
    let bytes = define(
        "chainsmith_service_first_packet_bytes_total",
        "Bytes of the first packets of new connections, IP headers included, not of all their traffic",
    )?;
    for sample in &services.samples {
        let mut values: Vec<&str> = sample.service_port.iter().map(String::as_str).collect();
        if services.has_endpoints {
            values.push(&sample.endpoint);
        }
        connections.with_label_values(&values).inc_by(sample.n_connections);
        bytes.with_label_values(&values).inc_by(sample.n_bytes);
    }
    exposition(&registry)
}
