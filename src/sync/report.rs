//! What a sync did, and why it failed.

use std::collections::{BTreeMap, BTreeSet};

use super::stopwatch::Stages;
use crate::compile::SyncScope;
use crate::drift::{Drift, ReadReason};
use crate::iptables::{ChainName, Table};
use crate::kernel::{Backend, RestoreError};
use crate::model::{ServiceName, ServicePortName};
use crate::net::IpFamily;
use crate::plan::{RestoreCounts, UdpFrontends};
use crate::rules::Layout;
use crate::rules::overlap::Loss;

/// A restore that was refused, brought back to whom it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Near which line of the input, from 1.
    pub line: usize,
    /// That line, if it is at hand.
    pub text: Option<String>,
    /// What iptables-restore said.
    pub message: String,
    /// The chain that the line is about.
    pub chain: Option<(Table, ChainName)>,
    /// The service port whose chain that is.
    pub service_port: Option<ServicePortName>,
}

/// The service ports of a family that are left out, with what the kernel refused of each: none of their
/// rules is in force.
pub type Quarantine = BTreeMap<ServicePortName, Refusal>;

/// Why a sync did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// A restore was refused; what was in force stays in force.
    #[error(
        "iptables-restore refused line {} ({}) of chain {} for {}: {}",
        .0.line,
        .0.text.as_deref().map_or("text no longer at hand".to_owned(), |text| format!("{text:?}")),
        .0.chain.map_or("unknown".to_owned(), |(table, chain)| format!("{table} {chain}")),
        .0.service_port.as_ref().map_or("no single service port".to_owned(), |port| port.to_string()),
        .0.message,
    )]
    Refused(Refusal),
    /// A restore failed otherwise.
    #[error(transparent)]
    Restore(RestoreError),
}

/// What a sync of one family did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The family.
    pub family: IpFamily,
    /// Which Services were looked at.
    pub scope: SyncScope,
    /// Services that changed and are not looked at yet, or not all of each: the next syncs do.
    pub waiting: BTreeSet<ServiceName>,
    /// Where its rules are.
    pub backend: Backend,
    /// How they are laid out.
    pub layout: Layout,
    /// What was sent to the kernel.
    pub tally: RestoreCounts,
    /// What the time went into.
    pub stages: Stages,
    /// Port entries of slices that were looked at to compile service ports.
    pub n_entries_read: usize,
    /// Restores that failed; the sync may have succeeded all the same.
    pub n_failed_restores: usize,
    /// Service ports that have a cluster IP in the family.
    pub n_service_ports: usize,
    /// Their endpoints, whatever their conditions.
    pub n_endpoints: usize,
    /// Service ports that drop what is sent to their cluster IP: the policy is Local, and all
    /// endpoints are elsewhere.
    pub n_dropped_internal: usize,
    /// Service ports that drop what comes from outside, likewise.
    pub n_dropped_external: usize,
    /// Service ports that are left out because the kernel refuses them.
    pub n_quarantined: usize,
    /// Rules of ours that filter holds afterwards.
    pub n_filter_rules: usize,
    /// Rules of ours that nat holds afterwards.
    pub n_nat_rules: usize,
    /// Why the kernel was read, for each read.
    pub reads: Vec<ReadReason>,
    /// What another process had changed; repaired unless the sync failed.
    pub drift: Drift,
    /// Chains and jumps that were found changed, by this sync or by failed ones before it, and that this sync
    /// repaired; none unless it succeeded.
    pub n_repaired: usize,
    /// Stale chains that from now on stay, flushed, because foreign rules still refer to them.
    pub held: Vec<ChainName>,
    /// What UDP rules answered on that an earlier process had left; with the first sync that succeeds.
    pub inherited: UdpFrontends,
    /// Service ports that the kernel refused, and are left out from now on.
    pub quarantined: Vec<(ServicePortName, Refusal)>,
    /// Frontends of Services that other Services have, as long as it lasts: how many entries are left out.
    pub n_overlaps: usize,
    /// Those of them that this sync found.
    pub losses: Vec<Loss>,
    /// How it ended.
    pub outcome: Result<(), SyncError>,
}

impl Report {
    pub(crate) fn new(family: IpFamily, backend: Backend, scope: SyncScope) -> Report {
        let tally = RestoreCounts::default();
        Report {
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
            reads: Vec::new(),
            drift: Drift::default(),
            n_repaired: 0,
            held: Vec::new(),
            inherited: UdpFrontends::default(),
            quarantined: Vec::new(),
            n_overlaps: 0,
            losses: Vec::new(),
            outcome: Ok(()),
        }
    }

    /// Whether every service port was compared.
    pub fn is_full(&self) -> bool {
        self.scope == SyncScope::Full
    }
}
