//! Which counts are samples of their own in a scrape: those of the busiest, a bounded number; all others are one sample.
//!
//! A connection is counted in one sample only: in that of its service port (or endpoint) if this was shown at the scrape
//! that first included it, else in the sum of the others. So no sample falls when another service port becomes one of the
//! busiest, and the rates of all samples add up to the rate of all connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::iptables::FirstPackets;
use crate::model::ServicePortName;

/// How many service ports or endpoints have samples of their own.
pub(super) const MAX_SERIES: usize = 500;

/// A service port, or one endpoint of it.
pub(super) type SeriesKey = (ServicePortName, Option<SocketAddr>);

/// What scrapes have shown.
#[derive(Debug, Default)]
pub(super) struct BusiestSeries {
    series: BTreeMap<SeriesKey, Shown>,
    others: FirstPackets,
    /// Everything that the last scrape included.
    all: FirstPackets,
}

#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    /// The total at the last scrape.
    total: FirstPackets,
    /// The part of it that was counted in this sample.
    value: FirstPackets,
    /// Whether the key is among the totals of this scrape.
    is_present: bool,
}

impl BusiestSeries {
    /// Takes over `totals`, which add up to at most `all`; returns the samples of the `max` busiest, by key, and that of
    /// all others.
    pub(super) fn scrape(
        &mut self,
        totals: impl Iterator<Item = (SeriesKey, FirstPackets)>,
        all: FirstPackets,
        max: usize,
    ) -> (Vec<(SeriesKey, FirstPackets)>, FirstPackets) {
        let mut totals: Vec<(SeriesKey, FirstPackets)> = totals.collect();
        totals.sort_unstable_by(|(a, count_a), (b, count_b)| count_b.cmp(count_a).then_with(|| a.cmp(b)));
        self.series.values_mut().for_each(|shown| shown.is_present = false);
        let mut others = all.since(self.all);
        let mut samples = Vec::with_capacity(totals.len().min(max));
        for (n, (key, total)) in totals.into_iter().enumerate() {
            let shown = self.series.entry(key.clone()).or_default();
            let more = total.since(shown.total);
            shown.total = total;
            shown.is_present = true;
            if n < max {
                shown.value += more;
                others = FirstPackets {
                    n_packets: others.n_packets.saturating_sub(more.n_packets),
                    n_bytes: others.n_bytes.saturating_sub(more.n_bytes),
                };
                samples.push((key, shown.value));
            }
        }
        self.series.retain(|_, shown| shown.is_present);
        self.all = all;
        self.others += others;
        samples.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        (samples, self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::net::Protocol;

    fn key(name: &str) -> SeriesKey {
        let service = ObjectName::new("shop", name);
        (ServicePortName { service, port: "".into(), protocol: Protocol::Tcp }, None)
    }

    fn count(n: u64) -> FirstPackets {
        FirstPackets { n_packets: n, n_bytes: 60 * n }
    }

    /// The samples as `name=packets`, and that of the others.
    fn scrape(series: &mut BusiestSeries, totals: &[(&str, u64)], all: u64, max: usize) -> String {
        let totals = totals.iter().map(|(name, n)| (key(name), count(*n)));
        let (samples, others) = series.scrape(totals, count(all), max);
        let shown: Vec<String> = samples
            .iter()
            .map(|((port, _), count)| {
                assert_eq!(count.n_bytes, 60 * count.n_packets);
                format!("{}={}", port.service.name(), count.n_packets)
            })
            .collect();
        format!("{} +{}", shown.join(" "), others.n_packets)
    }

    #[test]
    fn the_busiest_are_shown_and_the_others_are_one_sample() {
        let mut series = BusiestSeries::default();
        assert_eq!(scrape(&mut series, &[("a", 5), ("b", 9), ("c", 1)], 15, 2), "a=5 b=9 +1");
        assert_eq!(scrape(&mut series, &[("a", 5), ("b", 10), ("c", 3)], 18, 2), "a=5 b=10 +3");
    }

    #[test]
    fn a_newcomer_among_the_busiest_takes_nothing_from_the_others() {
        let mut series = BusiestSeries::default();
        assert_eq!(scrape(&mut series, &[("a", 5), ("b", 4)], 9, 1), "a=5 +4");
        // b has 20 more: 4 of its total stay with the others.
        assert_eq!(scrape(&mut series, &[("a", 6), ("b", 24)], 30, 1), "b=20 +5");
        // a comes back with what was counted in its own sample.
        assert_eq!(scrape(&mut series, &[("a", 46), ("b", 24)], 70, 1), "a=45 +5");
    }

    #[test]
    fn what_a_deleted_service_counted_since_the_last_scrape_goes_to_the_others() {
        let mut series = BusiestSeries::default();
        assert_eq!(scrape(&mut series, &[("a", 5), ("b", 4)], 9, 9), "a=5 b=4 +0");
        assert_eq!(scrape(&mut series, &[("b", 4)], 12, 9), "b=4 +3");
        // The same name again is another Service, and counts from zero.
        assert_eq!(scrape(&mut series, &[("a", 2), ("b", 4)], 14, 9), "a=2 b=4 +3");
    }
}
