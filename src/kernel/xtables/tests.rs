#![allow(clippy::disallowed_methods, reason = "the tests write rules with iptables")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::super::netlink::in_new_namespace;
use super::*;
use crate::kernel::DumpedChain;

fn program(family: IpFamily, what: &str) -> String {
    match family {
        IpFamily::V4 => format!("iptables-legacy{what}"),
        IpFamily::V6 => format!("ip6tables-legacy{what}"),
    }
}

/// Gives `text` to a restore program, in the namespace of this thread; with counters.
fn restore(family: IpFamily, text: &str) {
    let mut command = Command::new(program(family, "-restore"));
    command.args(["-w", "60", "--noflush", "--counters"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

fn nat(family: IpFamily, lines: &str) {
    restore(family, &format!("*nat\n{lines}COMMIT\n"));
}

fn dumped(family: IpFamily, chain: &str) -> Option<DumpedChain> {
    fingerprints(family, Table::Nat, None).unwrap().of(&ChainName::literal(chain))
}

fn in_both(test: impl Fn(IpFamily) + Sync) {
    IpFamily::BOTH.into_iter().for_each(|family| in_new_namespace(|| test(family)));
}

/// Matches and targets of every size, jumps to and fro, and a rule without target.
const RULES: &str = ":A - [0:0]\n:B - [0:0]\n:EMPTY - [0:0]\n\
    -A A -p tcp -m tcp --dport 80 -m comment --comment \"ns/name:port\" -j B\n\
    -A A -m statistic --mode random --probability 0.5 -j RETURN\n\
    -A A -m recent --name x --rcheck --seconds 60 --reap -j MARK --set-xmark 0x4000/0x4000\n\
    -A A\n\
    -A A -g B\n\
    -A B -p udp -m udp --dport 53 -j ACCEPT\n\
    -A OUTPUT -j A\n";

#[test]
fn chains_are_dumped_with_their_rules_and_foreign_changes_leave_their_fingerprints_alone() {
    in_both(|family| {
        nat(family, RULES);
        let names = |only| fingerprints(family, Table::Nat, only).unwrap().chains;
        let all: Vec<(String, u32)> =
            names(None).iter().map(|chain| (chain.name.to_string(), chain.n_rules)).collect();
        let expected = [
            ("A", 5),
            ("B", 1),
            ("EMPTY", 0),
            ("INPUT", 0),
            ("OUTPUT", 1),
            ("POSTROUTING", 0),
            ("PREROUTING", 0),
        ];
        assert_eq!(all, expected.map(|(name, n)| (name.to_owned(), n)));
        let before = ["A", "B", "EMPTY", "OUTPUT"].map(|chain| dumped(family, chain));
        let outline = outline(family, Table::Nat).unwrap();
        // All offsets move, all counters too.
        nat(family, ":AA - [0:0]\n[7:700] -A AA -j RETURN\n-I PREROUTING -j AA\n");
        nat(family, ":B - [0:0]\n[3:300] -A B -p udp -m udp --dport 53 -j ACCEPT\n");
        assert_eq!(["A", "B", "EMPTY", "OUTPUT"].map(|chain| dumped(family, chain)), before);
        assert_ne!(super::outline(family, Table::Nat).unwrap(), outline);
        let gone = ChainName::literal("GONE");
        let some = names(Some(&[gone, ChainName::literal("EMPTY")]));
        assert_eq!((some[0].fingerprint, some[1].name, some[1].n_rules), (some[1].fingerprint, gone, 0));
        let mut listed = Vec::new();
        chain_names(family, Table::Nat, &mut |name| listed.push(name.to_owned())).unwrap();
        listed.sort();
        assert_eq!(listed, ["A", "AA", "B", "EMPTY", "INPUT", "OUTPUT", "POSTROUTING", "PREROUTING"]);
    });
}

#[test]
fn every_change_of_a_rule_changes_the_fingerprint() {
    let changes = [
        "-m tcp --dport 81 -m comment --comment \"ns/name:port\" -j B",
        "-m tcp --dport 80 -m comment --comment \"ns/name:porT\" -j B",
        "-m tcp --dport 80 -m comment --comment \"ns/name:port\" -g B",
        "-m tcp --dport 80 -m comment --comment \"ns/name:port\" -j EMPTY",
        "-m tcp --dport 80 -m comment --comment \"ns/name:port\" -j RETURN",
        "-m tcp --dport 80 -m comment --comment \"ns/name:port\" -j ACCEPT",
        "-m tcp --dport 80 -m comment --comment \"ns/name:port\"",
        "-m tcp ! --dport 80 -m comment --comment \"ns/name:port\" -j B",
        "-i eth0 -m tcp --dport 80 -m comment --comment \"ns/name:port\" -j B",
    ];
    in_both(|family| {
        nat(family, RULES);
        let mut seen = vec![dumped(family, "A").unwrap()];
        for change in changes {
            let rest = RULES.lines().filter(|line| line.starts_with("-A A")).skip(1);
            let rest: String = rest.map(|line| format!("{line}\n")).collect();
            nat(family, &format!(":A - [0:0]\n-A A -p tcp {change}\n{rest}"));
            let now = dumped(family, "A").unwrap();
            assert!(now.n_rules == 5 && !seen.contains(&now), "{change}");
            seen.push(now);
        }
        // The same as at first, and in another order.
        nat(family, &RULES.replace("-A OUTPUT -j A\n", ""));
        assert_eq!(dumped(family, "A").unwrap(), seen[0]);
        let mut rules: Vec<&str> = RULES.lines().filter(|line| line.starts_with("-A A")).collect();
        rules.swap(0, 1);
        nat(family, &format!(":A - [0:0]\n{}\n", rules.join("\n")));
        assert!(!seen.contains(&dumped(family, "A").unwrap()));
    });
}

/// The outline and all bytes of nat.
fn bytes_of_nat(family: IpFamily) -> (Outline, Vec<u8>) {
    let tables = TableSocket::open(family).unwrap();
    tables.whole(Table::Nat, MAX_BYTES, |_, outline, entries| Some((*outline, entries.to_vec()))).unwrap()
}

#[test]
fn bytes_that_are_not_a_table_are_rejected_and_never_read_beyond() {
    in_both(|family| {
        nat(family, RULES);
        let (outline, bytes) = bytes_of_nat(family);
        let layout = EntryLayout::of(family);
        let read = |bytes: &[u8]| blob::chains(&layout, Table::Nat, &outline, bytes);
        assert_eq!(read(&bytes).unwrap().len(), 7);
        for n in 1..bytes.len() {
            // Cut at the end of an entry, what is left may look like a smaller table.
            let cut = read(&bytes[..n]);
            assert!(cut.is_none_or(|chains| chains.len() <= 7));
            for byte in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[n] = byte;
                let _ = read(&changed);
            }
        }
        assert!(read(&[]).is_none(), "no chain without an end");
    });
}

#[test]
fn a_table_that_is_too_large_is_not_read_into_memory() {
    in_both(|family| {
        nat(family, RULES);
        let n_bytes = outline(family, Table::Nat).unwrap().n_bytes as usize;
        let tables = TableSocket::open(family).unwrap();
        let read = |limit| tables.whole(Table::Nat, limit, |_, _, entries| Some(entries.len()));
        assert_eq!(read(n_bytes).unwrap(), n_bytes);
        assert_eq!(read(n_bytes - 1).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        let none = tables.whole(Table::Nat, n_bytes, |_, _, _| None::<()>);
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::InvalidData);
    });
}

#[test]
fn a_table_that_grows_while_it_is_read_is_of_one_moment() {
    in_new_namespace(|| {
        let family = IpFamily::V4;
        nat(family, RULES);
        let before = ["A", "B"].map(|chain| dumped(family, chain));
        let commands = "for i in $(seq 30); do iptables-legacy -w 60 -t nat -N X$i; done";
        let mut writer = Command::new("sh").args(["-c", commands]).spawn().unwrap();
        let mut n_reads = 0;
        while writer.try_wait().unwrap().is_none() {
            assert_eq!(["A", "B"].map(|chain| dumped(family, chain)), before);
            n_reads += 1;
        }
        assert!(n_reads > 0);
        assert_eq!(fingerprints(family, Table::Nat, None).unwrap().chains.len(), 37);
    });
}
