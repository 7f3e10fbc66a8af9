//! Start times of the changes whose rules are not in force yet; network programming latency is measured from them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::model::{ServiceName, SliceChange};

/// How many start times are kept. There are more only when no sync succeeds for long; then a sample is enough.
const MAX: usize = 10_000;

/// The trigger times of one family's slices whose rules are not in force yet.
///
/// kube-proxy drops those of a sync that fails. Here they stay until a sync succeeds, so that the metric shows the
/// latency of a node on which syncs fail.
#[derive(Debug)]
pub(super) struct Triggers {
    since: SystemTime,
    by_service: BTreeMap<ServiceName, Vec<SystemTime>>,
    n_kept: usize,
}

impl Triggers {
    /// Accepts changes that began after `since`: an older one began before the agent could see it.
    pub(super) fn new(since: SystemTime) -> Triggers {
        Triggers { since, by_service: BTreeMap::new(), n_kept: 0 }
    }

    /// Adds a slice that changed. A slice that is gone drops all start times of its Service, as in kube-proxy.
    pub(super) fn add(&mut self, change: &SliceChange) {
        if change.is_gone {
            let dropped = self.by_service.remove(&change.service).map_or(0, |times| times.len());
            self.n_kept -= dropped;
        } else if let Some(time) = change.triggered_at.filter(|time| *time > self.since)
            && self.n_kept < MAX
        {
            self.by_service.entry(change.service.clone()).or_default().push(time);
            self.n_kept += 1;
        }
    }

    /// Removes the changes that are in force `now` (all but those of `waiting` Services) and returns the seconds
    /// since each began. A start time in the future (a clock that is ahead, an invented annotation) is dropped, as it
    /// would lower the sum of all others.
    pub(super) fn take_elapsed(&mut self, now: SystemTime, waiting: &BTreeSet<ServiceName>) -> Vec<f64> {
        let all = std::mem::take(&mut self.by_service).into_iter();
        let (kept, done): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|(service, _)| waiting.contains(service));
        self.by_service = kept;
        self.n_kept = self.by_service.values().map(Vec::len).sum();
        let elapsed = done.into_values().flatten().filter_map(|time| now.duration_since(time).ok());
        elapsed.map(|elapsed| elapsed.as_secs_f64()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::ObjectName;
    use crate::net::IpFamily;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn change(service: &str, second: Option<u64>) -> SliceChange {
        let service = ObjectName::new("ns", service);
        SliceChange { service, family: IpFamily::V4, is_gone: false, triggered_at: second.map(at) }
    }

    fn gone(service: &str) -> SliceChange {
        SliceChange { is_gone: true, ..change(service, None) }
    }

    fn check(changes: &[SliceChange], expected: &[f64]) {
        let mut triggers = Triggers::new(at(100));
        changes.iter().for_each(|change| triggers.add(change));
        assert_eq!(triggers.take_elapsed(at(200), &none()), expected, "{changes:?}");
        assert!(triggers.take_elapsed(at(200), &none()).is_empty(), "removed");
    }

    fn none() -> BTreeSet<ServiceName> {
        BTreeSet::new()
    }

    #[test]
    fn a_change_is_measured_when_its_rules_are_in_force() {
        let mut triggers = Triggers::new(at(100));
        [change("a", Some(150)), change("b", Some(160))].iter().for_each(|change| triggers.add(change));
        assert_eq!(triggers.take_elapsed(at(200), &[ObjectName::new("ns", "b")].into()), [50.0]);
        assert_eq!(triggers.take_elapsed(at(300), &none()), [140.0]);
    }

    #[test]
    fn each_change_since_the_start_is_measured_by_itself() {
        check(&[change("a", Some(150)), change("a", Some(190)), change("b", Some(199))], &[50.0, 10.0, 1.0]);
        check(&[change("a", Some(100)), change("a", Some(50)), change("a", None)], &[]);
    }

    #[test]
    fn a_change_that_begins_in_the_future_is_not_measured() {
        check(&[change("a", Some(203))], &[]);
        check(&[change("a", Some(203)), change("a", Some(190)), change("b", Some(u64::MAX / 4))], &[10.0]);
        check(&[change("a", Some(200))], &[0.0]);
    }

    #[test]
    fn a_slice_that_is_gone_drops_the_changes_of_its_service_only() {
        check(&[change("a", Some(150)), change("b", Some(160)), gone("a")], &[40.0]);
        check(&[change("a", Some(150)), gone("a"), change("a", Some(170))], &[30.0]);
        check(&[gone("a")], &[]);
    }

    #[test]
    fn a_bounded_number_is_kept() {
        let mut triggers = Triggers::new(at(100));
        (0..2 * MAX).for_each(|n| triggers.add(&change(&format!("s{}", n % 7), Some(150))));
        assert_eq!(triggers.take_elapsed(at(200), &none()).len(), MAX);
        triggers.add(&change("a", Some(150)));
        assert_eq!(triggers.take_elapsed(at(200), &none()).len(), 1, "there is room again");
    }
}
