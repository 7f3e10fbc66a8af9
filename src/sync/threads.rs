//! Work done side by side, as far as threads can be made.

use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, ScopedJoinHandle};

use tracing::warn;

/// Does `work` on each item, each on a thread of its own; what comes of them, in order. Where no thread can
/// be made (a full pids cgroup), this one does the work after the others'. A panic is one here.
pub(super) fn side_by_side<T: Send, U: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> U + Sync,
) -> Vec<U> {
    // A closure that finds no thread is gone, with all that it holds: items are held here.
    let places: Vec<Mutex<Option<T>>> = items.map(|item| Mutex::new(Some(item))).collect();
    let do_one = |place: &Mutex<Option<T>>| {
        let item = place.lock().unwrap_or_else(PoisonError::into_inner).take();
        item.map(&work)
    };
    std::thread::scope(|scope| {
        let begin = |place| Builder::new().spawn_scoped(scope, move || do_one(place));
        let threads: Vec<_> = places.iter().map(begin).collect();
        let end = |(thread, place)| match thread {
            Ok(thread) => joined(thread),
            Err(error) => {
                let error: std::io::Error = error;
                warn!(%error, "cannot make a thread; families are synced one after the other");
                do_one(place)
            }
        };
        threads.into_iter().zip(&places).filter_map(end).collect()
    })
}

/// What came of a thread; its panic goes on here.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn every_item_is_worked_on_at_the_same_time_and_comes_back_in_order() {
        let all_here = Barrier::new(3);
        let done = side_by_side([1, 2, 3].into_iter(), |item| {
            all_here.wait();
            item * 2
        });
        assert_eq!(done, [2, 4, 6]);
    }
}
