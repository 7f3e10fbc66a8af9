//! The classic layout: kube-proxy's own rules, to the byte. A chain for each endpoint, and balancing
//! chains that jump to them.
//!
//! Source: kube-proxy v1.36 as described in `ruleset.md` 6; the order of the rules of a service port
//! is part of it.

use std::sync::Arc;

use super::external;
use super::names::{self, PortChain};
use super::port_context::PortContext;
use crate::iptables::{Chain, ChainName, L4Protocol, Match, MaybeNot, RecentAction, Rule, Table, Target};
use crate::model::Endpoint;
use crate::net::{self, Cidr};
use crate::policy::Selection;

/// The chains of `port`, callees before callers; none without endpoints.
///
/// `is_large` omits the comments in rules for endpoints, as kube-proxy does in a large cluster.
pub(super) fn chains(port: &PortContext<'_>, selection: &Selection<'_>, is_large: bool) -> Vec<Chain> {
    let writer = ClassicWriter { port, is_large };
    let targets = writer.targets(&selection.reachable());
    let mut chains: Vec<Chain> = Vec::with_capacity(targets.len() + 2);
    let comment: Option<Arc<str>> = (!is_large).then(|| port.names.text().into());
    chains.extend(targets.iter().map(|to| endpoint_chain(port, to.endpoint, to.chain, comment.as_ref())));
    for (kind, endpoints) in [(PortChain::Local, &selection.local), (PortChain::Cluster, &selection.cluster)]
    {
        if !endpoints.is_empty() {
            chains.push(writer.balancing_chain(kind, endpoints, &targets));
        }
    }
    chains.extend(external::chains(port));
    chains
}

/// The chain `name` that sends a connection to `endpoint`.
pub(super) fn endpoint_chain(
    port: &PortContext<'_>,
    endpoint: Endpoint<'_>,
    name: ChainName,
    comment: Option<&Arc<str>>,
) -> Chain {
    let matches = |n_more: usize| {
        let mut matches = Vec::with_capacity(1 + n_more);
        matches.extend(comment.cloned().map(Match::Comment));
        matches
    };
    let hairpin = Rule {
        source: Some(MaybeNot::is(Cidr::host(endpoint.address.ip()))),
        matches: matches(0),
        target: Some(Target::Jump(names::KUBE_MARK_MASQ)),
        ..Rule::default()
    };
    let protocol = port.protocol();
    let mut dnat = Rule {
        protocol: Some(MaybeNot::is(L4Protocol::Service(protocol))),
        matches: matches(2),
        target: Some(Target::Dnat(endpoint.address)),
        ..Rule::default()
    };
    if port.affinity_seconds().is_some() {
        dnat.matches.push(Match::Recent { action: RecentAction::Set, list: name });
    }
    dnat.matches.push(Match::L4 { protocol, destination_ports: None });
    Chain { table: Table::Nat, name, rules: vec![hairpin, dnat] }
}

struct ClassicWriter<'a> {
    port: &'a PortContext<'a>,
    is_large: bool,
}

/// An endpoint with its text and its chain.
struct EndpointTarget<'a> {
    endpoint: Endpoint<'a>,
    /// `<ip>:<port>` or `[<ip6>]:<port>`.
    text: String,
    chain: ChainName,
}

impl ClassicWriter<'_> {
    /// `endpoints` in the order of rules: that of their texts, byte by byte.
    fn targets<'e>(&self, endpoints: &[Endpoint<'e>]) -> Vec<EndpointTarget<'e>> {
        let mut targets: Vec<EndpointTarget<'e>> = endpoints
            .iter()
            .map(|endpoint| {
                let mut text = String::with_capacity("255.255.255.255:65535".len());
                net::push_socket(&mut text, endpoint.address);
                EndpointTarget { endpoint: *endpoint, chain: self.port.names.endpoint(&text), text }
            })
            .collect();
        targets.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        targets
    }

    /// The chain that picks one of `endpoints`, all with the same probability. `targets` holds every
    /// endpoint, in the order of rules.
    fn balancing_chain(
        &self,
        kind: PortChain,
        endpoints: &[Endpoint<'_>],
        targets: &[EndpointTarget<'_>],
    ) -> Chain {
        let is_in = |to: &&EndpointTarget<'_>| {
            endpoints.len() == targets.len()
                || endpoints.binary_search_by_key(&to.endpoint.address, |endpoint| endpoint.address).is_ok()
        };
        let chosen: Vec<&EndpointTarget<'_>> = targets.iter().filter(is_in).collect();
        let comments: Vec<Arc<str>> = match self.is_large {
            true => Vec::new(),
            false => {
                chosen.iter().map(|to| format!("{} -> {}", self.port.names.text(), to.text).into()).collect()
            }
        };
        let rule = |n: usize, extra: Option<Match>| {
            let mut matches = Vec::with_capacity(2);
            matches.extend(comments.get(n).cloned().map(Match::Comment));
            matches.extend(extra);
            Rule { matches, target: Some(Target::Jump(chosen[n].chain)), ..Rule::default() }
        };
        let mut rules = Vec::with_capacity(1 + chosen.len());
        rules.extend(external::masquerade_rule(self.port, kind));
        if let Some(seconds) = self.port.affinity_seconds() {
            rules.extend(chosen.iter().enumerate().map(|(n, to)| {
                rule(n, Some(Match::Recent { action: RecentAction::Check { seconds }, list: to.chain }))
            }));
        }
        rules.extend((0..chosen.len()).map(|n| rule(n, one_of(chosen.len() - n))));
        self.port.chain(kind, rules)
    }
}

/// Matches one packet in `n`; `None` for the last endpoint, which needs no match.
///
/// kube-proxy writes 1/n with ten decimals, and the kernel keeps that in units of 2^-31: both
/// roundings are part of the rule.
fn one_of(n: usize) -> Option<Match> {
    if n == 1 {
        return None;
    }
    let decimals = (1e10 / n as f64).round() / 1e10;
    let threshold = (decimals * f64::from(1u32 << 31)).round() as u32;
    Some(Match::Random { threshold })
}

#[cfg(test)]
mod tests;
