//! Delays between requests to a server that has just failed.

use std::time::Duration;

use tokio::time::Instant;

/// The longest delay.
///
/// After an outage every node reconnects within this time, so rules catch up within it, however long the
/// outage was. The 30 to 60 s of client-go would leave a node with old rules for a minute after a short
/// outage. The price: 5 000 nodes with three watches each send 15 000 / 4 s = 3 750 requests a second to a
/// server that is down; most are refused by the kernel of an otherwise idle machine. With full jitter (each
/// delay from zero to the longest is equally likely) the requests to a recovered server are spread evenly
/// over these 8 s, and one node never exceeds `clientConnection.qps`.
const LONGEST: Duration = Duration::from_secs(8);

/// The longest delay after the first failure; doubled with each further failure.
const FIRST: Duration = Duration::from_millis(500);

/// After this long without a failure the count of failures starts again.
const RESET_AFTER: Duration = Duration::from_secs(120);

/// A random delay after failure number `n` in a row (from 1): up to 0.5 s after the first, doubled each
/// time, up to 8 s.
pub fn delay(n: u32) -> Duration {
    FIRST.saturating_mul(2_u32.saturating_pow(n.saturating_sub(1))).min(LONGEST).mul_f64(fastrand::f64())
}

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    n_failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// Records a failure; returns the delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last > RESET_AFTER) {
            self.n_failures = 0;
        }
        self.n_failures = self.n_failures.saturating_add(1);
        self.last = Some(now);
        delay(self.n_failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest of many delays.
    fn longest(n: u32) -> Duration {
        (0..1000).map(|_| delay(n)).max().expect("1000 delays")
    }

    #[test]
    fn delays_double_up_to_8_s_and_are_spread_evenly() {
        for (n, bound) in [(1, 500), (2, 1000), (3, 2000), (4, 4000), (5, 8000), (6, 8000), (u32::MAX, 8000)]
        {
            let bound = Duration::from_millis(bound);
            let longest = longest(n);
            assert!(longest <= bound && longest > bound.mul_f64(0.9), "{n}: {longest:?}");
            let n_early = (0..1000).filter(|_| delay(n) < bound / 2).count();
            assert!((400..600).contains(&n_early), "{n}: {n_early} of 1000 in the first half");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_minutes_without_a_failure_reset_the_count() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.next_delay();
        }
        tokio::time::advance(RESET_AFTER).await;
        backoff.next_delay();
        assert_eq!(backoff.n_failures, 11);
        tokio::time::advance(RESET_AFTER + Duration::from_millis(1)).await;
        assert!(backoff.next_delay() <= FIRST);
    }
}
