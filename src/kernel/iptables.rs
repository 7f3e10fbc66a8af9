//! The real tables: `iptables-restore` and `iptables-save` as child processes, and single commands
//! through the `iptables` crate.
#![allow(clippy::disallowed_methods, reason = "this is where processes are started")]

mod child;
mod detect;
mod lock;
mod minder;
mod running;
mod single;

pub use detect::{Unusable, has_legacy_table, in_use, ipv6_is_off, open, takes};
pub use minder::largest_child;

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Backend, Dump, Iptables, Outline, Readable, RestoreError, nft, xtables};
use crate::iptables::{ChainName, Jump, Table, Target, write};
use crate::net::IpFamily;
use crate::plan::{Limits, Restore};
use child::RestoreChild;
use running::PROGRAMS;

/// Has no program of this process started any more; those that only read are killed, restores go on.
pub fn end_programs() {
    PROGRAMS.end();
}

/// Whether any restore of this process runs.
pub fn is_restoring() -> bool {
    PROGRAMS.is_restoring()
}

/// Kills every program of this process, restores too, and waits until they have ended, no longer than
/// `limit`. No other is started any more.
pub fn kill_programs(limit: Duration) {
    PROGRAMS.kill_all(limit);
}

/// How long a program waits for the xtables lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What is left of it for a program at least: it counts in seconds.
const SHORTEST_LOCK_WAIT: Duration = Duration::from_secs(1);

/// Above how many chains of a table `iptables-nft-save`, which is quadratic in them, is not run.
const MAX_READABLE_CHAINS: usize = 10_000;

/// The names of the programs of one back-end and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Programs {
    /// `iptables` and its like.
    pub iptables: &'static str,
    /// `iptables-save` and its like.
    pub save: &'static str,
    /// `iptables-restore` and its like.
    pub restore: &'static str,
}

impl Programs {
    /// Those of `backend`, or of the system's choice.
    pub fn new(family: IpFamily, backend: Option<Backend>) -> Programs {
        let (iptables, save, restore) = match (family, backend) {
            (IpFamily::V4, None) => ("iptables", "iptables-save", "iptables-restore"),
            (IpFamily::V6, None) => ("ip6tables", "ip6tables-save", "ip6tables-restore"),
            (IpFamily::V4, Some(Backend::Nft)) => {
                ("iptables-nft", "iptables-nft-save", "iptables-nft-restore")
            }
            (IpFamily::V6, Some(Backend::Nft)) => {
                ("ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore")
            }
            (IpFamily::V4, Some(Backend::Legacy)) => {
                ("iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore")
            }
            (IpFamily::V6, Some(Backend::Legacy)) => {
                ("ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore")
            }
        };
        Programs { iptables, save, restore }
    }
}

/// The tables of one family in the network namespace of this process.
pub struct KernelIptables {
    family: IpFamily,
    backend: Backend,
    programs: Programs,
    restore: Option<RestoreChild>,
    limits: Limits,
    lock_wait: Duration,
}

impl KernelIptables {
    /// The tables that `programs`, which are of `backend`, work on.
    pub fn new(family: IpFamily, backend: Backend, programs: Programs) -> KernelIptables {
        let limits = backend.limits();
        KernelIptables { family, backend, programs, restore: None, limits, lock_wait: Duration::ZERO }
    }

    /// The same tables once more, for use beside this one.
    pub fn twin(&self) -> KernelIptables {
        KernelIptables::new(self.family, self.backend, self.programs)
    }

    /// Runs one command of fixed words.
    fn execute(&self, table: Table, command: &str) -> anyhow::Result<Output> {
        single::execute(self.programs.iptables, table, command, minder::LIMIT)
    }
}

/// What a program said on stderr, on one line.
fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_advice(line)).collect();
    if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") }
}

/// Lines that say nothing about what went wrong.
fn is_advice(line: &str) -> bool {
    line.starts_with("Try `") || line.starts_with("# Warning:")
}

impl Restore for KernelIptables {
    type Error = RestoreError;

    fn begin(&mut self) {
        // The program does not tell how long it waited for the lock: most of the wait is done here.
        let waited = match self.backend {
            Backend::Legacy => lock::wait(&lock::path(), LOCK_WAIT - SHORTEST_LOCK_WAIT),
            Backend::Nft => Duration::ZERO,
        };
        self.lock_wait += waited;
        self.restore = Some(RestoreChild::start(
            (self.backend, self.programs.restore),
            LOCK_WAIT,
            waited,
            minder::LIMIT,
        ));
    }

    fn write(&mut self, text: &str) {
        if let Some(child) = &mut self.restore {
            child.write(text);
        }
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        match self.restore.take() {
            Some(child) => child.end(),
            None => Ok(()),
        }
    }
}

impl Iptables for KernelIptables {
    fn family(&self) -> IpFamily {
        self.family
    }

    fn backend(&self) -> Backend {
        self.backend
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn shrink_limits(&mut self) -> bool {
        // A legacy table is replaced as a whole, whatever the input.
        let less = self.limits.halved().filter(|_| self.backend == Backend::Nft);
        self.limits = less.unwrap_or(self.limits);
        less.is_some()
    }

    fn relax_limits(&mut self) {
        self.limits = self.limits.doubled(self.backend.limits());
    }

    fn lock_wait(&mut self) -> Duration {
        std::mem::take(&mut self.lock_wait)
    }

    fn readable(&mut self, table: Table) -> anyhow::Result<Readable> {
        if self.backend == Backend::Legacy {
            return Ok(Readable::Rules);
        }
        let mut n_chains = 0usize;
        self.chain_names(table, &mut |_| n_chains += 1)?;
        Ok(if n_chains < MAX_READABLE_CHAINS { Readable::Rules } else { Readable::NamesOnly })
    }

    fn save(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.save);
        command.args(["-t", table.as_str()]);
        child::read_again(&mut command, minder::LIMIT, each)
    }

    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        let rule = write::rule_text(self.family, &jump.rule);
        let output = self.execute(jump.table, &format!("-C {} {rule}", jump.from))?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            // Also 2 when the chain that it leads to is gone, as after `-F` and `-X`.
            Some(2) if self.is_target_gone(jump)? => Ok(false),
            _ => bail!(
                "cannot look for the jump {rule:?} in {} {}: {}",
                jump.table,
                jump.from,
                said(&output.stderr)
            ),
        }
    }

    fn chain_names(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        match self.backend {
            Backend::Nft => nft::chain_names(self.family, table.as_str(), each)
                .with_context(|| format!("cannot list the chains of table {table} over netlink")),
            Backend::Legacy => xtables::chain_names(self.family, table, each)
                .with_context(|| format!("cannot list the chains of table {table}")),
        }
    }

    fn fingerprints(&mut self, table: Table, only: Option<&[ChainName]>) -> anyhow::Result<Option<Dump>> {
        match self.backend {
            Backend::Nft => nft::fingerprints(self.family, table.as_str(), only)
                .map(Some)
                .with_context(|| format!("cannot dump the rules of table {table} over netlink")),
            Backend::Legacy => xtables::fingerprints(self.family, table, only)
                .map(Some)
                .with_context(|| format!("cannot read the bytes of table {table}")),
        }
    }

    fn outline(&mut self, table: Table) -> anyhow::Result<Option<Outline>> {
        match self.backend {
            Backend::Nft => Ok(None),
            Backend::Legacy => xtables::outline(self.family, table)
                .map(Some)
                .with_context(|| format!("cannot read the numbers of table {table}")),
        }
    }

    fn generation(&mut self) -> anyhow::Result<Option<u32>> {
        match self.backend {
            Backend::Nft => nft::generation().map(Some).context("cannot read the number of the ruleset"),
            Backend::Legacy => Ok(None),
        }
    }

    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()> {
        if self.has_chain(table, chain)? {
            return Ok(());
        }
        let output = self.execute(table, &format!("-N {chain}"))?;
        // 1: somebody else made it meanwhile.
        if output.status.success() || output.status.code() == Some(1) {
            return Ok(());
        }
        bail!("cannot make chain {chain} in table {table}: {}", said(&output.stderr))
    }

    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool> {
        if let Ok(is_there) = self.shows_chain(table, chain) {
            return Ok(is_there);
        }
        let output = self.execute(table, &format!("-S {chain}"))?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            // 4: the lock is held, or the kernel is busy: nothing is known.
            _ => bail!("cannot look for chain {chain} in table {table}: {}", said(&output.stderr)),
        }
    }
}

impl KernelIptables {
    /// Whether `chain` is in `table`, without a process.
    fn shows_chain(&self, table: Table, chain: ChainName) -> std::io::Result<bool> {
        match self.backend {
            Backend::Nft => nft::has_chain(self.family, table.as_str(), chain.as_str()),
            Backend::Legacy => {
                let mut is_there = false;
                xtables::chain_names(self.family, table, &mut |name| is_there |= name == chain.as_str())?;
                Ok(is_there)
            }
        }
    }

    fn is_target_gone(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        match jump.rule.target {
            Some(Target::Jump(chain) | Target::Goto(chain)) => Ok(!self.has_chain(jump.table, chain)?),
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests;
