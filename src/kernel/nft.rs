//! nf_tables over netlink: who wrote, the names of chains, and whether their rules are the same,
//! without the cost of the programs.
//!
//! `iptables-nft-save` takes 20 s at 47 000 chains; the names alone come in a few milliseconds, and
//! the generation of the ruleset says at once whether there is anything to read.

mod chain_dump;

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

pub use chain_dump::fingerprints;

use super::netlink::{Multicast, Netfilter, Request, content, first};
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

/// How often a dump is begun again when somebody writes meanwhile.
const ATTEMPTS: usize = 20;

/// The number of commits to nf_tables in this network namespace, all families, never zero.
pub fn generation() -> io::Result<u32> {
    generation_over(&mut Netfilter::open()?)
}

/// As [`generation`], over an open socket.
fn generation_over(netfilter: &mut Netfilter) -> io::Result<u32> {
    let (message, flags) = (GET_GENERATION, 0);
    let request = Request { subsystem: SUBSYSTEM, message, family: 0, flags, texts: &[], attributes: &[] };
    let mut generation = None;
    netfilter.ask(&request, &mut |message| generation = message.u32(GENERATION_ID))?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Passes on the name of each chain of `table` (`nat`, `filter`; those of other makers too), once,
/// in the kernel's order; none when there is no such table. `Interrupted` when somebody wrote during
/// each of many attempts; nothing was passed on then.
pub fn chain_names(family: IpFamily, table: &str, each: &mut dyn FnMut(&str)) -> io::Result<()> {
    let family = nfproto(family);
    let request = Request {
        subsystem: SUBSYSTEM,
        message: GET_CHAIN,
        family,
        flags: NLM_F_DUMP,
        texts: &[],
        attributes: &[],
    };
    let mut netfilter = Netfilter::open()?;
    let mut attempts = 0;
    // Names are held until the dump is known to be whole: 28 bytes each at most.
    let mut names = String::new();
    loop {
        names.clear();
        let dumped = netfilter.ask(&request, &mut |message| {
            // The kernel selects by family only.
            if message.text(CHAIN_TABLE) == Some(table)
                && let Some(name) = message.text(CHAIN_NAME)
            {
                names.push_str(name);
                names.push('\0');
            }
        });
        attempts += 1;
        match dumped {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && attempts < ATTEMPTS => continue,
            dumped => dumped?,
        }
        names.split_terminator('\0').for_each(each);
        return Ok(());
    }
}

/// Whether `chain` is in `table` (`nat`, `mangle`).
pub fn has_chain(family: IpFamily, table: &str, chain: &str) -> io::Result<bool> {
    let texts = &[(CHAIN_TABLE, table), (CHAIN_NAME, chain)];
    let message = GET_CHAIN;
    let request =
        Request { subsystem: SUBSYSTEM, message, family: nfproto(family), flags: 0, texts, attributes: &[] };
    match Netfilter::open()?.ask(&request, &mut |_| {}) {
        Ok(()) => Ok(true),
        // No such chain, or no such table.
        Err(error) if is_any(&error, &[Errno::ENOENT]) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether there is a table `name` of `family` (`ip` or `ip6`), whoever made it.
pub fn has_table(family: IpFamily, name: &str) -> io::Result<bool> {
    let texts = &[(TABLE_NAME, name)];
    let message = GET_TABLE;
    let request =
        Request { subsystem: SUBSYSTEM, message, family: nfproto(family), flags: 0, texts, attributes: &[] };
    match Netfilter::open()?.ask(&request, &mut |_| {}) {
        Ok(()) => Ok(true),
        // No such table; or no nf_tables in this kernel.
        Err(error) if is_any(&error, &[Errno::ENOENT, Errno::EINVAL, Errno::EOPNOTSUPP]) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the table `name` of `family` with all that is in it; one that is gone is as good.
pub fn delete_table(family: IpFamily, name: &str) -> io::Result<()> {
    let texts = &[(TABLE_NAME, name)];
    let message = DELETE_TABLE;
    let request =
        Request { subsystem: SUBSYSTEM, message, family: nfproto(family), flags: 0, texts, attributes: &[] };
    match Netfilter::open()?.commit(&request) {
        Err(error) if is_any(&error, &[Errno::ENOENT]) => Ok(()),
        done => done,
    }
}

fn is_any(error: &io::Error, codes: &[Errno]) -> bool {
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// Somebody committed to nf_tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// One commit.
    Made {
        /// The number of the ruleset since this commit.
        generation: u32,
        /// Process number in the initial pid namespace, which need not be ours.
        pid: u32,
        /// The first 15 bytes of the program's name (`iptables-nft-re`, `nft`).
        program: String,
    },
    /// Commits came faster than they were taken; who and how many is lost.
    Missed,
}

/// The commits to nf_tables in one network namespace, from [`Notifications::listen`] on.
///
/// While anybody listens, the kernel makes a message of every chain and rule in a commit; a filter in
/// the kernel drops all but the one that ends the commit, so that none of them fills our buffer.
pub struct Notifications(Multicast);

impl Notifications {
    /// Begins to listen, in the network namespace of this thread and inside a tokio runtime.
    pub fn listen() -> io::Result<Notifications> {
        Multicast::join(NETLINK_NETFILTER, &[GROUP], only_generations).map(Notifications)
    }

    /// Waits for the next commit. Dropping the future loses nothing.
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

/// Has the kernel drop every datagram whose first message is not the end of a commit (which has a
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

/// The end of a commit in a datagram.
fn commit(datagram: &[u8]) -> io::Result<Option<Commit>> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let (message, tail) = first(rest)?;
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
