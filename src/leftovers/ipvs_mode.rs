//! The virtual servers and IP sets that kube-proxy's ipvs mode left, distinguished from those of other programs.
//!
//! kube-proxy's own cleanup removes all of them. Here a server counts as kube-proxy's if its address is on
//! `kube-ipvs0`, where kube-proxy puts the addresses of Services, or if it is on another address of this
//! node and its port is in the sets in which kube-proxy keeps node ports. Source: kube-proxy v1.36,
//! `pkg/proxy/ipvs/proxier.go`, `syncProxyRules`.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::{Leftover, LeftoverProblem};
use crate::kernel::ipvs::{NodeIpvs, VirtualServer};
use crate::net::{IpFamily, Protocol};

/// How many foreign servers a message names.
const MAX_NAMED: usize = 10;

/// The IP sets of kube-proxy's ipvs mode. Foreign sets have the same prefix: kube-router and k3s keep network
/// policies in `KUBE-SRC-...` and `KUBE-DST-...`. Source: kube-proxy v1.36, `pkg/proxy/ipvs/ipset.go`.
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

/// The longest name of a set, in bytes.
const MAX_SET_NAME: usize = 31;

/// Whether an IP set is one of ipvs mode. Those for IPv6 have `KUBE-6-` in place of `KUBE-`, cut to
/// [`MAX_SET_NAME`].
pub(super) fn is_set(name: &str) -> bool {
    SETS.iter().any(|set| {
        let v6 = set.replacen("KUBE-", "KUBE-6-", 1);
        name == *set || name == &v6[..v6.len().min(MAX_SET_NAME)]
    })
}

/// Finds kube-proxy's virtual servers, and foreign ones. A server that cannot be assigned counts as foreign.
pub(super) fn find_servers(node: &mut impl NodeIpvs) -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    let mut problems = Vec::new();
    let servers = or_report("list the virtual servers of IPVS", node.servers(), &mut problems);
    if servers.is_empty() {
        return (Vec::new(), problems);
    }
    let device = or_report("list the addresses of kube-ipvs0", node.device_addresses(), &mut problems);
    let local = or_report("list the addresses of this node", node.local_addresses(), &mut problems);
    let (device, local) = (BTreeSet::from_iter(device), BTreeSet::from_iter(local));
    let mut node_ports = BTreeSet::new();
    for family in IpFamily::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let doing = format!("read the {family} {protocol} node ports of ipvs mode");
            let ports = or_report(&doing, node.node_ports(family, protocol), &mut problems);
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
    let (own, foreign): (Vec<VirtualServer>, Vec<VirtualServer>) =
        servers.into_iter().partition(is_kube_proxys);
    let found = [Leftover::IpvsServers(own), Leftover::ForeignServers(foreign)];
    let has_servers = |leftover: &Leftover| !matches!(leftover, Leftover::IpvsServers(servers) | Leftover::ForeignServers(servers) if servers.is_empty());
    (found.into_iter().filter(has_servers).collect(), problems)
}

/// The values of `result`; for an error none, and a problem is added.
fn or_report<T>(doing: &str, result: io::Result<Vec<T>>, problems: &mut Vec<LeftoverProblem>) -> Vec<T> {
    result.unwrap_or_else(|error| {
        problems.push(LeftoverProblem(format!("cannot {doing}: {error}")));
        Vec::new()
    })
}

/// Adds the leftovers that identify servers to the servers. They stay if the servers could not be listed.
pub(super) fn with_identifying(
    (mut found, mut problems): (Vec<Leftover>, Vec<LeftoverProblem>),
    identifying: Vec<Leftover>,
) -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    match problems.is_empty() {
        true => found.extend(identifying),
        false => problems.extend(identifying.iter().map(super::kept_for_servers)),
    }
    (found, problems)
}

/// Deletes each of `servers`.
pub(super) fn remove_servers(node: &mut impl NodeIpvs, servers: &[VirtualServer]) -> Vec<LeftoverProblem> {
    let deleted = servers.iter().map(|server| (server, node.delete(server)));
    let failed = deleted.filter_map(|(server, outcome)| Some((server, outcome.err()?)));
    failed
        .map(|(server, error)| LeftoverProblem(format!("cannot delete virtual server {server}: {error}")))
        .collect()
}

/// Writes the number of foreign servers, and the first [`MAX_NAMED`] of them.
pub(super) fn write_foreign(f: &mut fmt::Formatter<'_>, servers: &[VirtualServer]) -> fmt::Result {
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
    fn sets_and_interface_stay_while_the_servers_are_not_known() {
        let identifying = || vec![Leftover::IpSets(vec!["KUBE-A".to_owned()]), Leftover::IpvsDevice];
        assert_eq!(with_identifying((vec![], vec![]), identifying()), (identifying(), vec![]));
        let problem = LeftoverProblem("cannot list the virtual servers of IPVS: Interrupted".to_owned());
        let (found, problems) = with_identifying((vec![], vec![problem]), identifying());
        assert_eq!((found, problems.len()), (vec![], 3));
        assert_eq!(
            problems[1].to_string(),
            "1 ipsets of ipvs mode stays until the virtual servers are removed: it identifies kube-proxy's"
        );
    }

    #[test]
    fn sets_of_ipvs_mode_are_recognized_by_their_whole_names() {
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

    /// A node with kube-ipvs0 and node ports; records deletions.
    #[derive(Default)]
    struct IpvsNode {
        servers: Vec<VirtualServer>,
        has_sets: bool,
        /// Sets and addresses cannot be read.
        hides_sets: bool,
        /// Servers cannot be listed or deleted.
        is_forbidden: bool,
        deleted: Vec<VirtualServer>,
    }

    fn denied<T>() -> io::Result<T> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    impl NodeIpvs for IpvsNode {
        fn servers(&mut self) -> io::Result<Vec<VirtualServer>> {
            if self.is_forbidden { denied() } else { Ok(self.servers.clone()) }
        }

        fn delete(&mut self, server: &VirtualServer) -> io::Result<()> {
            if self.is_forbidden {
                return denied();
            }
            self.deleted.push(*server);
            Ok(())
        }

        fn device_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
            if self.hides_sets { denied() } else { Ok(ips(&["10.96.0.1", "10.96.0.10", "fd00::a"])) }
        }

        fn local_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
            let all = ["10.96.0.1", "10.96.0.10", "127.0.0.1", "192.0.2.7", "fd00::7", "fd00::a"];
            if self.hides_sets { denied() } else { Ok(ips(&all)) }
        }

        fn node_ports(&mut self, family: IpFamily, protocol: Protocol) -> io::Result<Vec<u16>> {
            match (family, protocol) {
                _ if self.hides_sets => denied(),
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
    const FOREIGN: [&str; 5] = [
        // On this node, but no node port; a node port, but of another protocol or family, or elsewhere.
        "TCP 192.0.2.7:80",
        "UDP 192.0.2.7:30080",
        "TCP [fd00::7]:30080",
        "TCP 198.51.100.1:30080",
        "TCP 198.51.100.1:443",
    ];

    fn node() -> IpvsNode {
        let texts = [&OF_SERVICES[..], &OF_NODE_PORTS, &FOREIGN].concat();
        let mut servers = servers(&texts);
        servers.push(VirtualServer::Marked(7, IpFamily::V4));
        IpvsNode { servers, has_sets: true, ..IpvsNode::default() }
    }

    /// kube-proxy's servers, and foreign ones.
    fn found(node: &mut IpvsNode) -> (Vec<VirtualServer>, Vec<VirtualServer>) {
        let (found, problems) = find_servers(node);
        assert_eq!(problems, []);
        let (mut own, mut foreign) = (Vec::new(), Vec::new());
        for leftover in found {
            match leftover {
                Leftover::IpvsServers(servers) => own.extend(servers),
                Leftover::ForeignServers(servers) => foreign.extend(servers),
                _ => panic!("{leftover}"),
            }
        }
        (own, foreign)
    }

    #[test]
    fn only_servers_on_kube_ipvs0_and_of_node_ports_are_kube_proxys() {
        let (own, foreign) = found(&mut node());
        assert_eq!(own, servers(&[&OF_SERVICES[..], &OF_NODE_PORTS].concat()));
        let (marked, rest) = foreign.split_last().unwrap();
        assert_eq!((rest, marked), (&*servers(&FOREIGN), &VirtualServer::Marked(7, IpFamily::V4)));
    }

    #[test]
    fn without_the_sets_no_server_counts_as_a_node_port() {
        let (own, foreign) = found(&mut IpvsNode { has_sets: false, ..node() });
        assert_eq!(own, servers(&OF_SERVICES));
        assert!(servers(&OF_NODE_PORTS).iter().all(|server| foreign.contains(server)), "{foreign:?}");
    }

    #[test]
    fn a_node_without_servers_has_no_leftovers_and_nothing_else_is_read() {
        let (found, problems) = find_servers(&mut IpvsNode { hides_sets: true, ..IpvsNode::default() });
        assert_eq!((found, problems), (vec![], vec![]));
    }

    #[test]
    fn servers_that_cannot_be_assigned_are_foreign_and_reported() {
        let (found, problems) = find_servers(&mut IpvsNode { hides_sets: true, ..node() });
        assert!(
            matches!(&found[..], [Leftover::ForeignServers(foreign)] if foreign.len() == 11),
            "{found:?}"
        );
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            (texts.len(), &*texts[0], &*texts[2]),
            (
                8,
                "cannot list the addresses of kube-ipvs0: permission denied",
                "cannot read the IPv4 TCP node ports of ipvs mode: permission denied"
            )
        );
        let (found, problems) = find_servers(&mut IpvsNode { is_forbidden: true, ..node() });
        assert_eq!(
            (found, problems[0].0.as_str()),
            (vec![], "cannot list the virtual servers of IPVS: permission denied")
        );
    }

    #[test]
    fn kube_proxys_servers_are_deleted_one_by_one_and_failures_are_named() {
        let own = servers(&OF_SERVICES);
        let mut node = node();
        assert_eq!(remove_servers(&mut node, &own), []);
        assert_eq!(node.deleted, own);
        node.is_forbidden = true;
        let problems = remove_servers(&mut node, &own[..2]);
        let expected = ["TCP 10.96.0.1:443", "UDP 10.96.0.10:53"]
            .map(|name| LeftoverProblem(format!("cannot delete virtual server {name}: permission denied")));
        assert_eq!(problems, expected);
    }

    #[test]
    fn kube_proxys_servers_are_counted_with_a_line_for_each_and_foreign_ones_are_named() {
        let own = Leftover::IpvsServers(servers(&OF_SERVICES[..1]));
        assert_eq!(
            (own.to_string().as_str(), own.parts()),
            ("1 virtual servers of ipvs mode", vec!["TCP 10.96.0.1:443".to_owned()])
        );
        assert!(own.is_removable());
        let foreign = Leftover::ForeignServers(vec![
            server("TCP 192.0.2.7:80"),
            VirtualServer::Marked(7, IpFamily::V4),
        ]);
        let expected = "2 virtual servers of IPVS (TCP 192.0.2.7:80, mark 7 (IPv4)), neither on kube-ipvs0 nor for a known node port,";
        assert_eq!((foreign.to_string().as_str(), foreign.parts()), (expected, vec![]));
        assert!(!foreign.is_removable());
        let many = Leftover::ForeignServers(vec![server("TCP 192.0.2.7:80"); 11]);
        assert!(many.to_string().contains("TCP 192.0.2.7:80, ...), neither"), "{many}");
    }
}
