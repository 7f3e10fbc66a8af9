//! An API server, watched: Services, EndpointSlices and this node's Node.
//!
//! Each kind is a `kube_runtime::watcher` of its own. It begins with a streaming list, as
//! kube-proxy does: one object after another, which spares the server's memory and ours; a server
//! that refuses it, or never ends it, is asked for pages of 500. Objects are decoded as they
//! arrive; nothing else of them is kept (`store`). Whatever fails is tried again, for ever, with
//! back-off; meanwhile the last state stays.

mod backoff;
mod client;
#[cfg(test)]
pub mod fake;
mod guard;
mod observer;
mod store;
mod token;
mod transport;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube_runtime::watcher::{self, Config, Event, InitialListStrategy, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

use super::WatchEvent;
use crate::model::decode::{ApiNode, ApiService, ApiSlice, Interner};
use backoff::Backoff;
pub use client::{Connection, connect};
use guard::Guard;
pub use observer::{Exchange, Observer};
use store::{Kind, Store};
use token::TokenFile;
pub use transport::Limit;

/// How long to wait for what should come soon.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For the next object of a streaming list; then pages are asked for instead.
    object: Duration,
    /// For the beginning of a list, or a page. An API server gives up after 60 s itself.
    page: Duration,
}

/// A streaming list that pauses for 5 s comes from a server that does not know where it ends (before
/// Kubernetes 1.27), or from one that is better asked for pages.
const PATIENCE: Patience = Patience { object: Duration::from_secs(5), page: Duration::from_secs(90) };

/// How many streaming lists may break off in a row before pages are asked for instead.
const STREAM_ATTEMPTS: usize = 3;

/// How long a watch lasts, in seconds: somewhere in here, so that watches begun together (a server
/// that came back, a DaemonSet rolled out) do not end together for ever.
const WATCH_SECONDS: RangeInclusive<u32> = 200..=290;

/// Sends the cluster's state as `connection` sees it, then follows it until the receiver is gone. Of
/// Nodes, only the one called `node` is watched.
pub async fn follow(connection: Connection, node: String, sender: Sender<WatchEvent>) {
    follow_with(connection, node, sender, PATIENCE).await;
}

async fn follow_with(connection: Connection, node: String, sender: Sender<WatchEvent>, patience: Patience) {
    let interner = Mutex::new(Interner::default());
    tokio::join!(
        follow_kind::<ApiService>(&connection, &node, &interner, &sender, patience),
        follow_kind::<ApiSlice>(&connection, &node, &interner, &sender, patience),
        follow_kind::<ApiNode>(&connection, &node, &interner, &sender, patience),
    );
}

async fn follow_kind<K>(
    connection: &Connection,
    node: &str,
    interner: &Mutex<Interner>,
    sender: &Sender<WatchEvent>,
    patience: Patience,
) where
    K: Kind + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut follower = Follower {
        store: Store::<K>::new(interner),
        trouble: Trouble {
            n_failures: 0,
            backoff: Backoff::default(),
            backoff_of_gone: Backoff::default(),
            token: connection.token.clone(),
        },
        n_begun: 0,
        sender,
        patience,
    };
    let mut strategy = InitialListStrategy::StreamingList;
    loop {
        let config = Config {
            label_selector: K::LABELS.map(str::to_owned),
            field_selector: K::fields(node),
            initial_list_strategy: strategy.clone(),
            timeout: Some(fastrand::u32(WATCH_SECONDS)),
            ..Config::default()
        };
        let api = Api::<Guard<K>>::all(connection.client.clone());
        let end = tokio::select! {
            () = sender.closed() => return,
            end = follower.run(api, config) => end,
        };
        match end {
            End::NobodyListens => return,
            End::Broken(why) => follower.trouble.endure::<K>(&why, Failure::Other).await,
            End::NoStreamingLists(why) => {
                info!(kind = %K::KIND, why, "no streaming lists from this server; asking for pages");
                strategy = InitialListStrategy::ListWatch;
            }
        }
    }
}

/// Why a watcher is given up.
enum End {
    /// The receiver is gone.
    NobodyListens,
    /// What it got cannot be trusted to be complete, or nothing came: it has to begin anew.
    Broken(String),
    /// The server does not serve streaming lists, because of this.
    NoStreamingLists(String),
}

/// What follows one kind of object, over all its watchers.
struct Follower<'a, K: Kind> {
    store: Store<'a, K>,
    trouble: Trouble,
    /// Lists begun since one was complete.
    n_begun: usize,
    sender: &'a Sender<WatchEvent>,
    patience: Patience,
}

impl<K> Follower<'_, K>
where
    K: Kind + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// Watches in one way, for as long as it goes well enough.
    async fn run(&mut self, api: Api<Guard<K>>, config: Config) -> End {
        let is_streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
        let mut events = pin!(watcher(api, config));
        let mut place = Place::Start;
        loop {
            let patience = match place {
                Place::Watch => Duration::MAX,
                Place::List if is_streaming => self.patience.object,
                Place::Start | Place::List => self.patience.page,
            };
            let next = match tokio::time::timeout(patience, events.next()).await {
                Ok(Some(next)) => next,
                Err(_) if is_streaming && place == Place::List => {
                    return End::NoStreamingLists("it was silent for too long".to_owned());
                }
                Ok(None) | Err(_) => return End::Broken("the API server does not answer".to_owned()),
            };
            let end = match next {
                Ok(event) => {
                    place = match &event {
                        Event::Init | Event::InitApply(_) => Place::List,
                        Event::InitDone | Event::Apply(_) | Event::Delete(_) => Place::Watch,
                    };
                    self.take(event, is_streaming).await
                }
                Err(error) => self.fail(&error, is_streaming, place).await,
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn take(&mut self, event: Event<Guard<K>>, is_streaming: bool) -> Option<End> {
        match event {
            Event::Init if is_streaming => {
                self.n_begun += 1;
                if self.n_begun > STREAM_ATTEMPTS {
                    return Some(End::NoStreamingLists("they broke off again and again".to_owned()));
                }
            }
            Event::InitDone => self.n_begun = 0,
            _ => {}
        }
        if matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_)) {
            self.trouble.is_over::<K>();
        }
        for event in self.store.take(event) {
            if self.sender.send(event).await.is_err() {
                return Some(End::NobodyListens);
            }
        }
        None
    }

    /// Most failures the watcher gets over by itself, after a pause. But it would go on behind
    /// something unreadable as if nothing had been there: an object would be missing from a list
    /// (and its rules be removed), or a change be lost.
    async fn fail(&mut self, error: &watcher::Error, is_streaming: bool, place: Place) -> Option<End> {
        let text = error_chain(error);
        if is_streaming && let Some(why) = refusal(error) {
            return Some(End::NoStreamingLists(why));
        }
        let is_unreadable = matches!(error, watcher::Error::WatchFailed(kube::Error::SerdeError(_)));
        if is_unreadable || is_streaming && place == Place::List {
            return Some(End::Broken(text));
        }
        self.trouble.endure::<K>(&text, Failure::of(error)).await;
        None
    }
}

/// How far a watcher is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing came yet.
    Start,
    /// In the middle of a list.
    List,
    /// The list is complete.
    Watch,
}

/// What a server says that knows nothing of `sendInitialEvents`, or has it switched off.
fn refusal(error: &watcher::Error) -> Option<String> {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 400 | 405 | 422 | 501) =>
        {
            Some(status.message.clone())
        }
        _ => None,
    }
}

/// What a failure says about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// It does not take the token.
    Unauthorized,
    /// It is well, but what is asked for is too long ago: nothing is wrong with asking anew.
    Gone,
    /// It is not well, or not there.
    Other,
}

impl Failure {
    fn of(error: &watcher::Error) -> Failure {
        use watcher::Error::{InitialListFailed, WatchError, WatchStartFailed};
        let code = match error {
            WatchError(status) => status.code,
            InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => {
                status.code
            }
            _ => 0,
        };
        match code {
            401 => Failure::Unauthorized,
            410 => Failure::Gone,
            _ => Failure::Other,
        }
    }
}

/// Failures in a row: how long to wait after each, and which to say aloud.
struct Trouble {
    n_failures: u64,
    backoff: Backoff,
    /// After [`Failure::Gone`]: the first one after an outage does not wait as long as the outage's
    /// last try, but a server that says nothing else is asked for lists less and less.
    backoff_of_gone: Backoff,
    token: Option<Arc<TokenFile>>,
}

impl Trouble {
    /// Says what is wrong, aloud the first time, the second, the fourth, ..., and waits: no longer
    /// than for another token where the last one was refused.
    async fn endure<K: Kind>(&mut self, error: &str, failure: Failure) {
        self.n_failures += 1;
        let n_failures = self.n_failures;
        if n_failures.is_power_of_two() {
            warn!(kind = %K::KIND, n_failures, error, "watch failed, trying again; the last state stays");
        } else {
            debug!(kind = %K::KIND, n_failures, error, "watch failed, trying again");
        }
        let backoff = if failure == Failure::Gone { &mut self.backoff_of_gone } else { &mut self.backoff };
        let pause = tokio::time::sleep(backoff.next());
        match &self.token {
            Some(token) if failure == Failure::Unauthorized => tokio::select! {
                () = pause => {}
                () = token.changed() => info!(kind = %K::KIND, "another token is in the file"),
            },
            _ => pause.await,
        }
    }

    fn is_over<K: Kind>(&mut self) {
        if self.n_failures > 0 {
            info!(kind = %K::KIND, n_failures = self.n_failures, "watching again");
            self.n_failures = 0;
        }
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
