//! The destinations of the packets that are compared: at the addresses and ports that rules name, and beside them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::landmarks::{Landmarks, PROTOCOLS};
use crate::inspect::vantage::{Vantage, Vantages};
use crate::net::{IpFamily, Protocol};

/// The destination of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Probe {
    /// Address and port.
    pub to: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// Whether packets in other connection states than NEW are sent too. They do not meet nat: one destination stands
    /// for all that the rules of other tables do not tell apart.
    pub tests_states: bool,
}

/// The most addresses of the node that node ports are tried on.
const MAX_OWN_ADDRESSES: usize = 8;

/// The most pairs of an address that rules name without port, and a port that they name without address.
const MAX_PAIRS: usize = 50_000;

/// The destinations, sorted:
///
/// - each address with each port that a rule names beside it, one port that none names, and another protocol;
/// - an address of each range between them;
/// - each port that rules name without an address, on the addresses of the node and on addresses that rules name
///   without a port (node ports);
/// - the new destinations of DNAT, one of each port in each range of addresses that rules tell apart;
/// - the node and an address outside, at a port that no rule names.
pub(super) fn choose(landmarks: &Landmarks, vantages: &Vantages, family: IpFamily) -> Vec<Probe> {
    let mut probes = Probes::default();
    for (ip, ports) in &landmarks.frontends {
        ports.iter().for_each(|(protocol, port)| probes.add(*ip, *port, *protocol));
        let (protocol, first) = ports.first().copied().unwrap_or((Protocol::Tcp, 80));
        let is_free = |port: &u16| !ports.contains(&(protocol, *port));
        if let Some(port) = (first..u16::MAX).find(is_free) {
            probes.add(*ip, port, protocol);
        }
        let other = PROTOCOLS.into_iter().find(|protocol| !ports.contains(&(*protocol, first)));
        other.into_iter().for_each(|protocol| probes.add(*ip, first, protocol));
    }
    let a_port = landmarks.frontends.values().flatten().next().copied().unwrap_or((Protocol::Tcp, 80));
    for ip in landmarks.range_starts().filter(|ip| !landmarks.frontends.contains_key(ip)) {
        probes.add(ip, a_port.1, a_port.0);
    }
    let own = vantages.local_addresses.iter().copied().filter(|ip| IpFamily::of(*ip) == family);
    let own: BTreeSet<IpAddr> = own.take(MAX_OWN_ADDRESSES).chain([family.localhost()]).collect();
    let n_others = MAX_PAIRS / landmarks.ports.len().max(1);
    let others = landmarks.without_port.iter().copied().filter(|ip| !own.contains(ip)).take(n_others);
    for ip in own.iter().copied().chain(others) {
        landmarks.ports.iter().for_each(|(protocol, port)| probes.add(ip, *port, *protocol));
    }
    probes.add_targets(landmarks);
    let outside = vantages.point(Vantage::Outside).source;
    for ip in own.into_iter().chain([outside]) {
        probes.add(ip, 22, Protocol::Tcp);
    }
    probes.chosen(landmarks, vantages)
}

#[derive(Default)]
struct Probes {
    found: BTreeSet<(SocketAddr, Protocol)>,
}

impl Probes {
    fn add(&mut self, ip: IpAddr, port: u16, protocol: Protocol) {
        self.found.insert((SocketAddr::new(ip, port), protocol));
    }

    fn chosen(self, landmarks: &Landmarks, vantages: &Vantages) -> Vec<Probe> {
        let mut seen = BTreeSet::new();
        let probe = |(to, protocol): (SocketAddr, Protocol)| {
            let is_local = to.ip().is_loopback() || vantages.local_addresses.contains(&to.ip());
            let kind = landmarks.kind_beside_nat(to.ip(), (protocol, to.port()));
            Probe { to, protocol, tests_states: seen.insert((is_local, kind)) }
        };
        self.found.into_iter().map(probe).collect()
    }

    fn add_targets(&mut self, landmarks: &Landmarks) {
        let mut seen = BTreeSet::new();
        for (to, protocol) in &landmarks.targets {
            if seen.insert((landmarks.range_start(to.ip()), to.port(), *protocol)) {
                self.add(to.ip(), to.port(), *protocol);
            }
        }
    }
}
