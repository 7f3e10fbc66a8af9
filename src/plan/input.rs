//! Inputs of iptables-restore as they are made: text goes out piece by piece, and what each piece
//! is about is kept until the process has ended.

use std::ops::Range;

use super::call_order::callees_first;
use super::committed::Effect;
use crate::iptables::{ChainName, Digest, Rule, Table, write};
use crate::net::IpFamily;

/// Takes the text of one restore after another. Implemented by the kernel and by its fake.
pub trait Restore {
    /// Why a restore failed.
    type Error;
    /// Starts a restore.
    fn begin(&mut self);
    /// Takes the next piece of its input; a piece ends with a line.
    fn write(&mut self, text: &str);
    /// Ends the input and waits for the restore to take effect.
    fn end(&mut self) -> Result<(), Self::Error>;
}

/// What a failed restore leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftermath {
    /// Everything is as it was.
    Nothing,
    /// The table that failed is as it was; those committed before it hold what was sent.
    EarlierTables,
    /// Each table is as it was or holds what was sent, nobody knows which.
    Unknown,
}

/// Tells what an error leaves behind.
pub trait Uncertain {
    /// What to expect of the kernel after it.
    fn aftermath(&self) -> Aftermath;
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
    /// `iptables-nft-restore` looks every chain up in a sorted list of all those named before:
    /// 2 000 names cost the least, and 18 000 rules keep its memory below 30 MB.
    pub const NFT: Limits = Limits { max_names: 2_000, max_rules: 18_000 };
    /// `iptables-legacy-restore` reads and replaces the whole table at each commit: one process.
    pub const LEGACY: Limits = Limits { max_names: usize::MAX, max_rules: usize::MAX };

    /// About half of it, for a kernel that takes no commit as large as this one; `None` when that
    /// would be too little to do anything.
    pub fn halved(self) -> Option<Limits> {
        let max_names = self.max_names / 2;
        let max_rules = (self.max_rules / 2).min(self.max_names);
        (max_names >= 8).then_some(Limits { max_names, max_rules })
    }
}

impl Limits {
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
pub struct Tally {
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
    /// Those of them in filter.
    pub n_filter_rules: usize,
    /// Chains written.
    pub n_chains: usize,
    /// Chains deleted.
    pub n_deleted: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        let Tally { n_processes, n_commits, n_lines, n_bytes, n_rules, n_filter_rules, n_chains, n_deleted } =
            other;
        self.n_processes += n_processes;
        self.n_commits += n_commits;
        self.n_lines += n_lines;
        self.n_bytes += n_bytes;
        self.n_rules += n_rules;
        self.n_filter_rules += n_filter_rules;
        self.n_chains += n_chains;
        self.n_deleted += n_deleted;
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
    /// the declaration). `None` for `*nat`, `COMMIT` and what lies outside.
    pub fn chain_at(&self, line: usize) -> Option<(Table, ChainName, usize)> {
        let next = self.pieces.partition_point(|piece| piece.first_line <= line);
        let piece = self.pieces.get(next.checked_sub(1)?)?;
        let at = line - piece.first_line;
        // Lines between pieces begin and commit tables.
        (at < piece.n_lines as usize).then_some((piece.table, piece.chain, at))
    }
}

/// What room in an input is for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// Chains named, about.
    pub(super) n_names: usize,
    pub(super) n_rules: usize,
}

/// Chains of nat as text, in any order.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    chains: Vec<WaitingChain>,
    text: String,
    callees: Vec<ChainName>,
}

#[derive(Debug)]
struct WaitingChain {
    name: ChainName,
    digest: Digest,
    /// How many chains its text names, about.
    n_names: usize,
    /// Its place in [`Waiting::text`].
    text: Range<usize>,
    /// The place of its callees in [`Waiting::callees`].
    callees: Range<usize>,
}

impl Waiting {
    /// Adds a chain that `each_rule` passes rule by rule, and that names `n_names` chains.
    pub(super) fn push(
        &mut self,
        family: IpFamily,
        name: ChainName,
        digest: Digest,
        n_names: usize,
        each_rule: impl FnOnce(&mut dyn FnMut(&Rule)),
    ) {
        let Waiting { chains, text, callees } = self;
        let (text_start, callees_start) = (text.len(), callees.len());
        write::declaration(text, &name);
        each_rule(&mut |rule| {
            callees.extend(rule.callee());
            write::append(text, family, &name, rule);
        });
        let (text, callees) = (text_start..text.len(), callees_start..callees.len());
        chains.push(WaitingChain { name, digest, n_names, text, callees });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }
}

/// How much text may wait before it is passed on, where order across service ports does not matter.
const STREAMING_BYTES: usize = 1 << 20;

/// How much text is gathered for one write.
const WRITTEN_BYTES: usize = 64 << 10;

/// The input that is being made.
pub(super) struct Input<'a, R> {
    limits: Limits,
    restore: &'a mut R,
    is_open: bool,
    table: Option<Table>,
    family: IpFamily,
    waiting: Waiting,
    /// What has its place and was not passed on yet.
    gathered: String,
    used: Size,
    /// Tables of the input so far.
    n_tables: usize,
    effects: Vec<(Table, ChainName, Effect)>,
    lines: LineIndex,
    tally: Tally,
}

/// How the process ended, what each piece of its input does, and which lines were about which chain.
type Ended<E> = (Result<(), E>, Vec<(Table, ChainName, Effect)>, LineIndex);

impl<'a, R: Restore> Input<'a, R> {
    pub(super) fn new(family: IpFamily, limits: Limits, restore: &'a mut R) -> Input<'a, R> {
        Input {
            family,
            limits,
            restore,
            is_open: false,
            table: None,
            waiting: Waiting::default(),
            gathered: String::new(),
            used: Size::default(),
            n_tables: 0,
            effects: Vec::new(),
            lines: LineIndex::default(),
            tally: Tally::default(),
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether `size` more fits into this process; into an empty one everything does.
    pub(super) fn has_room_for(&self, size: Size) -> bool {
        let is_empty = self.used.n_names == 0 && self.used.n_rules == 0;
        is_empty
            || self.used.n_names.saturating_add(size.n_names) <= self.limits.max_names
                && self.used.n_rules.saturating_add(size.n_rules) <= self.limits.max_rules
    }

    /// Whether `size` fits into an empty process within its limits.
    pub(super) fn may_ever_have_room_for(&self, size: Size) -> bool {
        size.n_names <= self.limits.max_names && size.n_rules <= self.limits.max_rules
    }

    pub(super) fn room_for_names(&self) -> usize {
        self.limits.max_names.saturating_sub(self.used.n_names)
    }

    /// How many chains may be deleted in this process: a few always, for another would cost more.
    pub(super) fn room_for_deletions(&self) -> usize {
        self.room_for_names().max(self.limits.max_names / 10)
    }

    /// Lets a chain of nat wait for its place; see [`Waiting::push`].
    pub(super) fn push(
        &mut self,
        name: ChainName,
        digest: Digest,
        n_names: usize,
        each_rule: impl FnOnce(&mut dyn FnMut(&Rule)),
    ) {
        self.reserve(digest, n_names);
        self.waiting.push(self.family, name, digest, n_names, each_rule);
    }

    /// Lets all chains of `other` wait for their place.
    pub(super) fn push_all(&mut self, other: Waiting) {
        let (n_bytes, n_callees) = (self.waiting.text.len(), self.waiting.callees.len());
        self.waiting.text.push_str(&other.text);
        self.waiting.callees.extend(other.callees);
        for WaitingChain { name, digest, n_names, text, callees } in other.chains {
            self.reserve(digest, n_names);
            let text = text.start + n_bytes..text.end + n_bytes;
            let callees = callees.start + n_callees..callees.end + n_callees;
            self.waiting.chains.push(WaitingChain { name, digest, n_names, text, callees });
        }
    }

    fn reserve(&mut self, digest: Digest, n_names: usize) {
        self.used.n_names = self.used.n_names.saturating_add(n_names);
        self.used.n_rules = self.used.n_rules.saturating_add(digest.n_rules as usize);
    }

    /// Passes waiting chains on where one process takes everything, so that memory stays bounded.
    pub(super) fn drain_if_streaming(&mut self) {
        if self.limits.max_names == usize::MAX && self.waiting.text.len() > STREAMING_BYTES {
            self.drain();
        }
    }

    /// Passes on the chains that wait, callees first, each declaration followed at once by its rules.
    pub(super) fn drain(&mut self) {
        let Waiting { mut chains, mut text, mut callees } = std::mem::take(&mut self.waiting);
        let order = callees_first(chains.iter().map(|chain| (chain.name, &callees[chain.callees.clone()])));
        for at in order {
            let WaitingChain { name, digest, text: range, .. } = &chains[at];
            self.piece(Table::Nat, *name, &text[range.clone()], Effect::Nat(*digest));
        }
        chains.clear();
        text.clear();
        callees.clear();
        self.waiting = Waiting { chains, text, callees };
    }

    /// Passes on lines about `chain` at once.
    pub(super) fn lines(&mut self, table: Table, chain: ChainName, text: &str, effect: Effect) {
        self.used.n_rules = self.used.n_rules.saturating_add(effect.n_rules());
        self.used.n_names += 1;
        self.piece(table, chain, text, effect);
    }

    /// Empties and deletes `chains` of `table`: all are emptied first, as they may call each other.
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
            self.piece(table, *chain, &text, Effect::Deleted);
        }
    }

    fn piece(&mut self, table: Table, chain: ChainName, text: &str, effect: Effect) {
        match &effect {
            Effect::Nat(_) | Effect::Filter(_) => self.tally.n_chains += 1,
            Effect::Deleted => self.tally.n_deleted += 1,
            Effect::Jump(_) => {}
        }
        self.tally.n_rules += effect.n_rules();
        if table == Table::Filter {
            self.tally.n_filter_rules += effect.n_rules();
        }
        self.text(table, text, effect.n_lines(), chain);
        self.effects.push((table, chain, effect));
    }

    /// Gathers `text`, which has `n_lines`.
    fn text(&mut self, table: Table, text: &str, n_lines: usize, chain: ChainName) {
        if !self.is_open {
            self.restore.begin();
            self.is_open = true;
            self.tally.n_processes += 1;
        }
        if self.table != Some(table) {
            self.commit();
            write::table(&mut self.gathered, table);
            self.count_lines(1);
            self.table = Some(table);
        }
        let first_line = self.lines.n_lines + 1;
        self.lines.pieces.push(Piece { first_line, n_lines: n_lines as u32, table, chain });
        self.gathered.push_str(text);
        self.count_lines(n_lines);
        if self.gathered.len() > WRITTEN_BYTES {
            self.pass_on();
        }
    }

    fn commit(&mut self) {
        if self.table.take().is_some() {
            write::commit(&mut self.gathered);
            self.n_tables += 1;
            self.count_lines(1);
        }
    }

    fn count_lines(&mut self, n_lines: usize) {
        self.lines.n_lines += n_lines;
        self.tally.n_lines += n_lines;
    }

    fn pass_on(&mut self) {
        self.tally.n_bytes += self.gathered.len();
        self.restore.write(&self.gathered);
        self.gathered.clear();
    }

    /// Passes on what waits, commits and ends the process. `None` when there was nothing to do.
    pub(super) fn end(&mut self) -> Option<Ended<R::Error>> {
        self.drain();
        if !self.is_open {
            return None;
        }
        self.commit();
        self.pass_on();
        self.is_open = false;
        self.used = Size::default();
        let result = self.restore.end();
        let n_tables = std::mem::take(&mut self.n_tables);
        self.tally.n_commits += if result.is_ok() { n_tables } else { 0 };
        Some((result, std::mem::take(&mut self.effects), std::mem::take(&mut self.lines)))
    }
}

impl Effect {
    /// Lines that its text has: a declaration and the rules, or one command.
    fn n_lines(&self) -> usize {
        match self {
            Effect::Nat(_) | Effect::Filter(_) => 1 + self.n_rules(),
            Effect::Jump(_) | Effect::Deleted => 1,
        }
    }

    /// Rules that it writes.
    fn n_rules(&self) -> usize {
        match self {
            Effect::Nat(digest) => digest.n_rules as usize,
            Effect::Filter(rules) => rules.len(),
            Effect::Jump(_) => 1,
            Effect::Deleted => 0,
        }
    }
}
