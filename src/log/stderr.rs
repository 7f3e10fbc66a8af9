//! stderr for a process that must not wait for the reader of its log: a line that cannot be written, or
//! that the reader of a pipe does not take in time, is lost and counted.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Lines that could not be written.
static N_LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines of the log could not be written: the disk is full, or the reader is gone or too slow.
pub fn n_lost() -> u64 {
    N_LOST.load(Ordering::Relaxed)
}

/// How long a line waits for the reader of stderr, in milliseconds. After one that waited in vain no other
/// line waits until the reader takes one.
const WRITE_TIMEOUT_MS: u16 = 200;
/// What a pipe that is ready takes without blocking. See pipe(7).
const PIPE_BUF: usize = 4096;

/// stderr, for lines that wait [`WRITE_TIMEOUT_MS`] at most.
pub(super) struct BoundedStderr;

impl Write for BoundedStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        static IS_STALLED: AtomicBool = AtomicBool::new(false);
        // Held for the whole line: another thread could fill what is ready here.
        let mut stderr = io::stderr().lock();
        for part in line.chunks(PIPE_BUF) {
            let timeout = if IS_STALLED.load(Ordering::Relaxed) { 0 } else { WRITE_TIMEOUT_MS };
            let is_ready = {
                let mut stderr = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                poll(&mut stderr, PollTimeout::from(timeout))? > 0
            };
            IS_STALLED.store(!is_ready, Ordering::Relaxed);
            if !is_ready {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            stderr.write_all(part)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Takes every line, and counts those that cannot be written.
pub(super) struct LossyWriter<W>(pub(super) W);

impl<W: Write> Write for LossyWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            N_LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_lost_and_counted() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let n_before = n_lost();
        assert_eq!(
            (LossyWriter(Full).write(b"line\n").unwrap(), LossyWriter(Full).flush().is_ok()),
            (5, true)
        );
        assert!(n_lost() > n_before);
    }
}
