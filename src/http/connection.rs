//! Serves one connection, and ends it when it takes too long or has to make room for another one.
//!
//! hyper's `header_read_timeout` is not used: it runs on an idle connection too, which may last longer than a head.
//! tower-http's `TimeoutLayer` is not used: it ends when the answer is made, not when the client has read it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::ServiceExt;

use super::admission::ConnectionSlot;
use super::progress::{ConnectionStage, Progress};
use crate::log::v;

/// How often the limits of a connection are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Limits on the head of a request, in bytes and in headers; a larger one is answered 431. Go's servers accept a
/// megabyte, but clients of these servers send a few headers.
pub(super) const MAX_HEAD: usize = 16 << 10;
pub(super) const MAX_HEADERS: usize = 64;

/// Answers the requests on `stream` until the client ends it, it takes too long, or its slot is needed for another
/// connection.
pub(super) async fn serve_connection<S>(stream: S, router: Router, slot: ConnectionSlot)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let progress = &slot.progress;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        progress.step(ConnectionStage::Head, ConnectionStage::Answering);
        let (answer, progress) = (router.clone().oneshot(request), progress.clone());
        async move {
            let answer = answer.await;
            progress.step(ConnectionStage::Answering, ConnectionStage::Sending);
            answer
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.header_read_timeout(None).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let stream = TokioIo::new(TrackedStream { stream, progress: progress.clone() });
    let mut connection = std::pin::pin!(http.serve_connection(stream, service));
    loop {
        let done = tokio::select! {
            biased;
            () = slot.evicted() => return,
            done = tokio::time::timeout(CHECK_INTERVAL, connection.as_mut()) => done,
        };
        match done {
            Ok(Ok(())) => return,
            Ok(Err(error)) => return v!(6, %error, "connection failed"),
            Err(_) if progress.is_late(slot.are_scarce()) => {
                let (stage, _) = progress.state();
                return v!(6, ?stage, "connection closed; it took too long");
            }
            Err(_) => {}
        }
    }
}

/// A stream that records the progress of its connection.
struct TrackedStream<S> {
    stream: S,
    progress: Progress,
}

impl<S: AsyncRead + Unpin> AsyncRead for TrackedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > n_before {
            self.progress.step(ConnectionStage::Idle, ConnectionStage::Head);
        }
        done
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrackedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when everything written so far has been passed to the kernel.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(done, Poll::Ready(Ok(()))) {
            self.progress.step(ConnectionStage::Sending, ConnectionStage::Idle);
        }
        done
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
