//! The log of a running agent that cannot write it, and hostile objects in the log.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::in_namespace;

/// Time limit on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A Service with an annotation whose key forges a line and clears a screen, and an invalid name.
const HOSTILE: &str = r#"{"apiVersion": "v1", "kind": "Service",
  "metadata": {"name": "web", "annotations": {"service.kubernetes.io/topology-mode": "x"}},
  "spec": {"clusterIP": "10.96.0.10\n2026-01-01T00:00:00Z ERROR forged: all is lost \u001b[2J\u009b1m\u202e",
           "ports": [{"port": 80}]}}"#;

/// An agent in its own namespaces, with loopback; its objects are in `manifests`.
fn agent(manifests: &tempfile::TempDir, arguments: &[&str], stderr: Stdio) -> Child {
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs").success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_chainsmith"));
    command.args(["run", "--hostname-override", "n", "-v=2", "--manifests"]).arg(manifests.path());
    command.args(arguments).stderr(stderr).spawn().expect("it starts")
}

/// The content of `/metrics`, once it is served.
fn metrics(child: &mut Child) -> String {
    let until = Instant::now() + SOON;
    loop {
        assert_eq!(child.try_wait().expect("a child"), None, "it ended");
        assert!(Instant::now() < until, "no metrics");
        if let Ok(mut stream) = TcpStream::connect("127.0.0.1:10249") {
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .expect("written");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            return text;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the agent has synced both families, and stops it; returns the number of lost log lines.
fn lost_until_synced(child: &mut Child) -> u64 {
    let until = Instant::now() + SOON;
    let lost = loop {
        let text = metrics(child);
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        let is_synced = ["IPv4", "IPv6"].iter().all(|family| {
            let name = format!("kubeproxy_sync_proxy_rules_duration_seconds_count{{ip_family=\"{family}\"}}");
            value(&name).is_some_and(|n: f64| n > 0.0)
        });
        if is_synced {
            break value("chainsmith_log_lines_lost_total ").expect("the metric");
        }
        assert!(Instant::now() < until, "not synced: {text}");
        std::thread::sleep(Duration::from_millis(20));
    };
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    assert!(child.wait().expect("it ends").success());
    lost as u64
}

#[test]
fn an_unwritable_log_loses_only_lines() {
    for format in ["--logging-format=text", "--logging-format=json"] {
        in_namespace(|| {
            let manifests = tempfile::tempdir().expect("a folder");
            let full = File::options().write(true).open("/dev/full").expect("a full disk");
            assert!(lost_until_synced(&mut agent(&manifests, &[format], full.into())) > 3);
        });
        in_namespace(|| {
            let manifests = tempfile::tempdir().expect("a folder");
            let mut child = agent(&manifests, &[format], Stdio::piped());
            drop(child.stderr.take());
            assert!(lost_until_synced(&mut child) > 3);
        });
        in_namespace(|| {
            let manifests = tempfile::tempdir().expect("a folder");
            // A pipe of one page that is never read.
            let (pipe, stderr) = std::io::pipe().expect("a pipe");
            nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).expect("a smaller pipe");
            let mut child = agent(&manifests, &[format, "-v=4"], stderr.into());
            assert!(lost_until_synced(&mut child) > 3);
        });
    }
}

/// Checks that nothing in `text` moves a cursor or forges a line.
#[track_caller]
fn check_harmless(text: &str) {
    assert!(text.contains("all is lost"), "it is logged: {text}");
    let is_raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(is_raw), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z")), "{text}");
}

#[test]
fn values_of_objects_forge_no_line_and_move_no_cursor() {
    let manifests = tempfile::tempdir().expect("a folder");
    let file = manifests.path().join("a.json");
    fs::write(&file, HOSTILE).expect("written");
    for format in ["--logging-format=text", "--logging-format=json"] {
        let log = in_namespace(|| {
            let mut child = agent(&manifests, &[format], Stdio::piped());
            lost_until_synced(&mut child);
            let mut log = String::new();
            child.stderr.take().expect("a pipe").read_to_string(&mut log).expect("text");
            log
        });
        check_harmless(&log);
    }
    let render = Command::new(env!("CARGO_BIN_EXE_chainsmith"))
        .args(["render", "--node", "n", "-f"])
        .arg(&file)
        .output()
        .expect("it runs");
    check_harmless(&String::from_utf8_lossy(&render.stderr));
}
