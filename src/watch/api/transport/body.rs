//! Measures the body of a response as it is read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Method;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tower::BoxError;

use super::reconnect::{ReconnectTimes, WatchRequest};
use crate::watch::api::traffic::TrafficObserver;

/// What a body belongs to, which decides what is measured.
pub enum BodyRole {
    /// A watch: how and when it ends is recorded.
    Watch(Arc<ReconnectTimes>, WatchRequest),
    /// The response to another request of this method to this host: its length is reported.
    Response(Arc<dyn TrafficObserver>, Method, String),
    /// A rejected watch: nothing is measured, since the caller handles the error.
    RejectedWatch,
}

/// How long a body may pause; a watch may pause without limit.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The largest body of an error response; it is kept in memory whole.
const MAX_ERROR_BYTES: u64 = 1 << 20;

/// Passes on the body `B`.
pub struct MeasuredBody<B> {
    inner: B,
    /// The largest number of bytes.
    max_bytes: u64,
    /// End of the allowed pause.
    deadline: Option<Pin<Box<Sleep>>>,
    role: BodyRole,
    begun: Instant,
    n_bytes: u64,
    /// Whether a complete line arrived: an event.
    had_line: bool,
}

impl<B> MeasuredBody<B> {
    /// Begins to measure `inner`.
    pub fn new(inner: B, role: BodyRole, is_error: bool) -> MeasuredBody<B> {
        let deadline = match role {
            BodyRole::Watch(..) => None,
            BodyRole::Response(..) | BodyRole::RejectedWatch => Some(Box::pin(tokio::time::sleep(MAX_PAUSE))),
        };
        let max_bytes = if is_error { MAX_ERROR_BYTES } else { u64::MAX };
        MeasuredBody { inner, max_bytes, deadline, role, begun: Instant::now(), n_bytes: 0, had_line: false }
    }
}

impl<B> Body for MeasuredBody<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
    B::Data: AsRef<[u8]>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            let data = data.as_ref();
            self.n_bytes += data.len() as u64;
            if self.n_bytes > self.max_bytes {
                let error = format!("the body of an error response has more than {} bytes", self.max_bytes);
                return Poll::Ready(Some(Err(error.into())));
            }
            self.had_line = self.had_line || data.contains(&b'\n');
        }
        if let Some(deadline) = &mut self.deadline {
            if frame.is_ready() {
                deadline.as_mut().reset(Instant::now() + MAX_PAUSE);
            } else if deadline.as_mut().poll(context).is_ready() {
                let error = format!("the response stalled for {} s", MAX_PAUSE.as_secs());
                return Poll::Ready(Some(Err(error.into())));
            }
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Runs however the body ends: complete, cut off or no longer read.
impl<B> Drop for MeasuredBody<B> {
    fn drop(&mut self) {
        match &self.role {
            BodyRole::Watch(reconnect, watch) => {
                reconnect.record_watch_end(watch, self.begun.elapsed(), self.had_line)
            }
            BodyRole::Response(observer, method, host) => {
                observer.body_received(method.as_str(), host, self.n_bytes);
            }
            BodyRole::RejectedWatch => {}
        }
    }
}
