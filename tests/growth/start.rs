//! A start on a node without rules, in a cluster of any size: urgent Services come first, with a commit of
//! constant size, and no client is rejected before its Service works.

use std::sync::atomic::AtomicBool;

use chainsmith::apply::FamilySync;
use chainsmith::compile::View;
use chainsmith::config::LayoutChoice;
use chainsmith::iptables::{ChainName, Jump, Ruleset, Table};
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::kernel::{Backend, Dump, Iptables, Outline, Readable, RestoreError};
use chainsmith::net::IpFamily;
use chainsmith::plan::{Limits, Restore};

use crate::sink;
use crate::starting::{self, Claims, FAMILY, service_chains, urgent_chains};

/// Tables in memory that are checked after every commit.
struct Watched<F> {
    fake: FakeIptables,
    n_commits: usize,
    /// Whether the process after the first is killed.
    is_cut: bool,
    /// Called with the number of commits so far, and the content of the tables.
    look: F,
}

impl<F: FnMut(usize, &Ruleset)> Restore for Watched<F> {
    type Error = RestoreError;

    fn begin(&mut self) {
        // Earlier input no longer matters.
        self.fake.inputs.clear();
        self.fake.begin();
    }

    fn write(&mut self, text: &str) {
        self.fake.write(text);
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        self.fake.history = Some(Vec::new());
        let result = self.fake.end();
        if result.is_ok() && std::mem::take(&mut self.is_cut) {
            self.fake.failures = vec![RestoreError::Killed(9)];
        }
        for now in self.fake.history.take().into_iter().flatten() {
            (self.look)(self.n_commits, &now);
            self.n_commits += 1;
        }
        result
    }
}

impl<F: FnMut(usize, &Ruleset) + Send> Iptables for Watched<F> {
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
        self.fake.save(table, each)
    }

    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        self.fake.has_jump(jump)
    }

    fn chain_names(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.fake.chain_names(table, each)
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

    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()> {
        self.fake.ensure_chain(table, chain)
    }

    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool> {
        self.fake.has_chain(table, chain)
    }
}

/// The first nat commit of the first sync; that of filter comes before it.
const FIRST_NAT: usize = 1;

/// Checks `n_services` with two endpoints each, one in `every` of them, after every commit; if the first
/// sync `is_cut` short, after those of the next one too.
fn check(n_services: usize, every: usize, layout: LayoutChoice, backend: Backend, is_cut: bool) {
    let cluster = starting::cluster(n_services, 2, layout);
    let claims = Claims::new(&cluster, n_services, every);
    let mut served = Vec::new();
    let look = |n: usize, now: &Ruleset| {
        let what = format!("{n_services} Services, {layout:?}, {backend:?}, commit {n}");
        served.push(claims.others_have_their_first_or_final_fate(&what, now));
        if n == FIRST_NAT {
            assert_eq!(service_chains(now), urgent_chains(&cluster), "{what}: these and no others");
        }
        if n >= FIRST_NAT {
            claims.urgent_are_served(&what, now);
        }
    };
    let fake = FakeIptables::new(FAMILY, backend);
    let mut family = FamilySync::new(Watched { fake, n_commits: 0, is_cut, look });
    family.set_settings(cluster.settings.clone());
    let view = View { snapshot: &cluster.snapshot, place: cluster.place() };
    let mut report = family.sync(view, &AtomicBool::new(false));
    let mut n_commits = report.tally.n_commits;
    if is_cut {
        assert!(report.outcome.is_err(), "{report:?}");
        report = family.sync(view, &AtomicBool::new(false));
        n_commits += report.tally.n_commits;
    }
    assert_eq!((report.outcome, n_commits), (Ok(()), family.kernel().n_commits));
    drop(family);
    assert_eq!(served[..=FIRST_NAT], [0, 0], "no other Service works after the first commit");
    assert_eq!(served.last(), Some(&claims.n_others()), "at the end all do: {served:?}");
    assert!(claims.n_others() > 100, "{}", claims.n_others());
}

#[test]
fn urgent_services_work_first_and_no_other_client_is_rejected_meanwhile() {
    for backend in [Backend::Nft, Backend::Legacy] {
        check(10_000, 167, LayoutChoice::Auto, backend, false);
        check(1_000, 17, LayoutChoice::Classic, backend, false);
    }
}

#[test]
fn an_interrupted_first_sync_continues_in_the_same_order() {
    for backend in [Backend::Nft, Backend::Legacy] {
        check(1_500, 17, LayoutChoice::Auto, backend, true);
        check(1_000, 17, LayoutChoice::Classic, backend, true);
    }
}

#[test]
fn the_first_commit_is_the_same_whatever_the_size() {
    for layout in [LayoutChoice::Classic, LayoutChoice::Compact] {
        for backend in [Backend::Nft, Backend::Legacy] {
            let [small, medium, large] = [1_000, 3_000, 10_000].map(|n_services| {
                let cluster = starting::cluster(n_services, 2, layout);
                let mut family = sink::fresh(&cluster, backend);
                sink::sync(&mut family, &cluster);
                family.kernel().first.take().expect("some input")
            });
            assert!(small.contains("default/kubernetes:tcp-443 cluster IP"), "{small}");
            assert!(small.lines().count() < 150, "{small}");
            assert!(medium == small && large == small, "{layout:?} {backend:?}: {small}\n{medium}\n{large}");
        }
    }
}
