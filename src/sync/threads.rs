//! Work done in parallel, as far as threads can be created.

use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, ScopedJoinHandle};

use tracing::warn;

/// Does `work` on each item, each on a thread of its own, and returns the results in order. Where no thread can be
/// created (a full pids cgroup), the caller's thread does the work after the others. A panic is passed on.
pub(super) fn in_parallel<T: Send, U: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> U + Sync,
) -> Vec<U> {
    // A closure that gets no thread is dropped with its captures, so items are kept here.
    let places: Vec<Mutex<Option<T>>> = items.map(|item| Mutex::new(Some(item))).collect();
    let do_one = |place: &Mutex<Option<T>>| {
        let item = place.lock().unwrap_or_else(PoisonError::into_inner).take();
        item.map(&work)
    };
    std::thread::scope(|scope| {
        let begin = |place| Builder::new().spawn_scoped(scope, move || do_one(place));
        let threads: Vec<_> = places.iter().map(begin).collect();
        let end = |(thread, place)| match thread {
            Ok(thread) => join(thread),
            Err(error) => {
                let error: std::io::Error = error;
                warn!(%error, "cannot create a thread; syncing families one after the other");
                do_one(place)
            }
        };
        threads.into_iter().zip(&places).filter_map(end).collect()
    })
}

/// The result of a thread; passes its panic on.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn items_are_processed_at_the_same_time_and_results_are_in_order() {
        let all_here = Barrier::new(3);
        let done = in_parallel([1, 2, 3].into_iter(), |item| {
            all_here.wait();
            item * 2
        });
        assert_eq!(done, [2, 4, 6]);
    }
}
