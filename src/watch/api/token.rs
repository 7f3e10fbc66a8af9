//! The bearer token from a file that another process replaces before the token expires (kubelet, each
//! hour).

#![allow(clippy::disallowed_methods, reason = "reads the token file")]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::HeaderValue;

/// How often the file is read while its token is rejected.
const READ_INTERVAL: Duration = Duration::from_millis(500);

/// A file with a bearer token, and the last usable token read from it.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Mutex<HeaderValue>,
}

impl TokenFile {
    /// Reads the file for the first time; fails if it is unreadable or holds no token.
    pub fn open(path: &Path) -> anyhow::Result<TokenFile> {
        let last = Mutex::new(read(path)?);
        Ok(TokenFile { path: path.to_owned(), last })
    }

    /// The value of the `Authorization` header, read from the file for each request: requests are few, and
    /// reading a kilobyte from memory is cheaper than a request with an expired token. While the file is
    /// unusable, the last token stays in use.
    pub fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(token) = read(&self.path) {
            *last = token;
        }
        last.clone()
    }

    /// Waits until the file holds another token than the one that [`TokenFile::header`] returned last.
    pub async fn changed(&self) {
        let rejected = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        while read(&self.path).map_or(true, |token| token == rejected) {
            tokio::time::sleep(READ_INTERVAL).await;
        }
    }
}

fn read(path: &Path) -> anyhow::Result<HeaderValue> {
    let reading = || format!("reading the token file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(reading)?;
    ensure!(!text.trim().is_empty(), "the token file {} is empty", path.display());
    let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim())).with_context(reading)?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_file(text: &str) -> (tempfile::NamedTempFile, TokenFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let token = TokenFile::open(file.path()).unwrap();
        (file, token)
    }

    #[test]
    fn each_request_carries_the_token_in_the_file() {
        let (file, token) = token_file("first\n");
        assert_eq!(token.header(), "Bearer first");
        assert!(token.header().is_sensitive());
        std::fs::write(file.path(), "second").unwrap();
        assert_eq!(token.header(), "Bearer second");
    }

    #[test]
    fn an_unusable_file_keeps_the_last_token_in_use() {
        let (file, token) = token_file("first");
        for text in ["", " \n", "two\nlines"] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(token.header(), "Bearer first", "{text:?}");
            let error = TokenFile::open(file.path()).expect_err("no token");
            assert!(format!("{error:#}").contains(&file.path().display().to_string()), "{error:#}");
        }
        let path = file.path().to_owned();
        drop(file);
        assert_eq!(token.header(), "Bearer first");
        assert!(TokenFile::open(&path).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_token_is_noticed_within_half_a_second() {
        let (file, token) = token_file("first");
        let limit = Duration::from_secs(60);
        assert!(tokio::time::timeout(limit, token.changed()).await.is_err(), "same token");
        std::fs::write(file.path(), "").unwrap();
        assert!(tokio::time::timeout(limit, token.changed()).await.is_err(), "no token");
        std::fs::write(file.path(), "second").unwrap();
        assert!(tokio::time::timeout(READ_INTERVAL, token.changed()).await.is_ok());
    }
}
