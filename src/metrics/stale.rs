//! For how long each kind of objects has not been followed, read at each scrape.

use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

/// Reads, by kind, for how long it has not been followed.
pub type ReadAges = Box<dyn Fn() -> Vec<(&'static str, Duration)> + Send + Sync>;

const NAME: &str = "chainsmith_watch_stale_seconds";
const HELP: &str = "For how long objects of a kind have not been followed; 0 while their watch is open";

/// A gauge for each kind.
pub(super) struct Stale {
    read: ReadAges,
    description: Desc,
}

impl Stale {
    pub(super) fn new(read: ReadAges) -> prometheus::Result<Stale> {
        let description = Desc::new(NAME.into(), HELP.into(), vec!["kind".into()], Default::default())?;
        Ok(Stale { read, description })
    }
}

impl Collector for Stale {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(gauges) = GaugeVec::new(Opts::new(NAME, HELP), &["kind"]) else { return Vec::new() };
        for (kind, age) in (self.read)() {
            gauges.with_label_values(&[kind]).set(age.as_secs_f64());
        }
        gauges.collect()
    }
}
