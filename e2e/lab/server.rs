//! The servers of a pod: TCP and UDP, answering with their name and the client's address.
//!
//! Sockets are bound by a thread inside the pod's namespace and stay there; one small runtime serves
//! them all, so a pod costs no thread and no process.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::namespace::Namespace;

/// Servers of one name; dropping it closes their sockets and their open connections.
#[derive(Debug)]
pub struct Server {
    _tasks: JoinSet<()>,
}

impl Server {
    /// Listens on `addresses` in `namespace`, with TCP and UDP, and sends `<name> <peer>\n` on every
    /// connection, and again for every message.
    pub fn start(
        runtime: &Handle,
        namespace: &Namespace,
        name: &str,
        addresses: &[SocketAddr],
    ) -> Result<Self> {
        let mut tasks = JoinSet::new();
        for address in addresses {
            let (tcp, udp) = namespace
                .run(|| bind(*address))
                .with_context(|| format!("listening on {address} in {}", namespace.name()))?;
            let _inside = runtime.enter();
            tasks.spawn_on(serve_tcp(tokio::net::TcpListener::from_std(tcp)?, name.to_owned()), runtime);
            tasks.spawn_on(serve_udp(tokio::net::UdpSocket::from_std(udp)?, name.to_owned()), runtime);
        }
        Ok(Self { _tasks: tasks })
    }
}

/// Binds both sockets of `address` in the calling thread's namespace.
fn bind(address: SocketAddr) -> Result<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind(address).context("TCP")?;
    let udp = UdpSocket::bind(address).context("UDP")?;
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok((tcp, udp))
}

/// The answer to `peer`.
fn answer(name: &str, peer: SocketAddr) -> String {
    format!("{name} {peer}\n")
}

async fn serve_tcp(listener: tokio::net::TcpListener, name: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((mut stream, peer)) = accepted {
                    let line = answer(&name, peer);
                    connections.spawn(async move {
                        let mut buffer = [0; 512];
                        while stream.write_all(line.as_bytes()).await.is_ok()
                            && matches!(stream.read(&mut buffer).await, Ok(1..)) {}
                    });
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_udp(socket: tokio::net::UdpSocket, name: String) {
    let mut buffer = [0; 512];
    loop {
        // An error here is the ICMP answer to an earlier message; no client waits for it.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            socket.send_to(answer(&name, peer).as_bytes(), peer).await.ok();
        }
    }
}
