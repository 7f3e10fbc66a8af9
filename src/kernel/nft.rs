//! nf_tables over netlink, without the cost of starting programs: commits of other processes, names of
//! chains, fingerprints of rules.
//!
//! `iptables-nft-save` takes 20 s for 47 000 chains. The names alone take a few milliseconds, and the
//! generation of the ruleset shows at once whether anything changed.

mod chain_dump;
mod dnat_counters;

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

pub use chain_dump::fingerprints;
pub use dnat_counters::dnat_rules;

use super::netlink::{
    Multicast, Netfilter, NetfilterRequest, content, nfproto, retry_interrupted, split_first,
};
use crate::net::IpFamily;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
const GET_TABLE: u8 = 1;
const DELETE_TABLE: u8 = 2;
const GET_CHAIN: u8 = 4;
const NEW_GENERATION: u8 = 15;
const GET_GENERATION: u8 = 16;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const GENERATION_ID: u16 = 1;
const GENERATION_PID: u16 = 2;
const GENERATION_NAME: u16 = 3;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// How often a dump is restarted when another process commits meanwhile.
const ATTEMPTS: usize = 20;

/// The generation of the nf_tables ruleset: the number of commits in this network namespace, of all
/// families; never zero.
pub fn generation() -> io::Result<u32> {
    generation_over(&mut Netfilter::open()?)
}

/// As [`generation`], over an open socket.
fn generation_over(netfilter: &mut Netfilter) -> io::Result<u32> {
    let request = NetfilterRequest::new(SUBSYSTEM, GET_GENERATION, 0);
    let mut generation = None;
    netfilter.request(&request, &mut |message| generation = message.u32(GENERATION_ID))?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Passes the name of each chain of `table` (`nat`, `filter`), foreign ones too, to `each`, without
/// duplicates, in the kernel's order; none when the table does not exist. `Interrupted` when other
/// processes committed during each attempt; then `each` was not called.
pub fn chain_names(family: IpFamily, table: &str, each: &mut dyn FnMut(&str)) -> io::Result<()> {
    let family = nfproto(family);
    let request =
        NetfilterRequest { flags: NLM_F_DUMP, ..NetfilterRequest::new(SUBSYSTEM, GET_CHAIN, family) };
    let mut netfilter = Netfilter::open()?;
    // Names are kept until the dump is known to be complete: at most 28 bytes each.
    let names = retry_interrupted(ATTEMPTS, || {
        let mut names = String::new();
        netfilter.request(&request, &mut |message| {
            // The kernel filters by family only.
            if message.text(CHAIN_TABLE) == Some(table)
                && let Some(name) = message.text(CHAIN_NAME)
            {
                names.push_str(name);
                names.push('\0');
            }
        })?;
        Ok(names)
    })?;
    names.split_terminator('\0').for_each(each);
    Ok(())
}

/// Whether `chain` is in `table` (`nat`, `mangle`).
pub fn has_chain(family: IpFamily, table: &str, chain: &str) -> io::Result<bool> {
    let texts = &[(CHAIN_TABLE, table), (CHAIN_NAME, chain)];
    let request = NetfilterRequest { texts, ..NetfilterRequest::new(SUBSYSTEM, GET_CHAIN, nfproto(family)) };
    match Netfilter::open()?.request(&request, &mut |_| {}) {
        Ok(()) => Ok(true),
        // No such chain, or no such table.
        Err(error) if is_any(&error, &[Errno::ENOENT]) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a table `name` of `family` (`ip` or `ip6`) exists, whichever process created it.
pub fn has_table(family: IpFamily, name: &str) -> io::Result<bool> {
    let texts = &[(TABLE_NAME, name)];
    let request = NetfilterRequest { texts, ..NetfilterRequest::new(SUBSYSTEM, GET_TABLE, nfproto(family)) };
    match Netfilter::open()?.request(&request, &mut |_| {}) {
        Ok(()) => Ok(true),
        // No such table; or no nf_tables in this kernel.
        Err(error) if is_any(&error, &[Errno::ENOENT, Errno::EINVAL, Errno::EOPNOTSUPP]) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the table `name` of `family` with its content; succeeds if it does not exist.
pub fn delete_table(family: IpFamily, name: &str) -> io::Result<()> {
    let texts = &[(TABLE_NAME, name)];
    let request =
        NetfilterRequest { texts, ..NetfilterRequest::new(SUBSYSTEM, DELETE_TABLE, nfproto(family)) };
    match Netfilter::open()?.commit(&request) {
        Err(error) if is_any(&error, &[Errno::ENOENT]) => Ok(()),
        done => done,
    }
}

fn is_any(error: &io::Error, codes: &[Errno]) -> bool {
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

/// A commit to nf_tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// One commit.
    Made {
        /// Generation of the ruleset after this commit.
        generation: u32,
        /// Process ID in the initial PID namespace, which may differ from this process's namespace.
        pid: u32,
        /// The first 15 bytes of the program's name (`iptables-nft-re`, `nft`).
        program: String,
    },
    /// Commits were not read fast enough; their number and their processes are unknown.
    Missed,
}

/// The commits to nf_tables in one network namespace, from [`CommitNotifications::listen`] on.
///
/// For listeners, the kernel sends a message for every chain and rule of a commit. A socket filter drops
/// all but the one that ends the commit, so that they do not fill the receive buffer.
pub struct CommitNotifications(Multicast);

impl CommitNotifications {
    /// Starts listening, in the network namespace of this thread and inside a tokio runtime.
    pub fn listen() -> io::Result<CommitNotifications> {
        Multicast::join(NETLINK_NETFILTER, &[GROUP], only_generations).map(CommitNotifications)
    }

    /// Waits for the next commit. Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Commit> {
        loop {
            match self.0.next().await? {
                None => return Ok(Commit::Missed),
                Some(datagram) => {
                    if let Some(commit) = commit(datagram)? {
                        return Ok(commit);
                    }
                }
            }
        }
    }
}

/// The type of the message that ends a commit.
const GENERATION_MESSAGE: u16 = (SUBSYSTEM as u16) << 8 | NEW_GENERATION as u16;

/// Installs a filter that drops every datagram whose first message is not the end of a commit (which has a
/// datagram of its own).
fn only_generations(socket: &Socket) -> io::Result<()> {
    use socket2::SockFilter;
    // BPF loads in network order; the type, 2 bytes at 4, is in that of this machine.
    let kind = u32::from(u16::from_be_bytes(GENERATION_MESSAGE.to_ne_bytes()));
    let program = [
        // ldh [4]; jeq #kind, accept, drop; accept: ret #-1; drop: ret #0
        SockFilter::new(0x28, 0, 0, 4),
        SockFilter::new(0x15, 0, 1, kind),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ];
    socket2::SockRef::from(socket).attach_filter(&program)
}

/// The end of a commit, if the datagram contains it.
fn commit(datagram: &[u8]) -> io::Result<Option<Commit>> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let (message, tail) = split_first(rest)?;
        rest = tail;
        if message.message_type() == GENERATION_MESSAGE {
            let message = content(&message)?;
            return Ok(Some(Commit::Made {
                generation: message.u32(GENERATION_ID).ok_or(io::ErrorKind::InvalidData)?,
                pid: message.u32(GENERATION_PID).unwrap_or_default(),
                program: message.text(GENERATION_NAME).unwrap_or_default().to_owned(),
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
