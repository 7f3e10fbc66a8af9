//! Answers of the agent's socket: reports as JSON, and errors in the same envelope.

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::http::{JSON, reply};
use crate::inspect::envelope::to_json;

/// The largest question, in bytes: names, addresses and ports.
pub(super) const MAX_QUESTION: usize = 64 << 10;
/// The largest answer that is made as a whole, in bytes; rules are sent in pieces.
pub(super) const MAX_ANSWER: usize = 32 << 20;

/// What an answer is when there is no report.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ErrorAnswer {
    /// What is wrong, and what to do.
    pub(super) message: String,
}

/// The kind of an [`ErrorAnswer`].
pub(super) const ERROR: &str = "Error";

/// An answer with a report of this `kind`.
pub(super) fn report<T: Serialize>(kind: &str, report: &T) -> Response {
    let json = to_json(kind, report);
    if json.len() > MAX_ANSWER {
        let (n, max) = (json.len() >> 20, MAX_ANSWER >> 20);
        let message = format!("the answer would be {n} MiB, more than {max} MiB; ask for less");
        return error(StatusCode::INTERNAL_SERVER_ERROR, message);
    }
    reply(StatusCode::OK, JSON, json)
}

/// An answer that says what is wrong.
pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Response {
    reply(status, JSON, to_json(ERROR, &ErrorAnswer { message: message.into() }))
}

/// Reads a question; an empty body is the question without any field.
#[allow(clippy::result_large_err, reason = "an answer is made once a request")]
pub(super) async fn question<Q: DeserializeOwned>(body: Body) -> Result<Q, Response> {
    let Ok(bytes) = to_bytes(body, MAX_QUESTION).await else {
        let message = format!("cannot read the question: it is cut, or larger than {MAX_QUESTION} bytes");
        return Err(error(StatusCode::PAYLOAD_TOO_LARGE, message));
    };
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text)
        .map_err(|wrong| error(StatusCode::BAD_REQUEST, format!("cannot read the question: {wrong}")))
}
