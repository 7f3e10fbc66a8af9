//! An API server, watched: Services, EndpointSlices and this node's Node.
//!
//! Each kind is a `kube_runtime::watcher` of its own. It begins with a streaming list, as
//! kube-proxy does: one object after another, which spares the server's memory and ours; a server
//! that refuses it, or never ends it, is asked for pages of 500. Objects are decoded as they
//! arrive; nothing else of them is kept ([`store`]). Whatever fails is tried again, for ever, with
//! back-off; meanwhile the last state stays.

mod client;
mod guard;
mod store;

use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex};
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

/// How long a streaming list may be silent before pages are asked for instead.
const STREAM_PATIENCE: Duration = Duration::from_secs(30);
/// How many streaming lists may break off before pages are asked for instead.
const STREAM_ATTEMPTS: usize = 3;

/// Sends the cluster's state as `client` sees it, then follows it until the receiver is gone. Of
/// Nodes, only the one called `node` is watched.
pub async fn follow(client: Client, node: String, sender: Sender<WatchEvent>) {
    let interner = Arc::new(Mutex::new(Interner::default()));
    tokio::join!(
        follow_kind::<Service>(&client, &node, &interner, &sender),
        follow_kind::<EndpointSlice>(&client, &node, &interner, &sender),
        follow_kind::<Node>(&client, &node, &interner, &sender),
    );
}

async fn follow_kind<K>(client: &Client, node: &str, interner: &Mutex<Interner>, sender: &Sender<WatchEvent>)
where
    K: Kind + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut store = Store::<K>::new(interner);
    let mut strategy = InitialListStrategy::StreamingList;
    loop {
        let config = Config {
            label_selector: K::LABELS.map(str::to_owned),
            field_selector: K::fields(node),
            initial_list_strategy: strategy.clone(),
            ..Config::default()
        };
        let api = Api::<Guard<K>>::all(client.clone());
        tokio::select! {
            () = sender.closed() => return,
            end = run(api, config, &mut store, sender) => match end {
                End::NobodyListens => return,
                End::NoStreamingLists(why) => {
                    info!(kind = %K::KIND, why, "no streaming lists from this server; asking for pages");
                    strategy = InitialListStrategy::ListWatch;
                }
            }
        }
    }
}

/// Why a watcher is given up.
enum End {
    /// The receiver is gone.
    NobodyListens,
    /// The server does not serve streaming lists, because of this.
    NoStreamingLists(String),
}

/// Watches one kind in one way.
async fn run<K>(
    api: Api<Guard<K>>,
    config: Config,
    store: &mut Store<'_, K>,
    sender: &Sender<WatchEvent>,
) -> End
where
    K: Kind + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let is_streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
    let mut events = pin!(watcher(api, config));
    let mut trouble = Trouble::default();
    // Streaming lists begun since one was complete.
    let mut n_begun = 0;
    loop {
        let next = if is_streaming && n_begun > 0 {
            match tokio::time::timeout(STREAM_PATIENCE, events.next()).await {
                Ok(next) => next,
                Err(_) => return End::NoStreamingLists("it was silent for too long".to_owned()),
            }
        } else {
            events.next().await
        };
        match next {
            Some(Ok(event)) => {
                match event {
                    Event::Init if is_streaming => {
                        n_begun += 1;
                        if n_begun > STREAM_ATTEMPTS {
                            return End::NoStreamingLists("it broke off again and again".to_owned());
                        }
                        if n_begun > 1 {
                            tokio::time::sleep(trouble.pause()).await;
                        }
                    }
                    Event::InitDone => n_begun = 0,
                    _ => {}
                }
                if !matches!(event, Event::Init) {
                    trouble.is_over::<K>();
                }
                for event in store.take(event) {
                    if sender.send(event).await.is_err() {
                        return End::NobodyListens;
                    }
                }
            }
            Some(Err(error)) => {
                if is_streaming && let Some(why) = refusal(&error) {
                    return End::NoStreamingLists(why);
                }
                trouble.say::<K>(&error);
                tokio::time::sleep(trouble.pause()).await;
            }
            // The watcher never ends.
            None => return End::NobodyListens,
        }
    }
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
    fn pause(&mut self) -> Duration {
        self.backoff.next().unwrap_or(Duration::from_secs(30))
    }

    /// Aloud the first time, the second, the fourth, ...
    fn say<K: Kind>(&mut self, error: &watcher::Error) {
        self.n_failures += 1;
        let n_failures = self.n_failures;
        let error = error_chain(error);
        if n_failures.is_power_of_two() {
            warn!(kind = %K::KIND, n_failures, error, "watch failed, trying again; the last state stays");
        } else {
            debug!(kind = %K::KIND, n_failures, error, "watch failed, trying again");
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
