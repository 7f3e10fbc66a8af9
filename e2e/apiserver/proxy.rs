//! A TCP proxy with the faults of connections, for a server without faults of its own.
//!
//! It knows neither HTTP nor TLS: it cuts, slows and holds back bytes.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::fault::Fault;
use super::line::{Lines, Wire};

/// A running proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    wire: Wire,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Forwards connections from `listen` to `upstream`, both in the namespace behind `netns`.
    ///
    /// # Errors
    /// The namespace cannot be entered or the address is in use; nothing keeps running.
    pub fn start(listen: SocketAddr, netns: Option<OwnedFd>, upstream: SocketAddr) -> anyhow::Result<Proxy> {
        let wire = Wire::default();
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let passed = wire.clone();
        let run = move || {
            let (runtime, lines) = match bind(listen, netns, passed) {
                Ok(bound) => bound,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(lines.local_addr().context("asking for the address of the proxy"));
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = pass(lines, upstream) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(run);
        let thread = thread.context("starting the thread of the proxy")?;
        let address = is_ready.recv().context("waiting for the proxy to listen")??;
        Ok(Proxy { wire, address, stop: Some(stop), thread: Some(thread) })
    }

    /// The address of its socket.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a fault of connections, or ends it.
    ///
    /// # Panics
    /// For a fault of answers.
    pub fn set_fault(&self, fault: Option<Fault>) {
        assert!(fault.as_ref().is_none_or(Fault::is_of_connections), "{fault:?} is no fault of connections");
        self.wire.faults.set(fault, None);
    }

    /// How often connections met the fault that was started last.
    pub fn faults_met(&self) -> u64 {
        self.wire.faults.n_met()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The thread may have ended already; then there is nothing to do.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn bind(
    listen: SocketAddr,
    netns: Option<OwnedFd>,
    wire: Wire,
) -> anyhow::Result<(tokio::runtime::Runtime, Lines)> {
    if let Some(netns) = netns {
        setns(netns, CloneFlags::CLONE_NEWNET).context("entering the network namespace of the proxy")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind(listen));
    let listener = listener.with_context(|| format!("listening on {listen}"))?;
    Ok((runtime, Lines::new(listener, wire)))
}

async fn pass(lines: Lines, upstream: SocketAddr) {
    loop {
        let mut line = lines.accept().await;
        tokio::spawn(async move {
            // When one side ends, by a fault or in order, the other one sees its connection close.
            if let Ok(mut server) = TcpStream::connect(upstream).await {
                let _ = copy_bidirectional(&mut line, &mut server).await;
            }
        });
    }
}
