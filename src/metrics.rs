//! The metrics: kube-proxy's by their names, types, labels and buckets, and our own beside them.
//!
//! What belongs to the Go runtime (`go_*`, `workqueue_*`, ...) has no counterpart here and is left out.
#![allow(clippy::disallowed_methods, reason = "time stamps are metrics")]

mod cluster;
mod define;
mod node;
mod packets;
mod pages;
mod process;
pub mod release;
mod requests;
mod server;
mod stale;
mod sync;

pub use node::EventLoss;
pub use packets::ReadPackets;
pub use pages::Pages;
pub use process::ReadLargest;
pub use requests::Request;
pub use server::router;
pub use stale::ReadAges;
pub use sync::{Stages, SyncSample};

use std::time::{Duration, SystemTime};

use anyhow::Context;
use prometheus::{Registry, TextEncoder};

use crate::net::IpFamily;
use cluster::ClusterMetrics;
use define::Definer;
use node::NodeMetrics;
use packets::Packets;
use process::{External, Process};
use requests::RequestMetrics;
use stale::Stale;
use sync::SyncMetrics;

/// Packets dropped because conntrack called them INVALID.
const INVALID: (&str, &str) = (
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    "[ALPHA] packets dropped by iptables to work around conntrack problems",
);
/// Packets to node ports of loopback.
const LOCALHOST: (&str, &str) = (
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
    "[ALPHA] Number of packets accepted on nodeports of loopback interface",
);

/// Every metric. Methods never wait for anything.
pub struct Metrics {
    registry: Registry,
    sync: SyncMetrics,
    cluster: ClusterMetrics,
    node: NodeMetrics,
    requests: RequestMetrics,
}

impl Metrics {
    /// Makes all metrics and registers them.
    pub fn register(registry: &Registry) -> anyhow::Result<Metrics> {
        let define = Definer(registry);
        registry.register(Box::new(Process::new("/proc")?)).context("registering the process's metrics")?;
        Ok(Metrics {
            registry: registry.clone(),
            sync: SyncMetrics::new(&define)?,
            cluster: ClusterMetrics::new(&define)?,
            node: NodeMetrics::new(&define)?,
            requests: RequestMetrics::new(&define)?,
        })
    }

    /// Notes what is fixed from the start: the version, and each feature gate with its name, stage
    /// (`ALPHA`, `BETA` or empty) and whether it is on.
    pub fn is_built<'a>(
        &self,
        gates: impl Iterator<Item = (&'a str, &'static str, bool)>,
    ) -> anyhow::Result<()> {
        let define = Definer(&self.registry);
        let (platform, git_version) = (platform(), release::git_version());
        let (major, minor) = release::major_minor();
        let labels = [
            ("build_date", ""),
            ("compiler", "rustc"),
            ("git_commit", ""),
            ("git_tree_state", ""),
            ("git_version", &*git_version),
            ("go_version", ""),
            ("major", major),
            ("minor", minor),
            ("platform", &*platform),
        ];
        define
            .gauges(BUILD, &labels.map(|(label, _)| label))?
            .with_label_values(&labels.map(|(_, value)| value))
            .set(1.0);
        let features = define.gauges(FEATURES, &["name", "stage"])?;
        for (name, stage, is_on) in gates {
            features.with_label_values(&[name, stage]).set(f64::from(u8::from(is_on)));
        }
        Ok(())
    }

    /// Shows the kernel's count of packets dropped as INVALID, and of those to node ports of loopback;
    /// `None` where the kernel has no such counters.
    pub fn packets(
        &self,
        invalid: Option<ReadPackets>,
        localhost: Option<ReadPackets>,
    ) -> anyhow::Result<()> {
        for (known, read) in [(INVALID, invalid), (LOCALHOST, localhost)] {
            if let Some(read) = read {
                self.registry.register(Box::new(Packets::new(known, read)?))?;
            }
        }
        Ok(())
    }

    /// Shows what memory programs had that were started.
    pub fn children(&self, largest: ReadLargest) -> anyhow::Result<()> {
        Ok(self.registry.register(Box::new(External::children(largest)?))?)
    }

    /// Shows how many lines of the log could not be written.
    pub fn lost_lines(&self, n_lost: fn() -> u64) -> anyhow::Result<()> {
        Ok(self.registry.register(Box::new(External::lost_lines(n_lost)?))?)
    }

    /// Shows for how long each kind of objects has not been followed.
    pub fn watches(&self, read: ReadAges) -> anyhow::Result<()> {
        Ok(self.registry.register(Box::new(Stale::new(read)?))?)
    }

    /// Notes a connection to the API server.
    pub fn connected(&self) {
        self.requests.connected();
    }

    /// Notes a sync.
    pub fn synced(&self, sync: &SyncSample) {
        self.sync.synced(sync);
    }

    /// Notes that a sync of `family` is asked for.
    pub fn queued(&self, family: IpFamily) {
        self.sync.queued(family);
    }

    /// Notes how long a sync of `family` waited from the first change that asks for it to its start.
    pub fn waited(&self, family: IpFamily, elapsed: Duration) {
        self.sync.stage(family, "queue", elapsed);
    }

    /// Notes that the rules of `family` follow a change of endpoints that began so many seconds ago;
    /// less than zero where clocks differ.
    pub fn programmed(&self, family: IpFamily, seconds: f64) {
        self.sync.programmed(family, seconds);
    }

    /// Notes how many endpoints of `family` have as many clients as the kernel remembers.
    pub fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.sync.affinity_lists_full(family, n);
    }

    /// Failed restores of `family` so far.
    pub fn restore_failures(&self, family: IpFamily) -> u64 {
        self.sync.restore_failures(family)
    }

    /// Notes in which back-end (`nft`, `legacy`) and layout (`classic`, `compact`) the rules are.
    pub fn layout(&self, family: IpFamily, backend: &str, layout: &str) {
        self.sync.layout(family, backend, layout);
    }

    /// Notes that so many Services (each once for each family) and EndpointSlices were heard of.
    pub fn heard(&self, n_services: usize, n_slices: usize) {
        self.cluster.heard(n_services, n_slices);
    }

    /// Notes how many changes wait for a sync.
    pub fn pending(&self, n_services: usize, n_slices: usize) {
        self.cluster.pending(n_services, n_slices);
    }

    /// Notes how many objects of a kind count.
    pub fn objects(&self, kind: &str, n: usize) {
        self.cluster.objects(kind, n);
    }

    /// Notes how many fields of objects of a kind cannot be used.
    pub fn problems(&self, kind: &str, n: usize) {
        self.cluster.problems(kind, n);
    }

    /// Notes that the watch of a kind is begun anew after a failure.
    pub fn watch_restarted(&self, kind: &str) {
        self.cluster.watch_restarted(kind);
    }

    /// Notes an answer of `/healthz`.
    pub fn healthz(&self, code: u16) {
        self.node.healthz(code);
    }

    /// Notes an answer of `/livez`.
    pub fn livez(&self, code: u16) {
        self.node.livez(code);
    }

    /// Notes that conntrack was compared with the endpoints of `family`.
    pub fn conntrack_reconciled(&self, family: IpFamily, elapsed: Duration) {
        self.node.reconciled(family, elapsed);
    }

    /// Notes that `n` conntrack entries were deleted for `reason`, a few fixed words.
    pub fn conntrack_deleted(&self, family: IpFamily, reason: &str, n: u64) {
        self.node.deleted(family, reason, n);
    }

    /// Notes that something of `kind`, a few fixed words, was found amiss on the node.
    pub fn found(&self, kind: &str) {
        self.node.found(kind);
    }

    /// Notes of how many Services the health check node port is open, and of how many it cannot be
    /// opened.
    pub fn health_ports(&self, family: IpFamily, n_open: usize, n_failed: usize) {
        self.node.health_ports(family, n_open, n_failed);
    }

    /// Notes that `server` (`healthz`, `metrics`, `service_health`) cannot listen on an address.
    pub fn bind_failed(&self, server: &str) {
        self.node.bind_failed(server);
    }

    /// Notes that a server could not accept a connection.
    pub fn connection_not_accepted(&self) {
        self.node.connection_not_accepted();
    }

    /// Notes that a connection was closed to make room for another.
    pub fn connection_evicted(&self) {
        self.node.connection_evicted();
    }

    /// Notes an event of a type (`Normal`, `Warning`) that was sent.
    pub fn event_sent(&self, kind: &str) {
        self.node.event_sent(kind);
    }

    /// Notes an event that is not sent.
    pub fn event_lost(&self, why: EventLoss) {
        self.node.event_lost(why);
    }

    /// Notes a request to the API server.
    pub fn requested(&self, request: &Request<'_>) {
        self.requests.requested(request);
    }

    /// Notes that the body of an answer was read, which is no watch.
    pub fn received(&self, method: &str, host: &str, n_bytes: u64) {
        self.requests.received(method, host, n_bytes);
    }

    /// Notes how long a request to the API server was held back to stay below the rate allowed.
    pub fn limited(&self, method: &str, host: &str, elapsed: Duration) {
        self.requests.limited(method, host, elapsed);
    }

    /// Notes that a request is sent again after an answer with `status`, or none.
    pub fn retried(&self, method: &str, host: &str, status: Option<u16>) {
        self.requests.retried(method, host, status);
    }
}

const BUILD: (&str, &str) = (
    "kubernetes_build_info",
    "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
);
/// This platform as Go calls it.
fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    };
    format!("{}/{architecture}", std::env::consts::OS)
}

const FEATURES: (&str, &str) = (
    "kubernetes_feature_enabled",
    "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
);

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The text that Prometheus scrapes.
pub fn exposition(registry: &Registry) -> anyhow::Result<String> {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).context("writing metrics")?;
    Ok(requests::respelled(text))
}

#[cfg(test)]
mod tests;
