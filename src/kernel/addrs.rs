//! The addresses of this machine's interfaces.

use std::io;
use std::net::IpAddr;

/// The addresses of all local interfaces of this network namespace, loopback included; sorted,
/// distinct.
pub fn local_addresses() -> io::Result<Vec<IpAddr>> {
    addresses(|_| true)
}

/// The addresses of the interface `name`, sorted, distinct; none when there is no such interface.
pub fn addresses_of(name: &str) -> io::Result<Vec<IpAddr>> {
    addresses(|interface| interface == name)
}

/// The addresses of the interfaces that are `wanted`.
fn addresses(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter(|interface| wanted(&interface.interface_name))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
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
            // An interface that is down has its addresses, too.
            assert_eq!(of("d0"), ["192.0.2.7", "2001:db8::7"]);
            assert_eq!(of("d1"), ["10.9.0.1", "192.0.2.7"]);
            assert_eq!(of("d"), [] as [String; 0]);
        });
    }
}
