//! `check`, once and watching, with all programs that it starts, makes no system call that could change the node.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::node::{CHAINSMITH, CheckedNode, on_each_node, on_two_nodes};
use super::write_watch::{Watched, watch};

/// The tables of the legacy back-end, which a read can make.
fn legacy_tables() -> [String; 2] {
    ["ip_tables_names", "ip6_tables_names"]
        .map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default())
}

#[track_caller]
fn assert_only_read(watched: &Watched, status: i32) {
    assert_eq!((watched.status, watched.writes.len()), (Some(status), 0), "{watched:#?}");
    assert!(watched.n_reads > 0 && watched.n_processes > 1, "{watched:#?}");
}

#[test]
fn a_check_writes_nothing() {
    on_each_node(|node| {
        let before = legacy_tables();
        let command = node.arguments(&[CHAINSMITH, "check", "--node", "node-a"]);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_only_read(&watch(&command, |_| {}), 0);
        node.sh("$I -t nat -F KUBE-SERVICES");
        assert_only_read(&watch(&command, |_| {}), 1);
        assert_eq!(legacy_tables(), before);
    });
}

/// The answer of the server of `check --watch`, empty while there is none.
fn get(path: &str) -> String {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:19269")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    answer().unwrap_or_default()
}

#[track_caller]
fn wait_for(line: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    while !get("/metrics").contains(line) {
        assert!(Instant::now() < until, "no {line:?} in {}", get("/metrics"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Spoils the node while it is watched, repairs it, changes the objects, and ends the watch.
fn while_watching(node: &CheckedNode, pid: Pid) {
    wait_for("chainsmith_check_runs_total{result=\"same\"}");
    assert!(get("/healthz").starts_with("HTTP/1.1 200"));
    node.sh("$I -t nat -F KUBE-MARK-MASQ");
    wait_for("chainsmith_check_findings{kind=\"chainFlushed\",severity=\"error\"} 1");
    node.repair();
    wait_for("chainsmith_check_findings{kind=\"chainFlushed\",severity=\"error\"} 0");
    let path = node.objects().join("shop.yaml");
    let text = std::fs::read_to_string(&path).expect("objects");
    std::fs::write(&path, text.replace("10.96.0.12", "10.96.0.99")).expect("written");
    wait_for("chainsmith_check_affected_service_ports{ip_family=\"IPv4\"} 1");
    wait_for("severity=\"error\"} ");
    kill(pid, Signal::SIGTERM).expect("it runs");
}

#[test]
fn a_watch_writes_nothing_finds_what_lasts_and_ends_with_sigterm() {
    on_two_nodes(|node| {
        let before = legacy_tables();
        let options = ["check", "--watch", "--node", "node-a", "--period=2s", "--grace-period=1s"];
        let command: Vec<&str> = [CHAINSMITH]
            .into_iter()
            .chain(options)
            .chain(["--metrics-bind-address=127.0.0.1:19269"])
            .collect();
        let command = node.arguments(&command);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let watched = watch(&command, |pid| while_watching(node, pid));
        assert_only_read(&watched, 0);
        assert_eq!(legacy_tables(), before);
    });
}
