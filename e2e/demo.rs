//! `make demo`: a cluster of simulated nodes with Chainsmith on each, some requests to a
//! Service's addresses, and the path of each packet.
#![allow(clippy::disallowed_methods, reason = "a demonstration is about the world: programs, files, clocks")]
#![allow(dead_code, reason = "shares its modules with the tests, and uses its part of them")]

mod apiserver;
mod cluster;
mod lab;
mod running;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cluster::{LOCAL, OWN, WEB, WEB_PODS};
use crate::lab::address::Family;
use crate::lab::client::{Host, Outcome, Protocol};
use crate::lab::host::Node;
use crate::lab::netfilter::{Backend, Flow};
use crate::running::Running;

const CLUSTER_IP: &str = "Cluster IP, from a pod: a pod on either node answers, and sees the client";
const FROM_A_NODE: &str = "Cluster IP, from a node itself: masqueraded";
const NODE_PORT: &str = "Node port of node-2, from outside: masqueraded, so that answers come back by node-2";
const LOAD_BALANCER: &str = "Load balancer VIP, from outside by node-1: masqueraded";
const POLICY_LOCAL: &str = "Load balancer VIP with externalTrafficPolicy Local: the pod sees the client";
const HAIRPIN: &str = "A pod through a Service to itself (hairpin): it sees its node";
const IPV6: &str = "Cluster IP in IPv6, from a pod of node-2";

fn main() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: use `make demo`");
    println!(
        "Two nodes and an outside client on one wire, as network namespaces of this program:\n\n    \
         node-1   192.0.2.1     pods web-1 10.128.0.5, web-2 10.128.0.6, client-1 10.128.0.7\n    \
         node-2   192.0.2.11    pods web-3 10.128.1.5, client-2 10.128.1.6\n    \
         outside  192.0.2.200\n\n\
         Services: `web` with the pods web-1, web-2, web-3; `local` with web-1 and web-2 and\n\
         externalTrafficPolicy Local; `own` with web-1 alone. Packets that a node forwards are shown by its\n\
         conntrack, what a pod sees by the pod's answer."
    );
    for backend in [Backend::Nft, Backend::Legacy] {
        show(backend)?;
    }
    println!("\nAll of it is gone now: nothing had a name outside this program.");
    Ok(())
}

/// Runs a cluster on one back-end and sends the requests.
fn show(backend: Backend) -> Result<()> {
    heading(&format!("Chainsmith on iptables-{}", backend.flag()));
    let start = Instant::now();
    let running = Running::start(backend)?;
    println!("cluster up, both nodes synced, after {:.1} s", start.elapsed().as_secs_f32());
    let lab = &running.lab;
    let (one, two) = (lab.node(1), lab.node(2));
    lab.outside().enter_by(one)?;
    let v4 = Family::V4;

    let (pod, outside, own_pod) = (lab.pod("client-1"), lab.outside(), lab.pod("web-1"));
    let requests: [(&str, &dyn Host, &Node, SocketAddr); 7] = [
        (CLUSTER_IP, pod, one, WEB.cluster_ip(v4)),
        (FROM_A_NODE, one, one, WEB.cluster_ip(v4)),
        (NODE_PORT, outside, two, WEB.node_port(two, v4)),
        (LOAD_BALANCER, outside, one, WEB.load_balancer(v4)),
        (POLICY_LOCAL, outside, one, LOCAL.load_balancer(v4)),
        (HAIRPIN, own_pod, one, OWN.cluster_ip(v4)),
        (IPV6, lab.pod("client-2"), two, WEB.cluster_ip(Family::V6)),
    ];
    for (title, host, entry, to) in requests {
        request(&running, title, host, entry, to)?;
    }

    let tally = lab.pod("client-1").attempts(300, Protocol::Tcp, WEB.cluster_ip(v4));
    println!("\n300 connections to {}:", WEB.cluster_ip(v4));
    for pod in WEB_PODS {
        let n_answers = tally.pods.get(pod).copied().unwrap_or_default();
        println!("    {pod}  {n_answers:>3}  {}", "#".repeat(usize::try_from(n_answers / 4)?));
    }
    for agent in running.agents {
        agent.stop();
    }
    Ok(())
}

/// Sends one request from `host`, first met by the rules of `entry`, and prints its path.
fn request(running: &Running, title: &str, host: &dyn Host, entry: &Node, to: SocketAddr) -> Result<()> {
    println!("\n{title}");
    let attempt = host.tcp(to);
    let Outcome::Answered { pod, seen } = &attempt.outcome else {
        println!("    no answer: {:?}", attempt.outcome);
        return Ok(());
    };
    let from = attempt.from.context("an answered client has an address")?;
    step(&format!("{} sends", host.namespace().name()), from, to, "");
    let server = running.lab.pod(pod);
    let last = running.lab.node_of(server);
    let mut packet = (from, to);
    let mut path = vec![entry];
    if last.number() != entry.number() {
        path.push(last);
    }
    for node in path {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let flows = node.netfilter().flows(family)?;
        let flow = flows.iter().find(|flow| (flow.source, flow.destination) == packet);
        let flow = flow.with_context(|| format!("{} knows nothing of {packet:?}", node.name()))?;
        packet = (flow.reply_destination, flow.reply_source);
        step(&format!("{} sends on", node.name()), packet.0, packet.1, what_changed(flow));
    }
    step(&format!("{pod} sees"), *seen, packet.1, "");
    println!(
        "    answered by {pod} on {} after {:.1} ms",
        last.name(),
        attempt.elapsed.as_secs_f32() * 1000.0
    );
    ensure!(packet.0 == *seen, "conntrack says the pod saw {}, the pod says {seen}", packet.0);
    Ok(())
}

/// The translation of a flow, in a word.
fn what_changed(flow: &Flow) -> &'static str {
    match (flow.is_dnated(), flow.is_snated()) {
        (true, true) => "DNAT and masquerade",
        (true, false) => "DNAT",
        (false, true) => "masquerade",
        (false, false) => "unchanged",
    }
}

fn step(machine: &str, from: SocketAddr, to: SocketAddr, note: &str) {
    // Formatted first, because the address types pad only as text.
    let (from, to) = (from.to_string(), to.to_string());
    println!("{}", format!("    {machine:<17} {from:<27} -> {to:<25} {note}").trim_end());
}

fn heading(text: &str) {
    let is_bold = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if is_bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    println!("\n{on}==== {text} ===={off}");
}
