//! x_tables, the legacy back-end, without its programs: a table's size, its chains, and their fingerprints.
//!
//! A program of the legacy back-end is a process, and takes the xtables lock. The kernel returns the whole table
//! over a socket to any process with CAP_NET_ADMIN (`IPT_SO_GET_ENTRIES`), as the programs read it: no process, no
//! lock. Rules are not parsed here, only hashed.

mod blob;

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::{Dump, DumpedChain, Outline};
use crate::iptables::{ChainName, DnatRule, Table};
use crate::net::IpFamily;
use blob::{EntryLayout, u32_at};

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

/// How often a table is requested again when another process changes its size meanwhile.
const ATTEMPTS: usize = 20;

/// A table larger than this, of about a million rules, is not read into memory.
const MAX_BYTES: usize = 512 << 20;

/// The outline of `table`. The kernel makes a table that does not exist, as for `iptables -L`.
pub(super) fn outline(family: IpFamily, table: Table) -> io::Result<Outline> {
    TableSocket::open(family)?.outline(table)
}

/// Fingerprints of the chains of `table`: of all chains, or of `only` these, where a chain that does not exist counts
/// as empty. All are of one moment. Chains whose names iptables does not accept are left out.
///
/// Offsets, which change with every other chain, and counters are not part of a fingerprint.
pub(super) fn fingerprints(family: IpFamily, table: Table, only: Option<&[ChainName]>) -> io::Result<Dump> {
    let mut chains = TableSocket::open(family)?
        .whole(table, MAX_BYTES, |layout, outline, entries| blob::chains(layout, table, outline, entries))?;
    chains.sort_unstable_by_key(|chain| chain.name);
    if let Some(only) = only {
        let of = |name: &ChainName| match chains.binary_search_by_key(name, |chain| chain.name) {
            Ok(at) => chains[at],
            Err(_) => DumpedChain::empty(*name),
        };
        let mut selected: Vec<_> = only.iter().map(of).collect();
        selected.sort_unstable_by_key(|chain| chain.name);
        chains = selected;
    }
    Ok(Dump { generation: None, chains })
}

/// Passes on the name of each chain of `table`, once, in the table's order.
pub(super) fn chain_names(family: IpFamily, table: Table, each: &mut dyn FnMut(&str)) -> io::Result<()> {
    TableSocket::open(family)?.whole(table, MAX_BYTES, |layout, outline, entries| {
        let heads = blob::heads(layout, table, outline, entries)?;
        heads.iter().for_each(|(_, name)| each(name));
        Some(())
    })
}

/// The DNAT rules of `chains` of nat (sorted), with their counters; none of a chain that does not exist. All are of one
/// moment.
///
/// A program that replaces the table takes the counters of the rules that it keeps out, and adds them again a moment
/// later: meanwhile they are near zero.
pub(super) fn dnat_rules(family: IpFamily, chains: &[ChainName]) -> io::Result<Vec<DnatRule>> {
    TableSocket::open(family)?.whole(Table::Nat, MAX_BYTES, |layout, outline, entries| {
        let is_selected = |chain: &ChainName| chains.binary_search(chain).is_ok();
        blob::dnat_rules(layout, (family, Table::Nat), outline, entries, is_selected)
    })
}

/// A socket for the tables of one family, in the network namespace of the thread that opened it.
struct TableSocket {
    family: IpFamily,
    /// Any socket of the family serves; a datagram socket needs no CAP_NET_RAW.
    socket: Socket,
}

impl TableSocket {
    fn open(family: IpFamily) -> io::Result<TableSocket> {
        let domain = match family {
            IpFamily::V4 => Domain::IPV4,
            IpFamily::V6 => Domain::IPV6,
        };
        Ok(TableSocket { family, socket: Socket::new(domain, Type::DGRAM, None)? })
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

    /// Passes all entries of `table`, if they are no more than `max_bytes`, to `read`, which returns `None` for
    /// bytes that are not a table.
    ///
    /// They are in memory all at once, as long as `read` takes: the kernel returns a table in one piece.
    fn whole<T>(
        &self,
        table: Table,
        max_bytes: usize,
        read: impl FnOnce(&EntryLayout, &Outline, &[u8]) -> Option<T>,
    ) -> io::Result<T> {
        for _ in 0..ATTEMPTS {
            let outline = self.outline(table)?;
            let n_bytes = outline.n_bytes as usize;
            if n_bytes > max_bytes {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            // The kernel does not write gaps: zeros, so that equal rules are equal bytes.
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
            let layout = EntryLayout::of(self.family);
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

#[cfg(test)]
mod tests;
