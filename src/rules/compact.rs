//! The compact layout (design.md 2): what a service port's own chains hold.
//!
//! Balancing chains translate directly; one rule in `KUBE-POSTROUTING` masquerades hairpins, where
//! classic has one for each endpoint. Only ports with session affinity keep a chain for each
//! endpoint, for its `recent` list; and every port does where the kernel has no `bpf` match to tell a
//! hairpin by. The chains for traffic from outside are classic's, without their comments.

mod balance;

use super::Settings;
use super::classic::ChainWriter;
use super::names::PortChain;
use crate::iptables::{Chain, Match, Rule};
use crate::model::ServicePort;
use crate::policy::Selection;

/// The chains of `port`, callees before callers; none without endpoints.
pub fn chains(settings: &Settings, port: &ServicePort<'_>, selection: &Selection<'_>) -> Vec<Chain> {
    let writer = ChainWriter::new(settings, port, selection, true);
    let mut chains = Vec::new();
    let has_endpoint_chains = !settings.bpf || port.service.affinity_seconds.is_some();
    if has_endpoint_chains {
        chains.extend(selection.reachable().into_iter().map(|endpoint| {
            let mut chain = writer.endpoint_chain(endpoint);
            if settings.bpf {
                chain.rules.retain(|rule| rule.source.is_none());
            }
            chain
        }));
    }
    for (kind, endpoints) in [(PortChain::Local, &selection.local), (PortChain::Cluster, &selection.cluster)]
    {
        if !endpoints.is_empty() {
            balance::push_chains(&writer, kind, endpoints, has_endpoint_chains, &mut chains);
        }
    }
    chains.extend(writer.outer_chains());
    for Chain { rules, .. } in &mut chains {
        rules.iter_mut().for_each(drop_comments);
        // classic's last rule of a `KUBE-FW-` chain is a comment and nothing else.
        rules.retain(|rule| *rule != Rule::default());
    }
    chains
}

/// A comment costs 256 bytes of kernel memory in the legacy back-end.
fn drop_comments(rule: &mut Rule) {
    rule.matches.retain(|part| !matches!(part, Match::Comment(_)));
}

#[cfg(test)]
mod tests;
