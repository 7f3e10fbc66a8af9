//! Keeps the link to the API server up to date with credentials in files: when the files change, a new link
//! replaces the old one.
//!
//! A change is noticed by the next request, or within [`CHECK_INTERVAL`] without one. Watches of the old
//! link end as if the server had ended them, and continue over the new link. While new files are unusable
//! or incomplete, the old link stays in use.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::config::{AuthInfo, Config};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing::{info, warn};

use super::kubeconfig::{ApiServerSource, FileHashes};
use super::link::Link;
use super::token::TokenFile;
use super::traffic::TrafficObserver;

/// How often the files are checked while no request is sent.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// How often the files are checked while the API server rejects the credentials.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How long the result of a check stays valid.
const CHECK_VALID_FOR: Duration = Duration::from_millis(400);

/// The link in use, and the files that it was made from.
pub struct Renewal {
    source: ApiServerSource,
    observer: Arc<dyn TrafficObserver>,
    state: Mutex<LinkState>,
}

struct LinkState {
    link: Link,
    /// How often the files have named another server.
    n_server_changes: u64,
    /// Their content when the link was made.
    files: FileHashes,
    /// Their content when making a link failed; the failure is logged.
    unusable: Option<FileHashes>,
    checked: Instant,
}

impl Renewal {
    /// Makes the first link from `config`, which was just read from `source`.
    pub fn new(
        source: ApiServerSource,
        files: FileHashes,
        config: Config,
        observer: Arc<dyn TrafficObserver>,
    ) -> anyhow::Result<Renewal> {
        let link = link(config, &observer)?;
        let state = LinkState { link, n_server_changes: 0, files, unusable: None, checked: Instant::now() };
        Ok(Renewal { source, observer, state: Mutex::new(state) })
    }

    /// The link to use now.
    pub async fn current(&self) -> Link {
        self.up_to_date().await.link.clone()
    }

    /// How often the files have named another server. Resource versions of two servers are unrelated: each
    /// may have an etcd of its own.
    pub async fn n_server_changes(&self) -> u64 {
        self.up_to_date().await.n_server_changes
    }

    async fn up_to_date(&self) -> MutexGuard<'_, LinkState> {
        let mut state = self.state.lock().await;
        if state.checked.elapsed() >= CHECK_VALID_FOR {
            self.reload_if_changed(&mut state).await;
        }
        state
    }

    /// Waits until the credentials differ from the rejected ones: another token in the token file, or other
    /// files.
    pub async fn wait_renewed(&self) {
        let rejected = self.state.lock().await.link.clone();
        let other_files = async {
            while !rejected.is_retired() {
                tokio::time::sleep(RECHECK_INTERVAL).await;
                self.current().await;
            }
        };
        tokio::select! {
            () = rejected.token_changed() => {}
            () = other_files => {}
        }
    }

    async fn reload_if_changed(&self, state: &mut LinkState) {
        state.checked = Instant::now();
        let files = self.source.files();
        if files == state.files || state.unusable.as_ref() == Some(&files) {
            return;
        }
        let changed: Vec<String> = files
            .iter()
            .filter(|(path, hash)| state.files.get(*path) != Some(*hash))
            .map(|(path, _)| path.display().to_string())
            .collect();
        let wait_renewed = async { link(self.source.config().await?, &self.observer) };
        match wait_renewed.await {
            Ok(link) => {
                info!(server = link.host, files = changed.join(", "), "credentials changed; reconnecting");
                let old = std::mem::replace(&mut state.link, link);
                state.n_server_changes += u64::from(old.host != state.link.host);
                old.retire();
                (state.files, state.unusable) = (files, None);
            }
            Err(error) => {
                let (error, files_text) = (format!("{error:#}"), changed.join(", "));
                warn!(
                    files = files_text,
                    error, "cannot use changed credentials; the previous ones stay in use"
                );
                state.unusable = Some(files);
            }
        }
    }
}

/// Makes a link from `config`, with the headers that every request carries.
pub fn link(mut config: Config, observer: &Arc<dyn TrafficObserver>) -> anyhow::Result<Link> {
    let agent = format!("chainsmith/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push(("user-agent".parse()?, agent.parse()?));
    let token = token_file(&mut config.auth_info)?.map(Arc::new);
    let certificate = config.auth_info.client_certificate.clone();
    Link::new(&config, token, observer).with_context(|| match certificate {
        Some(certificate) => format!("preparing the API client (client certificate {certificate})"),
        None => "preparing the API client".to_owned(),
    })
}

/// Takes the token file from kube's configuration: kube reads it once a minute, but a rejected token must
/// be replaced sooner. As in client-go, a readable token file has precedence over a token.
fn token_file(auth: &mut AuthInfo) -> anyhow::Result<Option<TokenFile>> {
    let Some(path) = &auth.token_file else { return Ok(None) };
    match TokenFile::open(Path::new(path)) {
        Ok(file) => {
            *auth = AuthInfo { token: None, token_file: None, exec: None, ..std::mem::take(auth) };
            Ok(Some(file))
        }
        Err(error) if auth.token.is_some() => {
            warn!(error = %format!("{error:#}"), "cannot read token file; using the token in the kubeconfig");
            auth.token_file = None;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
