#![allow(clippy::disallowed_methods, reason = "the tests write rules with iptables")]

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

use super::super::netlink::in_new_namespace;
use super::*;
use crate::iptables::FirstPackets;
use crate::kernel::programs::Programs;

/// Gives `lines` of nat to the restore program, as the agent does.
fn nat(backend: Backend, family: IpFamily, lines: &str) {
    let program = Programs::new(family, Some(backend)).restore;
    let mut command = Command::new(program);
    let mut child = command.args(["--noflush", "--counters"]).stdin(Stdio::piped()).spawn().unwrap();
    let text = format!("*nat\n{lines}COMMIT\n");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

fn in_all(test: impl Fn(Backend, IpFamily) + Sync) {
    for backend in [Backend::Nft, Backend::Legacy] {
        for family in IpFamily::BOTH {
            in_new_namespace(|| {
                assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
                test(backend, family);
            });
        }
    }
}

fn loopback(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => "127.0.0.1".parse().unwrap(),
        IpFamily::V6 => "::1".parse().unwrap(),
    }
}

fn at(family: IpFamily, port: u16) -> SocketAddr {
    SocketAddr::new(loopback(family), port)
}

/// Sends a datagram of `n` bytes to `port` of loopback, each from a socket of its own.
fn send(family: IpFamily, port: u16, n: usize) {
    let socket = UdpSocket::bind(at(family, 0)).unwrap();
    // Port unreachable is a reply, too.
    _ = socket.send_to(&vec![0; n], at(family, port));
    _ = socket.send_to(&vec![0; 900], at(family, port));
}

/// Two chains with rules to ports 71, 72 and 81, behind ports 7 and 8.
fn rules(family: IpFamily) -> String {
    let to = |port: u16| at(family, port);
    format!(
        ":A - [0:0]\n:B - [0:0]\n:NONE - [0:0]\n\
         -A A -p udp -m statistic --mode random --probability 0.0000000001 -j DNAT --to-destination {}\n\
         -A A -p udp -m comment --comment \"shop/db -> it\" -j DNAT --to-destination {}\n\
         -A B -m mark --mark 0x1 -j RETURN\n-A B -p udp -j DNAT --to-destination {}\n\
         -A OUTPUT -p udp --dport 7 -j A\n-A OUTPUT -p udp --dport 8 -j B\n",
        to(71),
        to(72),
        to(81)
    )
}

fn names(names: &[&str]) -> Vec<ChainName> {
    names.iter().map(|name| ChainName::new(name).unwrap()).collect()
}

#[test]
fn dnat_rules_count_first_packets_only() {
    in_all(|backend, family| {
        nat(backend, family, &rules(family));
        (0..3).for_each(|_| send(family, 7, 100));
        send(family, 8, 10);
        let mut read = backend.dnat_rules(family, &names(&["A", "B", "MISSING", "NONE"])).unwrap();
        read.sort_unstable();
        let headers = if family == IpFamily::V4 { 28 } else { 48 };
        let rule = |chain, port, n: u64, n_bytes: u64| DnatRule {
            chain: ChainName::literal(chain),
            endpoint: at(family, port),
            counted: FirstPackets { n_packets: n, n_bytes: n * (headers + n_bytes) },
        };
        let expected = [rule("A", 71, 0, 100), rule("A", 72, 3, 100), rule("B", 81, 1, 10)];
        assert_eq!(read, expected, "{backend:?} {family}");
        assert_eq!(backend.dnat_rules(family, &names(&["B"])).unwrap(), expected[2..], "{backend:?}");
        assert_eq!(backend.dnat_rules(family, &[]).unwrap(), []);
    });
}

#[test]
fn a_rewritten_chain_counts_from_zero_and_all_others_go_on() {
    in_all(|backend, family| {
        nat(backend, family, &rules(family));
        send(family, 7, 1);
        send(family, 8, 1);
        let a = format!(":A - [0:0]\n-A A -p udp -j DNAT --to-destination {}\n", at(family, 72));
        nat(backend, family, &a);
        send(family, 8, 1);
        let counts = || -> Vec<u64> {
            let read = backend.dnat_rules(family, &names(&["A", "B"])).unwrap();
            read.iter().map(|rule| rule.counted.n_packets).collect()
        };
        assert_eq!(counts(), [0, 2], "{backend:?} {family}");
        send(family, 7, 1);
        assert_eq!(counts(), [1, 2]);
        let iptables = Programs::new(family, Some(backend)).iptables;
        assert!(Command::new(iptables).args(["-t", "nat", "-Z"]).status().unwrap().success());
        assert_eq!(counts(), [0, 0]);
    });
}
