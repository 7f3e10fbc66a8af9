//! What a sync did, and why it failed.

use std::collections::{BTreeMap, BTreeSet};

use super::stopwatch::Stages;
use crate::compile::SyncScope;
use crate::drift::{Drift, ReadReason};
use crate::iptables::{ChainName, Table};
use crate::kernel::{Backend, RestoreError};
use crate::model::{ServiceName, ServicePortName};
use crate::net::IpFamily;
use crate::plan::{InputExcerpt, RestoreCounts, UdpFrontends};
use crate::rules::Layout;
use crate::rules::overlap::Loss;

/// A rejected restore, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The rejected line of the input, or one near it; from 1.
    pub line: usize,
    /// That line, if it is still known.
    pub text: Option<String>,
    /// The message of iptables-restore.
    pub message: String,
    /// The chain that the line is about.
    pub chain: Option<(Table, ChainName)>,
    /// The service port that owns the chain, or the entry in it.
    pub service_port: Option<ServicePortName>,
}

/// The quarantined service ports of a family, each with its rejection. None of their rules is in force.
pub type Quarantine = BTreeMap<ServicePortName, Rejection>;

/// Why a sync failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// A restore was rejected; the previous rules stay in force.
    #[error(
        "iptables-restore rejected line {} ({}) of chain {} for {}: {}",
        .0.line,
        .0.text.as_deref().map_or("text unknown".to_owned(), |text| format!("{text:?}")),
        .0.chain.map_or("unknown".to_owned(), |(table, chain)| format!("{table} {chain}")),
        .0.service_port.as_ref().map_or("no single service port".to_owned(), |port| port.to_string()),
        .0.message,
    )]
    Rejected(Rejection),
    /// A restore failed otherwise.
    #[error(transparent)]
    Restore(RestoreError),
}

/// A restore that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRestore {
    /// Its input, shortened.
    pub input: InputExcerpt,
    /// Why it failed.
    pub error: RestoreError,
}

/// What a sync of one family did.
#[derive(Clone, Debug)]
pub struct SyncReport {
    /// The family.
    pub family: IpFamily,
    /// The Services that were compiled.
    pub scope: SyncScope,
    /// Services that changed and are left to the next syncs, or some of their ports are.
    pub waiting: BTreeSet<ServiceName>,
    /// The back-end of its tables.
    pub backend: Backend,
    /// The layout of its rules.
    pub layout: Layout,
    /// What was sent to the kernel.
    pub tally: RestoreCounts,
    /// How long each stage took.
    pub stages: Stages,
    /// Port entries of slices that were read to compile service ports.
    pub n_entries_read: usize,
    /// Failed restores. The sync may succeed with a later one.
    pub n_failed_restores: usize,
    /// Service ports that have a cluster IP in the family.
    pub n_service_ports: usize,
    /// Their endpoints, whatever their conditions.
    pub n_endpoints: usize,
    /// Service ports that drop packets for their cluster IP: the policy is Local, and all endpoints are on other nodes.
    pub n_dropped_internal: usize,
    /// Service ports that drop packets from outside, for the same reason.
    pub n_dropped_external: usize,
    /// Quarantined service ports.
    pub n_quarantined: usize,
    /// Our rules in filter after the sync.
    pub n_filter_rules: usize,
    /// Our rules in nat after the sync.
    pub n_nat_rules: usize,
    /// Our chains in both tables after the sync.
    pub n_chains: usize,
    /// Why the kernel was read, for each read.
    pub reads: Vec<ReadReason>,
    /// Drift that this sync found; repaired unless the sync failed.
    pub drift: Drift,
    /// Chains and jumps that this sync repaired, found by itself or by failed syncs before it; 0 if it failed.
    pub n_repaired: usize,
    /// Stale chains that this sync flushed instead of deleting them, as foreign rules still refer to them.
    pub kept_stale: Vec<ChainName>,
    /// Frontends of UDP rules that an earlier process left; with the first sync that succeeds.
    pub inherited: UdpFrontends,
    /// Service ports that this sync quarantined.
    pub quarantined: Vec<(ServicePortName, Rejection)>,
    /// Entries that are left out because their frontends belong to other Services.
    pub n_overlaps: usize,
    /// Frontends that Services lost with this sync.
    pub losses: Vec<Loss>,
    /// The input of the last restore, shortened; `None` if nothing was sent.
    pub sent: Option<InputExcerpt>,
    /// The last restore that failed; the sync may succeed with a later one.
    pub failed: Option<FailedRestore>,
    /// How it ended.
    pub outcome: Result<(), SyncError>,
}

impl SyncReport {
    /// The report of a sync that did nothing.
    pub(crate) fn new(family: IpFamily, backend: Backend, scope: SyncScope) -> SyncReport {
        let tally = RestoreCounts::default();
        SyncReport {
            family,
            scope,
            waiting: BTreeSet::new(),
            backend,
            layout: Layout::Classic { is_large: false },
            tally,
            stages: Stages::default(),
            n_entries_read: 0,
            n_failed_restores: 0,
            n_service_ports: 0,
            n_endpoints: 0,
            n_dropped_internal: 0,
            n_dropped_external: 0,
            n_quarantined: 0,
            n_filter_rules: 0,
            n_nat_rules: 0,
            n_chains: 0,
            reads: Vec::new(),
            drift: Drift::default(),
            n_repaired: 0,
            kept_stale: Vec::new(),
            inherited: UdpFrontends::default(),
            quarantined: Vec::new(),
            n_overlaps: 0,
            losses: Vec::new(),
            sent: None,
            failed: None,
            outcome: Ok(()),
        }
    }

    /// Whether no Service outside `scope` was compiled; a recovery from a failed restore compiles all.
    pub fn is_scope_exact(&self) -> bool {
        self.n_failed_restores == 0
    }

    /// Whether every Service was compiled.
    pub fn is_full(&self) -> bool {
        self.scope == SyncScope::Full
    }
}
