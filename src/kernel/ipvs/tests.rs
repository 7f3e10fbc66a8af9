//! Tests with the interface on the real kernel, and virtual servers from bytes as in `linux/ip_vs.h`, since
//! the kernels that tests run on have no IPVS.

use std::process::Command;

use super::super::netlink::{content, in_new_namespace, split_first};
use super::*;

#[test]
fn the_interface_is_found_and_deleted_and_no_other_interface() {
    in_new_namespace(|| {
        assert!(!has_device().unwrap());
        delete_device().unwrap();
        for name in [DEVICE, "kube-bridge"] {
            let status = Command::new("ip").args(["link", "add", name, "type", "bridge"]).status();
            assert!(status.unwrap().success());
        }
        assert!(has_device().unwrap());
        delete_device().unwrap();
        assert!(!has_device().unwrap());
        assert!(nix::net::if_::if_nametoindex("kube-bridge").is_ok());
    });
}

#[test]
fn virtual_servers_are_counted() {
    let text = "\
IP Virtual VirtualServer version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0A80001:192B      Masq    1      0          0
UDP  0A60000A:0035 rr
";
    assert_eq!(count_servers(text), 2);
    assert_eq!(count_servers(""), 0);
}

#[test]
fn a_kernel_without_ipvs_has_no_servers() {
    in_new_namespace(|| {
        assert_eq!(KernelIpvs.servers().unwrap(), []);
        let gone = VirtualServer::At("192.0.2.1:80".parse().unwrap(), Protocol::Tcp);
        KernelIpvs.delete(&gone).unwrap();
        let has_ipvs = std::path::Path::new("/proc/thread-self/net/ip_vs").exists();
        assert_eq!(GenericNetlink::open(NAME).unwrap().is_some(), has_ipvs);
        assert_eq!(KernelIpvs.device_addresses().unwrap(), [] as [IpAddr; 0]);
    });
}

#[test]
fn node_ports_are_read_from_the_sets_of_their_family_and_protocol() {
    in_new_namespace(|| {
        let run = |line: &str| {
            assert!(Command::new("ipset").args(line.split(' ')).status().unwrap().success(), "{line}");
        };
        run("create KUBE-NODE-PORT-TCP bitmap:port range 0-65535");
        run("add KUBE-NODE-PORT-TCP 30080");
        run("create KUBE-6-NODE-PORT-SCTP-HASH hash:ip,port family inet6");
        run("add KUBE-6-NODE-PORT-SCTP-HASH fd00::1,sctp:30081");
        let of = |family, protocol| KernelIpvs.node_ports(family, protocol).unwrap();
        assert_eq!(of(IpFamily::V4, Protocol::Tcp), [30080]);
        assert_eq!(of(IpFamily::V6, Protocol::Sctp), [30081]);
        assert_eq!(of(IpFamily::V4, Protocol::Udp), [] as [u16; 0]);
    });
}

/// Bytes in the layout of `linux/ip_vs.h` and `linux/genetlink.h` on a little-endian machine.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.chars().filter(|c| !c.is_whitespace()).collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}

/// An entry of the kernel's listing: 10.96.0.1:443, with all attributes.
const TCP_V4: &str = "
        74000000 1c00 0200 01000000 00000000
        01 01 0000
        6000 0100
          0600 0100 0200 0000
          0600 0200 0600 0000
          1400 0300 0a600001 00000000 00000000 00000000
          0600 0400 01bb 0000
          0700 0600 727200 00
          0c00 0700 02000000 ffffffff
          0800 0800 00000000
          0800 0900 ffffffff
          0c00 0a00 0800 0100 05000000";
/// [fd00::a]:53.
const UDP_V6: &str = "
        44000000 1c00 0200 01000000 00000000
        01 01 0000
        3000 0100
          0600 0100 0a00 0000
          0600 0200 1100 0000
          1400 0300 fd000000 00000000 00000000 0000000a
          0600 0400 0035 0000";
/// For mark 7.
const MARKED: &str = "
        28000000 1c00 0200 01000000 00000000
        01 01 0000
        1400 0100
          0600 0100 0200 0000
          0800 0500 07000000";
/// For protocol 50, which Services cannot have.
const UNKNOWN: &str = "
        44000000 1c00 0200 01000000 00000000
        01 01 0000
        3000 0100
          0600 0100 0200 0000
          0600 0200 3200 0000
          1400 0300 0a600001 00000000 00000000 00000000
          0600 0400 01bb 0000";

fn at(address: &str, protocol: Protocol) -> VirtualServer {
    VirtualServer::At(address.parse().unwrap(), protocol)
}

/// Lists the entries of `dumps`, one dump for each request; each dump ends with its error.
fn listed(dumps: &[(&[&str], Option<io::ErrorKind>)]) -> io::Result<Vec<VirtualServer>> {
    let mut dumps = dumps.iter();
    list(|each| {
        let (messages, error) = dumps.next().expect("too many requests");
        for hex in *messages {
            let bytes = bytes(hex);
            let (message, rest) = split_first(&bytes).unwrap();
            assert!(rest.is_empty(), "{rest:?}");
            each(&content(&message).unwrap());
        }
        error.map_or(Ok(()), |kind| Err(kind.into()))
    })
}

#[test]
#[cfg(target_endian = "little")]
fn servers_are_read_as_the_kernel_lists_them() {
    let expected = [
        at("10.96.0.1:443", Protocol::Tcp),
        at("[fd00::a]:53", Protocol::Udp),
        VirtualServer::Marked(7, IpFamily::V4),
    ];
    assert_eq!(listed(&[(&[MARKED, UDP_V6, TCP_V4], None)]).unwrap(), expected);
    assert_eq!(
        expected.map(|server| server.to_string()),
        ["TCP 10.96.0.1:443", "UDP [fd00::a]:53", "mark 7 (IPv4)"]
    );
}

#[test]
#[cfg(target_endian = "little")]
fn an_interrupted_listing_is_restarted_and_one_that_cannot_be_parsed_is_an_error() {
    use io::ErrorKind::{Interrupted, InvalidData, PermissionDenied};
    let disturbed: (&[&str], _) = (&[TCP_V4, TCP_V4], Some(Interrupted));
    let whole: (&[&str], _) = (&[TCP_V4], None);
    assert_eq!(listed(&[disturbed, whole]).unwrap(), [at("10.96.0.1:443", Protocol::Tcp)]);
    let error = |dumps: &[_]| listed(dumps).unwrap_err().kind();
    assert_eq!(error(&[disturbed; ATTEMPTS]), Interrupted);
    assert_eq!(error(&[(&[], Some(PermissionDenied))]), PermissionDenied);
    assert_eq!(error(&[(&[TCP_V4, UNKNOWN], None)]), InvalidData);
}

#[test]
#[cfg(target_endian = "little")]
fn a_virtual_server_is_identified_by_family_protocol_address_and_port() {
    let check = |server: VirtualServer, hex: &str| assert_eq!(key(&server), bytes(hex), "{server}");
    check(
        at("10.96.0.1:443", Protocol::Tcp),
        "3000 0180
               0600 0100 0200 0000
               0600 0200 0600 0000
               1400 0300 0a600001 00000000 00000000 00000000
               0600 0400 01bb 0000",
    );
    check(
        at("[fd00::a]:9", Protocol::Sctp),
        "3000 0180
               0600 0100 0a00 0000
               0600 0200 8400 0000
               1400 0300 fd000000 00000000 00000000 0000000a
               0600 0400 0009 0000",
    );
    check(
        VirtualServer::Marked(7, IpFamily::V6),
        "1400 0180
               0600 0100 0a00 0000
               0800 0500 07000000",
    );
}

#[test]
fn a_server_that_is_already_gone_counts_as_deleted() {
    let error = |code: Errno| Err(io::Error::from_raw_os_error(code as i32));
    accept_absent(error(Errno::ESRCH)).unwrap();
    assert_eq!(accept_absent(error(Errno::EPERM)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}
