//! The bearer token of a file that others write anew before it expires (kubelet, each hour).

#![allow(clippy::disallowed_methods, reason = "reads the token file")]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::HeaderValue;

/// How often the file is looked at while its token is not taken.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A file with a bearer token, and the last usable one that was read.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Mutex<HeaderValue>,
}

impl TokenFile {
    /// Reads the file for the first time; an error when that fails or it holds no token.
    pub fn open(path: &Path) -> anyhow::Result<TokenFile> {
        let last = Mutex::new(read(path)?);
        Ok(TokenFile { path: path.to_owned(), last })
    }

    /// The value of the `Authorization` header, as the file has it now: there are few requests, and
    /// a kilobyte from memory is cheaper than a request with a token that is none any more. A file
    /// that is unusable at this moment leaves the last token in use.
    pub fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(token) = read(&self.path) {
            *last = token;
        }
        last.clone()
    }

    /// Waits until the file holds another token than the last one that was asked for.
    pub async fn changed(&self) {
        let refused = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        while read(&self.path).map_or(true, |token| token == refused) {
            tokio::time::sleep(LOOK_EVERY).await;
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
    fn each_request_has_the_token_that_the_file_has() {
        let (file, token) = token_file("first\n");
        assert_eq!(token.header(), "Bearer first");
        assert!(token.header().is_sensitive());
        std::fs::write(file.path(), "second").unwrap();
        assert_eq!(token.header(), "Bearer second");
    }

    #[test]
    fn an_unusable_file_leaves_the_last_token() {
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
        let patience = Duration::from_secs(60);
        assert!(tokio::time::timeout(patience, token.changed()).await.is_err(), "it is the same");
        std::fs::write(file.path(), "").unwrap();
        assert!(tokio::time::timeout(patience, token.changed()).await.is_err(), "it is none");
        std::fs::write(file.path(), "second").unwrap();
        assert!(tokio::time::timeout(LOOK_EVERY, token.changed()).await.is_ok());
    }
}
