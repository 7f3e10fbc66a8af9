//! The flows that conntrack remembers, over netlink (`ctnetlink`): looked through as the kernel lists
//! them, and deleted one by one. The table, which may hold a million, is never held here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::NLM_F_DUMP;
use nix::errno::Errno;

use super::netlink::{Message, NESTED, Netfilter, Request, attribute, nested, push_attribute};
use crate::net::IpFamily;

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;

// `enum ctattr_type` and those below it, of linux/netfilter/nfnetlink_conntrack.h.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const TUPLE_ZONE: u16 = 3;
const IP_V4: [u16; 2] = [1, 2];
const IP_V6: [u16; 2] = [3, 4];
const PROTOCOL_NUMBER: u16 = 1;
const PORTS: [u16; 2] = [2, 3];
const FILTER_ORIGINAL: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM`.
const FILTER_BY_PROTOCOL: u32 = 1 << 3;

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// How often a listing is begun again when the table was rebuilt meanwhile.
const ATTEMPTS: usize = 5;

/// What looking through the flows came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows looked at.
    pub n_seen: usize,
    /// Flows deleted, or gone by themselves before.
    pub n_deleted: usize,
    /// Flows that the kernel would not delete.
    pub n_failed: usize,
    /// What it said of the first of them, as an error number.
    pub first_error: Option<i32>,
    /// The table was rebuilt during each attempt: some flows may not have been looked at.
    pub is_incomplete: bool,
}

/// Looks through the UDP flows of `family` in the network namespace of this thread and deletes each
/// for which `judge` (where it was sent to, where answers come from) gives a reason; `deleted` is
/// told the reason. An error: the flows cannot be listed (no CAP_NET_ADMIN, no
/// `nf_conntrack_netlink`); those deleted before it are gone.
pub fn sweep_udp<R>(
    family: IpFamily,
    judge: impl FnMut(SocketAddr, SocketAddr) -> Option<R>,
    deleted: impl FnMut(R),
) -> io::Result<Swept> {
    sweep_by(&udp_only(), family, judge, deleted)
}

fn sweep_by<R>(
    filter: &[u8],
    family: IpFamily,
    mut judge: impl FnMut(SocketAddr, SocketAddr) -> Option<R>,
    mut deleted: impl FnMut(R),
) -> io::Result<Swept> {
    // Two sockets, so that an answer to a deletion does not stand between those of the listing.
    let (mut listing, mut deletion) = (Netfilter::open()?, Netfilter::open()?);
    let mut swept = Swept::default();
    let mut each = |message: &Message<'_>| {
        let Some((destination, backend)) = udp_flow(message) else { return };
        swept.n_seen += 1;
        let Some(reason) = judge(destination, backend) else { return };
        match delete(&mut deletion, family, message) {
            Ok(()) => {
                swept.n_deleted += 1;
                deleted(reason);
            }
            Err(error) => {
                swept.n_failed += 1;
                swept.first_error = swept.first_error.or(error.raw_os_error());
            }
        }
    };
    let mut attributes = filter;
    let mut n_attempts = 0;
    loop {
        let request = Request {
            subsystem: SUBSYSTEM,
            message: GET,
            family: nfproto(family),
            flags: NLM_F_DUMP,
            texts: &[],
            attributes,
        };
        match listing.ask(&request, &mut each) {
            Ok(()) => return Ok(swept),
            // A kernel that knows filters, but not this one; those before 5.8 ignore it.
            Err(error) if is_filter_refused(&error) && !attributes.is_empty() => attributes = &[],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                n_attempts += 1;
                if n_attempts == ATTEMPTS {
                    swept.is_incomplete = true;
                    return Ok(swept);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

fn is_filter_refused(error: &io::Error) -> bool {
    [Errno::EINVAL, Errno::EOPNOTSUPP].iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

/// Has the kernel list UDP flows only.
fn udp_only() -> Vec<u8> {
    let protocol = nested(TUPLE_PROTOCOL, &[&attribute(PROTOCOL_NUMBER, &[UDP])]);
    let flags = attribute(FILTER_ORIGINAL, &FILTER_BY_PROTOCOL.to_ne_bytes());
    [nested(TUPLE_ORIGINAL, &[&protocol]), nested(FILTER, &[&flags])].concat()
}

/// The destination of the first packet as it came, and where answers come from; `None` for other
/// protocols, which older kernels list too, and for flows in others' zones: the rules' are in zone 0,
/// and the same addresses may mean somebody else in another.
fn udp_flow(message: &Message<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (original, reply) = (message.inner(TUPLE_ORIGINAL)?, message.inner(TUPLE_REPLY)?);
    let zones = [message.u16(ZONE), original.u16(TUPLE_ZONE), reply.u16(TUPLE_ZONE)];
    let is_in_zone_0 = zones.into_iter().flatten().all(|zone| zone == 0);
    if !is_in_zone_0 || original.inner(TUPLE_PROTOCOL)?.u8(PROTOCOL_NUMBER)? != UDP {
        return None;
    }
    Some((end(&original, 1)?, end(&reply, 0)?))
}

/// The source (0) or the destination (1) of a tuple.
fn end(tuple: &Message<'_>, side: usize) -> Option<SocketAddr> {
    let ips = tuple.inner(TUPLE_IP)?;
    let v4 = ips.attribute(IP_V4[side]).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = || ips.attribute(IP_V6[side]).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let ip = match v4 {
        Some(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        None => IpAddr::V6(Ipv6Addr::from(v6()?)),
    };
    Some(SocketAddr::new(ip, tuple.inner(TUPLE_PROTOCOL)?.u16(PORTS[side])?))
}

/// Deletes the flow that `listed` describes. A flow that is gone is as good as deleted.
///
/// By its answers, not by what the client sends: a flow of the same client that took its place since,
/// and goes elsewhere, stays. (The number does not tell: the kernel makes it from address and client,
/// and gives the same memory out again.) Without any tuple the kernel would delete every flow.
fn delete(netfilter: &mut Netfilter, family: IpFamily, listed: &Message<'_>) -> io::Result<()> {
    let reply = listed.attribute(TUPLE_REPLY).ok_or(io::ErrorKind::InvalidData)?;
    let mut attributes = Vec::with_capacity(128);
    push_attribute(&mut attributes, TUPLE_REPLY | NESTED, reply);
    if let Some(id) = listed.attribute(ID) {
        push_attribute(&mut attributes, ID, id);
    }
    let request = Request {
        subsystem: SUBSYSTEM,
        message: DELETE,
        family: nfproto(family),
        flags: 0,
        texts: &[],
        attributes: &attributes,
    };
    match netfilter.ask(&request, &mut |_| {}) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests;
