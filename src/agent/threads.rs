//! The threads of the agent, made at the start: where none can be made later (a full pids cgroup), those
//! that are there go on with the work of all.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tracing::warn;

/// Threads of the async runtime: one works while the other may be held up.
const N_WORKERS: usize = 2;
/// Threads for work that blocks, of which more are made when they can be. Each of these may be held up for
/// long by a program that hangs: the loop, two canaries, leftovers; two are left for everything else.
const N_BLOCKING: usize = 6;
/// Those are never given back.
const KEEP_ALIVE: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// For how long it is tried to have all of them at the start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause after the first failure; each is twice the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long threads that are begun may take until they run.
const BEGIN: Duration = Duration::from_secs(10);

/// The runtime, with its threads. Where they cannot be made it is tried again for a minute; then it is an
/// error.
pub fn runtime() -> anyhow::Result<Runtime> {
    let until = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    // The runtime panics where it cannot make one: it is only begun when all of them can be had.
    while let Err(error) = try_threads(N_WORKERS + N_BLOCKING) {
        if Instant::now() + pause > until {
            return Err(error).context("cannot make the threads of the agent");
        }
        warn!(%error, retry_in = ?pause, "cannot make threads yet");
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(N_WORKERS).thread_keep_alive(KEEP_ALIVE).enable_all();
    let runtime = builder.build().context("cannot start the async runtime")?;
    let all = Gathering::of(N_BLOCKING);
    for _ in 0..N_BLOCKING {
        let all = all.clone();
        // Each waits for the others, so that none does the work of two.
        runtime.spawn_blocking(move || all.wait(BEGIN));
    }
    all.wait(BEGIN);
    Ok(runtime)
}

/// Whether `n` threads can be made now, beside those that there are.
fn try_threads(n: usize) -> io::Result<()> {
    let all = Gathering::of(n);
    let mut threads = Vec::new();
    let mut outcome = Ok(());
    for _ in 0..n {
        let of_thread = all.clone();
        match std::thread::Builder::new().spawn(move || of_thread.wait(BEGIN)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                all.cancel();
                outcome = Err(error);
                break;
            }
        }
    }
    for thread in threads {
        // They do nothing that could panic.
        let _ = thread.join();
    }
    outcome
}

/// Threads that wait for each other.
#[derive(Clone)]
struct Gathering(Arc<(Mutex<usize>, Condvar)>);

impl Gathering {
    fn of(n: usize) -> Gathering {
        Gathering(Arc::new((Mutex::new(n), Condvar::new())))
    }

    /// Comes, and waits until all have, no longer than `limit`.
    fn wait(&self, limit: Duration) {
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
