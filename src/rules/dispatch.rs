//! The shared chains, which find the service port of a packet.
//!
//! In classic they are lists of entries, in the order of service ports. In compact the same entries are
//! the leaves of a tree over address, protocol and port, so that a packet meets few of them.

mod prefix_tree;

use super::layout::Layout;
use super::names::{self, PortChain};
use super::shared_chain::SharedChain;
use super::{Settings, fixed};
use crate::iptables::{ChainName, Rule, Table};

pub use super::shared_chain::Key;

/// A rule of a shared chain or of a chain behind one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The entry with this index.
    Entry(usize),
    /// An internal dispatch rule, not an entry of a service port.
    Rule(Box<Rule>),
}

/// A shared chain, or a chain of the compact layout behind one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPart {
    /// Its name.
    pub name: ChainName,
    /// Its rules.
    pub parts: Vec<Part>,
}

/// The shared chain `chain` and the chains behind it, callees before callers: itself last. `keys` are
/// those of its entries, in the order of their service ports.
pub fn shared_chains(
    settings: &Settings,
    layout: Layout,
    chain: SharedChain,
    keys: &[Key],
) -> Vec<SharedPart> {
    // An unserved external IP comes before an unserved node port of the same address and port.
    // kube-proxy's order is random here.
    let (addresses, node_ports): (Vec<usize>, Vec<usize>) = match chain {
        SharedChain::FilterExternalServices => (0..keys.len()).partition(|n| keys[*n].ip.is_some()),
        _ => ((0..keys.len()).collect(), Vec::new()),
    };
    let mut parts = Vec::new();
    let mut root = Vec::new();
    for entries in [addresses, node_ports] {
        match layout {
            Layout::Classic { .. } => root.extend(entries.into_iter().map(Part::Entry)),
            Layout::Compact => {
                root.extend(prefix_tree::grow(settings.family, chain, keys, entries, &mut parts))
            }
        }
    }
    if chain == SharedChain::NatServices {
        let tail = fixed::node_ports_tail(settings).into_iter();
        root.extend(tail.map(|rule| Part::Rule(Box::new(rule))));
    }
    parts.push(SharedPart { name: chain.name(), parts: root });
    parts
}

/// The shared chain that is called `name`, or behind which a dispatch chain of that name stands; of two whose names
/// begin alike the first.
pub fn shared_chain_of(table: Table, name: &ChainName) -> Option<SharedChain> {
    let in_table = || SharedChain::ALL.into_iter().filter(|chain| chain.table() == table);
    let is_behind = |chain: &SharedChain| name.as_str().starts_with(&stem(*chain));
    in_table().find(|chain| chain.name() == *name).or_else(|| in_table().find(is_behind))
}

/// The beginning of the names of the chains behind `chain`.
fn stem(chain: SharedChain) -> String {
    let kind = match chain {
        // kube-proxy removes these chains when it starts: the prefix is its own.
        SharedChain::NatServices | SharedChain::NatNodePorts => PortChain::External,
        SharedChain::FilterExternalServices => PortChain::External,
        SharedChain::FilterServices => PortChain::Cluster,
        SharedChain::FilterNodePorts => PortChain::Local,
        SharedChain::FilterFirewall => PortChain::Firewall,
    };
    format!("{}{}", kind.prefix(), names::DISPATCH_DIGIT)
}

/// Whether the chain `name` of `table` is `chain`, or one of the compact layout behind it.
pub fn leads_to(chain: SharedChain, table: Table, name: &ChainName) -> bool {
    table == chain.table() && (*name == chain.name() || name.as_str().starts_with(&stem(chain)))
}

/// Whether chains lead to others with `-g`, so that a packet without an entry returns to the first chain
/// at once. Not in filter, where old and new rules are in force together for a moment: a packet has
/// to meet all that apply, whatever their order.
fn uses_goto(chain: SharedChain) -> bool {
    chain.table() == Table::Nat
}

#[cfg(test)]
mod tests;
