//! Requests to netfilter over netlink (`nfnetlink`), and the messages that come back.
//!
//! A socket belongs to the network namespace of the thread that opened it.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// More than the kernel puts into one datagram (32 KiB).
const BUFFER: usize = 64 * 1024;

/// How long the kernel, which answers at once, may take for one datagram of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A socket for requests, one at a time.
pub(super) struct Netfilter {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message of the kernel, or an attribute of one that holds attributes itself.
pub(super) struct Message<'a> {
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The value of the first attribute of type `kind`.
    pub(super) fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes().find(|(other, _)| *other == kind).map(|(_, value)| value)
    }

    /// All attributes in their order: type and value.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        NlasIterator::new(self.attributes).map_while(Result::ok).map(|attribute| {
            let kind = attribute.kind();
            let bytes: &'a [u8] = attribute.into_inner();
            // A checked attribute is its header of 4 bytes, its value, and what follows.
            let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
            (kind, &bytes[4..length])
        })
    }

    /// The value of an attribute that is attributes itself.
    pub(super) fn of(attributes: &'a [u8]) -> Message<'a> {
        Message { attributes }
    }

    /// An attribute whose value is attributes.
    pub(super) fn inner(&self, kind: u16) -> Option<Message<'a>> {
        self.attribute(kind).map(|attributes| Message { attributes })
    }

    /// An attribute that is text ended by NUL.
    pub(super) fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.attribute(kind)?;
        str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    }

    /// An attribute that is a number of 8 bits.
    pub(super) fn u8(&self, kind: u16) -> Option<u8> {
        self.attribute(kind)?.first().copied()
    }

    /// An attribute that is a number of 16 bits in network order.
    pub(super) fn u16(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.attribute(kind)?.try_into().ok()?))
    }

    /// An attribute that is a number of 32 bits in network order.
    pub(super) fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.attribute(kind)?.try_into().ok()?))
    }

    /// An attribute that is a number of 64 bits in network order.
    pub(super) fn u64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.attribute(kind)?.try_into().ok()?))
    }
}

/// What to ask.
pub(super) struct Request<'a> {
    /// `NFNL_SUBSYS_*`.
    pub(super) subsystem: u8,
    /// The message within the subsystem.
    pub(super) message: u8,
    /// `NFPROTO_*`.
    pub(super) family: u8,
    /// `NLM_F_*` beside REQUEST and ACK.
    pub(super) flags: u16,
    /// Attributes that are text, with their types.
    pub(super) texts: &'a [(u16, &'a str)],
    /// More attributes, as [`push_attribute`] makes them.
    pub(super) attributes: &'a [u8],
}

impl Request<'_> {
    fn bytes(&self, sequence: u32) -> Vec<u8> {
        let flags = NLM_F_REQUEST | self.flags;
        // A dump ends with DONE, everything else with an acknowledgement.
        let flags = if flags & NLM_F_DUMP == NLM_F_DUMP { flags } else { flags | NLM_F_ACK };
        let mut bytes = vec![0; 4];
        bytes.extend([self.message, self.subsystem]);
        if cfg!(target_endian = "big") {
            bytes[4..6].reverse();
        }
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        // struct nfgenmsg: family, version, resource.
        bytes.extend([self.family, 0, 0, 0]);
        for (kind, text) in self.texts {
            push_attribute(&mut bytes, *kind, &[text.as_bytes(), &[0]].concat());
        }
        bytes.extend(self.attributes);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }
}

/// `NLA_F_NESTED`: the value of an attribute of such a type is attributes.
pub(super) const NESTED: u16 = 0x8000;

/// Appends an attribute of type `kind`, filled up to a multiple of four bytes.
pub(super) fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attribute `kind` whose value is attributes: those of `parts`, run together.
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

impl Netfilter {
    /// Opens a socket in the namespace of this thread.
    pub(super) fn open() -> io::Result<Netfilter> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket2::SockRef::from(&socket).set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Netfilter { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends `request` and passes on each message of the answer. The kernel's refusal is the error
    /// of its number; `Interrupted` when what was dumped changed meanwhile, so that the answer may
    /// lack entries or hold them twice.
    pub(super) fn ask(
        &mut self,
        request: &Request<'_>,
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request.bytes(self.sequence), 0)?;
        let mut is_interrupted = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let (message, tail) = first(rest)?;
                rest = tail;
                // What is left of a request that failed on the way.
                if message.sequence_number() != self.sequence {
                    continue;
                }
                is_interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => {
                        status(message.payload())?;
                        return if is_interrupted { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) };
                    }
                    _ => each(&content(&message)?),
                }
            }
        }
    }
}

impl Netfilter {
    /// Has the kernel carry out `request`, which changes something, as a commit of its own.
    pub(super) fn commit(&mut self, request: &Request<'_>) -> io::Result<()> {
        let begin = self.sequence.wrapping_add(1);
        let (at, end) = (begin.wrapping_add(1), begin.wrapping_add(2));
        self.sequence = end;
        let mut bytes = batch_mark(BATCH_BEGIN, request.subsystem, begin);
        bytes.extend(request.bytes(at));
        bytes.extend(batch_mark(BATCH_END, request.subsystem, end));
        self.socket.send(&bytes, 0)?;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let (message, tail) = first(rest)?;
                rest = tail;
                let number = message.sequence_number();
                if message.message_type() == NLMSG_ERROR && [begin, at, end].contains(&number) {
                    status(message.payload())?;
                    if number == at {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// The message that begins or ends a commit of `subsystem`.
fn batch_mark(kind: u16, subsystem: u8, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    bytes.extend(20u32.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    // struct nfgenmsg: the resource is the subsystem.
    bytes.extend([0, 0, 0, subsystem]);
    bytes
}

/// The first of the messages in a datagram, and the others.
pub(super) fn first(bytes: &[u8]) -> io::Result<(NetlinkBuffer<&[u8]>, &[u8])> {
    let message = NetlinkBuffer::new_checked(bytes).map_err(io::Error::other)?;
    let end = (message.length() as usize).next_multiple_of(4).min(bytes.len());
    Ok((message, &bytes[end..]))
}

/// A message of netfilter without its two headers.
pub(super) fn content<'a>(message: &NetlinkBuffer<&'a [u8]>) -> io::Result<Message<'a>> {
    let attributes = message.payload().get(4..).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Message { attributes })
}

/// The error number at the start of the payload of ERROR and DONE: zero or negative.
pub(super) fn status(payload: &[u8]) -> io::Result<()> {
    let bytes: [u8; 4] = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    match i32::from_ne_bytes(bytes) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// Runs `test` in a network namespace that ends with it: a thread of its own leaves this one.
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
