//! Clients: one attempt to reach an address from a namespace, or many, and their outcomes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::namespace::Namespace;

/// How long a client waits for an answer that it expects.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client waits when it expects none.
pub const IMPATIENCE: Duration = Duration::from_millis(700);

/// The pause between two attempts of a client that keeps trying: there are 28 000 ports, and each is in use for
/// a minute.
const PAUSE: Duration = Duration::from_millis(3);

/// A transport protocol that pods serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A pod answered.
    Answered {
        /// The name of the pod.
        pod: String,
        /// The client's address as the pod saw it.
        seen: SocketAddr,
    },
    /// Rejected at once (ICMP port unreachable, or a TCP reset).
    Refused,
    /// No route to this address (ICMP unreachable): in a lab, the answer of the fabric to a packet whose address
    /// no rule changed.
    Unreachable,
    /// No answer, or a rule of the client's own host dropped the packet.
    TimedOut,
}

/// One attempt and its outcome.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its outcome.
    pub outcome: Outcome,
    /// The client's own address, if it got one.
    pub from: Option<SocketAddr>,
    /// Its duration.
    pub elapsed: Duration,
}

impl Attempt {
    /// The pod that answered.
    ///
    /// # Panics
    /// If no pod answered.
    #[track_caller]
    pub fn pod(&self) -> &str {
        match &self.outcome {
            Outcome::Answered { pod, .. } => pod,
            other => panic!("no pod answered: {other:?} after {:?}", self.elapsed),
        }
    }

    /// The client's address as the pod saw it.
    ///
    /// # Panics
    /// If no pod answered.
    #[track_caller]
    pub fn seen(&self) -> SocketAddr {
        match self.outcome {
            Outcome::Answered { seen, .. } => seen,
            ref other => panic!("no pod answered: {other:?} after {:?}", self.elapsed),
        }
    }
}

/// The number of each outcome, with pods by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by pod.
    pub pods: BTreeMap<String, u32>,
    /// Other attempts, by outcome.
    pub failures: BTreeMap<Outcome, u32>,
}

impl Tally {
    /// Counts one outcome.
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answered { pod, .. } => *self.pods.entry(pod).or_default() += 1,
            failure => *self.failures.entry(failure).or_default() += 1,
        }
    }

    /// Adds the counts of another client.
    pub fn merge(&mut self, other: Self) {
        for (pod, n) in other.pods {
            *self.pods.entry(pod).or_default() += n;
        }
        for (outcome, n) in other.failures {
            *self.failures.entry(outcome).or_default() += n;
        }
    }

    /// All attempts.
    pub fn n_attempts(&self) -> u32 {
        self.pods.values().chain(self.failures.values()).sum()
    }

    /// Attempts that no pod of `pods` answered.
    pub fn n_wrong(&self, pods: &[&str]) -> u32 {
        let wrong_pods = self.pods.iter().filter(|(pod, _)| !pods.contains(&pod.as_str()));
        wrong_pods.map(|(_, n)| n).chain(self.failures.values()).sum()
    }

    /// Asserts that every attempt was answered, by exactly `pods`, each as often as chance allows.
    ///
    /// The bound is five standard deviations: a fair choice exceeds it once in a million times.
    #[track_caller]
    pub fn assert_spread(&self, pods: &[&str]) {
        assert!(self.failures.is_empty(), "failures: {self}");
        let names: Vec<&str> = self.pods.keys().map(String::as_str).collect();
        let mut expected = pods.to_vec();
        expected.sort_unstable();
        assert_eq!(names, expected, "the pods that answered");
        let share = 1.0 / f64::from(u32::try_from(pods.len()).expect("few pods"));
        let total = f64::from(self.pods.values().sum::<u32>());
        let bound = 5.0 * (total * share * (1.0 - share)).sqrt();
        for (pod, n_answers) in &self.pods {
            let off = (f64::from(*n_answers) - total * share).abs();
            assert!(off <= bound, "{pod} answered {n_answers} of {total} times: {self}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answers {:?}, failures {:?}", self.pods, self.failures)
    }
}

/// Everything that can send: a node, a pod, the client outside.
pub trait Host {
    /// Its namespace.
    fn namespace(&self) -> &Namespace;

    /// One TCP connection to `to`, waiting [`PATIENCE`] for an answer.
    fn tcp(&self, to: SocketAddr) -> Attempt {
        self.attempt(Protocol::Tcp, to, PATIENCE)
    }

    /// One UDP datagram to `to`, waiting [`PATIENCE`] for an answer.
    fn udp(&self, to: SocketAddr) -> Attempt {
        self.attempt(Protocol::Udp, to, PATIENCE)
    }

    /// One attempt, waiting `patience` for an answer.
    fn attempt(&self, protocol: Protocol, to: SocketAddr, patience: Duration) -> Attempt {
        self.namespace().run(|| attempt(protocol, None, to, patience))
    }

    /// One attempt from the address and port `from` of this host (port 0: any).
    fn attempt_from(
        &self,
        from: SocketAddr,
        protocol: Protocol,
        to: SocketAddr,
        patience: Duration,
    ) -> Attempt {
        self.namespace().run(|| attempt(protocol, Some(from), to, patience))
    }

    /// `n` attempts one after the other.
    fn attempts(&self, n: u32, protocol: Protocol, to: SocketAddr) -> Tally {
        self.namespace().run(|| {
            let mut tally = Tally::default();
            for _ in 0..n {
                tally.add(attempt(protocol, None, to, PATIENCE).outcome);
            }
            tally
        })
    }

    /// New attempts one after the other, in the background, until stopped; each waits for
    /// `patience`.
    fn keep_trying(&self, protocol: Protocol, to: SocketAddr, patience: Duration) -> Result<Traffic> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let client = self.namespace().spawn(move || {
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                tally.add(attempt(protocol, None, to, patience).outcome);
                thread::sleep(PAUSE);
            }
            tally
        })?;
        Ok(Traffic { stop, client: Some(client) })
    }
}

/// Attempts in the background.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<Tally>>,
}

impl Traffic {
    /// Stops after the current attempt; returns all outcomes.
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let client = self.client.take().expect("it is stopped once");
        client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A test that ends without asking does not need the outcomes.
        drop(self.client.take().map(JoinHandle::join));
    }
}

/// One attempt from the calling thread's namespace.
fn attempt(protocol: Protocol, from: Option<SocketAddr>, to: SocketAddr, patience: Duration) -> Attempt {
    let start = Instant::now();
    let (mut source, mut line) = (None, String::new());
    let end = match protocol {
        Protocol::Tcp => try_tcp(from, to, patience, &mut source, &mut line),
        Protocol::Udp => try_udp(from, to, patience, &mut source, &mut line),
    };
    let outcome = match end {
        Ok(()) => parse_answer(&line).unwrap_or_else(|error| panic!("from {to}: {error:#}")),
        Err(error) => failure(&error, to),
    };
    Attempt { outcome, from: source, elapsed: start.elapsed() }
}

fn parse_answer(line: &str) -> Result<Outcome> {
    let (pod, seen) = line.trim_end().split_once(' ').with_context(|| format!("not an answer: {line:?}"))?;
    Ok(Outcome::Answered { pod: pod.to_owned(), seen: seen.parse().context("reading the address seen")? })
}

/// The outcome behind an error of connecting, sending or receiving.
fn failure(error: &io::Error, to: SocketAddr) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Outcome::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Outcome::Unreachable,
        // A receive that took too long would have blocked.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::TimedOut,
        _ => panic!("reaching {to}: {error} ({:?})", error.kind()),
    }
}

fn try_tcp(
    from: Option<SocketAddr>,
    to: SocketAddr,
    patience: Duration,
    source: &mut Option<SocketAddr>,
    line: &mut String,
) -> io::Result<()> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The send timeout bounds connect too.
    let limit = TimeVal::microseconds(i64::try_from(patience.as_micros()).expect("a short patience"));
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    let connected = connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
    let mut stream = TcpStream::from(socket);
    *source = stream.local_addr().ok();
    match connected {
        // A connect that took longer than the send timeout is "in progress".
        Err(Errno::EINPROGRESS) => return Err(ErrorKind::TimedOut.into()),
        other => other?,
    }
    stream.set_read_timeout(Some(patience))?;
    let mut byte = [0];
    while !line.ends_with('\n') {
        match stream.read(&mut byte)? {
            0 => return Err(ErrorKind::ConnectionReset.into()),
            _ => line.push(char::from(byte[0])),
        }
    }
    Ok(())
}

/// Binds a port that this client may just have used: a program that another test starts holds a copy
/// of our sockets for a moment, between fork and exec.
fn bind_udp(from: SocketAddr) -> io::Result<UdpSocket> {
    let start = Instant::now();
    loop {
        match UdpSocket::bind(from) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && start.elapsed() < PATIENCE => {
                thread::sleep(PAUSE);
            }
            bound => return bound,
        }
    }
}

fn try_udp(
    from: Option<SocketAddr>,
    to: SocketAddr,
    patience: Duration,
    source: &mut Option<SocketAddr>,
    line: &mut String,
) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = bind_udp(from.unwrap_or_else(|| SocketAddr::new(any, 0)))?;
    // Without this the kernel would report only "port unreachable", not "host unreachable".
    if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    }
    socket.connect(to)?;
    *source = socket.local_addr().ok();
    socket.set_read_timeout(Some(patience))?;
    match socket.send(b"hello") {
        // Dropped or rejected by a rule of our own OUTPUT; the next receive tells which.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    *line = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(())
}
