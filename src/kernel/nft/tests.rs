#![allow(clippy::disallowed_methods, reason = "the tests write rules with iptables")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::netlink::in_new_namespace;
use super::*;

/// Gives `text` to a restore program, in the namespace of this thread.
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

/// `n` chains, none with rules.
fn many(n: usize, prefix: &str) -> String {
    let mut text = "*nat\n".to_owned();
    for i in (0..n).rev() {
        writeln!(text, ":{prefix}{i:08} - [0:0]").unwrap();
    }
    text + "COMMIT\n"
}

#[test]
fn a_dump_of_many_datagrams_is_whole() {
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

/// Runs `test` on a runtime of its own, in a network namespace of its own.
fn listening(test: impl AsyncFnOnce(Notifications) + Send) {
    in_new_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Notifications::listen().unwrap()).await });
    });
}

/// The next commit; a minute without one is a failure.
async fn next(notifications: &mut Notifications) -> Commit {
    let waiting = tokio::time::timeout(Duration::from_secs(60), notifications.next());
    waiting.await.expect("a notification comes").unwrap()
}

async fn is_quiet(notifications: &mut Notifications) -> bool {
    tokio::time::timeout(Duration::from_millis(50), notifications.next()).await.is_err()
}

#[test]
fn a_commit_is_told_with_its_generation_and_its_program() {
    listening(async |mut notifications| {
        assert!(is_quiet(&mut notifications).await);
        restore("iptables-nft-restore", "*nat\n:A - [0:0]\n-A A -j RETURN\nCOMMIT\n");
        let Commit::Made { generation: told, pid, program } = next(&mut notifications).await else {
            panic!("nothing is missed")
        };
        assert_eq!(told, generation().unwrap());
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
fn too_many_commits_are_told_as_missed() {
    listening(async |mut notifications| {
        notifications.socket.get_ref().set_rx_buf_sz(1).unwrap();
        let commands = "*nat\n:A - [0:0]\nCOMMIT\n*nat\n-A A -j RETURN\nCOMMIT\n".repeat(200);
        restore("iptables-nft-restore", &commands);
        let mut n_told = 0;
        let mut is_missed = false;
        while let Ok(commit) = tokio::time::timeout(Duration::from_millis(50), notifications.next()).await {
            match commit.unwrap() {
                Commit::Made { .. } => n_told += 1,
                Commit::Missed => is_missed = true,
            }
        }
        // A few fit, the others are one word, and listening goes on.
        assert!(is_missed && n_told < 400, "{is_missed} {n_told}");
        restore("iptables-nft-restore", "*nat\n:B - [0:0]\nCOMMIT\n");
        assert!(matches!(next(&mut notifications).await, Commit::Made { .. }));
    });
}

#[test]
fn a_table_is_found_and_deleted_with_all_in_it_and_no_other() {
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
