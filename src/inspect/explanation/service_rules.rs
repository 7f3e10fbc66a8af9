//! What rules hold for one Service: its entries in shared chains, found by their comments, and its chains, found by the
//! hash in their names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::report::{ChainCaller, ChainExplanation, EntryExplanation};
use crate::inspect::labels::{ChainLabels, hash_of};
use crate::iptables::{ChainContent, ChainName, Rule, Ruleset, Table, Target};
use crate::model::ServiceName;
use crate::rules::dispatch::Key;
use crate::rules::names::PortChain;
use crate::rules::ownership::ChainOwner;

/// The most endpoint chains that a report shows of a service port.
const MAX_ENDPOINT_CHAINS: usize = 1_000;
/// The most callers that a report shows of a chain.
const MAX_CALLERS: usize = 4;

/// An entry of the Service in a chain that Services share.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamedEntry<'a> {
    pub table: Table,
    pub chain: ChainName,
    /// The rule's number, from 1.
    pub number: usize,
    /// The service port, `<ns>/<name>[:<port>]`.
    pub service_port: &'a str,
    /// The rest of the comment, as in `cluster IP`; often empty.
    pub what: &'a str,
    pub key: Key,
    pub rule: &'a Rule,
}

impl NamedEntry<'_> {
    /// Whether it accepts packets to the health check node port, which is no frontend.
    pub fn is_health_check(&self) -> bool {
        self.rule.target == Some(Target::Accept)
    }

    /// For reports.
    pub fn explanation(&self) -> EntryExplanation {
        let NamedEntry { table, chain, number, key, .. } = self;
        let action = match &self.rule.target {
            Some(Target::Jump(to) | Target::Goto(to)) => format!("to {to}"),
            Some(Target::Reject) => "reject".to_owned(),
            Some(Target::Drop) => "drop".to_owned(),
            Some(Target::Accept) => "accept".to_owned(),
            _ => "count".to_owned(),
        };
        EntryExplanation { at: format!("{table} {chain} rule {number}"), packets: key.to_string(), action }
    }
}

/// The entries of `service` in the shared chains of `ruleset`, in the order of chains and rules.
pub(super) fn named_entries<'a>(ruleset: &'a Ruleset, service: &ServiceName) -> Vec<NamedEntry<'a>> {
    let service = service.to_string();
    let mut entries = Vec::new();
    for (table, chain, content) in shared_chains(ruleset) {
        for (n, rule) in content.rules.iter().enumerate() {
            let Some((service_port, what)) = rule.comment().map(split_comment) else { continue };
            let is_named = service_port
                .strip_prefix(&service)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
            if let Some(key) = Key::of(rule).filter(|_| is_named) {
                entries.push(NamedEntry { table, chain, number: n + 1, service_port, what, key, rule });
            }
        }
    }
    entries
}

/// The names of all Services that entries in shared chains name, `<ns>/<name>`.
pub(super) fn services_in_rules(ruleset: &Ruleset) -> BTreeSet<&str> {
    let rules = shared_chains(ruleset).flat_map(|(.., content)| &content.rules);
    let entries = rules.filter(|rule| Key::of(rule).is_some());
    let names = entries.filter_map(|rule| Some(split_comment(rule.comment()?).0));
    let services = names.map(|name| name.split_once(':').map_or(name, |(service, _)| service));
    services.filter(|name| name.contains('/')).collect()
}

fn shared_chains(ruleset: &Ruleset) -> impl Iterator<Item = (Table, ChainName, &ChainContent)> {
    [Table::Nat, Table::Filter].into_iter().flat_map(move |table| {
        let chains = ruleset.tables.get(&table).into_iter().flatten();
        let is_shared =
            move |name| matches!(ChainOwner::of(table, name), ChainOwner::Fixed | ChainOwner::Dispatch);
        chains.filter(move |(name, _)| is_shared(name)).map(move |(name, content)| (table, *name, content))
    })
}

/// The service port and the rest of a comment.
pub(super) fn split_comment(comment: &str) -> (&str, &str) {
    comment.split_once(' ').unwrap_or((comment, ""))
}

/// The chains of one service port in nat.
#[derive(Default)]
pub(super) struct PortChains<'a> {
    /// In the order of a packet's way: source ranges, traffic from outside, endpoints of all nodes, of this node.
    pub balancing: Vec<(ChainName, &'a ChainContent)>,
    /// Chains of single endpoints.
    pub endpoints: Vec<(ChainName, &'a ChainContent)>,
}

impl<'a> PortChains<'a> {
    /// The chains whose names have `hash`, and those of endpoints that they lead to.
    pub fn of(ruleset: &'a Ruleset, hash: &str) -> PortChains<'a> {
        let Some(nat) = ruleset.tables.get(&Table::Nat) else { return PortChains::default() };
        let mut chains = PortChains::default();
        for kind in [PortChain::Firewall, PortChain::External, PortChain::Cluster, PortChain::Local] {
            let Some(first) = kind.name_with(hash) else { continue };
            let with_hash =
                nat.range(first..).take_while(|(name, _)| name.as_str().starts_with(first.as_str()));
            chains.balancing.extend(with_hash.map(|(name, content)| (*name, content)));
        }
        let mut endpoints = BTreeSet::new();
        for callee in chains.balancing.iter().flat_map(|(_, content)| &content.rules).filter_map(Rule::callee)
        {
            if ChainOwner::of(Table::Nat, &callee) == ChainOwner::ServicePort(PortChain::Endpoint) {
                endpoints.insert(callee);
            }
        }
        chains.endpoints.extend(endpoints.iter().filter_map(|name| Some((*name, nat.get(name)?))));
        chains
    }

    /// The chains of the service port that an entry of `entries` leads to.
    pub fn of_entries(ruleset: &'a Ruleset, entries: &[NamedEntry<'_>]) -> PortChains<'a> {
        let callees = entries.iter().filter_map(|entry| entry.rule.callee());
        let hash = callees.filter_map(|name| hash_of(&name).map(str::to_owned)).next();
        hash.map(|hash| PortChains::of(ruleset, &hash)).unwrap_or_default()
    }

    /// Where their rules send connections.
    pub fn destinations(&self) -> BTreeSet<SocketAddr> {
        let rules = self.balancing.iter().chain(&self.endpoints).flat_map(|(_, content)| &content.rules);
        rules
            .filter_map(|rule| if let Some(Target::Dnat(to)) = rule.target { Some(to) } else { None })
            .collect()
    }

    /// The part of the balancing chains that balance over endpoints of this node, with their endpoint chains.
    pub fn local(&self) -> PortChains<'a> {
        let local = PortChain::Local.name_with("");
        let is_local =
            |name: &ChainName| local.is_some_and(|local| name.as_str().starts_with(local.as_str()));
        let balancing: Vec<_> = self.balancing.iter().filter(|(name, _)| is_local(name)).copied().collect();
        let callees: BTreeSet<ChainName> =
            balancing.iter().flat_map(|(_, content)| &content.rules).filter_map(Rule::callee).collect();
        let endpoints = self.endpoints.iter().filter(|(name, _)| callees.contains(name)).copied().collect();
        PortChains { balancing, endpoints }
    }

    /// The sources that the chain for source ranges lets through.
    pub fn source_ranges(&self) -> Vec<String> {
        let firewall = PortChain::Firewall.name_with("");
        let is_firewall =
            |name: &ChainName| firewall.is_some_and(|firewall| name.as_str().starts_with(firewall.as_str()));
        let chains = self.balancing.iter().filter(|(name, _)| is_firewall(name));
        let sources = chains.flat_map(|(_, content)| &content.rules).filter_map(|rule| rule.source);
        sources.map(|source| source.value.to_string()).collect()
    }

    fn iter(&self) -> impl Iterator<Item = &(ChainName, &'a ChainContent)> {
        self.balancing.iter().chain(&self.endpoints)
    }
}

/// Which rules of nat lead to the chains of a Service.
pub(super) struct Callers(BTreeMap<ChainName, CallersOfChain>);

#[derive(Default)]
struct CallersOfChain {
    first: Vec<ChainCaller>,
    n: usize,
}

impl Callers {
    /// The callers of the chains of `ports`, found in one pass over the rules.
    pub fn of<'a>(ruleset: &Ruleset, ports: impl Iterator<Item = &'a PortChains<'a>>) -> Callers {
        let names = ports.flat_map(PortChains::iter).map(|(name, _)| (*name, CallersOfChain::default()));
        let mut callers: BTreeMap<ChainName, CallersOfChain> = names.collect();
        for (name, content) in ruleset.tables.get(&Table::Nat).into_iter().flatten() {
            for (n, rule) in content.rules.iter().enumerate() {
                let Some(of_chain) = rule.callee().and_then(|callee| callers.get_mut(&callee)) else {
                    continue;
                };
                of_chain.n += 1;
                if of_chain.first.len() < MAX_CALLERS {
                    of_chain.first.push(ChainCaller { chain: name.to_string(), rule: n + 1 });
                }
            }
        }
        Callers(callers)
    }

    /// The chains of one service port for reports, and how many endpoint chains are left out.
    pub fn explain(&self, chains: &PortChains<'_>) -> (Vec<ChainExplanation>, usize) {
        let labels = ChainLabels::default();
        let explain = |(name, content): &(ChainName, &ChainContent), is_endpoint| {
            let callers = self.0.get(name);
            ChainExplanation {
                table: Table::Nat.to_string(),
                name: name.to_string(),
                role: labels.label(Table::Nat, name, &content.rules).role.to_string(),
                n_rules: content.rules.len(),
                reached_from: callers.map(|callers| callers.first.clone()).unwrap_or_default(),
                n_more_callers: callers.map_or(0, |callers| callers.n - callers.first.len()),
                is_endpoint,
            }
        };
        let endpoints = chains.endpoints.iter().take(MAX_ENDPOINT_CHAINS);
        let all = chains.balancing.iter().map(|chain| explain(chain, false));
        let n_more = chains.endpoints.len().saturating_sub(MAX_ENDPOINT_CHAINS);
        (all.chain(endpoints.map(|chain| explain(chain, true))).collect(), n_more)
    }
}
