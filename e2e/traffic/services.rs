//! Services of every kind, created through the API server, and their packets in both families.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::observe::{assert_masqueraded_by, assert_source_kept, each_pod};
use super::sctp;
use crate::cluster::{self, CLIENTS, WEB, WEB_PODS};
use crate::lab::address::{FAMILIES, Family, outside, pod};
use crate::lab::client::{Host, IMPATIENCE, Outcome, Protocol};
use crate::lab::host::POD_PORT;
use crate::lab::netfilter::Backend;
use crate::lab::{PodNetwork, poll};
use crate::running::Running;

/// How long a change may take from the API server to packets, on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(10);

/// How long one attempt may take while a change is waited for.
const BRIEF: Duration = Duration::from_millis(200);

/// Changes are not delayed.
const AT_ONCE: &str = "--iptables-min-sync-period=1ms";

/// The serving pods, with the number of their node and their own number there.
const PODS: [(&str, u8, u8); 3] = [("web-1", 1, 5), ("web-2", 1, 6), ("web-3", 2, 5)];

/// The cluster IPs of the Service made here.
const IPS: [&str; 2] = ["10.96.0.77", "fd00:10:96::77"];

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Its node port.
const NODE_PORT: u16 = 30077;

/// The Service `it` with more in its spec. TCP and UDP on port 80.
fn service(spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "it", "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": IPS[0], "clusterIPs": IPS, "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "targetPort": POD_PORT},
                {"name": "echo", "protocol": "UDP", "port": 80, "targetPort": POD_PORT},
            ],
        },
    });
    for (key, value) in spec.as_object().expect("a spec is an object") {
        object["spec"][key] = value.clone();
    }
    object
}

/// The spec of a Service with a node port for its TCP port.
fn with_node_port(kind: &str) -> Value {
    json!({
        "type": kind, "externalTrafficPolicy": "Cluster",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": POD_PORT, "nodePort": NODE_PORT}],
    })
}

/// Puts these endpoints of `it` in force: a slice for each family.
fn publish(running: &Running, endpoints: &[Value]) {
    for (n, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let mut endpoints = endpoints.to_vec();
        for endpoint in &mut endpoints {
            endpoint["addresses"] = json!([endpoint["addresses"][n]]);
        }
        let name = format!("it-{family}").to_lowercase();
        let labels = json!({"kubernetes.io/service-name": "it"});
        running.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "ports": [
                {"name": "http", "protocol": "TCP", "port": POD_PORT},
                {"name": "echo", "protocol": "UDP", "port": POD_PORT},
                {"name": "assoc", "protocol": "SCTP", "port": POD_PORT},
            ],
            "endpoints": endpoints,
        }));
    }
}

/// The endpoint of the pod `name` with its address in each family, and with more in it.
fn endpoint(name: &str, more: &Value) -> Value {
    let (_, node, host) = *PODS.iter().find(|(pod, ..)| *pod == name).expect("a pod that serves");
    let addresses = FAMILIES.map(|family| pod(node, host).of(family));
    let conditions = json!({"ready": true, "serving": true, "terminating": false});
    let node = format!("node-{node}");
    let mut endpoint = json!({"addresses": addresses, "nodeName": node, "conditions": conditions});
    for (key, value) in more.as_object().expect("more is an object") {
        endpoint[key] = value.clone();
    }
    endpoint
}

fn ready(name: &str) -> Value {
    endpoint(name, &json!({}))
}

fn in_condition(name: &str, is_ready: bool, is_serving: bool, is_terminating: bool) -> Value {
    let conditions = json!({"ready": is_ready, "serving": is_serving, "terminating": is_terminating});
    endpoint(name, &json!({"conditions": conditions}))
}

/// The cluster IP of `family`, port 80.
fn cluster_ip(family: Family) -> SocketAddr {
    SocketAddr::new(IPS[usize::from(family == Family::V6)].parse().expect("an address"), 80)
}

fn cases() -> impl Iterator<Item = (Family, Protocol)> {
    FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)))
}

/// Whether the rules of every node hold `present` in both families, and not `absent`.
fn is_in_force(running: &Running, present: &str, absent: &str) -> bool {
    running.lab.nodes().iter().all(|node| {
        FAMILIES.into_iter().all(|family| {
            let rules = node.netfilter().save(family).expect("rules can be read");
            rules.contains(present) && !rules.contains(absent)
        })
    })
}

/// A cluster with the Service `it` in force on all nodes.
fn start(backend: Backend, flags: &[&str], spec: Value, endpoints: &[Value]) -> Running {
    let flags = [&[AT_ONCE], flags].concat();
    let running = Running::with_flags(backend, &flags).expect("a cluster starts");
    running.api.put(service(spec));
    publish(&running, endpoints);
    poll::until("the Service is in force", SOON, || {
        is_in_force(&running, "default/it:", "default/it:http has no endpoints")
    });
    running
}

/// Waits until `host` meets `expected` at both cluster IPs three times in a row, `None` being a rejection.
#[track_caller]
fn wait_for(host: &dyn Host, expected: Option<&str>) {
    for family in FAMILIES {
        poll::until(&format!("{expected:?} answers over {family:?}"), SOON, || {
            (0..3).all(|_| match host.attempt(Protocol::Udp, cluster_ip(family), BRIEF).outcome {
                Outcome::Answered { pod, .. } => Some(pod.as_str()) == expected,
                outcome => expected.is_none() && outcome == Outcome::Refused,
            })
        });
    }
}

/// Three nodes, pods joined by routes and by vxlan: each node serves every Service, also the node
/// without endpoints of its own.
pub fn three_nodes_serve_over_routes_and_vxlan(backend: Backend) {
    for network in [PodNetwork::Routes, PodNetwork::Vxlan] {
        three_nodes_serve(backend, network);
    }
}

fn three_nodes_serve(backend: Backend, network: PodNetwork) {
    let plan = cluster::plan(backend).node(&["client-3"]).pod_network(network);
    let running = Running::in_lab(plan.build().expect("a lab can be built"), &[AT_ONCE]).expect("it starts");
    let lab = &running.lab;
    for (family, protocol) in cases() {
        for client in ["client-1", "client-2", "client-3"] {
            each_pod(&WEB_PODS, lab.pod(client), protocol, WEB.cluster_ip(family), assert_source_kept);
        }
        for node in lab.nodes() {
            each_pod(&WEB_PODS, node, protocol, WEB.cluster_ip(family), |attempt| {
                assert_masqueraded_by(node, lab, attempt);
            });
            each_pod(&WEB_PODS, lab.outside(), protocol, WEB.node_port(node, family), |attempt| {
                assert_masqueraded_by(node, lab, attempt);
            });
        }
    }
    for node in lab.nodes() {
        lab.outside().enter_by(node).expect("routes can be set");
        for family in FAMILIES {
            lab.outside().attempts(300, Protocol::Tcp, WEB.load_balancer(family)).assert_spread(&WEB_PODS);
        }
    }
}

/// internalTrafficPolicy Local: pods and the node itself reach endpoints of their node; where
/// there are none, packets are dropped.
pub fn internal_policy_local_stays_on_the_node(backend: Backend) {
    let spec = json!({"internalTrafficPolicy": "Local"});
    let running = start(backend, &[], spec, &[ready("web-1"), ready("web-2")]);
    let lab = &running.lab;
    for (family, protocol) in cases() {
        let hosts: [&dyn Host; 2] = [lab.pod("client-1"), lab.node(1)];
        for host in hosts {
            each_pod(&["web-1", "web-2"], host, protocol, cluster_ip(family), |_| ());
        }
        let elsewhere: [&dyn Host; 2] = [lab.pod("client-2"), lab.node(2)];
        for host in elsewhere {
            let attempt = host.attempt(protocol, cluster_ip(family), IMPATIENCE);
            assert_eq!(attempt.outcome, Outcome::TimedOut, "{}", host.namespace().name());
        }
    }
    publish(&running, &[ready("web-1"), ready("web-3")]);
    wait_for(lab.pod("client-1"), Some("web-1"));
    wait_for(lab.pod("client-2"), Some("web-3"));
}

/// sessionAffinity ClientIP: a client keeps its pod as long as it returns in time, by cluster
/// IP and by node port, and is balanced again afterwards.
pub fn affinity_holds_and_expires(backend: Backend) {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let mut spec = with_node_port("NodePort");
    spec["sessionAffinity"] = "ClientIP".into();
    spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": TIMEOUT.as_secs()}});
    let running = start(backend, &[], spec, &PODS.map(|(pod, ..)| ready(pod)));
    let lab = &running.lab;
    let node_port = SocketAddr::new(lab.node(1).address().v4.into(), NODE_PORT);
    let hosts: [(&dyn Host, SocketAddr); 3] = [
        (lab.pod("client-1"), cluster_ip(Family::V4)),
        (lab.pod("client-1"), cluster_ip(Family::V6)),
        (lab.outside(), node_port),
    ];
    for (host, to) in hosts {
        // Longer than the timeout: each connection restarts it.
        let begun = Instant::now();
        let first = host.tcp(to).pod().to_owned();
        while begun.elapsed() < TIMEOUT * 3 / 2 {
            assert_eq!(host.tcp(to).pod(), first, "after {:?}", begun.elapsed());
            thread::sleep(Duration::from_millis(50));
        }
        // A choice may fall on the same one; twenty in a row do once in three thousand million.
        let is_another = (0..20).any(|_| {
            thread::sleep(TIMEOUT + Duration::from_millis(300));
            host.tcp(to).pod() != first
        });
        assert!(is_another, "it never chose again");
    }
}

/// An SCTP INIT to a Service arrives at a pod, from the client's own address, at the pod's port.
pub fn sctp_is_translated(backend: Backend) {
    let spec = json!({"ports": [{"name": "assoc", "protocol": "SCTP", "port": 80, "targetPort": POD_PORT}]});
    let running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    running.api.put(service(spec));
    publish(&running, &[ready("web-3")]);
    poll::until("the Service is in force", SOON, || is_in_force(&running, "default/it:assoc ->", "none"));
    let (client, server) = (running.lab.pod("client-1"), running.lab.pod("web-3"));
    for family in FAMILIES {
        let inits = sctp::listen(server, family);
        let seen = poll::until_some("an INIT arrives", SOON, || {
            sctp::send_init(client, 4242, cluster_ip(family));
            inits.hear(BRIEF)
        });
        let from = SocketAddr::new(client.address().of(family), 4242);
        assert_eq!((seen.source, seen.destination_port), (from, POD_PORT));
        assert!(seen.is_checksum_right, "the checksum was made anew for the new port");
    }
}

/// A Service without a selector leads to the address outside that its slice names.
pub fn service_without_selector_leads_to_an_external_address(backend: Backend) {
    let address = json!({
        "addresses": FAMILIES.map(|family| outside().of(family)),
        "conditions": {"ready": true, "serving": true, "terminating": false},
    });
    let running = start(backend, &[], json!({}), &[address]);
    let lab = &running.lab;
    for (family, protocol) in cases() {
        for client in CLIENTS {
            each_pod(&["outside"], lab.pod(client), protocol, cluster_ip(family), assert_source_kept);
        }
        for node in lab.nodes() {
            each_pod(&["outside"], node, protocol, cluster_ip(family), |attempt| {
                assert!(node.owns(attempt.seen()), "{attempt:?}");
            });
        }
    }
}

/// Readiness lost and regained is followed; terminating endpoints serve when there are no others, as
/// long as they can.
pub fn readiness_is_followed(backend: Backend) {
    let running = start(backend, &[], json!({}), &[ready("web-1")]);
    let client = running.lab.pod("client-2");
    let unready = |pod| in_condition(pod, false, false, false);
    let draining = |pod| in_condition(pod, false, true, true);
    let gone = |pod| in_condition(pod, false, false, true);
    let steps: [(&[Value], Option<&str>); 8] = [
        (&[ready("web-1")], Some("web-1")),
        (&[unready("web-1")], None),
        (&[unready("web-1"), ready("web-3")], Some("web-3")),
        (&[ready("web-1"), unready("web-3")], Some("web-1")),
        (&[draining("web-1"), ready("web-3")], Some("web-3")),
        (&[draining("web-1"), unready("web-3")], Some("web-1")),
        (&[gone("web-1"), gone("web-3")], None),
        (&[ready("web-1"), gone("web-3")], Some("web-1")),
    ];
    for (endpoints, expected) in steps {
        publish(&running, endpoints);
        wait_for(client, expected);
    }
}

/// Endpoints with hints for zones serve only the nodes of their zones; unless each endpoint has a hint, all serve
/// all.
pub fn hints_keep_traffic_in_the_zone(backend: Backend) {
    let hinted =
        |pod, zone: &str| endpoint(pod, &json!({"zone": zone, "hints": {"forZones": [{"name": zone}]}}));
    let spec = json!({"trafficDistribution": "PreferSameZone"});
    let endpoints = [hinted("web-1", "zone-a"), hinted("web-3", "zone-b")];
    let running = start(backend, &[], spec, &endpoints);
    let lab = &running.lab;
    for (client, pod) in [("client-1", "web-1"), ("client-2", "web-3")] {
        wait_for(lab.pod(client), Some(pod));
        for family in FAMILIES {
            lab.pod(client).attempts(50, Protocol::Tcp, cluster_ip(family)).assert_spread(&[pod]);
        }
    }
    publish(&running, &[hinted("web-1", "zone-a"), ready("web-3")]);
    for to in FAMILIES.map(cluster_ip) {
        let client = lab.pod("client-1");
        poll::until("all serve all", SOON, || client.udp(to).pod() == "web-3");
        each_pod(&["web-1", "web-3"], client, Protocol::Tcp, to, assert_source_kept);
    }
}

/// loadBalancerSourceRanges: the load balancer's address serves sources in them, and drops other sources;
/// the Service's other addresses serve all.
pub fn source_ranges_restrict_the_load_balancer(backend: Backend) {
    const VIPS: [&str; 2] = ["203.0.113.77", "2001:db8:113::77"];
    let vips = VIPS.map(|vip| SocketAddr::new(vip.parse().expect("an address"), 80));
    let with_ranges = |ranges: [&str; 2]| {
        let mut spec = with_node_port("LoadBalancer");
        spec["loadBalancerSourceRanges"] = json!(ranges);
        let mut object = service(spec);
        let ingress = VIPS.map(|ip| json!({"ip": ip, "ipMode": "VIP"}));
        object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        object
    };
    let running = start(backend, &[], with_node_port("NodePort"), &[ready("web-1"), ready("web-3")]);
    let lab = &running.lab;
    let node = lab.node(1);
    lab.outside().enter_by(node).expect("routes can be set");
    running.api.put(with_ranges(["192.0.2.200/32", "2001:db8::200/128"]));
    for vip in vips {
        poll::until("the range is in force", SOON, || {
            let outcome = lab.outside().attempt(Protocol::Tcp, vip, BRIEF).outcome;
            matches!(outcome, Outcome::Answered { .. })
        });
        each_pod(&["web-1", "web-3"], lab.outside(), Protocol::Tcp, vip, |attempt| {
            assert_masqueraded_by(node, lab, attempt);
        });
        assert_eq!(lab.pod("client-1").attempt(Protocol::Tcp, vip, IMPATIENCE).outcome, Outcome::TimedOut);
    }
    running.api.put(with_ranges(["198.51.100.0/24", "2001:db8:51::/64"]));
    for (vip, family) in vips.into_iter().zip(FAMILIES) {
        poll::until("the other range is in force", SOON, || {
            lab.outside().attempt(Protocol::Tcp, vip, IMPATIENCE).outcome == Outcome::TimedOut
        });
        let node_port = SocketAddr::new(node.address().of(family), NODE_PORT);
        each_pod(&["web-1", "web-3"], lab.outside(), Protocol::Tcp, node_port, |_| ());
        let client = lab.pod("client-1");
        each_pod(&["web-1", "web-3"], client, Protocol::Tcp, cluster_ip(family), assert_source_kept);
    }
}

/// Node ports answer on every address of a node, also 127.0.0.1; with --nodeport-addresses only on the
/// chosen ones.
pub fn node_ports_are_served_on_loopback_unless_limited(backend: Backend) {
    let port = WEB.node_port_number();
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let mut running = Running::start(backend).expect("a cluster starts");
    let bridges = FAMILIES.map(|family| bridge_port(&running, family, port));
    {
        let node = running.lab.node(1);
        each_pod(&WEB_PODS, node, Protocol::Tcp, loopback, |attempt| {
            assert_masqueraded_by(node, &running.lab, attempt);
        });
        for bridge in bridges {
            each_pod(&WEB_PODS, running.lab.pod("client-1"), Protocol::Tcp, bridge, |_| ());
        }
    }
    let chosen = "--nodeport-addresses=192.0.2.0/24,2001:db8::/64";
    running.replace_agent(&[chosen], None).expect("an agent starts");
    let (lab, node) = (&running.lab, running.lab.node(1));
    for (family, protocol) in cases() {
        each_pod(&WEB_PODS, lab.outside(), protocol, WEB.node_port(node, family), |attempt| {
            assert_masqueraded_by(node, lab, attempt);
        });
        let bridge = bridge_port(&running, family, port);
        assert_eq!(lab.pod("client-1").attempt(protocol, bridge, IMPATIENCE).outcome, Outcome::Refused);
    }
    for protocol in PROTOCOLS {
        assert_eq!(node.attempt(protocol, loopback, IMPATIENCE).outcome, Outcome::Refused);
    }
}

/// `port` on the bridge of node 1.
fn bridge_port(running: &Running, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(running.lab.node(1).bridge_address().of(family), port)
}
