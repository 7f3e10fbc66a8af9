//! What the loop is built from, what wakes it, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::observer::Observer;
use crate::apply::{FamilySync, Quarantine};
use crate::config::Config;
use crate::drift::Knowledge;
use crate::kernel::Iptables;
use crate::model::Snapshot;
use crate::model::host::Host;
use crate::net::IpFamily;
use crate::rules::{Layout, Settings};
use crate::watch::WatchEvent;

/// Whatever wakes the loop.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum LoopEvent {
    /// The cluster changed, or a first list is complete.
    Watch(WatchEvent),
    /// Another process flushed the tables of a family.
    TablesFlushed(IpFamily),
    /// A process, perhaps this one, committed to nf_tables; the ruleset's generation if it is known.
    TablesWritten(Option<u32>),
    /// The node's addresses may have changed.
    AddressesChanged,
    /// It is time to check the kernel's tables for drift, or to audit them.
    DriftCheckDue,
    /// A sync may start: the minimum period has passed since the last one.
    SyncDue,
    /// It is time to retry a failed sync.
    RetryDue,
    /// The Node has no addresses or pod CIDRs by the end of the wait for them.
    NodeWaitOver,
    /// A question about the node's rules needs what the loop knows.
    Asked(ViewRequest),
    /// The process is to exit.
    Shutdown,
}

/// Receives what the loop knows.
pub type ViewRequest = oneshot::Sender<LoopView>;

/// What the loop knows, for questions about the node's rules. During a sync, what it knew at the start of it.
#[derive(Clone, Debug)]
pub struct LoopView {
    /// The cluster. A copy that is kept while objects change costs the loop a copy of all of them.
    pub snapshot: Arc<Snapshot>,
    /// This node's name.
    pub node_name: Arc<str>,
    /// The families that are proxied.
    pub families: Vec<LoopFamily>,
    /// Whether the first lists are complete.
    pub is_listed: bool,
}

/// What the loop knows of one family.
#[derive(Clone, Debug)]
pub struct LoopFamily {
    /// The family.
    pub family: IpFamily,
    /// The inputs of rule generation other than Services and endpoints; `None` before the first sync.
    pub settings: Option<Settings>,
    /// The layout of the rules in force, or of those that are about to be.
    pub layout: Layout,
    /// Quarantined service ports.
    pub quarantine: Quarantine,
    /// What is known of the kernel's tables.
    pub knowledge: Knowledge,
}

impl LoopFamily {
    /// What `sync` knows.
    pub(super) fn of<K: Iptables>(sync: &mut FamilySync<K>) -> LoopFamily {
        LoopFamily {
            family: sync.family(),
            settings: sync.settings().cloned(),
            layout: sync.layout(),
            quarantine: sync.quarantine().clone(),
            knowledge: sync.tables().knowledge(),
        }
    }
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum LoopEnd {
    /// The process is to exit.
    Shutdown,
    /// The Node's pod CIDRs changed, on which all rules depend in mode NodeCIDR: the process starts again.
    PodCidrsChanged,
    /// Mode NodeCIDR, and the Node got no pod CIDRs in time.
    NoPodCidrs,
    /// No source of changes is left.
    SourcesGone,
}

/// Looks up the host's facts; called before each sync, and when its addresses may have changed. Facts that cannot
/// be looked up are as they were last known.
pub type HostSource = Arc<dyn Fn() -> Host + Send + Sync>;

/// What the loop is built from.
pub struct LoopParts<K> {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// This node's name.
    pub node_name: Arc<str>,
    /// The host's facts.
    pub host: HostSource,
    /// The tables, one family each.
    pub kernels: Vec<K>,
    /// The observers, in the order in which they are notified.
    pub observers: Vec<Arc<dyn Observer>>,
    /// How long the first sync waits for fields of the Node.
    pub node_wait: NodeWait,
    /// Whether commits to the tables are notified; otherwise the tables are checked every second.
    pub is_notified: bool,
}

/// What the loop receives from.
pub struct LoopInputs {
    /// The cluster.
    pub watch: mpsc::Receiver<WatchEvent>,
    /// Families whose canary chain is gone.
    pub flushed: mpsc::Receiver<IpFamily>,
    /// Commits to nf_tables, by generation; `None` when some were missed.
    pub written: mpsc::Receiver<Option<u32>>,
    /// Changes of the node's addresses, a few a second at most.
    pub addresses: mpsc::Receiver<()>,
    /// Requests for what the loop knows.
    pub questions: mpsc::Receiver<ViewRequest>,
    /// Set when the process is to exit.
    pub shutdown: watch::Receiver<bool>,
}

/// How long the first sync waits for fields that the Node does not have yet, from when the Node is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeWait {
    /// For its addresses; then the loop goes on without.
    pub addresses: Duration,
    /// In mode NodeCIDR, for its pod CIDRs; then the process exits.
    pub pod_cidrs: Duration,
}

impl NodeWait {
    /// As kube-proxy v1.36 waits for a cluster's control plane.
    pub const CLUSTER: NodeWait =
        NodeWait { addresses: Duration::from_secs(30), pod_cidrs: Duration::from_secs(5 * 60) };
    /// For sources in which no controller writes a Node's status.
    pub const NONE: NodeWait = NodeWait { addresses: Duration::ZERO, pod_cidrs: Duration::ZERO };
}
