//! The shared chains: which service port a packet is for.
//!
//! classic holds one rule for each entry, in the order of service ports. compact holds the same rules
//! as the leaves of a tree over address, protocol and port, so that a packet meets few of them.

mod tree;

use super::layout::Layout;
use super::names::{self, PortChain};
use super::shared::SharedChain;
use super::{Settings, fixed};
use crate::iptables::{ChainName, Rule, Table};

pub use super::shared::Key;

/// What stands in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The entry of this number.
    Entry(usize),
    /// A rule that is nobody's.
    Rule(Box<Rule>),
}

/// A chain that is shared, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPart {
    /// Its name.
    pub name: ChainName,
    /// What stands in it.
    pub parts: Vec<Part>,
}

/// The shared chain `chain` and those that lead on from it, callees before callers: itself last.
/// `keys` are those of its entries, in the order of their service ports.
pub fn shared_chains(
    settings: &Settings,
    layout: Layout,
    chain: SharedChain,
    keys: &[Key],
) -> Vec<SharedPart> {
    // Of a refused external IP and a refused node port of the same address and port, the first is
    // meant. kube-proxy's order is random here.
    let (addresses, node_ports): (Vec<usize>, Vec<usize>) = match chain {
        SharedChain::FilterExternalServices => (0..keys.len()).partition(|n| keys[*n].ip.is_some()),
        _ => ((0..keys.len()).collect(), Vec::new()),
    };
    let mut parts = Vec::new();
    let mut root = Vec::new();
    for entries in [addresses, node_ports] {
        match layout {
            Layout::Classic { .. } => root.extend(entries.into_iter().map(Part::Entry)),
            Layout::Compact => root.extend(tree::grow(settings.family, chain, keys, entries, &mut parts)),
        }
    }
    if chain == SharedChain::NatServices {
        let tail = fixed::node_ports_tail(settings).into_iter();
        root.extend(tail.map(|rule| Part::Rule(Box::new(rule))));
    }
    parts.push(SharedPart { name: chain.name(), parts: root });
    parts
}

/// What the names of the chains behind `chain` begin with.
fn stem(chain: SharedChain) -> String {
    let kind = match chain {
        // kube-proxy removes these chains when it starts: its own have that prefix.
        SharedChain::NatServices | SharedChain::NatNodePorts => PortChain::External,
        SharedChain::FilterExternalServices => PortChain::External,
        SharedChain::FilterServices => PortChain::Cluster,
        SharedChain::FilterNodePorts => PortChain::Local,
        SharedChain::FilterFirewall => PortChain::Firewall,
    };
    format!("{}{}", kind.prefix(), names::DISPATCH_DIGIT)
}

/// Whether chains go on to others with `-g`, so that a packet for nobody is back in the first chain
/// at once. Not in filter, where old and new rules stand together for a moment: whatever order they
/// are in, all that apply have to be met.
fn goes_on_by_goto(chain: SharedChain) -> bool {
    chain.table() == Table::Nat
}

#[cfg(test)]
mod tests;
