//! The async runtime, with all its threads made at the start: where no thread can be made later (a full pids
//! cgroup), these threads do all the work.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tracing::warn;

/// Async worker threads: one works while the other is delayed.
const N_WORKERS: usize = 2;
/// Blocking threads that are made at the start; more are made when they are needed and can be. A program that
/// hangs can occupy one for long: the loop, two canaries, leftover removal. Two are left for all other work.
const N_BLOCKING: usize = 6;
/// Keeps the blocking threads for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// How long the start tries to make all threads.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The delay after the first failure; each delay is twice the one before, up to the maximum.
const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// How long new threads may take to meet.
const MEETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the runtime and its threads. Tries for a minute; then it is an error.
pub fn runtime() -> anyhow::Result<Runtime> {
    let until = Instant::now() + START_TIMEOUT;
    let mut delay = MIN_DELAY;
    // The runtime panics if it cannot make a thread, so it is built only after a trial with as many threads.
    while let Err(error) = try_threads(N_WORKERS + N_BLOCKING) {
        if Instant::now() + delay > until {
            return Err(error).context("cannot make the threads of the agent");
        }
        warn!(%error, retry_in = ?delay, "cannot make threads yet");
        std::thread::sleep(delay);
        delay = (delay * 2).min(MAX_DELAY);
    }
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(N_WORKERS).thread_keep_alive(KEEP_ALIVE).enable_all();
    let runtime = builder.build().context("cannot start the async runtime")?;
    let meeting = Meeting::new(N_BLOCKING);
    for _ in 0..N_BLOCKING {
        let meeting = meeting.clone();
        // Each job waits for the others, so that no thread runs two of them.
        runtime.spawn_blocking(move || meeting.join(MEETING_TIMEOUT));
    }
    meeting.join(MEETING_TIMEOUT);
    Ok(runtime)
}

/// Makes `n` threads at the same time and ends them; an error if one of them cannot be made.
fn try_threads(n: usize) -> io::Result<()> {
    let meeting = Meeting::new(n);
    let mut threads = Vec::new();
    let mut outcome = Ok(());
    for _ in 0..n {
        let of_thread = meeting.clone();
        match std::thread::Builder::new().spawn(move || of_thread.join(MEETING_TIMEOUT)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                meeting.cancel();
                outcome = Err(error);
                break;
            }
        }
    }
    for thread in threads {
        // The threads do nothing that could panic.
        let _ = thread.join();
    }
    outcome
}

/// A barrier with a time limit: threads wait until all of them run.
#[derive(Clone)]
struct Meeting(Arc<(Mutex<usize>, Condvar)>);

impl Meeting {
    /// Of `n` threads.
    fn new(n: usize) -> Meeting {
        Meeting(Arc::new((Mutex::new(n), Condvar::new())))
    }

    /// Counts the calling thread, and waits until all are counted, no longer than `limit`.
    fn join(&self, limit: Duration) {
        let (n_missing, changed) = &*self.0;
        let mut n = n_missing.lock().unwrap_or_else(PoisonError::into_inner);
        *n = n.saturating_sub(1);
        changed.notify_all();
        let _ = changed.wait_timeout_while(n, limit, |n| *n > 0);
    }

    /// Ends all waiting.
    fn cancel(&self) {
        let (n_missing, changed) = &*self.0;
        *n_missing.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        changed.notify_all();
    }
}
