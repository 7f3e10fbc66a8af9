//! HTTP/1.1 servers: listening sockets of TCP and Unix, a bounded number of connections, and answers that several servers share.

mod admission;
mod connection;
mod local;
mod progress;
mod request_log;

pub use admission::{Admission, Incident};
pub use local::serve_local_at;
#[cfg(test)]
pub use local::{bind_local, serve_local};

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
use tracing::info;

use crate::log::failure;
use admission::Peer;

/// How long to wait before trying again to bind an address.
const RETRY: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted. The kernel drops further ones, whose clients retry after a second, and uses
/// net.core.somaxconn where that is less.
const BACKLOG: i32 = 4096;

/// Which families a socket on an unspecified address accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wildcard {
    /// Both, as in Go: `0.0.0.0` and `[::]` are the same.
    DualStack,
    /// The family of the address.
    OneFamily,
}

/// A listening socket, and its permit among the listeners of the process.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    _permit: OwnedSemaphorePermit,
}

/// Listens on `address`. An error too if the process has no permit left for a listener.
pub fn bind(admission: &Admission, address: SocketAddr, wildcard: Wildcard) -> io::Result<Listener> {
    let permit = admission.listener()?;
    let socket = if wildcard == Wildcard::OneFamily || !address.ip().is_unspecified() {
        listen(address, true)
    } else {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        match listen(any, false) {
            // The kernel may have no IPv6.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse && address.is_ipv4() => {
                listen(address, true)
            }
            result => result,
        }
    };
    Ok(Listener { socket: socket?, _permit: permit })
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

/// Answers on `listener` for ever. Dropping the future ends its connections too.
pub async fn serve(admission: Arc<Admission>, listener: Listener, router: Router) {
    let router = router.layer(axum::middleware::from_fn(request_log::log_request));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.socket.accept().await {
            Ok((stream, from)) => {
                let slot = admission.admit(Peer::of(&stream, from)).await;
                connections.spawn(connection::serve_connection(stream, router.clone(), slot));
            }
            Err(error) => admission.not_accepted(&error).await,
        }
    }
}

/// A failure to bind the address of a server.
pub struct BindFailure<'a> {
    /// Why.
    pub error: &'a io::Error,
    /// Whether the process ends; otherwise the server tries again.
    pub is_final: bool,
    /// The number of this failure, from 1.
    pub n: u64,
    /// How long after the first attempt.
    pub lasted: Duration,
}

/// Serves `router` on `address` for ever; logs name the server `server`. A failure to bind is retried every 5 s; with
/// `hard_fail` it is returned. `failed` is called for each failure and awaited.
pub async fn serve_at<F: Future<Output = ()>>(
    admission: Arc<Admission>,
    server: &str,
    address: SocketAddr,
    router: Router,
    hard_fail: bool,
    failed: impl Fn(&BindFailure<'_>) -> F,
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
                failed(&BindFailure { error: &error, is_final: hard_fail, n: n_failures, lasted }).await;
                if hard_fail {
                    let message = format!("cannot serve {server} on {address}");
                    return Err(anyhow::Error::new(error).context(message));
                }
                failure!(n_failures, %address, server, %error, retry_in = ?RETRY, "cannot listen");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// `text/plain`, as Go names it.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// `application/json`.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Forbids browsers to guess another type.
pub const NO_SNIFF: (HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// An answer with `body`.
pub fn reply(status: StatusCode, content_type: HeaderValue, body: impl Into<String>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type), NO_SNIFF], body.into()).into_response()
}

/// The answer of Go's mux to a path without a handler.
pub async fn not_found() -> Response {
    reply(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

#[cfg(test)]
pub mod other_user;
#[cfg(test)]
pub mod recorded;
#[cfg(test)]
mod tests;
