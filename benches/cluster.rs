//! A cluster of any size, the same in every run: API objects and their model.
//!
//! Services are distributed as in a large cluster: most have a cluster IP and one port; every tenth has a
//! node port (while there are free ones), every fiftieth a load balancer with policy Local, every hundredth
//! affinity.

#![allow(dead_code, reason = "each bench uses a part of this module")]

use std::net::SocketAddr;

use chainsmith::config::{Config, Flags, LayoutChoice};
use chainsmith::model::decode::{self, Interner};
use chainsmith::model::host::Host;
use chainsmith::model::{Change, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::policy::Place;
use chainsmith::rules::Settings;
use serde_json::{Value, json};

/// The node for which rules are made.
pub const NODE: &str = "node-1";
const N_NODES: u64 = 100;
/// How many node ports an API server can allocate (30000-32767).
const N_NODE_PORTS: usize = 2_768;

/// A small random number generator (SplitMix64), so that the cluster is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn namespace(n: usize) -> String {
    format!("team-{:02}", n % 50)
}

fn service_name(n: usize) -> String {
    format!("backend-service-{n:05}")
}

/// `10.<n>` as an address, different for each number.
fn address(first: u8, n: u64) -> String {
    format!("{first}.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255)
}

fn metadata(name: &str, n: usize, kind: &str) -> Value {
    json!({
        "name": name, "namespace": namespace(n), "uid": format!("9f2d7c1e-0000-4000-8000-{n:012x}"),
        "creationTimestamp": "2025-01-01T00:00:00Z", "generation": 7,
        "labels": { "app.kubernetes.io/name": service_name(n), "app.kubernetes.io/managed-by": "Helm" },
        "annotations": { "meta.helm.sh/release-name": service_name(n) },
        "managedFields": [{
            "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
            "time": "2025-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app.kubernetes.io/name": {} } },
                          "f:spec": { "f:ports": {}, "f:selector": {}, "f:type": {} }, "f:kind": kind },
        }],
    })
}

/// The cluster IP of Service number `n`, with its port.
pub fn frontend(n: usize) -> SocketAddr {
    SocketAddr::new(address(172, 0x10_0000 + n as u64).parse().expect("an address"), 80)
}

/// The node port of Service number `n`, if it has one.
pub fn node_port(n: usize) -> Option<u16> {
    let has_one = n % 10 == 3 && n / 10 < N_NODE_PORTS;
    has_one.then(|| 30_000 + u16::try_from(n / 10).expect("fewer node ports"))
}

/// Service number `n`.
pub fn service(n: usize) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(&service_name(n), n, "Service"),
        "spec": {
            "type": "ClusterIP", "clusterIP": address(172, 0x10_0000 + n as u64),
            "clusterIPs": [address(172, 0x10_0000 + n as u64)], "ipFamilies": ["IPv4"],
            "selector": { "app.kubernetes.io/name": service_name(n) },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        },
        "status": { "loadBalancer": {} },
    });
    let spec = &mut service["spec"];
    if let Some(port) = node_port(n) {
        spec["type"] = "NodePort".into();
        spec["ports"][0]["nodePort"] = port.into();
    }
    if n % 100 == 7 {
        spec["sessionAffinity"] = "ClientIP".into();
    }
    if n % 50 == 13 {
        spec["type"] = "LoadBalancer".into();
        spec["externalTrafficPolicy"] = "Local".into();
        spec["healthCheckNodePort"] = (28_000 + n / 50).into();
        let ip = address(203, n as u64);
        service["status"]["loadBalancer"] = json!({ "ingress": [{ "ip": ip, "ipMode": "VIP" }] });
    }
    service
}

/// The EndpointSlice of Service number `n`, with `n_endpoints` endpoints. Each `version` has a different
/// last endpoint.
pub fn slice(n: usize, n_endpoints: usize, version: u64) -> Value {
    let mut random = Random(n as u64);
    let endpoint = |at: usize| {
        let number = (n * n_endpoints + at) as u64;
        let is_last = at + 1 == n_endpoints;
        let ip = address(10, if is_last && version > 0 { 0xFF_0000 + version } else { number });
        let node = random.below(N_NODES);
        let target = format!("{}-7d9f8b6c5-{at:05}", service_name(n));
        json!({
            "addresses": [ip], "nodeName": format!("node-{node}"), "zone": format!("zone-{}", node % 3),
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "targetRef": { "kind": "Pod", "namespace": namespace(n), "name": target,
                           "uid": format!("5c1d7c1e-0000-4000-8000-{number:012x}") },
        })
    };
    let endpoints: Vec<Value> = (0..n_endpoints).map(endpoint).collect();
    let mut metadata = metadata(&format!("{}-x7k2p", service_name(n)), n, "EndpointSlice");
    metadata["labels"]["kubernetes.io/service-name"] = service_name(n).into();
    metadata["labels"]["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io".into();
    metadata["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Service", "name": service_name(n), "controller": true,
        "blockOwnerDeletion": true, "uid": format!("9f2d7c1e-0000-4000-8000-{n:012x}"),
    }]);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

/// The Node.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": NODE, "labels": { "topology.kubernetes.io/zone": "zone-1" } },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" }] },
    })
}

/// The decoded cluster and the node whose view is used.
pub struct Cluster {
    /// Its objects.
    pub snapshot: Snapshot,
    /// The other inputs of IPv4 rules.
    pub settings: Settings,
    n_endpoints: usize,
    interner: Interner,
}

impl Cluster {
    /// A cluster of `n_services` with `n_endpoints` each, laid out in `layout`.
    pub fn new(n_services: usize, n_endpoints: usize, layout: LayoutChoice) -> Cluster {
        let mut interner = Interner::default();
        let mut snapshot = Snapshot::default();
        let mut touched = Touched::default();
        for n in 0..n_services {
            let service = serde_json::from_value(service(n)).expect("a Service");
            let (name, service) = decode::service(&service, &mut interner).named.expect("a usable name");
            snapshot.apply(Change::Service(name, service), &mut touched);
            let change = slice_change(n, n_endpoints, 0, &mut interner);
            snapshot.apply(change, &mut touched);
        }
        let node = serde_json::from_value(node()).expect("a Node");
        snapshot.apply(Change::Node(decode::node(&node, &mut interner).0), &mut touched);
        let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                      mode: iptables\nclusterCIDR: 10.0.0.0/8\n";
        let (mut config, _) = Config::resolve(Some(config), &Flags::default()).expect("a good configuration");
        config.layout = layout;
        let settings = Settings::new(&config, snapshot.node(), &Host::default(), IpFamily::V4);
        Cluster { snapshot, settings, n_endpoints, interner }
    }

    /// The place of the node.
    pub fn place(&self) -> Place<'_> {
        Place { node: NODE, zone: self.snapshot.node().and_then(|node| node.zone.as_deref()) }
    }

    /// The cluster IP of the last Service, with its port.
    pub fn last_cluster_ip(&self) -> SocketAddr {
        let ports = self.snapshot.services().flat_map(|service| service.ports_in(IpFamily::V4));
        let all = ports.map(|port| SocketAddr::new(port.frontend.cluster_ip, port.port.port));
        all.max().expect("there are Services")
    }

    /// The change that deletes Service number `n`; its endpoints stay.
    pub fn service_deletion(&self, n: usize) -> Change {
        let mut names = self.snapshot.services().map(|service| service.name.clone());
        Change::Service(names.nth(n).expect("a Service"), None)
    }

    /// The change that replaces the last endpoint of Service number `n`.
    pub fn endpoint_change(&mut self, n: usize, version: u64) -> Change {
        slice_change(n, self.n_endpoints, version, &mut self.interner)
    }
}

fn slice_change(n: usize, n_endpoints: usize, version: u64, interner: &mut Interner) -> Change {
    let slice = serde_json::from_value(slice(n, n_endpoints, version)).expect("an EndpointSlice");
    let (name, slice) = decode::slice(&slice, interner).named.expect("a usable name");
    Change::Slice(name, slice)
}
