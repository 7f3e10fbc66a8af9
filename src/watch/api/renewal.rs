//! The link to the API server with credentials as they are now: files that are replaced before they
//! expire are read again, and a new link replaces the old one.
//!
//! A change is noticed by the next request, and without one within [`LOOK_EVERY`]. Watches of the old
//! link end as if the server had ended them, and go on over the new one. New files that are unusable,
//! or half written, leave the old link in use.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::config::{AuthInfo, Config};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing::{info, warn};

use super::link::Link;
use super::observer::Observer;
use super::origin::{Files, Origin};
use super::token::TokenFile;

/// How often the files are looked at while nothing is sent.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How often they are looked at while the API server does not take what they held.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long what was read of the files is taken for what they hold.
const FRESH: Duration = Duration::from_millis(400);

/// The link that is in use, and the files that it was made from.
pub struct Renewal {
    origin: Origin,
    observer: Arc<dyn Observer>,
    state: Mutex<State>,
}

struct State {
    link: Link,
    /// How many other servers than the first the files have named.
    n_moves: u64,
    /// As they were when the link was made.
    files: Files,
    /// As they were when no link could be made from them; already logged.
    unusable: Option<Files>,
    looked: Instant,
}

impl Renewal {
    /// Makes the first link, from `config`, which was just read from `origin`.
    pub fn new(
        origin: Origin,
        files: Files,
        config: Config,
        observer: Arc<dyn Observer>,
    ) -> anyhow::Result<Renewal> {
        let link = link(config, &observer)?;
        let state = State { link, n_moves: 0, files, unusable: None, looked: Instant::now() };
        Ok(Renewal { origin, observer, state: Mutex::new(state) })
    }

    /// The link to use now.
    pub async fn current(&self) -> Link {
        self.up_to_date().await.link.clone()
    }

    /// How often the files have named another server. Versions of one server mean nothing to the next,
    /// which may have another etcd.
    pub async fn n_moves(&self) -> u64 {
        self.up_to_date().await.n_moves
    }

    async fn up_to_date(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().await;
        if state.looked.elapsed() >= FRESH {
            self.look(&mut state).await;
        }
        state
    }

    /// Waits until there are other credentials than the rejected ones: another token in its file, or
    /// other files.
    pub async fn renewed(&self) {
        let refused = self.state.lock().await.link.clone();
        let other_files = async {
            while !refused.is_retired() {
                tokio::time::sleep(LOOK_AGAIN).await;
                self.current().await;
            }
        };
        tokio::select! {
            () = refused.token_changed() => {}
            () = other_files => {}
        }
    }

    async fn look(&self, state: &mut State) {
        state.looked = Instant::now();
        let files = self.origin.files();
        if files == state.files || state.unusable.as_ref() == Some(&files) {
            return;
        }
        let changed: Vec<String> = files
            .iter()
            .filter(|(path, hash)| state.files.get(*path) != Some(*hash))
            .map(|(path, _)| path.display().to_string())
            .collect();
        let renewed = async { link(self.origin.config().await?, &self.observer) };
        match renewed.await {
            Ok(link) => {
                info!(server = link.host, files = changed.join(", "), "credentials changed; connecting anew");
                let old = std::mem::replace(&mut state.link, link);
                state.n_moves += u64::from(old.host != state.link.host);
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

/// A link by `config`, with what every request of ours carries.
fn link(mut config: Config, observer: &Arc<dyn Observer>) -> anyhow::Result<Link> {
    let agent = format!("chainsmith/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push(("user-agent".parse()?, agent.parse()?));
    let token = token_file(&mut config.auth_info)?.map(Arc::new);
    let certificate = config.auth_info.client_certificate.clone();
    Link::new(&config, token, observer).with_context(|| match certificate {
        Some(certificate) => format!("preparing the API client (client certificate {certificate})"),
        None => "preparing the API client".to_owned(),
    })
}

/// Takes the token file over from kube, which reads it once a minute: one that was refused has to be
/// replaced sooner. As in client-go a file counts more than a token beside it, unless it is
/// unreadable.
fn token_file(auth: &mut AuthInfo) -> anyhow::Result<Option<TokenFile>> {
    let Some(path) = &auth.token_file else { return Ok(None) };
    match TokenFile::open(Path::new(path)) {
        Ok(file) => {
            *auth = AuthInfo { token: None, token_file: None, exec: None, ..std::mem::take(auth) };
            Ok(Some(file))
        }
        Err(error) if auth.token.is_some() => {
            warn!(error = %format!("{error:#}"), "using the token beside it");
            auth.token_file = None;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
