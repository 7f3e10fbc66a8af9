//! Totals from readings of counters: of each service port and endpoint of one family. Pure.
//!
//! A counter begins at zero when its chain is rewritten, and is gone with its rule. Totals add up what it counted from one
//! reading to the next, so they only grow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::iptables::{ChainName, DnatRule, FirstPackets};
use crate::model::{ServiceName, ServicePortName};

/// What was counted for one service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTotal {
    /// For all its endpoints, also those that it has no more.
    pub all: FirstPackets,
    /// For each of its endpoints that was used; empty where endpoints are not counted.
    pub endpoints: BTreeMap<SocketAddr, FirstPackets>,
}

impl PortTotal {
    /// Adds `other`, what was counted in the other family.
    pub fn add(&mut self, other: &PortTotal) {
        self.all += other.all;
        self.endpoints.extend(&other.endpoints);
    }
}

/// Those of `rules`, sorted by chain, that are of `chain`.
pub fn rules_of<'a>(rules: &'a [DnatRule], chain: &ChainName) -> &'a [DnatRule] {
    let first = rules.partition_point(|rule| rule.chain < *chain);
    let rest = &rules[first..];
    &rest[..rest.partition_point(|rule| rule.chain == *chain)]
}

/// Counters of one chain at its last reading, by endpoint; none that is zero.
type Reading = Box<[(SocketAddr, FirstPackets)]>;

/// The totals of one family, and what the next reading is compared with.
#[derive(Debug, Default)]
pub struct Ledger {
    counts_endpoints: bool,
    last: BTreeMap<ChainName, Reading>,
    /// While the rules of earlier processes are in force: the chains whose counters are known, because they were read
    /// or written since. A reading of any other chain is where its counts begin. `None`: all chains are known.
    known: Option<BTreeSet<ChainName>>,
    ports: BTreeMap<ServicePortName, PortTotal>,
    /// What was counted for service ports that exist no more.
    departed: FirstPackets,
}

impl Ledger {
    /// Counts from what the counters hold now: they belong to whoever reads first.
    pub fn of_all_counts(counts_endpoints: bool) -> Ledger {
        Ledger { counts_endpoints, ..Ledger::default() }
    }

    /// Counts from the first reading of each chain on, until [`Ledger::end_start`]; chains that
    /// [`Ledger::rewritten`] names earlier, from zero.
    pub fn of_new_counts(counts_endpoints: bool) -> Ledger {
        Ledger { counts_endpoints, known: Some(BTreeSet::new()), ..Ledger::default() }
    }

    /// Every chain was read: what is read for the first time from now on was written since.
    pub fn end_start(&mut self) {
        self.known = None;
    }

    /// Whether every chain was read once.
    pub fn is_started(&self) -> bool {
        self.known.is_none()
    }

    /// Adds what the DNAT rules of `chain`, which belongs to `owner`, counted since its last reading. `rules` are all
    /// that it has, in any order.
    pub fn record(&mut self, chain: ChainName, owner: &ServicePortName, rules: &[DnatRule]) {
        let mut counted: BTreeMap<SocketAddr, FirstPackets> = BTreeMap::new();
        for rule in rules.iter().filter(|rule| !rule.counted.is_zero()) {
            *counted.entry(rule.endpoint).or_default() += rule.counted;
        }
        let reading: Reading = counted.into_iter().collect();
        let last = self.last.remove(&chain).unwrap_or_default();
        let is_start = self.known.as_mut().is_some_and(|known| known.insert(chain));
        if !is_start {
            for (endpoint, counted) in &reading {
                self.add(owner, *endpoint, counted.since(count_of(&last, *endpoint)));
            }
        }
        if !reading.is_empty() {
            self.last.insert(chain, reading);
        }
    }

    fn add(&mut self, owner: &ServicePortName, endpoint: SocketAddr, more: FirstPackets) {
        if more.is_zero() {
            return;
        }
        if !self.ports.contains_key(owner) {
            self.ports.insert(owner.clone(), PortTotal::default());
        }
        let Some(port) = self.ports.get_mut(owner) else { return };
        port.all += more;
        if self.counts_endpoints {
            *port.endpoints.entry(endpoint).or_default() += more;
        }
    }

    /// Whether any of `rules` counted less than at the last reading.
    pub fn has_fallen(&self, rules: &[DnatRule]) -> bool {
        rules.iter().any(|rule| {
            let last = self
                .last
                .get(&rule.chain)
                .map_or_else(FirstPackets::default, |last| count_of(last, rule.endpoint));
            rule.counted.is_reset_since(last)
        })
    }

    /// The rules of `chain` were written or deleted: its counters began at zero.
    pub fn rewritten(&mut self, chain: ChainName) {
        self.last.remove(&chain);
        if let Some(known) = &mut self.known {
            known.insert(chain);
        }
    }

    /// Drops the totals of `service`'s ports for which `exists` does not hold.
    pub fn retain_ports(&mut self, service: &ServiceName, exists: impl Fn(&ServicePortName) -> bool) {
        let gone: Vec<ServicePortName> =
            self.of_service(service).map(|(port, _)| port).filter(|port| !exists(port)).cloned().collect();
        gone.iter().for_each(|port| self.remove_port(port));
    }

    /// Drops the totals of every port for which `exists` does not hold.
    pub fn retain_all_ports(&mut self, exists: impl Fn(&ServicePortName) -> bool) {
        let gone: Vec<ServicePortName> = self.ports.keys().filter(|port| !exists(port)).cloned().collect();
        gone.iter().for_each(|port| self.remove_port(port));
    }

    fn remove_port(&mut self, port: &ServicePortName) {
        if let Some(total) = self.ports.remove(port) {
            self.departed += total.all;
        }
    }

    /// Drops the totals of endpoints of `port` for which `exists` does not hold; the port's total keeps them.
    pub fn retain_endpoints(&mut self, port: &ServicePortName, exists: impl Fn(&SocketAddr) -> bool) {
        if let Some(total) = self.ports.get_mut(port) {
            total.endpoints.retain(|endpoint, _| exists(endpoint));
        }
    }

    /// The totals of the ports of `service`.
    pub fn of_service<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a ServicePortName, &'a PortTotal)> {
        let first = ServicePortName {
            service: service.clone(),
            port: "".into(),
            protocol: crate::net::Protocol::Tcp,
        };
        self.ports.range(first..).take_while(move |(port, _)| port.service == *service)
    }

    /// The totals of service ports for which anything was counted.
    pub fn ports(&self) -> impl Iterator<Item = (&ServicePortName, &PortTotal)> {
        self.ports.iter()
    }

    /// Everything that was counted, also for service ports that exist no more.
    pub fn all(&self) -> FirstPackets {
        let mut all = self.departed;
        self.ports.values().for_each(|port| all += port.all);
        all
    }
}

fn count_of(reading: &[(SocketAddr, FirstPackets)], endpoint: SocketAddr) -> FirstPackets {
    let at = reading.binary_search_by_key(&endpoint, |(endpoint, _)| *endpoint);
    at.map_or_else(|_| FirstPackets::default(), |at| reading[at].1)
}

#[cfg(test)]
mod tests;
