//! The lists of `-m recent` as files of this network namespace: which of them are full.
#![allow(clippy::disallowed_methods, reason = "the world: these are files of /proc and /sys")]

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::iptables::ChainName;
use crate::iptables::trace::RecentLists as Lists;

/// Where the kernel shows its lists, and how many addresses each may hold.
#[derive(Clone, Debug)]
pub struct RecentLists {
    folder: PathBuf,
    capacity: PathBuf,
}

/// The lists that can take no address without forgetting another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FullLists {
    /// How many addresses a list holds.
    pub capacity: usize,
    /// Their names, sorted.
    pub names: Vec<ChainName>,
}

impl RecentLists {
    /// Those of the thread's network namespace.
    pub fn of_kernel() -> RecentLists {
        RecentLists::at("/proc/thread-self/net/xt_recent", "/sys/module/xt_recent/parameters/ip_list_tot")
    }

    /// Those in `folder`, a file for each; how many addresses they hold stands in the file `capacity`.
    pub fn at(folder: impl Into<PathBuf>, capacity: impl Into<PathBuf>) -> RecentLists {
        RecentLists { folder: folder.into(), capacity: capacity.into() }
    }

    /// Reads all lists; none where no rule names one. A list that goes away meanwhile is left out.
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
            // A list of somebody else's need not be called like a chain.
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

    /// Addresses that a list holds: the module's parameter, or its default where that is not shown.
    fn capacity(&self) -> io::Result<usize> {
        match fs::read_to_string(&self.capacity) {
            Ok(text) => Ok(text.trim().parse().unwrap_or(Lists::LENGTH)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lists::LENGTH),
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

    /// Full ones among a list of 99, one of 100 and one of 7 addresses, with this text as capacity.
    fn check(capacity: Option<&str>, expected: (usize, &[&str])) {
        let root = tempfile::tempdir().unwrap();
        let (folder, parameter) = (root.path().join("lists"), root.path().join("capacity"));
        fs::create_dir(&folder).unwrap();
        for (name, n) in [("KUBE-SEP-A", 99), ("KUBE-SEP-B", 100), ("KUBE-SEP-C", 7), ("not a chain", 500)] {
            fs::write(folder.join(name), LINE.repeat(n)).unwrap();
        }
        capacity.into_iter().for_each(|text| fs::write(&parameter, text).unwrap());
        let full = RecentLists::at(&folder, &parameter).full().unwrap();
        let names: Vec<&str> = full.names.iter().map(ChainName::as_str).collect();
        assert_eq!((full.capacity, names.as_slice()), expected);
    }

    #[test]
    fn a_list_is_full_with_as_many_addresses_as_the_module_is_told() {
        check(Some("7\n"), (7, &["KUBE-SEP-A", "KUBE-SEP-B", "KUBE-SEP-C"]));
        check(Some("200\n"), (200, &[]));
    }

    #[test]
    fn without_a_parameter_it_is_the_modules_default() {
        check(None, (100, &["KUBE-SEP-B"]));
        check(Some("many"), (100, &["KUBE-SEP-B"]));
    }

    #[test]
    fn where_there_are_no_lists_none_is_full() {
        let full = RecentLists::at("/nowhere/at/all", "/nowhere").full().unwrap();
        assert_eq!(full, FullLists { capacity: 100, names: Vec::new() });
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(RecentLists::at(file(root.path()), "/nowhere").full().is_err(), "a file is no folder");
        fs::create_dir_all(root.path().join("lists/KUBE-SEP-A")).unwrap();
        assert!(
            RecentLists::at(root.path().join("lists"), "/nowhere").full().is_err(),
            "a folder is no list"
        );
        let folder = root.path().join("lists");
        assert!(RecentLists::at("/nowhere/at/all", folder).full().is_err(), "nor a number");
    }

    fn file(folder: &Path) -> PathBuf {
        fs::write(folder.join("file"), "").unwrap();
        folder.join("file")
    }
}
