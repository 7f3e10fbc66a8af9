//! Kernel parameters as files below `/proc/sys`, or below another folder in its place.
#![allow(clippy::disallowed_methods, reason = "the world: these are the files of /proc/sys")]

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};

/// The parameters below one folder. Keys are paths: `net/ipv4/conf/all/route_localnet`.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Sysctls {
    /// Those of this machine, in `/proc/sys`.
    pub fn of_kernel() -> Sysctls {
        Sysctls::below("/proc/sys")
    }

    /// Those in `root`.
    pub fn below(root: impl Into<PathBuf>) -> Sysctls {
        Sysctls { root: root.into() }
    }

    /// The file of `key`, for messages.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.join(Path::new(key))
    }

    /// The value of `key`, without white space around it; an `InvalidData` error names the text that
    /// is no `T`.
    pub fn get<T: FromStr>(&self, key: &str) -> io::Result<T> {
        let text = fs::read_to_string(self.path(key))?;
        let text = text.trim();
        text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("it holds {text:?}")))
    }

    /// Sees to it that `key` is `value`, which is written only if it is not so (what cannot be read
    /// counts as different). Gives whether it was written; after an error the value is what it was.
    pub fn ensure(&self, key: &str, value: impl Display) -> io::Result<bool> {
        let wanted = value.to_string();
        if self.get::<String>(key).is_ok_and(|found| found == wanted) {
            return Ok(false);
        }
        // Opened without O_CREAT: a key that the kernel does not have stays an error, in a scratch
        // tree too.
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.path(key))?;
        io::Write::write_all(&mut file, wanted.as_bytes())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(key: &str, text: &str) -> (tempfile::TempDir, Sysctls) {
        let root = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::below(root.path());
        fs::create_dir_all(sysctls.path(key).parent().unwrap()).unwrap();
        fs::write(sysctls.path(key), text).unwrap();
        (root, sysctls)
    }

    #[test]
    fn a_value_is_written_only_if_it_differs() {
        let key = "net/ipv4/conf/all/route_localnet";
        let (_root, sysctls) = scratch(key, "0\n");
        assert_eq!(sysctls.get::<i64>(key).unwrap(), 0);
        assert!(sysctls.ensure(key, 1).unwrap());
        assert_eq!(fs::read_to_string(sysctls.path(key)).unwrap(), "1");
        let before = fs::metadata(sysctls.path(key)).unwrap().modified().unwrap();
        assert!(!sysctls.ensure(key, 1).unwrap());
        assert_eq!(fs::metadata(sysctls.path(key)).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn a_shorter_value_replaces_a_longer_one() {
        let (_root, sysctls) = scratch("a", "131072\n");
        assert!(sysctls.ensure("a", 7).unwrap());
        assert_eq!(sysctls.get::<u64>("a").unwrap(), 7);
    }

    #[test]
    fn a_key_the_kernel_does_not_have_is_an_error() {
        let (_root, sysctls) = scratch("a", "1\n");
        assert_eq!(sysctls.get::<i64>("b").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(sysctls.ensure("b", 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!sysctls.path("b").exists());
    }

    #[test]
    fn a_text_that_is_no_number_is_an_error_that_quotes_it() {
        let (_root, sysctls) = scratch("a", "yes\n");
        let error = sysctls.get::<i64>("a").unwrap_err();
        assert_eq!(error.to_string(), "it holds \"yes\"");
        assert!(sysctls.ensure("a", 1).unwrap());
    }

    #[test]
    fn the_kernels_own_are_read_and_written_in_a_namespace() {
        super::super::netlink::in_new_namespace(|| {
            let sysctls = Sysctls::of_kernel();
            let key = "net/ipv4/conf/all/route_localnet";
            assert_eq!(sysctls.get::<i64>(key).unwrap(), 0);
            assert!(sysctls.ensure(key, 1).unwrap());
            assert_eq!(sysctls.get::<i64>(key).unwrap(), 1);
            assert!(!sysctls.ensure(key, 1).unwrap());
        });
    }
}
