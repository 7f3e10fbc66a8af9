//! An agent of one family over its life: changes of a random cluster, synced to tables in memory, with
//! restores that fail.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use chainsmith::apply::{FamilySync, SyncReport};
use chainsmith::compile::View;
use chainsmith::iptables::{ChainName, Jump, Ruleset, Table};
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::kernel::{Backend, Dump, Iptables, Outline, Readable, RestoreError};
use chainsmith::model::{ServiceName, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::plan::{Limits, Restore};
use chainsmith::rules::names;
use proptest::prelude::*;
use proptest::sample::select;

use crate::cluster::{Edit, World};

/// How a restore fails. The number of tables that it commits before is taken modulo the number of tables.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    NotStarted,
    Locked(usize),
    /// Without naming a line.
    Failed(usize),
    /// At a random line. The service port of that line is left out for a while.
    Refused(usize),
    /// All of its tables may have been committed.
    Killed(usize),
    /// The tables cannot be read before the next sync.
    Unreadable,
}

pub fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::NotStarted),
        (0..4usize).prop_map(Fault::Locked),
        (0..4usize).prop_map(Fault::Failed),
        (0..4usize).prop_map(Fault::Killed),
        Just(Fault::Unreadable),
    ]
}

/// The input limits of one restore: unlimited, or so low that each sync needs many.
pub fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        Just(Limits::LEGACY),
        Just(Limits::NFT),
        (1..30usize, 1..60usize).prop_map(|(max_names, max_rules)| Limits { max_names, max_rules }),
    ]
}

pub fn families() -> impl Strategy<Value = IpFamily> {
    select(&IpFamily::BOTH[..])
}

pub fn backends() -> impl Strategy<Value = Backend> {
    select(vec![Backend::Nft, Backend::Legacy])
}

/// Tables in memory whose restores fail as configured.
pub struct Flaky {
    pub fake: FakeIptables,
    /// The result of each of the next restores, the last one first.
    pub faults: Vec<Option<Fault>>,
}

impl Flaky {
    pub fn new(mut fake: FakeIptables) -> Flaky {
        for table in Table::ALL {
            fake.ruleset.chain_mut(table, names::KUBE_PROXY_CANARY);
        }
        fake.history = Some(Vec::new());
        Flaky { fake, faults: Vec::new() }
    }

    /// Applies the first tables of the input.
    fn end_after(&mut self, n_tables: usize) -> Result<(), RestoreError> {
        let input = self.fake.inputs.last_mut().expect("begin comes before end");
        let end = input
            .match_indices("COMMIT\n")
            .nth(n_tables.wrapping_sub(1))
            .map_or(0, |(at, word)| at + word.len());
        let rest = input.split_off(end);
        let result = self.fake.end();
        self.fake.inputs.last_mut().expect("an input").push_str(&rest);
        result
    }
}

impl Restore for Flaky {
    type Error = RestoreError;

    fn begin(&mut self) {
        self.fake.begin();
    }

    fn write(&mut self, text: &str) {
        self.fake.write(text);
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        let n_tables = self.fake.inputs.last().map_or(0, |input| input.matches("COMMIT\n").count());
        let (n_done, error) = match self.faults.pop().flatten() {
            None | Some(Fault::Unreadable) => return self.fake.end(),
            Some(Fault::NotStarted) => (0, RestoreError::NotStarted("no".to_owned())),
            Some(Fault::Locked(n)) => (n % n_tables, RestoreError::Locked(std::time::Duration::from_secs(5))),
            Some(Fault::Failed(n)) => {
                (n % n_tables, RestoreError::Failed { status: 4, message: "out of memory".to_owned() })
            }
            Some(Fault::Killed(n)) => (n % (n_tables + 1), RestoreError::Killed(9)),
            Some(Fault::Refused(n)) => {
                let error =
                    RestoreError::Refused { line: 2, text: None, message: "Too many links".to_owned() };
                (n % n_tables, error)
            }
        };
        self.end_after(n_done)?;
        Err(error)
    }
}

impl Iptables for Flaky {
    fn family(&self) -> IpFamily {
        self.fake.family()
    }

    fn backend(&self) -> Backend {
        self.fake.backend()
    }

    fn limits(&self) -> Limits {
        self.fake.limits()
    }

    fn readable(&mut self, table: Table) -> anyhow::Result<Readable> {
        self.fake.readable(table)
    }

    fn save(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        if matches!(self.faults.last(), Some(Some(Fault::Unreadable))) {
            self.faults.pop();
            anyhow::bail!("cannot run iptables-save");
        }
        self.fake.save(table, each)
    }

    fn fingerprints(&mut self, table: Table, only: Option<&[ChainName]>) -> anyhow::Result<Option<Dump>> {
        self.fake.fingerprints(table, only)
    }

    fn outline(&mut self, table: Table) -> anyhow::Result<Option<Outline>> {
        self.fake.outline(table)
    }

    fn generation(&mut self) -> anyhow::Result<Option<u32>> {
        self.fake.generation()
    }

    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        self.fake.has_jump(jump)
    }

    fn chain_names(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.fake.chain_names(table, each)
    }

    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()> {
        self.fake.ensure_chain(table, chain)
    }

    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool> {
        self.fake.has_chain(table, chain)
    }
}

/// The agent, with its view of the cluster.
pub struct Live {
    pub sync: FamilySync<Flaky>,
    pub world: World,
    snapshot: Snapshot,
}

impl Live {
    /// An agent that has listed `world` and not synced yet.
    pub fn start(kernel: Flaky, world: World) -> Live {
        let snapshot = world.snapshot();
        let mut live = Live { sync: FamilySync::new(kernel), world, snapshot };
        live.settle();
        live
    }

    fn family(&self) -> IpFamily {
        self.sync.family()
    }

    fn settle(&mut self) {
        self.sync.set_settings(self.world.settings(self.family()));
    }

    /// Records `edits`, as the loop does.
    pub fn edit(&mut self, edits: &[Edit]) {
        for edit in edits {
            let zone = self.world.node.zone.clone();
            let mut touched = Touched::default();
            if let Some(change) = self.world.edit(edit) {
                self.snapshot.apply(change, &mut touched);
            }
            let services: BTreeSet<ServiceName> = touched.services.get(self.family()).clone();
            self.sync.touch(services);
            if self.world.node.zone != zone {
                self.sync.touch_everything();
            }
        }
        self.settle();
    }

    pub fn sync(&mut self) -> SyncReport {
        let view = View { snapshot: &self.snapshot, place: self.world.place() };
        self.sync.sync(view, &AtomicBool::new(false))
    }

    pub fn fake(&mut self) -> &mut FakeIptables {
        &mut self.sync.kernel().fake
    }

    /// The tables now.
    pub fn tables(&mut self) -> Ruleset {
        self.fake().ruleset.clone()
    }

    /// The tables after a full sync from empty ones; but KUBE-FIREWALL, which belongs to the kubelet too,
    /// keeps its content when no rule is desired there.
    pub fn desired(&mut self) -> Ruleset {
        let mut desired = self.world.ruleset(self.family());
        let firewall = desired.chain_mut(Table::Filter, names::KUBE_FIREWALL);
        if firewall.rules.is_empty()
            && let Some(there) = self.fake().ruleset.chain(Table::Filter, &names::KUBE_FIREWALL)
        {
            firewall.clone_from(there);
        }
        desired
    }

    /// The tables after each commit since the last call.
    pub fn history(&mut self) -> Vec<Ruleset> {
        std::mem::take(self.fake().history.as_mut().expect("recorded history"))
    }
}

/// Tables with only built-in chains, with `limits`.
pub fn empty(family: IpFamily, backend: Backend, limits: Limits) -> Flaky {
    let mut fake = FakeIptables::new(family, backend);
    fake.limits = limits;
    Flaky::new(fake)
}

/// Fails with the differences.
pub fn same(family: IpFamily, what: &str, actual: &Ruleset, expected: &Ruleset) -> Result<(), TestCaseError> {
    if actual == expected {
        return Ok(());
    }
    let text = |ruleset: &Ruleset| chainsmith::iptables::write::save(family, ruleset);
    let (actual, expected) = (text(actual), text(expected));
    let only = |a: &str, b: &str| {
        a.lines()
            .filter(|line| !b.lines().any(|other| other == *line))
            .map(|l| format!("  {l}\n"))
            .collect::<String>()
    };
    let (more, less) = (only(&actual, &expected), only(&expected, &actual));
    Err(TestCaseError::fail(format!("{what}: too much:\n{more}missing:\n{less}(nothing: the order differs)")))
}
