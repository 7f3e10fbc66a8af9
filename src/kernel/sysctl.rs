//! Kernel parameters (sysctls) as files below `/proc/sys`, or below another folder in tests.
#![allow(clippy::disallowed_methods, reason = "accesses /proc/sys")]

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};

/// The sysctls below one folder. Keys are paths: `net/ipv4/conf/all/route_localnet`.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Sysctls {
    /// The sysctls of this machine, in `/proc/sys`.
    pub fn of_kernel() -> Sysctls {
        Sysctls::below("/proc/sys")
    }

    /// The sysctls in `root`.
    pub fn below(root: impl Into<PathBuf>) -> Sysctls {
        Sysctls { root: root.into() }
    }

    /// The file of `key`, for messages.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.join(Path::new(key))
    }

    /// The value of `key`, trimmed; for text that is not a `T`, an `InvalidData` error quotes it.
    pub fn get<T: FromStr>(&self, key: &str) -> io::Result<T> {
        let text = fs::read_to_string(self.path(key))?;
        let text = text.trim();
        text.parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("unexpected value {text:?}")))
    }

    /// Sets `key` to `value` unless it already has that value; an unreadable value counts as different.
    /// Returns whether it was written; after an error the value is unchanged.
    pub fn ensure(&self, key: &str, value: impl Display) -> io::Result<bool> {
        let desired = value.to_string();
        if self.get::<String>(key).is_ok_and(|found| found == desired) {
            return Ok(false);
        }
        // Without O_CREAT, so that a key that the kernel lacks stays an error, also in a test folder.
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.path(key))?;
        io::Write::write_all(&mut file, desired.as_bytes())?;
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
    fn a_key_that_the_kernel_lacks_is_an_error() {
        let (_root, sysctls) = scratch("a", "1\n");
        assert_eq!(sysctls.get::<i64>("b").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(sysctls.ensure("b", 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!sysctls.path("b").exists());
    }

    #[test]
    fn an_error_quotes_a_value_that_is_not_a_number() {
        let (_root, sysctls) = scratch("a", "yes\n");
        let error = sysctls.get::<i64>("a").unwrap_err();
        assert_eq!(error.to_string(), "unexpected value \"yes\"");
        assert!(sysctls.ensure("a", 1).unwrap());
    }

    #[test]
    fn sysctls_of_the_kernel_are_read_and_written_in_a_namespace() {
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
