//! Servers on Unix sockets, which answer root alone.
#![allow(clippy::disallowed_methods, reason = "a socket may be a file")]

use std::fs::Permissions;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::admission::{Admission, Peer};
use super::{RETRY, connection, request_log};
use crate::log::failure;
use crate::net::UnixAddress;

/// What a client that is not root receives: its request is not read.
const REFUSAL: &str = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
     {\"kind\":\"Error\",\"apiVersion\":\"chainsmith.dev/v1alpha1\",\"message\":\"this socket answers root alone\"}";

/// A listening Unix socket, and its permit among the listeners of the process.
#[derive(Debug)]
pub struct LocalListener {
    socket: UnixListener,
    _permit: OwnedSemaphorePermit,
}

/// Listens on `address`. A file that no process listens on any more is replaced; an address in use is an error.
pub fn bind_local(admission: &Admission, address: &UnixAddress) -> io::Result<LocalListener> {
    let permit = admission.listener()?;
    let socket = match address {
        UnixAddress::Abstract(name) => {
            BlockingListener::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes())?)?
        }
        UnixAddress::Path(path) => bind_file(path)?,
    };
    socket.set_nonblocking(true)?;
    Ok(LocalListener { socket: UnixListener::from_std(socket)?, _permit: permit })
}

fn bind_file(path: &Path) -> io::Result<BlockingListener> {
    let socket = match BlockingListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path)?;
            BlockingListener::bind(path)
        }
        result => result,
    }?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Whether `path` is a socket on which no process listens.
fn is_abandoned(path: &Path) -> bool {
    let connected = BlockingStream::connect(path);
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Answers root on `listener` for ever. Dropping the future ends its connections too.
///
/// Root is uid 0 in the user namespace of this process: the kernel reports every other user, and root of any other
/// user namespace, under another uid.
pub async fn serve_local(admission: Arc<Admission>, listener: LocalListener, router: Router) {
    let router = router.layer(axum::middleware::from_fn(request_log::log_request));
    let mut connections = JoinSet::new();
    let mut n_refused = 0u64;
    loop {
        while connections.try_join_next().is_some() {}
        match listener.socket.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred();
                if peer.as_ref().is_ok_and(|peer| Uid::from_raw(peer.uid()).is_root()) {
                    let slot = admission.admit(Peer::Local).await;
                    connections.spawn(connection::serve_connection(stream, router.clone(), slot));
                    continue;
                }
                refuse(&stream);
                n_refused += 1;
                if n_refused.is_power_of_two() {
                    let (uid, pid) = peer.map_or((None, None), |peer| (Some(peer.uid()), peer.pid()));
                    warn!(uid, pid, n_refused, "refused a client of the Unix socket; it answers root alone");
                }
            }
            Err(error) => admission.not_accepted(&error).await,
        }
    }
}

/// Sends the refusal as far as the socket's buffer takes it at once.
fn refuse(stream: &UnixStream) {
    // A client that does not take it is gone.
    let _ = stream.try_write(REFUSAL.as_bytes());
}

/// Serves `router` on `address` for ever; logs name the server `server`. A failure to bind is retried every 5 s.
pub async fn serve_local_at(
    admission: Arc<Admission>,
    server: &str,
    address: &UnixAddress,
    router: Router,
) -> anyhow::Result<()> {
    let mut n_failures = 0u64;
    loop {
        match bind_local(&admission, address) {
            Ok(listener) => {
                info!(%address, server, "serving");
                serve_local(admission, listener, router).await;
                return Ok(());
            }
            Err(error) => {
                n_failures += 1;
                failure!(n_failures, %address, server, %error, retry_in = ?RETRY, "cannot listen");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
