//! Reads conntrack's flows over netlink (`ctnetlink`) one by one and deletes stale ones. The table may have
//! a million flows and is never kept in memory.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::NLM_F_DUMP;
use nix::errno::Errno;

use super::netlink::{
    Message, NESTED, Netfilter, NetfilterRequest, attribute, nested, nfproto, push_attribute,
};
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

/// How often a listing is restarted when the table was rebuilt meanwhile.
const ATTEMPTS: usize = 5;

/// Result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows checked.
    pub n_seen: usize,
    /// Flows deleted, or already gone.
    pub n_deleted: usize,
    /// Flows that the kernel did not delete.
    pub n_failed: usize,
    /// Error number of the first failure.
    pub first_error: Option<i32>,
    /// The table was rebuilt during each attempt: some flows may not have been checked.
    pub is_incomplete: bool,
}

/// Checks the UDP flows of `family` in the network namespace of this thread. Deletes each flow for which
/// `judge` (called with the original destination and the endpoint that replies) returns a reason, and
/// passes the reason to `deleted`. Fails if flows cannot be listed (no CAP_NET_ADMIN, no
/// `nf_conntrack_netlink`); flows deleted before that stay deleted.
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
    // Two sockets, so that replies to a deletion do not mix with the listing.
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
        let request = NetfilterRequest {
            flags: NLM_F_DUMP,
            attributes,
            ..NetfilterRequest::new(SUBSYSTEM, GET, nfproto(family))
        };
        match listing.request(&request, &mut each) {
            Ok(()) => return Ok(swept),
            // A kernel that supports filters, but not this one; kernels before 5.8 ignore it.
            Err(error) if is_filter_rejected(&error) && !attributes.is_empty() => attributes = &[],
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

fn is_filter_rejected(error: &io::Error) -> bool {
    [Errno::EINVAL, Errno::EOPNOTSUPP].iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

/// A filter for UDP flows.
fn udp_only() -> Vec<u8> {
    let protocol = nested(TUPLE_PROTOCOL, &[&attribute(PROTOCOL_NUMBER, &[UDP])]);
    let flags = attribute(FILTER_ORIGINAL, &FILTER_BY_PROTOCOL.to_ne_bytes());
    [nested(TUPLE_ORIGINAL, &[&protocol]), nested(FILTER, &[&flags])].concat()
}

/// The original destination, and the endpoint that replies; `None` for other protocols, which older kernels
/// list too, and for flows in other zones: the rules apply to zone 0, and in another zone the same
/// addresses may mean another host.
fn udp_flow(message: &Message<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (original, reply) = (message.inner(TUPLE_ORIGINAL)?, message.inner(TUPLE_REPLY)?);
    let zones = [message.u16(ZONE), original.u16(TUPLE_ZONE), reply.u16(TUPLE_ZONE)];
    let is_in_zone_0 = zones.into_iter().flatten().all(|zone| zone == 0);
    if !is_in_zone_0 || original.inner(TUPLE_PROTOCOL)?.u8(PROTOCOL_NUMBER)? != UDP {
        return None;
    }
    Some((tuple_end(&original, 1)?, tuple_end(&reply, 0)?))
}

/// The source (0) or destination (1) of a tuple.
fn tuple_end(tuple: &Message<'_>, side: usize) -> Option<SocketAddr> {
    let ips = tuple.inner(TUPLE_IP)?;
    let v4 = ips.attribute(IP_V4[side]).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = || ips.attribute(IP_V6[side]).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let ip = match v4 {
        Some(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        None => IpAddr::V6(Ipv6Addr::from(v6()?)),
    };
    Some(SocketAddr::new(ip, tuple.inner(TUPLE_PROTOCOL)?.u16(PORTS[side])?))
}

/// Deletes the flow that `listed` describes. A flow that is already gone counts as deleted.
///
/// The flow is identified by its reply tuple, not by the original one: a newer flow of the same client to
/// another endpoint stays. (The ID does not distinguish them: the kernel computes it from a memory address
/// and the client, and reuses memory.) Without any tuple the kernel would delete every flow.
fn delete(netfilter: &mut Netfilter, family: IpFamily, listed: &Message<'_>) -> io::Result<()> {
    let reply = listed.attribute(TUPLE_REPLY).ok_or(io::ErrorKind::InvalidData)?;
    let mut attributes = Vec::with_capacity(128);
    push_attribute(&mut attributes, TUPLE_REPLY | NESTED, reply);
    if let Some(id) = listed.attribute(ID) {
        push_attribute(&mut attributes, ID, id);
    }
    let request = NetfilterRequest {
        attributes: &attributes,
        ..NetfilterRequest::new(SUBSYSTEM, DELETE, nfproto(family))
    };
    match netfilter.request(&request, &mut |_| {}) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests;
