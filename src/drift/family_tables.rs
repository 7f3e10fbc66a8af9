//! The tables of one family, and everything that is known of them.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::machine::{Action, Knowledge, Signal};
use super::reason::ReadReason;
use crate::iptables::{ChainName, Digest, Fingerprint, Jump, Table};
use crate::kernel::{Backend, Iptables, Outline};
use crate::plan::{Committed, PendingFingerprints, UdpFrontends};
use crate::rules::fixed;
use crate::rules::ownership::ChainOwner;

/// The tables that hold our chains, in the order in which they are read.
pub(super) const TABLES: [Table; 2] = [Table::Filter, Table::Nat];

/// Below so many chains, tables are dumped as a whole, and read where a dump does not tell.
pub(super) const FEW_CHAINS: usize = 2_000;

/// One family's tables in the kernel, and what is known of them.
///
/// A sync takes the committed state out ([`FamilyTables::take`], which reads the kernel if nothing is known) and puts it
/// back as it leaves it.
pub struct FamilyTables<K> {
    /// The kernel's tables.
    pub kernel: K,
    /// Our jumps from built-in chains.
    pub jumps: Vec<Jump>,
    /// Our chains that foreign rules refer to.
    pub references: References,
    pub(super) knowledge: Knowledge,
    /// What the kernel holds; while the tables are unknown, what was left there. `None` before the first read and
    /// during a sync.
    pub(super) committed: Option<Committed>,
    /// Chains that this release of iptables prints in another spelling: as written, and as read back.
    pub(super) equivalents: BTreeMap<(Table, ChainName), (Digest, Digest)>,
    /// What the last read found in chains that had drifted.
    pub(super) drifted: BTreeMap<(Table, ChainName), Digest>,
    /// Built-in chains, with the fingerprint of each when all our jumps were seen in it.
    pub(super) hooks: Hooks,
    /// What was seen of tables of the legacy back-end.
    pub(super) legacy: LegacyView,
    /// Jumps that were looked up in turn.
    pub(super) n_jump_checks: usize,
    /// Frontends of UDP rules that an earlier process left, once they were read.
    pub(super) inherited: Option<UdpFrontends>,
    /// Reads since [`FamilyTables::take_reads`].
    pub(super) reads: Vec<ReadReason>,
}

/// Built-in chains with a fingerprint each.
pub(super) type Hooks = BTreeMap<(Table, ChainName), Fingerprint>;

/// Chains of ours in nat that foreign rules refer to. Once stale they are flushed, not deleted.
#[derive(Debug, Default)]
pub struct References {
    /// Those that were referenced when nat was last read, or that could not be deleted since.
    pub referenced: BTreeSet<ChainName>,
    /// Those of them that were flushed, and reported.
    pub flushed: BTreeSet<ChainName>,
    /// Whether this sync keeps all stale chains.
    pub keeps_all: bool,
}

impl References {
    /// Replaces what is known of references by what was just read.
    pub(super) fn replace(&mut self, referenced: BTreeSet<ChainName>) {
        self.referenced = referenced;
        self.drop_unreferenced();
    }

    /// Drops flushed chains that no foreign rules refer to.
    pub fn drop_unreferenced(&mut self) {
        self.flushed.retain(|chain| self.referenced.contains(chain));
    }
}

/// What was seen of the tables of the legacy back-end.
#[derive(Debug, Default)]
pub(super) struct LegacyView {
    /// Of each table, at the last whole comparison that found no difference, or after our last commit.
    pub(super) outlines: Vec<Option<Outline>>,
    /// When to compare whole tables though their outlines are the same.
    pub(super) whole_at: Option<Instant>,
    /// Whether any fingerprint was recorded while another process may have written.
    pub(super) is_provisional: bool,
    /// Jumps in place when the committed state was taken out for a sync.
    pub(super) n_jumps: usize,
    /// Whether the sync wrote jumps, so that built-in chains differ for our own doing.
    pub(super) has_new_jumps: bool,
    /// A hash of all of nat when it was read, and at the last whole comparison.
    pub(super) nat: (Option<u64>, Option<u64>),
    /// How often in a row the tables could not be dumped.
    pub(super) n_failures: u32,
}

impl<K: Iptables> FamilyTables<K> {
    /// Tables of which nothing is known.
    pub fn new(kernel: K) -> FamilyTables<K> {
        FamilyTables {
            kernel,
            jumps: fixed::jumps(),
            references: References::default(),
            knowledge: Knowledge::START,
            committed: None,
            equivalents: BTreeMap::new(),
            drifted: BTreeMap::new(),
            hooks: Hooks::new(),
            legacy: LegacyView::default(),
            n_jump_checks: 0,
            inherited: None,
            reads: Vec::new(),
        }
    }

    /// Frontends of UDP rules that an earlier process left; returned once. Empty where the rules were too many to be
    /// read.
    pub fn take_inherited(&mut self) -> UdpFrontends {
        self.inherited.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Why the kernel was read, for each read since this was last called.
    pub fn take_reads(&mut self) -> Vec<ReadReason> {
        std::mem::take(&mut self.reads)
    }

    /// What is known.
    pub fn knowledge(&self) -> Knowledge {
        self.knowledge
    }

    /// Whether the next sync need not read the kernel.
    pub fn is_known(&self) -> bool {
        !self.knowledge.is_unknown()
    }

    /// How many rules of ours `table` holds; as they were left, while that is unknown.
    pub fn n_rules(&self, table: Table) -> usize {
        self.committed.as_ref().map_or(0, |committed| committed.n_rules(table))
    }

    /// How many chains of ours there are; as they were left, while that is unknown.
    pub fn n_chains(&self) -> usize {
        self.committed.as_ref().map_or(0, |committed| committed.nat.len() + committed.filter.len())
    }

    /// Has the next sync read the kernel.
    pub fn distrust(&mut self, reason: ReadReason) {
        self.signal(Signal::Distrusted(reason));
    }

    /// Puts back what [`FamilyTables::take`] took out, as the sync leaves it.
    pub fn put_back(&mut self, committed: Committed) {
        self.legacy.has_new_jumps |= committed.jumps.len() > self.legacy.n_jumps;
        self.legacy.n_jumps = committed.jumps.len();
        self.committed = Some(committed);
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Action {
        let (next, action) = self.knowledge.after(signal);
        self.knowledge = next;
        action
    }

    /// Whether the next check has anything to do here.
    pub(super) fn is_check_due(&self) -> bool {
        matches!(self.knowledge, Knowledge::Suspect { .. } | Knowledge::Scanning(_))
            || self.has_pending_fingerprints()
    }

    /// Whether an audit has anything to compare.
    pub(super) fn is_unverified(&self) -> bool {
        matches!(self.knowledge, Knowledge::Suspect { .. } | Knowledge::Scanning(_) | Knowledge::Unverified)
    }

    /// Whether fingerprints of chains that were written are pending.
    pub(super) fn has_pending_fingerprints(&self) -> bool {
        self.known().is_some_and(|committed| committed.fingerprints.pending() != PendingFingerprints::Nothing)
    }

    /// What the kernel holds, when that is known.
    pub(super) fn known(&self) -> Option<&Committed> {
        self.committed.as_ref().filter(|_| self.is_known())
    }

    /// Drops pending fingerprints, because another process wrote. On legacy, where that is not known, the next audit reads
    /// instead.
    pub(super) fn drop_pending_fingerprints(&mut self) {
        if self.kernel.backend() == Backend::Nft
            && let Some(committed) = &mut self.committed
        {
            committed.fingerprints.drop_pending();
        }
    }
}

/// Whether a chain's content is compared: it is ours, or the kubelet's that we may write to.
pub(super) fn is_compared(table: Table, name: &ChainName) -> bool {
    ChainOwner::of(table, name).is_compared()
}

/// The names of the chains of `table`.
pub(super) fn names_of(committed: &Committed, table: Table) -> Vec<ChainName> {
    match table {
        Table::Nat => committed.nat.keys().copied().collect(),
        _ => committed.filter.keys().copied().collect(),
    }
}

/// Whether the chain exists.
pub(super) fn contains(committed: &Committed, table: Table, chain: &ChainName) -> bool {
    match table {
        Table::Nat => committed.nat.contains_key(chain),
        _ => committed.filter.contains_key(chain),
    }
}

/// The content of `chain`; `None` when it does not exist or its content is not known.
pub(super) fn digest_of(committed: &Committed, table: Table, chain: &ChainName) -> Option<Digest> {
    match table {
        Table::Nat => committed.nat.get(chain).copied().flatten(),
        _ => committed.filter.get(chain)?.as_ref().map(Digest::of),
    }
}
