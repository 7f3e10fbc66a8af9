#![allow(clippy::disallowed_methods, reason = "the tests write rules with iptables")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::netlink::in_new_namespace;
use super::*;
use crate::iptables::ChainName;

/// Passes `text` to a restore program, in the namespace of this thread.
fn restore(program: &str, text: &str) {
    let mut child = Command::new(program).arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn names(family: IpFamily, table: &str) -> Vec<String> {
    let mut names = Vec::new();
    chain_names(family, table, &mut |name| names.push(name.to_owned())).unwrap();
    names.sort();
    names
}

#[test]
fn every_commit_raises_the_generation() {
    in_new_namespace(|| {
        let before = generation().unwrap();
        assert_eq!(generation().unwrap(), before);
        restore("iptables-nft-restore", "*nat\n:A - [0:0]\nCOMMIT\n");
        assert!(generation().unwrap() > before);
        let before = generation().unwrap();
        restore("ip6tables-nft-restore", "*nat\n:A - [0:0]\n-A A -j RETURN\nCOMMIT\n");
        assert!(generation().unwrap() > before);
    });
}

#[test]
fn chains_are_named_by_family_and_table() {
    in_new_namespace(|| {
        assert_eq!(names(IpFamily::V4, "nat"), [] as [&str; 0]);
        restore(
            "iptables-nft-restore",
            "*filter\n:F - [0:0]\nCOMMIT\n*nat\n:B - [0:0]\n:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]\n-A B -j RETURN\n-A PREROUTING -j B\nCOMMIT\n",
        );
        restore("ip6tables-nft-restore", "*nat\n:SIX - [0:0]\nCOMMIT\n");
        assert_eq!(names(IpFamily::V4, "nat"), ["B", "KUBE-SEP-AAAAAAAAAAAAAAAA", "PREROUTING"]);
        assert_eq!(names(IpFamily::V4, "filter"), ["F"]);
        assert_eq!(names(IpFamily::V6, "nat"), ["SIX"]);
        assert_eq!(names(IpFamily::V6, "mangle"), [] as [&str; 0]);
    });
}

#[test]
fn a_chain_is_found_by_table_and_family() {
    in_new_namespace(|| {
        let has = |family, table, chain| has_chain(family, table, chain).unwrap();
        assert!(!has(IpFamily::V4, "mangle", "CANARY"), "no such table yet");
        restore("iptables-nft-restore", "*mangle\n:CANARY - [0:0]\nCOMMIT\n*nat\n:OTHER - [0:0]\nCOMMIT\n");
        assert!(has(IpFamily::V4, "mangle", "CANARY"));
        assert!(!has(IpFamily::V4, "nat", "CANARY") && !has(IpFamily::V6, "mangle", "CANARY"));
        assert!(!has(IpFamily::V4, "mangle", "CANAR"));
    });
}

/// `n` empty chains.
fn many(n: usize, prefix: &str) -> String {
    let mut text = "*nat\n".to_owned();
    for i in (0..n).rev() {
        writeln!(text, ":{prefix}{i:08} - [0:0]").unwrap();
    }
    text + "COMMIT\n"
}

#[test]
fn a_dump_of_many_datagrams_is_complete() {
    in_new_namespace(|| {
        restore("iptables-nft-restore", &many(5_000, "M-"));
        let names = names(IpFamily::V4, "nat");
        assert_eq!(names.len(), 5_000);
        assert_eq!(names[4_999], "M-00004999");
    });
}

#[test]
fn a_dump_during_commits_names_each_chain_once() {
    in_new_namespace(|| {
        restore("iptables-nft-restore", &many(3_000, "M-"));
        let mut writer = Command::new("sh")
            .args(["-c", "for i in $(seq 40); do iptables -w 5 -t nat -N X$i; done"])
            .spawn()
            .unwrap();
        let mut n_dumps = 0;
        while writer.try_wait().unwrap().is_none() {
            let mut seen = std::collections::BTreeSet::new();
            let dumped = chain_names(IpFamily::V4, "nat", &mut |name| {
                assert!(seen.insert(name.to_owned()), "{name} twice");
            });
            match dumped {
                Ok(()) => assert!((0..3_000).all(|i| seen.contains(&format!("M-{i:08}")))),
                Err(error) => assert!(error.kind() == io::ErrorKind::Interrupted && seen.is_empty()),
            }
            n_dumps += 1;
        }
        assert!(n_dumps > 0);
        assert_eq!(names(IpFamily::V4, "nat").len(), 3_040);
    });
}

/// Runs `test` on its own runtime and in its own network namespace.
fn listening(test: impl AsyncFnOnce(CommitNotifications) + Send) {
    in_new_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(CommitNotifications::listen().unwrap()).await });
    });
}

/// The next commit; a minute without one is a failure.
async fn next(notifications: &mut CommitNotifications) -> Commit {
    let waiting = tokio::time::timeout(Duration::from_secs(60), notifications.next());
    waiting.await.expect("a notification arrives").unwrap()
}

async fn is_quiet(notifications: &mut CommitNotifications) -> bool {
    tokio::time::timeout(Duration::from_millis(50), notifications.next()).await.is_err()
}

#[test]
fn a_commit_is_reported_with_its_generation_and_its_program() {
    listening(async |mut notifications| {
        assert!(is_quiet(&mut notifications).await);
        restore("iptables-nft-restore", "*nat\n:A - [0:0]\n-A A -j RETURN\nCOMMIT\n");
        let Commit::Made { generation: notified, pid, program } = next(&mut notifications).await else {
            panic!("nothing was missed")
        };
        assert_eq!(notified, generation().unwrap());
        assert_eq!(program, "iptables-nft-re");
        assert_ne!(pid, 0);
        assert!(is_quiet(&mut notifications).await);
    });
}

#[test]
fn a_large_commit_is_one_notification() {
    listening(async |mut notifications| {
        restore("iptables-nft-restore", &many(5_000, "M-"));
        assert!(matches!(next(&mut notifications).await, Commit::Made { .. }));
        assert!(is_quiet(&mut notifications).await);
    });
}

#[test]
fn too_many_commits_are_reported_as_missed() {
    listening(async |mut notifications| {
        notifications.0.socket.get_ref().set_rx_buf_sz(1).unwrap();
        let commands = "*nat\n:A - [0:0]\nCOMMIT\n*nat\n-A A -j RETURN\nCOMMIT\n".repeat(200);
        restore("iptables-nft-restore", &commands);
        let mut n_reported = 0;
        let mut is_missed = false;
        while let Ok(commit) = tokio::time::timeout(Duration::from_millis(50), notifications.next()).await {
            match commit.unwrap() {
                Commit::Made { .. } => n_reported += 1,
                Commit::Missed => is_missed = true,
            }
        }
        // A few fit into the buffer, the others are one `Missed`, and listening continues.
        assert!(is_missed && n_reported < 400, "{is_missed} {n_reported}");
        restore("iptables-nft-restore", "*nat\n:B - [0:0]\nCOMMIT\n");
        assert!(matches!(next(&mut notifications).await, Commit::Made { .. }));
    });
}

#[test]
fn a_table_is_found_and_deleted_with_its_content_and_no_other_table() {
    in_new_namespace(|| {
        let script = "add table ip kube-proxy; add chain ip kube-proxy a; \
            add chain ip kube-proxy b { type nat hook prerouting priority 0; }; \
            add rule ip kube-proxy b ip daddr 10.0.0.1 jump a; add set ip kube-proxy s { type ipv4_addr; }; \
            add table ip6 kube-proxy; add table ip other; add table inet kube-proxy";
        assert!(std::process::Command::new("nft").arg(script).status().unwrap().success());
        let has = |family| has_table(family, "kube-proxy").unwrap();
        assert!(has(IpFamily::V4) && has(IpFamily::V6));
        delete_table(IpFamily::V4, "kube-proxy").unwrap();
        assert_eq!((has(IpFamily::V4), has(IpFamily::V6)), (false, true));
        delete_table(IpFamily::V4, "kube-proxy").unwrap();
        let left = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
        let left = String::from_utf8(left.stdout).unwrap();
        assert_eq!(left, "table ip6 kube-proxy\ntable ip other\ntable inet kube-proxy\n");
    });
}

fn fingerprint_of(chain: &str) -> Option<crate::iptables::Fingerprint> {
    fingerprints(IpFamily::V4, "nat", None)
        .unwrap()
        .of(&ChainName::literal(chain))
        .map(|chain| chain.fingerprint)
}

/// Runs a command in the namespace of this thread.
fn run(words: &str) {
    let mut words = words.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_chain_has_the_same_fingerprint_when_it_holds_the_same_rules_and_only_then() {
    in_new_namespace(|| {
        const RULES: &str = "-A A -p tcp -m comment --comment one -m tcp --dport 80 -j RETURN\n\
            -A A -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.0.0.1:80\n";
        let write = |rules: &str| {
            restore("iptables-nft-restore", &format!("*nat\n:A - [0:0]\n{rules}COMMIT\n"));
            fingerprint_of("A").unwrap()
        };
        let first = write(RULES);
        assert_eq!(write(RULES), first, "other handles");
        let swapped: String = RULES.lines().rev().map(|line| format!("{line}\n")).collect();
        let others = [
            "".to_owned(),
            swapped,
            RULES.replace(" one ", " two "),
            RULES.replace("--dport 80", "--dport 81"),
            RULES.replace("-m tcp --dport", "-m mark --mark 0x1 -m tcp --dport"),
            RULES.replace("0.5", "0.4"),
            RULES.replace("10.0.0.1:80", "10.0.0.1:81"),
            RULES.replace("-j RETURN", "-j ACCEPT"),
            RULES.lines().next().unwrap().to_owned() + "\n",
            format!("{RULES}-A A -j RETURN\n"),
        ];
        let mut seen = vec![first];
        for other in others {
            let fingerprint = write(&other);
            assert!(!seen.contains(&fingerprint), "{other}");
            seen.push(fingerprint);
        }
        write(RULES);
        // Changes in other chains, and back.
        run("iptables-nft -t nat -N B");
        run("iptables-nft -t nat -A PREROUTING -j B");
        run("iptables-nft -t nat -I A -j B");
        assert_ne!(fingerprint_of("A").unwrap(), first);
        run("iptables-nft -t nat -D A -j B");
        assert_eq!(fingerprint_of("A").unwrap(), first);
    });
}

#[test]
fn packets_do_not_change_a_fingerprint() {
    in_new_namespace(|| {
        run("ip link set lo up");
        let rules = "-A A -p udp -m comment --comment counted\n\
            -A A -p udp -m limit --limit 3/sec --limit-burst 2 -j MARK --set-xmark 0x1/0x1\n\
            -A A -p udp -m statistic --mode random --probability 0.5 -j MARK --set-xmark 0x2/0x2\n\
            -A A -p udp -m statistic --mode nth --every 3 --packet 0 -j MARK --set-xmark 0x4/0x4\n\
            -A A -p udp -m recent --name clients --rcheck --seconds 60 --reap\n\
            -A A -p udp -m recent --name clients --set\n\
            -A A -p udp -m hashlimit --hashlimit-upto 5/sec --hashlimit-name clients\n\
            -A A -p udp -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW -j ACCEPT\n";
        let filter = format!("*filter\n:A - [0:0]\n-A OUTPUT -j A\n{rules}COMMIT\n");
        let nat = "*nat\n:A - [0:0]\n-A OUTPUT -p udp --dport 9 -j A\n\
            -A A -p udp -m recent --name targets --rcheck --seconds 60 --reap -j DNAT --to-destination 127.0.0.1:10\n\
            -A A -p udp -m recent --name targets --set -j DNAT --to-destination 127.0.0.1:10\nCOMMIT\n";
        restore("iptables-nft-restore", &format!("{filter}{nat}"));
        let seen = || ["filter", "nat"].map(|table| fingerprints(IpFamily::V4, table, None).unwrap());
        let before = seen();
        let socket = std::net::UdpSocket::bind("127.0.0.1:10").unwrap();
        for _ in 0..50 {
            // A new flow each, so that nat sees them all.
            let _ = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", "127.0.0.1:9").unwrap();
        }
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        for _ in 0..50 {
            socket.recv(&mut [0; 8]).expect("it went through the rules");
        }
        assert_eq!(seen(), before);
        run("iptables-nft -t nat -Z");
        assert_eq!(seen()[1].chains, before[1].chains, "counters that were reset");
    });
}

#[test]
fn a_chain_has_the_same_fingerprint_alone_and_among_all() {
    in_new_namespace(|| {
        let rule = |n: usize| format!("-A C{n} -p tcp --dport {} -j RETURN\n", n + 1);
        let rules: String = (0..20).map(rule).collect();
        let chains: String = (0..20).map(|n| format!(":C{n} - [0:0]\n")).collect();
        restore("iptables-nft-restore", &format!("*nat\n{chains}:EMPTY - [0:0]\n{rules}COMMIT\n"));
        restore("iptables-nft-restore", "*filter\n:C1 - [0:0]\n-A C1 -j DROP\nCOMMIT\n");
        restore("ip6tables-nft-restore", "*nat\n:C1 - [0:0]\n-A C1 -j RETURN\nCOMMIT\n");
        let all = fingerprints(IpFamily::V4, "nat", None).unwrap();
        assert_eq!(all.generation, Some(generation().unwrap()));
        assert_eq!(all.chains.len(), 21, "{all:?}");
        assert!(all.chains.is_sorted_by_key(|chain| chain.name));
        let asked = ["C7", "C1", "EMPTY", "NONE"].map(|name| ChainName::new(name).unwrap());
        let some = fingerprints(IpFamily::V4, "nat", Some(&asked)).unwrap();
        assert_eq!(some.chains.len(), 4);
        for name in &asked[..3] {
            assert!(some.of(name).is_some() && some.of(name) == all.of(name), "{name}");
        }
        let fingerprint = |dump: &crate::kernel::Dump, name| dump.of(name).map(|chain| chain.fingerprint);
        assert_eq!(
            fingerprint(&some, &asked[3]),
            fingerprint(&all, &asked[2]),
            "a missing chain counts as empty"
        );
        assert_eq!(all.of(&asked[3]), None);
        let none = fingerprints(IpFamily::V4, "mangle", None).unwrap();
        assert_eq!((none.chains.len(), none.generation), (0, all.generation));
    });
}

#[test]
fn fingerprints_during_commits_are_of_all_chains_or_none() {
    in_new_namespace(|| {
        let chains: String = (0..2_000).map(|n| format!(":M{n:04} - [0:0]\n")).collect();
        // The kernel counts a commit a moment before it takes effect: a dump that begins in between may hold
        // some of either.
        let rules = |port: usize| -> String {
            (0..2_000).map(|n| format!("-A M{n:04} -p tcp --dport {port} -j RETURN\n")).collect()
        };
        let inputs = [1, 2].map(|port| format!("*nat\n{chains}{}COMMIT\n", rules(port)));
        restore("iptables-nft-restore", &inputs[0]);
        let folder = tempfile::tempdir().unwrap();
        for (n, input) in inputs.iter().enumerate() {
            std::fs::write(folder.path().join(n.to_string()), input).unwrap();
        }
        let script = "for i in 1 2 3 4 5; do iptables-nft-restore --noflush < 1; iptables-nft-restore --noflush < 0; done";
        let mut writer = Command::new("sh").args(["-c", script]).current_dir(folder.path()).spawn().unwrap();
        let mut n_dumps = 0;
        while writer.try_wait().unwrap().is_none() {
            match fingerprints(IpFamily::V4, "nat", None) {
                Ok(dump) => {
                    assert_eq!(dump.chains.len(), 2_000);
                    assert!(dump.generation.is_some());
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Interrupted),
            }
            n_dumps += 1;
        }
        assert!(writer.wait().unwrap().success() && n_dumps > 0);
        let dump = fingerprints(IpFamily::V4, "nat", None).unwrap();
        assert!(
            dump.chains.iter().all(|chain| chain.fingerprint == dump.chains[0].fingerprint),
            "the writer has ended"
        );
    });
}
