//! Inputs of iptables-restore as they are made: text goes out piece by piece, and what each piece changes is
//! kept until the process has ended.

use super::committed::ChainChange;
use super::pending::{BatchSize, PendingChains};
use super::restore_process::{Limits, LineIndex, Restore, RestoreCounts};
use crate::iptables::{ChainName, Digest, Rule, Table, write};
use crate::net::IpFamily;

/// How much text may be pending before it is passed on, where order across service ports does not matter.
const STREAMING_BYTES: usize = 1 << 20;

/// How much text is gathered for one write.
const WRITTEN_BYTES: usize = 64 << 10;

/// The input that is being made.
pub(super) struct Batch<'a, R> {
    family: IpFamily,
    limits: Limits,
    restore: &'a mut R,
    is_open: bool,
    table: Option<Table>,
    /// Chains of nat that have no place yet.
    pending: PendingChains,
    /// Text that has its place and was not passed on yet.
    gathered: String,
    used: BatchSize,
    /// Tables of the input so far.
    n_tables: usize,
    changes: Vec<(Table, ChainName, ChainChange)>,
    /// How many of the changes [`Restore::before_commit`] was called for.
    n_announced: usize,
    lines: LineIndex,
    counts: RestoreCounts,
}

/// How a process ended.
pub(super) struct BatchEnd<E> {
    pub(super) result: Result<(), E>,
    /// What its input changes, in order.
    pub(super) changes: Vec<(Table, ChainName, ChainChange)>,
    pub(super) lines: LineIndex,
}

impl<'a, R: Restore> Batch<'a, R> {
    pub(super) fn new(family: IpFamily, limits: Limits, restore: &'a mut R) -> Batch<'a, R> {
        Batch {
            family,
            limits,
            restore,
            is_open: false,
            table: None,
            pending: PendingChains::default(),
            gathered: String::new(),
            used: BatchSize::default(),
            n_tables: 0,
            changes: Vec::new(),
            n_announced: 0,
            lines: LineIndex::default(),
            counts: RestoreCounts::default(),
        }
    }

    pub(super) fn counts(&self) -> RestoreCounts {
        self.counts
    }

    /// Whether `size` more fits into this process; into an empty one everything does.
    pub(super) fn has_room_for(&self, size: BatchSize) -> bool {
        let is_empty = self.used.n_names == 0 && self.used.n_rules == 0;
        is_empty
            || self.used.n_names.saturating_add(size.n_names) <= self.limits.max_names
                && self.used.n_rules.saturating_add(size.n_rules) <= self.limits.max_rules
    }

    /// Whether `size` fits into an empty process within its limits.
    pub(super) fn may_ever_have_room_for(&self, size: BatchSize) -> bool {
        size.n_names <= self.limits.max_names && size.n_rules <= self.limits.max_rules
    }

    pub(super) fn room_for_names(&self) -> usize {
        self.limits.max_names.saturating_sub(self.used.n_names)
    }

    /// How many chains may be deleted in this process: a few always, as another process would cost more.
    pub(super) fn room_for_deletions(&self) -> usize {
        self.room_for_names().max(self.limits.max_names / 10)
    }

    /// Adds a chain of nat, whose place is found when the batch is drained; see [`PendingChains::push`].
    pub(super) fn push(
        &mut self,
        name: ChainName,
        digest: Digest,
        n_names: usize,
        each_rule: impl FnOnce(&mut dyn FnMut(&Rule)),
    ) {
        self.used.add(BatchSize { n_names, n_rules: digest.n_rules as usize });
        self.pending.push(self.family, name, digest, n_names, each_rule);
    }

    /// Adds chains of nat, as [`Batch::push`].
    pub(super) fn push_all(&mut self, chains: PendingChains) {
        self.used.add(chains.size);
        self.pending.append(chains);
    }

    /// Drains the batch where one process takes everything, so that memory stays bounded.
    pub(super) fn drain_if_streaming(&mut self) {
        if self.limits.max_names == usize::MAX && self.pending.n_bytes() > STREAMING_BYTES {
            self.drain();
        }
    }

    /// Passes on the pending chains, callees first, each declaration followed at once by its rules.
    pub(super) fn drain(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.in_order(|name, digest, text| {
            self.piece(Table::Nat, name, text, ChainChange::SetNat(digest));
        });
        pending.clear();
        self.pending = pending;
    }

    /// Passes on lines about `chain` at once.
    pub(super) fn lines(&mut self, table: Table, chain: ChainName, text: &str, change: ChainChange) {
        self.used.add(BatchSize { n_names: 1, n_rules: change.n_rules() });
        self.piece(table, chain, text, change);
    }

    /// Flushes and deletes `chains` of `table`: all are flushed first, as they may call each other.
    pub(super) fn delete(&mut self, table: Table, chains: &[ChainName]) {
        self.drain();
        let mut text = String::new();
        let mut in_order: Vec<&ChainName> = chains.iter().collect();
        in_order.sort_unstable_by(|a, b| b.cmp(a));
        for chain in in_order {
            text.clear();
            write::declaration(&mut text, chain);
            self.text(table, &text, 1, *chain);
        }
        for chain in chains {
            text.clear();
            write::delete_chain(&mut text, chain);
            self.used.n_names += 1;
            self.piece(table, *chain, &text, ChainChange::Delete);
        }
    }

    fn piece(&mut self, table: Table, chain: ChainName, text: &str, change: ChainChange) {
        match &change {
            ChainChange::SetNat(_) | ChainChange::SetFilter(_) => self.counts.n_chains += 1,
            ChainChange::Delete => self.counts.n_deleted += 1,
            ChainChange::InsertJump(_) => {}
        }
        self.counts.n_rules += change.n_rules();
        if table == Table::Filter {
            self.counts.n_filter_rules += change.n_rules();
        }
        self.text(table, text, change.n_lines(), chain);
        self.changes.push((table, chain, change));
    }

    /// Gathers `text`, which has `n_lines`.
    fn text(&mut self, table: Table, text: &str, n_lines: usize, chain: ChainName) {
        if !self.is_open {
            self.restore.begin();
            self.is_open = true;
            self.counts.n_processes += 1;
        }
        if self.table != Some(table) {
            self.commit();
            write::table(&mut self.gathered, table);
            self.lines.skip(1);
            self.counts.n_lines += 1;
            self.table = Some(table);
        }
        self.lines.push(table, chain, n_lines);
        self.counts.n_lines += n_lines;
        self.gathered.push_str(text);
        if self.gathered.len() > WRITTEN_BYTES {
            self.pass_on();
        }
    }

    fn commit(&mut self) {
        if let Some(table) = self.table.take() {
            if self.restore.observes_commits() {
                self.announce_commit(table);
            }
            write::commit(&mut self.gathered);
            self.n_tables += 1;
            self.lines.skip(1);
            self.counts.n_lines += 1;
        }
    }

    /// Has the commit observed: by then the process has read all but the COMMIT, so that the commit follows as soon as
    /// possible.
    fn announce_commit(&mut self, table: Table) {
        self.pass_on();
        let changes = &self.changes[self.n_announced..];
        let chains = changes.iter().filter(|(_, _, change)| !matches!(change, ChainChange::InsertJump(_)));
        let chains: Vec<ChainName> = chains.map(|(_, chain, _)| *chain).collect();
        self.n_announced = self.changes.len();
        self.restore.before_commit(table, &chains);
    }

    fn pass_on(&mut self) {
        self.counts.n_bytes += self.gathered.len();
        self.restore.write(&self.gathered);
        self.gathered.clear();
    }

    /// Passes on what is pending, commits and ends the process. `None` when there was nothing to do.
    pub(super) fn end(&mut self) -> Option<BatchEnd<R::Error>> {
        self.drain();
        if !self.is_open {
            return None;
        }
        self.commit();
        self.pass_on();
        self.is_open = false;
        self.used = BatchSize::default();
        self.n_announced = 0;
        let result = self.restore.end();
        let n_tables = std::mem::take(&mut self.n_tables);
        self.counts.n_commits += if result.is_ok() { n_tables } else { 0 };
        let (changes, lines) = (std::mem::take(&mut self.changes), std::mem::take(&mut self.lines));
        Some(BatchEnd { result, changes, lines })
    }
}
