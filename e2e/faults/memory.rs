//! Changes without end: the agent frees the memory of objects that are gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Extent, Finding};
use crate::apiserver::ApiServer;
use crate::cluster::node_object;
use crate::lab::address::{self, Family};
use crate::lab::agent::AgentOptions;
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::{Lab, poll};

/// Services that stay, and those that come and go, at any one time.
const N_STAYING: usize = 150;
const N_PASSING: usize = 40;

/// Changes before memory is first measured: by then all of it was in use once.
const N_FIRST: usize = 1_000;

/// Changes that come together, and the pause in which they are synced.
const BATCH: usize = 50;
const PAUSE: Duration = Duration::from_millis(60);

/// The limit for a batch.
const SLOW: Duration = Duration::from_secs(30);

/// How much more a process may hold at the end than after the first changes: a tenth.
const GROWTH: f64 = 0.10;

/// A changing cluster: each step is one event of a watch.
struct Churn<'a> {
    api: &'a ApiServer,
    /// Steps so far.
    n: usize,
    n_born: usize,
}

impl Churn<'_> {
    /// One change; no two write the same.
    fn step(&mut self) {
        self.n += 1;
        let n = self.n;
        match n % 10 {
            // A Service comes with its slice; the oldest such one goes.
            1 => self.put(service(&passing(self.n_born), self.n_born % (2 * N_PASSING), 80)),
            2 => {
                self.put(slice(&passing(self.n_born), n));
                self.n_born += 1;
            }
            3 if self.n_born > N_PASSING => self.delete("Service", &passing(self.n_born - N_PASSING - 1)),
            4 if self.n_born > N_PASSING => {
                self.delete("EndpointSlice", &passing(self.n_born - N_PASSING - 1));
            }
            // A port moves.
            5 => self.put(service(&staying(n / 10), 200 + n / 10 % N_STAYING, 81 + n / 10 / N_STAYING % 7)),
            // Endpoints move, also of Services without endpoints.
            _ => self.put(slice(&staying(n), n)),
        }
    }

    fn put(&mut self, object: Value) {
        let before = self.api.version();
        assert!(self.api.put(object) > before, "it differs from what was there");
    }

    fn delete(&mut self, kind: &str, name: &str) {
        assert!(self.api.delete(kind, None, name), "no {kind} {name}");
    }

    /// Events sent so far to a watcher of everything.
    fn n_sent(&self) -> u64 {
        let counters = self.api.counters();
        counters.of("services").events + counters.of("endpointslices").events
    }
}

fn staying(n: usize) -> String {
    format!("staying-{}", n % N_STAYING)
}

fn passing(n: usize) -> String {
    format!("passing-{n}")
}

fn service(name: &str, host: usize, port: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": format!("10.97.{}.{}", host / 250, host % 250 + 1),
            "clusterIPs": [format!("10.97.{}.{}", host / 250, host % 250 + 1)], "ipFamilies": ["IPv4"],
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "protocol": "TCP", "port": port, "targetPort": 8080}],
        },
    })
}

/// Three endpoints, different each time.
fn slice(name: &str, n: usize) -> Value {
    let endpoints: Vec<Value> = (0..3)
        .map(|i| {
            let host = n * 3 + i;
            json!({
                "addresses": [format!("10.129.{}.{}", host / 250 % 250, host % 250 + 1)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", n % 5_000), "zone": "a",
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    })
}

/// The last endpoints of every Service that stays are in force.
fn is_in_force(node: &Node, n: usize) -> bool {
    let rules = node.netfilter().save(Family::V4).expect("rules can be read");
    let newest = (1..=n).rev().filter(|n| n % 10 == 0 || n % 10 > 5).take(N_STAYING / 2);
    newest.into_iter().all(|n| {
        let host = n * 3 + 2;
        rules.contains(&format!("{}:http -> 10.129.{}.{}:8080", staying(n), host / 250 % 250, host % 250 + 1))
    })
}

/// Resident memory after many changes is that after the first thousand.
pub fn endless_changes_take_no_memory(backend: Backend, extent: Extent) -> Vec<Finding> {
    let lab = Lab::plan(backend).node(&[]).build().expect("a lab can be made");
    let listen = SocketAddr::new(address::fabric().v4.into(), 6443);
    let api = ApiServer::start(listen, Some(lab.fabric().fd().expect("a descriptor"))).expect("it starts");
    let node = lab.node(1);
    api.put(node_object(node));
    for n in 0..N_STAYING {
        api.put(service(&staying(n), 200 + n, 80));
        api.put(slice(&staying(n), n + 60_000));
    }
    let options = AgentOptions {
        kubeconfig: api.kubeconfig(),
        // Syncs often, and logs none of it: the log is a file here.
        args: ["--iptables-min-sync-period=50ms", "-v=0"].map(str::to_owned).into(),
        ..AgentOptions::default()
    };
    let agent = lab.start_chainsmith(node, &options).expect("an agent starts");
    let mut churn = Churn { api: &api, n: 0, n_born: 0 };
    let n_initial = 2 * N_STAYING as u64;
    poll::until("everything is listed", SLOW, || churn.n_sent() >= n_initial);
    let n_changes = extent.of(5_000, 100_000);
    let start = Instant::now();
    let (mut first, mut highest) = (0, 0);
    while churn.n < n_changes {
        (0..BATCH).for_each(|_| churn.step());
        let n_due = n_initial + churn.n as u64;
        poll::until("each change was sent", SLOW, || churn.n_sent() >= n_due);
        std::thread::sleep(PAUSE);
        if churn.n == N_FIRST {
            poll::until("the first changes are in force", SLOW, || is_in_force(node, churn.n));
            first = agent.resident();
        }
        highest = highest.max(agent.resident());
    }
    poll::until("the last changes are in force", SLOW, || is_in_force(node, churn.n));
    let elapsed = start.elapsed();
    let last = agent.resident();
    let counters = api.counters();
    assert_eq!(counters.of("endpointslices").gone + counters.of("services").gone, 0, "no event was skipped");
    let most = first as f64 * (1.0 + GROWTH);
    assert!(last as f64 <= most, "{first} KiB after {N_FIRST} changes, {last} KiB after {n_changes}");
    vec![Finding {
        fault: format!("{n_changes} changes of Services and endpoints"),
        n_times: u32::try_from(n_changes).expect("a small number"),
        observed: format!(
            "resident memory {first} KiB after {N_FIRST} changes, {last} KiB at the end (at most {highest}); {:.0} changes a second",
            n_changes as f64 / elapsed.as_secs_f64()
        ),
        ..Finding::default()
    }]
}
