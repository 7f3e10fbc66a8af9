//! What a node's rules are: the fixed chains, and for each service port its own chains and its entries in
//! the shared chains, laid out in one of two ways ([`Layout`]). Every `KUBE-` word is in this module.

pub mod advice;
pub mod classic;
pub mod compact;
pub mod dispatch;
pub mod fixed;
mod layout;
pub mod names;
pub mod overlap;
pub mod ownership;
mod settings;

pub use layout::{LARGE_CLUSTER_ENDPOINTS, Layout, SMALL_CLUSTER_ENDPOINTS};
pub use settings::{Detector, NodePorts, Settings};

use crate::iptables::{Chain, ChainName, Rule, Table};
use crate::model::ServicePort;
use crate::policy::{Selection, Verdicts};

/// A chain in which every service port may have entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SharedChain {
    /// filter `KUBE-SERVICES`: rejected and dropped cluster IPs.
    FilterServices,
    /// filter `KUBE-EXTERNAL-SERVICES`: rejected and dropped external addresses and node ports.
    FilterExternalServices,
    /// filter `KUBE-NODEPORTS`: accepted health check node ports.
    FilterNodePorts,
    /// filter `KUBE-PROXY-FIREWALL`: dropped sources of load balancer addresses.
    FilterFirewall,
    /// nat `KUBE-SERVICES`: dispatch by address.
    NatServices,
    /// nat `KUBE-NODEPORTS`: dispatch by node port.
    NatNodePorts,
}

impl SharedChain {
    /// All of them.
    pub const ALL: [SharedChain; 6] = [
        SharedChain::FilterServices,
        SharedChain::FilterExternalServices,
        SharedChain::FilterNodePorts,
        SharedChain::FilterFirewall,
        SharedChain::NatServices,
        SharedChain::NatNodePorts,
    ];

    /// Its table.
    pub fn table(self) -> Table {
        match self {
            SharedChain::NatServices | SharedChain::NatNodePorts => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// Its name.
    pub fn name(self) -> ChainName {
        match self {
            SharedChain::FilterServices | SharedChain::NatServices => names::KUBE_SERVICES,
            SharedChain::FilterExternalServices => names::KUBE_EXTERNAL_SERVICES,
            SharedChain::FilterNodePorts | SharedChain::NatNodePorts => names::KUBE_NODEPORTS,
            SharedChain::FilterFirewall => names::KUBE_PROXY_FIREWALL,
        }
    }
}

/// One rule in a shared chain.
pub type Entry = (SharedChain, Rule);

/// The chains of `port`, callees before callers; none without endpoints.
pub fn chains(
    settings: &Settings,
    layout: Layout,
    port: &ServicePort<'_>,
    selection: &Selection<'_>,
) -> Vec<Chain> {
    match layout {
        Layout::Classic { is_large } => classic::chains(settings, port, selection, is_large),
        Layout::Compact => compact::chains(settings, port, selection),
    }
}

/// The entries of `port` in the shared chains; the same in both layouts.
pub fn entries(settings: &Settings, port: &ServicePort<'_>, verdicts: Verdicts) -> Vec<Entry> {
    classic::entries(settings, port, verdicts)
}

#[cfg(test)]
mod tests;
