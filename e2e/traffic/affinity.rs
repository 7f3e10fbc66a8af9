//! More clients of one endpoint than the kernel's list holds.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::address::Family;
use crate::lab::client::{Host, Protocol};
use crate::lab::host::{Node, POD_PORT};
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long a change may take from the API server to packets, on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(10);

/// The log message for a full list.
const MESSAGE: &str = "affinity list full";

/// Addresses in a list of the kernel.
const CAPACITY: u8 = 100;

const IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 78);

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "sticky", "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": IP, "clusterIPs": [IP], "ipFamilies": ["IPv4"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10_800}},
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": POD_PORT}],
        },
    })
}

fn slice(addresses: &[&str]) -> Value {
    let conditions = json!({"ready": true, "serving": true, "terminating": false});
    let endpoint = |address: &&str| json!({"addresses": [address], "conditions": conditions});
    let endpoints: Vec<Value> = addresses.iter().map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "sticky-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "sticky"},
        },
        "ports": [{"name": "http", "protocol": "TCP", "port": POD_PORT}],
        "endpoints": endpoints,
    })
}

/// The pod that client `n` reaches; the clients are addresses of the node.
fn reached(node: &Node, n: u8) -> String {
    let from = SocketAddr::new(Ipv4Addr::new(10, 200, 0, n).into(), 0);
    node.attempt_from(from, Protocol::Tcp, SocketAddr::new(IP.into(), 80), SOON).pod().to_owned()
}

/// The number of full lists in the metric.
fn gauge(node: &Node) -> String {
    let text = node.namespace().command("curl", &["--silent", "http://127.0.0.1:10249/metrics"], "");
    let text = text.expect("the metrics are served");
    let line =
        text.lines().find(|line| line.starts_with("chainsmith_affinity_lists_full{ip_family=\"IPv4\"}"));
    line.and_then(|line| line.split_once(' ')).map(|(_, value)| value.to_owned()).unwrap_or_default()
}

/// Of 120 clients of one endpoint the kernel's list holds the last 100. The agent logs that once; when
/// an endpoint is added, the first clients lose their affinity and the others keep it.
pub fn full_list_of_clients_is_reported(backend: Backend) {
    let flags = ["--iptables-min-sync-period=1ms", "--audit-period=1s"];
    let running = Running::with_flags(backend, &flags).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let publish = |addresses: &[&str]| {
        running.api.put(service());
        running.api.put(slice(addresses));
        poll::until("the endpoints are in force", SOON, || {
            let rules = node.netfilter().save(Family::V4).expect("rules can be read");
            addresses.iter().all(|ip| rules.contains(&format!("default/sticky:http -> {ip}:{POD_PORT}")))
        });
    };
    publish(&["10.128.0.5"]);
    let own: String = (1..=CAPACITY + 20).map(|n| format!("addr add 10.200.0.{n}/32 dev lo\n")).collect();
    node.namespace().ip(&own).expect("a node can have many addresses");

    (1..CAPACITY).for_each(|n| assert_eq!(reached(node, n), "web-1"));
    thread::sleep(Duration::from_secs(3));
    assert!(!agent.log().contains(MESSAGE), "one more fits");
    assert_eq!(gauge(node), "0");
    (CAPACITY..=CAPACITY + 20).for_each(|n| assert_eq!(reached(node, n), "web-1"));
    poll::until("it is logged", SOON, || agent.log().contains(MESSAGE));
    thread::sleep(Duration::from_secs(3));
    let log = agent.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(MESSAGE)).collect();
    assert!(lines.len() == 1 && lines[0].contains("service_port=\"default/sticky:http\""), "{lines:?}");
    assert_eq!(gauge(node), "1");

    publish(&["10.128.0.5", "10.128.1.5"]);
    // Clients in the list push no other out.
    (21..=CAPACITY + 20).for_each(|n| assert_eq!(reached(node, n), "web-1", "client {n} is remembered"));
    // All twenty choosing the same one again happens once in a million times.
    let lost = (1..=20).filter(|n| reached(node, *n) == "web-3").count();
    assert!(lost > 0, "the first clients are forgotten, and choose again");
}
