//! Failures of lists and watches: classification, logging and delays.

use kube::core::Status;
use tracing::info;

use super::backoff::Backoff;
use super::client::Connection;
use crate::log::failure;
use crate::model::ObjectKind;

/// Why a list or a watch failed.
#[derive(Debug)]
pub enum WatchFailure {
    /// The receiver of events was dropped.
    ReceiverGone,
    /// The server does not support streaming lists, for this reason.
    NoStreaming(String),
    /// A streaming list does not begin. A server without etcd may still serve plain lists.
    StreamStalled(String),
    /// The requested version is too old, or newer than any version of the server.
    VersionUnavailable(String),
    /// The response cannot be read: a change may be lost.
    Unreadable(String),
    /// Any other failure.
    Other(String, FailureCause),
}

/// What a failure shows about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The server rejects the credentials.
    Unauthorized,
    /// The server is healthy, but the requested version is gone. Listing again is enough.
    Gone,
    /// The server cannot be reached, or does not respond.
    Unreachable,
    /// The server has another problem.
    Other,
}

impl WatchFailure {
    /// Classifies a status, sent as a response or as an event.
    pub fn from_status(status: &Status, is_streaming: bool) -> WatchFailure {
        let message = match status.message.as_str() {
            "" => &status.reason,
            message => message,
        };
        let message = format!("{message} ({})", status.code);
        match status.code {
            400 | 405 | 422 | 501 if is_streaming => WatchFailure::NoStreaming(message),
            // etcd before 3.4.25 and 3.5.8 cannot report its progress.
            500 if is_streaming && message.contains("RequestWatchProgress") => {
                WatchFailure::NoStreaming(message)
            }
            410 => WatchFailure::VersionUnavailable(message),
            _ if is_too_large(status) => WatchFailure::VersionUnavailable(message),
            401 => WatchFailure::Other(message, FailureCause::Unauthorized),
            _ => WatchFailure::Other(message, FailureCause::Other),
        }
    }

    /// Classifies a failed request.
    pub fn from_request(error: &kube::Error, is_streaming: bool) -> WatchFailure {
        match error {
            kube::Error::Api(status) => WatchFailure::from_status(status, is_streaming),
            error => WatchFailure::Other(error_chain(error), FailureCause::Unreachable),
        }
    }

    /// A streaming list that does not begin.
    pub fn stalled(error: &str) -> WatchFailure {
        WatchFailure::StreamStalled(error.to_owned())
    }

    /// A response that cannot be read.
    pub fn unreadable(error: &str) -> WatchFailure {
        WatchFailure::Unreadable(error.to_owned())
    }

    /// Another failure of the server.
    pub fn other(error: &str) -> WatchFailure {
        WatchFailure::Other(error.to_owned(), FailureCause::Other)
    }

    /// The failure for a response that is cut off.
    pub fn cut_off(error: &dyn std::error::Error) -> WatchFailure {
        WatchFailure::Other(error_chain(error), FailureCause::Other)
    }
}

/// Whether the requested version is newer than any version of the server. Source: client-go,
/// `isTooLargeResourceVersionError`, v0.36.
fn is_too_large(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
        || status.message.contains("Too large resource version")
}

/// Failures in a row, and the delay after each.
#[derive(Default)]
pub struct FailureStreak {
    n_failures: u64,
    backoff: Backoff,
    /// Separate for [`FailureCause::Gone`]: the first one after an outage does not wait as long as the
    /// outage's last attempt, while a server that always returns it receives lists less and less often.
    backoff_of_gone: Backoff,
}

impl FailureStreak {
    /// Logs the failure and waits for the back-off delay; after rejected credentials, only until they
    /// change.
    pub async fn wait_to_retry(
        &mut self,
        kind: ObjectKind,
        connection: &Connection,
        error: &str,
        cause: FailureCause,
    ) {
        self.n_failures += 1;
        let backoff = if cause == FailureCause::Gone { &mut self.backoff_of_gone } else { &mut self.backoff };
        let delay = backoff.next_delay();
        failure!(self.n_failures, %kind, error, retry_in = ?delay, "watch failed; retrying, last known state stays in use");
        let delay = tokio::time::sleep(delay);
        match &connection.renewal {
            Some(renewal) if cause == FailureCause::Unauthorized => tokio::select! {
                () = delay => {}
                () = renewal.wait_renewed() => info!(%kind, "credentials changed; retrying"),
            },
            _ => delay.await,
        }
    }

    /// Ends the streak: the watch is open and healthy.
    pub fn end(&mut self, kind: ObjectKind) {
        if self.n_failures > 0 {
            info!(%kind, n_failures = self.n_failures, "watch recovered");
            self.n_failures = 0;
        }
    }
}

/// An error with its sources, without repetitions.
pub fn error_chain(error: &dyn std::error::Error) -> String {
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
