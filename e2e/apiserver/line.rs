//! The connections: a TCP listener and a stream that can be cut, slowed and silenced at any byte.

use std::future::{Future, poll_fn};
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::counters::Board;
use super::fault::{Fault, Faults, Setting};

/// State that all connections share.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// The active fault.
    pub faults: Arc<Faults>,
    /// The counters.
    pub board: Arc<Board>,
}

/// Accepts connections as [`Line`]s.
#[derive(Debug)]
pub struct Lines {
    listener: TcpListener,
    wire: Wire,
}

impl Lines {
    /// Wraps a listener.
    pub fn new(listener: TcpListener, wire: Wire) -> Lines {
        Lines { listener, wire }
    }

    /// The next connection.
    pub async fn accept(&self) -> Line {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Line::new(stream, self.wire.clone()),
                // Mostly out of file descriptors: retry later, not at once.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The address of the socket.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }
}

type NextSetting = Pin<Box<dyn Future<Output = (Setting, watch::Receiver<Setting>)> + Send>>;

/// One connection, subject to the active fault.
pub struct Line {
    stream: TcpStream,
    wire: Wire,
    setting: Setting,
    next: NextSetting,
    n_sent: u64,
    pause: Option<Pin<Box<Sleep>>>,
    is_cut: bool,
}

/// What the fault allows a connection now.
enum Leave {
    Write(usize),
    Wait,
}

impl Line {
    fn new(stream: TcpStream, wire: Wire) -> Line {
        // Events are small: without this the second of two would wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        wire.board.connected();
        let mut settings = wire.faults.follow();
        let setting = settings.borrow_and_update().clone();
        let next = follow(settings);
        Line { stream, wire, setting, next, n_sent: 0, pause: None, is_cut: false }
    }

    /// The address that the client connected to.
    pub fn local_ip(&self) -> Result<IpAddr> {
        Ok(self.stream.local_addr()?.ip())
    }

    /// Whether the client begins a TLS handshake, by its first byte, which stays unread.
    pub async fn begins_tls(&mut self) -> Result<bool> {
        /// The first byte of a record of a handshake.
        const HANDSHAKE: u8 = 22;
        poll_fn(|context| {
            let Leave::Write(_) = self.leave(context)? else {
                return Poll::Pending;
            };
            let mut byte = [0];
            let mut into = ReadBuf::new(&mut byte);
            ready!(self.stream.poll_peek(context, &mut into))?;
            Poll::Ready(Ok(into.filled() == [HANDSHAKE]))
        })
        .await
    }

    /// Adopts a new fault, and registers for the next change.
    fn update(&mut self, context: &mut Context<'_>) {
        while let Poll::Ready((setting, settings)) = self.next.as_mut().poll(context) {
            self.next = follow(settings);
            self.setting = setting;
            self.n_sent = 0;
            self.pause = None;
        }
    }

    fn leave(&mut self, context: &mut Context<'_>) -> Result<Leave> {
        self.update(context);
        if self.is_cut {
            return Err(cut());
        }
        match self.setting.fault {
            Some(Fault::Away) => {
                self.wire.faults.met();
                self.is_cut = true;
                Err(cut())
            }
            Some(Fault::Cut { after, .. }) if self.n_sent >= after => {
                self.is_cut = self.wire.faults.take_cut(self.setting.epoch);
                if self.is_cut { Err(cut()) } else { Ok(Leave::Write(usize::MAX)) }
            }
            Some(Fault::Cut { after, .. }) => {
                Ok(Leave::Write(usize::try_from(after - self.n_sent).unwrap_or(usize::MAX)))
            }
            Some(Fault::Slow { chunk, .. }) => Ok(Leave::Write(chunk.max(1))),
            Some(Fault::Silent) => {
                self.wire.faults.met();
                Ok(Leave::Wait)
            }
            _ => Ok(Leave::Write(usize::MAX)),
        }
    }
}

fn cut() -> Error {
    Error::new(ErrorKind::ConnectionReset, "cut by the fault in force")
}

fn follow(mut settings: watch::Receiver<Setting>) -> NextSetting {
    Box::pin(async move {
        if settings.changed().await.is_err() {
            // The server ends, and this connection with it.
            std::future::pending::<()>().await;
        }
        let setting = settings.borrow_and_update().clone();
        (setting, settings)
    })
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let line = self.get_mut();
        match line.leave(context)? {
            Leave::Write(_) => Pin::new(&mut line.stream).poll_read(context, into),
            Leave::Wait => Poll::Pending,
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let line = self.get_mut();
        let Leave::Write(limit) = line.leave(context)? else {
            return Poll::Pending;
        };
        if let Some(pause) = &mut line.pause {
            ready!(pause.as_mut().poll(context));
            line.pause = None;
        }
        let part = &bytes[..bytes.len().min(limit)];
        let n_written = ready!(Pin::new(&mut line.stream).poll_write(context, part))?;
        line.n_sent += n_written as u64;
        line.wire.board.wrote(n_written);
        if let Some(Fault::Slow { pause, .. }) = line.setting.fault {
            line.wire.faults.met();
            line.pause = Some(Box::pin(sleep(pause)));
        }
        Poll::Ready(Ok(n_written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let line = self.get_mut();
        line.leave(context)?;
        Pin::new(&mut line.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
