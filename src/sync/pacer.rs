//! When the next sync may start: at once, but not before the minimum period since the last one has passed; after
//! failures, with growing delays.

use std::time::Duration;

use tokio::time::Instant;

/// The delay after the first failed sync.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Paces the syncs of one node.
#[derive(Debug)]
pub(super) struct Pacer {
    /// The minimum period, from the end of one sync to the start of the next.
    min: Duration,
    /// The longest retry delay.
    max_retry: Duration,
    /// When the last sync ended.
    ended: Option<Instant>,
    n_failures: u32,
}

impl Pacer {
    pub(super) fn new(min: Duration, max_retry: Duration) -> Pacer {
        Pacer { min, max_retry, ended: None, n_failures: 0 }
    }

    /// When a sync for a change may start; `None`: at once.
    pub(super) fn may_start(&self) -> Option<Instant> {
        self.ended.map(|ended| ended + self.min)
    }

    /// When to retry a failed sync; `None` when the last one succeeded.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let doublings = self.n_failures.checked_sub(1)?.min(16);
        let wait = (FIRST_RETRY * 2u32.pow(doublings)).clamp(self.min, self.max_retry.max(self.min));
        self.ended.map(|ended| ended + wait)
    }

    /// Records that a sync ended `now`.
    pub(super) fn record_end(&mut self, now: Instant, is_success: bool) {
        self.ended = Some(now);
        self.n_failures = if is_success { 0 } else { self.n_failures.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_retried_with_growing_delays() {
        let mut pacer = Pacer::new(Duration::from_millis(200), Duration::from_secs(30));
        assert_eq!((pacer.may_start(), pacer.retry_at()), (None, None));
        let now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..7 {
            pacer.record_end(now, false);
            waits.push((pacer.retry_at().unwrap() - now).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        pacer.record_end(now, true);
        assert_eq!((pacer.may_start(), pacer.retry_at()), (Some(now + Duration::from_millis(200)), None));
    }

    #[test]
    fn a_retry_is_never_sooner_than_the_minimum() {
        let mut pacer = Pacer::new(Duration::from_secs(60), Duration::from_secs(30));
        let now = Instant::now();
        pacer.record_end(now, false);
        assert_eq!(pacer.retry_at().unwrap() - now, Duration::from_secs(60));
    }
}
