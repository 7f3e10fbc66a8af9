//! The truth table of `explain`, which comes from the rules, is what the policies of the Service say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use chainsmith::inspect::explanation::{
    CellVerdict, ExplainQuestion, FrontendClass, FrontendExplanation, PortExplanation, TruthCell, explain,
};
use chainsmith::inspect::vantage::{Vantage, VantagePoint, Vantages};
use chainsmith::inspect::{ClusterView, HostOrigin, HostView, Subject};
use chainsmith::iptables::trace::Origin;
use chainsmith::model::{Endpoint, ServicePort, TrafficPolicy};
use chainsmith::net::{Cidr, IpFamily, PerFamily};
use chainsmith::policy::{Selection, Verdict};
use chainsmith::rules::{Detector, NodePorts, Settings};

use crate::cluster::{NODE, World, worlds};
use crate::for_all;

fn subject(world: &World) -> Subject {
    let cluster = ClusterView {
        snapshot: world.snapshot().into(),
        node_name: NODE.into(),
        nodes: BTreeMap::from([(NODE.into(), world.node.clone())]),
        pods: BTreeMap::new(),
        settings: PerFamily { v4: world.settings(IpFamily::V4), v6: world.settings(IpFamily::V6) },
        not_proxied: BTreeMap::new(),
        problems: Vec::new(),
        quarantined: PerFamily::default(),
    };
    let host = HostView {
        addresses: world.host.addresses.iter().copied().collect(),
        origin: HostOrigin::File,
        ..HostView::default()
    };
    Subject::of_objects(cluster, host, &IpFamily::BOTH)
}

/// What a packet meets: endpoints, each with whether it is masqueraded; or a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Endpoints(BTreeSet<(SocketAddr, bool)>),
    Other(CellVerdict),
}

/// What policies say about one service port.
struct Policies<'a> {
    settings: &'a Settings,
    port: ServicePort<'a>,
    selection: Selection<'a>,
    vantages: &'a Vantages,
}

impl Policies<'_> {
    fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.vantages.local_addresses.contains(&ip)
    }

    /// Whether the packets count as pods'; `None` if the interface on which they arrive is unknown.
    fn is_pod(&self, point: &VantagePoint) -> Option<bool> {
        match (&self.settings.detector, &point.origin) {
            (None, _) => Some(false),
            (Some(Detector::Source(cidr)), _) => Some(cidr.contains(point.source)),
            (Some(Detector::Interface(_)), Origin::Node) => Some(false),
            (Some(Detector::Interface(name)), Origin::Arrives(Some(interface))) => {
                Some(interface.starts_with(name.as_str().trim_end_matches('+')))
            }
            (Some(Detector::Interface(_)), Origin::Arrives(None)) => None,
        }
    }

    fn endpoints(&self, policy: TrafficPolicy, source: IpAddr, is_masqueraded: bool) -> Answer {
        let list = match policy {
            TrafficPolicy::Cluster => &self.selection.cluster,
            TrafficPolicy::Local => &self.selection.local,
        };
        let each =
            |endpoint: &Endpoint<'_>| (endpoint.address, is_masqueraded || endpoint.address.ip() == source);
        Answer::Endpoints(list.iter().map(each).collect())
    }

    /// The cluster IP.
    fn internal(&self, point: &VantagePoint) -> Option<Answer> {
        let verdict = self.selection.verdicts(&self.port).internal;
        if verdict != Verdict::Serve {
            return Some(Answer::Other(unserved(verdict)));
        }
        let has_detector = self.settings.detector.is_some();
        let is_masqueraded = match self.settings.masquerade_all {
            true => true,
            false => has_detector && !self.is_pod(point)?,
        };
        Some(self.endpoints(self.port.service.internal_policy, point.source, is_masqueraded))
    }

    /// Frontends for traffic from outside that lead to the chain for it.
    fn external(&self, point: &VantagePoint) -> Option<Answer> {
        if self.port.service.external_policy == TrafficPolicy::Cluster {
            return Some(self.endpoints(TrafficPolicy::Cluster, point.source, true));
        }
        if self.is_pod(point)? {
            return Some(self.endpoints(TrafficPolicy::Cluster, point.source, false));
        }
        if self.is_local(point.source) {
            return Some(self.endpoints(TrafficPolicy::Cluster, point.source, true));
        }
        Some(match self.selection.verdicts(&self.port).external {
            Verdict::Serve => self.endpoints(TrafficPolicy::Local, point.source, false),
            verdict => Answer::Other(unserved(verdict)),
        })
    }

    fn answer(&self, point: &VantagePoint, kind: FrontendClass, to: IpAddr) -> Option<Answer> {
        let verdicts = self.selection.verdicts(&self.port);
        match kind {
            FrontendClass::ClusterIp => self.internal(point),
            FrontendClass::NodePort => self.node_port(point, to),
            // The node's own packets to addresses elsewhere meet no chain that rejects.
            _ if !verdicts.has_endpoints() && point.origin == Origin::Node && !self.is_local(to) => {
                Some(Answer::Other(CellVerdict::Untranslated))
            }
            _ if !verdicts.has_endpoints() => Some(Answer::Other(CellVerdict::Rejected)),
            FrontendClass::LoadBalancerIp if !self.allows(point.source) => {
                Some(Answer::Other(CellVerdict::Dropped))
            }
            _ => self.external(point),
        }
    }

    fn node_port(&self, point: &VantagePoint, to: IpAddr) -> Option<Answer> {
        let answers = match &self.settings.node_ports {
            NodePorts::EveryAddress => !to.is_loopback() || self.settings.localhost_node_ports,
            NodePorts::Addresses(addresses) => addresses.contains(&to),
        };
        let verdicts = self.selection.verdicts(&self.port);
        if answers && verdicts.has_endpoints() {
            return self.external(point);
        }
        Some(Answer::Other(match verdicts.external {
            Verdict::Serve => CellVerdict::ToNode,
            verdict => unserved(verdict),
        }))
    }

    fn allows(&self, source: IpAddr) -> bool {
        let ranges = &self.port.frontend.source_ranges;
        let holds = |ip| ranges.iter().any(|range: &Cidr| range.contains(ip));
        ranges.is_empty()
            || holds(source)
            // Where the load balancer's address is also the node's, the node reaches it from there.
            || holds(self.settings.node_ip) && self.port.frontend.load_balancer_ips.contains(&source)
    }
}

fn unserved(verdict: Verdict) -> CellVerdict {
    match verdict {
        Verdict::Reject => CellVerdict::Rejected,
        Verdict::Drop => CellVerdict::Dropped,
        Verdict::Serve => unreachable!("it is served"),
    }
}

/// What the table says.
fn told(cell: &TruthCell) -> Option<Answer> {
    if cell.fates.iter().any(|fate| !fate.undecided.is_empty()) {
        return None;
    }
    match &cell.fates[..] {
        [one] if one.verdict != CellVerdict::Endpoint => Some(Answer::Other(one.verdict)),
        fates => {
            let all = fates.iter().flat_map(|fate| {
                assert_eq!(fate.verdict, CellVerdict::Endpoint, "{cell:?}");
                fate.endpoints.iter().map(|share| (share.address, fate.is_masqueraded))
            });
            Some(Answer::Endpoints(all.collect()))
        }
    }
}

/// Whether another rule may come first for packets to `frontend`: the frontend of another Service, or an external IP
/// that is a load balancer IP too, which source ranges do not restrict.
fn is_shared(
    world: &World,
    family: IpFamily,
    port: &ServicePort<'_>,
    frontend: &FrontendExplanation,
    to: SocketAddr,
) -> bool {
    let is_other_kind = frontend.kind == FrontendClass::LoadBalancerIp
        && (port.frontend.external_ips.contains(&to.ip()) || port.frontend.cluster_ip == to.ip())
        || frontend.kind == FrontendClass::ExternalIp
            && (port.frontend.cluster_ip == to.ip() || port.frontend.load_balancer_ips.contains(&to.ip()));
    let is_address = |other: &ServicePort<'_>| {
        let addresses = other.frontend.external_ips.iter().chain(&*other.frontend.load_balancer_ips);
        let mut addresses = addresses.chain([&other.frontend.cluster_ip]);
        other.port.port == to.port()
            && other.port.protocol == port.port.protocol
            && addresses.any(|ip| *ip == to.ip())
    };
    let all = || world.services.values().flat_map(|service| service.ports_in(family));
    let is_node_port_too = |other: &ServicePort<'_>| {
        other.port.node_port == Some(to.port()) && other.port.protocol == port.port.protocol
    };
    let captured = match frontend.kind {
        FrontendClass::NodePort => {
            all().any(|other| is_address(&other)) || all().filter(|other| is_node_port_too(other)).count() > 1
        }
        _ => all().filter(is_address).count() > 1,
    };
    is_other_kind || captured || frontend.owned_by.is_some()
}

fn check(world: &World, subject: &Subject, family: IpFamily, explained: &PortExplanation) -> (usize, usize) {
    let cluster = subject.cluster.as_ref().unwrap();
    let (mut n_checked, mut n_skipped) = (0, 0);
    let name = explained.service_port.split(':').next().unwrap();
    let service = &world.services[&crate::cluster::service_name(name)];
    let is_asked = |port: &ServicePort<'_>| {
        *port.port.name == *explained.name && port.port.protocol.to_string() == explained.protocol
    };
    let port = service.ports_in(family).find(is_asked).unwrap();
    let ports = cluster.snapshot.ports_of(service, family);
    let endpoints = ports.endpoints(&port);
    let vantages = Vantages::of(subject, family);
    let selection = Selection::new(&port, &endpoints, world.place());
    let policies = Policies { settings: cluster.settings.get(family), port, selection, vantages: &vantages };
    for cell in &explained.truth_table {
        let frontend = &explained.frontends[cell.frontend];
        let vantage = Vantage::ALL.into_iter().find(|vantage| vantage.as_str() == cell.from).unwrap();
        let point = vantages.point(vantage);
        let expected = policies.answer(point, frontend.kind, cell.destination.ip());
        match (expected, told(cell)) {
            (Some(expected), Some(told)) if !is_shared(world, family, &port, frontend, cell.destination) => {
                assert_eq!(told, expected, "{}: {frontend:?} {cell:#?}", explained.service_port);
                n_checked += 1;
            }
            _ => n_skipped += 1,
        }
    }
    (n_checked, n_skipped)
}

#[test]
fn the_truth_table_is_what_the_policies_say() {
    let totals = std::cell::Cell::new((0, 0));
    for_all(300, worlds(), |world| {
        let subject = subject(&world);
        for name in world.services.keys() {
            let question = ExplainQuestion { service: name.to_string(), port: None };
            let Ok(report) = explain(&subject, &question) else { continue };
            for port in &report.ports {
                let family = if port.family == "IPv4" { IpFamily::V4 } else { IpFamily::V6 };
                let (n_checked, n_skipped) = check(&world, &subject, family, port);
                totals.set((totals.get().0 + n_checked, totals.get().1 + n_skipped));
            }
        }
        Ok(())
    });
    let (n_checked, n_skipped) = totals.get();
    assert!(n_checked > 2_000 && n_checked > n_skipped, "{n_checked} cells checked, {n_skipped} skipped");
}
