//! A large conntrack table is swept in bounded time and memory. Alone in its process, so that the measured
//! memory is its own.
#![allow(clippy::disallowed_methods, reason = "the test fills the table with `conntrack` and measures")]

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use chainsmith::kernel::flow_table::{Swept, sweep_udp};
use chainsmith::net::IpFamily;
use nix::sched::{CloneFlags, unshare};

/// Half of the machine's limit, 100 000 at most, unless `CONNTRACK_FLOWS` sets another number. The limit,
/// `net.netfilter.nf_conntrack_max`, belongs to the first namespace.
fn n_flows() -> u32 {
    if let Ok(number) = std::env::var("CONNTRACK_FLOWS") {
        return number.parse::<u32>().expect("CONNTRACK_FLOWS is a number") / 2 * 2;
    }
    let max = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").expect("a limit");
    (max.trim().parse::<u32>().expect("a number") / 2).min(100_000) / 2 * 2
}

/// Fills the table of this namespace with `n` UDP flows to 10.96.0.1:53, every other one translated to
/// 10.0.0.2, and one TCP flow.
fn fill(n: u32) {
    let mut text = String::new();
    let mut flow = |protocol: &str, more: &str, client: [u8; 4], port: u32, backend: &str| {
        let [a, b, c, d] = client;
        writeln!(
            text,
            "-A -t 600 -u SEEN_REPLY,ASSURED -s {a}.{b}.{c}.{d} -d 10.96.0.1 -r {backend} -q {a}.{b}.{c}.{d} \
             -p {protocol} {more} --sport {port} --dport 53 --reply-port-src 53 --reply-port-dst {port}"
        )
        .expect("a text grows");
    };
    for n in 0..n {
        let backend = if n % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" };
        flow("udp", "", [198, 18, 0, (n / 50_000) as u8], 1024 + n % 50_000, backend);
    }
    flow("tcp", "--state ESTABLISHED", [198, 18, 0, 9], 1024, "10.0.0.2");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("flows");
    std::fs::write(&file, text).expect("a file");
    let output = Command::new("conntrack").arg("-R").arg(&file).output().expect("conntrack runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a readable status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the peak resident memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_full_table_is_swept_in_bounded_time_and_memory() {
    unshare(CloneFlags::CLONE_NEWNET).expect("tests run as root");
    let n = n_flows();
    fill(n);
    let gone: SocketAddr = "10.0.0.2:53".parse().expect("an address");
    let sweep = || {
        let started = Instant::now();
        let swept = sweep_udp(IpFamily::V4, |_, backend| (backend == gone).then_some(()), drop);
        (swept.expect("flows can be listed"), started.elapsed())
    };
    // Resets the peak resident memory.
    std::fs::write("/proc/self/clear_refs", "5").expect("the file of this process");
    let before = resident_kib();
    let (swept, elapsed) = sweep();
    let grown = resident_kib() - before;
    println!("{n} flows, {} deleted: {elapsed:?}, {grown} KiB more", swept.n_deleted);
    assert_eq!((swept.n_deleted, swept.n_failed), (n as usize / 2, 0), "{swept:?}");
    assert!(swept.n_seen >= n as usize, "{swept:?}");
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
    assert!(grown < 2048, "{grown} KiB");

    let (swept, elapsed) = sweep();
    println!("{} flows looked at: {elapsed:?}", swept.n_seen);
    assert_eq!(swept, Swept { n_seen: n as usize / 2, ..Swept::default() });
}
