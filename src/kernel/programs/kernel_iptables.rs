//! The iptables tables of one family, through the programs of one back-end.
#![allow(clippy::disallowed_methods, reason = "starts processes")]

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use super::child::{self, stderr_message};
use super::lock::{self, LOCK_WAIT};
use super::restore_child::RestoreChild;
use super::{single, watchdog};
use crate::iptables::{ChainName, Jump, Table, Target, write};
use crate::kernel::counter_reader::CommitObserver;
use crate::kernel::{Backend, Dump, Iptables, Outline, Readable, RestoreError, nft, xtables};
use crate::net::IpFamily;
use crate::plan::{InputExcerpt, Limits, Restore};

/// The shortest wait passed to a program, which counts in seconds.
const MIN_LOCK_WAIT: Duration = Duration::from_secs(1);

/// With more chains in a table, `iptables-nft-save` is not run, since its time is quadratic in them.
const MAX_READABLE_CHAINS: usize = 10_000;

/// Names of the programs of one back-end and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Programs {
    /// The variant of `iptables`.
    pub iptables: &'static str,
    /// The variant of `iptables-save`.
    pub save: &'static str,
    /// The variant of `iptables-restore`.
    pub restore: &'static str,
}

impl Programs {
    /// The programs of `backend`, or the system's default programs.
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
    last_input: Option<InputExcerpt>,
    commit_observer: Option<Arc<dyn CommitObserver>>,
}

impl KernelIptables {
    /// The tables of `programs`, which belong to `backend`.
    pub fn new(family: IpFamily, backend: Backend, programs: Programs) -> KernelIptables {
        let limits = backend.limits();
        KernelIptables {
            family,
            backend,
            programs,
            restore: None,
            limits,
            lock_wait: Duration::ZERO,
            last_input: None,
            commit_observer: None,
        }
    }

    /// Has `observer` called at each commit to nat through this handle.
    pub fn observe_commits(&mut self, observer: Arc<dyn CommitObserver>) {
        self.commit_observer = Some(observer);
    }

    /// Another handle to the same tables.
    pub fn twin(&self) -> KernelIptables {
        KernelIptables::new(self.family, self.backend, self.programs)
    }

    /// Runs one command of fixed text.
    fn execute(&self, table: Table, command: &str) -> anyhow::Result<Output> {
        single::execute(self.programs.iptables, table, command, watchdog::TIME_LIMIT)
    }
}

impl Restore for KernelIptables {
    type Error = RestoreError;

    fn begin(&mut self) {
        // The program does not report how long it waited for the lock, so most of the wait is done here.
        let waited = match self.backend {
            Backend::Legacy => lock::wait(&lock::path(), LOCK_WAIT - MIN_LOCK_WAIT),
            Backend::Nft => Duration::ZERO,
        };
        self.lock_wait += waited;
        self.restore = Some(RestoreChild::start(
            (self.backend, self.programs.restore),
            LOCK_WAIT,
            waited,
            watchdog::TIME_LIMIT,
        ));
    }

    fn write(&mut self, text: &str) {
        if let Some(child) = &mut self.restore {
            child.write(text);
        }
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        let Some(child) = self.restore.take() else { return Ok(()) };
        let (result, input) = child.end();
        self.last_input = Some(input);
        if let Some(observer) = &self.commit_observer {
            observer.restored(self.family, result.is_ok());
        }
        result
    }

    fn observes_commits(&self) -> bool {
        self.commit_observer.is_some()
    }

    fn before_commit(&mut self, table: Table, chains: &[ChainName]) {
        if table == Table::Nat
            && let Some(observer) = &self.commit_observer
        {
            observer.before_commit(self.family, chains);
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

    fn take_input(&mut self) -> Option<InputExcerpt> {
        self.last_input.take()
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
        child::read_lines_with_retry(&mut command, watchdog::TIME_LIMIT, each)
    }

    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        let rule = write::rule_text(self.family, &jump.rule);
        let output = self.execute(jump.table, &format!("-C {} {rule}", jump.from))?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            // Status 2 also means that the target chain does not exist, as after `-F` and `-X`.
            Some(2) if self.is_target_missing(jump)? => Ok(false),
            _ => bail!(
                "cannot check for the jump {rule:?} in {} {}: {}",
                jump.table,
                jump.from,
                stderr_message(&output.stderr)
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
                .with_context(|| format!("cannot read table {table}")),
        }
    }

    fn outline(&mut self, table: Table) -> anyhow::Result<Option<Outline>> {
        match self.backend {
            Backend::Nft => Ok(None),
            Backend::Legacy => xtables::outline(self.family, table)
                .map(Some)
                .with_context(|| format!("cannot read the header of table {table}")),
        }
    }

    fn generation(&mut self) -> anyhow::Result<Option<u32>> {
        match self.backend {
            Backend::Nft => nft::generation().map(Some).context("cannot read the ruleset's generation"),
            Backend::Legacy => Ok(None),
        }
    }

    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()> {
        if self.has_chain(table, chain)? {
            return Ok(());
        }
        let output = self.execute(table, &format!("-N {chain}"))?;
        // 1: another process created it in the meantime.
        if output.status.success() || output.status.code() == Some(1) {
            return Ok(());
        }
        bail!("cannot create chain {chain} in table {table}: {}", stderr_message(&output.stderr))
    }

    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool> {
        if let Ok(exists) = self.has_chain_in_kernel(table, chain) {
            return Ok(exists);
        }
        let output = self.execute(table, &format!("-S {chain}"))?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            // 4: the lock is held, or the kernel is busy; the result is unknown.
            _ => bail!("cannot check for chain {chain} in table {table}: {}", stderr_message(&output.stderr)),
        }
    }
}

impl KernelIptables {
    /// Whether `chain` is in `table`, without starting a process.
    fn has_chain_in_kernel(&self, table: Table, chain: ChainName) -> std::io::Result<bool> {
        match self.backend {
            Backend::Nft => nft::has_chain(self.family, table.as_str(), chain.as_str()),
            Backend::Legacy => {
                let mut exists = false;
                xtables::chain_names(self.family, table, &mut |name| exists |= name == chain.as_str())?;
                Ok(exists)
            }
        }
    }

    fn is_target_missing(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        match jump.rule.target {
            Some(Target::Jump(chain) | Target::Goto(chain)) => Ok(!self.has_chain(jump.table, chain)?),
            _ => Ok(false),
        }
    }
}
