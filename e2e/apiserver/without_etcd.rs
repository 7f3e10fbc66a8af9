//! Answers of a server that cannot reach its etcd: what its cache has, and everything else too late.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Response};
use tokio::time::sleep;

use super::Shared;
use super::answer::{Refusal, stream_body};
use super::events::line;
use super::fault::Fault;
use super::request::{Query, Target};

/// The limit of a read.
pub const READ_LIMIT: Duration = Duration::from_secs(60);
/// The limit of a write.
pub const WRITE_LIMIT: Duration = Duration::from_secs(34);

/// The answer to a request that needs etcd, or `None` where the cache suffices. Without an answer the
/// connection ends.
pub async fn answer(
    shared: &Shared,
    fault: &Fault,
    method: &Method,
    target: &Target,
    query: &Query,
) -> Option<io::Result<Response<Body>>> {
    let version = query.text("resourceVersion");
    let is_as_of_any =
        version == "0" || query.text("resourceVersionMatch") == "NotOlderThan" && !version.is_empty();
    let is_watch = query.claims("watch");
    if *method != Method::GET {
        sleep(shared.paced(WRITE_LIMIT)).await;
        shared.faults.met();
        let message =
            "Timeout: request did not complete within requested timeout - context deadline exceeded";
        return Some(Ok(Refusal::new(504, message).about(serde_json::json!({})).response()));
    }
    if is_watch && (!query.claims("sendInitialEvents") || is_as_of_any)
        || target.name.is_none() && is_as_of_any
    {
        shared.faults.met();
        return None;
    }
    if is_watch {
        let seconds = query.number("timeoutSeconds").ok().flatten().unwrap_or(READ_LIMIT.as_secs());
        sleep(Duration::from_secs(seconds)).await;
        shared.faults.met();
        let body = match fault {
            Fault::Starting { .. } => {
                let deadline = Refusal::new(500, "context deadline exceeded");
                Body::from(line("ERROR", deadline.object().to_string().as_bytes()))
            }
            _ => Body::empty(),
        };
        return Some(Ok(stream_body(body)));
    }
    sleep(shared.paced(READ_LIMIT)).await;
    shared.faults.met();
    let is_paged = !query.text("limit").is_empty() || !query.text("continue").is_empty();
    if target.name.is_none() && !is_paged {
        return Some(Err(io::Error::other("no answer within the time that one may take")));
    }
    Some(Ok(Refusal::timed_out().response()))
}
