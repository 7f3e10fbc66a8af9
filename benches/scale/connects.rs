//! A pod with a server, and the time to connect to it.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use socket2::{Domain, Socket, Type};

/// Connections for one figure.
const N_CONNECTS: usize = 5_000;

/// A server that listens on the node's own address and closes each connection at once.
pub struct Pod {
    address: SocketAddr,
}

/// The time to connect.
pub struct Connects {
    /// The median, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile, in microseconds.
    pub p99_us: f64,
    /// Connections per second, one after another.
    pub per_second: f64,
}

impl Pod {
    /// Starts it on a thread that lives as long as the process.
    pub fn serve() -> anyhow::Result<Pod> {
        let listener = TcpListener::bind("192.0.2.9:8080").context("listening")?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || listener.incoming().for_each(drop));
        Ok(Pod { address })
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects to `to` until that succeeds, for at most `limit`.
    pub fn first_packet(&self, to: SocketAddr, limit: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            // From a different address each time: failed attempts leave flows to endpoints that are gone.
            let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            client.bind(&SocketAddr::from(([10, 255, 255, 7], 0)).into())?;
            if client.connect_timeout(&to.into(), Duration::from_millis(20)).is_ok() {
                return Ok(());
            }
            ensure!(started.elapsed() < limit, "{to} never answered");
        }
    }

    /// Connects to `to` many times, one after the other.
    pub fn connect_to(&self, to: SocketAddr) -> anyhow::Result<Connects> {
        let started = Instant::now();
        let mut times = Vec::with_capacity(N_CONNECTS);
        for _ in 0..N_CONNECTS {
            let begun = Instant::now();
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
                .with_context(|| format!("connecting to {to}"))?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
            // Until the connection was accepted: otherwise the listener's queue overflows, and that is what
            // is measured.
            (&stream).read_to_end(&mut Vec::new())?;
            // Without TIME_WAIT, since ports would run out.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        let per_second = N_CONNECTS as f64 / started.elapsed().as_secs_f64();
        let p50_us = crate::percentile(&mut times, 50);
        let p99_us = crate::percentile(&mut times, 99);
        Ok(Connects { p50_us, p99_us, per_second })
    }
}
