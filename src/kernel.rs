//! Access to the kernel: each program or kernel file is behind one small trait or function, so that tests
//! can replace it.

pub(crate) mod addrs;
pub(crate) mod affinity_lists;
pub mod counter_reader;
mod dnat_target;
#[cfg(any(test, feature = "fake-kernel"))]
pub mod fake;
pub mod flow_table;
pub(crate) mod ipset;
pub(crate) mod ipvs;
mod netlink;
pub mod nfacct;
pub mod nft;
pub(crate) mod open_files;
pub mod programs;
pub(crate) mod sysctl;
mod xtables;

#[cfg(test)]
pub(crate) use netlink::in_new_namespace;

use std::time::Duration;

use crate::iptables::{ChainName, Fingerprint, Jump, Table};
use crate::net::IpFamily;
use crate::plan::{FailureEffect, InputExcerpt, Limits, Restore};

/// The two implementations of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// iptables over nf_tables.
    Nft,
    /// iptables over the older x_tables.
    Legacy,
}

impl Backend {
    /// `nft` or `legacy`, as in the programs' names and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::Nft => "nft",
            Backend::Legacy => "legacy",
        }
    }

    /// Limits for the input of one restore process.
    pub fn limits(self) -> Limits {
        match self {
            Backend::Nft => Limits::NFT,
            Backend::Legacy => Limits::LEGACY,
        }
    }
}

/// How much of a table can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readable {
    /// Rules can be read quickly.
    Rules,
    /// The table has so many chains that only their names are read.
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
    /// Offsets of the first rules of built-in chains, by the number of their hook.
    pub hooks: [Option<u32>; 5],
    /// Offsets of their policies.
    pub policies: [u32; 5],
    /// Rules, heads of chains and policies.
    pub n_entries: u32,
    /// Size of all entries.
    pub n_bytes: u32,
}

/// The iptables tables of one family.
pub trait Iptables: Restore<Error = RestoreError> + Send {
    /// The family.
    fn family(&self) -> IpFamily;
    /// The back-end.
    fn backend(&self) -> Backend;
    /// Limits for the input of one restore process.
    fn limits(&self) -> Limits {
        self.backend().limits()
    }
    /// Lowers [`Iptables::limits`] after the kernel had no room for a commit; `false` when they are already
    /// lowest.
    fn shrink_limits(&mut self) -> bool {
        false
    }
    /// Raises the limits again after a successful full sync, since the shortage may have been temporary.
    fn relax_limits(&mut self) {}
    /// Whether the rules of `table` can be read without stalling the node.
    fn readable(&mut self, table: Table) -> anyhow::Result<Readable>;
    /// Passes each line of `iptables-save` for `table` to `each`.
    fn save(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()>;
    /// Whether the rule of `jump` is in its chain.
    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool>;
    /// Passes the name of each chain of `table` to `each`.
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
    /// How long restores have waited for the xtables lock since the last call.
    fn lock_wait(&mut self) -> Duration {
        Duration::ZERO
    }
    /// What is kept of the input of the last restore since this was last called.
    fn take_input(&mut self) -> Option<InputExcerpt> {
        None
    }
    /// Creates `chain` in `table` unless it exists.
    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()>;
    /// Whether `chain` exists in `table`; an error when this cannot be determined.
    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool>;
}

/// Why a restore did not take effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The input was rejected near `line` (from 1; the nft back-end may name the table's `COMMIT`). Tables
    /// committed above it stay applied.
    #[error("iptables-restore rejected line {line} ({}): {message}", .text.as_deref().unwrap_or("text not kept"))]
    Refused {
        /// Line number.
        line: usize,
        /// The line, unless the input was too long to be kept.
        text: Option<String>,
        /// Message of the program.
        message: String,
    },
    /// The commit exceeded the socket's buffer, which is small in a user namespace. Its table is unchanged.
    #[error("the commit is too large for the kernel: {0}")]
    TooLarge(String),
    /// Another process held the xtables lock for the whole wait. Each table takes the lock on its own:
    /// tables committed before stay applied.
    #[error("the xtables lock was still held after {} s", .0.as_secs())]
    Locked(Duration),
    /// The program failed without naming a line. Its current table is unchanged.
    #[error("iptables-restore failed with exit status {status}: {message}")]
    Failed {
        /// Its exit status.
        status: i32,
        /// Message of the program.
        message: String,
    },
    /// The program was killed. Each table is changed completely or not at all, but which ones is unknown.
    #[error("iptables-restore was killed by signal {0}")]
    Killed(i32),
    /// The program exceeded its time limit and was killed, with the same effect.
    #[error("iptables-restore did not end within {} s and was killed", .0.as_secs())]
    TimedOut(Duration),
    /// The program could not be started. Nothing changed.
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
