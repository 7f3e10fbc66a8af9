//! Whatever rules an agent finds in the kernel when it starts, it reaches the desired rules and leaves
//! foreign rules alone.

use std::collections::BTreeMap;

use chainsmith::iptables::{ChainContent, ChainName, Match, Rule, Ruleset, Table, Target};
use chainsmith::kernel::Readable;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::rules::ownership::ChainOwner;
use chainsmith::rules::{fixed, names};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::cluster::{edits, worlds};
use crate::for_all;
use crate::live::{Flaky, Live, backends, families, limits, same};

/// A change of the tables by another program, another release or an accident.
#[derive(Clone, Debug)]
enum Junk {
    /// A jump of the agent is missing.
    NoJump(Index),
    /// All rules of a chain from the n-th on are missing.
    Cut(Index, usize),
    /// A chain of the agent contains an additional rule.
    Foreign(Index, Index),
    /// Chains with the agent's prefixes that jump to each other, each to chains of a higher number.
    Stale(Vec<(&'static str, Vec<Index>)>),
    /// A dispatch rule jumps to the stale chain of this number.
    StaleCaller(Index),
    /// Foreign rules.
    Others,
    /// The kubelet's rules exist already.
    Kubelet,
}

fn junk() -> impl Strategy<Value = Vec<Junk>> {
    let index = any::<Index>;
    let prefixes = select(vec!["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SVL-"]);
    let stale = vec((prefixes, vec(index(), 0..3)), 1..12);
    vec(
        prop_oneof![
            2 => index().prop_map(Junk::NoJump),
            3 => (index(), 0..3usize).prop_map(|(chain, n)| Junk::Cut(chain, n)),
            2 => (index(), index()).prop_map(|(chain, at)| Junk::Foreign(chain, at)),
            2 => stale.prop_map(Junk::Stale),
            2 => index().prop_map(Junk::StaleCaller),
            1 => Just(Junk::Others),
            1 => Just(Junk::Kubelet),
        ],
        0..8,
    )
}

fn to(chain: ChainName) -> Rule {
    Rule { target: Some(Target::Jump(chain)), ..Rule::default() }
}

fn foreign_rule() -> Rule {
    Rule { matches: vec![Match::Comment("not ours".into())], target: Some(Target::Accept), ..Rule::default() }
}

/// Chains of `table` that the agent may flush.
fn ours(ruleset: &Ruleset, table: Table) -> Vec<ChainName> {
    ruleset.tables[&table].keys().copied().filter(|name| ChainOwner::of(table, name).is_ours()).collect()
}

fn spoil(ruleset: &mut Ruleset, junk: &Junk) {
    match junk {
        Junk::NoJump(which) => {
            let jumps = fixed::jumps();
            let jump = &jumps[which.index(jumps.len())];
            ruleset.chain_mut(jump.table, jump.from).rules.retain(|rule| *rule != jump.rule);
        }
        Junk::Cut(which, n) => {
            let table = if n % 2 == 0 { Table::Nat } else { Table::Filter };
            let all = ours(ruleset, table);
            if !all.is_empty() {
                ruleset.chain_mut(table, all[which.index(all.len())]).rules.truncate(*n);
            }
        }
        Junk::Foreign(which, at) => {
            let table = if at.index(2) == 0 { Table::Nat } else { Table::Filter };
            let all = ours(ruleset, table);
            if !all.is_empty() {
                let rules = &mut ruleset.chain_mut(table, all[which.index(all.len())]).rules;
                rules.insert(at.index(rules.len() + 1), foreign_rule());
            }
        }
        Junk::Stale(chains) => {
            let name = |n: usize| ChainName::new(&format!("{}STALE{n}", chains[n].0)).expect("a name");
            for (n, (_, callees)) in chains.iter().enumerate() {
                let later = chains.len() - n - 1;
                let callees = callees.iter().filter(|_| later > 0).map(|at| name(n + 1 + at.index(later)));
                let rules: Vec<Rule> = callees.map(to).collect();
                ruleset.chain_mut(Table::Nat, name(n)).rules = rules;
                (0..chains.len()).for_each(|n| _ = ruleset.chain_mut(Table::Nat, name(n)));
            }
        }
        Junk::StaleCaller(which) => {
            let stale: Vec<ChainName> =
                ours(ruleset, Table::Nat).into_iter().filter(|n| n.as_str().contains("STALE")).collect();
            if !stale.is_empty() {
                let rule = to(stale[which.index(stale.len())]);
                ruleset.chain_mut(Table::Nat, names::KUBE_SERVICES).rules.insert(0, rule);
            }
        }
        Junk::Others => {
            for table in [Table::Nat, Table::Filter] {
                let hostports = ChainName::literal("KUBE-HOSTPORTS");
                ruleset.chain_mut(table, hostports).rules = vec![foreign_rule()];
                let from = ChainName::literal("OUTPUT");
                ruleset.chain_mut(table, from).rules.extend([foreign_rule(), to(hostports)]);
            }
        }
        Junk::Kubelet => ruleset.chain_mut(Table::Filter, names::KUBE_FIREWALL).rules = vec![foreign_rule()],
    }
}

/// The foreign part of `ruleset`, and the agent's: nat and filter chains, without jumps.
fn parts(ruleset: &Ruleset, n_expected_jumps: usize) -> (Ruleset, Ruleset, Vec<usize>) {
    let (mut others, mut own) = (Ruleset::default(), Ruleset::default());
    let jumps = fixed::jumps();
    for (table, chains) in &ruleset.tables {
        for (name, chain) in chains {
            let mut chain: ChainContent = chain.clone();
            chain.rules.retain(|rule| {
                !jumps.iter().any(|j| j.table == *table && j.from == *name && j.rule == *rule)
            });
            let part = if ChainOwner::of(*table, name).is_ours() { &mut own } else { &mut others };
            part.tables.entry(*table).or_insert_with(BTreeMap::new).insert(*name, chain);
        }
    }
    let count = |n: usize| {
        let jump = &jumps[n];
        ruleset
            .chain(jump.table, &jump.from)
            .map_or(0, |c| c.rules.iter().filter(|rule| **rule == jump.rule).count())
    };
    (others, own, (0..n_expected_jumps).map(count).collect())
}

#[test]
fn from_any_rules_the_agent_reaches_the_desired_rules_and_foreign_rules_stay() {
    let starts = (worlds(), vec(edits(), 0..3), junk(), families(), backends(), limits(), any::<bool>());
    for_all(1920, starts, |(world, edits, junk, family, backend, limits, is_readable)| {
        // Rules that an earlier agent left of a slightly different cluster.
        let mut fake = FakeIptables::new(family, backend);
        fake.ruleset = world.ruleset(family);
        junk.iter().for_each(|junk| spoil(&mut fake.ruleset, junk));
        fake.limits = limits;
        fake.readable = if is_readable { Readable::Rules } else { Readable::NamesOnly };
        let before = fake.ruleset.clone();
        let mut live = Live::start(Flaky::new(fake), world);
        live.edit(&edits);
        prop_assert_eq!(live.sync().outcome, Ok(()));
        let n_jumps = fixed::jumps().len();
        let (others, own, jumps) = parts(&live.tables(), n_jumps);
        let (mut others_before, _, _) = parts(&before, n_jumps);
        let (others_wanted, own_wanted, n_expected_jumps) = parts(&live.desired(), n_jumps);
        same(family, "own chains", &own, &own_wanted)?;
        prop_assert_eq!(jumps, n_expected_jumps);
        // The kubelet's chain is foreign, unless the agent has a rule in it.
        let firewall = &others_wanted.tables[&Table::Filter][&names::KUBE_FIREWALL];
        let kubelets = others_before.chain_mut(Table::Filter, names::KUBE_FIREWALL);
        if !firewall.rules.is_empty() {
            *kubelets = firewall.clone();
        }
        same(family, "others' chains", &others, &others_before)?;
        live.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
        let report = live.sync();
        prop_assert_eq!(
            (report.outcome, report.tally.n_processes),
            (Ok(()), if is_readable { 0 } else { report.tally.n_processes })
        );
        Ok(())
    });
}
