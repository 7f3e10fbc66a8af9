//! A Service as large as an API server accepts, which its owner edits all the time.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{AT_ONCE, Extent, Finding, SOON, all_is_right};
use crate::cluster::{OWN, own_slice};
use crate::lab::address::Family;
use crate::lab::client::{Host, Outcome, Protocol};
use crate::lab::host::Node;
use crate::lab::http;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// The interval between two edits.
const EDITED: Duration = Duration::from_millis(500);

/// The number of ports that an API server accepts in one slice.
const PORTS_OF_SLICE: usize = 100;

/// The endpoints of `own` in turns, and the pod that answers then.
const SETS: [(&str, &str); 2] = [("10.128.1.5", "web-3"), ("10.128.0.5", "web-1")];

/// The address of the agent's `/livez`.
const HEALTHZ: u16 = 10256;

/// The large Service.
fn service(n_ports: usize, version: usize) -> Value {
    let port = |n: usize| json!({"name": format!("p-{n:05}"), "protocol": "TCP", "port": 1 + n});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "large", "namespace": "default", "annotations": {"example.com/edited": version.to_string()},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.99", "clusterIPs": ["10.96.0.99"], "ipFamilies": ["IPv4"],
            "ports": (0..n_ports).map(port).collect::<Vec<_>>(),
        },
    })
}

/// Its slice number `n`: the next hundred ports, with the endpoint or without.
fn slice(n: usize, n_ports: usize, endpoint: Option<&str>) -> Value {
    let at = |port: usize| (n * PORTS_OF_SLICE + port) % n_ports;
    let port =
        |port: usize| json!({"name": format!("p-{:05}", at(port)), "protocol": "TCP", "port": 1 + at(port)});
    let endpoints: Vec<Value> = endpoint.iter().map(|ip| json!({"addresses": [ip]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("large-{n:04}"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": "large"},
        },
        "addressType": "IPv4",
        "ports": (0..PORTS_OF_SLICE).map(port).collect::<Vec<_>>(),
        "endpoints": endpoints,
    })
}

fn is_alive(node: &Node) -> bool {
    let to = SocketAddr::from(([127, 0, 0, 1], HEALTHZ));
    http::get(node, to, "/livez").is_some_and(|answer| answer.status == 200)
}

/// A change of another Service is in force almost as soon as without it, and no probe would restart the
/// agent.
pub fn large_service_delays_no_other(backend: Backend, extent: Extent) -> Vec<Finding> {
    let running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    // Synced in two parts. The simulated API server of a debug build needs minutes for more.
    let (n_ports, n_slices) = (10_500, 300);
    running.api.put(service(n_ports, 0));
    for n in 0..n_slices {
        running.api.put(slice(n, n_ports, None));
    }
    let n_changes = extent.of(8, 60);
    let (mut repaired, mut n_dead) = (Vec::new(), 0);
    for n in 1..=n_changes {
        let edited = Instant::now();
        // The annotation changes no rule, the slice changes those of a hundred ports.
        if n % 2 == 0 {
            running.api.put(service(n_ports, n));
        } else {
            let endpoint = (n % 4 == 1).then_some("10.128.1.77");
            running.api.put(slice(n % n_slices, n_ports, endpoint));
        }
        let (endpoint, pod) = SETS[n % 2];
        running.api.put(own_slice(&[endpoint]));
        let is_in_force = |node: &Node| {
            let outcome = node.attempt(Protocol::Tcp, OWN.cluster_ip(Family::V4), SOON).outcome;
            matches!(outcome, Outcome::Answered { pod: answered, .. } if answered == pod)
        };
        let what = "the other Service's change is in force";
        let nodes = || running.lab.nodes().iter();
        repaired.push(poll::until(what, 2 * SOON, || nodes().all(is_in_force)));
        n_dead += nodes().filter(|node| !is_alive(node)).count();
        thread::sleep(EDITED.saturating_sub(edited.elapsed()));
    }
    assert_eq!(n_dead, 0, "/livez is 200 throughout");
    let last = format!("default/large:p-{:05} has no endpoints", n_ports - 1);
    poll::until("the large Service's rules are in force too", 6 * SOON, || {
        let rules = |node: &Node| node.netfilter().save(Family::V4).expect("rules can be read");
        running.lab.nodes().iter().all(|node| rules(node).contains(&last))
    });
    running.api.delete("Service", Some("default"), "large");
    all_is_right(&running);
    vec![Finding {
        fault: format!("a Service of {n_ports} ports with {n_slices} slices is edited twice a second"),
        n_times: u32::try_from(n_changes).expect("a small number"),
        observed: "another Service's change is in force; /livez 200 throughout".to_owned(),
        repaired,
        ..Finding::default()
    }]
}
