//! The body of an answer, looked at as it passes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Method;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

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

/// A body that passes what it gets from `B`.
pub struct Counted<B> {
    inner: B,
    purpose: Purpose,
    begun: Instant,
    n_bytes: u64,
    /// Whether a whole line came: an event, or what stands for one.
    has_line: bool,
}

impl<B> Counted<B> {
    /// Begins to look at `inner`.
    pub fn new(inner: B, purpose: Purpose) -> Counted<B> {
        Counted { inner, purpose, begun: Instant::now(), n_bytes: 0, has_line: false }
    }
}

impl<B> Body for Counted<B>
where
    B: Body + Unpin,
    B::Data: AsRef<[u8]>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            let data = data.as_ref();
            self.n_bytes += data.len() as u64;
            self.has_line = self.has_line || data.contains(&b'\n');
        }
        frame
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
