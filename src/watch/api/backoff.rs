//! How long to wait before asking a server again that has just failed.

use std::time::Duration;

use tokio::time::Instant;

/// The longest pause.
///
/// A server that comes back is asked by everybody within this time, so rules catch up within it,
/// however long the server was away; client-go's 30 to 60 s would leave a node with old rules for
/// a minute after a short outage. The price: 5 000 nodes with three watches each ask a server that
/// is away 15 000 / 4 s = 3 750 times a second, mostly connections refused by the kernel of a
/// machine that has nothing else to do; and as full jitter (every moment from now to the longest is
/// equally likely) leaves no two nodes in step, a server that is back meets them spread evenly over
/// these 8 s, and never more than the client's own limit (`clientConnection.qps`) from one node.
const LONGEST: Duration = Duration::from_secs(8);

/// The longest pause after the first failure; doubled with each further one.
const FIRST: Duration = Duration::from_millis(500);

/// What has gone well for this long makes failures before it forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(120);

/// A pause after the failure number `n` in a row (from 1): any time up to 0.5 s, doubled each time,
/// up to 8 s.
pub fn pause(n: u32) -> Duration {
    FIRST.saturating_mul(2_u32.saturating_pow(n.saturating_sub(1))).min(LONGEST).mul_f64(fastrand::f64())
}

/// Failures that came close after each other.
#[derive(Debug, Default)]
pub struct Backoff {
    n_failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// Something failed; how long to wait.
    pub fn next(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last > FORGIVEN_AFTER) {
            self.n_failures = 0;
        }
        self.n_failures = self.n_failures.saturating_add(1);
        self.last = Some(now);
        pause(self.n_failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest of many pauses.
    fn longest(n: u32) -> Duration {
        (0..1000).map(|_| pause(n)).max().expect("there are some")
    }

    #[test]
    fn pauses_double_up_to_8_s_and_are_spread_over_all_of_it() {
        for (n, bound) in [(1, 500), (2, 1000), (3, 2000), (4, 4000), (5, 8000), (6, 8000), (u32::MAX, 8000)]
        {
            let bound = Duration::from_millis(bound);
            let longest = longest(n);
            assert!(longest <= bound && longest > bound.mul_f64(0.9), "{n}: {longest:?}");
            let n_early = (0..1000).filter(|_| pause(n) < bound / 2).count();
            assert!((400..600).contains(&n_early), "{n}: {n_early} of 1000 in the first half");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_good_minutes_make_failures_forgotten() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.next();
        }
        tokio::time::advance(FORGIVEN_AFTER).await;
        backoff.next();
        assert_eq!(backoff.n_failures, 11);
        tokio::time::advance(FORGIVEN_AFTER + Duration::from_millis(1)).await;
        assert!(backoff.next() <= FIRST);
    }
}
