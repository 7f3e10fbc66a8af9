//! An API server, watched: Services, EndpointSlices and this node's Node.
//!
//! Each kind is listed and then watched from the list's version on. The list is a streaming one, as
//! kube-proxy's: one object after another, which spares the server's memory and ours; a server that
//! refuses it, or never ends it, is asked for a plain list, from its memory (`query`). Objects are
//! decoded as they arrive; nothing else of them is kept (`store`). Whatever fails is tried again, for
//! ever, with back-off; meanwhile the last state stays. A watch that is quiet goes well: that its
//! connection lives is the connection's business (`link`).

mod backoff;
mod client;
#[cfg(test)]
pub mod fake;
mod freshness;
mod guard;
mod gzip;
mod link;
mod observer;
mod origin;
mod proxy;
mod query;
mod reading;
mod renewal;
mod store;
mod token;
mod transport;
mod trouble;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::Duration;

use futures::AsyncBufRead;
use kube::Resource;
use kube::api::WatchEvent as Line;
use kube_runtime::watcher::Event;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tracing::info;

use super::WatchEvent;
use crate::model::decode::{ApiNode, ApiService, ApiSlice, Interner};
pub use client::{Connection, connect};
pub use freshness::Freshness;
use guard::Guard;
pub use observer::{Exchange, Observer};
use query::{Asking, Query, Version};
use reading::{End, Items, Lines};
use store::{Kind, Store};
pub use transport::Limit;
use trouble::{Cause, Fault, Trouble};

/// How long to wait for what should come soon.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For the beginning of a streaming list; then another list is asked for. A server that has lost
    /// etcd would not begin it.
    head: Duration,
    /// For the next object of a streaming list; then another list is asked for.
    object: Duration,
    /// For the next item of a list, or the beginning of a watch. An API server gives up after 60 s
    /// itself.
    item: Duration,
}

/// A streaming list that pauses for 5 s comes from a server that does not know where it ends (before
/// Kubernetes 1.27), or from one that is better asked for a plain list.
const PATIENCE: Patience =
    Patience { head: Duration::from_secs(20), object: Duration::from_secs(5), item: Duration::from_secs(75) };

/// How many streaming lists may fail in a row before a plain list is asked for, once.
const STREAM_ATTEMPTS: u32 = 3;

/// For how long a server that does not serve streaming lists is not asked for them: it may be another
/// release by then.
const NO_STREAMING_FOR: Duration = Duration::from_secs(60 * 60);

/// How long a watch lasts, in seconds: somewhere in here, so that watches begun together (a server
/// that came back, a DaemonSet rolled out) do not end together for ever. Source: client-go's
/// reflector, v0.36.
const WATCH_SECONDS: RangeInclusive<u32> = 300..=600;

/// How much longer a watch may last than it was asked to: then its end was lost.
const OVERDUE: Duration = Duration::from_secs(30);

/// A watch that has been open for this long goes well, even if nothing came.
const GOES_WELL: Duration = Duration::from_secs(5);

/// Sends the cluster's state as `connection` sees it, then follows it until the receiver is gone. Of
/// Nodes, only the one called `node` is watched.
pub async fn follow(connection: Connection, node: String, sender: Sender<WatchEvent>) {
    follow_with(connection, node, sender, PATIENCE).await;
}

async fn follow_with(connection: Connection, node: String, sender: Sender<WatchEvent>, patience: Patience) {
    let interner = Mutex::new(Interner::default());
    let kinds = async {
        tokio::join!(
            follow_kind::<ApiService>(&connection, &node, &interner, &sender, patience),
            follow_kind::<ApiSlice>(&connection, &node, &interner, &sender, patience),
            follow_kind::<ApiNode>(&connection, &node, &interner, &sender, patience),
        )
    };
    tokio::select! {
        _ = kinds => {}
        () = keep_house(&connection) => {}
    }
}

/// Does, for ever, what is to be done although nothing comes and nothing is sent.
async fn keep_house(connection: &Connection) {
    loop {
        tokio::time::sleep(renewal::LOOK_EVERY).await;
        connection.freshness.log();
        if let Some(renewal) = &connection.renewal {
            renewal.current().await;
        }
    }
}

async fn follow_kind<K>(
    connection: &Connection,
    node: &str,
    interner: &Mutex<Interner>,
    sender: &Sender<WatchEvent>,
    patience: Patience,
) where
    K: Kind + Send + 'static,
{
    let query = Query {
        path: K::Api::url_path(&(), None),
        labels: K::LABELS.map(str::to_owned),
        fields: K::fields(node),
    };
    let follower = Follower {
        connection,
        query,
        store: Store::<K>::new(interner),
        trouble: Trouble::default(),
        version: Version::Unknown,
        n_moves: 0,
        n_streams_failed: 0,
        no_streaming_until: None,
        sender,
        patience,
    };
    tokio::select! {
        () = sender.closed() => {}
        () = follower.run() => {}
    }
}

/// What follows one kind of object.
struct Follower<'a, K: Kind> {
    connection: &'a Connection,
    query: Query,
    store: Store<'a, K>,
    trouble: Trouble,
    version: Version,
    /// [`Connection::n_moves`] when the last list was begun.
    n_moves: u64,
    /// Streaming lists that failed since a list was complete.
    n_streams_failed: u32,
    no_streaming_until: Option<Instant>,
    sender: &'a Sender<WatchEvent>,
    patience: Patience,
}

/// How far a follower is.
enum Place {
    /// It has to list.
    List,
    /// It knows everything up to its version, and is to watch.
    Listed,
    /// A watch is open that ends, at the latest, at this time.
    Watching(Lines, Instant),
}

impl<K> Follower<'_, K>
where
    K: Kind + Send + 'static,
{
    /// Lists and watches until the receiver is gone.
    async fn run(mut self) {
        let mut place = Place::List;
        loop {
            if matches!(place, Place::List | Place::Listed) && self.has_moved().await {
                // A watch from the old server's version may be silent until it ends.
                self.version = Version::Unusable;
                place = Place::List;
            }
            let went = match place {
                Place::List if self.streams() => self.list_streaming().await,
                Place::List => self.list().await.map(|()| Place::Listed),
                Place::Listed => self.open_watch().await,
                Place::Watching(ref mut lines, end) => {
                    let went = self.watch(lines, end).await;
                    self.connection.freshness.is_left_behind(K::KIND);
                    went.map(|()| Place::Listed)
                }
            };
            place = match went {
                Ok(next) => next,
                Err(Fault::ReceiverGone) => return,
                Err(fault) => self.get_over(fault, place).await,
            };
        }
    }

    /// Whether another server has to be listed than the one that was listed last.
    async fn has_moved(&mut self) -> bool {
        let n_moves = self.connection.n_moves().await;
        std::mem::replace(&mut self.n_moves, n_moves) != n_moves
    }

    /// Whether the next list is to be a streaming one.
    fn streams(&self) -> bool {
        self.n_streams_failed < STREAM_ATTEMPTS
            && self.no_streaming_until.is_none_or(|until| until <= Instant::now())
    }

    /// Does what has to be done after `fault`; where to go on.
    async fn get_over(&mut self, fault: Fault, place: Place) -> Place {
        let is_list = matches!(place, Place::List);
        let is_streaming = is_list && self.streams();
        let (error, cause) = match fault {
            Fault::NoStreaming(why) => {
                info!(kind = %K::KIND, why, "server does not serve streaming lists; sending plain lists");
                self.no_streaming_until = Some(Instant::now() + NO_STREAMING_FOR);
                return Place::List;
            }
            Fault::Silent(error) => {
                self.n_streams_failed = STREAM_ATTEMPTS;
                (error, Cause::Other)
            }
            // A list of the last version seen, or a newer one, is served where a watch from it is not.
            Fault::Version(error) => {
                if is_list {
                    self.version = Version::Unusable;
                }
                self.trouble.endure(K::KIND, self.connection, &error, Cause::Gone).await;
                return Place::List;
            }
            Fault::Unreadable(error) => {
                self.trouble.endure(K::KIND, self.connection, &error, Cause::Other).await;
                return Place::List;
            }
            Fault::Other(error, cause) => (error, cause),
            Fault::ReceiverGone => return place,
        };
        self.n_streams_failed += u32::from(is_streaming && cause != Cause::Unreachable);
        self.trouble.endure(K::KIND, self.connection, &error, cause).await;
        if is_list { Place::List } else { Place::Listed }
    }

    /// Lists by a watch that begins with everything there is.
    async fn list_streaming(&mut self) -> Result<Place, Fault> {
        let seconds = fastrand::u32(WATCH_SECONDS);
        let request = self.query.streaming(&self.version, seconds);
        let end = Instant::now() + Duration::from_secs(seconds.into()) + OVERDUE;
        let mut lines = match tokio::time::timeout(self.patience.head, self.open(request, true)).await {
            Ok(reader) => Lines::new(reader?),
            Err(_) => return Err(Fault::Silent("no answer to a streaming list".to_owned())),
        };
        self.take(Event::Init).await?;
        let mut n_lines = 0;
        loop {
            let next = match tokio::time::timeout(self.patience.object, self.event(&mut lines, true)).await {
                Err(_) if n_lines == 0 => return Err(Fault::Silent("a streaming list was empty".to_owned())),
                Err(_) => return Err(Fault::NoStreaming("a streaming list did not end".to_owned())),
                Ok(next) => next?,
            };
            n_lines += 1;
            match next {
                // So ends what a server that has lost etcd makes of it.
                None if n_lines == 1 => return Err(Fault::Silent("a streaming list was empty".to_owned())),
                None => return Err(Fault::Other("a streaming list broke off".to_owned(), Cause::Other)),
                Some(Line::Added(object) | Line::Modified(object)) => {
                    self.take(Event::InitApply(object)).await?;
                }
                Some(Line::Bookmark(bookmark)) => {
                    if bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") {
                        self.listed(bookmark.metadata.resource_version).await?;
                        return Ok(Place::Watching(lines, end));
                    }
                }
                Some(Line::Deleted(_) | Line::Error(_)) => {
                    return Err(Fault::Unreadable("a streaming list deletes what it lists".to_owned()));
                }
            }
        }
    }

    /// Lists by a request.
    async fn list(&mut self) -> Result<(), Fault> {
        let request = self.query.list(&self.version);
        let mut items = Items::new(self.open(request, false).await?);
        self.take(Event::Init).await?;
        loop {
            let next = tokio::time::timeout(self.patience.item, items.next()).await;
            let item = next
                .map_err(|_| Fault::Other("a list stood still".to_owned(), Cause::Other))?
                .map_err(|error| Fault::broken_off(&error))?;
            let Some(item) = item else { break };
            let object = serde_json::from_slice(item).map_err(|error| unreadable("a list", &error))?;
            self.take(Event::InitApply(object)).await?;
        }
        let End { resource_version, continuation } =
            items.end().map_err(|error| unreadable("a list", &error))?;
        if !continuation.is_empty() {
            return Err(Fault::Unreadable("a list was not whole".to_owned()));
        }
        self.listed(resource_version).await
    }

    /// A list is complete, as of `version`.
    async fn listed(&mut self, version: String) -> Result<(), Fault> {
        if version.is_empty() {
            return Err(Fault::Unreadable("a list has no version".to_owned()));
        }
        self.version = Version::Seen(version);
        self.n_streams_failed = 0;
        self.goes_well();
        self.take(Event::InitDone).await
    }

    /// Asks for what changes after the version that is known.
    async fn open_watch(&mut self) -> Result<Place, Fault> {
        let Version::Seen(version) = &self.version else { return Ok(Place::List) };
        let seconds = fastrand::u32(WATCH_SECONDS);
        let request = self.query.watch(version, seconds);
        let reader = tokio::time::timeout(self.patience.item, self.open(request, false)).await;
        let reader = reader.map_err(|_| Fault::Other("no answer to a watch".to_owned(), Cause::Other))?;
        let end = Instant::now() + Duration::from_secs(seconds.into()) + OVERDUE;
        Ok(Place::Watching(Lines::new(reader?), end))
    }

    /// Passes on what changes, until the watch ends in order.
    async fn watch(&mut self, lines: &mut Lines, end: Instant) -> Result<(), Fault> {
        let mut check = Some(Instant::now() + GOES_WELL);
        loop {
            let next = match tokio::time::timeout_at(check.unwrap_or(end), self.event(lines, false)).await {
                Ok(next) => next?,
                Err(_) if check.take().is_some() => {
                    self.goes_well();
                    continue;
                }
                Err(_) => return Ok(()),
            };
            let Some(next) = next else { return Ok(()) };
            check = None;
            self.goes_well();
            let event = match next {
                Line::Added(object) | Line::Modified(object) => Event::Apply(object),
                Line::Deleted(object) => Event::Delete(object),
                Line::Bookmark(bookmark) => {
                    let version = bookmark.metadata.resource_version;
                    if !version.is_empty() {
                        self.version = Version::Seen(version);
                    }
                    continue;
                }
                Line::Error(status) => return Err(Fault::of(&status, false)),
            };
            let (Event::Apply(object) | Event::Delete(object)) = &event else { continue };
            match object.resource_version() {
                Some(version) if !version.is_empty() => self.version = Version::Seen(version.to_owned()),
                _ => return Err(Fault::Unreadable("a changed object has no version".to_owned())),
            }
            self.take(event).await?;
        }
    }

    /// Nothing is wrong any more.
    fn goes_well(&mut self) {
        self.trouble.is_over(K::KIND);
        self.connection.freshness.is_current(K::KIND);
    }

    async fn open(&self, request: Asking, is_streaming: bool) -> Result<impl AsyncBufRead + use<K>, Fault> {
        let request = request.map_err(|error| Fault::broken_off(&error))?;
        let answer = self.connection.client.request_stream(request).await;
        answer.map_err(|error| Fault::from_request(&error, is_streaming))
    }

    /// The next event of a watch; `None` at its end.
    async fn event(&self, lines: &mut Lines, is_streaming: bool) -> Result<Option<Line<Guard<K>>>, Fault> {
        let Some(line) = lines.next().await.map_err(|error| Fault::broken_off(&error))? else {
            return Ok(None);
        };
        match serde_json::from_slice(line) {
            Ok(Line::Error(status)) => Err(Fault::of(&status, is_streaming)),
            Ok(event) => Ok(Some(event)),
            Err(error) => Err(unreadable("a watch", &error)),
        }
    }

    async fn take(&mut self, event: Event<Guard<K>>) -> Result<(), Fault> {
        for event in self.store.take(event) {
            self.sender.send(event).await.map_err(|_| Fault::ReceiverGone)?;
        }
        Ok(())
    }
}

/// What came is no JSON, or not what it should be.
fn unreadable(what: &str, error: &serde_json::Error) -> Fault {
    Fault::Unreadable(format!("cannot read {what}: {error}"))
}

#[cfg(test)]
mod tests;
