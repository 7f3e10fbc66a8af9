//! Raises this process's limit of open files (`RLIMIT_NOFILE`; see getrlimit(2)).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The highest value that the soft limit is raised to. Child processes inherit it, and some close every
/// descriptor up to it: 65 536 costs milliseconds, the 1 073 741 816 of containerd's `infinity` costs
/// minutes. Servers, the API server's connection and programs together need far less.
const MAX_RAISED_LIMIT: u64 = 65_536;

/// The soft limit before and after [`raise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The previous limit.
    pub was: u64,
    /// The current limit.
    pub is: u64,
}

/// Raises the soft limit to the hard limit, or to 65 536 if that is less; never lowers it. After an error
/// the limit is unchanged.
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
    soft.max(hard.min(MAX_RAISED_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit_up_to_a_maximum_and_never_lowered() {
        assert_eq!(raised(1024, 4096), 4096);
        assert_eq!(raised(1024, 1_073_741_816), MAX_RAISED_LIMIT);
        assert_eq!(raised(100_000, 200_000), 100_000);
        assert_eq!(raised(256, 256), 256);
    }

    #[test]
    fn the_limit_of_this_process_is_read() {
        assert!(limit() >= 64, "{}", limit());
    }
}
