//! The watchdog of a running program: enforces its time limit and records its peak memory.
#![allow(clippy::disallowed_methods, reason = "ends processes, and reads /proc")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// The time limit of a program: many times that of the largest batch, or of a legacy table with 40 000
/// Services.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(10 * 60);

/// How often its memory is read. The kernel reports the peak, so only the last moments of a program can be
/// missed.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes.
static PEAK_BYTES: AtomicU64 = AtomicU64::new(0);

/// The peak resident memory of any child process, in bytes; `None` when none was measured.
pub fn peak_child_memory() -> Option<u64> {
    Some(PEAK_BYTES.load(Ordering::Relaxed)).filter(|n_bytes| *n_bytes > 0)
}

/// The watchdog of one program, which leads a process group of its own. Dropping it leaves the program
/// running.
pub(super) struct Watchdog {
    leader: Pid,
    stop: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    /// Kills the process `leader` and its group when it runs longer than `limit`; an error if no thread can
    /// be created.
    pub(super) fn start(leader: u32, limit: Duration) -> io::Result<Watchdog> {
        let leader = Pid::from_raw(leader.cast_signed());
        let (stop, stopped) = channel();
        let until = Instant::now() + limit;
        let thread = std::thread::Builder::new().spawn(move || {
            loop {
                record_peak_memory(leader);
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // It may have ended just now; its process ID is still reserved then.
                    return killpg(leader, Signal::SIGKILL).is_ok();
                }
                if stopped.recv_timeout(left.min(CHECK_INTERVAL)) == Err(RecvTimeoutError::Disconnected) {
                    return false;
                }
            }
        })?;
        Ok(Watchdog { leader, stop, thread })
    }

    /// Waits until the program has ended; returns whether it was killed for exceeding its limit. The caller
    /// must still reap it: until then its process ID is not reused, so no other process is killed.
    pub(super) fn wait(self) -> bool {
        let Watchdog { leader, stop, thread } = self;
        record_peak_memory(leader);
        while waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        drop(stop);
        thread.join().unwrap_or(false)
    }
}

/// Records the peak memory of a process. One that has ended has no memory and is skipped.
fn record_peak_memory(process: Pid) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    if let Some(n_bytes) = status.ok().as_deref().and_then(peak) {
        PEAK_BYTES.fetch_max(n_bytes, Ordering::Relaxed);
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
    fn the_peak_is_parsed_and_a_zombie_has_none() {
        assert_eq!(peak("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 7 kB\n"), Some(2 << 20));
        assert_eq!(peak("Name:\tx\nState:\tZ (zombie)\n"), None);
        assert_eq!(peak("VmHWM:\t 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn the_peak_of_a_child_does_not_include_the_memory_of_its_parent() {
        let ours = vec![1u8; 96 << 20];
        let mut child = std::process::Command::new("sleep").arg("0.1").spawn().unwrap();
        assert!(!Watchdog::start(child.id(), TIME_LIMIT).unwrap().wait());
        assert!(child.wait().unwrap().success());
        let largest = peak_child_memory().unwrap();
        assert!(largest > 100 << 10 && largest < ours.len() as u64, "{largest}");
    }
}
