//! A client's copy of the objects of a kind, kept by `kube_runtime::watcher`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{Api, Resource};
use kube_runtime::watcher::{Config, Error, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use crate::LIMIT;

/// Objects by `<namespace>/<name>`, and the events of the stream that keeps them.
pub struct Mirror<K> {
    /// The last known objects; during a list, still the state before it.
    pub objects: BTreeMap<String, K>,
    /// Complete lists.
    pub n_lists: usize,
    /// Errors of the watcher, as text.
    pub errors: Vec<String>,
    /// Objects applied or deleted outside of lists, in order: `+a`, `-a`.
    pub steps: Vec<String>,
    listed: BTreeMap<String, K>,
    stream: BoxStream<'static, Result<Event<K>, Error>>,
}

impl<K> Mirror<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Begins to follow `api`.
    pub fn new(api: Api<K>, config: Config) -> Mirror<K> {
        Mirror {
            objects: BTreeMap::new(),
            n_lists: 0,
            errors: Vec::new(),
            steps: Vec::new(),
            listed: BTreeMap::new(),
            stream: watcher(api, config).boxed(),
        }
    }

    /// Follows until `claim` holds; panics after [`LIMIT`].
    pub async fn until(&mut self, what: &str, mut claim: impl FnMut(&Mirror<K>) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !claim(self) {
            if Instant::now() > deadline {
                let names: Vec<_> = self.objects.keys().take(20).collect();
                let Mirror { n_lists, errors, .. } = &self;
                panic!("not {what}: {names:?}, {n_lists} lists, errors {errors:?}");
            }
            // A claim about the server can become true without an event.
            self.follow_for(Duration::from_millis(20), 1).await;
        }
    }

    /// Follows until the first list is complete.
    pub async fn listed(&mut self) {
        self.until("listed", |mirror| mirror.n_lists > 0).await;
    }

    /// Follows for a while, or until `n_events` have come.
    pub async fn follow_for(&mut self, time: Duration, n_events: usize) {
        let deadline = Instant::now() + time;
        for _ in 0..n_events {
            let Ok(next) = timeout_at(deadline, self.stream.next()).await else {
                return;
            };
            self.take(next.expect("a watcher never ends")).await;
        }
    }

    /// Names without namespaces, in order.
    pub fn names(&self) -> Vec<&str> {
        self.objects.keys().map(|key| key.rsplit('/').next().expect("split gives one part")).collect()
    }

    async fn take(&mut self, event: Result<Event<K>, Error>) {
        match event {
            Ok(Event::Init) => self.listed.clear(),
            Ok(Event::InitApply(object)) => drop(self.listed.insert(key(&object), object)),
            Ok(Event::InitDone) => {
                self.objects = std::mem::take(&mut self.listed);
                self.n_lists += 1;
            }
            Ok(Event::Apply(object)) => {
                self.steps.push(format!("+{}", object.meta().name.as_deref().unwrap_or("")));
                self.objects.insert(key(&object), object);
            }
            Ok(Event::Delete(object)) => {
                self.steps.push(format!("-{}", object.meta().name.as_deref().unwrap_or("")));
                self.objects.remove(&key(&object));
            }
            Err(error) => {
                self.errors.push(format!("{error:?}"));
                // The watcher retries as fast as it is polled; an agent backs off here.
                sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

fn key<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    format!("{}/{}", meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
}
