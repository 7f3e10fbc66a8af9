//! Every recorded case of kube-proxy: packets have the same fates under our rules as under kube-proxy's.

#[path = "shared/corpus_cases.rs"]
mod corpus_cases;
#[path = "corpus_packets/diff.rs"]
mod diff;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use chainsmith::compile;
use chainsmith::config::{DetectLocal, LayoutChoice};
use chainsmith::iptables::trace::{
    self, Delivery, Origin, Outcome, Packet, PacketVerdict, RecentLists, TracedNode, Weight,
};
use chainsmith::iptables::{ChainName, CtStates, Policy, Ruleset, Table, parse, write};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::model::Snapshot;
use chainsmith::net::{IpFamily, Protocol};
use chainsmith::rules::Settings;
use corpus_cases::{Case, live, place, version};

/// A source of packets.
struct Source {
    origin: Origin,
    ip: IpAddr,
}

/// Pods of this node and of other nodes, the node's own addresses and loopback, an external client, and a
/// client in each allowed range.
fn sources(case: &Case, snapshot: &Snapshot, family: IpFamily) -> Vec<Source> {
    let pods = match &case.config.detect_local {
        DetectLocal::BridgeInterface(name) => name.clone(),
        DetectLocal::InterfaceNamePrefix(prefix) => format!("{prefix}1"),
        DetectLocal::ClusterCidr | DetectLocal::NodeCidr => "cni0".to_owned(),
    };
    let arriving = |interface: &str, ip: &str| Source {
        origin: Origin::Arrives(Some(interface.into())),
        ip: ip.parse().expect("an address"),
    };
    let mut sources = match family {
        IpFamily::V4 => {
            vec![arriving(&pods, "10.128.0.99"), arriving("eth0", "10.128.3.99"), arriving("eth0", "8.8.8.8")]
        }
        IpFamily::V6 => vec![
            arriving(&pods, "fd00:10:128::99"),
            arriving("eth0", "fd00:10:128:3::99"),
            arriving("eth0", "2606:4700::8"),
        ],
    };
    let own = case.host.addresses.iter().filter(|ip| IpFamily::of(**ip) == family);
    sources.extend(own.map(|ip| Source { origin: Origin::Node, ip: *ip }));
    let frontends = snapshot.services().filter_map(|service| service.frontends.get(family).as_ref());
    let ranges: BTreeSet<IpAddr> =
        frontends.flat_map(|frontend| frontend.source_ranges.iter().map(|range| range.address())).collect();
    sources.extend(ranges.into_iter().map(|ip| arriving("eth0", &ip.to_string())));
    sources
}

/// All frontends of Services, near misses, and unrelated destinations.
fn destinations(case: &Case, snapshot: &Snapshot, family: IpFamily) -> BTreeSet<(SocketAddr, Protocol)> {
    let own: Vec<IpAddr> =
        case.host.addresses.iter().copied().filter(|ip| IpFamily::of(*ip) == family).collect();
    let mut found = BTreeSet::new();
    for port in snapshot.services().flat_map(|service| service.ports_in(family)) {
        let (number, protocol) = (port.port.port, port.port.protocol);
        let frontend = port.frontend;
        let virtual_ips = frontend.external_ips.iter().chain(&*frontend.load_balancer_ips);
        for ip in virtual_ips.chain([&frontend.cluster_ip]) {
            found.insert((SocketAddr::new(*ip, number), protocol));
            found.insert((SocketAddr::new(*ip, number ^ 1), protocol));
        }
        let other = if protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        found.insert((SocketAddr::new(frontend.cluster_ip, number), other));
        for node_port in port.port.node_port.into_iter().chain(port.service.health_check_node_port) {
            found.extend(own.iter().map(|ip| (SocketAddr::new(*ip, node_port), protocol)));
            found.extend(own.iter().map(|ip| (SocketAddr::new(*ip, node_port), Protocol::Tcp)));
        }
    }
    let elsewhere = match family {
        IpFamily::V4 => "9.9.9.9",
        IpFamily::V6 => "2606:4700::9",
    };
    for ip in own.iter().copied().chain([elsewhere.parse().expect("an address")]) {
        found.insert((SocketAddr::new(ip, 22), Protocol::Tcp));
    }
    found
}

/// One endpoint of each service port, as a source of packets to all destinations.
fn hairpins(snapshot: &Snapshot, family: IpFamily) -> Vec<Source> {
    let services = snapshot.services().map(|service| snapshot.ports_of(service, family));
    let endpoints = services.flat_map(|ports| {
        let first = |port| ports.endpoints(&port).first().map(|endpoint| endpoint.address.ip());
        ports.iter().filter_map(first).collect::<Vec<_>>()
    });
    let ips: BTreeSet<IpAddr> = endpoints.take(20).collect();
    ips.into_iter().map(|ip| Source { origin: Origin::Arrives(Some("cni0".into())), ip }).collect()
}

fn packets(case: &Case, snapshot: &Snapshot, family: IpFamily) -> Vec<Packet> {
    let mut sources = sources(case, snapshot, family);
    sources.extend(hairpins(snapshot, family));
    let destinations = destinations(case, snapshot, family);
    let mut packets = Vec::new();
    for source in &sources {
        for (destination, protocol) in &destinations {
            let from = SocketAddr::new(source.ip, 40_000);
            packets.push(Packet::new(source.origin.clone(), from, *destination, *protocol));
        }
    }
    let states = [CtStates::INVALID, CtStates::ESTABLISHED];
    let again = packets.iter().take(5).cloned().collect::<Vec<_>>();
    packets.extend(again.iter().flat_map(|packet| states.map(|state| Packet { state, ..packet.clone() })));
    packets
}

/// Our rules in each state of the case: as rendered, and as an agent leaves them in a kernel with earlier
/// rules.
fn our_rulesets(case: &Case, family: IpFamily) -> Vec<Ruleset> {
    let states = case.states().into_iter().map(|(snapshot, _)| snapshot);
    let Some(initial) = case.file(&format!("initial.{}.save", version(family))) else {
        let render = |snapshot: Snapshot| {
            compile::ruleset(&case.settings(&snapshot, family), &snapshot, place(case, &snapshot))
        };
        return states.map(render).collect();
    };
    let kernel = FakeIptables::holding(family, Backend::Nft, &initial).expect("initial rules");
    let rulesets = RefCell::new(Vec::new());
    live(case, kernel, |kernel| {
        rulesets.borrow_mut().push(kernel.ruleset.clone());
        write::save(family, &kernel.ruleset)
    });
    rulesets.into_inner()
}

fn fates(case: &Case, ruleset: &Ruleset, packet: &Packet) -> Vec<(Weight, Outcome)> {
    let local = case.host.addresses.iter().copied().collect();
    let node = TracedNode { ruleset, local_addresses: &local, routes: &[] };
    let branches = trace::trace(&node, packet, &RecentLists::default());
    branches.into_iter().map(|branch| (branch.weight, branch.outcome.visible())).collect()
}

/// Counts of fates, which show whether the test covers them.
#[derive(Debug, Default)]
struct Met {
    n_packets: usize,
    n_to_endpoints: usize,
    n_masqueraded: usize,
    n_rejected: usize,
    n_dropped: usize,
    n_untouched: usize,
}

impl Met {
    fn count(&mut self, fates: &[(Weight, Outcome)]) {
        self.n_packets += 1;
        let any = |is: &dyn Fn(&Outcome) -> bool| usize::from(fates.iter().any(|(_, outcome)| is(outcome)));
        self.n_to_endpoints += any(&|outcome| outcome.dnat.is_some());
        self.n_masqueraded += any(&|outcome| outcome.masquerade);
        self.n_rejected += any(&|outcome| outcome.verdict == PacketVerdict::Rejected);
        self.n_dropped += any(&|outcome| outcome.verdict == PacketVerdict::Dropped);
        self.n_untouched += any(&|outcome| {
            outcome.dnat.is_none() && outcome.verdict == PacketVerdict::Accepted(Delivery::Forwarded)
        });
    }
}

/// Calls `each` for every state of every case: the objects, kube-proxy's rules and ours.
fn each_state(mut each: impl FnMut(&Case, &str, IpFamily, &Snapshot, Ruleset, Ruleset)) {
    for case in Case::all() {
        for family in IpFamily::BOTH {
            for (n, ((snapshot, expected), ours)) in
                case.states().iter().zip(our_rulesets(&case, family)).enumerate()
            {
                let theirs = parse::save(family, &expected[version(family)]).expect("a recorded save");
                each(&case, &format!("{} state {n} {family}", case.name()), family, snapshot, theirs, ours);
            }
        }
    }
}

#[test]
fn packets_have_the_same_fates_as_under_kube_proxys_rules() {
    let mut met = Met::default();
    each_state(|case, what, family, snapshot, theirs, ours| {
        for packet in packets(case, snapshot, family) {
            let fate = fates(case, &theirs, &packet);
            assert_eq!(fates(case, &ours, &packet), fate, "{what}: {packet:?}");
            let is_known =
                |(_, outcome): &(Weight, Outcome)| !matches!(outcome.verdict, PacketVerdict::Unknown(_));
            assert!(fate.iter().all(is_known), "{what}: {packet:?} {fate:?}");
            met.count(&fate);
        }
    });
    let Met { n_packets, n_to_endpoints, n_masqueraded, n_rejected, n_dropped, n_untouched } = met;
    assert!(n_packets > 20_000 && n_to_endpoints > 5_000 && n_masqueraded > 2_000, "{met:?}");
    assert!(n_rejected > 500 && n_dropped > 100 && n_untouched > 2_000, "{met:?}");
}

/// Whether both are equal, except for the kernel's rounding to units of 2^-31: kube-proxy divides by the
/// remaining endpoints each time, compact weighs groups of endpoints first.
fn are_near(a: &[(Weight, Outcome)], b: &[(Weight, Outcome)]) -> bool {
    let is_near = |((a, x), (b, y)): (&(Weight, Outcome), &(Weight, Outcome))| {
        x == y && (a.to_f64() - b.to_f64()).abs() < 1e-8
    };
    a.len() == b.len() && a.iter().zip(b).all(is_near)
}

#[test]
fn in_compact_packets_have_the_same_fates_as_under_kube_proxys_rules() {
    let drop_by_default = |mut ruleset: Ruleset| {
        ruleset.chain_mut(Table::Filter, ChainName::literal("FORWARD")).policy = Some(Policy::Drop);
        ruleset
    };
    let mut n_packets = 0;
    each_state(|case, what, family, snapshot, theirs, _| {
        // Rendered rules have no foreign rules beside them.
        if case.file(&format!("initial.{}.save", version(family))).is_some() {
            return;
        }
        for bpf in [true, false] {
            let settings = Settings { layout: LayoutChoice::Compact, bpf, ..case.settings(snapshot, family) };
            let ours = compile::ruleset(&settings, snapshot, place(case, snapshot));
            for (theirs, ours) in [
                (theirs.clone(), ours.clone()),
                (drop_by_default(theirs.clone()), drop_by_default(ours.clone())),
            ] {
                for packet in packets(case, snapshot, family) {
                    let (theirs, ours) = (fates(case, &theirs, &packet), fates(case, &ours, &packet));
                    assert!(are_near(&theirs, &ours), "{what}: {packet:?}\n{theirs:#?}\n{ours:#?}");
                    n_packets += 1;
                }
            }
        }
    });
    assert!(n_packets > 80_000, "{n_packets}");
}

#[test]
fn under_a_policy_of_drop_packets_have_the_same_fates_too() {
    let drop_by_default = |mut ruleset: Ruleset| {
        ruleset.chain_mut(Table::Filter, ChainName::literal("FORWARD")).policy = Some(Policy::Drop);
        ruleset
    };
    each_state(|case, what, family, snapshot, theirs, ours| {
        let (theirs, ours) = (drop_by_default(theirs), drop_by_default(ours));
        for packet in packets(case, snapshot, family) {
            assert_eq!(fates(case, &ours, &packet), fates(case, &theirs, &packet), "{what}: {packet:?}");
        }
    });
}
