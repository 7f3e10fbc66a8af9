//! Which rules of long chains a packet can match, by its addresses and ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::iptables::{
    ChainContent, ChainName, L4Protocol, Match, MaybeNot, PortRange, Rule, Ruleset, Table,
};
use crate::net::{Cidr, Protocol};

/// Shorter chains are walked rule by rule.
const LONG: usize = 48;

/// The index of all long chains of a ruleset.
#[derive(Debug, Default)]
pub(super) struct RuleIndex {
    chains: BTreeMap<(Table, ChainName), ChainIndex>,
}

impl RuleIndex {
    pub(super) fn of(ruleset: &Ruleset) -> RuleIndex {
        let chains = ruleset.tables.iter().flat_map(|(table, chains)| {
            let long = chains.iter().filter(|(_, chain)| chain.rules.len() >= LONG);
            long.map(|(name, chain)| ((*table, *name), ChainIndex::of(&chain.rules)))
        });
        RuleIndex { chains: chains.collect() }
    }

    /// The index of `chain`, which has this name; `None` for a short one.
    pub(super) fn chain(&self, table: Table, name: ChainName, chain: &ChainContent) -> Option<&ChainIndex> {
        if chain.rules.len() < LONG { None } else { self.chains.get(&(table, name)) }
    }
}

/// Indexes of a chain's rules, each in one of the lists, ascending. A rule in a list of the first three fits
/// only packets that have its key.
#[derive(Debug, Default)]
pub(super) struct ChainIndex {
    by_destination: BTreeMap<IpAddr, Vec<usize>>,
    by_port: BTreeMap<(Protocol, u16), Vec<usize>>,
    by_source: BTreeMap<IpAddr, Vec<usize>>,
    others: Vec<usize>,
}

impl ChainIndex {
    fn of(rules: &[Rule]) -> ChainIndex {
        let mut index = ChainIndex::default();
        for (at, rule) in rules.iter().enumerate() {
            let list = if let Some(ip) = only_address(&rule.destination) {
                index.by_destination.entry(ip).or_default()
            } else if let Some(key) = only_port(rule) {
                index.by_port.entry(key).or_default()
            } else if let Some(ip) = only_address(&rule.source) {
                index.by_source.entry(ip).or_default()
            } else {
                &mut index.others
            };
            list.push(at);
        }
        index
    }

    /// The index of the first rule from `start` on that a packet with these addresses may fit; `None` if no
    /// more does.
    pub(super) fn next(
        &self,
        start: usize,
        source: SocketAddr,
        destination: SocketAddr,
        protocol: Protocol,
    ) -> Option<usize> {
        let lists = [
            self.by_destination.get(&destination.ip()),
            self.by_port.get(&(protocol, destination.port())),
            self.by_source.get(&source.ip()),
            Some(&self.others),
        ];
        let first = |list: &Vec<usize>| list.get(list.partition_point(|at| *at < start)).copied();
        lists.into_iter().flatten().filter_map(first).min()
    }
}

/// The one address that fits.
fn only_address(part: &Option<MaybeNot<Cidr>>) -> Option<IpAddr> {
    let MaybeNot { negated: false, value } = part.as_ref()? else { return None };
    (*value == Cidr::host(value.address())).then(|| value.address())
}

/// The one destination port that fits, of the rule's protocol. A match before it that splits the walk or adds
/// to a list does so for all ports.
fn only_port(rule: &Rule) -> Option<(Protocol, u16)> {
    let Some(MaybeNot { negated: false, value: L4Protocol::Service(protocol) }) = rule.protocol else {
        return None;
    };
    let first =
        |part: &&Match| !matches!(part, Match::Random { .. } | Match::Recent { .. } | Match::Other { .. });
    rule.matches.iter().take_while(first).find_map(|part| match part {
        Match::L4 { protocol: module, destination_ports: Some(PortRange { first, last }) }
            if *module == protocol && first == last =>
        {
            Some((protocol, *first))
        }
        _ => None,
    })
}
