//! Small servers over HTTP/1.1: sockets, connections that cannot pile up, and answers that several
//! servers give.

mod admission;
mod connection;
mod request_log;

pub use admission::{Admission, Incident};

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use admission::Peer;

/// How long to wait before an address that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted. Those beyond are lost, and their clients try again after a second;
/// the kernel takes no more than net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Which families a socket on an unspecified address takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wildcard {
    /// Both, as Go does: `0.0.0.0` and `[::]` are the same.
    DualStack,
    /// That of the address.
    OneFamily,
}

/// A socket that listens, and its place among the listeners of the process.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    _place: OwnedSemaphorePermit,
}

/// Listens on `address`.
pub fn bind(admission: &Admission, address: SocketAddr, wildcard: Wildcard) -> io::Result<Listener> {
    let place = admission.listener()?;
    let socket = if wildcard == Wildcard::OneFamily || !address.ip().is_unspecified() {
        listen(address, true)
    } else {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        match listen(any, false) {
            // A kernel without IPv6.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse && address.is_ipv4() => {
                listen(address, true)
            }
            result => result,
        }
    };
    Ok(Listener { socket: socket?, _place: place })
}

fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Answers on `listener` for as long as it is polled. Dropped, it ends its connections too.
pub async fn serve(admission: Arc<Admission>, listener: Listener, router: Router) {
    let router = router.layer(axum::middleware::from_fn(request_log::log_request));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.socket.accept().await {
            Ok((stream, from)) => {
                let place = admission.admit(Peer::of(&stream, from)).await;
                connections.spawn(connection::answer(stream, router.clone(), place));
            }
            Err(error) => admission.not_accepted(&error).await,
        }
    }
}

/// What becomes of an address that cannot be bound.
pub struct Failure<'a> {
    /// What is wrong.
    pub error: &'a io::Error,
    /// Whether it is tried again, or the process ends.
    pub is_final: bool,
    /// How often it failed until now, this one included.
    pub n: u64,
    /// How long after the first time.
    pub lasted: Duration,
}

/// Serves `router` on `address`, which logs call `server`, for ever. An address that cannot be bound is
/// tried again every 5 s; with `hard_fail` it is an error. `failed` is told each time.
pub async fn serve_at<F: Future<Output = ()>>(
    admission: Arc<Admission>,
    server: &str,
    address: SocketAddr,
    router: Router,
    hard_fail: bool,
    failed: impl Fn(&Failure<'_>) -> F,
) -> anyhow::Result<()> {
    let mut n_failures = 0u64;
    let started = Instant::now();
    loop {
        match bind(&admission, address, Wildcard::DualStack) {
            Ok(listener) => {
                info!(%address, server, "serving");
                serve(admission, listener, router).await;
                return Ok(());
            }
            Err(error) => {
                n_failures += 1;
                let lasted = started.elapsed();
                failed(&Failure { error: &error, is_final: hard_fail, n: n_failures, lasted }).await;
                if hard_fail {
                    let message = format!("cannot serve {server} on {address}");
                    return Err(anyhow::Error::new(error).context(message));
                }
                if n_failures.is_power_of_two() {
                    warn!(%address, server, %error, n_failures, "cannot listen; will try again every 5 s");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// `text/plain`, as Go names it.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// `application/json`.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Browsers are not to guess another type.
pub const NO_SNIFF: (HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// An answer of `body`.
pub fn reply(status: StatusCode, content_type: HeaderValue, body: impl Into<String>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type), NO_SNIFF], body.into()).into_response()
}

/// What Go's mux says of a path that it does not know.
pub async fn not_found() -> Response {
    reply(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

#[cfg(test)]
pub mod recorded;
#[cfg(test)]
mod tests;
