//! How many events about one object are sent: a bucket of tokens each.
//!
//! Figures of client-go's `EventSourceObjectSpamFilter`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Regarding;

/// Events that an object may have at once.
const BURST: u32 = 25;
/// After this one more.
const REFILL: Duration = Duration::from_secs(300);
/// Objects that are remembered.
const MAX_OBJECTS: usize = 1024;

/// Counts what each object has left.
#[derive(Debug, Default)]
pub(super) struct Limiter(BTreeMap<Regarding, Bucket>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    n_left: u32,
    /// Since when the next token grows.
    since: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let n_grown = now.saturating_duration_since(self.since).as_secs() / REFILL.as_secs();
        let n_grown = u32::try_from(n_grown).unwrap_or(BURST).min(BURST);
        self.n_left = (self.n_left + n_grown).min(BURST);
        self.since = if self.n_left == BURST { now } else { self.since + REFILL * n_grown };
    }
}

impl Limiter {
    /// Whether one more event about `object` may be sent `now`; if so it is counted.
    pub(super) fn allows(&mut self, object: &Regarding, now: Instant) -> bool {
        if !self.0.contains_key(object) && self.0.len() >= MAX_OBJECTS {
            // Whose bucket is full again is as good as unknown.
            self.0.retain(|_, bucket| {
                bucket.refill(now);
                bucket.n_left < BURST
            });
            if self.0.len() >= MAX_OBJECTS {
                return false;
            }
        }
        let bucket = self.0.entry(object.clone()).or_insert(Bucket { n_left: BURST, since: now });
        bucket.refill(now);
        let is_allowed = bucket.n_left > 0;
        bucket.n_left = bucket.n_left.saturating_sub(1);
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn object(n: usize) -> Regarding {
        Regarding::Service(ObjectName::new("ns", &format!("s{n}")))
    }

    /// How many of `n` events are allowed.
    fn allowed(limiter: &mut Limiter, object: &Regarding, now: Instant, n: usize) -> usize {
        (0..n).filter(|_| limiter.allows(object, now)).count()
    }

    #[test]
    fn an_object_has_a_burst_and_then_one_event_in_five_minutes() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        assert_eq!(allowed(&mut limiter, &Regarding::Node, start, 1000), 25);
        assert_eq!(allowed(&mut limiter, &object(1), start, 1000), 25, "others have their own");
        assert_eq!(allowed(&mut limiter, &Regarding::Node, start + REFILL - Duration::from_secs(1), 10), 0);
        assert_eq!(allowed(&mut limiter, &Regarding::Node, start + REFILL, 10), 1);
        assert_eq!(allowed(&mut limiter, &Regarding::Node, start + REFILL * 3, 10), 2);
        assert_eq!(
            allowed(&mut limiter, &Regarding::Node, start + REFILL * 1000, 100),
            25,
            "never more than a burst"
        );
    }

    #[test]
    fn what_grows_is_not_lost_by_asking() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        allowed(&mut limiter, &Regarding::Node, start, 25);
        let half = start + REFILL / 2;
        assert_eq!(allowed(&mut limiter, &Regarding::Node, half, 10), 0);
        assert_eq!(allowed(&mut limiter, &Regarding::Node, start + REFILL, 10), 1);
    }

    #[test]
    fn a_bounded_number_of_objects_is_remembered() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let n_allowed = (0..2 * MAX_OBJECTS).filter(|n| limiter.allows(&object(*n), start)).count();
        assert_eq!((n_allowed, limiter.0.len()), (MAX_OBJECTS, MAX_OBJECTS));
        assert!(
            limiter.allows(&object(5 * MAX_OBJECTS), start + REFILL),
            "buckets that are full are forgotten"
        );
    }
}
