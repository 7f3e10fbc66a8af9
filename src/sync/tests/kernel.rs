//! Tables in memory that a test can inspect while the loop uses them.

use std::sync::PoisonError;

use super::*;
use crate::iptables::{ChainName, Jump};
use crate::kernel::{Dump, Outline, Readable, RestoreError};
use crate::plan::{Limits, Restore};

#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<FakeIptables>>, Arc<AtomicU32>);

impl Shared {
    /// `generation` counts the commits of all families.
    pub(super) fn new(fake: FakeIptables, generation: Arc<AtomicU32>) -> Shared {
        Shared(Arc::new(Mutex::new(fake)), generation)
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut FakeIptables) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Restore for Shared {
    type Error = RestoreError;

    fn begin(&mut self) {
        self.with(Restore::begin);
    }

    fn write(&mut self, text: &str) {
        self.with(|fake| fake.write(text));
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        let (result, n_commits) = self.with(|fake| {
            let before = fake.n_commits;
            (fake.end(), fake.n_commits - before)
        });
        self.1.fetch_add(n_commits, Ordering::Relaxed);
        result
    }
}

impl Iptables for Shared {
    fn family(&self) -> IpFamily {
        self.with(|fake| fake.family())
    }

    fn backend(&self) -> Backend {
        self.with(|fake| fake.backend())
    }

    fn limits(&self) -> Limits {
        self.with(|fake| fake.limits())
    }

    fn shrink_limits(&mut self) -> bool {
        self.with(|fake| fake.shrink_limits())
    }

    fn readable(&mut self, table: Table) -> anyhow::Result<Readable> {
        self.with(|fake| fake.readable(table))
    }

    fn save(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.with(|fake| fake.save(table, each))
    }

    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        self.with(|fake| fake.has_jump(jump))
    }

    /// As on the legacy back-end, as the fake of each family counts on its own.
    fn chain_names(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.with(|fake| fake.chain_names(table, each))
    }

    fn fingerprints(&mut self, table: Table, only: Option<&[ChainName]>) -> anyhow::Result<Option<Dump>> {
        let generation = Some(self.1.load(Ordering::Relaxed));
        let dump = self.with(|fake| fake.fingerprints(table, only))?;
        Ok(dump.map(|dump| Dump { generation, ..dump }))
    }

    fn outline(&mut self, table: Table) -> anyhow::Result<Option<Outline>> {
        self.with(|fake| fake.outline(table))
    }

    fn generation(&mut self) -> anyhow::Result<Option<u32>> {
        self.with(|fake| fake.generation())?;
        Ok(Some(self.1.load(Ordering::Relaxed)))
    }

    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()> {
        self.with(|fake| fake.ensure_chain(table, chain))
    }

    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool> {
        self.with(|fake| fake.has_chain(table, chain))
    }
}
