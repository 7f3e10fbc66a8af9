//! What a node's rules are: the fixed chains, and for each service port its own chains and its entries in
//! the shared chains, laid out in one of two ways ([`Layout`]). Every `KUBE-` word is in this module.

mod classic;
mod compact;
mod config_warnings;
pub mod dispatch;
mod entries;
mod external;
pub mod fixed;
mod layout;
pub mod names;
pub mod overlap;
pub mod ownership;
mod port_context;
mod settings;
mod shared_chain;

pub use config_warnings::config_warnings;
pub use layout::{LARGE_CLUSTER_ENDPOINTS, Layout, SMALL_CLUSTER_ENDPOINTS};
pub use settings::{Detector, NodePorts, Settings};
pub use shared_chain::{Entry, SharedChain};

use port_context::PortContext;

use crate::iptables::Chain;
use crate::model::ServicePort;
use crate::policy::{Selection, Verdicts};

/// The chains of `port`, callees before callers; none without endpoints.
pub fn chains(
    settings: &Settings,
    layout: Layout,
    port: &ServicePort<'_>,
    selection: &Selection<'_>,
) -> Vec<Chain> {
    let port = PortContext::new(settings, port, selection.verdicts(port));
    match layout {
        Layout::Classic { is_large } => classic::chains(&port, selection, is_large),
        Layout::Compact => compact::chains(&port, selection),
    }
}

/// The entries of `port` in the shared chains; the same in both layouts.
pub fn entries(settings: &Settings, port: &ServicePort<'_>, verdicts: Verdicts) -> Vec<Entry> {
    entries::entries(&PortContext::new(settings, port, verdicts))
}

#[cfg(test)]
mod tests;
