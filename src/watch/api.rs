//! An API server, watched: Services, EndpointSlices and this node's Node.
//!
//! Each kind is a `kube_runtime::watcher` of its own. It begins with a streaming list, as
//! kube-proxy does: one object after another, which spares the server's memory and ours; a server
//! that refuses it, or never ends it, is asked for pages of 500. Objects are decoded as they
//! arrive; nothing else of them is kept (`store`). Whatever fails is tried again, for ever, with
//! back-off; meanwhile the last state stays.

mod client;
mod guard;
mod store;

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use kube_runtime::watcher::{self, Config, DefaultBackoff, Event, InitialListStrategy, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

use super::WatchEvent;
use crate::model::decode::Interner;
pub use client::client;
use guard::Guard;
use store::{Kind, Store};

/// How long to wait for what should come soon.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For the next object of a streaming list; then pages are asked for instead.
    object: Duration,
    /// For the beginning of a list, or a page. An API server gives up after 60 s itself.
    page: Duration,
}

const PATIENCE: Patience = Patience { object: Duration::from_secs(30), page: Duration::from_secs(90) };

/// How many streaming lists may break off in a row before pages are asked for instead.
const STREAM_ATTEMPTS: usize = 3;

/// Sends the cluster's state as `client` sees it, then follows it until the receiver is gone. Of
/// Nodes, only the one called `node` is watched.
pub async fn follow(client: Client, node: String, sender: Sender<WatchEvent>) {
    follow_with(client, node, sender, PATIENCE).await;
}

async fn follow_with(client: Client, node: String, sender: Sender<WatchEvent>, patience: Patience) {
    let interner = Mutex::new(Interner::default());
    tokio::join!(
        follow_kind::<Service>(&client, &node, &interner, &sender, patience),
        follow_kind::<EndpointSlice>(&client, &node, &interner, &sender, patience),
        follow_kind::<Node>(&client, &node, &interner, &sender, patience),
    );
}

async fn follow_kind<K>(
    client: &Client,
    node: &str,
    interner: &Mutex<Interner>,
    sender: &Sender<WatchEvent>,
    patience: Patience,
) where
    K: Kind + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut follower = Follower {
        store: Store::<K>::new(interner),
        trouble: Trouble::default(),
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
            ..Config::default()
        };
        let api = Api::<Guard<K>>::all(client.clone());
        let end = tokio::select! {
            () = sender.closed() => return,
            end = follower.run(api, config) => end,
        };
        match end {
            End::NobodyListens => return,
            End::Broken(why) => follower.trouble.endure::<K>(&why).await,
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
        self.trouble.endure::<K>(&text).await;
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

/// Failures in a row: how long to wait after each, and which to say aloud.
#[derive(Default)]
struct Trouble {
    n_failures: u64,
    /// 0.8 s, doubled up to 30 s, each with jitter up to double; begins anew after two minutes
    /// without a failure (client-go's reflector).
    backoff: DefaultBackoff,
}

impl Trouble {
    /// Says what is wrong, aloud the first time, the second, the fourth, ..., and waits.
    async fn endure<K: Kind>(&mut self, error: &str) {
        self.n_failures += 1;
        let n_failures = self.n_failures;
        if n_failures.is_power_of_two() {
            warn!(kind = %K::KIND, n_failures, error, "watch failed, trying again; the last state stays");
        } else {
            debug!(kind = %K::KIND, n_failures, error, "watch failed, trying again");
        }
        tokio::time::sleep(self.backoff.next().unwrap_or(Duration::from_secs(30))).await;
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
