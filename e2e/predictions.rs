//! `iptables::trace` agrees with the kernel: for random packets of real hosts, what it predicts from the text of
//! `iptables-save` is what real connections meet, beside rules as Docker and Calico write them.

mod foreign;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use chainsmith::iptables::trace::{
    Branch, Effect, Origin, Packet, PacketVerdict, RecentLists, TraceOptions, TracedNode, Tracer,
};
use chainsmith::iptables::{Interface, Ruleset, parse};
use chainsmith::net::{Cidr, IpFamily};

use crate::cluster::{EMPTY, LOCAL, OWN, WEB};
use crate::lab::Lab;
use crate::lab::address::{FAMILIES, Family, pod_cidrs};
use crate::lab::client::{Host, IMPATIENCE, Outcome, PATIENCE, Protocol};
use crate::lab::host::POD_PORT;
use crate::lab::netfilter::Backend;
use crate::running::Running;

/// Packets for each layout.
const N_PACKETS: usize = 1000;

/// Connections at the same time; most of them wait for an answer to their second SYN.
const N_CLIENTS: usize = 48;

/// Destinations of which every end that can happen must be seen.
const N_REPEATED: usize = 12;

/// Attempts until each end was seen: one with probability 1/6 stays unseen once in 10^7 times.
const N_ATTEMPTS: usize = 90;

/// A host that sends through node-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    /// A pod of node-1.
    Pod(&'static str),
    /// node-1, with its address on the wire.
    Node,
    /// node-1, with 127.0.0.1.
    Localhost,
    /// The client outside.
    Outside,
}

const SENDERS: [Sender; 5] =
    [Sender::Pod("client-1"), Sender::Pod("web-1"), Sender::Node, Sender::Localhost, Sender::Outside];

/// A connection to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Probe {
    sender: Sender,
    protocol: Protocol,
    source: IpAddr,
    to: SocketAddr,
}

/// An end of a connection, as far as its client can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// This server answers; to an address of the node, or to the client's own.
    Answered {
        server: String,
        is_masqueraded: bool,
    },
    Refused,
    Unreachable,
    TimedOut,
}

/// Predicted from the rules in force, in both layouts.
pub fn trace_agrees_with_the_kernel(backend: Backend) {
    for layout in ["--layout=classic", "--layout=compact"] {
        let running = Running::with_flags(backend, &[layout]).expect("a cluster starts");
        let lab = &running.lab;
        lab.outside().enter_by(lab.node(1)).expect("routes can be set");
        foreign::add(lab).expect("foreign rules can be added");
        let oracle = Oracle::of(lab);
        let probes = random_probes(lab);
        let predicted: Vec<Prediction> = probes.iter().map(|probe| oracle.predict(lab, probe)).collect();
        let seen = try_all(lab, &probes, &predicted);
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for ((probe, prediction), end) in probes.iter().zip(&predicted).zip(&seen) {
            assert!(
                prediction.allows(end),
                "{backend:?} {layout}: {probe:?}\npredicted {:?}\nseen {end:?}\n{:#?}",
                prediction.ends,
                prediction.branches
            );
            *kinds.entry(kind(end)).or_default() += 1;
        }
        println!("{backend:?} {layout}: {kinds:?}");
        assert!(kinds.len() == 5 && kinds.values().all(|n| *n >= 10), "too few of a kind: {kinds:?}");
        see_every_end(lab, &probes, &predicted, &seen);
        let n_wrong = oracle.without_foreign_rules().n_wrong(lab, &probes, &seen);
        assert!(n_wrong >= 10, "{backend:?} {layout}: {n_wrong} predictions are wrong without foreign rules");
        for agent in running.agents {
            agent.stop();
        }
    }
}

fn kind(end: &End) -> &'static str {
    match end {
        End::Answered { is_masqueraded: true, .. } => "masqueraded",
        End::Answered { is_masqueraded: false, .. } => "answered",
        End::Refused => "refused",
        End::Unreachable => "unreachable",
        End::TimedOut => "no answer",
    }
}

/// All ends that can happen.
struct Prediction {
    ends: BTreeSet<End>,
    /// Whether each of `ends` has a known probability above 0.
    is_certain: bool,
    branches: Vec<Branch>,
}

impl Prediction {
    /// Whether `end` can happen. The kernel sends one "unreachable" a second to each client, so some of the
    /// fabric's get no answer.
    fn allows(&self, end: &End) -> bool {
        let is_silent = *end == End::TimedOut && self.ends.contains(&End::Unreachable);
        self.ends.contains(end) || is_silent
    }
}

/// The rules of node-1 as its own iptables-save prints them, and what rules match on.
struct Oracle {
    rulesets: [Ruleset; 2],
    addresses: BTreeSet<IpAddr>,
    routes: Vec<(Cidr, Interface)>,
}

impl Oracle {
    fn of(lab: &Lab) -> Oracle {
        let node = lab.node(1);
        let rulesets = FAMILIES.map(|family| {
            let text = node.netfilter().save(family).expect("rules can be read");
            parse::save(ip_family(family), &text).expect("a save can be parsed")
        });
        let own = |family| [node.address().of(family), node.bridge_address().of(family)];
        let interface = |name| Interface::new(name).expect("a name");
        let mut routes: Vec<(Cidr, Interface)> =
            pod_cidrs(1).iter().map(|cidr| (Cidr::parse(cidr).expect("a CIDR"), interface("cbr0"))).collect();
        routes
            .extend(["0.0.0.0/0", "::/0"].map(|all| (Cidr::parse(all).expect("a CIDR"), interface("eth0"))));
        Oracle { rulesets, addresses: FAMILIES.into_iter().flat_map(own).collect(), routes }
    }

    /// The same without the rules that [`foreign::add`] adds: chains that none of ours refer to.
    fn without_foreign_rules(&self) -> Oracle {
        let mut rulesets = self.rulesets.clone();
        for chain in rulesets.iter_mut().flat_map(|ruleset| ruleset.tables.values_mut()).flatten() {
            let is_foreign = |name: &str| name.starts_with("cali-") || name.starts_with("DOCKER");
            chain.1.rules.retain(|rule| !rule.callee().is_some_and(|callee| is_foreign(callee.as_str())));
        }
        Oracle { rulesets, addresses: self.addresses.clone(), routes: self.routes.clone() }
    }

    /// How many of `probes` met an end that is not predicted.
    fn n_wrong(&self, lab: &Lab, probes: &[Probe], seen: &[End]) -> usize {
        let wrong = probes.iter().zip(seen).filter(|(probe, end)| !self.predict(lab, probe).allows(end));
        wrong.count()
    }

    fn predict(&self, lab: &Lab, probe: &Probe) -> Prediction {
        let ruleset = &self.rulesets[usize::from(probe.to.is_ipv6())];
        let node = TracedNode { ruleset, local_addresses: &self.addresses, routes: &self.routes };
        let origin = match probe.sender {
            Sender::Pod(_) => Origin::Arrives(Some("cbr0".into())),
            Sender::Outside => Origin::Arrives(Some("eth0".into())),
            Sender::Node | Sender::Localhost => Origin::Node,
        };
        let protocol = match probe.protocol {
            Protocol::Tcp => chainsmith::net::Protocol::Tcp,
            Protocol::Udp => chainsmith::net::Protocol::Udp,
        };
        // The client's port is not known before; no rule here matches on it.
        let packet = Packet::new(origin, SocketAddr::new(probe.source, 40_000), probe.to, protocol);
        let branches = Tracer::new(node, TraceOptions::DETAILED).trace(&packet, &RecentLists::default());
        let mut ends: BTreeSet<End> = branches.iter().map(|branch| end_of(lab, branch)).collect();
        let effects = branches.iter().flat_map(|branch| &branch.undecided).flat_map(|rule| rule.may.keys());
        let effects: BTreeSet<&Effect> = effects.collect();
        for effect in &effects {
            ends.insert(match effect {
                Effect::Drop => End::TimedOut,
                Effect::Reject => End::Refused,
                other => panic!("{probe:?}: may {other}: {branches:#?}"),
            });
        }
        Prediction { ends, is_certain: effects.is_empty(), branches }
    }
}

fn ip_family(family: Family) -> IpFamily {
    match family {
        Family::V4 => IpFamily::V4,
        Family::V6 => IpFamily::V6,
    }
}

/// What the client sees of `branch`: who answers at its destination.
fn end_of(lab: &Lab, branch: &Branch) -> End {
    let outcome = &branch.outcome;
    match outcome.verdict {
        PacketVerdict::Dropped => return End::TimedOut,
        PacketVerdict::Rejected => return End::Refused,
        PacketVerdict::Unknown(step) => panic!("the walk ended at {step}: {branch:#?}"),
        PacketVerdict::Accepted(_) => {}
    }
    let to = outcome.destination;
    // A host does not take a packet from its own address, or answers it past the node.
    let is_returned =
        outcome.source.is_some_and(|source| source.ip() == to.ip() && !lab.node(1).owns(source));
    if outcome.dnat.is_some() && is_returned {
        return End::TimedOut;
    }
    let pod = lab.pods().find(|pod| pod.address().contains(to.ip()));
    let is_outside = lab.outside().address().contains(to.ip());
    let is_node = lab.nodes().iter().any(|node| node.owns(to)) || to.ip().is_loopback();
    match pod.map(|pod| pod.name()).or(is_outside.then_some("outside")) {
        Some(server) if to.port() == POD_PORT => {
            // An address of the node is seen in both cases if the node is the client.
            let from_node = outcome.source.is_none_or(|source| lab.node(1).owns(source));
            End::Answered { server: server.to_owned(), is_masqueraded: from_node }
        }
        Some(_) => End::Refused,
        None if is_node => End::Refused,
        None => End::Unreachable,
    }
}

/// Frontends, ports beside them, ports of foreign rules, pods, and addresses of nothing.
fn destinations(lab: &Lab, family: Family) -> Vec<SocketAddr> {
    let node = lab.node(1);
    let mut all = Vec::new();
    for service in [WEB, LOCAL, EMPTY, OWN] {
        let frontends = [
            service.cluster_ip(family),
            service.load_balancer(family),
            service.external_ip(family),
            service.node_port(node, family),
            SocketAddr::new(node.bridge_address().of(family), service.node_port_number()),
        ];
        // Each frontend often enough, and now and then a port that is none.
        all.extend(frontends.iter().chain(&frontends));
        all.push(SocketAddr::new(service.cluster_ip(family).ip(), 81));
    }
    let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
    let own = node.address().of(family);
    all.extend(foreign::PORTS.map(|port| at(own, port)));
    for name in ["web-1", "web-2", "web-3", "client-1"] {
        all.push(at(lab.pod(name).address().of(family), POD_PORT));
        all.push(at(lab.pod(name).address().of(family), 9999));
    }
    let outside = lab.outside().address().of(family);
    let nothing = if family == Family::V4 { "198.51.100.77" } else { "2001:db8:51::77" };
    all.extend([at(outside, POD_PORT), at(outside, 81), at(nothing.parse().expect("an address"), 80)]);
    all
}

/// The same in every run.
fn random_probes(lab: &Lab) -> Vec<Probe> {
    let mut seed = 7u64;
    let mut roll = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let mut probes = Vec::new();
    while probes.len() < N_PACKETS {
        let family = FAMILIES[roll(2)];
        let all = destinations(lab, family);
        let mut to = all[roll(all.len())];
        let sender = SENDERS[roll(SENDERS.len())];
        let protocol = [Protocol::Tcp, Protocol::Udp][roll(2)];
        let node = lab.node(1);
        let source = match sender {
            Sender::Pod(name) => lab.pod(name).address().of(family),
            Sender::Node => node.address().of(family),
            Sender::Outside => lab.outside().address().of(family),
            // Only node ports of IPv4 are served there, and a packet with this source leaves the node for
            // nothing else.
            Sender::Localhost if family == Family::V6 || !node.owns(to) => continue,
            Sender::Localhost => {
                to.set_ip(IpAddr::from([127, 0, 0, 1]));
                to.ip()
            }
        };
        // A packet to its own sender does not reach node-1.
        if source != to.ip() || matches!(sender, Sender::Node | Sender::Localhost) {
            probes.push(Probe { sender, protocol, source, to });
        }
    }
    probes
}

fn host(lab: &Lab, sender: Sender) -> &dyn Host {
    match sender {
        Sender::Pod(name) => lab.pod(name),
        Sender::Node | Sender::Localhost => lab.node(1),
        Sender::Outside => lab.outside(),
    }
}

fn attempt(lab: &Lab, probe: &Probe, prediction: &Prediction) -> End {
    let may_be_silent = prediction.allows(&End::TimedOut);
    let patience = if may_be_silent { IMPATIENCE } else { PATIENCE };
    let from = SocketAddr::new(probe.source, 0);
    match host(lab, probe.sender).attempt_from(from, probe.protocol, probe.to, patience).outcome {
        Outcome::Answered { pod, seen } => {
            let by_node = lab.node(1).owns(seen);
            assert!(by_node || seen.ip() == probe.source, "{probe:?}: {pod} saw {seen}");
            End::Answered { server: pod, is_masqueraded: by_node }
        }
        Outcome::Refused => End::Refused,
        Outcome::Unreachable => End::Unreachable,
        Outcome::TimedOut => End::TimedOut,
    }
}

/// Tries every probe, many at the same time; the ends in order.
fn try_all(lab: &Lab, probes: &[Probe], predicted: &[Prediction]) -> Vec<End> {
    let next = AtomicUsize::new(0);
    let ends: BTreeMap<usize, End> = thread::scope(|scope| {
        let clients: Vec<_> = (0..N_CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut ends = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let Some(probe) = probes.get(n) else { return ends };
                        ends.push((n, attempt(lab, probe, &predicted[n])));
                    }
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    });
    ends.into_values().collect()
}

/// Of some probes with several possible ends: each of them happens, in enough attempts.
fn see_every_end(lab: &Lab, probes: &[Probe], predicted: &[Prediction], seen: &[End]) {
    let several = |n: &usize| predicted[*n].is_certain && predicted[*n].ends.len() > 1;
    let mut chosen: BTreeMap<(Sender, IpAddr), usize> = BTreeMap::new();
    (0..probes.len()).filter(several).for_each(|n| {
        chosen.entry((probes[n].sender, probes[n].to.ip())).or_insert(n);
    });
    assert!(chosen.len() >= N_REPEATED, "only {} probes with several ends", chosen.len());
    thread::scope(|scope| {
        for n in chosen.into_values().take(N_REPEATED) {
            scope.spawn(move || {
                let mut missing = predicted[n].ends.clone();
                missing.remove(&seen[n]);
                for _ in 0..N_ATTEMPTS {
                    if missing.is_empty() {
                        return;
                    }
                    let end = attempt(lab, &probes[n], &predicted[n]);
                    assert!(predicted[n].allows(&end), "{:?}: {end:?}", probes[n]);
                    missing.remove(&end);
                }
                panic!("{:?}: never {missing:?}", probes[n]);
            });
        }
    });
}
