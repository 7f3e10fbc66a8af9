//! Tables that accept every restore and store nothing.

#![allow(dead_code, reason = "each bench uses a part of this module")]

use std::hint::black_box;
use std::sync::atomic::AtomicBool;

use chainsmith::apply::{FamilySync, SyncReport};
use chainsmith::compile::View;
use chainsmith::iptables::{ChainName, Jump, Table};
use chainsmith::kernel::{Backend, Dump, Iptables, Readable, RestoreError};
use chainsmith::model::{Change, Touched};
use chainsmith::net::IpFamily;
use chainsmith::plan::Restore;

use crate::cluster::Cluster;

/// IPv4 tables that stay empty.
#[derive(Debug)]
pub struct Sink {
    backend: Backend,
    /// The last input, if it is small.
    pub last: String,
    /// The first input, if it is small.
    pub first: Option<String>,
}

/// How much of an input is kept.
const MAX_KEPT: usize = 1 << 20;

impl Sink {
    /// Tables of `backend`.
    pub fn new(backend: Backend) -> Sink {
        Sink { backend, last: String::new(), first: None }
    }
}

impl Restore for Sink {
    type Error = RestoreError;

    fn begin(&mut self) {
        self.last.clear();
    }

    fn write(&mut self, text: &str) {
        black_box(text);
        if self.last.len() < MAX_KEPT {
            self.last.push_str(text);
        }
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        self.first.get_or_insert_with(|| self.last.clone());
        Ok(())
    }
}

impl Iptables for Sink {
    fn family(&self) -> IpFamily {
        IpFamily::V4
    }

    fn backend(&self) -> Backend {
        self.backend
    }

    fn readable(&mut self, _: Table) -> anyhow::Result<Readable> {
        Ok(Readable::Rules)
    }

    fn save(&mut self, _: Table, _: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        Ok(())
    }

    fn has_jump(&mut self, _: &Jump) -> anyhow::Result<bool> {
        Ok(false)
    }

    fn fingerprints(&mut self, _: Table, _: Option<&[ChainName]>) -> anyhow::Result<Option<Dump>> {
        Ok(None)
    }

    fn generation(&mut self) -> anyhow::Result<Option<u32>> {
        Ok(None)
    }

    fn chain_names(&mut self, _: Table, _: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        Ok(())
    }

    fn ensure_chain(&mut self, _: Table, _: ChainName) -> anyhow::Result<()> {
        Ok(())
    }

    fn has_chain(&mut self, _: Table, _: ChainName) -> anyhow::Result<bool> {
        Ok(true)
    }
}

/// A family before its first sync.
pub fn fresh(cluster: &Cluster, backend: Backend) -> FamilySync<Sink> {
    let mut family = FamilySync::new(Sink::new(backend));
    family.set_settings(cluster.settings.clone());
    family
}

/// One sync.
pub fn sync(family: &mut FamilySync<Sink>, cluster: &Cluster) -> SyncReport {
    let view = View { snapshot: &cluster.snapshot, place: cluster.place() };
    let report = family.sync(view, &AtomicBool::new(false));
    assert_eq!(report.outcome, Ok(()));
    report
}

/// One change of the cluster, and its sync.
pub fn change(family: &mut FamilySync<Sink>, cluster: &mut Cluster, change: Change) -> SyncReport {
    let mut touched = Touched::default();
    cluster.snapshot.apply(change, &mut touched);
    family.touch(touched.services.v4);
    sync(family, cluster)
}
