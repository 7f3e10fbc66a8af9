//! Who is told what the loop does: metrics, health, events, conntrack, the log.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::apply::{Quarantine, SyncReport};
use crate::compile::{Compiled, View};
use crate::flows::StaleReason;
use crate::model::{Node, ObjectKind, Touched};
use crate::net::IpFamily;
use crate::rules::Settings;

/// Is told what the loop does, as it happens.
///
/// Called on the loop's own threads, `synced` for both families at the same time: it must be quick
/// and wait for nothing, so work that may take long goes to a thread or task of the observer's own.
/// Whoever lags behind has to bound what it keeps.
pub trait Observer: Send + Sync {
    /// The loop begins, and will sync these families.
    fn started(&self, families: &[IpFamily]) {
        let _ = families;
    }

    /// Something was heard of the cluster.
    fn changed(&self, news: &News<'_>) {
        let _ = news;
    }

    /// So many fields of objects of `kind` cannot be used now.
    fn problems(&self, kind: ObjectKind, n: usize) {
        let _ = (kind, n);
    }

    /// The kernel remembers no more clients of `n` endpoints of `family` with session affinity.
    fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        let _ = (family, n);
    }

    /// A change asks for a sync of `family`.
    fn queued(&self, family: IpFamily) {
        let _ = family;
    }

    /// A sync of `family` begins. Everything that was told before is in the snapshot that it sees;
    /// nothing more is told of the cluster before it has ended.
    fn syncing(&self, family: IpFamily) {
        let _ = family;
    }

    /// A sync of a family ended, well or not. Nothing in the snapshot has changed since it began.
    fn synced(&self, synced: &Synced<'_>) {
        let _ = synced;
    }

    /// Something about this node was noticed.
    fn noticed(&self, finding: &Finding) {
        let _ = finding;
    }

    /// Conntrack was looked through for stale flows of a family.
    fn swept(&self, sweep: &Sweep) {
        let _ = sweep;
    }
}

/// Something about this node that whoever looks after it should know. Each is noticed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Rules of another mode or back-end were there, and are removed: which.
    LeftoverRemoved(String),
    /// Something of another mode or back-end is there and stays.
    LeftoverStays {
        /// What.
        what: String,
        /// What can be done about it.
        advice: String,
    },
    /// Somebody else programs Services on this node: how that is known.
    Rival(String),
    /// A kernel parameter could not be set; the kernel has what it had.
    ParameterUnset {
        /// Its path below `/proc/sys`, or `module/...` below `/sys`.
        key: String,
        /// What it was to be.
        value: u64,
        /// What the kernel said.
        error: String,
    },
    /// iptables of one family cannot be used: its Services are not served until the next start.
    FamilyNotProxied {
        /// Which.
        family: IpFamily,
        /// Why.
        error: String,
    },
    /// Node ports do not answer on 127.0.0.1, although they are configured to.
    NoLocalhostNodePorts,
}

impl Finding {
    /// As metrics and events name its kind.
    pub fn as_str(&self) -> &'static str {
        match self {
            Finding::LeftoverRemoved(_) => "LeftoverRemoved",
            Finding::LeftoverStays { .. } => "LeftoverStays",
            Finding::Rival(_) => "SecondProxy",
            Finding::ParameterUnset { .. } => "ParameterUnset",
            Finding::FamilyNotProxied { .. } => "FamilyNotProxied",
            Finding::NoLocalhostNodePorts => "NoLocalhostNodePorts",
        }
    }

    /// Whether somebody has to see to it.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Finding::LeftoverRemoved(_))
    }
}

/// In a sentence.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::LeftoverRemoved(what) => write!(f, "removed what another proxy had left: {what}"),
            Finding::LeftoverStays { what, advice } => write!(f, "found {what}, which stays: {advice}"),
            Finding::Rival(evidence) => {
                write!(f, "another kube-proxy or Chainsmith seems to program this node: {evidence}")
            }
            Finding::ParameterUnset { key, value, error } => {
                write!(f, "cannot set kernel parameter {key} to {value}: {error}")
            }
            Finding::FamilyNotProxied { family, error } => {
                write!(f, "{family} Services are not served: {error}")
            }
            Finding::NoLocalhostNodePorts => f.write_str("node ports do not answer on 127.0.0.1"),
        }
    }
}

/// What was heard of the cluster.
#[derive(Debug)]
pub struct News<'a> {
    /// What it touched.
    pub touched: &'a Touched,
    /// Services that it reports, changed or not; see [`Snapshot::count_reported`](crate::model::Snapshot::count_reported).
    pub n_services: usize,
    /// Slices that it reports, likewise.
    pub n_slices: usize,
    /// This node's Node as it is now, also when nothing of it changed; the last one seen, when it was
    /// deleted.
    pub node: Option<&'a Node>,
    /// Whether all objects are known: rules are in force, or are being written.
    pub is_listed: bool,
}

/// A sync of one family that ended.
pub struct Synced<'a> {
    /// What it did.
    pub report: &'a SyncReport,
    /// The cluster it was about, and the node.
    pub view: View<'a>,
    /// What its rules depend on beside the objects.
    pub settings: &'a Settings,
    /// Service ports that are quarantined now.
    pub quarantine: &'a Quarantine,
    /// The service ports of the family.
    pub compiled: &'a Compiled,
    /// How long it took.
    pub elapsed: Duration,
}

/// The result of one sweep of a family's flows in conntrack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// The family.
    pub family: IpFamily,
    /// Its duration.
    pub elapsed: Duration,
    /// UDP flows seen.
    pub n_seen: usize,
    /// Flows deleted, by reason.
    pub deleted: BTreeMap<StaleReason, usize>,
    /// Flows that the kernel did not delete.
    pub n_failed: usize,
    /// The kernel's error number for the first of them.
    pub first_error: Option<i32>,
    /// Whether the table was resized again and again meanwhile, so that some flows may not have been seen.
    pub is_incomplete: bool,
}

impl Sweep {
    /// All flows deleted.
    pub fn n_deleted(&self) -> usize {
        self.deleted.values().sum()
    }

    /// Whether no stale flow is left.
    pub fn is_complete(&self) -> bool {
        self.n_failed == 0 && !self.is_incomplete
    }
}
