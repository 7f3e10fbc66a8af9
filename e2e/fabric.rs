//! The lab without any rules: its links, and that nothing of it stays.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::cluster::{self, WEB};
use crate::lab::address::FAMILIES;
use crate::lab::client::{Host, Outcome, PATIENCE, Protocol};
use crate::lab::host::POD_PORT;
use crate::lab::netfilter::Backend;
use crate::lab::process::Process;
use crate::lab::{Lab, PodNetwork, poll};

/// Set in the process that is to be killed.
const HOLD: &str = "LAB_HOLD";

#[test]
fn pods_of_three_nodes_reach_each_other() {
    for network in [PodNetwork::Routes, PodNetwork::Vxlan] {
        let plan = Lab::plan(Backend::Nft).node(&["a"]).node(&["b"]).node(&["c"]);
        let mut lab = plan.pod_network(network).build().expect("a lab can be built");
        lab.add_pod(3, 99, "late").expect("a pod can be added");
        for (from, to) in lab.pods().flat_map(|from| lab.pods().map(move |to| (from, to))) {
            for family in FAMILIES {
                let at = SocketAddr::new(to.address().of(family), POD_PORT);
                for attempt in [from.tcp(at), from.udp(at)] {
                    assert_eq!(attempt.pod(), to.name());
                    assert_eq!(attempt.seen().ip(), from.address().of(family));
                }
            }
        }
        lab.pod_mut("a").stop_serving();
        lab.remove_pod("late");
        let at = |pod: &str| SocketAddr::new(lab.pod(pod).address().v4.into(), POD_PORT);
        assert_eq!(lab.pod("b").tcp(at("a")).outcome, Outcome::Refused);
        assert_eq!(lab.pod("b").tcp(at("c")).pod(), "c");
    }
}

#[test]
fn without_rules_a_service_is_unreachable() {
    let lab = cluster::build(Backend::Nft).expect("a lab can be built");
    let hosts: [&dyn Host; 3] = [lab.pod("client-1"), lab.node(2), lab.outside()];
    for host in hosts {
        for family in FAMILIES {
            for to in [WEB.cluster_ip(family), WEB.load_balancer(family)] {
                let attempt = host.udp(to);
                assert_eq!(attempt.outcome, Outcome::Unreachable, "{} to {to}", host.namespace().name());
            }
        }
    }
    let traffic = lab.pod("client-1").keep_trying(Protocol::Udp, WEB.cluster_ip(FAMILIES[0]), PATIENCE);
    let tally = traffic.expect("a client can be started").stop();
    assert!(tally.pods.is_empty(), "{tally}");
}

/// Runs itself as another process, which makes a lab with a program on a node, and kills that process.
#[test]
fn a_killed_test_leaves_nothing_behind() {
    if std::env::var_os(HOLD).is_some() {
        hold_a_lab();
    }
    let own = std::env::current_exe().expect("this program has a path");
    let mut victim = Command::new(own)
        .args(["--exact", "fabric::a_killed_test_leaves_nothing_behind", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts");
    let lines = BufReader::new(victim.stdout.take().expect("stdout is piped")).lines();
    let held = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("holding ")?.1.to_owned()));
    let held = held.expect("the other process has a lab");
    let (pid, folder) = held.split_once(' ').expect("a process and a folder");
    assert!(Path::new("/proc").join(pid).exists(), "a program runs on a node");
    victim.kill().expect("the other process can be killed");
    victim.wait().expect("it ends");
    poll::until("the program on a node is gone", Duration::from_secs(5), || {
        !Path::new("/proc").join(pid).exists()
    });
    // Only files below the target folder can stay.
    std::fs::remove_dir_all(folder).expect("its folder can be removed");
}

/// Makes a lab with a program on a node, reports it on stdout, and waits to be killed.
fn hold_a_lab() -> ! {
    let lab = cluster::build(Backend::Nft).expect("a lab can be built");
    let log = lab.folder().join("sleep.log");
    let node = lab.node(1).namespace();
    let sleep =
        Process::start(node, Path::new("sleep"), &["60".to_owned()], &[], &log).expect("sleep starts");
    println!("holding {} {}", sleep.pid(), lab.folder().display());
    loop {
        thread::park();
    }
}
