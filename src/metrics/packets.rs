//! Packets that the kernel counts, asked for at each scrape.

use std::io;

use prometheus::IntCounter;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use tracing::warn;

/// Reads one counter of the kernel.
pub type ReadPackets = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// A counter that is the kernel's. A scrape at which it cannot be read goes without it.
pub(super) struct Packets {
    name: &'static str,
    help: &'static str,
    read: ReadPackets,
    description: Desc,
}

impl Packets {
    pub(super) fn new(
        (name, help): (&'static str, &'static str),
        read: ReadPackets,
    ) -> prometheus::Result<Packets> {
        let description = Desc::new(name.into(), help.into(), vec![], Default::default())?;
        Ok(Packets { name, help, read, description })
    }
}

impl Collector for Packets {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let n_packets = match (self.read)() {
            Ok(n_packets) => n_packets,
            Err(error) => {
                warn!(metric = self.name, %error, "the kernel's counter cannot be read");
                return Vec::new();
            }
        };
        let Ok(counter) = IntCounter::new(self.name, self.help) else { return Vec::new() };
        counter.inc_by(n_packets);
        counter.collect()
    }
}
