//! Looks after a running program: it has to end in time, and what memory it takes is noted.
#![allow(clippy::disallowed_methods, reason = "ends processes, and reads what /proc knows of them")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How long a program may take: many times what the largest batch takes, or a legacy table of 40 000
/// Services.
pub(super) const LIMIT: Duration = Duration::from_secs(10 * 60);

/// How often its memory is looked at. What it had at most is told by the kernel, so that only the last
/// moments of a program can be missed.
const PERIOD: Duration = Duration::from_millis(20);

/// Bytes.
static LARGEST: AtomicU64 = AtomicU64::new(0);

/// The most resident memory that any program was seen to have, in bytes; `None` when none was seen.
pub fn largest_child() -> Option<u64> {
    Some(LARGEST.load(Ordering::Relaxed)).filter(|n_bytes| *n_bytes > 0)
}

/// Looks after one program, which leads a process group of its own. Dropped, it lets it be.
pub(super) struct Minder {
    leader: Pid,
    stop: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Minder {
    /// Has the process `leader` and its group killed when it runs longer than `limit`; an error where no
    /// thread can be made for that.
    pub(super) fn start(leader: u32, limit: Duration) -> io::Result<Minder> {
        let leader = Pid::from_raw(leader.cast_signed());
        let (stop, stopped) = channel();
        let until = Instant::now() + limit;
        let thread = std::thread::Builder::new().spawn(move || {
            loop {
                note_memory(leader);
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // It may have ended just now: then the number is still its own.
                    return killpg(leader, Signal::SIGKILL).is_ok();
                }
                if stopped.recv_timeout(left.min(PERIOD)) == Err(RecvTimeoutError::Disconnected) {
                    return false;
                }
            }
        })?;
        Ok(Minder { leader, stop, thread })
    }

    /// Waits until the program has ended; whether it was killed for taking too long. It still has to be
    /// waited for: until then nobody else gets its number, and nobody else is killed.
    pub(super) fn ended(self) -> bool {
        let Minder { leader, stop, thread } = self;
        note_memory(leader);
        while waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        drop(stop);
        thread.join().unwrap_or(false)
    }
}

/// A process that has ended has no memory any more, and is not noted.
fn note_memory(process: Pid) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    if let Some(n_bytes) = status.ok().as_deref().and_then(peak) {
        LARGEST.fetch_max(n_bytes, Ordering::Relaxed);
    }
}

/// The line `VmHWM` of `/proc/<pid>/status`, in bytes.
fn peak(status: &str) -> Option<u64> {
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    kibibytes.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_as_the_kernel_writes_it_and_a_zombie_has_none() {
        assert_eq!(peak("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 7 kB\n"), Some(2 << 20));
        assert_eq!(peak("Name:\tx\nState:\tZ (zombie)\n"), None);
        assert_eq!(peak("VmHWM:\t 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn what_a_program_takes_is_its_own_memory_and_not_that_of_who_starts_it() {
        let ours = vec![1u8; 96 << 20];
        let mut child = std::process::Command::new("sleep").arg("0.1").spawn().unwrap();
        assert!(!Minder::start(child.id(), LIMIT).unwrap().ended());
        assert!(child.wait().unwrap().success());
        let largest = largest_child().unwrap();
        assert!(largest > 100 << 10 && largest < ours.len() as u64, "{largest}");
    }
}
