//! Sends requests to the kernel over netlink, mostly to netfilter (`nfnetlink`), and parses the replies.
//!
//! A socket belongs to the network namespace of the thread that opened it.

mod generic;
mod multicast;

pub(super) use generic::GenericNetlink;
pub(super) use multicast::Multicast;

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::net::IpFamily;

/// More than the kernel's largest datagram (32 KiB).
const BUFFER: usize = 64 * 1024;

/// Timeout for one datagram of a reply. The kernel normally replies at once.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A socket for one request at a time to one kernel subsystem.
pub(super) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A socket to netfilter.
pub(super) struct Netfilter(NetlinkSocket);

/// One message of the kernel, or a nested attribute.
pub(super) struct Message<'a> {
    /// The second header, before the attributes; zeros for a nested attribute.
    head: [u8; 4],
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The four bytes before the attributes: the second header (`struct nfgenmsg`), or the first four of a longer one
    /// (`struct ifaddrmsg`).
    pub(super) fn head(&self) -> [u8; 4] {
        self.head
    }

    /// The value of the first attribute of type `kind`.
    pub(super) fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes().find(|(other, _)| *other == kind).map(|(_, value)| value)
    }

    /// All attributes in order: type and value.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        NlasIterator::new(self.attributes).map_while(Result::ok).map(|attribute| {
            let kind = attribute.kind();
            let bytes: &'a [u8] = attribute.into_inner();
            // A checked attribute is its header of 4 bytes, its value, and the following bytes.
            let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
            (kind, &bytes[4..length])
        })
    }

    /// Parses the value of a nested attribute.
    pub(super) fn of(attributes: &'a [u8]) -> Message<'a> {
        Message { head: [0; 4], attributes }
    }

    /// The nested attributes of type `kind`.
    pub(super) fn all_inner(&self, kind: u16) -> impl Iterator<Item = Message<'a>> + use<'a> {
        self.attributes().filter(move |(other, _)| *other == kind).map(|(_, value)| Message::of(value))
    }

    /// Splits off four bytes, where the second header is that much longer than usual (`struct ifaddrmsg`):
    /// returns these four, and the attributes after them.
    pub(super) fn split_header(&self) -> Option<([u8; 4], Message<'a>)> {
        let (header, attributes) = self.attributes.split_first_chunk()?;
        Some((*header, Message { head: *header, attributes }))
    }

    /// The nested attribute of type `kind`.
    pub(super) fn inner(&self, kind: u16) -> Option<Message<'a>> {
        self.attribute(kind).map(Message::of)
    }

    /// An attribute with a NUL-terminated string.
    pub(super) fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.attribute(kind)?;
        str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    }

    /// An 8-bit attribute.
    pub(super) fn u8(&self, kind: u16) -> Option<u8> {
        self.attribute(kind)?.first().copied()
    }

    /// A 16-bit attribute in network order.
    pub(super) fn u16(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.attribute(kind)?.try_into().ok()?))
    }

    /// A 16-bit attribute in native order.
    pub(super) fn native_u16(&self, kind: u16) -> Option<u16> {
        Some(u16::from_ne_bytes(self.attribute(kind)?.try_into().ok()?))
    }

    /// A 32-bit attribute in native order.
    pub(super) fn native_u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.attribute(kind)?.try_into().ok()?))
    }

    /// A 32-bit attribute in network order.
    pub(super) fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.attribute(kind)?.try_into().ok()?))
    }

    /// A 64-bit attribute in network order.
    pub(super) fn u64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.attribute(kind)?.try_into().ok()?))
    }
}

/// A request to netfilter.
pub(super) struct NetfilterRequest<'a> {
    /// `NFNL_SUBSYS_*`.
    pub(super) subsystem: u8,
    /// The message within the subsystem.
    pub(super) message: u8,
    /// `NFPROTO_*`.
    pub(super) family: u8,
    /// `NLM_F_*` beside REQUEST and ACK.
    pub(super) flags: u16,
    /// String attributes, with their types.
    pub(super) texts: &'a [(u16, &'a str)],
    /// Further attributes, as [`push_attribute`] writes them.
    pub(super) attributes: &'a [u8],
}

impl NetfilterRequest<'_> {
    /// A request without flags and attributes.
    pub(super) fn new(subsystem: u8, message: u8, family: u8) -> Self {
        NetfilterRequest { subsystem, message, family, flags: 0, texts: &[], attributes: &[] }
    }

    fn kind(&self) -> u16 {
        u16::from(self.subsystem) << 8 | u16::from(self.message)
    }

    /// The bytes after the netlink header.
    fn payload(&self) -> Vec<u8> {
        // struct nfgenmsg: family, version, resource.
        let mut bytes = vec![self.family, 0, 0, 0];
        for (kind, text) in self.texts {
            push_attribute(&mut bytes, *kind, &[text.as_bytes(), &[0]].concat());
        }
        bytes.extend(self.attributes);
        bytes
    }
}

/// `NLA_F_NESTED`: marks the type of an attribute whose value is attributes.
pub(super) const NESTED: u16 = 0x8000;

/// Appends an attribute of type `kind`, padded to a multiple of four bytes.
pub(super) fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attribute `kind` that contains the attributes `parts`.
pub(super) fn nested(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_attribute(&mut bytes, kind | NESTED, &parts.concat());
    bytes
}

/// The attribute `kind` with `value`.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_attribute(&mut bytes, kind, value);
    bytes
}

/// A message of type `kind`: its header and `payload`.
fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + payload.len());
    bytes.extend((16 + payload.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

impl NetlinkSocket {
    /// Opens a socket of `protocol` (`NETLINK_*`) in the namespace of this thread.
    pub(super) fn open(protocol: isize) -> io::Result<NetlinkSocket> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket2::SockRef::from(&socket).set_read_timeout(Some(REPLY_TIMEOUT))?;
        Ok(NetlinkSocket { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    fn next_number(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends `bytes` and passes each message of the reply to `each`, until that breaks.
    fn exchange<F>(&mut self, bytes: &[u8], mut each: F) -> io::Result<()>
    where
        F: FnMut(&NetlinkBuffer<&[u8]>) -> io::Result<ControlFlow<()>>,
    {
        self.socket.send(bytes, 0)?;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let (message, tail) = split_first(rest)?;
                rest = tail;
                if each(&message)?.is_break() {
                    return Ok(());
                }
            }
        }
    }

    /// Sends a request of type `kind` and passes each message of the reply to `each`. An error of the
    /// kernel is returned with its number; `Interrupted` when a dump changed meanwhile, so that entries may
    /// be missing or duplicated.
    pub(super) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let sequence = self.next_number();
        let mut is_interrupted = false;
        self.exchange(&message(kind, request_flags(flags), sequence, payload), |message| {
            // The rest of a reply to an earlier request that failed.
            if message.sequence_number() != sequence {
                return Ok(ControlFlow::Continue(()));
            }
            is_interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_DONE | NLMSG_ERROR => status(message.payload()).map(ControlFlow::Break),
                _ => {
                    each(&content(message)?);
                    Ok(ControlFlow::Continue(()))
                }
            }
        })?;
        if is_interrupted { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

/// Repeats `dump` while it is interrupted by a change, up to `n_attempts` times in all.
pub(super) fn retry_interrupted<T>(
    n_attempts: usize,
    mut dump: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    for _ in 1..n_attempts {
        match dump() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
    dump()
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(super) fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// A dump ends with DONE, everything else with an acknowledgement.
fn request_flags(flags: u16) -> u16 {
    let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
    NLM_F_REQUEST | flags | if is_dump { 0 } else { NLM_F_ACK }
}

impl Netfilter {
    /// Opens a socket in the namespace of this thread.
    pub(super) fn open() -> io::Result<Netfilter> {
        NetlinkSocket::open(NETLINK_NETFILTER).map(Netfilter)
    }

    /// Sends `request` and passes each message of the reply to `each`, as [`NetlinkSocket::request`].
    pub(super) fn request(
        &mut self,
        request: &NetfilterRequest<'_>,
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.0.request(request.kind(), request.flags, &request.payload(), each)
    }

    /// Sends `request`, which changes something, as a commit of its own.
    pub(super) fn commit(&mut self, request: &NetfilterRequest<'_>) -> io::Result<()> {
        let Netfilter(conversation) = self;
        let [begin, at, end] = [(); 3].map(|()| conversation.next_number());
        // struct nfgenmsg: the resource is the subsystem.
        let mark = |kind, number| message(kind, NLM_F_REQUEST, number, &[0, 0, 0, request.subsystem]);
        let change = message(request.kind(), request_flags(request.flags), at, &request.payload());
        let bytes = [mark(BATCH_BEGIN, begin), change, mark(BATCH_END, end)].concat();
        conversation.exchange(&bytes, |message| {
            let number = message.sequence_number();
            if message.message_type() != NLMSG_ERROR || ![begin, at, end].contains(&number) {
                return Ok(ControlFlow::Continue(()));
            }
            status(message.payload())?;
            Ok(if number == at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    }
}

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// The first message of a datagram, and the rest.
pub(super) fn split_first(bytes: &[u8]) -> io::Result<(NetlinkBuffer<&[u8]>, &[u8])> {
    let message = NetlinkBuffer::new_checked(bytes).map_err(io::Error::other)?;
    let end = (message.length() as usize).next_multiple_of(4).min(bytes.len());
    Ok((message, &bytes[end..]))
}

/// A message without its two headers; the second one is of 4 bytes (`struct nfgenmsg`, `struct genlmsghdr`).
pub(super) fn content<'a>(message: &NetlinkBuffer<&'a [u8]>) -> io::Result<Message<'a>> {
    let (head, attributes) = message.payload().split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    Ok(Message { head: *head, attributes })
}

/// The error number at the start of the payload of ERROR and DONE: zero or negative.
fn status(payload: &[u8]) -> io::Result<()> {
    let bytes = payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes(*bytes) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// Runs `test` in a new network namespace, on a thread of its own.
#[cfg(test)]
pub(crate) fn in_new_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests run as root");
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_without_a_status_is_an_error() {
        assert!(status(&0i32.to_ne_bytes()).is_ok());
        assert_eq!(status(&(-2i32).to_ne_bytes()).unwrap_err().raw_os_error(), Some(2));
        for bytes in [&[][..], &[0, 0, 0]] {
            assert_eq!(status(bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
