//! Limits the events about each object: a token bucket for each.
//!
//! Figures of client-go's `EventSourceObjectSpamFilter`.

use std::collections::BTreeMap;
use std::time::Duration;

use leaky_bucket::RateLimiter;

use super::notice::Regarding;

/// Events about one object at once.
const BURST: usize = 25;
/// The interval at which an object may have one more.
const REFILL: Duration = Duration::from_secs(300);
/// How many objects have a bucket.
const MAX_OBJECTS: usize = 1024;

/// The bucket of each object that had an event lately.
#[derive(Debug, Default)]
pub(super) struct ObjectLimiter(BTreeMap<Regarding, RateLimiter>);

impl ObjectLimiter {
    /// Whether one more event about `object` may be sent now; if so it is counted.
    pub(super) fn allows(&mut self, object: &Regarding) -> bool {
        if !self.0.contains_key(object) && self.0.len() >= MAX_OBJECTS {
            // An object whose bucket is full again is like a new one. Only a full bucket has a whole burst.
            self.0.retain(|_, bucket| !bucket.try_acquire(BURST));
            if self.0.len() >= MAX_OBJECTS {
                return false;
            }
        }
        self.0.entry(object.clone()).or_insert_with(full_bucket).try_acquire(1)
    }
}

fn full_bucket() -> RateLimiter {
    RateLimiter::builder().initial(BURST).max(BURST).interval(REFILL).build()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::model::ObjectName;

    fn object(n: usize) -> Regarding {
        Regarding::Service(ObjectName::new("ns", &format!("s{n}")))
    }

    /// How many of `n` events are allowed.
    fn allowed(limiter: &mut ObjectLimiter, object: &Regarding, n: usize) -> usize {
        (0..n).filter(|_| limiter.allows(object)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_has_a_burst_and_then_one_event_in_five_minutes() {
        let (mut limiter, second) = (ObjectLimiter::default(), Duration::from_secs(1));
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 1000), 25);
        assert_eq!(allowed(&mut limiter, &object(1), 1000), 25, "each object has a bucket of its own");
        advance(REFILL - second).await;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 10), 0);
        advance(second).await;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 10), 1);
        advance(REFILL * 2).await;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 10), 2);
        advance(REFILL * 1000).await;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 100), 25, "never more than a burst");
    }

    #[tokio::test(start_paused = true)]
    async fn rejected_events_do_not_delay_the_next_token() {
        let mut limiter = ObjectLimiter::default();
        allowed(&mut limiter, &Regarding::Node, 25);
        advance(REFILL / 2).await;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 10), 0);
        advance(REFILL / 2).await;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 10), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_that_was_full_for_long_holds_one_burst() {
        let mut limiter = ObjectLimiter::default();
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 1), 1);
        advance(REFILL * 1000).await;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, 100), 25);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_buckets_is_bounded() {
        let mut limiter = ObjectLimiter::default();
        let n_allowed = (0..2 * MAX_OBJECTS).filter(|n| limiter.allows(&object(*n))).count();
        assert_eq!((n_allowed, limiter.0.len()), (MAX_OBJECTS, MAX_OBJECTS));
        advance(REFILL).await;
        assert!(limiter.allows(&object(5 * MAX_OBJECTS)), "full buckets are removed");
    }
}
