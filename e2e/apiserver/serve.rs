//! The server's thread: its own network namespace and runtime, its connections (HTTP/1.1 and HTTP/2,
//! over TLS if the client begins so), and when they are accepted and ended.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::{Body, Bytes};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::line::{Line, Lines, Wire};
use super::route::answer;

/// Whether connections are accepted, and which of them end.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// If not, the socket is closed and the kernel refuses connections.
    pub is_open: bool,
    /// Grows when every connection must refuse further requests (HTTP/2: GOAWAY) and end after
    /// its current response.
    pub n_goaways: u64,
}

/// Serves until `stopped`; `ready` gets the address, or the error, once.
///
/// Needs a thread of its own, because the thread stays in the namespace behind `netns`.
pub fn run(
    shared: Arc<Shared>,
    listen: SocketAddr,
    netns: Option<OwnedFd>,
    ready: &mpsc::Sender<anyhow::Result<SocketAddr>>,
    stopped: oneshot::Receiver<()>,
) {
    let (runtime, lines, address) = match bind(&shared, listen, netns) {
        Ok(bound) => bound,
        Err(error) => {
            // A failure means that the caller has ended.
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(address));
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = serve(shared, lines, address) => {}
        }
    });
    // Dropping the runtime ends all connections.
}

fn bind(
    shared: &Shared,
    listen: SocketAddr,
    netns: Option<OwnedFd>,
) -> anyhow::Result<(tokio::runtime::Runtime, Lines, SocketAddr)> {
    if let Some(netns) = netns {
        setns(netns, CloneFlags::CLONE_NEWNET).context("entering the network namespace of the API server")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime of the API server")?;
    let lines = runtime.block_on(listen_on(shared, listen));
    let lines = lines.with_context(|| format!("listening on {listen}"))?;
    let address = lines.local_addr().context("asking for the address of the API server")?;
    Ok((runtime, lines, address))
}

async fn listen_on(shared: &Shared, address: SocketAddr) -> io::Result<Lines> {
    let wire = Wire { faults: Arc::clone(&shared.faults), board: Arc::clone(&shared.board) };
    Ok(Lines::new(TcpListener::bind(address).await?, wire))
}

/// Accepts connections while it is open.
async fn serve(shared: Arc<Shared>, lines: Lines, address: SocketAddr) {
    let mut door = shared.door.subscribe();
    let mut open = Some(lines);
    loop {
        let is_open = door.borrow_and_update().is_open;
        match &open {
            Some(_) if !is_open => open = None,
            None if is_open => match listen_on(&shared, address).await {
                Ok(lines) => open = Some(lines),
                // Earlier connections can occupy the address for a moment.
                Err(_) => sleep(Duration::from_millis(20)).await,
            },
            Some(lines) => tokio::select! {
                line = lines.accept() => drop(tokio::spawn(connection(Arc::clone(&shared), line))),
                changed = door.changed() => if changed.is_err() { return },
            },
            None => {
                if door.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Serves one connection until it ends.
async fn connection(shared: Arc<Shared>, mut line: Line) {
    // The client or a fault closed the connection: nothing more to do.
    let (Ok(ip), Ok(is_tls)) = (line.local_ip(), line.begins_tls().await) else {
        return;
    };
    if !is_tls {
        return answer_all(shared, TokioIo::new(line), None).await;
    }
    let acceptor = TlsAcceptor::from(shared.authority.server(ip));
    let Ok(stream) = acceptor.accept(line).await else {
        return;
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|all| all.first()).map(|first| Arc::from(first.as_ref()));
    answer_all(shared, TokioIo::new(stream), certificate).await;
}

async fn answer_all<I>(shared: Arc<Shared>, io: TokioIo<I>, certificate: Option<Arc<[u8]>>)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut door = shared.door.subscribe();
    let n_goaways = door.borrow_and_update().n_goaways;
    let under_way = UnderWay::default();
    let mut idle = std::pin::pin!(idle(under_way.0.subscribe(), shared.paced(IDLE)));
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (shared, certificate, one) = (Arc::clone(&shared), certificate.clone(), under_way.one());
        async move {
            let answer = answer(shared, request.map(Body::new), certificate.as_deref()).await?;
            Ok::<_, io::Error>(answer.map(|body| Answer { body, _one: one }))
        }
    });
    let builder = builder();
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    loop {
        tokio::select! {
            // An error means that the client or a fault closed it.
            _ = connection.as_mut() => return,
            changed = door.changed() => match changed {
                Ok(()) if door.borrow_and_update().n_goaways == n_goaways => {}
                Ok(()) => break,
                Err(_) => return,
            },
            () = idle.as_mut() => break,
        }
    }
    connection.as_mut().graceful_shutdown();
    // As above.
    let _ = connection.await;
}

/// How long a connection without requests stays open.
const IDLE: Duration = Duration::from_secs(90);

/// Requests of one connection whose responses have not ended.
#[derive(Clone, Default)]
struct UnderWay(watch::Sender<usize>);

/// One of them, until dropped.
struct One(UnderWay);

impl UnderWay {
    fn one(&self) -> One {
        self.0.send_modify(|n| *n += 1);
        One(self.clone())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}

/// Ends when there has been no unfinished request for `limit`.
async fn idle(mut n_under_way: watch::Receiver<usize>, limit: Duration) {
    while n_under_way.wait_for(|n| *n == 0).await.is_ok() {
        if timeout(limit, n_under_way.changed()).await.is_err() {
            return;
        }
    }
    // The connection has ended.
    std::future::pending().await
}

/// The body of a response; the request is unfinished until its end.
struct Answer {
    body: Body,
    _one: One,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// With the settings that a real server announces.
fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(100)
        .max_frame_size(262_144)
        .initial_stream_window_size(262_144)
        .initial_connection_window_size(26_214_400)
        .max_header_list_size(1_048_896);
    builder
}
