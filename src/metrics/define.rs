//! Makes metrics and registers them, so that none is made that is not shown.

use anyhow::Context;
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Registers what it makes. A metric with labels is shown from its first observation on.
pub(super) struct Definer<'a>(pub(super) &'a Registry);

impl Definer<'_> {
    pub(super) fn histograms(
        &self,
        (name, help): (&str, &str),
        labels: &[&str],
        buckets: &[f64],
    ) -> anyhow::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(name, HistogramVec::new(options, labels))
    }

    pub(super) fn counters(
        &self,
        (name, help): (&str, &str),
        labels: &[&str],
    ) -> anyhow::Result<IntCounterVec> {
        self.register(name, IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn counter(&self, (name, help): (&str, &str)) -> anyhow::Result<IntCounter> {
        self.register(name, IntCounter::new(name, help))
    }

    pub(super) fn gauges(&self, (name, help): (&str, &str), labels: &[&str]) -> anyhow::Result<GaugeVec> {
        self.register(name, GaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, (name, help): (&str, &str)) -> anyhow::Result<IntGauge> {
        self.register(name, IntGauge::new(name, help))
    }

    fn register<C: Collector + Clone + 'static>(
        &self,
        name: &str,
        collector: prometheus::Result<C>,
    ) -> anyhow::Result<C> {
        let collector = collector.with_context(|| format!("making the metric {name}"))?;
        let result = self.0.register(Box::new(collector.clone()));
        result.with_context(|| format!("registering the metric {name}"))?;
        Ok(collector)
    }
}
