//! The places from which traffic comes, each with an address that represents it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::Subject;
use crate::iptables::trace::{Origin, TracedNode};
use crate::iptables::{ChainName, Interface, MaybeNot, Rule, Ruleset, Table, Target};
use crate::model::Node;
use crate::net::{Cidr, IpFamily};
use crate::rules::Detector;
use crate::rules::names::{self, PortChain};
use crate::rules::ownership::ChainOwner;

/// A place from which traffic comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vantage {
    /// A pod of this node.
    PodHere,
    /// A pod of another node.
    PodElsewhere,
    /// A program on this node, with an address of the node.
    Node,
    /// A client outside the cluster.
    Outside,
    /// A program on this node, with a loopback address.
    Localhost,
}

impl Vantage {
    /// Every place, in the order in which reports show them.
    pub const ALL: [Vantage; 5] =
        [Vantage::PodHere, Vantage::PodElsewhere, Vantage::Node, Vantage::Outside, Vantage::Localhost];

    /// As reports show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Vantage::PodHere => "pod here",
            Vantage::PodElsewhere => "pod elsewhere",
            Vantage::Node => "node",
            Vantage::Outside => "outside",
            Vantage::Localhost => "localhost",
        }
    }
}

impl fmt::Display for Vantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A vantage with the packets that represent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VantagePoint {
    /// The vantage.
    pub vantage: Vantage,
    /// Where its packets enter.
    pub origin: Origin,
    /// Their source address.
    pub source: IpAddr,
    /// If `source` is no address that an object or the host has: what it stands for, as in
    /// `an address in 10.128.0.0/14`.
    pub stands_for: Option<String>,
}

/// All vantages in one family, and the host as packets meet it.
#[derive(Clone, Debug)]
pub struct Vantages {
    /// One for each vantage, in order.
    pub points: Vec<VantagePoint>,
    /// The node's addresses, a stand-in included if none is known.
    pub local_addresses: BTreeSet<IpAddr>,
    /// The interface for each destination.
    pub routes: Vec<(Cidr, Interface)>,
    /// Pods of this node, as far as known.
    here: Option<Cidr>,
    /// Pods of any node.
    pods: Vec<Cidr>,
}

impl Vantages {
    /// The vantages of `subject` in `family`. Where objects and host do not tell an address, it is a stand-in.
    pub fn of(subject: &Subject, family: IpFamily) -> Vantages {
        Vantages::among(KnownNetworks::of(subject, family), subject, family)
    }

    /// The vantages of two subjects on one node: of the one of which more is known, outside the networks of both.
    /// The node has the addresses of both.
    pub fn of_both(subjects: [&Subject; 2], family: IpFamily) -> Vantages {
        let is_known = |subject: &Subject| (subject.host.origin, subject.cluster.is_some());
        let [mut better, mut other] = subjects;
        if is_known(other) > is_known(better) {
            (better, other) = (other, better);
        }
        let mut known = KnownNetworks::of(better, family);
        known.add_objects(other, family);
        if let Some(ruleset) = other.rulesets.get(family) {
            known.add_rules(ruleset);
        }
        known.taken.extend(&other.host.addresses);
        known.met.extend(other.host.routes.iter().map(|(cidr, _)| *cidr));
        known.met.retain(|cidr| cidr.family() == family && !cidr.is_everything());
        let mut vantages = Vantages::among(known, better, family);
        vantages.local_addresses.extend(&other.host.addresses);
        vantages
    }

    fn among(known: KnownNetworks, subject: &Subject, family: IpFamily) -> Vantages {
        let own = own_address(subject, family);
        let uplink = default_interface(subject, family).map(Arc::from);
        let uplink = uplink.or_else(|| own.and_then(|ip| known.interface_of(subject, ip)));
        let (node_ip, node_stands_for) = match own {
            Some(ip) => (ip, None),
            None => (known.free_outside(1), Some("an address of the node".to_owned())),
        };
        let mut local_addresses = subject.host.addresses.clone();
        local_addresses.insert(node_ip);
        let arrives = |interface: Option<Arc<str>>| Origin::Arrives(interface);
        let (here, here_stands_for) = known.pod_here();
        let (elsewhere, elsewhere_stands_for) = known.pod_elsewhere(here);
        let pods = known.pod_interface.clone().or_else(|| known.interface_of(subject, here));
        let point =
            |vantage, origin, source, stands_for| VantagePoint { vantage, origin, source, stands_for };
        let outside = (known.free_outside(2), Some("an address outside every known network".to_owned()));
        Vantages {
            points: vec![
                point(Vantage::PodHere, arrives(pods), here, Some(here_stands_for)),
                point(Vantage::PodElsewhere, arrives(uplink.clone()), elsewhere, Some(elsewhere_stands_for)),
                point(Vantage::Node, Origin::Node, node_ip, node_stands_for),
                point(Vantage::Outside, arrives(uplink), outside.0, outside.1),
                point(Vantage::Localhost, Origin::Node, family.localhost(), None),
            ],
            local_addresses,
            routes: subject.host.routes.clone(),
            here: known.here.or(known.pods),
            pods: known.pods.into_iter().chain(known.elsewhere).collect(),
        }
    }

    /// The place of an address.
    pub fn vantage_of(&self, ip: IpAddr) -> Vantage {
        let is_pod = |cidr: &Cidr| cidr.contains(ip);
        match ip {
            ip if ip.is_loopback() => Vantage::Localhost,
            ip if self.local_addresses.contains(&ip) => Vantage::Node,
            _ if self.here.as_ref().is_some_and(is_pod) => Vantage::PodHere,
            _ if self.pods.iter().any(is_pod) => Vantage::PodElsewhere,
            _ => Vantage::Outside,
        }
    }

    /// The point of `vantage`.
    pub fn point(&self, vantage: Vantage) -> &VantagePoint {
        self.points.iter().find(|point| point.vantage == vantage).expect("all vantages have a point")
    }

    /// The node with these rules.
    pub fn traced_node<'a>(&'a self, ruleset: &'a Ruleset) -> TracedNode<'a> {
        TracedNode { ruleset, local_addresses: &self.local_addresses, routes: &self.routes }
    }
}

/// The interface of the default route.
fn default_interface(subject: &Subject, family: IpFamily) -> Option<&str> {
    let mut routes = subject.host.routes.iter();
    let default = routes.find(|(cidr, _)| cidr.family() == family && cidr.is_everything());
    default.map(|(_, interface)| interface.as_str())
}

/// The address that represents the node: the Node object's, else that of the interface of the default route, else
/// its first other than loopback.
fn own_address(subject: &Subject, family: IpFamily) -> Option<IpAddr> {
    let node = subject.cluster.as_ref().and_then(|cluster| cluster.snapshot.node());
    let of_node = node.and_then(|node| *node.ips().get(family));
    let default = default_interface(subject, family);
    let mut interfaces = subject.host.interfaces.iter();
    let of_default = interfaces
        .find(|entry| Some(&*entry.interface) == default && IpFamily::of(entry.ip) == family)
        .map(|entry| entry.ip);
    of_node.or(of_default).or_else(|| subject.host.own_addresses(family).next())
}

/// The networks that objects, rules and host name.
struct KnownNetworks {
    family: IpFamily,
    /// Pods of this node.
    here: Option<Cidr>,
    /// Pods of all nodes, or at least of this one.
    pods: Option<Cidr>,
    /// Pods of another node.
    elsewhere: Option<Cidr>,
    /// The interface on which pods' packets arrive, where rules recognize pods by it.
    pod_interface: Option<Arc<str>>,
    /// Every network met, none of which is everything.
    met: BTreeSet<Cidr>,
    /// Addresses in use.
    taken: BTreeSet<IpAddr>,
}

impl KnownNetworks {
    fn of(subject: &Subject, family: IpFamily) -> KnownNetworks {
        let mut known = KnownNetworks {
            family,
            here: None,
            pods: None,
            elsewhere: None,
            pod_interface: None,
            met: BTreeSet::new(),
            taken: subject.host.addresses.clone(),
        };
        if let Some(cluster) = &subject.cluster {
            let first = |node: &Node| node.pod_cidrs.iter().copied().find(|cidr| cidr.family() == family);
            let other = cluster.nodes.values().filter(|node| node.name != cluster.node_name);
            known.here = cluster.snapshot.node().and_then(first);
            known.elsewhere = other.filter_map(first).next();
            known.add_objects(subject, family);
        }
        let of_settings = || subject.cluster.as_ref()?.settings.get(family).detector.clone();
        let detector = subject.rulesets.get(family).as_ref().and_then(detector_of).or_else(of_settings);
        match detector {
            Some(Detector::Source(cidr)) => known.pods = Some(cidr),
            Some(Detector::Interface(name)) => {
                known.pod_interface = Some(name.as_str().replace('+', "0").into());
            }
            None => {}
        }
        if let Some(ruleset) = subject.rulesets.get(family) {
            known.add_rules(ruleset);
        }
        known.met.extend(subject.host.routes.iter().map(|(cidr, _)| *cidr));
        known.met.extend([known.here, known.pods, known.elsewhere].into_iter().flatten());
        known.met.retain(|cidr| cidr.family() == family && !cidr.is_everything());
        known
    }

    fn add_objects(&mut self, subject: &Subject, family: IpFamily) {
        let Some(cluster) = &subject.cluster else { return };
        for service in cluster.snapshot.services() {
            let Some(frontend) = service.frontends.get(family) else { continue };
            self.met.extend(frontend.source_ranges.iter().copied());
            self.taken.insert(frontend.cluster_ip);
            self.taken.extend(frontend.external_ips.iter().chain(&*frontend.load_balancer_ips));
        }
        for (_, slice) in cluster.snapshot.slices().filter(|(_, slice)| slice.family == family) {
            self.taken.extend(slice.endpoints.iter().map(|endpoint| endpoint.ip));
        }
    }

    fn add_rules(&mut self, ruleset: &Ruleset) {
        for rule in rules(ruleset) {
            for cidr in [&rule.source, &rule.destination].into_iter().flatten().map(|part| part.value) {
                match cidr.length() == self.family.bits() {
                    true => drop(self.taken.insert(cidr.address())),
                    false => drop(self.met.insert(cidr)),
                }
            }
            if let Some(Target::Dnat(to)) = rule.target {
                self.taken.insert(to.ip());
            }
        }
    }

    fn interface_of(&self, subject: &Subject, ip: IpAddr) -> Option<Arc<str>> {
        let routes =
            subject.host.routes.iter().filter(|(cidr, _)| cidr.contains(ip) && !cidr.is_everything());
        routes.max_by_key(|(cidr, _)| cidr.length()).map(|(_, name)| name.as_str().into())
    }

    fn pod_here(&self) -> (IpAddr, String) {
        match self.here.or(self.pods) {
            Some(cidr) => (self.free_in(&cidr, &|_| true), format!("a pod of this node, in {cidr}")),
            None => (self.free_outside(3), "a pod of this node, of unknown network".to_owned()),
        }
    }

    fn pod_elsewhere(&self, here: IpAddr) -> (IpAddr, String) {
        let is_free = |ip: IpAddr| ip != here && self.here.is_none_or(|cidr| !cidr.contains(ip));
        match self.elsewhere.or(self.pods.filter(|pods| Some(*pods) != self.here)) {
            Some(cidr) => (self.free_in(&cidr, &is_free), format!("a pod of another node, in {cidr}")),
            None => (self.free_outside(4), "a pod of another node, of unknown network".to_owned()),
        }
    }

    /// The last address of `cidr` that is not in use and is `fitting`; one in use if there is no other.
    fn free_in(&self, cidr: &Cidr, fitting: &dyn Fn(IpAddr) -> bool) -> IpAddr {
        /// A network with more addresses in use at its end, or a network of this node as large, is rare.
        const TRIES: u32 = 4_096;
        let n_bits = u32::from(self.family.bits() - cidr.length());
        let candidate = |n: u32| below_end(cidr, n_bits, n);
        let free = (1..TRIES).map_while(candidate).find(|ip| !self.taken.contains(ip) && fitting(*ip));
        // Beyond the network of this node at the end of a larger one: the larger one's first address.
        free.or_else(|| Some(cidr.address()).filter(|ip| fitting(*ip))).unwrap_or(cidr.address())
    }

    /// An address outside every network met, the `n`th choice of several.
    fn free_outside(&self, n: u8) -> IpAddr {
        let candidates: [IpAddr; 6] = match self.family {
            IpFamily::V4 => [
                [203, 0, 113, n],
                [198, 51, 100, n],
                [192, 0, 2, n],
                [198, 18, 0, n],
                [192, 88, 99, n],
                [100, 127, 255, n],
            ]
            .map(|octets| Ipv4Addr::from(octets).into()),
            IpFamily::V6 => ["2001:db8:ffff::", "3fff::", "2001:db8::", "100::", "2001:2::", "3fff:fff::"]
                .map(|text| {
                    let network: Ipv6Addr = text.parse().expect("an address");
                    Ipv6Addr::from(u128::from(network) + u128::from(n)).into()
                }),
        };
        let is_outside =
            |ip: &IpAddr| !self.taken.contains(ip) && !self.met.iter().any(|cidr| cidr.contains(*ip));
        candidates.into_iter().find(is_outside).unwrap_or(candidates[0])
    }
}

/// The `n`th address before the last one of `cidr`, whose addresses have `n_bits` free bits; `None` below its first.
fn below_end(cidr: &Cidr, n_bits: u32, n: u32) -> Option<IpAddr> {
    let ones = |width: u32| if n_bits == 0 { 0 } else { u128::MAX >> (128 - n_bits.min(width)) };
    let rest = |width| ones(width).checked_sub(u128::from(n));
    Some(match cidr.address() {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) | u32::try_from(rest(32)?).ok()?).into(),
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) | rest(128)?).into(),
    })
}

fn rules(ruleset: &Ruleset) -> impl Iterator<Item = &Rule> {
    ruleset.tables.values().flat_map(|chains| chains.values()).flat_map(|chain| &chain.rules)
}

/// How rules recognize pods' traffic: by the rule of a service port that masquerades all other traffic.
fn detector_of(ruleset: &Ruleset) -> Option<Detector> {
    let nat = ruleset.tables.get(&Table::Nat)?;
    let is_balancing = |name: &ChainName| {
        let owner = ChainOwner::of(Table::Nat, name);
        matches!(owner, ChainOwner::ServicePort(PortChain::Cluster | PortChain::Local))
    };
    let chains = nat.iter().filter(|(name, _)| is_balancing(name));
    chains.flat_map(|(_, chain)| &chain.rules).find_map(|rule| {
        if rule.callee() != Some(names::KUBE_MARK_MASQ) {
            return None;
        }
        match (&rule.source, &rule.in_interface) {
            (Some(MaybeNot { negated: true, value }), _) => Some(Detector::Source(*value)),
            (_, Some(MaybeNot { negated: true, value })) => Some(Detector::Interface(value.clone())),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{HostOrigin, HostView, RulesOrigin};
    use crate::iptables::parse;
    use crate::model::host::InterfaceAddress;
    use crate::net::PerFamily;

    fn of_text(family: IpFamily, text: &str) -> Vec<String> {
        let mut rulesets = PerFamily::default();
        *rulesets.get_mut(family) = Some(parse::save(family, text).unwrap());
        let origin = RulesOrigin::Text("-".to_owned());
        let subject = Subject { rulesets, origin, cluster: None, host: HostView::default() };
        let shown = |point: VantagePoint| {
            let interface = match point.origin {
                Origin::Arrives(Some(name)) => format!(" on {name}"),
                Origin::Arrives(None) => " on ?".to_owned(),
                Origin::Node => String::new(),
            };
            format!("{} {}{interface}", point.vantage, point.source)
        };
        Vantages::of(&subject, family).points.into_iter().map(shown).collect()
    }

    #[test]
    fn stand_ins_are_inside_and_outside_the_networks_of_the_rules() {
        let rule = "*nat\n:KUBE-SVC-A - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-SVC-A ! -s 10.128.0.0/14 -j KUBE-MARK-MASQ\nCOMMIT\n";
        let expected = [
            "pod here 10.131.255.254 on ?",
            "pod elsewhere 10.131.255.253 on ?",
            "node 203.0.113.1",
            "outside 203.0.113.2 on ?",
            "localhost 127.0.0.1",
        ];
        assert_eq!(of_text(IpFamily::V4, rule), expected);
        let v6 = rule.replace("10.128.0.0/14", "2001:db8:ffff::/64");
        assert_eq!(of_text(IpFamily::V6, &v6)[0], "pod here 2001:db8:ffff:0:ffff:ffff:ffff:fffe on ?");
        assert_eq!(of_text(IpFamily::V6, &v6)[3], "outside 3fff::2 on ?");
    }

    #[test]
    fn the_rule_for_hairpins_does_not_tell_pods_from_others() {
        let rule = "*nat\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
                    -A KUBE-POSTROUTING ! -s 127.0.0.0/8 -j KUBE-MARK-MASQ\n\
                    -A KUBE-SVC-A ! -s 10.128.0.0/14 -j KUBE-MARK-MASQ\nCOMMIT\n";
        assert_eq!(of_text(IpFamily::V4, rule)[0], "pod here 10.131.255.254 on ?");
    }

    #[test]
    fn clients_from_outside_come_by_the_default_route() {
        let rulesets = PerFamily { v4: Some(Ruleset::default()), v6: None };
        let entry = |interface: &str, ip: &str| InterfaceAddress {
            interface: interface.into(),
            ip: ip.parse().unwrap(),
            length: 24,
        };
        let interfaces = vec![entry("cni0", "10.1.0.1"), entry("eth0", "192.0.2.1")];
        let mut host = HostView::of_interfaces(interfaces, HostOrigin::Live);
        host.routes.push((Cidr::parse("0.0.0.0/0").unwrap(), Interface::new("eth0").unwrap()));
        let subject = Subject { rulesets, origin: RulesOrigin::Live, cluster: None, host };
        let vantages = Vantages::of(&subject, IpFamily::V4);
        assert_eq!(vantages.point(Vantage::Node).source.to_string(), "192.0.2.1");
        let origin = &vantages.point(Vantage::Outside).origin;
        assert_eq!(*origin, Origin::Arrives(Some("eth0".into())));
    }

    #[test]
    fn pods_recognized_by_interface_arrive_on_one() {
        let rule = "*nat\n:KUBE-SVC-A - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-SVC-A ! -i cali+ -j KUBE-MARK-MASQ\nCOMMIT\n";
        assert_eq!(of_text(IpFamily::V4, rule)[0], "pod here 203.0.113.3 on cali0");
    }

    #[test]
    fn addresses_in_use_are_not_chosen() {
        let cidr = |text: &str| Cidr::parse(text).unwrap();
        let mut known = KnownNetworks {
            family: IpFamily::V4,
            here: None,
            pods: None,
            elsewhere: None,
            pod_interface: None,
            met: BTreeSet::new(),
            taken: ["10.0.0.6".parse().unwrap()].into(),
        };
        let free = |known: &KnownNetworks, text: &str| known.free_in(&cidr(text), &|_| true).to_string();
        assert_eq!(free(&known, "10.0.0.0/29"), "10.0.0.5");
        assert_eq!(free(&known, "10.0.0.9/32"), "10.0.0.9");
        known.taken.insert("203.0.113.1".parse().unwrap());
        assert_eq!(known.free_outside(1).to_string(), "198.51.100.1");
    }
}
