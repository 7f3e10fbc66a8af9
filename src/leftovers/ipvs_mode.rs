//! The virtual servers and IP sets that kube-proxy's ipvs mode left, distinguished from those of other programs.
//!
//! kube-proxy's own cleanup takes all of them for its own. Here one is kube-proxy's when its address is on
//! `kube-ipvs0`, where kube-proxy puts the addresses of Services, or when it is on another address of this
//! node and its port is a node port by the sets that kube-proxy keeps of them. Source: kube-proxy v1.36,
//! `pkg/proxy/ipvs/proxier.go`, `syncProxyRules`.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::{Leftover, Trouble};
use crate::kernel::ipvs::{NodeIpvs, VirtualServer};
use crate::net::{IpFamily, Protocol};

/// How many servers of others are named.
const MAX_NAMED: usize = 10;

/// The IP sets of kube-proxy's ipvs mode. Others begin alike: network policies of kube-router and k3s are in
/// `KUBE-SRC-...` and `KUBE-DST-...`. Source: kube-proxy v1.36, `pkg/proxy/ipvs/ipset.go`.
const SETS: [&str; 17] = [
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOOP-BACK",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-UDP",
];

/// The longest name that the kernel takes for a set.
const MAX_SET_NAME: usize = 31;

/// Whether an IP set is one of ipvs mode. Those for IPv6 have `KUBE-6-` in place of `KUBE-`, and are cut to
/// what the kernel takes.
pub(super) fn is_set(name: &str) -> bool {
    SETS.iter().any(|set| {
        let v6 = set.replacen("KUBE-", "KUBE-6-", 1);
        name == *set || name == &v6[..v6.len().min(MAX_SET_NAME)]
    })
}

/// Kube-proxy's virtual servers, and others'. What cannot be told is taken for others'.
pub(super) fn find_servers(node: &mut impl NodeIpvs) -> (Vec<Leftover>, Vec<Trouble>) {
    let mut troubles = Vec::new();
    let servers = known("list the virtual servers of IPVS", node.servers(), &mut troubles);
    if servers.is_empty() {
        return (Vec::new(), troubles);
    }
    let device = known("list the addresses of kube-ipvs0", node.device_addresses(), &mut troubles);
    let local = known("list the addresses of this node", node.local_addresses(), &mut troubles);
    let (device, local) = (BTreeSet::from_iter(device), BTreeSet::from_iter(local));
    let mut node_ports = BTreeSet::new();
    for family in IpFamily::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let doing = format!("read the {family} {protocol} node ports of ipvs mode");
            let ports = known(&doing, node.node_ports(family, protocol), &mut troubles);
            node_ports.extend(ports.into_iter().map(|port| (family, protocol, port)));
        }
    }
    let is_node_port = |address: &SocketAddr, protocol: Protocol| {
        let port = (IpFamily::of(address.ip()), protocol, address.port());
        local.contains(&address.ip()) && node_ports.contains(&port)
    };
    let is_kube_proxys = |server: &VirtualServer| match server {
        VirtualServer::At(address, protocol) => {
            device.contains(&address.ip()) || is_node_port(address, *protocol)
        }
        // Services have no marks.
        VirtualServer::Marked(..) => false,
    };
    let (ours, others): (Vec<VirtualServer>, Vec<VirtualServer>) =
        servers.into_iter().partition(is_kube_proxys);
    let found = [Leftover::IpvsServers(ours), Leftover::OtherServers(others)];
    let is_there = |leftover: &Leftover| !matches!(leftover, Leftover::IpvsServers(servers) | Leftover::OtherServers(servers) if servers.is_empty());
    (found.into_iter().filter(is_there).collect(), troubles)
}

/// What `outcome` holds; nothing, and a trouble, where it is an error.
fn known<T>(doing: &str, outcome: io::Result<Vec<T>>, troubles: &mut Vec<Trouble>) -> Vec<T> {
    outcome.unwrap_or_else(|error| {
        troubles.push(Trouble(format!("cannot {doing}: {error}")));
        Vec::new()
    })
}

/// The `servers` that were found and the `witnesses` that tell whose they are, which stay while it is not
/// known what servers there are.
pub(super) fn with_witnesses(
    (mut found, mut troubles): (Vec<Leftover>, Vec<Trouble>),
    witnesses: Vec<Leftover>,
) -> (Vec<Leftover>, Vec<Trouble>) {
    match troubles.is_empty() {
        true => found.extend(witnesses),
        false => troubles.extend(witnesses.iter().map(super::kept_as_witness)),
    }
    (found, troubles)
}

/// Deletes each of `servers`; why some do not go.
pub(super) fn remove_servers(node: &mut impl NodeIpvs, servers: &[VirtualServer]) -> Vec<Trouble> {
    let deleted = servers.iter().map(|server| (server, node.delete(server)));
    let failed = deleted.filter_map(|(server, outcome)| Some((server, outcome.err()?)));
    failed.map(|(server, error)| Trouble(format!("cannot delete virtual server {server}: {error}"))).collect()
}

/// Others' servers, the first of them by name.
pub(super) fn write_others(f: &mut fmt::Formatter<'_>, servers: &[VirtualServer]) -> fmt::Result {
    let names: Vec<String> = servers.iter().take(MAX_NAMED).map(VirtualServer::to_string).collect();
    let more = if servers.len() > MAX_NAMED { ", ..." } else { "" };
    write!(
        f,
        "{} virtual servers of IPVS ({}{more}), neither on kube-ipvs0 nor for a known node port,",
        servers.len(),
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn what_tells_whose_servers_are_stays_while_they_are_not_known() {
        let witnesses = || vec![Leftover::IpSets(vec!["KUBE-A".to_owned()]), Leftover::IpvsDevice];
        assert_eq!(with_witnesses((vec![], vec![]), witnesses()), (witnesses(), vec![]));
        let trouble = Trouble("cannot list the virtual servers of IPVS: Interrupted".to_owned());
        let (found, troubles) = with_witnesses((vec![], vec![trouble]), witnesses());
        assert_eq!((found, troubles.len()), (vec![], 3));
        assert_eq!(
            troubles[1].to_string(),
            "1 ipsets of ipvs mode stays until the virtual servers are gone: it tells which are kube-proxy's"
        );
    }

    #[test]
    fn sets_of_ipvs_mode_are_known_by_their_whole_names() {
        for name in [
            "KUBE-LOOP-BACK",
            "KUBE-6-LOOP-BACK",
            "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
            // Cut to 31 bytes.
            "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
        ] {
            assert!(is_set(name) && name.len() <= MAX_SET_NAME, "{name}");
        }
        for name in [
            // kube-router's.
            "KUBE-SRC-ZGOZKQUJLUWSN5R7",
            "KUBE-DST-ZGOZKQUJLUWSN5R7",
            "inet6:KUBE-SRC-ZGOZKQUJLUWSN5R7",
            "KUBE-LOOP-BACK-2",
            "KUBE-6-",
            "KUBE-",
            "",
        ] {
            assert!(!is_set(name), "{name}");
        }
    }

    /// A node with kube-ipvs0 and node ports, and what was deleted there.
    #[derive(Default)]
    struct Node {
        servers: Vec<VirtualServer>,
        has_sets: bool,
        /// Neither set nor address can be read.
        is_blind: bool,
        /// Nothing is listed or deleted.
        is_forbidden: bool,
        deleted: Vec<VirtualServer>,
    }

    fn refused<T>() -> io::Result<T> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    impl NodeIpvs for Node {
        fn servers(&mut self) -> io::Result<Vec<VirtualServer>> {
            if self.is_forbidden { refused() } else { Ok(self.servers.clone()) }
        }

        fn delete(&mut self, server: &VirtualServer) -> io::Result<()> {
            if self.is_forbidden {
                return refused();
            }
            self.deleted.push(*server);
            Ok(())
        }

        fn device_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
            if self.is_blind { refused() } else { Ok(ips(&["10.96.0.1", "10.96.0.10", "fd00::a"])) }
        }

        fn local_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
            let all = ["10.96.0.1", "10.96.0.10", "127.0.0.1", "192.0.2.7", "fd00::7", "fd00::a"];
            if self.is_blind { refused() } else { Ok(ips(&all)) }
        }

        fn node_ports(&mut self, family: IpFamily, protocol: Protocol) -> io::Result<Vec<u16>> {
            match (family, protocol) {
                _ if self.is_blind => refused(),
                (IpFamily::V4, Protocol::Tcp) if self.has_sets => Ok(vec![30080, 30443]),
                (IpFamily::V6, Protocol::Udp) if self.has_sets => Ok(vec![30053]),
                _ => Ok(Vec::new()),
            }
        }
    }

    fn server(text: &str) -> VirtualServer {
        let (protocol, address) = text.split_once(' ').unwrap();
        VirtualServer::At(address.parse().unwrap(), Protocol::from_kubernetes(protocol).unwrap())
    }

    fn servers(texts: &[&str]) -> Vec<VirtualServer> {
        texts.iter().map(|text| server(text)).collect()
    }

    const OF_SERVICES: [&str; 3] = ["TCP 10.96.0.1:443", "UDP 10.96.0.10:53", "UDP [fd00::a]:53"];
    const OF_NODE_PORTS: [&str; 2] = ["TCP 192.0.2.7:30080", "UDP [fd00::7]:30053"];
    const OF_OTHERS: [&str; 5] = [
        // On this node, but no node port; a node port, but of another protocol or family, or elsewhere.
        "TCP 192.0.2.7:80",
        "UDP 192.0.2.7:30080",
        "TCP [fd00::7]:30080",
        "TCP 198.51.100.1:30080",
        "TCP 198.51.100.1:443",
    ];

    fn node() -> Node {
        let texts = [&OF_SERVICES[..], &OF_NODE_PORTS, &OF_OTHERS].concat();
        let mut servers = servers(&texts);
        servers.push(VirtualServer::Marked(7, IpFamily::V4));
        Node { servers, has_sets: true, ..Node::default() }
    }

    /// What is found to be kube-proxy's, and others'.
    fn found(node: &mut Node) -> (Vec<VirtualServer>, Vec<VirtualServer>) {
        let (found, troubles) = find_servers(node);
        assert_eq!(troubles, []);
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for leftover in found {
            match leftover {
                Leftover::IpvsServers(servers) => ours.extend(servers),
                Leftover::OtherServers(servers) => others.extend(servers),
                _ => panic!("{leftover}"),
            }
        }
        (ours, others)
    }

    #[test]
    fn servers_on_kube_ipvs0_and_of_node_ports_are_kube_proxys_and_no_others() {
        let (ours, others) = found(&mut node());
        assert_eq!(ours, servers(&[&OF_SERVICES[..], &OF_NODE_PORTS].concat()));
        let (marked, rest) = others.split_last().unwrap();
        assert_eq!((rest, marked), (&*servers(&OF_OTHERS), &VirtualServer::Marked(7, IpFamily::V4)));
    }

    #[test]
    fn without_the_sets_no_server_is_a_node_ports() {
        let (ours, others) = found(&mut Node { has_sets: false, ..node() });
        assert_eq!(ours, servers(&OF_SERVICES));
        assert!(servers(&OF_NODE_PORTS).iter().all(|server| others.contains(server)), "{others:?}");
    }

    #[test]
    fn a_node_without_servers_has_no_leftovers_and_is_asked_no_more() {
        let (found, troubles) = find_servers(&mut Node { is_blind: true, ..Node::default() });
        assert_eq!((found, troubles), (vec![], vec![]));
    }

    #[test]
    fn what_cannot_be_told_is_taken_for_others_and_said() {
        let (found, troubles) = find_servers(&mut Node { is_blind: true, ..node() });
        assert!(matches!(&found[..], [Leftover::OtherServers(others)] if others.len() == 11), "{found:?}");
        let told: Vec<String> = troubles.iter().map(ToString::to_string).collect();
        assert_eq!(
            (told.len(), &*told[0], &*told[2]),
            (
                8,
                "cannot list the addresses of kube-ipvs0: permission denied",
                "cannot read the IPv4 TCP node ports of ipvs mode: permission denied"
            )
        );
        let (found, troubles) = find_servers(&mut Node { is_forbidden: true, ..node() });
        assert_eq!(
            (found, troubles[0].0.as_str()),
            (vec![], "cannot list the virtual servers of IPVS: permission denied")
        );
    }

    #[test]
    fn those_of_kube_proxy_are_deleted_one_by_one_and_what_stays_is_named() {
        let ours = servers(&OF_SERVICES);
        let mut node = node();
        assert_eq!(remove_servers(&mut node, &ours), []);
        assert_eq!(node.deleted, ours);
        node.is_forbidden = true;
        let troubles = remove_servers(&mut node, &ours[..2]);
        let expected = ["TCP 10.96.0.1:443", "UDP 10.96.0.10:53"]
            .map(|name| Trouble(format!("cannot delete virtual server {name}: permission denied")));
        assert_eq!(troubles, expected);
    }

    #[test]
    fn kube_proxys_are_counted_with_a_line_for_each_and_others_are_named() {
        let ours = Leftover::IpvsServers(servers(&OF_SERVICES[..1]));
        assert_eq!(
            (ours.to_string().as_str(), ours.parts()),
            ("1 virtual servers of ipvs mode", vec!["TCP 10.96.0.1:443".to_owned()])
        );
        assert!(ours.is_removable());
        let others =
            Leftover::OtherServers(vec![server("TCP 192.0.2.7:80"), VirtualServer::Marked(7, IpFamily::V4)]);
        let expected = "2 virtual servers of IPVS (TCP 192.0.2.7:80, mark 7 (IPv4)), neither on kube-ipvs0 nor for a known node port,";
        assert_eq!((others.to_string().as_str(), others.parts()), (expected, vec![]));
        assert!(!others.is_removable());
        let many = Leftover::OtherServers(vec![server("TCP 192.0.2.7:80"); 11]);
        assert!(many.to_string().contains("TCP 192.0.2.7:80, ...), neither"), "{many}");
    }
}
