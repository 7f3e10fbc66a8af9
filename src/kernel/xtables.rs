//! x_tables, the legacy back-end, without its programs: how large a table is, its chains, and whether their
//! rules are the same.
//!
//! A program of the legacy back-end is a process, and takes the xtables lock. The kernel gives the whole
//! table to anyone with CAP_NET_ADMIN who asks a socket for it (`IPT_SO_GET_ENTRIES`), as a program would read
//! it: no process, no lock. What rules say is not understood here, only whether it is the same as before.

mod blob;

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::{Dump, Outline};
use crate::iptables::{ChainName, Table};
use crate::net::IpFamily;
use blob::Layout;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;

/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `struct ipt_getinfo`: the name; valid hooks, five entry points, five policies, entries, bytes.
const INFO: usize = NAME + 4 * (1 + 5 + 5 + 1 + 1);
/// `struct ipt_get_entries` before its entries: the name, bytes.
const ENTRIES: usize = (NAME + 4).next_multiple_of(align_of::<u64>());

/// How often a table is asked for again when another process changes its size meanwhile.
const ATTEMPTS: usize = 20;

/// A table larger than this, of about a million rules, is not taken into memory.
const MAX_BYTES: usize = 512 << 20;

/// The numbers of `table`. One that is not there is made, as by `iptables -L`.
pub(super) fn outline(family: IpFamily, table: Table) -> io::Result<Outline> {
    Tables::open(family)?.outline(table)
}

/// How the chains of `table` look: all of them, or `only` these, of which one that is not there looks empty.
/// The table is one moment's. Chains with names that iptables does not know are left out.
///
/// A print is of what rules say: where they stand in the table, which changes with every other chain, and
/// counters are not in it.
pub(super) fn prints(family: IpFamily, table: Table, only: Option<&[ChainName]>) -> io::Result<Dump> {
    let mut chains = Tables::open(family)?
        .whole(table, MAX_BYTES, |layout, outline, entries| blob::chains(layout, table, outline, entries))?;
    chains.sort_unstable_by_key(|shown| shown.name);
    if let Some(only) = only {
        let of = |name: &ChainName| match chains.binary_search_by_key(name, |shown| shown.name) {
            Ok(at) => chains[at],
            Err(_) => blob::empty(*name),
        };
        let mut selected: Vec<_> = only.iter().map(of).collect();
        selected.sort_unstable_by_key(|shown| shown.name);
        chains = selected;
    }
    Ok(Dump { generation: None, chains })
}

/// Passes on the name of each chain of `table`, once, in the table's order.
pub(super) fn chain_names(family: IpFamily, table: Table, each: &mut dyn FnMut(&str)) -> io::Result<()> {
    Tables::open(family)?.whole(table, MAX_BYTES, |layout, outline, entries| {
        let heads = blob::heads(layout, table, outline, entries)?;
        heads.iter().for_each(|(_, name)| each(name));
        Some(())
    })
}

/// The tables of one family, in the network namespace of the thread that opened it.
struct Tables {
    family: IpFamily,
    /// Any socket of the family will do; one that sends nothing needs no CAP_NET_RAW.
    socket: Socket,
}

impl Tables {
    fn open(family: IpFamily) -> io::Result<Tables> {
        let domain = match family {
            IpFamily::V4 => Domain::IPV4,
            IpFamily::V6 => Domain::IPV6,
        };
        Ok(Tables { family, socket: Socket::new(domain, Type::DGRAM, None)? })
    }

    fn outline(&self, table: Table) -> io::Result<Outline> {
        let mut info = [0; INFO];
        put_name(&mut info, table);
        if self.get(GET_INFO, &mut info)? != INFO {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let number = |n: usize| u32_at(&info, NAME + 4 * n).expect("the array is that long");
        let hook = |n: usize| (number(0) & 1 << n != 0).then(|| number(1 + n));
        Ok(Outline {
            hooks: std::array::from_fn(hook),
            policies: std::array::from_fn(|n| number(6 + n)),
            n_entries: number(11),
            n_bytes: number(12),
        })
    }

    /// Hands all entries of `table`, if they are no more than `max_bytes`, to `read`, which returns `None` for
    /// bytes that are no table.
    ///
    /// They are in memory all at once, for as long as that takes: the kernel writes them nowhere else.
    fn whole<T>(
        &self,
        table: Table,
        max_bytes: usize,
        read: impl FnOnce(&Layout, &Outline, &[u8]) -> Option<T>,
    ) -> io::Result<T> {
        for _ in 0..ATTEMPTS {
            let outline = self.outline(table)?;
            let n_bytes = outline.n_bytes as usize;
            if n_bytes > max_bytes {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            // The kernel leaves gaps as they are: zero, so that equal rules are equal bytes.
            let mut bytes = vec![0; ENTRIES + n_bytes];
            put_name(&mut bytes, table);
            bytes[NAME..NAME + 4].copy_from_slice(&outline.n_bytes.to_ne_bytes());
            match self.get(GET_ENTRIES, &mut bytes) {
                // Another size than a moment ago.
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => continue,
                got => got?,
            };
            // The same size, but perhaps another table.
            if self.outline(table)? != outline {
                continue;
            }
            let layout = Layout::of(self.family);
            return read(&layout, &outline, &bytes[ENTRIES..]).ok_or(io::ErrorKind::InvalidData.into());
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// `getsockopt`: what it wrote to `bytes`, in bytes.
    #[allow(unsafe_code, reason = "no safe getsockopt takes an option that is not known to it")]
    fn get(&self, option: libc::c_int, bytes: &mut [u8]) -> io::Result<usize> {
        let level = match self.family {
            IpFamily::V4 => libc::IPPROTO_IP,
            IpFamily::V6 => libc::IPPROTO_IPV6,
        };
        let mut length = libc::socklen_t::try_from(bytes.len())
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the kernel writes `length` bytes at most, which `bytes` has and which are plain numbers; the
        // socket is open as long as `self` is.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(result)?;
        Ok(length as usize)
    }
}

fn put_name(bytes: &mut [u8], table: Table) {
    let name = table.as_str().as_bytes();
    bytes[..name.len()].copy_from_slice(name);
}

/// The number at `at`, in this machine's order.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
