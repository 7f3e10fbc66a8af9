//! The life of an agent, shown by traffic: changes take effect at once, a restart
//! writes nothing, and the agent repairs what other processes break.

use std::time::{Duration, Instant};

use crate::cluster::{OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::{FAMILIES, Family};
use crate::lab::agent::Agent;
use crate::lab::client::{Host, Outcome, Protocol};
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::{Running, wait_until_synced};
use crate::traffic;

/// How long a change may take from the API server to packets, on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(5);

/// How long one attempt may take while a change is waited for.
const BRIEF: Duration = Duration::from_millis(200);

/// The agent checks every second whether the tables were flushed.
const LOOK_EACH_SECOND: &str = "--iptables-sync-period=1s";

/// Every claim about traffic holds with the rules of a running agent.
pub fn traffic_is_right(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    traffic::all(&running.lab);
    stop_all(running);
}

/// The same in the layout for large clusters; also with a FORWARD policy of DROP, as Docker sets it,
/// and beside a foreign redirection to loopback.
pub fn traffic_is_right_in_compact(backend: Backend) {
    let running = Running::with_flags(backend, &["--layout=compact"]).expect("a cluster starts");
    traffic::all(&running.lab);
    traffic::hairpin_works_where_forwarding_is_forbidden(&running.lab);
    traffic::a_foreign_redirection_keeps_its_source(&running.lab);
    stop_all(running);
}

/// All nodes stop serving a deleted Service at once.
pub fn deleted_service_stops_at_once(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    let node = running.lab.node(2);
    for family in FAMILIES {
        assert_eq!(node.udp(OWN.cluster_ip(family)).pod(), "web-1");
    }
    let start = Instant::now();
    assert!(running.api.delete("Service", Some("default"), OWN.name), "there was a Service");
    for family in FAMILIES {
        for host in running.lab.nodes() {
            let addresses = [OWN.cluster_ip(family), OWN.load_balancer(family), OWN.external_ip(family)];
            for to in addresses {
                poll::until(&format!("{to} belongs to no Service on {}", host.name()), SOON, || {
                    host.attempt(Protocol::Udp, to, BRIEF).outcome == Outcome::Unreachable
                });
            }
            let port = OWN.node_port(host, family);
            poll::until(&format!("{port} belongs to no Service"), SOON, || {
                running.lab.outside().attempt(Protocol::Udp, port, BRIEF).outcome == Outcome::Refused
            });
        }
    }
    println!("gone after {:?}", start.elapsed());
    for host in running.lab.nodes() {
        assert_ne!(host.udp(WEB.cluster_ip(Family::V4)).outcome, Outcome::Unreachable, "others stay");
    }
    stop_all(running);
}

/// Endpoints that come and go take effect, and without endpoints connections are rejected.
pub fn endpoints_are_followed(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    let (client, to) = (running.lab.pod("client-2"), OWN.cluster_ip(Family::V4));
    assert_eq!(client.tcp(to).pod(), "web-1");
    running.api.put(own_slice(&["10.128.1.5"]));
    poll::until("web-3 has taken over", SOON, || client.tcp(to).pod() == "web-3");
    running.api.put(own_slice(&["10.128.0.5", "10.128.0.6", "10.128.1.5"]));
    poll::until("web-2 has joined", SOON, || client.tcp(to).pod() == "web-2");
    client.attempts(200, Protocol::Tcp, to).assert_spread(&WEB_PODS);
    running.api.put(own_slice(&[]));
    poll::until("no endpoint is left", SOON, || {
        client.attempt(Protocol::Udp, to, BRIEF).outcome == Outcome::Refused
    });
    let other_family = OWN.cluster_ip(Family::V6);
    assert_eq!(client.tcp(other_family).pod(), "web-1", "the other family has its own slice");
    stop_all(running);
}

/// A stopped agent leaves the rules in force, and a new one adopts them without writing.
pub fn restart_writes_nothing(backend: Backend) {
    let mut running = Running::start(backend).expect("a cluster starts");
    let first = running.agents.remove(0);
    let node = running.lab.node(1);
    node.attempts(100, Protocol::Tcp, WEB.cluster_ip(Family::V4)).assert_spread(&WEB_PODS);
    first.stop();
    let before = Kernel::of(node);
    assert!(before.counted > 0, "rules have counted packets");

    node.attempts(100, Protocol::Tcp, WEB.cluster_ip(Family::V4)).assert_spread(&WEB_PODS);
    let second = running.start_agent(node).expect("an agent starts");
    poll::until("the new agent has synced both families", SOON, || second.syncs().len() >= 2);
    let after = Kernel::of(node);
    assert_eq!(after.rules, before.rules, "the rules themselves");
    // The agent probes two rules of each family, one that compact needs and one that counts packets; both are
    // gone with the same commit.
    let n_probes = u32::from(backend == Backend::Nft) * 4;
    assert_eq!(after.generation - before.generation, n_probes, "commits to nf_tables");
    assert!(after.counted > before.counted, "counters went on: {} then {}", before.counted, after.counted);
    for sync in second.syncs() {
        assert_eq!((sync.chains_written, sync.rules_written, sync.processes), (0, 0, 0), "{sync:?}");
    }
    assert_eq!(restores(&second).len(), 4, "the probes alone");
    let mut asked: Vec<String> =
        second.programs_started().into_iter().filter(|call| call.contains("--version")).collect();
    asked.sort();
    let n_asked = asked.len();
    asked.dedup();
    assert_eq!((n_asked, asked.len()), (6, 6), "each program is asked once for its version: {asked:?}");

    // The agent runs, and writes only the change.
    running.api.put(own_slice(&["10.128.1.5"]));
    poll::until("web-3 has taken over", SOON, || node.tcp(OWN.cluster_ip(Family::V4)).pod() == "web-3");
    let restores = restores(&second);
    assert_eq!(restores.len(), 5, "one process for one changed endpoint: {restores:?}");
    running.agents.push(second);
    stop_all(running);
}

/// A killed agent leaves the rules in force, and the next one goes on from them.
pub fn kill_leaves_the_rules(backend: Backend) {
    let mut running = Running::start(backend).expect("a cluster starts");
    let first = running.agents.remove(0);
    let (node, to) = (running.lab.node(1), OWN.cluster_ip(Family::V4));
    first.kill9();
    assert_eq!(node.tcp(to).pod(), "web-1");
    running.api.put(own_slice(&["10.128.1.5"]));
    let second = running.start_agent(node).expect("an agent starts");
    poll::until("the new agent has caught up", SOON, || node.tcp(to).pod() == "web-3");
    running.agents.push(second);
    stop_all(running);
}

/// The agent repairs all tables when another process flushes them, as a firewall does when it reloads.
pub fn flushed_tables_are_repaired(backend: Backend) {
    let running = Running::with_flags(backend, &[LOOK_EACH_SECOND]).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    for family in FAMILIES {
        for table in ["mangle", "filter", "nat"] {
            node.netfilter().flush(family, table).expect("a table can be flushed");
        }
    }
    let flushed = Instant::now();
    wait_until_synced(node, agent);
    println!("repaired after {:?}", flushed.elapsed());
    traffic::all(&running.lab);
    stop_all(running);
}

/// The calls of iptables-restore in which `agent` wrote rules; calls that only ask for the version do not count.
fn restores(agent: &Agent) -> Vec<String> {
    let calls = agent.programs_started().into_iter();
    calls.filter(|call| call.contains("-restore ") && !call.contains("--version")).collect()
}

/// The kernel's state on a node, as far as a restart must not change it.
struct Kernel {
    /// The rules of both families without counters.
    rules: Vec<String>,
    /// How often nf_tables was written.
    generation: u32,
    /// Packets counted by all rules of Services, in total.
    counted: u64,
}

impl Kernel {
    fn of(node: &Node) -> Self {
        let netfilter = node.netfilter();
        let generation = netfilter.generation().expect("nf_tables answers");
        let (mut rules, mut counted) = (Vec::new(), 0);
        for family in FAMILIES {
            for line in netfilter.save_with_counters(family).expect("rules can be read").lines() {
                let (counters, rule) = match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
                    Some(split) => split,
                    None => ("0:0", line.split_once(" [").map_or(line, |(chain, _)| chain)),
                };
                if rule.starts_with('#') {
                    continue;
                }
                if rule.starts_with("-A KUBE-SVC-") || rule.starts_with("-A KUBE-SEP-") {
                    let (packets, _) = counters.split_once(':').expect("packets:bytes");
                    counted += packets.parse::<u64>().expect("a number of packets");
                }
                rules.push(rule.to_owned());
            }
        }
        Self { rules, generation, counted }
    }
}

/// Ends all agents as a node does when it shuts down.
#[track_caller]
pub fn stop_all(running: Running) {
    for agent in running.agents {
        agent.stop();
    }
}
