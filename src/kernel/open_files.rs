//! How many open files this process may have (`RLIMIT_NOFILE`; see getrlimit(2)).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the soft limit is raised to at most. Programs that are started inherit it, and some close every
/// descriptor up to it: 65 536 cost them milliseconds, the 1 073 741 816 that containerd's `infinity`
/// stands for minutes. Servers, the API server's connection and programs together need far less.
const ENOUGH: u64 = 65_536;

/// The soft limit, before and after it was raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// What it was.
    pub was: u64,
    /// What it is.
    pub is: u64,
}

/// Raises the soft limit to the hard one, or to 65 536 if that is less; it is never lowered. After an
/// error it is what it was.
pub fn raise() -> io::Result<Raised> {
    let (was, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let is = raised(was, hard);
    if is != was {
        setrlimit(Resource::RLIMIT_NOFILE, is, hard)?;
    }
    Ok(Raised { was, is })
}

/// The soft limit; 1024, the kernel's default, if it cannot be read.
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

fn raised(soft: u64, hard: u64) -> u64 {
    soft.max(hard.min(ENOUGH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one_within_reason_and_is_never_lowered() {
        assert_eq!(raised(1024, 4096), 4096);
        assert_eq!(raised(1024, 1_073_741_816), ENOUGH);
        assert_eq!(raised(100_000, 200_000), 100_000);
        assert_eq!(raised(256, 256), 256);
    }

    #[test]
    fn this_process_is_told_its_limit() {
        assert!(limit() >= 64, "{}", limit());
    }
}
