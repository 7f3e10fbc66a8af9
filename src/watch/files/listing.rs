//! Lists the manifests of a folder.

#![allow(clippy::disallowed_methods, reason = "reads the folders of manifests")]

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files of a folder, each list sorted by name.
#[derive(Debug, Default)]
pub struct Listing {
    /// Regular files, each with its version; also dangling symlinks.
    pub manifests: Vec<(PathBuf, FileVersion)>,
    /// FIFOs, sockets and devices. They are never opened, since that may block.
    pub not_regular: Vec<PathBuf>,
}

/// Distinguishes versions of a file; all zero when it cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileVersion([i64; 7]);

impl FileVersion {
    /// The version of a file.
    pub fn of(metadata: &Metadata) -> FileVersion {
        FileVersion([
            metadata.dev() as i64,
            metadata.ino() as i64,
            metadata.size() as i64,
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ])
    }

    /// Whether the file has zero bytes.
    pub fn is_empty(&self) -> bool {
        self.0[1] != 0 && self.0[2] == 0
    }
}

/// The largest number of manifests in a folder.
const MAX_FILES: usize = 100_000;

/// Lists the manifests of `folder`, without subfolders.
///
/// Fails when the folder cannot be read, or has too many manifests.
pub fn list(folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !is_manifest(&path) {
            continue;
        }
        if listing.manifests.len() + listing.not_regular.len() == MAX_FILES {
            return Err(io::Error::other(format!("holds more than {MAX_FILES} manifests")));
        }
        // Follows symlinks: Kubernetes volumes consist of them.
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => listing.manifests.push((path, FileVersion::of(&metadata))),
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => listing.not_regular.push(path),
            Err(_) => listing.manifests.push((path, FileVersion::default())),
        }
    }
    listing.manifests.sort_by(|a, b| a.0.cmp(&b.0));
    listing.not_regular.sort();
    Ok(listing)
}

/// Whether the path names a manifest: `*.yaml`, `*.yml` or `*.json`, not hidden.
pub fn is_manifest(path: &Path) -> bool {
    let needs_escape = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !needs_escape && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// A path for log messages, with control characters escaped.
pub fn escaped_path(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}
