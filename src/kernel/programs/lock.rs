//! Waits for the xtables lock of the legacy back-end: a file that every program locks while it works.
#![allow(clippy::disallowed_methods, reason = "opens the lock file")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::process_registry::PROCESSES;

/// How long a program waits for the xtables lock.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How often a held lock is checked.
const POLL: Duration = Duration::from_millis(5);

/// The path that the iptables programs use.
pub(super) fn path() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| PathBuf::from("/run/xtables.lock"), PathBuf::from)
}

/// Waits until the lock at `path` is free or the agent is shutting down, for `limit` at most; returns the
/// time waited. The lock is not kept: the programs take it themselves. A missing file counts as free.
pub(super) fn wait(path: &Path, limit: Duration) -> Duration {
    let started = Instant::now();
    let Ok(mut file) = File::open(path) else { return Duration::ZERO };
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((unlocked, Errno::EWOULDBLOCK))
                if started.elapsed() < limit && !PROCESSES.is_shutting_down() =>
            {
                file = unlocked;
            }
            Err((_, Errno::EWOULDBLOCK)) => return started.elapsed().min(limit),
            // Free, or not accessible: then the program reports the error.
            Ok(_) | Err(_) => return started.elapsed().min(limit),
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    #[test]
    fn a_free_or_missing_lock_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(wait(&path, LIMIT), Duration::ZERO);
        File::create(&path).unwrap();
        assert!(wait(&path, LIMIT) < POLL);
    }

    #[test]
    fn a_held_lock_is_waited_for_until_it_is_free_or_the_limit_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        assert_eq!(wait(&path, LIMIT), LIMIT);
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || wait(&path, Duration::from_secs(60))
        });
        std::thread::sleep(LIMIT);
        drop(held);
        let waited = waiting.join().unwrap();
        assert!(waited >= LIMIT - POLL && waited < Duration::from_secs(30), "{waited:?}");
    }
}
