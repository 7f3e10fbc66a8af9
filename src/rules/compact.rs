//! The compact layout (design.md 2): what a service port's own chains hold.
//!
//! Balancing chains have the DNAT rules; one rule in `KUBE-POSTROUTING` masquerades hairpins, where
//! classic has one for each endpoint. Only ports with session affinity keep a chain for each
//! endpoint, for its `recent` list; and every port does where the kernel has no `bpf` match for
//! hairpins.

mod balance;

use super::names::PortChain;
use super::port_context::PortContext;
use super::{classic, external};
use crate::iptables::{Chain, Match, Rule};
use crate::policy::Selection;

/// The chains of `port`, callees before callers; none without endpoints.
pub(super) fn chains(port: &PortContext<'_>, selection: &Selection<'_>) -> Vec<Chain> {
    let mut chains = Vec::new();
    let has_endpoint_chains = !port.settings.bpf || port.affinity_seconds().is_some();
    if has_endpoint_chains {
        chains.extend(selection.reachable().into_iter().map(|endpoint| {
            let name = port.names.endpoint_at(endpoint.address);
            let mut chain = classic::endpoint_chain(port, endpoint, name, None);
            if port.settings.bpf {
                chain.rules.retain(|rule| rule.source.is_none());
            }
            chain
        }));
    }
    for (kind, endpoints) in [(PortChain::Local, &selection.local), (PortChain::Cluster, &selection.cluster)]
    {
        if !endpoints.is_empty() {
            balance::push_chains(port, kind, endpoints, has_endpoint_chains, &mut chains);
        }
    }
    chains.extend(external::chains(port));
    for Chain { rules, .. } in &mut chains {
        rules.iter_mut().for_each(drop_comments);
        // The last rule of a `KUBE-FW-` chain is a comment and nothing else.
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
