//! Which files of a folder are manifests.

#![allow(clippy::disallowed_methods, reason = "reads the folders of manifests")]

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a folder holds, each list by name.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files to read, each with its version; also links that lead nowhere.
    pub manifests: Vec<(PathBuf, Stamp)>,
    /// FIFOs, sockets and devices, which are never opened: that could take for ever.
    pub others: Vec<PathBuf>,
}

/// What tells one version of a file from the next; all zero when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp([i64; 7]);

impl Stamp {
    /// That of a file.
    pub fn of(metadata: &Metadata) -> Stamp {
        Stamp([
            metadata.dev() as i64,
            metadata.ino() as i64,
            metadata.size() as i64,
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ])
    }

    /// Whether it is that of a file of no bytes.
    pub fn is_empty(&self) -> bool {
        self.0[1] != 0 && self.0[2] == 0
    }
}

/// The most files of a folder that are looked at.
const MOST_FILES: usize = 100_000;

/// Lists the manifests of `folder`; not those of folders below it, and nothing that is called
/// otherwise.
///
/// Errors when the folder cannot be read, or holds too many of them.
pub fn list(folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !is_manifest(&path) {
            continue;
        }
        if listing.manifests.len() + listing.others.len() == MOST_FILES {
            return Err(io::Error::other(format!("holds more than {MOST_FILES} manifests")));
        }
        // Follows links, as volumes of Kubernetes consist of them.
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => listing.manifests.push((path, Stamp::of(&metadata))),
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => listing.others.push(path),
            Err(_) => listing.manifests.push((path, Stamp::default())),
        }
    }
    listing.manifests.sort_by(|a, b| a.0.cmp(&b.0));
    listing.others.sort();
    Ok(listing)
}

/// Whether a file called so is a manifest: `*.yaml`, `*.yml` or `*.json`, not hidden.
pub fn is_manifest(path: &Path) -> bool {
    let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !is_hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// A path as messages show it: one line, whatever is in it.
pub fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}
