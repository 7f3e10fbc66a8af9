//! Waits for a condition with a deadline, instead of sleeping and hoping.

use std::thread;
use std::time::{Duration, Instant};

/// The pause between two checks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Checks again and again until `condition` gives a value; panics with `what` after `deadline`.
#[track_caller]
pub fn until_some<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(INTERVAL);
    }
}

/// Checks again and again until `condition` holds; panics with `what` after `deadline`. Returns the time it
/// took.
#[track_caller]
pub fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    until_some(what, deadline, || condition().then_some(()));
    start.elapsed()
}
