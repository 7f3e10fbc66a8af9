//! Lists this machine's interfaces with their addresses, bridges and routes, and reports changes of addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::netlink::{Message, Multicast, NetlinkSocket, retry_interrupted};
use crate::iptables::Interface;
use crate::model::host::InterfaceAddress;
use crate::net::{Cidr, IpFamily};

/// `RTM_GETADDR`.
const GET_ADDRESS: u16 = 22;
/// `IFA_ADDRESS`: the address, or that of the other end of a point-to-point interface.
const ADDRESS: u16 = 1;
/// `IFA_LOCAL`: this end's address where the two differ; with IPv4, always.
const LOCAL: u16 = 2;

/// `RTM_GETLINK`.
const GET_LINK: u16 = 18;
/// `IFLA_IFNAME`.
const LINK_NAME: u16 = 3;
/// `IFLA_LINKINFO`.
const LINK_INFO: u16 = 18;
/// `IFLA_INFO_KIND`.
const LINK_KIND: u16 = 1;

/// `RTM_GETROUTE`.
const GET_ROUTE: u16 = 26;
/// `RTA_DST`: the destination; absent for the default route.
const ROUTE_DESTINATION: u16 = 1;
/// `RTA_OIF`: the interface.
const ROUTE_INTERFACE: u16 = 4;
/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u8 = 254;
/// `RTN_UNICAST`.
const UNICAST: u8 = 1;

/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`.
const GROUPS: [u32; 2] = [5, 9];

/// How often a list is restarted when addresses change meanwhile.
const ATTEMPTS: usize = 5;

/// The most notifications that are discarded at once; more than the kernel queues for a socket.
const MAX_PENDING: usize = 4_096;

/// The addresses of all interfaces of this network namespace, loopback included; sorted, without
/// duplicates. A failure is an error, never an empty list; `Interrupted` when addresses changed during each
/// of several attempts.
pub fn local_addresses() -> io::Result<Vec<IpAddr>> {
    addresses(|_| true)
}

/// The addresses of the interface `name`, sorted, without duplicates; empty when there is no such
/// interface.
pub fn addresses_of(name: &str) -> io::Result<Vec<IpAddr>> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(index) => addresses(|other| other == index),
        Err(Errno::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Each address of an interface of this network namespace with the interface's name, loopback included; sorted.
pub fn interfaces() -> io::Result<Vec<InterfaceAddress>> {
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE)?;
    let mut found = retry_interrupted(ATTEMPTS, || {
        let mut found = Vec::new();
        socket.request(GET_ADDRESS, NLM_F_DUMP, &[0; 8], &mut |message| {
            let [_, length, _, _] = message.head();
            let mut index = 0;
            let ip = address(message, |of| {
                index = of;
                true
            });
            let name = nix::net::if_::if_indextoname(index).ok();
            let name = name.as_ref().and_then(|name| name.to_str().ok());
            found.extend(ip.zip(name).map(|(ip, name)| InterfaceAddress {
                interface: name.into(),
                ip,
                length,
            }));
        })?;
        Ok(found)
    })?;
    found.sort();
    Ok(found)
}

/// The names of the bridges of this network namespace, sorted.
pub fn bridges() -> io::Result<Vec<String>> {
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE)?;
    let mut bridges = retry_interrupted(ATTEMPTS, || {
        let mut bridges = Vec::new();
        // struct ifinfomsg, of any interface.
        socket.request(GET_LINK, NLM_F_DUMP, &[0; 16], &mut |message| {
            let attributes = message.split_header().and_then(|(_, rest)| rest.split_header());
            let Some((_, attributes)) = attributes.and_then(|(_, rest)| rest.split_header()) else { return };
            let kind = attributes.inner(LINK_INFO);
            if kind.is_some_and(|info| info.text(LINK_KIND) == Some("bridge")) {
                bridges.extend(attributes.text(LINK_NAME).map(str::to_owned));
            }
        })?;
        Ok(bridges)
    })?;
    bridges.sort();
    Ok(bridges)
}

/// The addresses of the interfaces whose index is `selected`.
///
/// They come from netlink and not from `getifaddrs`, which does not report that addresses are missing
/// because interfaces were added or removed meanwhile, as with pods.
fn addresses(selected: impl Fn(u32) -> bool) -> io::Result<Vec<IpAddr>> {
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE)?;
    let mut addresses = retry_interrupted(ATTEMPTS, || {
        let mut addresses = Vec::new();
        // struct ifaddrmsg, of any family and interface.
        socket.request(GET_ADDRESS, NLM_F_DUMP, &[0; 8], &mut |message| {
            addresses.extend(address(message, &selected));
        })?;
        Ok(addresses)
    })?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The unicast routes of the main table of both families that lead to an interface: destination and interface.
///
/// Routes of other tables, which rules select (`ip rule`), are not among them.
pub fn routes() -> io::Result<Vec<(Cidr, Interface)>> {
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE)?;
    let mut routes = retry_interrupted(ATTEMPTS, || {
        let mut routes = Vec::new();
        // struct rtmsg, of any family.
        socket.request(GET_ROUTE, NLM_F_DUMP, &[0; 12], &mut |message| routes.extend(route(message)))?;
        Ok(routes)
    })?;
    routes.sort_by_key(|(destination, _): &(Cidr, _)| *destination);
    Ok(routes)
}

/// The destination and interface in a message.
fn route(message: &Message<'_>) -> Option<(Cidr, Interface)> {
    let [family, length, _, _] = message.head();
    let ([table, _, _, kind], message) = message.split_header()?;
    let (_, message) = message.split_header()?;
    let family = match i32::from(family) {
        nix::libc::AF_INET => IpFamily::V4,
        nix::libc::AF_INET6 => IpFamily::V6,
        _ => return None,
    };
    if table != MAIN_TABLE || kind != UNICAST {
        return None;
    }
    let destination = match message.attribute(ROUTE_DESTINATION) {
        Some(bytes) => ip(bytes)?,
        None if family == IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
        None => Ipv6Addr::UNSPECIFIED.into(),
    };
    let name = nix::net::if_::if_indextoname(message.native_u32(ROUTE_INTERFACE)?).ok()?;
    Some((Cidr::new(destination, length), Interface::new(name.to_str().ok()?)?))
}

/// The address in a message; `None` for a family other than IPv4 and IPv6.
fn address(message: &Message<'_>, mut selected: impl FnMut(u32) -> bool) -> Option<IpAddr> {
    let (index, message) = message.split_header()?;
    if !selected(u32::from_ne_bytes(index)) {
        return None;
    }
    let bytes = message.attribute(LOCAL).or_else(|| message.attribute(ADDRESS))?;
    ip(bytes)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))).ok()
}

/// Notifications of address changes in one network namespace, from [`AddressChanges::listen`] on.
pub struct AddressChanges(Multicast);

impl AddressChanges {
    /// Starts listening, in the network namespace of this thread and inside a tokio runtime.
    pub fn listen() -> io::Result<AddressChanges> {
        Multicast::join(NETLINK_ROUTE, &GROUPS, |_| Ok(())).map(AddressChanges)
    }

    /// Waits until addresses may have changed: one was added or removed, or the kernel dropped
    /// notifications.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.0.next().await.map(drop)
    }

    /// Discards the notifications received so far; the caller lists addresses afterwards.
    pub fn discard(&mut self) -> io::Result<()> {
        self.0.discard(MAX_PENDING)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "the test adds addresses with `ip`")]

    use std::process::Command;

    use super::super::netlink::in_new_namespace;
    use super::*;

    #[test]
    fn addresses_are_those_of_the_namespace_sorted_and_distinct() {
        in_new_namespace(|| {
            assert_eq!(local_addresses().unwrap(), [] as [IpAddr; 0]);
            for arguments in [
                "link set lo up",
                "link add d0 type bridge",
                "link add d1 type bridge",
                "addr add 192.0.2.7/24 dev d0",
                "addr add 192.0.2.7/25 dev d1",
                "addr add 10.9.0.1/32 dev d1",
                "addr add 2001:db8::7/64 dev d0 nodad",
            ] {
                assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
            }
            let texts: Vec<String> = local_addresses().unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(texts, ["10.9.0.1", "127.0.0.1", "192.0.2.7", "::1", "2001:db8::7"]);
            let of = |name: &str| {
                let addresses = addresses_of(name).unwrap();
                addresses.iter().map(ToString::to_string).collect::<Vec<String>>()
            };
            // An interface that is down has addresses, too.
            assert_eq!(of("d0"), ["192.0.2.7", "2001:db8::7"]);
            assert_eq!(of("d1"), ["10.9.0.1", "192.0.2.7"]);
            assert_eq!(of("d"), [] as [String; 0]);
            assert!(Command::new("ip").args(["link", "set", "d0", "up"]).status().unwrap().success());
            assert!(
                Command::new("ip")
                    .args(["route", "add", "default", "via", "192.0.2.9"])
                    .status()
                    .unwrap()
                    .success()
            );
            let routes: Vec<String> =
                routes().unwrap().iter().map(|(to, name)| format!("{to} {}", name.as_str())).collect();
            assert!(
                routes.contains(&"0.0.0.0/0 d0".to_owned()) && routes.contains(&"192.0.2.0/24 d0".to_owned()),
                "{routes:?}"
            );
            let on = |name: &str| {
                let listed = interfaces().unwrap();
                let of = listed.iter().filter(|entry| &*entry.interface == name);
                of.map(|entry| format!("{}/{}", entry.ip, entry.length)).collect::<Vec<String>>()
            };
            assert_eq!(on("d1"), ["10.9.0.1/32", "192.0.2.7/25"]);
            assert_eq!(bridges().unwrap(), ["d0", "d1"]);
        });
    }
}
