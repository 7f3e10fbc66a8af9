//! What went wrong with a list or a watch, and what is done about it.

use kube::core::Status;
use tracing::{debug, info, warn};

use super::Connection;
use super::backoff::Backoff;
use crate::model::ObjectKind;

/// Why a list or a watch ended otherwise than in order.
#[derive(Debug)]
pub enum Fault {
    /// The receiver of events is gone.
    ReceiverGone,
    /// The server does not serve streaming lists, because of this.
    NoStreaming(String),
    /// No answer to a streaming list began: a server that has lost etcd still serves other lists.
    Silent(String),
    /// The version that was asked for is too old, or newer than any that the server has.
    Version(String),
    /// What came cannot be trusted to be complete: a change may be lost.
    Unreadable(String),
    /// Anything else.
    Other(String, Cause),
}

/// What a failure says about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It rejects the credentials.
    Unauthorized,
    /// It is well, but what is asked for is too long ago: nothing is wrong with asking anew.
    Gone,
    /// It does not answer, or cannot be reached.
    Unreachable,
    /// It is not well.
    Other,
}

impl Fault {
    /// A status that the server sent instead of an answer, or as an event.
    pub fn of(status: &Status, is_streaming: bool) -> Fault {
        let message = match status.message.as_str() {
            "" => format!("{} {}", status.code, status.reason),
            message => message.to_owned(),
        };
        match status.code {
            400 | 405 | 422 | 501 if is_streaming => Fault::NoStreaming(message),
            // etcd before 3.4.25 and 3.5.8 cannot say how far it is.
            500 if is_streaming && message.contains("RequestWatchProgress") => Fault::NoStreaming(message),
            410 => Fault::Version(message),
            _ if is_too_large(status) => Fault::Version(message),
            401 => Fault::Other(message, Cause::Unauthorized),
            _ => Fault::Other(message, Cause::Other),
        }
    }

    /// A request that failed.
    pub fn from_request(error: &kube::Error, is_streaming: bool) -> Fault {
        match error {
            kube::Error::Api(status) => Fault::of(status, is_streaming),
            error => Fault::Other(error_chain(error), Cause::Unreachable),
        }
    }

    /// An answer that broke off.
    pub fn broken_off(error: &dyn std::error::Error) -> Fault {
        Fault::Other(error_chain(error), Cause::Other)
    }
}

/// Whether the version asked for is newer than any that the server has. Source: client-go,
/// `isTooLargeResourceVersionError`, v0.36.
fn is_too_large(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
        || status.message.contains("Too large resource version")
}

/// Failures in a row: how long to wait after each, and which to log at warn.
#[derive(Default)]
pub struct Trouble {
    n_failures: u64,
    backoff: Backoff,
    /// After [`Cause::Gone`]: the first one after an outage does not wait as long as the outage's
    /// last try, but a server that says nothing else is asked for lists less and less.
    backoff_of_gone: Backoff,
}

impl Trouble {
    /// Logs the failure (at warn the first time, the second, the fourth, ...) and waits: no longer
    /// than for other credentials where these were rejected.
    pub async fn endure(&mut self, kind: ObjectKind, connection: &Connection, error: &str, cause: Cause) {
        self.n_failures += 1;
        let n_failures = self.n_failures;
        let backoff = if cause == Cause::Gone { &mut self.backoff_of_gone } else { &mut self.backoff };
        let pause = backoff.next();
        if n_failures.is_power_of_two() {
            warn!(%kind, n_failures, error, retry_in = ?pause, "watch failed; retrying, last known state stays in use");
        } else {
            debug!(%kind, n_failures, error, "watch failed; retrying");
        }
        let pause = tokio::time::sleep(pause);
        match &connection.renewal {
            Some(renewal) if cause == Cause::Unauthorized => tokio::select! {
                () = pause => {}
                () = renewal.renewed() => info!(%kind, "credentials changed; retrying"),
            },
            _ => pause.await,
        }
    }

    /// A watch is open, and nothing is wrong with it.
    pub fn is_over(&mut self, kind: ObjectKind) {
        if self.n_failures > 0 {
            info!(%kind, n_failures = self.n_failures, "watching again");
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
