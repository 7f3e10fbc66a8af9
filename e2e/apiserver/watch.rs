//! WATCH: the changes of a kind after a version, as lines of JSON, for as long as the client stays.
//!
//! A watch keeps no queue. It remembers a version and reads on in the store's history whenever it is
//! woken and the client has taken the last chunk, so a slow client costs no memory (and is told 410
//! when the history no longer reaches back to it).

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use futures::stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::answer::{failure, failure_object, stream_body};
use super::events::{Lines, half_of_last_line, line};
use super::fault::{Fault, Setting};
use super::list::{selector, stale, too_large};
use super::object::Key;
use super::request::{Query, Target};
use super::resource::Resource;
use super::selector::Selector;
use super::store::{Change, Objects};
use super::{Pulse, Shared};

/// Events in one chunk.
const BATCH: usize = 256;
/// How long a watch lasts if the client does not say (a real server: 30 to 60 min).
const TIMEOUT_SECONDS: u64 = 1800;
/// A first bookmark comes this early even where the interval is long.
const FIRST_BOOKMARK: Duration = Duration::from_secs(1);

struct Watch {
    shared: Arc<Shared>,
    resource: &'static Resource,
    selector: Selector,
    wants_bookmarks: bool,
    phase: Phase,
    /// Everything up to here has been sent.
    version: u64,
    pulses: watch::Receiver<Pulse>,
    epoch: u64,
    settings: watch::Receiver<Setting>,
    /// The fault whose garbage has been sent.
    garbage_epoch: Option<u64>,
    started: Instant,
    last_bookmark: Option<Instant>,
    deadline: Instant,
}

enum Phase {
    /// Sends the objects of a state, then (as a streaming list) the bookmark that ends them.
    Initial {
        objects: Arc<Objects>,
        after: Option<Key>,
        has_end: bool,
    },
    Follow,
    Over,
}

/// Why a watch went on.
enum Wake {
    Look,
    Bookmark,
    Deadline,
    Down,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.board.count(self.resource.plural, |counts| counts.open_watches -= 1);
    }
}

/// Answers a WATCH request.
pub fn watch(shared: &Arc<Shared>, target: &Target, query: &Query) -> Response<Body> {
    let is_streaming_list = query.claims("sendInitialEvents");
    shared.board.count(target.resource.plural, |counts| {
        counts.watches += 1;
        counts.streaming_lists += u64::from(is_streaming_list);
    });
    match open(shared, target, query) {
        Ok(watch) => stream_body(Body::from_stream(stream::unfold(watch, |mut watch| async move {
            let chunk = watch.next_chunk().await?;
            watch.shared.board.count(watch.resource.plural, |counts| counts.bytes += chunk.len() as u64);
            Some((Ok::<_, io::Error>(chunk), watch))
        }))),
        Err((code, message)) => failure(code, &message),
    }
}

fn open(shared: &Arc<Shared>, target: &Target, query: &Query) -> Result<Watch, (u16, String)> {
    let bad = |message| (400, message);
    let selector = selector(target, query).map_err(bad)?;
    let asked = query.number::<u64>("resourceVersion").map_err(bad)?;
    let seconds = query.number::<u64>("timeoutSeconds").map_err(bad)?.filter(|seconds| *seconds > 0);
    let mut settings = shared.faults.follow();
    let setting = settings.borrow_and_update().clone();
    let fault = setting.on(target.resource.plural);
    let is_streaming_list = check_streaming(query, fault)?;
    let mut pulses = shared.pulse.subscribe();
    let epoch = pulses.borrow_and_update().epoch;
    let (phase, version) = begin(shared, target.resource, asked, is_streaming_list, fault)?;
    shared.board.count(target.resource.plural, |counts| counts.open_watches += 1);
    let started = Instant::now();
    Ok(Watch {
        shared: Arc::clone(shared),
        resource: target.resource,
        selector,
        wants_bookmarks: query.claims("allowWatchBookmarks"),
        phase,
        version,
        pulses,
        epoch,
        settings,
        garbage_epoch: None,
        started,
        last_bookmark: None,
        deadline: started + Duration::from_secs(seconds.unwrap_or(TIMEOUT_SECONDS).min(1 << 20)),
    })
}

/// What a watch sends first, and the version up to which that leads.
fn begin(
    shared: &Shared,
    resource: &Resource,
    asked: Option<u64>,
    is_streaming_list: bool,
    fault: Option<&Fault>,
) -> Result<(Phase, u64), (u16, String)> {
    let store = shared.store();
    let is_any = asked == Some(0);
    let asked = asked.unwrap_or(0);
    if is_streaming_list && asked > store.version() {
        return Err(too_large(asked, store.version()));
    }
    // Version 0 or none without a list: the state as it is comes first, too.
    if !is_streaming_list && asked > 0 {
        return Ok((Phase::Follow, asked));
    }
    if let Some(Fault::StaleList { .. }) = fault {
        shared.faults.met();
    }
    let (objects, version) = match fault {
        Some(Fault::StaleList { at }) if is_any => stale(&store, resource, *at),
        _ => (store.state(resource), store.version()),
    };
    Ok((Phase::Initial { objects, after: None, has_end: is_streaming_list }, version))
}

/// Whether a streaming list is wanted and served.
fn check_streaming(query: &Query, fault: Option<&Fault>) -> Result<bool, (u16, String)> {
    let invalid = |message: &str| Err((422, message.to_owned()));
    let rule = query.text("resourceVersionMatch");
    if query.text("sendInitialEvents").is_empty() {
        if rule.is_empty() {
            return Ok(false);
        }
        return invalid(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    }
    match fault {
        Some(Fault::RefuseStreamingLists) => invalid(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        ),
        Some(Fault::IgnoreStreamingLists) => Ok(false),
        _ if rule != "NotOlderThan" => invalid(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        _ => Ok(query.claims("sendInitialEvents")),
    }
}

impl Watch {
    /// The next bytes to send; `None` ends the stream as a server does that shuts down in order.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        loop {
            let pulse = *self.pulses.borrow_and_update();
            let setting = self.settings.borrow_and_update().clone();
            if pulse.epoch != self.epoch || matches!(self.phase, Phase::Over) {
                return None;
            }
            let fault = setting.on(self.resource.plural);
            if let Some(chunk) = self.fault_chunk(fault, setting.epoch) {
                return Some(chunk);
            }
            let chunk = match (&self.phase, fault) {
                (Phase::Initial { .. }, _) => self.initial_chunk(),
                // Who was given the past hears no more until the server knows more itself.
                (_, Some(Fault::StaleList { at })) if self.version <= *at => Bytes::new(),
                _ => self.changes_chunk(),
            };
            if !chunk.is_empty() {
                return Some(self.perhaps_half(chunk, fault));
            }
            match self.wait(pulse.bookmark_every).await {
                Wake::Look => {}
                Wake::Bookmark => return Some(self.bookmark(false)),
                Wake::Deadline => {
                    self.phase = Phase::Over;
                    if self.wants_bookmarks {
                        return Some(self.bookmark(false));
                    }
                }
                Wake::Down => return None,
            }
        }
    }

    async fn wait(&mut self, bookmark_every: Duration) -> Wake {
        let bookmark = match self.last_bookmark {
            Some(last) => last + bookmark_every,
            None => self.started + bookmark_every.min(FIRST_BOOKMARK),
        };
        tokio::select! {
            changed = self.pulses.changed() => if changed.is_ok() { Wake::Look } else { Wake::Down },
            changed = self.settings.changed() => if changed.is_ok() { Wake::Look } else { Wake::Down },
            () = sleep_until(bookmark), if self.wants_bookmarks => Wake::Bookmark,
            () = sleep_until(self.deadline) => Wake::Deadline,
        }
    }

    /// What the fault in force sends by itself.
    fn fault_chunk(&mut self, fault: Option<&Fault>, epoch: u64) -> Option<Bytes> {
        match fault {
            // A list of the state as it is stays possible, or nobody could ever catch up.
            Some(Fault::Gone) if matches!(self.phase, Phase::Follow) => {
                self.shared.faults.met();
                Some(self.gone(self.version + 1))
            }
            Some(Fault::Garbage(bytes)) if self.garbage_epoch != Some(epoch) => {
                self.shared.faults.met();
                self.garbage_epoch = Some(epoch);
                Some([bytes.as_slice(), b"\n"].concat().into())
            }
            _ => None,
        }
    }

    /// The next objects of the initial state, and after the last of them the bookmark.
    fn initial_chunk(&mut self) -> Bytes {
        let Phase::Initial { objects, after, has_end } = &mut self.phase else {
            return Bytes::new();
        };
        let from = after.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut lines = Lines::default();
        for (key, object) in objects.range((from, Bound::Unbounded)) {
            if self.selector.matches(object) {
                lines.push("ADDED", object.bytes());
            }
            if lines.n_events == BATCH {
                *after = Some(key.clone());
                break;
            }
        }
        if after.is_some() {
            return self.sent(lines);
        }
        let has_end = *has_end;
        self.phase = Phase::Follow;
        let mut chunk = self.sent(lines).to_vec();
        if has_end && self.wants_bookmarks {
            chunk.extend_from_slice(&self.bookmark(true));
        }
        chunk.into()
    }

    /// The changes since the last ones; empty if there are none that the client wants.
    fn changes_chunk(&mut self) -> Bytes {
        loop {
            let batch = {
                let store = self.shared.store();
                store.changes_after(self.resource, self.version, BATCH)
            };
            let (changes, upto) = match batch {
                Ok(batch) => batch,
                Err(gone) => return self.gone(gone.floor),
            };
            let mut lines = Lines::default();
            for change in &changes {
                self.push_change(&mut lines, change);
            }
            self.version = upto;
            if changes.len() < BATCH || lines.n_events > 0 {
                return self.sent(lines);
            }
        }
    }

    /// Writes a change as the selector sees it: what begins to match is added, what no longer does
    /// is deleted.
    fn push_change(&self, lines: &mut Lines, change: &Change) {
        let matched = change.before.as_ref().is_some_and(|object| self.selector.matches(object));
        let matching = change.after.as_ref().filter(|object| self.selector.matches(object));
        match (matched, matching) {
            (false, Some(object)) => lines.push("ADDED", object.bytes()),
            (true, Some(object)) => lines.push("MODIFIED", object.bytes()),
            (true, None) => lines.push("DELETED", change.deleted(self.resource)),
            (false, None) => {}
        }
    }

    fn sent(&self, lines: Lines) -> Bytes {
        if lines.n_events > 0 {
            self.shared.board.count(self.resource.plural, |counts| counts.events += lines.n_events as u64);
        }
        lines.bytes.into()
    }

    fn bookmark(&mut self, is_end_of_list: bool) -> Bytes {
        let mut metadata = json!({ "resourceVersion": self.version.to_string(), "creationTimestamp": null });
        if is_end_of_list {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let Resource { kind, api_version, plural, .. } = self.resource;
        let object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
        self.last_bookmark = Some(Instant::now());
        self.shared.board.count(plural, |counts| counts.bookmarks += 1);
        line("BOOKMARK", object.to_string().as_bytes())
    }

    /// The event that tells the client to list again; nothing follows it.
    fn gone(&mut self, floor: u64) -> Bytes {
        self.phase = Phase::Over;
        self.shared.board.count(self.resource.plural, |counts| counts.gone += 1);
        let message = format!("too old resource version: {} ({floor})", self.version);
        line("ERROR", failure_object(410, &message).to_string().as_bytes())
    }

    fn perhaps_half(&mut self, chunk: Bytes, fault: Option<&Fault>) -> Bytes {
        if fault != Some(&Fault::HalfObject) {
            return chunk;
        }
        self.shared.faults.met();
        self.phase = Phase::Over;
        half_of_last_line(&chunk)
    }
}
