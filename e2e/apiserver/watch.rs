//! WATCH: the changes of a kind after a version, as lines of JSON, for as long as the client stays.
//!
//! A watch keeps no queue. It records a version and reads on in the store's history when it is
//! woken and the client has read the last chunk, so a slow client costs no memory (and gets 410
//! when the history no longer reaches back to its version).

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response};
use futures::stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::answer::{Refusal, accepts_gzip, compressed, stream_body};
use super::begin::{Begin, begin_at, check_streaming};
use super::events::{Lines, Zip, half_of_last_line, line};
use super::fault::{Fault, Setting};
use super::list::{selector, version, wait_for_version};
use super::object::Key;
use super::request::{Query, Target};
use super::resource::Resource;
use super::selector::Selector;
use super::store::{Change, Objects};
use super::{Etcd, Pulse, Shared};

/// Events in one chunk.
const BATCH: usize = 256;
/// How long a watch lasts without a limit from the client (a real server: 30 to 60 min).
const TIMEOUT_SECONDS: u64 = 1800;
/// Bookmarks come this long before the end of a watch, so that the next one can begin close to it.
const BEFORE_THE_END: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(1)];

struct Watch {
    shared: Arc<Shared>,
    resource: &'static Resource,
    selector: Selector,
    wants_bookmarks: bool,
    phase: Phase,
    /// All changes up to here have been sent.
    version: u64,
    pulses: watch::Receiver<Pulse>,
    epoch: u64,
    settings: watch::Receiver<Setting>,
    /// The fault whose garbage has been sent.
    garbage_epoch: Option<u64>,
    /// When the last bookmark was due; at first the begin of the watch.
    last_bookmark: Instant,
    /// The first version of changes: the requested one, or that of the initial state.
    begun_at: u64,
    deadline: Instant,
}

/// The progress of a watch.
pub enum Phase {
    /// Sends the objects of a state, then (as a streaming list) the bookmark that ends them.
    Initial { objects: Arc<Objects>, after: Option<Key>, has_end: bool },
    /// Sends changes.
    Follow,
    /// Sends this event, and then ends.
    Refuse(Refusal),
    /// Ended.
    Over,
}

/// Why a watch continues.
enum Wake {
    Look,
    /// A bookmark was due then.
    Bookmark(Instant),
    Deadline,
    Down,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.board.count(self.resource.plural, |counts| counts.open_watches -= 1);
    }
}

/// Answers a WATCH request.
pub async fn watch(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
) -> Response<Body> {
    let is_streaming_list = query.claims("sendInitialEvents");
    shared.board.count(target.resource.plural, |counts| {
        counts.watches += 1;
        counts.streaming_lists += u64::from(is_streaming_list);
    });
    let watch = match open(shared, target, query).await {
        Ok(watch) => watch,
        Err(refusal) => return refusal.response(),
    };
    let compression = watch.pulses.borrow().compression;
    let zip = compression.filter(|_| is_streaming_list && accepts_gzip(headers)).map(Zip::new);
    let is_compressed = zip.is_some();
    let chunks = stream::unfold((watch, zip), |(mut watch, mut zip)| async move {
        let chunk = match (watch.next_chunk().await, &mut zip) {
            (Some(chunk), None) => {
                watch.count_bytes(chunk.len());
                chunk
            }
            (Some(chunk), Some(zip)) => {
                watch.count_bytes(chunk.len());
                zip.take(&chunk)
            }
            (None, Some(zip)) => zip.end()?,
            (None, None) => return None,
        };
        Some((Ok::<_, io::Error>(chunk), (watch, zip)))
    });
    let response = stream_body(Body::from_stream(chunks));
    if is_compressed { compressed(response) } else { response }
}

async fn open(shared: &Arc<Shared>, target: &Target, query: &Query) -> Result<Watch, Refusal> {
    let selector = selector(target, query)?;
    let asked = version(query, 500, "").map_err(|refusal| refusal.because(None))?;
    let seconds = query.number::<u64>("timeoutSeconds").unwrap_or_default().filter(|seconds| *seconds > 0);
    let began = Instant::now();
    let mut settings = shared.faults.follow();
    let setting = settings.borrow_and_update().clone();
    let fault = setting.on(target.resource.plural);
    let begin = check_streaming(query, fault)?;
    let mut pulses = shared.pulse.subscribe();
    let pulse = *pulses.borrow_and_update();
    let wants_bookmarks = query.claims("allowWatchBookmarks");
    let (phase, begun_at) = match begin {
        Begin::List | Begin::State
            if wants_bookmarks
                && pulse.etcd == Etcd::V3_4
                && (begin == Begin::List || asked.unwrap_or(0) == 0) =>
        {
            (Phase::Refuse(Refusal::new(500, NO_PROGRESS)), 0)
        }
        Begin::List if asked.is_some() => match wait_for_version(shared, asked.unwrap_or(0), fault).await {
            Ok(()) => begin_at(shared, target.resource, asked, begin, wants_bookmarks, fault),
            Err(refusal) => (Phase::Refuse(refusal), 0),
        },
        _ => begin_at(shared, target.resource, asked, begin, wants_bookmarks, fault),
    };
    shared.board.count(target.resource.plural, |counts| counts.open_watches += 1);
    Ok(Watch {
        shared: Arc::clone(shared),
        resource: target.resource,
        selector,
        wants_bookmarks,
        phase,
        version: begun_at,
        pulses,
        epoch: pulse.epoch,
        settings,
        garbage_epoch: None,
        last_bookmark: began,
        begun_at,
        deadline: began + Duration::from_secs(seconds.unwrap_or(TIMEOUT_SECONDS).min(1 << 20)),
    })
}

const NO_PROGRESS: &str = "a watch stream was requested by the client but the required storage feature \
                           RequestWatchProgress is disabled";

impl Watch {
    /// The next bytes to send; `None` ends the stream as a server does that shuts down in order.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        loop {
            let pulse = *self.pulses.borrow_and_update();
            let setting = self.settings.borrow_and_update().clone();
            if pulse.epoch != self.epoch || matches!(self.phase, Phase::Over) {
                return None;
            }
            if let Phase::Refuse(refusal) = &self.phase {
                let event = line("ERROR", refusal.object().to_string().as_bytes());
                self.phase = Phase::Over;
                return Some(event);
            }
            let fault = setting.on(self.resource.plural);
            if let Some(chunk) = self.fault_chunk(fault, setting.epoch) {
                return Some(chunk);
            }
            let chunk = match (&self.phase, fault) {
                (Phase::Initial { .. }, _) => self.initial_chunk(),
                // A client of a stale list gets no events until the server itself has newer ones.
                (_, Some(Fault::StaleList { at })) if self.version <= *at => Bytes::new(),
                (_, Some(fault)) if fault.stuck_at().is_some() => Bytes::new(),
                _ => self.changes_chunk(),
            };
            if !chunk.is_empty() {
                return Some(self.perhaps_half(chunk, fault));
            }
            let is_silent = fault.is_some_and(|fault| fault.stuck_at().is_some());
            match self.wait(&pulse).await {
                Wake::Look => {}
                Wake::Bookmark(due) => {
                    self.last_bookmark = due;
                    if !is_silent && let Some(version) = self.bookmark_version(pulse.etcd) {
                        return Some(self.bookmark(version, false));
                    }
                }
                Wake::Deadline | Wake::Down => return None,
            }
        }
    }

    async fn wait(&mut self, pulse: &Pulse) -> Wake {
        let regular = self.last_bookmark + pulse.bookmark_every;
        let before_the_end = BEFORE_THE_END.iter().map(|before| self.deadline - *before);
        let last_ones = before_the_end.filter(|due| *due > self.last_bookmark);
        let due = last_ones.chain([regular]).min().expect("one at least");
        let deadline = pulse.ends_at.map_or(self.deadline, |end| end.min(self.deadline));
        tokio::select! {
            changed = self.pulses.changed() => if changed.is_ok() { Wake::Look } else { Wake::Down },
            changed = self.settings.changed() => if changed.is_ok() { Wake::Look } else { Wake::Down },
            () = sleep_until(due), if self.wants_bookmarks => Wake::Bookmark(due),
            () = sleep_until(deadline) => Wake::Deadline,
        }
    }

    /// The bookmark of this moment; `None` if there is none.
    fn bookmark_version(&self, etcd: Etcd) -> Option<u64> {
        let store = self.shared.store();
        match etcd {
            // A version that does not exist yet has no bookmark.
            Etcd::V3_6 => Some(self.version).filter(|version| *version <= store.version()),
            // The server knows no versions but those of events.
            Etcd::V3_4 => store.last_change(self.resource).filter(|version| *version > self.begun_at),
        }
    }

    fn count_bytes(&self, n_bytes: usize) {
        self.shared.board.count(self.resource.plural, |counts| counts.bytes += n_bytes as u64);
    }

    /// Events of the active fault itself.
    fn fault_chunk(&mut self, fault: Option<&Fault>, epoch: u64) -> Option<Bytes> {
        match fault {
            // A list of the current state stays possible; otherwise no client could ever catch up.
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
        if has_end {
            chunk.extend_from_slice(&self.bookmark(self.version, true));
        }
        chunk.into()
    }

    /// The changes since the last ones; empty if none is selected.
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

    /// Writes a change as the selector sees it: an object that begins to match is added, one that no longer does
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

    fn bookmark(&self, version: u64, is_end_of_list: bool) -> Bytes {
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if is_end_of_list {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let Resource { kind, api_version, plural, .. } = self.resource;
        let empty = self.resource.empty();
        let object =
            format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata}{empty}}}"#);
        self.shared.board.count(plural, |counts| counts.bookmarks += 1);
        line("BOOKMARK", object.as_bytes())
    }

    /// The event that makes the client list again; nothing follows it.
    fn gone(&mut self, floor: u64) -> Bytes {
        self.phase = Phase::Over;
        self.shared.board.count(self.resource.plural, |counts| counts.gone += 1);
        let message = format!("too old resource version: {} ({floor})", self.version);
        line("ERROR", Refusal::new(410, message).object().to_string().as_bytes())
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
