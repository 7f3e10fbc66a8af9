//! Makes one thing of each item on a thread of its own, a little ahead of the one that uses them: so
//! compiling and writing a large cluster keep two cores busy, and never much is in memory.

use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

/// From how many items on a second thread pays.
const WORTH_A_THREAD: usize = 256;
/// Items that change hands at once.
const CHUNK: usize = 64;
/// Chunks that may wait to be used.
const AHEAD: usize = 4;

/// Passes each of `items` with what `make` makes of it to `each`, in order; ends at the first error.
pub(super) fn for_each_made<T: Sync, U: Send, E>(
    items: &[T],
    mut make: impl FnMut(&T) -> U + Send,
    mut each: impl FnMut(&T, U) -> Result<(), E>,
) -> Result<(), E> {
    if items.len() < WORTH_A_THREAD {
        return items.iter().try_for_each(|item| each(item, make(item)));
    }
    // Held here, as a closure that finds no thread is gone with all that it holds.
    let make = &Mutex::new(make);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let make_all = move || {
            let mut make = make.lock().unwrap_or_else(PoisonError::into_inner);
            for chunk in items.chunks(CHUNK) {
                let made: Vec<U> = chunk.iter().map(&mut *make).collect();
                if sender.send(made).is_err() {
                    return; // an error ended it
                }
            }
        };
        if std::thread::Builder::new().spawn_scoped(scope, make_all).is_err() {
            let mut make = make.lock().unwrap_or_else(PoisonError::into_inner);
            return items.iter().try_for_each(|item| each(item, make(item)));
        }
        for (chunk, made) in items.chunks(CHUNK).zip(receiver) {
            chunk.iter().zip(made).try_for_each(|(item, made)| each(item, made))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_comes_once_and_in_order_with_its_own() {
        for n in [0, 1, WORTH_A_THREAD - 1, WORTH_A_THREAD, 10 * CHUNK + 1] {
            let items: Vec<usize> = (0..n).collect();
            let mut seen = Vec::new();
            let result: Result<(), ()> = for_each_made(
                &items,
                |item| item * 2,
                |item, made| {
                    seen.push((*item, made));
                    Ok(())
                },
            );
            assert_eq!((result, seen), (Ok(()), items.iter().map(|item| (*item, item * 2)).collect()));
        }
    }

    #[test]
    fn an_error_ends_it_there() {
        let items: Vec<usize> = (0..100 * CHUNK).collect();
        let mut n_seen = 0;
        let result = for_each_made(
            &items,
            |item| *item,
            |item, _| {
                n_seen += 1;
                if *item == 300 { Err("enough") } else { Ok(()) }
            },
        );
        assert_eq!((result, n_seen), (Err("enough"), 301));
    }
}
