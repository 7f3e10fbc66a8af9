//! Facts about the node that no object holds: the addresses of its interfaces and the abilities of its
//! kernel. The agent looks them up; `render` and tests read them from the file given with `--host`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::net;

/// Which nfacct counters rules may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `ct_state_invalid_dropped_pkts`.
    pub invalid: bool,
    /// `localhost_nps_accepted_pkts`.
    pub localhost: bool,
}

/// Abilities of the kernel and of its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The nfacct counters that exist.
    pub counters: Counters,
    /// The sysctl `nf_conntrack_tcp_be_liberal` is not 0.
    pub tcp_be_liberal: bool,
    /// MASQUERADE knows `--random-fully` (iptables 1.6.2).
    pub random_fully: bool,
    /// The match `bpf` can be used.
    pub bpf: bool,
    /// Packets to 127.0.0.0/8 can be routed (`route_localnet`), which node ports on localhost need.
    pub route_localnet: bool,
}

impl Default for Kernel {
    fn default() -> Kernel {
        let counters = Counters { invalid: true, localhost: true };
        Kernel { counters, tcp_be_liberal: false, random_fully: true, bpf: true, route_localnet: true }
    }
}

/// Facts about the node that no object holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The addresses of its interfaces, in any order.
    pub addresses: Vec<IpAddr>,
    /// Abilities of its kernel.
    pub kernel: Kernel,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub interface: Arc<str>,
    /// The address.
    pub ip: IpAddr,
    /// Length in bits of the network that the interface reaches directly; the family's length for one address.
    pub length: u8,
}

/// A host file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It is not YAML, or has unknown keys.
    #[error("{0}")]
    Syntax(String),
    /// An entry of an interface is neither `<ip>/<bits>` nor `<ip>`.
    #[error("interfaces.{interface}: {text:?} is not an address")]
    Address {
        /// The name of the interface.
        interface: String,
        /// The wrong entry.
        text: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    #[serde(default)]
    interfaces: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    kernel: KernelKeys,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct KernelKeys {
    nfacct: bool,
    tcp_be_liberal: bool,
    random_fully: bool,
    bpf: bool,
}

impl Default for KernelKeys {
    fn default() -> KernelKeys {
        KernelKeys { nfacct: true, tcp_be_liberal: false, random_fully: true, bpf: true }
    }
}

impl Host {
    /// Reads a host file: `interfaces: {NAME: [<ip>/<bits>, ...]}` and optionally
    /// `kernel: {nfacct, tcpBeLiberal, randomFully, bpf}`.
    pub fn parse(text: &str) -> Result<Host, HostError> {
        Host::parse_with_interfaces(text).map(|(host, _)| host)
    }

    /// As [`Host::parse`]; also returns each address with its interface, sorted.
    pub fn parse_with_interfaces(text: &str) -> Result<(Host, Vec<InterfaceAddress>), HostError> {
        // A few aliases can expand a small file to a huge one.
        let options = serde_saphyr::options! {
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        };
        let file: HostFile = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| HostError::Syntax(error.to_string()))?;
        let mut interfaces = Vec::new();
        for (interface, texts) in file.interfaces {
            let name: Arc<str> = interface.as_str().into();
            for text in texts {
                let (address, length) = match text.split_once('/') {
                    Some((address, _)) => (address, net::Cidr::parse(&text).ok().map(|cidr| cidr.length())),
                    None => (&*text, Some(u8::MAX)),
                };
                match (net::parse_ip(address), length) {
                    (Ok(ip), Some(length)) => {
                        let length = length.min(net::IpFamily::of(ip).bits());
                        interfaces.push(InterfaceAddress { interface: name.clone(), ip, length });
                    }
                    _ => return Err(HostError::Address { interface, text }),
                }
            }
        }
        let KernelKeys { nfacct, tcp_be_liberal, random_fully, bpf } = file.kernel;
        let counters = Counters { invalid: nfacct, localhost: nfacct };
        let kernel = Kernel { counters, tcp_be_liberal, random_fully, bpf, route_localnet: true };
        let addresses = interfaces.iter().map(|entry| entry.ip).collect();
        interfaces.sort();
        Ok((Host { addresses, kernel }, interfaces))
    }

    /// The host without a host file: the addresses of the Node object and loopback.
    pub fn of_node(addresses: &[IpAddr]) -> Host {
        let loopback = net::IpFamily::BOTH.map(net::IpFamily::localhost);
        Host { addresses: addresses.iter().copied().chain(loopback).collect(), kernel: Kernel::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_kernel_are_read() {
        let text = "interfaces:\n  eth0: [192.0.2.1/24, 2001:db8::1/64]\n  lo: [127.0.0.1]\nkernel: {nfacct: false}\n";
        let host = Host::parse(text).unwrap();
        assert_eq!(host.addresses.len(), 3);
        assert!(!host.kernel.counters.localhost && host.kernel.random_fully);
        assert_eq!(Host::parse("interfaces: {}").unwrap(), Host::default());
    }

    #[test]
    fn unknown_keys_and_bad_addresses_are_errors() {
        let check = |text: &str, expected: &str| {
            let error = Host::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        };
        check("interface: {}", "interface");
        check("kernel: {nfacc: true}", "nfacc");
        check("interfaces: {eth0: [192.0.2.1/99]}", "interfaces.eth0: \"192.0.2.1/99\" is not an address");
        check("interfaces: {eth0: [x]}", "\"x\"");
        check("interfaces: [", "");
        // Small, and two million addresses when the aliases are expanded.
        let (addresses, aliases) = ("192.0.2.1, ".repeat(1_000), |n| format!("e{n}: *a, "));
        let aliases: String = (0..2_000).map(aliases).collect();
        check(&format!("interfaces: {{eth0: &a [{addresses}], {aliases}}}"), "alias");
    }
}
