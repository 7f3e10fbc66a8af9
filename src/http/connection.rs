//! One connection, and how long it may take for what.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower::ServiceExt;
use tracing::debug;

use super::admission::Place;

/// How long a client may take for the head of a request, and be idle where connections are scarce:
/// nobody keeps others out by saying nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// How long a request and its answer may take, until the client has taken the last byte.
pub(super) const EXCHANGE: Duration = Duration::from_secs(60);
/// How long a connection may be idle: longer than anybody waits between two scrapes or checks.
pub(super) const IDLE: Duration = Duration::from_secs(3 * 60);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How large the head of a request may be, in bytes and in headers; what is larger is answered 431. Go's
/// servers take a megabyte, but clients of these servers send a few headers.
pub(super) const MAX_HEAD: usize = 16 << 10;
pub(super) const MAX_HEADERS: usize = 64;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A request is read, or the first is waited for.
    Head,
    /// A request is answered.
    Answering,
    /// The answer is made, and is being sent.
    Sending,
    /// Nothing is asked.
    Idle,
}

/// What a connection is at, and since when; an exchange begins with the first byte of its request.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<(Stage, Instant)>>);

impl Progress {
    /// Of a connection that was accepted just now.
    pub(super) fn begun() -> Progress {
        Progress::at(Stage::Head, Instant::now())
    }

    /// Of a connection that has been at `stage` since then.
    pub(super) fn at(stage: Stage, since: Instant) -> Progress {
        Progress(Arc::new(Mutex::new((stage, since))))
    }

    /// What the connection is at, and since when.
    pub(super) fn state(&self) -> (Stage, Instant) {
        *self.get()
    }

    fn get(&self) -> MutexGuard<'_, (Stage, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on to `to` if it is at `from`.
    fn step(&self, from: Stage, to: Stage) {
        let mut now = self.get();
        if now.0 == from {
            now.0 = to;
            if [from, to].contains(&Stage::Idle) {
                now.1 = Instant::now();
            }
        }
    }

    fn is_late(&self, are_scarce: bool) -> bool {
        let (stage, since) = self.state();
        let limit = match stage {
            Stage::Head => PATIENCE,
            Stage::Answering | Stage::Sending => EXCHANGE,
            Stage::Idle if are_scarce => PATIENCE,
            Stage::Idle => IDLE,
        };
        since.elapsed() >= limit
    }
}

/// Answers what `stream` asks, until it ends, takes too long, or has to leave its place to another.
pub(super) async fn answer(stream: TcpStream, router: Router, place: Place) {
    let progress = &place.progress;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        progress.step(Stage::Head, Stage::Answering);
        let (answer, progress) = (router.clone().oneshot(request), progress.clone());
        async move {
            let answer = answer.await;
            progress.step(Stage::Answering, Stage::Sending);
            answer
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.header_read_timeout(None).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let stream = TokioIo::new(Watched { stream, progress: progress.clone() });
    let mut connection = std::pin::pin!(http.serve_connection(stream, service));
    loop {
        let done = tokio::select! {
            biased;
            () = place.evicted() => return,
            done = tokio::time::timeout(LOOK, connection.as_mut()) => done,
        };
        match done {
            Ok(Ok(())) => return,
            Ok(Err(error)) => return debug!(%error, "a connection broke off"),
            Err(_) if progress.is_late(place.are_scarce()) => {
                let (stage, _) = progress.state();
                return debug!(?stage, "a connection took too long");
            }
            Err(_) => {}
        }
    }
}

/// A stream whose use tells how far an exchange is.
struct Watched {
    stream: TcpStream,
    progress: Progress,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > n_before {
            self.progress.step(Stage::Idle, Stage::Head);
        }
        done
    }
}

impl AsyncWrite for Watched {
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

    /// Called when all was written that there was.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(done, Poll::Ready(Ok(()))) {
            self.progress.step(Stage::Sending, Stage::Idle);
        }
        done
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
