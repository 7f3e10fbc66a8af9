//! What a connection is doing, since when, and how long it may take.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a client may take for the head of a request, and how long a connection may be idle while slots are
/// scarce: a silent client keeps no other client out.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// How long a request and its answer may take, until the client has read the last byte.
pub(super) const EXCHANGE_LIMIT: Duration = Duration::from_secs(60);
/// How long a connection may be idle: longer than the usual interval between two scrapes or checks.
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(3 * 60);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionStage {
    /// The first request has not begun, or the head of a request is being read.
    Head,
    /// The answer to a request is being made.
    Answering,
    /// The answer is being sent.
    Sending,
    /// No request is in progress, and at least one was answered.
    Idle,
}

/// The stage of a connection, and since when it is idle or its exchange began; an exchange begins with the first byte of its request.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<(ConnectionStage, Instant)>>);

impl Progress {
    /// Of a connection that is accepted now.
    pub(super) fn begun() -> Progress {
        Progress::at(ConnectionStage::Head, Instant::now())
    }

    /// Of a connection in `stage` since `since`.
    pub(super) fn at(stage: ConnectionStage, since: Instant) -> Progress {
        Progress(Arc::new(Mutex::new((stage, since))))
    }

    /// The stage, and since when the connection is idle or its exchange lasts.
    pub(super) fn state(&self) -> (ConnectionStage, Instant) {
        *self.get()
    }

    fn get(&self) -> MutexGuard<'_, (ConnectionStage, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves on to `to` if the stage is `from`.
    pub(super) fn step(&self, from: ConnectionStage, to: ConnectionStage) {
        let mut now = self.get();
        if now.0 == from {
            now.0 = to;
            if [from, to].contains(&ConnectionStage::Idle) {
                now.1 = Instant::now();
            }
        }
    }

    /// Whether the connection takes too long; idle connections may last less while slots `are_scarce`.
    pub(super) fn is_late(&self, are_scarce: bool) -> bool {
        let (stage, since) = self.state();
        let limit = match stage {
            ConnectionStage::Head => HEAD_LIMIT,
            ConnectionStage::Answering | ConnectionStage::Sending => EXCHANGE_LIMIT,
            ConnectionStage::Idle if are_scarce => HEAD_LIMIT,
            ConnectionStage::Idle => IDLE_LIMIT,
        };
        since.elapsed() >= limit
    }
}
