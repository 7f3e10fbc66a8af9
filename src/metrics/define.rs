//! Creates metrics and registers them in one step, so that each metric that exists is shown.

use std::sync::Arc;

use anyhow::Context;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Registers what it creates. A metric with labels is shown from its first observation on.
pub(super) struct Definer<'a>(pub(super) &'a Registry);

impl Definer<'_> {
    pub(super) fn counter(&self, name: &str, help: &str) -> anyhow::Result<IntCounter> {
        self.register(name, IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> anyhow::Result<IntCounterVec> {
        self.register(name, IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> anyhow::Result<IntGauge> {
        self.register(name, IntGauge::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> anyhow::Result<GaugeVec> {
        self.register(name, GaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> anyhow::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(name, HistogramVec::new(options, labels))
    }

    /// A metric without labels whose value `read` returns at each scrape; `None` leaves it out of the scrape.
    pub(super) fn on_scrape(
        &self,
        kind: ScrapeKind,
        name: &str,
        help: &str,
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) -> anyhow::Result<()> {
        let read = move || read().map(|value| (Vec::new(), value)).into_iter().collect();
        self.on_scrape_with_labels(kind, name, help, &[], read)
    }

    /// As [`Definer::on_scrape`], with one sample for each set of label values that `read` returns.
    pub(super) fn on_scrape_with_labels(
        &self,
        kind: ScrapeKind,
        name: &str,
        help: &str,
        labels: &[&'static str],
        read: impl Fn() -> Samples + Send + Sync + 'static,
    ) -> anyhow::Result<()> {
        let options = Opts::new(name, help);
        let label_names = labels.iter().map(ToString::to_string).collect();
        let description = Desc::new(name.to_owned(), help.to_owned(), label_names, Default::default());
        let (labels, read) = (labels.to_vec(), Arc::new(read));
        let collector = description.map(|description| OnScrape { kind, options, labels, description, read });
        self.register(name, collector).map(drop)
    }

    fn register<C: Collector + Clone + 'static>(
        &self,
        name: &str,
        collector: prometheus::Result<C>,
    ) -> anyhow::Result<C> {
        let collector = collector.with_context(|| format!("creating the metric {name}"))?;
        let result = self.0.register(Box::new(collector.clone()));
        result.with_context(|| format!("registering the metric {name}"))?;
        Ok(collector)
    }
}

/// The type of a metric that is read at each scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScrapeKind {
    Counter,
    Gauge,
}

/// Label values and value of each sample.
type Samples = Vec<(Vec<&'static str>, f64)>;

/// A metric whose values another module keeps.
#[derive(Clone)]
struct OnScrape {
    kind: ScrapeKind,
    options: Opts,
    labels: Vec<&'static str>,
    description: Desc,
    read: Arc<dyn Fn() -> Samples + Send + Sync>,
}

impl Collector for OnScrape {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    /// A new metric for each scrape: a sample that `read` no longer returns is no longer shown.
    fn collect(&self) -> Vec<MetricFamily> {
        let options = self.options.clone();
        let samples = (self.read)();
        let collected = match self.kind {
            ScrapeKind::Counter => CounterVec::new(options, &self.labels).map(|counters| {
                samples.iter().for_each(|(labels, value)| counters.with_label_values(labels).inc_by(*value));
                counters.collect()
            }),
            ScrapeKind::Gauge => GaugeVec::new(options, &self.labels).map(|gauges| {
                samples.iter().for_each(|(labels, value)| gauges.with_label_values(labels).set(*value));
                gauges.collect()
            }),
        };
        collected.unwrap_or_default()
    }
}
