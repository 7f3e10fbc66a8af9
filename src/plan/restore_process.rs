//! One iptables-restore process: what takes its input, how much it is given, and what a failed one leaves.

use crate::iptables::{ChainName, Table};

/// Takes the text of one restore after another. Implemented by the kernel and by its fake.
pub trait Restore {
    /// Why a restore failed.
    type Error;
    /// Starts a restore.
    fn begin(&mut self);
    /// Takes the next piece of its input; a piece ends with a line.
    fn write(&mut self, text: &str);
    /// Ends the input. Every table that was committed in it is in force now, or an error says why not.
    fn end(&mut self) -> Result<(), Self::Error>;
    /// Whether [`Restore::before_commit`] has anything to do.
    fn observes_commits(&self) -> bool {
        false
    }
    /// The lines that replace or delete `chains` of `table` were all written, and the COMMIT follows at once. Only called
    /// if [`Restore::observes_commits`].
    fn before_commit(&mut self, table: Table, chains: &[ChainName]) {
        let _ = (table, chains);
    }
}

/// What a failed restore leaves in force. Made from an error of [`Restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureEffect {
    /// Nothing was applied.
    NothingApplied,
    /// Nothing was applied of the table that failed; the tables before it were.
    EarlierTablesApplied,
    /// Each table was applied or not; which ones is unknown.
    Unknown,
}

/// A restore that failed. [`Committed`](super::Committed) holds what was committed before it.
#[derive(Debug)]
pub struct RestoreFailure<E> {
    /// Why.
    pub error: E,
    /// Which chain each line of the input was about.
    pub lines: LineIndex,
}

/// How much one process is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Chains named in one input.
    pub max_names: usize,
    /// Rules in one input.
    pub max_rules: usize,
}

impl Limits {
    /// `iptables-nft-restore` looks up every chain in a sorted list of those named before: 2 000 names cost
    /// the least, and 18 000 rules keep its memory below 30 MB.
    pub const NFT: Limits = Limits { max_names: 2_000, max_rules: 18_000 };
    /// `iptables-legacy-restore` reads and replaces the whole table at each commit: one process.
    pub const LEGACY: Limits = Limits { max_names: usize::MAX, max_rules: usize::MAX };

    /// About half of it, for a kernel that rejects a commit of this size; `None` when that would be too
    /// little to do anything.
    pub fn halved(self) -> Option<Limits> {
        let max_names = self.max_names / 2;
        let max_rules = (self.max_rules / 2).min(self.max_names);
        (max_names >= 8).then_some(Limits { max_names, max_rules })
    }

    /// Twice as much, at most `most`.
    pub fn doubled(self, most: Limits) -> Limits {
        Limits {
            max_names: self.max_names.saturating_mul(2).min(most.max_names),
            max_rules: self.max_rules.saturating_mul(2).min(most.max_rules),
        }
    }
}

/// What was sent to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreCounts {
    /// iptables-restore processes that were started.
    pub n_processes: usize,
    /// Tables committed, by processes that did not fail.
    pub n_commits: usize,
    /// Lines of input.
    pub n_lines: usize,
    /// Bytes of input.
    pub n_bytes: usize,
    /// Rules written, jumps included.
    pub n_rules: usize,
    /// The part of them in filter.
    pub n_filter_rules: usize,
    /// Chains written.
    pub n_chains: usize,
    /// Chains deleted.
    pub n_deleted: usize,
}

impl std::ops::AddAssign for RestoreCounts {
    fn add_assign(&mut self, other: RestoreCounts) {
        self.n_processes += other.n_processes;
        self.n_commits += other.n_commits;
        self.n_lines += other.n_lines;
        self.n_bytes += other.n_bytes;
        self.n_rules += other.n_rules;
        self.n_filter_rules += other.n_filter_rules;
        self.n_chains += other.n_chains;
        self.n_deleted += other.n_deleted;
    }
}

/// Which chain each line of an input is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineIndex {
    /// Ascending.
    pieces: Vec<Piece>,
    n_lines: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// From 1.
    first_line: usize,
    n_lines: u32,
    table: Table,
    chain: ChainName,
}

impl LineIndex {
    /// The chain that `line` (from 1) is about, and the line's place in that chain's piece (from 0:
    /// the declaration). `None` for `*nat`, `COMMIT` and lines outside of the input.
    pub fn chain_at(&self, line: usize) -> Option<(Table, ChainName, usize)> {
        let next = self.pieces.partition_point(|piece| piece.first_line <= line);
        let piece = self.pieces.get(next.checked_sub(1)?)?;
        let at = line - piece.first_line;
        // Lines between pieces begin and commit tables.
        (at < piece.n_lines as usize).then_some((piece.table, piece.chain, at))
    }

    /// Adds `n_lines` about `chain` at the end.
    pub(super) fn push(&mut self, table: Table, chain: ChainName, n_lines: usize) {
        let first_line = self.n_lines + 1;
        self.pieces.push(Piece { first_line, n_lines: n_lines as u32, table, chain });
        self.n_lines += n_lines;
    }

    /// Adds `n_lines` that are about no chain.
    pub(super) fn skip(&mut self, n_lines: usize) {
        self.n_lines += n_lines;
    }
}
