//! Random clusters, small enough that their parts often overlap: the same address in two Services, the same
//! endpoint in two slices, a port of a slice that its Service lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

use chainsmith::compile;
use chainsmith::config::{Config, DetectLocal, LayoutChoice, NodePortAddresses};
use chainsmith::iptables::Ruleset;
use chainsmith::model::host::{Counters, Host, Kernel};
use chainsmith::model::{
    Change, Conditions, Frontend, Hints, Node, Port, Service, ServiceName, Slice, SliceEndpoint, SliceName,
    SlicePort, Snapshot, Touched, TrafficPolicy,
};
use chainsmith::net::{Cidr, IpFamily, MasqueradeMark, PerFamily, Protocol};
use chainsmith::policy::Place;
use chainsmith::rules::Settings;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// The node for which rules are made.
pub const NODE: &str = "node-a";
/// Its pod CIDRs.
pub const POD_CIDRS: [&str; 2] = ["10.180.0.0/16", "fd00:10:180::/48"];
/// Source ranges; the first contains [`ALLOWED`], the second the node.
const RANGES: [[&str; 3]; 2] = [
    ["203.0.113.0/25", "192.168.0.0/24", "10.180.0.0/16"],
    ["2001:db8:113::/48", "2001:db8::/64", "fd00:10:180::/48"],
];
/// A client in the first of the source ranges.
pub const ALLOWED: [&str; 2] = ["203.0.113.7", "2001:db8:113::7"];
/// The node's addresses, the first of them the Node's.
pub const NODE_IPS: [[&str; 2]; 2] = [["192.168.0.2", "198.51.100.2"], ["2001:db8::2", "2001:db8:51::2"]];

pub const SERVICES: [&str; 5] = ["a/dns", "a/web", "a/web-2", "b/db", "b/web"];
const PORT_NAMES: [&str; 2] = ["", "http"];
const ZONES: [&str; 2] = ["east", "west"];
const NODES: [&str; 2] = [NODE, "node-b"];

/// The index of a family in the tables above.
pub fn index(family: IpFamily) -> usize {
    usize::from(family == IpFamily::V6)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).expect("a CIDR")
}

/// A cluster, and the node whose view is used.
#[derive(Clone, Debug)]
pub struct World {
    pub services: BTreeMap<ServiceName, Service>,
    pub slices: BTreeMap<SliceName, Slice>,
    pub node: Node,
    pub config: Config,
    pub host: Host,
}

/// A change of a [`World`].
#[derive(Clone, Debug)]
pub enum Edit {
    Service(ServiceName, Option<Service>),
    Slice(SliceName, Option<Slice>),
    Node(Node),
    Config(Box<Config>),
    Host(Host),
}

impl World {
    pub fn changes(&self) -> Vec<Change> {
        vec![
            Change::Node(Some(self.node.clone())),
            Change::AllServices(self.services.values().cloned().collect()),
            Change::AllSlices(
                self.slices.iter().map(|(name, slice)| (name.clone(), slice.clone())).collect(),
            ),
        ]
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.changes().into_iter().for_each(|change| snapshot.apply(change, &mut Touched::default()));
        snapshot
    }

    pub fn settings(&self, family: IpFamily) -> Settings {
        Settings::new(&self.config, Some(&self.node), &self.host, family)
    }

    pub fn place(&self) -> Place<'_> {
        Place { node: NODE, zone: self.node.zone.as_deref() }
    }

    pub fn ruleset(&self, family: IpFamily) -> Ruleset {
        compile::ruleset(&self.settings(family), &self.snapshot(), self.place())
    }

    /// The change of the cluster in `edit`, if it is one.
    pub fn edit(&mut self, edit: &Edit) -> Option<Change> {
        match edit.clone() {
            Edit::Service(name, service) => {
                match &service {
                    Some(service) => drop(self.services.insert(name.clone(), service.clone())),
                    None => drop(self.services.remove(&name)),
                }
                return Some(Change::Service(name, service));
            }
            Edit::Slice(name, slice) => {
                match &slice {
                    Some(slice) => drop(self.slices.insert(name.clone(), slice.clone())),
                    None => drop(self.slices.remove(&name)),
                }
                return Some(Change::Slice(name, slice));
            }
            Edit::Node(node) => {
                self.node = node.clone();
                return Some(Change::Node(Some(node)));
            }
            Edit::Config(config) => self.config = *config,
            Edit::Host(host) => self.host = host,
        }
        None
    }
}

pub fn worlds() -> impl Strategy<Value = World> {
    let all = (
        vec(proptest::bool::weighted(0.7), SERVICES.len()).prop_flat_map(|present| {
            let named = SERVICES.iter().zip(present).filter(|(_, is_present)| *is_present);
            named.map(|(name, _)| services(name)).collect::<Vec<_>>()
        }),
        btree_map(slice_names(), any::<proptest::sample::Index>(), 0..9),
        vec(slices(), 9),
        nodes(),
        configs(),
        hosts(),
    );
    all.prop_map(|(services, names, slices, node, config, host)| World {
        services: services.into_iter().map(|service| (service.name.clone(), service)).collect(),
        slices: names
            .into_keys()
            .zip(slices)
            .map(|((name, owner), slice)| (name, Slice { service: owner, ..slice }))
            .collect(),
        node,
        config,
        host,
    })
}

/// Changes of Services and slices, and sometimes of node and configuration.
pub fn edits() -> impl Strategy<Value = Edit> {
    prop_oneof![
        8 => (select(&SERVICES[..]).prop_flat_map(services))
            .prop_map(|service| Edit::Service(service.name.clone(), Some(service))),
        3 => select(&SERVICES[..]).prop_map(|name| Edit::Service(service_name(name), None)),
        8 => (slice_names(), slices()).prop_map(|((name, owner), slice)| {
            Edit::Slice(name, Some(Slice { service: owner, ..slice }))
        }),
        4 => slice_names().prop_map(|(name, _)| Edit::Slice(name, None)),
        1 => nodes().prop_map(Edit::Node),
        1 => configs().prop_map(|config| Edit::Config(Box::new(config))),
        1 => hosts().prop_map(Edit::Host),
    ]
}

pub fn service_name(text: &str) -> ServiceName {
    let (namespace, name) = text.split_once('/').expect("a namespace and a name");
    ServiceName::new(namespace, name)
}

/// The name of a slice, and of its Service (nearly always).
fn slice_names() -> impl Strategy<Value = (SliceName, ServiceName)> {
    (select(&SERVICES[..]), 0..3u8, proptest::bool::weighted(0.05)).prop_map(|(owner, n, is_astray)| {
        let owner_name = service_name(if is_astray { SERVICES[0] } else { owner });
        (service_name(&format!("{owner}-{n}")), owner_name)
    })
}

fn services(name: &'static str) -> impl Strategy<Value = Service> + use<> {
    let policies = || prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let parts = (
        frontends(IpFamily::V4),
        frontends(IpFamily::V6),
        prop_oneof![3 => Just((true, true)), 2 => Just((true, false)), 2 => Just((false, true))],
        vec(ports(), 0..4),
        (policies(), policies()),
        option::weighted(0.3, select(vec![60, 10_800])),
        option::weighted(0.3, select(vec![30_001u16, 30_002])),
        option::weighted(0.7, 0..3i64),
    );
    parts.prop_map(
        move |(v4, v6, has, ports, (internal_policy, external_policy), affinity, health, created)| {
            let (mut seen, mut ports) = (BTreeSet::new(), ports);
            ports.retain(|port: &Port| seen.insert((port.name.clone(), port.protocol)));
            Service {
                name: service_name(name),
                frontends: PerFamily { v4: has.0.then_some(v4), v6: has.1.then_some(v6) },
                ports: ports.into(),
                internal_policy,
                external_policy,
                affinity_seconds: affinity,
                health_check_node_port: health.filter(|_| external_policy == TrafficPolicy::Local),
                created,
            }
        },
    )
}

fn frontends(family: IpFamily) -> impl Strategy<Value = Frontend> {
    let from = move |net: u16, n: u16| match family {
        IpFamily::V4 => IpAddr::from(Ipv4Addr::new(172, 30, net as u8, n as u8)),
        IpFamily::V6 => IpAddr::from(Ipv6Addr::new(0xfd00, 0x10, net, 0, 0, 0, 0, n)),
    };
    // External and load balancer addresses come from one pool, which includes the node's addresses and
    // cluster IPs.
    let outside = move || {
        (0..7u16).prop_map(move |n| match n {
            4 => ip(NODE_IPS[index(family)][0]),
            // Cluster IPs of other Services.
            5 | 6 => from(0, n),
            n => from(9, n),
        })
    };
    let range = select(&RANGES[index(family)][..]).prop_map(cidr);
    (
        (0..7u16).prop_map(move |n| from(0, n)),
        prop_oneof![3 => vec(outside(), 0..1), 2 => vec(outside(), 1..3)],
        prop_oneof![3 => vec(outside(), 0..1), 2 => vec(outside(), 1..3)],
        prop_oneof![2 => vec(range.clone(), 0..1), 1 => vec(range, 1..3)],
    )
        .prop_map(|(cluster_ip, external_ips, load_balancer_ips, source_ranges)| Frontend {
            cluster_ip,
            external_ips: external_ips.into(),
            load_balancer_ips: load_balancer_ips.into(),
            source_ranges: source_ranges.into(),
        })
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop_oneof![8 => Just(Protocol::Tcp), 3 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn ports() -> impl Strategy<Value = Port> {
    (
        select(&PORT_NAMES[..]),
        protocols(),
        select(vec![53, 80, 81]),
        option::of(select(vec![30_080, 30_081, 30_082])),
    )
        .prop_map(|(name, protocol, port, node_port)| Port {
            name: name.into(),
            protocol,
            port,
            node_port,
        })
}

fn slices() -> impl Strategy<Value = Slice> {
    let slice_ports = || {
        (select(&PORT_NAMES[..]), protocols(), select(vec![80u16, 8080]))
            .prop_map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port })
    };
    prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)].prop_flat_map(move |family| {
        let endpoints = prop_oneof![1 => vec(endpoints(family), 0..1), 6 => vec(endpoints(family), 1..7)];
        (vec(slice_ports(), 1..4), endpoints).prop_map(move |(ports, endpoints)| Slice {
            service: service_name(SERVICES[0]),
            family,
            ports: ports.into(),
            endpoints: endpoints.into(),
            triggered_at: None,
        })
    })
}

fn endpoints(family: IpFamily) -> impl Strategy<Value = SliceEndpoint> {
    let conditions = prop_oneof![
        3 => Just((true, true, false)),
        2 => any::<(bool, bool, bool)>(),
    ];
    let names = |all: [&'static str; 2]| {
        proptest::sample::subsequence(all.to_vec(), 0..=2)
            .prop_map(|names| names.into_iter().map(Arc::from).collect::<Box<[Arc<str>]>>())
    };
    let hints = option::weighted(0.6, (names(ZONES), names(NODES)));
    (0..12u16, conditions, option::weighted(0.9, select(&NODES[..])), hints).prop_map(
        move |(n, (is_ready, is_serving, is_terminating), node, hints)| SliceEndpoint {
            ip: pod(family, n),
            conditions: Conditions { is_ready, is_serving, is_terminating },
            node: node.map(Arc::from),
            hints: hints
                .filter(|(zones, nodes)| !zones.is_empty() || !nodes.is_empty())
                .map(|(zones, nodes)| Box::new(Hints { zones, nodes })),
        },
    )
}

/// The address of a pod.
pub fn pod(family: IpFamily, n: u16) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 180, (n % 2) as u8, n as u8).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x180, 0, 0, 0, n % 2, n).into(),
    }
}

fn nodes() -> impl Strategy<Value = Node> {
    let addresses = proptest::sample::subsequence(NODE_IPS.map(|ips| ip(ips[0])).to_vec(), 0..=2);
    let pod_cidrs = proptest::sample::subsequence(POD_CIDRS.map(cidr).to_vec(), 0..=2);
    (addresses, pod_cidrs, option::weighted(0.7, select(&ZONES[..]))).prop_map(
        |(addresses, pod_cidrs, zone)| Node {
            name: NODE.into(),
            addresses: addresses.into(),
            pod_cidrs: pod_cidrs.into(),
            zone: zone.map(Arc::from),
            is_leaving: false,
        },
    )
}

static DEFAULT: LazyLock<Config> = LazyLock::new(Config::default);

fn configs() -> impl Strategy<Value = Config> {
    let detectors = prop_oneof![
        4 => Just(DetectLocal::ClusterCidr),
        1 => Just(DetectLocal::NodeCidr),
        1 => Just(DetectLocal::BridgeInterface("cbr0".to_owned())),
        1 => Just(DetectLocal::InterfaceNamePrefix("cali".to_owned())),
    ];
    let networks =
        vec!["192.168.0.0/16", "127.0.0.0/8", "64.0.0.0/2", "2001:db8::/32", "10.99.0.0/16", "::1/128"];
    let node_ports = prop_oneof![
        3 => Just(NodePortAddresses::All),
        1 => Just(NodePortAddresses::Primary),
        1 => proptest::sample::subsequence(networks, 1..4)
            .prop_map(|texts| NodePortAddresses::Cidrs(texts.into_iter().map(cidr).collect())),
    ];
    (
        detectors,
        proptest::sample::subsequence(POD_CIDRS.map(cidr).to_vec(), 0..=2),
        node_ports,
        (proptest::bool::weighted(0.2), proptest::bool::weighted(0.8), proptest::bool::weighted(0.9)),
        prop_oneof![3 => Just(14), 1 => 0..32u32],
        select(vec![LayoutChoice::Auto, LayoutChoice::Classic, LayoutChoice::Compact]),
    )
        .prop_map(
            |(
                detect_local,
                cluster_cidrs,
                node_port_addresses,
                (masquerade_all, localhost, external),
                bit,
                layout,
            )| {
                let mut config = DEFAULT.clone();
                config.cluster_cidrs =
                    if detect_local == DetectLocal::ClusterCidr { cluster_cidrs } else { Vec::new() };
                config.detect_local = detect_local;
                config.node_port_addresses = node_port_addresses;
                config.masquerade_all = masquerade_all;
                config.localhost_node_ports = localhost;
                config.allow_external_ips = external;
                config.mark = MasqueradeMark::from_bit(bit).expect("at most 31");
                config.layout = layout;
                config
            },
        )
}

fn hosts() -> impl Strategy<Value = Host> {
    let addresses: Vec<IpAddr> = NODE_IPS
        .iter()
        .flatten()
        .map(|text| ip(text))
        .chain(IpFamily::BOTH.map(IpFamily::localhost))
        .collect();
    let flag = || proptest::bool::weighted(0.8);
    (proptest::sample::subsequence(addresses, 2..=6).prop_shuffle(), [(); 6].map(|()| flag())).prop_map(
        |(addresses, [invalid, localhost, random_fully, strict, route_localnet, bpf])| {
            let counters = Counters { invalid, localhost };
            let kernel = Kernel { counters, tcp_be_liberal: !strict, random_fully, bpf, route_localnet };
            Host { addresses, kernel }
        },
    )
}
