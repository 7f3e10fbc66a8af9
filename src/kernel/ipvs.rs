//! Leftovers of kube-proxy's ipvs mode: its dummy interface with all Service addresses, and virtual servers
//! in the kernel (over generic netlink; `linux/ip_vs.h`).
#![allow(clippy::disallowed_methods, reason = "reads /proc/net/ip_vs")]

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::netlink::{GenericNetlink, Message, NetlinkSocket, attribute, nested, retry_interrupted};
use super::{addrs, ipset};
use crate::net::{IpFamily, Protocol};

/// Name of the dummy interface.
pub const DEVICE: &str = "kube-ipvs0";

/// `RTM_DELLINK`.
const DELETE_LINK: u16 = 17;

/// `IPVS_GENL_NAME`.
const NAME: &str = "IPVS";
/// `IPVS_CMD_*`.
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
/// `IPVS_CMD_ATTR_SERVICE`.
const SERVICE: u16 = 1;
/// `IPVS_SVC_ATTR_*`.
const FAMILY: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
const MARK: u16 = 5;

/// The protocols of Services; IPVS has no others.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// How often a listing is restarted when another process changes it meanwhile.
const ATTEMPTS: usize = 5;

/// A virtual server of IPVS, sorted by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VirtualServer {
    /// For an address and port.
    At(SocketAddr, Protocol),
    /// For packets of a family with a firewall mark.
    Marked(u32, IpFamily),
}

impl fmt::Display for VirtualServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VirtualServer::At(address, protocol) => write!(f, "{protocol} {address}"),
            VirtualServer::Marked(mark, family) => write!(f, "mark {mark} ({family})"),
        }
    }
}

/// IPVS on a node, and the data that distinguish kube-proxy's virtual servers from foreign ones.
pub trait NodeIpvs {
    /// All virtual servers, sorted; empty in a kernel without IPVS.
    fn servers(&mut self) -> io::Result<Vec<VirtualServer>>;
    /// Deletes a virtual server; succeeds if it does not exist.
    fn delete(&mut self, server: &VirtualServer) -> io::Result<()>;
    /// The addresses on [`DEVICE`], which are those of Services; empty without the interface.
    fn device_addresses(&mut self) -> io::Result<Vec<IpAddr>>;
    /// The addresses of all interfaces.
    fn local_addresses(&mut self) -> io::Result<Vec<IpAddr>>;
    /// The node ports of a family and protocol in the sets of kube-proxy's ipvs mode.
    fn node_ports(&mut self, family: IpFamily, protocol: Protocol) -> io::Result<Vec<u16>>;
}

/// IPVS in the network namespace of this thread.
pub struct KernelIpvs;

impl NodeIpvs for KernelIpvs {
    fn servers(&mut self) -> io::Result<Vec<VirtualServer>> {
        // Checked first, since a request would load the module into a kernel without it.
        if n_servers()? == 0 {
            return Ok(Vec::new());
        }
        match GenericNetlink::open(NAME)? {
            Some(mut ipvs) => list(|each| ipvs.request(GET_SERVICE, NLM_F_DUMP, &[], each)),
            None => Ok(Vec::new()),
        }
    }

    fn delete(&mut self, server: &VirtualServer) -> io::Result<()> {
        let Some(mut ipvs) = GenericNetlink::open(NAME)? else { return Ok(()) };
        accept_absent(ipvs.request(DELETE_SERVICE, 0, &key(server), &mut |_| {}))
    }

    fn device_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        addrs::addresses_of(DEVICE)
    }

    fn local_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        addrs::local_addresses()
    }

    fn node_ports(&mut self, family: IpFamily, protocol: Protocol) -> io::Result<Vec<u16>> {
        ipset::ports(&node_port_set(family, protocol))
    }
}

/// The set in which kube-proxy's ipvs mode stores node ports. Source: kube-proxy v1.36,
/// `pkg/proxy/ipvs/ipset.go`.
fn node_port_set(family: IpFamily, protocol: Protocol) -> String {
    let family = match family {
        IpFamily::V4 => "",
        IpFamily::V6 => "6-",
    };
    let protocol = match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP-HASH",
    };
    format!("KUBE-{family}NODE-PORT-{protocol}")
}

/// The servers that `dump` lists; an interrupted dump is restarted. A server that cannot be parsed is an
/// error, since its owner is unknown.
fn list<D>(mut dump: D) -> io::Result<Vec<VirtualServer>>
where
    D: FnMut(&mut dyn FnMut(&Message<'_>)) -> io::Result<()>,
{
    let servers = retry_interrupted(ATTEMPTS, || {
        let mut servers = Vec::new();
        dump(&mut |message| servers.push(server(message)))?;
        Ok(servers)
    })?;
    let servers: Option<Vec<VirtualServer>> = servers.into_iter().collect();
    let mut servers = servers.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the kernel lists a virtual server of an unknown kind")
    })?;
    servers.sort_unstable();
    servers.dedup();
    Ok(servers)
}

/// The virtual server in a message.
fn server(message: &Message<'_>) -> Option<VirtualServer> {
    let service = message.inner(SERVICE)?;
    let number = service.native_u16(FAMILY)?;
    let family = IpFamily::BOTH.into_iter().find(|family| family_number(*family) == number)?;
    if let Some(mark) = service.native_u32(MARK) {
        return Some(VirtualServer::Marked(mark, family));
    }
    let number = service.native_u16(PROTOCOL)?;
    let protocol = PROTOCOLS.into_iter().find(|protocol| protocol_number(*protocol) == number)?;
    // union nf_inet_addr: 16 bytes, of which IPv4 has the first four.
    let bytes: [u8; 16] = service.attribute(ADDRESS)?.try_into().ok()?;
    let ip = match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(bytes)),
    };
    Some(VirtualServer::At(SocketAddr::new(ip, service.u16(PORT)?), protocol))
}

/// The attributes that identify a virtual server.
fn key(server: &VirtualServer) -> Vec<u8> {
    let family = |family| attribute(FAMILY, &family_number(family).to_ne_bytes());
    match server {
        VirtualServer::At(address, protocol) => {
            let mut bytes = [0; 16];
            match address.ip() {
                IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => bytes = ip.octets(),
            }
            let protocol = attribute(PROTOCOL, &protocol_number(*protocol).to_ne_bytes());
            let (ip, port) = (attribute(ADDRESS, &bytes), attribute(PORT, &address.port().to_be_bytes()));
            nested(SERVICE, &[&family(IpFamily::of(address.ip())), &protocol, &ip, &port])
        }
        VirtualServer::Marked(mark, of) => {
            nested(SERVICE, &[&family(*of), &attribute(MARK, &mark.to_ne_bytes())])
        }
    }
}

/// `AF_INET`, `AF_INET6`.
fn family_number(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// `IPPROTO_*`.
fn protocol_number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// ESRCH: there is no such server.
fn accept_absent(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        outcome => outcome,
    }
}

/// Whether the interface exists.
pub fn has_device() -> io::Result<bool> {
    device().map(|index| index.is_some())
}

/// The interface's index; `None` when it does not exist.
fn device() -> io::Result<Option<u32>> {
    match nix::net::if_::if_nametoindex(DEVICE) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The number of virtual servers in this network namespace, of any owner; 0 without IPVS.
fn n_servers() -> io::Result<usize> {
    match std::fs::read_to_string("/proc/thread-self/net/ip_vs") {
        Ok(text) => Ok(count_servers(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// The line of a virtual server begins with its protocol; its real servers follow, indented.
fn count_servers(text: &str) -> usize {
    let is_server = |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|word| line.starts_with(word));
    text.lines().filter(is_server).count()
}

/// Deletes the interface, and with it the Service addresses on it; succeeds if it does not exist.
pub fn delete_device() -> io::Result<()> {
    let Some(index) = device()? else { return Ok(()) };
    // struct ifinfomsg: family and type, index, flags, change.
    let payload = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
    NetlinkSocket::open(NETLINK_ROUTE)?.request(DELETE_LINK, 0, &payload, &mut |_| {})
}

#[cfg(test)]
mod tests;
