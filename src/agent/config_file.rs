//! The configuration file is read once. When it is written in place or moved, the process exits, as
//! kube-proxy does, so that it is restarted with the new configuration.
//!
//! A ConfigMap volume swaps links instead: the file that was opened is neither written nor moved, and the
//! process continues.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};

/// The file of `--config`, watched.
pub struct ConfigFile {
    path: PathBuf,
    events: Inotify,
}

impl ConfigFile {
    /// Starts to watch the file at `path`, links followed. To be called before the file is read.
    pub fn watch(path: &Path) -> anyhow::Result<ConfigFile> {
        let watching = || format!("cannot watch the configuration {}", path.display());
        let events = Inotify::init().with_context(watching)?;
        events.watches().add(path, WatchMask::MODIFY | WatchMask::MOVE_SELF).with_context(watching)?;
        Ok(ConfigFile { path: path.to_owned(), events })
    }

    /// Waits until the file is written or moved, or can no longer be watched; each is an error. `Ok` when the
    /// file is deleted: nothing is left to watch.
    pub(super) async fn until_changed(self) -> anyhow::Result<()> {
        let path = self.path.display().to_string();
        let mut events: EventStream<[u8; 1024]> =
            self.events.into_event_stream([0; 1024]).with_context(|| format!("cannot watch {path}"))?;
        while let Some(event) = events.next().await {
            let mask = event.with_context(|| format!("cannot watch {path}"))?.mask;
            if mask.contains(EventMask::Q_OVERFLOW) {
                bail!(
                    "events of the configuration {path} were lost; exiting, to be restarted with its current content"
                );
            }
            if mask.contains(EventMask::IGNORED) {
                return Ok(());
            }
            if mask.intersects(EventMask::MODIFY | EventMask::MOVE_SELF) {
                bail!(
                    "the configuration {path} was changed or moved; exiting, to be restarted with the new one"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "the test writes the file")]

    use std::fs;
    use std::time::Duration;

    use super::*;

    /// The error of watching a file, within 300 ms after `change`.
    async fn after(change: impl FnOnce(&Path)) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.conf");
        fs::write(&path, "a").unwrap();
        let file = ConfigFile::watch(&path).unwrap();
        change(&path);
        match tokio::time::timeout(Duration::from_millis(300), file.until_changed()).await {
            Ok(Err(error)) => Some(error.to_string()),
            Ok(Ok(())) | Err(_) => None,
        }
    }

    #[tokio::test]
    async fn writing_in_place_and_moving_end_the_process() {
        assert!(after(|path| fs::write(path, "b").unwrap()).await.unwrap().contains("was changed or moved"));
        assert!(after(|path| fs::rename(path, path.with_extension("old")).unwrap()).await.is_some());
    }

    #[tokio::test]
    async fn a_swapped_link_a_new_mode_and_a_deletion_do_not() {
        assert_eq!(after(|path| fs::remove_file(path).unwrap()).await, None);
        let chmod = |path: &Path| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        assert_eq!(after(chmod).await, None);
        // Replaced by another file of the same name, as editors and the kubelet do.
        let replace = |path: &Path| {
            let new = path.with_extension("new");
            fs::write(&new, "b").unwrap();
            fs::rename(&new, path).unwrap();
        };
        assert_eq!(after(replace).await, None);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_watched_is_an_error() {
        let error = ConfigFile::watch(Path::new("/none")).err().unwrap();
        assert!(format!("{error:#}").starts_with("cannot watch the configuration /none: "), "{error:#}");
    }
}
