//! The world below: each program or kernel file behind one small trait or function, so that tests
//! can stand in for it.

pub mod addrs;
pub mod conntrack;
#[cfg(any(test, feature = "fake-kernel"))]
pub mod fake;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
mod netlink;
pub mod nfacct;
pub mod nft;
pub mod open_files;
pub mod recent;
pub mod sysctl;
mod xtables;

#[cfg(test)]
pub(crate) use netlink::in_new_namespace;

use std::time::Duration;

use crate::iptables::{ChainName, Fingerprint, Jump, Table};
use crate::net::IpFamily;
use crate::plan::{FailureEffect, Limits, Restore};

/// The two implementations of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// iptables over nf_tables.
    Nft,
    /// The older x_tables.
    Legacy,
}

impl Backend {
    /// `nft` or `legacy`: the word in the programs' names and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::Nft => "nft",
            Backend::Legacy => "legacy",
        }
    }

    /// What one restore process is given.
    pub fn limits(self) -> Limits {
        match self {
            Backend::Nft => Limits::NFT,
            Backend::Legacy => Limits::LEGACY,
        }
    }
}

/// What was found to be in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readable {
    /// Reading rules is cheap.
    Rules,
    /// There are so many chains that only their names are read.
    NamesOnly,
}

/// Fingerprints of chains of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// On nft, the ruleset's generation; `None` when another process wrote during the dump, so that each chain is as
    /// it was at some moment of the dump. On legacy, which has no generations, `None`; all chains are of one moment.
    pub generation: Option<u32>,
    /// By name, each once.
    pub chains: Vec<DumpedChain>,
}

/// One chain of a [`Dump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DumpedChain {
    /// Its name.
    pub name: ChainName,
    /// Of its rules.
    pub fingerprint: Fingerprint,
    /// How many rules it holds.
    pub n_rules: u32,
}

impl DumpedChain {
    /// A chain that holds no rules.
    fn empty(name: ChainName) -> DumpedChain {
        DumpedChain { name, fingerprint: Fingerprint::of(&Fingerprint::hasher()), n_rules: 0 }
    }
}

impl Dump {
    /// What was dumped of `chain`; `None` when the chain does not exist.
    pub fn of(&self, chain: &ChainName) -> Option<DumpedChain> {
        let at = self.chains.binary_search_by_key(chain, |dumped| dumped.name).ok()?;
        Some(self.chains[at])
    }
}

/// The sizes and offsets of a legacy table, which take the kernel microseconds: they show any change of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Where built-in chains begin, by the number of their hook.
    pub hooks: [Option<u32>; 5],
    /// Where they end.
    pub policies: [u32; 5],
    /// Rules, heads of chains and policies.
    pub n_entries: u32,
    /// Size of all entries.
    pub n_bytes: u32,
}

/// The tables of one family.
pub trait Iptables: Restore<Error = RestoreError> + Send {
    /// The family.
    fn family(&self) -> IpFamily;
    /// The back-end.
    fn backend(&self) -> Backend;
    /// What one restore process is given.
    fn limits(&self) -> Limits {
        self.backend().limits()
    }
    /// Has [`Iptables::limits`] be less from now on, because the kernel takes no commit as large as they
    /// allow; `false` when they cannot be less.
    fn shrink_limits(&mut self) -> bool {
        false
    }
    /// Lets them be more again, after a full sync that succeeded: what the kernel was short of may have
    /// been short for a moment.
    fn relax_limits(&mut self) {}
    /// Whether the rules of `table` can be read without stalling the node.
    fn readable(&mut self, table: Table) -> anyhow::Result<Readable>;
    /// Passes on each line that `iptables-save` prints for `table`.
    fn save(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()>;
    /// Whether the rule of `jump` is in its chain.
    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool>;
    /// Passes on the name of each chain of `table`.
    fn chain_names(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()>;
    /// Fingerprints of the chains of `table`: of all chains, or of `only` these, where a chain that does not exist
    /// counts as empty. On nft a dump of all chains takes a time quadratic in rules (50 ms for 15 000), and that of
    /// one chain some 10 us; on legacy the kernel always returns the whole table (1 us a rule). `None` where the
    /// kernel has no dump.
    fn fingerprints(&mut self, table: Table, only: Option<&[ChainName]>) -> anyhow::Result<Option<Dump>>;
    /// On legacy, the outline of `table`; `None` on nft.
    fn outline(&mut self, _: Table) -> anyhow::Result<Option<Outline>> {
        Ok(None)
    }
    /// The ruleset's generation, which every commit of any process raises; `None` on legacy, which has none.
    fn generation(&mut self) -> anyhow::Result<Option<u32>>;
    /// How long restores have waited for others to let go of the xtables lock since this was asked
    /// last.
    fn lock_wait(&mut self) -> Duration {
        Duration::ZERO
    }
    /// Makes `chain` in `table` unless it is there.
    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()>;
    /// Whether `chain` is in `table`; an error when that cannot be told now.
    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool>;
}

/// Why a restore did not take effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The input was refused near `line` (from 1; the nft back-end may name the table's `COMMIT`).
    /// Tables committed above it stay applied.
    #[error("iptables-restore refused line {line} ({}): {message}", .text.as_deref().unwrap_or("no longer at hand"))]
    Refused {
        /// Which line.
        line: usize,
        /// The line, unless the input was too long to be kept.
        text: Option<String>,
        /// What the program said.
        message: String,
    },
    /// The commit was too large for the socket's buffer, which is small in a user namespace; nothing of
    /// the table that it was for changed.
    #[error("the kernel takes no commit as large as this one: {0}")]
    TooLarge(String),
    /// Another process held the xtables lock for the whole wait. It is taken for each table anew:
    /// those committed before stay applied.
    #[error("the xtables lock was still held after {} s", .0.as_secs())]
    Locked(Duration),
    /// The program failed without naming a line; nothing of the table that it worked on changed.
    #[error("iptables-restore failed with exit status {status}: {message}")]
    Failed {
        /// Its exit status.
        status: i32,
        /// What it said.
        message: String,
    },
    /// The program was killed; each table is changed wholly or not at all, nobody knows which.
    #[error("iptables-restore was killed by signal {0}")]
    Killed(i32),
    /// It did not end in time and was killed, as above.
    #[error("iptables-restore did not end within {} s and was killed", .0.as_secs())]
    TimedOut(Duration),
    /// The program could not be started or waited for; nothing changed.
    #[error("cannot run iptables-restore: {0}")]
    NotStarted(String),
}

impl From<&RestoreError> for FailureEffect {
    fn from(error: &RestoreError) -> FailureEffect {
        match error {
            RestoreError::NotStarted(_) => FailureEffect::NothingApplied,
            RestoreError::Refused { .. }
            | RestoreError::TooLarge(_)
            | RestoreError::Locked(_)
            | RestoreError::Failed { .. } => FailureEffect::EarlierTablesApplied,
            RestoreError::Killed(_) | RestoreError::TimedOut(_) => FailureEffect::Unknown,
        }
    }
}
