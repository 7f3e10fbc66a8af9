//! `chainsmith trace`, called as a user calls it: wrong questions and unreadable sources have a message that names the
//! fault, and an exit status.
#![allow(clippy::disallowed_methods, reason = "tests start the program and write files")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const SHOP: &str = "
{apiVersion: v1, kind: Node, metadata: {name: node-a}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: sql, port: 5432}, {name: metrics, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop}, spec: {nodeName: node-a}, status: {podIP: 10.1.0.9}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop}, spec: {nodeName: node-a}}
";

const RULES: &str = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.0.0.1/32 -j DROP\nCOMMIT\n";

struct Called {
    status: i32,
    stdout: String,
    stderr: String,
}

fn call(words: &str, stdin: &str) -> Called {
    let mut child = Command::new(env!("CARGO_BIN_EXE_chainsmith"))
        .arg("trace")
        .args(words.split(' '))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata"))
        .env_remove("COLUMNS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its input has closed it.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Called {
        status: output.status.code().expect("an exit status"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[track_caller]
fn check_error(words: &str, stdin: &str, status: i32, expected: &str) {
    let Called { status: actual, stdout, stderr } = call(words, stdin);
    assert_eq!((actual, stdout.as_str()), (status, ""), "{words}: {stderr}");
    assert!(stderr.contains(expected), "{words}: {expected:?} not in {stderr:?}");
    assert!(stderr.lines().all(|line| !line.contains('\u{1b}')), "{stderr}");
}

#[test]
fn a_wrong_command_line_names_the_flag_and_the_fault() {
    let check = |words: &str, expected: &str| check_error(words, SHOP, 2, expected);
    check("-f -", "--to <DESTINATION>");
    check(
        "--to 10.96.0.300:80 -f -",
        "--to: \"10.96.0.300:80\" is not a destination; expected IP:PORT[/PROTO]",
    );
    check("--to 10.96.0.10:99999 -f -", "\"99999\", which is not a number from 1 to 65535");
    check("--to 10.96.0.10:80/icmp -f -", "\"icmp\", which is not tcp, udp or sctp");
    check("--to db.shop.svc:5432 -f -", "is a DNS name (the Service: svc/shop/db:5432)");
    check("--to shop/db --from nowhere -f -", "--from: \"nowhere\" is not a place that packets come from");
    check("--to shop/db --from node --in eth0 -f -", "--in: a packet that the node sends");
    check("--to shop/db --in eth/0 -f -", "--in: \"eth/0\" is not the name of an interface");
    check("--to shop/db --state odd -f -", "--state");
    check("--to shop/db", "no source: give RULES");
    check("--to shop/db --live -", "--live");
    check_error("--to shop/db -f -", "", 2, "there is no Node among the objects; name one with --node");
    check_error("--to shop/db --node b -f -", SHOP, 2, "node-a");
}

#[test]
fn an_unknown_name_has_a_near_match_or_a_reason() {
    let check = |words: &str, expected: &str| check_error(words, SHOP, 1, expected);
    check(
        "--to shop/bd -f -",
        "there is no proxied Service shop/bd among the objects; did you mean shop/db?",
    );
    check("--to default/else -f -", "there is no proxied Service default/else among the objects");
    check(
        "--to shop/db:sqk -f -",
        "Service shop/db has no such port sqk; it has metrics (9090/TCP), sql (5432/TCP)",
    );
    check("--to shop/db:5432/udp -f -", "Service shop/db has no such port 5432; it has metrics (9090/TCP)");
    check("--to shop/peers -f -", "Service shop/peers is headless");
    check("--to shop/db --from pod/shop/cat -f -", "there is no Pod shop/cat; did you mean pod/shop/cart?");
    check("--to shop/db --from pod/shop/new -f -", "Pod shop/new has no address: it is not running");
    check("--to shop/db --from fd00::1 -f -", "no family has an address of both");
    check_error("--to 10.0.0.1:80 --from pod/shop/cart -", RULES, 1, "no Pod is known");
    check_error(
        "--to shop/db -",
        RULES,
        1,
        "there is no proxied Service shop/db in the comments of the rules",
    );
    check_error("--to [fd00::1]:80 -", RULES, 1, "has no address of the family of the rules (IPv4)");
}

#[test]
fn an_unreadable_source_is_named_with_its_line() {
    check_error("--to 10.0.0.1:80 no-such-file", "", 1, "no-such-file");
    check_error("--to 10.0.0.1:80 -f no-such-file", "", 1, "no-such-file");
    check_error("--to 10.0.0.1:80 -", "", 1, "rules");
    check_error("--to 10.0.0.1:80 -", "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j\nCOMMIT\n", 1, "line 3");
}

#[test]
fn the_first_two_lines_are_the_answer() {
    let called = call("--to 10.0.0.1:80 --from external -", RULES);
    assert_eq!((called.status, called.stderr.as_str()), (0, ""));
    let first: Vec<&str> = called.stdout.lines().take(2).collect();
    assert_eq!(
        first,
        [
            "outside (203.0.113.2) -> 10.0.0.1:80/TCP",
            "  is dropped: filter FORWARD rule 1, of another program"
        ]
    );
    assert!(!called.stdout.contains('\u{1b}'), "no colours where stdout is no terminal");
    let called = call("--to shop/db:5432 --from pod/shop/cart -f -", SHOP);
    assert_eq!((called.status, called.stderr.as_str()), (0, ""));
    assert!(
        called
            .stdout
            .starts_with("pod shop/cart (10.1.0.9) -> shop/db:sql (10.96.0.10:5432/TCP, cluster IP)\n")
    );
    assert!(called.stdout.contains("is rejected: shop/db:sql has no endpoints"), "{}", called.stdout);
}
