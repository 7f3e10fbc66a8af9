//! Asks a running agent.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use futures::StreamExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::unistd::Uid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::answer::{ERROR, ErrorAnswer};
use crate::inspect::envelope;
use crate::net::UnixAddress;

/// How long to try to connect to an agent that accepts no connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often.
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// How long a question and its answer may take; an agent ends them after a minute.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(70);
/// The largest report that is read, in bytes; more than an agent sends.
const MAX_REPORT: usize = 64 << 20;

/// Whether an agent may listen at `address`: connecting does not fail. Waits for nothing.
pub fn is_listening(address: &UnixAddress) -> bool {
    try_connect(address).is_ok()
}

/// The report of this `kind` that the agent at `address` answers to `GET path`.
pub fn get<T: DeserializeOwned>(address: &UnixAddress, kind: &str, path: &str) -> anyhow::Result<T> {
    let request = Request::builder().method(Method::GET).uri(path).body(Body::empty());
    report(address, kind, request.context("cannot make the request")?)
}

/// The report of this `kind` that the agent at `address` answers to a `question` sent to `path`.
pub fn ask<Q: Serialize, T: DeserializeOwned>(
    address: &UnixAddress,
    kind: &str,
    path: &str,
    question: &Q,
) -> anyhow::Result<T> {
    let question = serde_json::to_vec(question).context("cannot write the question as JSON")?;
    let request = Request::builder().method(Method::POST).uri(path);
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Body::from(question));
    report(address, kind, request.context("cannot make the request")?)
}

/// Passes the text that the agent at `address` answers to `GET path` to `each`, in pieces.
pub fn read(
    address: &UnixAddress,
    path: &str,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> anyhow::Result<()> {
    let request = Request::builder().method(Method::GET).uri(path).body(Body::empty());
    let request = request.context("cannot make the request")?;
    run(address, async |stream| {
        let mut pieces = exchange(stream, request).await?.into_data_stream();
        while let Some(piece) = pieces.next().await {
            each(&piece.context("the answer is cut")?)?;
        }
        Ok(())
    })
}

fn report<T: DeserializeOwned>(
    address: &UnixAddress,
    kind: &str,
    request: Request<Body>,
) -> anyhow::Result<T> {
    let body = run(address, async |stream| {
        let body = exchange(stream, request).await?;
        to_bytes(body, MAX_REPORT).await.context("the answer is cut, or too large")
    })?;
    let other_release = "use the chainsmith of the agent's own container";
    envelope::from_json(kind, &body)
        .with_context(|| format!("cannot use the answer of the agent at {address}; {other_release}"))
}

/// Connects, checks that root answers, and does `work`, with a time limit.
fn run<T>(
    address: &UnixAddress,
    work: impl AsyncFnOnce(UnixStream) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if !Uid::effective().is_root() {
        bail!("the agent's socket answers root alone; run this as root");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the async runtime")?.block_on(async {
        let stream = connect(address).await?;
        let server = stream.peer_cred().context("cannot read who listens on the socket")?;
        if !Uid::from_raw(server.uid()).is_root() {
            bail!(
                "the process that listens on {address} is no agent: it runs as user {}, and an agent runs as root",
                server.uid()
            );
        }
        let answered = tokio::time::timeout(EXCHANGE_TIMEOUT, work(stream)).await;
        let late = || format!("the agent at {address} did not answer within {} s", EXCHANGE_TIMEOUT.as_secs());
        answered.with_context(late)?
    })
}

async fn connect(address: &UnixAddress) -> anyhow::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let connected = loop {
        match try_connect(address) {
            // Its queue of connections is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                tokio::time::sleep(CONNECT_INTERVAL).await;
            }
            result => break result,
        }
    };
    let stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => anyhow::anyhow!(
            "no agent answers on {address}: run this on the node (in its network namespace), or in the agent's \
             container: kubectl -n kube-system exec ds/kube-proxy -- chainsmith ..."
        ),
        _ => anyhow::Error::new(error).context(format!("cannot connect to {address}")),
    })?;
    UnixStream::from_std(stream).context("cannot use the socket")
}

fn try_connect(address: &UnixAddress) -> io::Result<StdStream> {
    let address = match address {
        UnixAddress::Abstract(name) => SockAddr::unix(format!("\0{name}"))?,
        UnixAddress::Path(path) => SockAddr::unix(path)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&address)?;
    Ok(StdStream::from(OwnedFd::from(socket)))
}

/// Sends `request`, and returns the body of an answer 200; any other answer is an error with its message.
async fn exchange(stream: UnixStream, mut request: Request<Body>) -> anyhow::Result<Body> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.context("cannot speak HTTP with the agent")?;
    tokio::spawn(connection);
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("agent"));
    // It also does so to root of another user namespace.
    let closed = "the agent closed the connection; it answers root alone, of its own user namespace";
    let answer = sender.send_request(request).await.context(closed)?;
    let status = answer.status();
    let body = Body::new(answer.into_body());
    if status == StatusCode::OK {
        return Ok(body);
    }
    let body = to_bytes(body, MAX_REPORT).await.unwrap_or_default();
    match envelope::from_json::<ErrorAnswer>(ERROR, &body) {
        Ok(ErrorAnswer { message }) => bail!("{message}"),
        Err(_) => bail!("the agent answered {status}"),
    }
}
