//! Netlink multicast: messages that the kernel sends to every socket in a group.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

/// More than the kernel's largest datagram (32 KiB).
const BUFFER: usize = 64 * 1024;

/// A socket in multicast groups of one netlink protocol.
pub(in crate::kernel) struct Multicast {
    pub(in crate::kernel) socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Multicast {
    /// Joins `groups` of `protocol` (`NETLINK_*`) in the network namespace of this thread, inside a tokio
    /// runtime. `prepare` is called with the socket before any message arrives.
    #[allow(unsafe_code, reason = "tokio has no safe way to register a file descriptor")]
    pub(in crate::kernel) fn join(
        protocol: isize,
        groups: &[u32],
        prepare: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<Multicast> {
        let mut socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        prepare(&socket)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        groups.iter().try_for_each(|group| socket.add_membership(*group))?;
        // SAFETY: the socket owns its descriptor, and nothing replaces or closes it before it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Multicast { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Waits for the next datagram; `None` when the kernel dropped some, because they were not read fast
    /// enough. Cancel-safe.
    pub(in crate::kernel) async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let mut ready = self.socket.readable().await?;
            self.buffer.clear();
            let buffer = &mut self.buffer;
            match ready.try_io(|socket| socket.get_ref().recv(buffer, 0)) {
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(None),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(received) => {
                    received?;
                    break;
                }
                Err(_would_block) => {}
            }
        }
        Ok(Some(&self.buffer))
    }

    /// Reads and discards pending datagrams, `max` at most.
    pub(in crate::kernel) fn discard(&mut self, max: usize) -> io::Result<()> {
        for _ in 0..max {
            self.buffer.clear();
            match self.socket.get_ref().recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => drop(received?),
            }
        }
        Ok(())
    }
}
