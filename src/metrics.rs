//! The metrics: kube-proxy's with their names, types, labels and buckets, and Chainsmith's own (`chainsmith_...`).
//!
//! Metrics of the Go runtime (`go_*`, `workqueue_*`, ...) have no counterpart and are left out. Nothing here knows
//! an object, a rule or a sync: methods take numbers, texts and durations.
//!
//! # To add a metric
//!
//! 1. In the group's file add a field to its struct, the metric with its help to `new`, and a method that records a
//!    value. Groups: `sync_metrics` (syncs), `cluster_metrics` (objects and watches), `request_metrics` (traffic with
//!    the API server), `node_metrics` (everything else). A value that another module keeps needs no field: see the
//!    `show_...` methods of [`Metrics`].
//! 2. Call the method where the value arises. For what the sync loop does that is [`crate::measure`].
//! 3. Call it in `everything()` of `src/metrics/tests.rs` too, and run `UPDATE_GOLDEN=1 cargo test --lib metrics`:
//!    `testdata/http/our-metrics.txt` pins names, types, labels, buckets and help.

mod build_metrics;
mod check_metrics;
mod cluster_metrics;
mod define;
mod exposition;
mod node_metrics;
mod pages;
mod process_metrics;
pub mod release;
mod request_metrics;
mod router;
mod service_metrics;
mod sync_metrics;

pub use check_metrics::{CheckMetrics, CheckedChains, check_router};
pub use cluster_metrics::ReadWatchAges;
#[cfg(test)]
pub use exposition::exposition;
pub use node_metrics::{EventLoss, ReadPackets};
pub use pages::Pages;
pub use request_metrics::RequestSample;
pub use router::router;
pub use service_metrics::{ReadServices, ServiceSample, ServiceSamples};
pub use sync_metrics::SyncSample;

use prometheus::Registry;

use cluster_metrics::ClusterMetrics;
use define::{Definer, ScrapeKind};
use node_metrics::NodeMetrics;
use request_metrics::RequestMetrics;
use sync_metrics::SyncMetrics;

/// Every metric, by group. No method of a group waits for anything.
pub struct Metrics {
    registry: Registry,
    /// What syncs do.
    pub syncs: SyncMetrics,
    /// Objects, changes and watches.
    pub cluster: ClusterMetrics,
    /// Health answers, conntrack, events, servers, problems of the node.
    pub node: NodeMetrics,
    /// Traffic with the API server.
    pub requests: RequestMetrics,
}

impl Metrics {
    /// Creates the metrics of all groups, and those of the process, and registers them.
    pub fn register(registry: &Registry) -> anyhow::Result<Metrics> {
        let define = Definer(registry);
        process_metrics::define_process(&define)?;
        Ok(Metrics {
            registry: registry.clone(),
            syncs: SyncMetrics::new(&define)?,
            cluster: ClusterMetrics::new(&define)?,
            node: NodeMetrics::new(&define)?,
            requests: RequestMetrics::new(&define)?,
        })
    }

    /// Shows the version, and each feature gate with its name, stage (`ALPHA`, `BETA` or empty) and whether it is on.
    pub fn show_build<'a>(
        &self,
        gates: impl Iterator<Item = (&'a str, &'static str, bool)>,
    ) -> anyhow::Result<()> {
        build_metrics::define_build(&Definer(&self.registry), gates)
    }

    /// Shows the kernel's counts of packets dropped as INVALID and of packets to node ports of loopback; `None`
    /// where the kernel has no such counter.
    pub fn show_packets(
        &self,
        invalid: Option<ReadPackets>,
        localhost: Option<ReadPackets>,
    ) -> anyhow::Result<()> {
        let metrics =
            [(node_metrics::INVALID_PACKETS, invalid), (node_metrics::LOCALHOST_PACKETS, localhost)];
        metrics
            .into_iter()
            .filter_map(|(name, read)| Some((name, read?)))
            .try_for_each(|(name, read)| node_metrics::define_packets(&Definer(&self.registry), name, read))
    }

    /// Shows for how long each kind of object has not been followed.
    pub fn show_watch_ages(&self, read: ReadWatchAges) -> anyhow::Result<()> {
        cluster_metrics::define_watch_ages(&Definer(&self.registry), read)
    }

    /// Shows the peak memory of child processes, in bytes; `None` while it is unknown.
    pub fn show_largest_child(&self, largest: fn() -> Option<u64>) -> anyhow::Result<()> {
        Definer(&self.registry).on_scrape(
            ScrapeKind::Gauge,
            "chainsmith_largest_child_resident_memory_bytes",
            "Peak resident memory of any child process, in bytes",
            move || largest().map(|bytes| bytes as f64),
        )
    }

    /// Shows how many log lines could not be written.
    pub fn show_lost_log_lines(&self, n_lost: fn() -> u64) -> anyhow::Result<()> {
        Definer(&self.registry).on_scrape(
            ScrapeKind::Counter,
            "chainsmith_log_lines_lost_total",
            "Log lines that could not be written, because the disk is full or the reader of a pipe is gone",
            move || Some(n_lost() as f64),
        )
    }
}

#[cfg(test)]
mod tests;
