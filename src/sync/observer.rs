//! The loop's interface to its observers: metrics, health, events, conntrack, affinity lists, the log.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::apply::{Quarantine, SyncReport};
use crate::compile::{Compiled, View};
use crate::flows::StaleReason;
use crate::model::{Node, ObjectKind, Problem, Touched};
use crate::net::IpFamily;
use crate::rules::Settings;

/// Observes what the loop does, as it happens.
///
/// The loop calls it on its own threads, `synced` for both families at the same time. A call must be quick and must
/// not block: longer work belongs to a task of the observer, with a bound on what it keeps.
pub trait Observer: Send + Sync {
    /// The loop starts, and will sync these families.
    fn started(&self, families: &[IpFamily]) {
        let _ = families;
    }

    /// The API server, or a folder of manifests, reported objects.
    fn changed(&self, news: &News<'_>) {
        let _ = news;
    }

    /// `n` fields of objects of `kind` are not usable now; the `first` problems.
    fn problems(&self, kind: ObjectKind, n: usize, first: &[Problem]) {
        let _ = (kind, n, first);
    }

    /// The affinity lists of `n` endpoints of `family` are full.
    fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        let _ = (family, n);
    }

    /// A sync of `family` is due for a change.
    fn queued(&self, family: IpFamily) {
        let _ = family;
    }

    /// A sync of `family` begins, from a snapshot with all changes that were reported before. No other change is
    /// reported until it ends.
    fn syncing(&self, family: IpFamily) {
        let _ = family;
    }

    /// A sync of a family ended, successfully or not. The snapshot is the same as when it began.
    fn synced(&self, synced: &Synced<'_>) {
        let _ = synced;
    }

    /// The agent found something about this node.
    fn noticed(&self, finding: &Finding) {
        let _ = finding;
    }

    /// Stale flows of a family were deleted from conntrack.
    fn swept(&self, sweep: &Sweep) {
        let _ = sweep;
    }
}

/// Something about this node that its operator should know. Each is reported once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Rules of another mode or back-end were removed: which.
    LeftoverRemoved(String),
    /// Something of another mode or back-end exists and stays.
    LeftoverStays {
        /// Its description.
        what: String,
        /// How to remove it.
        advice: String,
    },
    /// Another kube-proxy or Chainsmith programs this node: the evidence.
    ConflictingProxy(String),
    /// A sysctl could not be set, and keeps its value.
    ParameterUnset {
        /// Its path below `/proc/sys`, or `module/...` below `/sys`.
        key: String,
        /// The desired value.
        value: u64,
        /// The kernel's error.
        error: String,
    },
    /// iptables of one family is not usable: its Services are not served until the next start.
    FamilyNotProxied {
        /// The family.
        family: IpFamily,
        /// The reason.
        error: String,
    },
    /// Node ports do not answer on 127.0.0.1, although they are configured to.
    NoLocalhostNodePorts,
}

impl Finding {
    /// The name of its kind in metrics and events.
    pub fn as_str(&self) -> &'static str {
        match self {
            Finding::LeftoverRemoved(_) => "LeftoverRemoved",
            Finding::LeftoverStays { .. } => "LeftoverStays",
            Finding::ConflictingProxy(_) => "SecondProxy",
            Finding::ParameterUnset { .. } => "ParameterUnset",
            Finding::FamilyNotProxied { .. } => "FamilyNotProxied",
            Finding::NoLocalhostNodePorts => "NoLocalhostNodePorts",
        }
    }

    /// Whether the operator has to act.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Finding::LeftoverRemoved(_))
    }
}

/// A sentence for events.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::LeftoverRemoved(what) => write!(f, "removed leftovers of another proxy: {what}"),
            Finding::LeftoverStays { what, advice } => write!(f, "found {what}, which stays: {advice}"),
            Finding::ConflictingProxy(evidence) => {
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

/// A report of objects of the cluster.
#[derive(Debug)]
pub struct News<'a> {
    /// What changed in the snapshot.
    pub touched: &'a Touched,
    /// Reported Services, changed or not; see [`Snapshot::count_reported`](crate::model::Snapshot::count_reported).
    pub n_services: usize,
    /// Reported slices, changed or not.
    pub n_slices: usize,
    /// This node's Node as it is now, changed or not; the last one seen after it was deleted.
    pub node: Option<&'a Node>,
    /// Whether all first lists are complete, so that rules are in force or are being written.
    pub is_listed: bool,
}

/// A sync of one family that ended.
pub struct Synced<'a> {
    /// What the sync did.
    pub report: &'a SyncReport,
    /// The cluster and the node.
    pub view: View<'a>,
    /// The inputs other than Services and endpoints.
    pub settings: &'a Settings,
    /// Service ports that are quarantined now.
    pub quarantine: &'a Quarantine,
    /// The service ports of the family.
    pub compiled: &'a Compiled,
    /// Its duration.
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
