//! SCTP by hand: where the kernel has no SCTP sockets, its NAT still works.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::address::Family;
use crate::lab::client::Host;
use crate::lab::host::Pod;

/// SCTP's number in an IP header.
const SCTP: i32 = 132;

/// An INIT as received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Init {
    pub(super) source: SocketAddr,
    pub(super) destination_port: u16,
    pub(super) is_checksum_right: bool,
}

/// Receives in a pod; ends when dropped.
pub(super) struct Inits {
    received: Receiver<Init>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Inits {
    /// The next INIT, if one comes within `patience`.
    pub(super) fn hear(&self, patience: Duration) -> Option<Init> {
        self.received.recv_timeout(patience).ok()
    }
}

impl Drop for Inits {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.listener.take().map(JoinHandle::join));
    }
}

/// Listens for INITs over `family` in `pod`.
pub(super) fn listen(pod: &Pod, family: Family) -> Inits {
    let (sender, received) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let listener = pod.namespace().spawn(move || {
        let socket = raw_socket(family);
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket takes a timeout");
        ready.send(()).expect("the test waits");
        let mut packet = [0; 2048];
        while !stopped.load(Ordering::Relaxed) {
            match socket.recv_from(&mut packet) {
                // Without a receiver the test has just ended.
                Ok((length, from)) => drop(parse(from, &packet[..length]).map(|init| sender.send(init))),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("hearing SCTP: {error}"),
            }
        }
    });
    is_ready.recv().expect("the listener starts");
    Inits { received, stop, listener: Some(listener.expect("a thread starts")) }
}

/// Sends an INIT from `pod`'s `port` to `to`.
pub(super) fn send_init(pod: &Pod, port: u16, to: SocketAddr) {
    let packet = init(port, to.port());
    pod.namespace().run(|| {
        let mut at = to;
        at.set_port(0);
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        raw_socket(family).send_to(&packet, at).expect("a packet can be sent");
    });
}

/// A raw socket in the type of a datagram socket: it sends and receives in the same way.
fn raw_socket(family: Family) -> UdpSocket {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)));
    socket.expect("root may have raw sockets").into()
}

/// An SCTP packet with an INIT chunk (RFC 9260, 3.1 and 3.3.2).
fn init(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    // Verification tag of an INIT, and room for the checksum.
    packet.extend([0; 8]);
    // Type INIT, no flags, length 20.
    packet.extend([1, 0, 0, 20]);
    // Initiate tag, receiver window, streams out and in, first sequence number.
    packet.extend(0x1234_5678_u32.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1_u32.to_be_bytes());
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// Parses a packet from a raw socket, with its header over IPv4 and without over IPv6; `None`
/// if it is no INIT.
fn parse(from: SocketAddr, packet: &[u8]) -> Option<Init> {
    let header = if from.is_ipv4() { usize::from(packet.first()? & 0xf) * 4 } else { 0 };
    let sctp = packet.get(header..)?;
    if *sctp.get(12)? != 1 {
        return None;
    }
    let mut zeroed = sctp.to_vec();
    zeroed[8..12].fill(0);
    Some(Init {
        source: SocketAddr::new(from.ip(), u16::from_be_bytes([sctp[0], sctp[1]])),
        destination_port: u16::from_be_bytes([sctp[2], sctp[3]]),
        is_checksum_right: sctp[8..12] == crc32c(&zeroed).to_le_bytes(),
    })
}

/// The checksum of SCTP (Castagnoli's polynomial, bits reflected).
fn crc32c(bytes: &[u8]) -> u32 {
    let fold = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), fold))
}
