//! Lists and watches one kind of object, from list to watch to list again.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::Duration;

use futures::AsyncBufRead;
use kube::Resource;
use kube::api::WatchEvent as RawEvent;
use kube_runtime::watcher::Event;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tracing::info;

use super::client::Connection;
use super::failure::{FailureCause, FailureStreak, WatchFailure};
use super::framing::{EventLines, ListItems, ListMetadata};
use super::query::{BuiltRequest, KnownVersion, ListQuery};
use super::received::ReceivedObject;
use super::tracker::{KindTracker, WatchedKind};
use crate::model::decode::Interner;
use crate::watch::WatchEvent;

/// How long to wait for the server at each step.
#[derive(Clone, Copy, Debug)]
pub struct WatchTimeouts {
    /// For the response headers of a streaming list; then a plain list is requested. A server without etcd
    /// never sends them.
    pub list_start: Duration,
    /// For the next object of a streaming list; then a plain list is requested.
    pub next_object: Duration,
    /// For the next item of a plain list, or the response headers of a watch. An API server aborts a request
    /// after 60 s itself.
    pub next_item: Duration,
}

/// A streaming list that pauses for 5 s comes from a server that never marks its end (before Kubernetes 1.27), or
/// from one that answers a plain list sooner.
pub const WATCH_TIMEOUTS: WatchTimeouts = WatchTimeouts {
    list_start: Duration::from_secs(20),
    next_object: Duration::from_secs(5),
    next_item: Duration::from_secs(75),
};

/// How many streaming lists may fail in a row before one plain list is requested.
const MAX_STREAM_FAILURES: u32 = 3;

/// How long no streaming list is requested from a server that does not support it. The server may be upgraded
/// in the meantime.
const NO_STREAMING_FOR: Duration = Duration::from_secs(60 * 60);

/// Duration of a watch in seconds, chosen at random from this range. Watches that begin together, after an
/// outage or a rollout of the DaemonSet, then end at different times. Source: client-go's reflector, v0.36.
pub const WATCH_SECONDS: RangeInclusive<u32> = 300..=600;

/// A watch that exceeds its requested duration by this much counts as ended: the server's end was lost.
const OVERDUE: Duration = Duration::from_secs(30);

/// A watch that stays open this long counts as healthy, even without an event.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// Lists and watches kind `K` until the receiver is dropped.
pub async fn follow_kind<K>(
    connection: &Connection,
    node: &str,
    interner: &Mutex<Interner>,
    sender: &Sender<WatchEvent>,
    timeouts: WatchTimeouts,
) where
    K: WatchedKind + Send + 'static,
{
    let query = ListQuery {
        path: K::Api::url_path(&(), None),
        labels: K::LABELS.map(str::to_owned),
        fields: K::fields(node),
    };
    let follower = KindFollower {
        connection,
        query,
        tracker: KindTracker::<K>::new(interner),
        failures: FailureStreak::default(),
        version: KnownVersion::None,
        n_server_changes: 0,
        n_streams_failed: 0,
        no_streaming_until: None,
        sender,
        timeouts,
    };
    tokio::select! {
        () = sender.closed() => {}
        () = follower.run() => {}
    }
}

struct KindFollower<'a, K: WatchedKind> {
    connection: &'a Connection,
    query: ListQuery,
    tracker: KindTracker<'a, K>,
    failures: FailureStreak,
    version: KnownVersion,
    /// [`Connection::n_server_changes`] when the last list began.
    n_server_changes: u64,
    /// Streaming lists that failed since the last complete list.
    n_streams_failed: u32,
    no_streaming_until: Option<Instant>,
    sender: &'a Sender<WatchEvent>,
    timeouts: WatchTimeouts,
}

/// What a follower does next.
enum FollowStep {
    /// List: no usable version is known.
    List,
    /// Open a watch from the known version.
    OpenWatch,
    /// Read this open watch, until this time at the latest.
    ReadWatch(EventLines, Instant),
}

impl<K> KindFollower<'_, K>
where
    K: WatchedKind + Send + 'static,
{
    /// Lists and watches until the receiver is dropped.
    async fn run(mut self) {
        let mut step = FollowStep::List;
        loop {
            if matches!(step, FollowStep::List | FollowStep::OpenWatch) && self.has_server_changed().await {
                // Versions of two servers are unrelated: a watch from the old version may stay silent.
                self.version = KnownVersion::Unservable;
                step = FollowStep::List;
            }
            let result = match step {
                FollowStep::List if self.may_stream() => self.list_streaming().await,
                FollowStep::List => self.list_plain().await.map(|()| FollowStep::OpenWatch),
                FollowStep::OpenWatch => self.open_watch().await,
                FollowStep::ReadWatch(ref mut lines, end) => {
                    let result = self.read_watch(lines, end).await;
                    self.connection.freshness.mark_stale(K::KIND);
                    result.map(|()| FollowStep::OpenWatch)
                }
            };
            step = match result {
                Ok(next) => next,
                Err(WatchFailure::ReceiverGone) => return,
                Err(failure) => self.recover(failure, step).await,
            };
        }
    }

    /// Whether the configuration has named another server since the last list.
    async fn has_server_changed(&mut self) -> bool {
        let n_server_changes = self.connection.n_server_changes().await;
        std::mem::replace(&mut self.n_server_changes, n_server_changes) != n_server_changes
    }

    /// Whether the next list is a streaming list.
    fn may_stream(&self) -> bool {
        self.n_streams_failed < MAX_STREAM_FAILURES
            && self.no_streaming_until.is_none_or(|until| until <= Instant::now())
    }

    /// Logs `failure`, waits for the back-off and returns the next step.
    async fn recover(&mut self, failure: WatchFailure, step: FollowStep) -> FollowStep {
        let is_list = matches!(step, FollowStep::List);
        let is_streaming = is_list && self.may_stream();
        let (error, cause) = match failure {
            WatchFailure::NoStreaming(error) => {
                info!(kind = %K::KIND, error, "server does not support streaming lists; sending plain lists");
                self.no_streaming_until = Some(Instant::now() + NO_STREAMING_FOR);
                return FollowStep::List;
            }
            WatchFailure::StreamStalled(error) => {
                self.n_streams_failed = MAX_STREAM_FAILURES;
                (error, FailureCause::Other)
            }
            // The server may reject a watch from a version and still serve a list not older than it.
            WatchFailure::VersionUnavailable(error) => {
                if is_list {
                    self.version = KnownVersion::Unservable;
                }
                self.failures.wait_to_retry(K::KIND, self.connection, &error, FailureCause::Gone).await;
                return FollowStep::List;
            }
            WatchFailure::Unreadable(error) => {
                self.failures.wait_to_retry(K::KIND, self.connection, &error, FailureCause::Other).await;
                return FollowStep::List;
            }
            WatchFailure::Other(error, cause) => (error, cause),
            WatchFailure::ReceiverGone => return step,
        };
        self.n_streams_failed += u32::from(is_streaming && cause != FailureCause::Unreachable);
        self.failures.wait_to_retry(K::KIND, self.connection, &error, cause).await;
        if is_list { FollowStep::List } else { FollowStep::OpenWatch }
    }

    /// Lists by a watch that begins with all existing objects; the same response continues as the watch.
    async fn list_streaming(&mut self) -> Result<FollowStep, WatchFailure> {
        let seconds = fastrand::u32(WATCH_SECONDS);
        let request = self.query.streaming(&self.version, seconds);
        let end = Instant::now() + Duration::from_secs(seconds.into()) + OVERDUE;
        let mut lines = match tokio::time::timeout(self.timeouts.list_start, self.open(request, true)).await {
            Ok(reader) => EventLines::new(reader?),
            Err(_) => return Err(WatchFailure::stalled("no response to a streaming list")),
        };
        self.send(Event::Init).await?;
        let mut n_lines = 0;
        let empty = || WatchFailure::stalled("a streaming list is empty");
        loop {
            let next = tokio::time::timeout(self.timeouts.next_object, self.next_event(&mut lines, true));
            let next = match next.await {
                Err(_) if n_lines == 0 => return Err(empty()),
                Err(_) => {
                    return Err(WatchFailure::NoStreaming("a streaming list has no end mark".to_owned()));
                }
                Ok(next) => next?,
            };
            n_lines += 1;
            match next {
                // A server that has lost etcd ends a streaming list without an object.
                None if n_lines == 1 => return Err(empty()),
                None => return Err(WatchFailure::other("a streaming list is cut off")),
                Some(RawEvent::Added(object) | RawEvent::Modified(object)) => {
                    self.send(Event::InitApply(object)).await?;
                }
                Some(RawEvent::Bookmark(bookmark)) => {
                    if bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") {
                        self.complete_list(bookmark.metadata.resource_version).await?;
                        return Ok(FollowStep::ReadWatch(lines, end));
                    }
                }
                Some(RawEvent::Deleted(_) | RawEvent::Error(_)) => {
                    return Err(WatchFailure::unreadable("a streaming list deletes an object"));
                }
            }
        }
    }

    /// Lists by one plain request.
    async fn list_plain(&mut self) -> Result<(), WatchFailure> {
        let request = self.query.list(&self.version);
        let mut items = ListItems::new(self.open(request, false).await?);
        self.send(Event::Init).await?;
        loop {
            let next = tokio::time::timeout(self.timeouts.next_item, items.next()).await;
            let item = next
                .map_err(|_| WatchFailure::other("a list stalled"))?
                .map_err(|error| WatchFailure::cut_off(&error))?;
            let Some(item) = item else { break };
            let object = serde_json::from_slice(item).map_err(|error| unreadable("a list", &error))?;
            self.send(Event::InitApply(object)).await?;
        }
        let ListMetadata { resource_version, continuation } =
            items.end().map_err(|error| unreadable("a list", &error))?;
        if !continuation.is_empty() {
            return Err(WatchFailure::unreadable("a list is not complete"));
        }
        self.complete_list(resource_version).await
    }

    /// Records that a list is complete as of `version`.
    async fn complete_list(&mut self, version: String) -> Result<(), WatchFailure> {
        if version.is_empty() {
            return Err(WatchFailure::unreadable("a list has no version"));
        }
        self.version = KnownVersion::Seen(version);
        self.n_streams_failed = 0;
        self.mark_healthy();
        self.send(Event::InitDone).await
    }

    /// Requests a watch from the known version.
    async fn open_watch(&mut self) -> Result<FollowStep, WatchFailure> {
        let KnownVersion::Seen(version) = &self.version else { return Ok(FollowStep::List) };
        let seconds = fastrand::u32(WATCH_SECONDS);
        let request = self.query.watch(version, seconds);
        let reader = tokio::time::timeout(self.timeouts.next_item, self.open(request, false)).await;
        let reader = reader.map_err(|_| WatchFailure::other("no response to a watch"))?;
        let end = Instant::now() + Duration::from_secs(seconds.into()) + OVERDUE;
        Ok(FollowStep::ReadWatch(EventLines::new(reader?), end))
    }

    /// Sends on every change until the server ends the watch, or until `end`.
    async fn read_watch(&mut self, lines: &mut EventLines, end: Instant) -> Result<(), WatchFailure> {
        let mut healthy_at = Some(Instant::now() + HEALTHY_AFTER);
        loop {
            let limit = healthy_at.unwrap_or(end);
            let next = match tokio::time::timeout_at(limit, self.next_event(lines, false)).await {
                Ok(next) => next?,
                Err(_) if healthy_at.take().is_some() => {
                    self.mark_healthy();
                    continue;
                }
                Err(_) => return Ok(()),
            };
            let Some(next) = next else { return Ok(()) };
            healthy_at = None;
            self.mark_healthy();
            let event = match next {
                RawEvent::Added(object) | RawEvent::Modified(object) => Event::Apply(object),
                RawEvent::Deleted(object) => Event::Delete(object),
                RawEvent::Bookmark(bookmark) => {
                    let version = bookmark.metadata.resource_version;
                    if !version.is_empty() {
                        self.version = KnownVersion::Seen(version);
                    }
                    continue;
                }
                RawEvent::Error(status) => return Err(WatchFailure::from_status(&status, false)),
            };
            let (Event::Apply(object) | Event::Delete(object)) = &event else { continue };
            match object.resource_version() {
                Some(version) if !version.is_empty() => {
                    self.version = KnownVersion::Seen(version.to_owned());
                }
                _ => return Err(WatchFailure::unreadable("a changed object has no version")),
            }
            self.send(event).await?;
        }
    }

    /// Ends a streak of failures and marks the kind as current.
    fn mark_healthy(&mut self) {
        self.failures.end(K::KIND);
        self.connection.freshness.mark_current(K::KIND);
    }

    async fn open(
        &self,
        request: BuiltRequest,
        is_streaming: bool,
    ) -> Result<impl AsyncBufRead + use<K>, WatchFailure> {
        let request = request.map_err(|error| WatchFailure::cut_off(&error))?;
        let response = self.connection.client.request_stream(request).await;
        response.map_err(|error| WatchFailure::from_request(&error, is_streaming))
    }

    /// The next event of a watch; `None` at its end.
    async fn next_event(
        &self,
        lines: &mut EventLines,
        is_streaming: bool,
    ) -> Result<Option<RawEvent<ReceivedObject<K>>>, WatchFailure> {
        let Some(line) = lines.next().await.map_err(|error| WatchFailure::cut_off(&error))? else {
            return Ok(None);
        };
        match serde_json::from_slice(line) {
            Ok(RawEvent::Error(status)) => Err(WatchFailure::from_status(&status, is_streaming)),
            Ok(event) => Ok(Some(event)),
            Err(error) => Err(unreadable("a watch", &error)),
        }
    }

    async fn send(&mut self, event: Event<ReceivedObject<K>>) -> Result<(), WatchFailure> {
        for event in self.tracker.apply(event) {
            self.sender.send(event).await.map_err(|_| WatchFailure::ReceiverGone)?;
        }
        Ok(())
    }
}

/// The failure for text that is not JSON, or not the expected object.
fn unreadable(what: &str, error: &serde_json::Error) -> WatchFailure {
    WatchFailure::Unreadable(format!("cannot read {what}: {error}"))
}
