//! The body of an answer, looked at as it passes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Method;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tower::BoxError;

use super::{Endings, Watched};
use crate::watch::api::observer::Observer;

/// What a body is looked at for.
pub enum Purpose {
    /// How a watch ends.
    Watch(Arc<Endings>, Watched),
    /// How long the answer to a request of this method to this host was.
    Other(Arc<dyn Observer>, Method, String),
    /// Nothing: a watch that was refused, which its asker hears of.
    Refusal,
}

/// How long the body of an answer may stand still, but that of a watch, which is quiet while nothing
/// changes.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How many bytes of an error are read; it is kept whole until its end.
const LONGEST_ERROR: u64 = 1 << 20;

/// A body that passes what it gets from `B`.
pub struct Counted<B> {
    inner: B,
    /// How many bytes it may have.
    longest: u64,
    /// When it has stood still for too long.
    deadline: Option<Pin<Box<Sleep>>>,
    purpose: Purpose,
    begun: Instant,
    n_bytes: u64,
    /// Whether a whole line came: an event, or what stands for one.
    has_line: bool,
}

impl<B> Counted<B> {
    /// Begins to look at `inner`.
    pub fn new(inner: B, purpose: Purpose, is_error: bool) -> Counted<B> {
        let deadline = match purpose {
            Purpose::Watch(..) => None,
            Purpose::Other(..) | Purpose::Refusal => Some(Box::pin(tokio::time::sleep(STANDSTILL))),
        };
        let longest = if is_error { LONGEST_ERROR } else { u64::MAX };
        Counted { inner, longest, deadline, purpose, begun: Instant::now(), n_bytes: 0, has_line: false }
    }
}

impl<B> Body for Counted<B>
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
            if self.n_bytes > self.longest {
                let error = format!("the body of an error has more than {} bytes", self.longest);
                return Poll::Ready(Some(Err(error.into())));
            }
            self.has_line = self.has_line || data.contains(&b'\n');
        }
        if let Some(deadline) = &mut self.deadline {
            if frame.is_ready() {
                deadline.as_mut().reset(Instant::now() + STANDSTILL);
            } else if deadline.as_mut().poll(context).is_ready() {
                let error = format!("the answer stood still for {} s", STANDSTILL.as_secs());
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

/// Whether it ended, broke off or is wanted no longer: this is its end.
impl<B> Drop for Counted<B> {
    fn drop(&mut self) {
        match &self.purpose {
            Purpose::Watch(endings, watched) => endings.note(watched, self.begun.elapsed(), self.has_line),
            Purpose::Other(observer, method, host) => {
                observer.received(method.as_str(), host, self.n_bytes);
            }
            Purpose::Refusal => {}
        }
    }
}
