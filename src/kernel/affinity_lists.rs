//! Finds full lists of `-m recent` (session affinity) in the files of this network namespace.
#![allow(clippy::disallowed_methods, reason = "reads /proc and /sys")]

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::iptables::ChainName;
use crate::iptables::trace::RecentLists;

/// Paths of the kernel's lists, and of their capacity.
#[derive(Clone, Debug)]
pub struct AffinityLists {
    folder: PathBuf,
    capacity: PathBuf,
}

/// The lists that replace their oldest address when they add one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FullLists {
    /// Addresses that a list can hold.
    pub capacity: usize,
    /// Names of the full lists, sorted.
    pub names: Vec<ChainName>,
}

impl AffinityLists {
    /// The lists of this thread's network namespace.
    pub fn of_kernel() -> AffinityLists {
        AffinityLists::at("/proc/thread-self/net/xt_recent", "/sys/module/xt_recent/parameters/ip_list_tot")
    }

    /// The lists in `folder`, one file each; the file `capacity` contains how many addresses each can hold.
    pub fn at(folder: impl Into<PathBuf>, capacity: impl Into<PathBuf>) -> AffinityLists {
        AffinityLists { folder: folder.into(), capacity: capacity.into() }
    }

    /// Reads all lists; none if no rule uses one. A list that disappears meanwhile is skipped.
    pub fn full(&self) -> io::Result<FullLists> {
        let capacity = self.capacity()?;
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(FullLists { capacity, names });
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            // Foreign lists need not have the name of a chain.
            let name = path.file_name().and_then(|name| ChainName::new(name.to_str()?));
            let Some(name) = name else { continue };
            match n_lines(&path) {
                Ok(n) if n >= capacity => names.push(name),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        names.sort_unstable();
        Ok(FullLists { capacity, names })
    }

    /// Addresses that a list can hold: the module's parameter, or its default where that is missing.
    fn capacity(&self) -> io::Result<usize> {
        match fs::read_to_string(&self.capacity) {
            Ok(text) => Ok(text.trim().parse().unwrap_or(RecentLists::LENGTH)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RecentLists::LENGTH),
            Err(error) => Err(error),
        }
    }
}

/// One line for each address.
fn n_lines(path: &Path) -> io::Result<usize> {
    Ok(fs::read(path)?.iter().filter(|byte| **byte == b'\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "src=10.0.0.1 ttl: 64 last_seen: 4295000000 oldest_pkt: 1 4295000000\n";

    /// Compares the full lists among lists of 99, 100 and 7 addresses, with this text as capacity.
    fn check(capacity: Option<&str>, expected: (usize, &[&str])) {
        let root = tempfile::tempdir().unwrap();
        let (folder, parameter) = (root.path().join("lists"), root.path().join("capacity"));
        fs::create_dir(&folder).unwrap();
        for (name, n) in [("KUBE-SEP-A", 99), ("KUBE-SEP-B", 100), ("KUBE-SEP-C", 7), ("not a chain", 500)] {
            fs::write(folder.join(name), LINE.repeat(n)).unwrap();
        }
        capacity.into_iter().for_each(|text| fs::write(&parameter, text).unwrap());
        let full = AffinityLists::at(&folder, &parameter).full().unwrap();
        let names: Vec<&str> = full.names.iter().map(ChainName::as_str).collect();
        assert_eq!((full.capacity, names.as_slice()), expected);
    }

    #[test]
    fn a_list_is_full_at_the_capacity_of_the_module() {
        check(Some("7\n"), (7, &["KUBE-SEP-A", "KUBE-SEP-B", "KUBE-SEP-C"]));
        check(Some("200\n"), (200, &[]));
    }

    #[test]
    fn without_a_parameter_the_capacity_is_the_modules_default() {
        check(None, (100, &["KUBE-SEP-B"]));
        check(Some("many"), (100, &["KUBE-SEP-B"]));
    }

    #[test]
    fn without_lists_none_is_full() {
        let full = AffinityLists::at("/nowhere/at/all", "/nowhere").full().unwrap();
        assert_eq!(full, FullLists { capacity: 100, names: Vec::new() });
    }

    #[test]
    fn unreadable_lists_are_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(
            AffinityLists::at(file(root.path()), "/nowhere").full().is_err(),
            "a file in place of the folder"
        );
        fs::create_dir_all(root.path().join("lists/KUBE-SEP-A")).unwrap();
        assert!(
            AffinityLists::at(root.path().join("lists"), "/nowhere").full().is_err(),
            "a folder in place of a list"
        );
        let folder = root.path().join("lists");
        assert!(
            AffinityLists::at("/nowhere/at/all", folder).full().is_err(),
            "a folder in place of the capacity"
        );
    }

    fn file(folder: &Path) -> PathBuf {
        fs::write(folder.join("file"), "").unwrap();
        folder.join("file")
    }
}
