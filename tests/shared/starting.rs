//! A node that starts without rules in a large cluster: the fates of packets after each commit of the first
//! sync. For tests in memory and on real tables.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use chainsmith::compile;
use chainsmith::config::LayoutChoice;
use chainsmith::iptables::{ChainName, Ruleset, Table};
use chainsmith::model::decode::{self, Interner};
use chainsmith::model::{Change, Snapshot, Touched};
use chainsmith::net::{IpFamily, Protocol};
use chainsmith::rules::ownership::ChainOwner;
use serde_json::{Value, json};

use crate::cluster::{self, Cluster};
use crate::fates::{Fates, Packet, are_same, fates};

/// The Services that the other Services need to start, all of IPv4.
const URGENT: [Urgent; 3] = [
    Urgent { service: ["default", "kubernetes"], ip: "172.31.0.1", ports: &[(443, 6443, Protocol::Tcp)] },
    Urgent {
        service: ["kube-system", "kube-dns"],
        ip: "172.31.0.10",
        ports: &[(53, 53, Protocol::Udp), (53, 53, Protocol::Tcp), (9153, 9153, Protocol::Tcp)],
    },
    Urgent {
        service: ["kube-system", "metrics-server"],
        ip: "172.31.0.11",
        ports: &[(443, 10_250, Protocol::Tcp)],
    },
];

struct Urgent {
    service: [&'static str; 2],
    ip: &'static str,
    /// Port, port of the endpoints, protocol.
    ports: &'static [(u16, u16, Protocol)],
}

impl Urgent {
    fn frontends(&self) -> impl Iterator<Item = (SocketAddr, Protocol)> {
        let ip: IpAddr = self.ip.parse().expect("an address");
        self.ports.iter().map(move |(port, _, protocol)| (SocketAddr::new(ip, *port), *protocol))
    }

    fn objects(&self) -> [Value; 2] {
        let [namespace, name] = self.service;
        let of_slice = |(port, target, protocol): &(u16, u16, Protocol)| {
            let name = format!("{protocol}-{port}").to_lowercase();
            json!({"name": name, "port": target, "protocol": protocol.to_string()})
        };
        let of_service = |port: &(u16, u16, Protocol)| {
            let mut of_service = of_slice(port);
            (of_service["port"], of_service["targetPort"]) = (port.0.into(), port.1.into());
            of_service
        };
        let endpoints: Vec<Value> = ["192.168.0.7", "192.168.0.8", "192.168.0.9"]
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true, "serving": true}}))
            .into();
        [
            service(namespace, name, self.ip, self.ports.iter().map(of_service).collect()),
            slice(namespace, name, self.ports.iter().map(of_slice).collect(), endpoints),
        ]
    }
}

fn service(namespace: &str, name: &str, ip: &str, ports: Vec<Value>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ports": ports, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        },
    })
}

fn slice(namespace: &str, name: &str, ports: Vec<Value>, endpoints: Vec<Value>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-1"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}

/// Addresses of a load balancer with one allowed range, and of a Service without endpoints.
const RANGED: &str = "203.0.114.1";
const ALLOWED: &str = "198.51.100.7";
const EMPTY: &str = "172.31.0.77";

/// Services with rules in filter, besides those of the cluster; not urgent, whatever their names.
fn guarded() -> Vec<Value> {
    let port = || vec![json!({"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"})];
    let of_slice = vec![json!({"name": "http", "port": 8080, "protocol": "TCP"})];
    let endpoint = json!({"addresses": ["10.77.0.1"], "conditions": {"ready": true, "serving": true}});
    let mut ranged = service("default", "kubernetes-dashboard", "172.31.0.78", port());
    ranged["spec"]["type"] = "LoadBalancer".into();
    ranged["spec"]["externalTrafficPolicy"] = "Cluster".into();
    ranged["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    ranged["status"] = json!({"loadBalancer": {"ingress": [{"ip": RANGED, "ipMode": "VIP"}]}});
    vec![
        service("system", "kubernetes", EMPTY, port()),
        ranged,
        slice("default", "kubernetes-dashboard", of_slice, vec![endpoint]),
    ]
}

fn apply(snapshot: &mut Snapshot, objects: &[Value]) {
    let mut interner = Interner::default();
    for object in objects {
        let change = if object["kind"] == "Service" {
            let service = serde_json::from_value(object.clone()).expect("a Service");
            let decoded = decode::service(&service, &mut interner);
            assert_eq!(decoded.problems, []);
            let (name, service) = decoded.named.expect("a usable name");
            Change::Service(name, service)
        } else {
            let slice = serde_json::from_value(object.clone()).expect("an EndpointSlice");
            let decoded = decode::slice(&slice, &mut interner);
            assert_eq!(decoded.problems, []);
            let (name, slice) = decoded.named.expect("a usable name");
            Change::Slice(name, slice)
        };
        snapshot.apply(change, &mut Touched::default());
    }
}

/// A cluster of `n_services` with `n_endpoints` each, the urgent ones, and some with rules in filter.
pub fn cluster(n_services: usize, n_endpoints: usize, layout: LayoutChoice) -> Cluster {
    let mut cluster = Cluster::new(n_services, n_endpoints, layout);
    for urgent in &URGENT {
        apply(&mut cluster.snapshot, &urgent.objects());
    }
    apply(&mut cluster.snapshot, &guarded());
    cluster
}

/// The nat chains of the urgent Services in the layout of `cluster`, which is a large one.
pub fn urgent_chains(cluster: &Cluster) -> BTreeSet<ChainName> {
    let mut alone = Snapshot::default();
    URGENT.iter().for_each(|urgent| apply(&mut alone, &urgent.objects()));
    let mut settings = cluster.settings.clone();
    if settings.layout == LayoutChoice::Auto {
        settings.layout = LayoutChoice::Compact;
    }
    service_chains(&compile::ruleset(&settings, &alone, cluster.place()))
}

/// The nat chains of service ports.
pub fn service_chains(ruleset: &Ruleset) -> BTreeSet<ChainName> {
    let names = ruleset.tables[&Table::Nat].keys();
    names.filter(|name| ChainOwner::of(Table::Nat, name).depends_on_services()).copied().collect()
}

/// Packets with their fates before the first commit and after the last.
pub struct Claims {
    urgent: Vec<Claim>,
    others: Vec<Claim>,
    local: BTreeSet<IpAddr>,
}

struct Claim {
    packet: Packet,
    before: Fates,
    after: Fates,
}

/// The address of the cluster's node.
const NODE_IP: [u8; 4] = [192, 168, 0, 1];

impl Claims {
    /// Packets to the urgent Services of `cluster`, and to one in `every` of its `n_services`; a prime
    /// number covers every kind.
    pub fn new(cluster: &Cluster, n_services: usize, every: usize) -> Claims {
        let local: BTreeSet<IpAddr> = [NODE_IP.into()].into();
        let empty = Ruleset::with_built_in_chains();
        let desired = compile::ruleset(&cluster.settings, &cluster.snapshot, cluster.place());
        let claims = |frontends: Vec<(SocketAddr, Protocol)>| -> Vec<Claim> {
            let packets = frontends.into_iter().flat_map(packets);
            let claim = |packet: Packet| {
                let (before, after) = (fates(&empty, &local, &packet), fates(&desired, &local, &packet));
                Claim { packet, before, after }
            };
            packets.map(claim).collect()
        };
        let urgent = claims(URGENT.iter().flat_map(Urgent::frontends).collect());
        assert!(urgent.iter().all(|claim| claim.after.len() == 3), "each of them has three endpoints");
        let mut others: Vec<(SocketAddr, Protocol)> = Vec::new();
        for n in (0..n_services).step_by(every) {
            others.push((cluster::frontend(n), Protocol::Tcp));
            // As the cluster creates them: node ports, and load balancers with policy Local.
            if let Some(port) = cluster::node_port(n) {
                others.push((SocketAddr::from((NODE_IP, port)), Protocol::Tcp));
            }
            if n % 50 == 13 {
                let [.., a, b, c] = (n as u32).to_be_bytes();
                others.push((SocketAddr::from(([203, a, b, c], 80)), Protocol::Tcp));
            }
        }
        for guarded in [RANGED, EMPTY] {
            others.push((SocketAddr::new(guarded.parse().expect("an address"), 80), Protocol::Tcp));
        }
        let others = claims(others);
        let says_something = |packets: &[Claim]| packets.iter().any(|claim| claim.before != claim.after);
        let n_packets = packets((SocketAddr::from((NODE_IP, 1)), Protocol::Tcp)).len();
        assert!(others.chunks(n_packets).all(says_something), "each belongs to a Service");
        Claims { urgent, others, local }
    }

    /// The urgent Services are served by all of their endpoints.
    #[track_caller]
    pub fn urgent_are_served(&self, what: &str, now: &Ruleset) {
        for Claim { packet, after, .. } in &self.urgent {
            let is = fates(now, &self.local, packet);
            assert!(are_same(&is, after), "{what}: {packet:?}\nis {is:?}\nnot {after:?}");
        }
    }

    /// Every other packet has its fate without rules, or its final fate. Returns how many have the final
    /// fate where it differs.
    #[track_caller]
    pub fn others_have_their_first_or_final_fate(&self, what: &str, now: &Ruleset) -> usize {
        let mut n_served = 0;
        for Claim { packet, before, after } in &self.others {
            let is = fates(now, &self.local, packet);
            let is_after = are_same(&is, after);
            assert!(
                is_after || are_same(&is, before),
                "{what}: {packet:?}\nis {is:?}\nwas {before:?}\nwill be {after:?}"
            );
            n_served += usize::from(is_after && !are_same(before, after));
        }
        n_served
    }

    /// Packets whose final fate differs from that without rules.
    pub fn n_others(&self) -> usize {
        self.others.iter().filter(|claim| !are_same(&claim.before, &claim.after)).count()
    }
}

/// Packets from a pod, from the node itself, from an external client, and from a client in a source range.
fn packets((to, protocol): (SocketAddr, Protocol)) -> [Packet; 4] {
    [
        ("10.200.0.77", Some("cni0")),
        ("192.168.0.1", None),
        ("192.0.2.77", Some("eth0")),
        (ALLOWED, Some("eth0")),
    ]
    .map(|(ip, in_interface)| Packet {
        source: ip.parse().expect("an address"),
        to,
        protocol,
        in_interface,
    })
}

/// The only family in these tests.
pub const FAMILY: IpFamily = IpFamily::V4;
