//! The steps of nat, their order and their division into processes.

use super::*;
use crate::kernel::Backend;
use crate::kernel::fake::FakeIptables;

/// Chains by name and rules.
type Chains = &'static [(&'static str, &'static [&'static str])];

const TWO_PORTS: [Chains; 2] = [
    &[("SEP-1", &["-p tcp -j RETURN"]), ("SEP-3", &[]), ("SVC-1", &["-j SEP-1", "-j SEP-3"])],
    &[("SEP-2", &[]), ("SVC-2", &["-j SEP-2"])],
];

#[test]
fn callees_come_first_and_equals_in_descending_order_with_their_rules() {
    let mut committed = Committed::default();
    let (inputs, counts) = plan(&mut committed, &[], UNLIMITED, &mut Desired::groups(&TWO_PORTS));
    let expected = "*nat\n:SEP-3 - [0:0]\n:SEP-2 - [0:0]\n:SEP-1 - [0:0]\n-A SEP-1 -p tcp -j RETURN\n\
                    :SVC-2 - [0:0]\n-A SVC-2 -j SEP-2\n:SVC-1 - [0:0]\n-A SVC-1 -j SEP-1\n-A SVC-1 -j SEP-3\nCOMMIT";
    check(&inputs, &[expected]);
    let n_bytes = inputs[0].len();
    let all = RestoreCounts {
        n_processes: 1,
        n_commits: 1,
        n_lines: 11,
        n_bytes,
        n_rules: 4,
        n_filter_rules: 0,
        n_chains: 5,
        n_deleted: 0,
    };
    assert_eq!(counts, all);
    assert_eq!((committed.nat.len(), committed.n_rules(Table::Nat)), (5, 4));
    let again = plan(&mut committed, &[], UNLIMITED, &mut Desired::groups(&TWO_PORTS));
    assert_eq!(again, (Vec::new(), RestoreCounts::default()));
}

#[test]
fn only_chains_that_differ_are_written() {
    let mut committed = Committed::default();
    plan(&mut committed, &[], UNLIMITED, &mut Desired::groups(&TWO_PORTS));
    committed.nat.insert(name("SEP-1"), None);
    committed.nat.insert(name("SVC-2"), Some(Digest::EMPTY));
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, &mut Desired::groups(&TWO_PORTS));
    check(
        &inputs,
        &["*nat\n:SVC-2 - [0:0]\n-A SVC-2 -j SEP-2\n:SEP-1 - [0:0]\n-A SEP-1 -p tcp -j RETURN\nCOMMIT"],
    );
}

#[test]
fn the_chains_of_a_service_port_stay_in_one_process_where_they_fit() {
    let names = |limits| {
        let (inputs, counts) = plan(&mut Committed::default(), &[], limits, &mut Desired::groups(&TWO_PORTS));
        assert_eq!(counts.n_processes, inputs.len());
        let declared = |input: &String| input.lines().filter(|line| line.starts_with(':')).count();
        inputs.iter().map(declared).collect::<Vec<_>>()
    };
    let limits = |max_names, max_rules| Limits { max_names, max_rules };
    assert_eq!(names(limits(5, 100)), [5]);
    assert_eq!(names(limits(4, 100)), [3, 2]);
    assert_eq!(names(limits(100, 4)), [5]);
    assert_eq!(names(limits(100, 3)), [3, 2]);
    // A service port that is too large is split, callees first; a chain that is too large goes alone.
    assert_eq!(names(limits(2, 100)), [2, 1, 2]);
    assert_eq!(names(limits(100, 1)), [2, 1, 2]);
    assert_eq!(names(limits(1, 1)), [1, 1, 1, 1, 1]);
}

#[test]
fn a_service_port_that_is_split_has_its_callees_in_the_earlier_process() {
    let limits = Limits { max_names: 2, max_rules: 100 };
    let (inputs, _) = plan(&mut Committed::default(), &[], limits, &mut Desired::groups(&TWO_PORTS[..1]));
    check(
        &inputs,
        &[
            "*nat\n:SEP-3 - [0:0]\n:SEP-1 - [0:0]\n-A SEP-1 -p tcp -j RETURN\nCOMMIT",
            "*nat\n:SVC-1 - [0:0]\n-A SVC-1 -j SEP-1\n-A SVC-1 -j SEP-3\nCOMMIT",
        ],
    );
}

#[test]
fn a_shared_chain_is_written_rule_by_rule_only_when_it_differs() {
    let entries: &[&str] = &["-d 10.0.0.1/32 -j SVC-1", "-d 10.0.0.2/32 -j SVC-2"];
    let mut committed = Committed::default();
    let mut desired = Desired { dispatch: nat_chains(&[("KS", entries)]), ..Desired::default() };
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, &mut desired);
    check(
        &inputs,
        &["*nat\n:KS - [0:0]\n-A KS -d 10.0.0.1/32 -j SVC-1\n-A KS -d 10.0.0.2/32 -j SVC-2\nCOMMIT"],
    );
    assert_eq!(desired.n_made.replace(0), 1);
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, &mut desired);
    assert_eq!((inputs, desired.n_made.get()), (Vec::new(), 0));
    assert_eq!(committed.nat[&name("KS")], Some(Digest::of(&rules(entries))));
}

#[test]
fn jumps_into_nat_come_behind_dispatch_and_deletions_come_last() {
    let jump = Jump { table: Table::Nat, from: name("OUTPUT"), rule: rule("-j KS") };
    let mut committed = Committed::default();
    committed.nat.insert(name("OLD-1"), Some(Digest::EMPTY));
    committed.nat.insert(name("OLD-2"), None);
    let mut desired = Desired {
        dispatch: nat_chains(&[("KS", &["-j SEP-2"])]),
        stale: ["OLD-1", "OLD-2", "SEP-2", "KS"].map(name).into(),
        ..Desired::groups(&[&[("SEP-2", &[])]])
    };
    let (inputs, counts) = plan(&mut committed, &[jump], UNLIMITED, &mut desired);
    check(
        &inputs,
        &["*nat\n:SEP-2 - [0:0]\n:KS - [0:0]\n-A KS -j SEP-2\n-I OUTPUT -j KS\n\
                     :OLD-2 - [0:0]\n:OLD-1 - [0:0]\n-X OLD-1\n-X OLD-2\nCOMMIT"],
    );
    assert_eq!((counts.n_chains, counts.n_deleted, counts.n_rules), (2, 2, 2));
    assert_eq!(committed.nat.len(), 2);
}

#[test]
fn a_chain_in_force_that_waits_is_committed_with_the_dispatch_however_much_that_is() {
    let limits = Limits { max_names: 4, max_rules: 100 };
    let port = nat_chains(&[("NEW", &[]), ("OLD", &["-j NEW"])]);
    for when in [When::Now, When::WithDispatch] {
        let mut committed = Committed::default();
        committed.nat.insert(name("OLD"), Some(Digest::EMPTY));
        committed.nat.insert(name("KS"), Some(Digest::EMPTY));
        let other = nat_chains(&[("A", &[]), ("B", &[])]);
        let mut desired = Desired {
            groups: vec![(port.clone(), when), (other, When::Now)],
            dispatch: nat_chains(&[("KN", &["-j A"]), ("KS", &["-j OLD", "-j NEW", "-j KN"])]),
            ..Desired::default()
        };
        let (inputs, _) = plan(&mut committed, &[], limits, &mut desired);
        let declared = |input: &String| {
            let lines = input.lines().filter(|line| line.starts_with(':'));
            lines.map(|line| line[1..].split(' ').next().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        let declared: Vec<String> = inputs.iter().map(declared).collect();
        match when {
            When::Now => assert_eq!(declared, ["NEW B A OLD", "KN", "KS"]),
            When::WithDispatch => assert_eq!(declared, ["NEW B A", "OLD KN KS"]),
        }
    }
}

#[test]
fn a_plan_that_is_asked_to_stop_commits_what_was_passed_and_deletes_nothing() {
    let mut committed = Committed::default();
    let mut desired = Desired {
        stops_after: Some(1),
        dispatch: nat_chains(&[("KS", &["-j SVC-2"])]),
        stale: [name("OLD")].into(),
        ..Desired::groups(&TWO_PORTS)
    };
    plan(&mut committed, &[], UNLIMITED, &mut desired);
    assert_eq!(committed.nat.keys().copied().collect::<Vec<_>>(), ["SEP-1", "SEP-3", "SVC-1"].map(name));
}

#[test]
fn chains_to_be_deleted_in_several_processes_are_all_flushed_before() {
    let stale = ["C", "A", "B"];
    let mut committed = Committed::default();
    committed.nat.extend(stale.iter().map(|text| (name(text), None)));
    let limits = Limits { max_names: 2, max_rules: 100 };
    let (inputs, counts) = plan(&mut committed, &[], limits, &mut Desired::stale(&stale));
    check(
        &inputs,
        &[
            "*nat\n:B - [0:0]\n:A - [0:0]\nCOMMIT",
            "*nat\n:C - [0:0]\nCOMMIT",
            "*nat\n:B - [0:0]\n:A - [0:0]\n-X A\n-X B\nCOMMIT",
            "*nat\n:C - [0:0]\n-X C\nCOMMIT",
        ],
    );
    assert_eq!((counts.n_deleted, committed.nat.len()), (3, 0));
}

/// Stale chains need no order: all are flushed before any is deleted.
#[test]
fn the_kernel_takes_stale_chains_that_call_each_other_in_any_way() {
    for calls in [["-j B", "-j C", ""], ["", "-j A", "-j B"], ["-j C", "-j A", ""], ["-j B", "", "-g A"]] {
        for backend in [Backend::Nft, Backend::Legacy] {
            for max_names in [1, 2, 3, 100] {
                let rules: String =
                    ["A", "B", "C"].into_iter().zip(calls).fold(String::new(), |text, one| match one {
                        (_, "") => text,
                        (chain, call) => format!("{text}-A {chain} {call}\n"),
                    });
                let save = format!("*nat\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n{rules}COMMIT\n");
                let mut kernel = FakeIptables::holding(IpFamily::V4, backend, &save).unwrap();
                let nat = ["A", "B", "C"].map(|text| (name(text), None)).into();
                let mut committed = Committed { nat, ..Committed::default() };
                let limits = Limits { max_names, max_rules: 100 };
                let planner = Planner::new(IpFamily::V4, &mut committed, &[], limits, &mut kernel);
                let mut desired = Desired::stale(&["A", "B", "C"]);
                planner.run(StepOrder::FilterAroundNat, &mut desired).1.unwrap();
                assert_eq!(kernel.ruleset, FakeIptables::new(IpFamily::V4, backend).ruleset, "{save}");
            }
        }
    }
}

#[test]
fn stale_chains_that_foreign_rules_refer_to_are_flushed() {
    let nat = ["A", "B"].map(|text| (name(text), Some(Digest::of(&rules(&["-j RETURN"]))))).into();
    let mut committed = Committed { nat, ..Committed::default() };
    let mut desired = Desired { kept: [name("A")].into(), ..Desired::stale(&["A", "B"]) };
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, &mut desired);
    check(&inputs, &["*nat\n:A - [0:0]\n:B - [0:0]\n-X B\nCOMMIT"]);
    assert_eq!(committed.nat, [(name("A"), Some(Digest::EMPTY))].into());
}

/// Chains called `names`, each of which calls some of those before it.
fn random_group(random: &mut fastrand::Rng, names: &[String]) -> Vec<Chain> {
    let chains = names.iter().enumerate().map(|(at, name)| {
        let calls = (0..random.usize(..3)).filter_map(|_| random.choice(&names[..at]));
        let calls: Vec<String> = calls.map(|callee| format!("-j {callee}")).collect();
        chain(Table::Nat, name, &calls.iter().map(String::as_str).collect::<Vec<_>>())
    });
    chains.collect()
}

#[test]
fn the_kernel_takes_chains_in_whatever_way_they_call_each_other() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut names: Vec<String> = (0..12).map(|n| format!("C{n:02}")).collect();
        random.shuffle(&mut names);
        let limits = Limits { max_names: [3, 12, 100][random.usize(..3)], max_rules: 100 };
        let mut kernel = FakeIptables::new(IpFamily::V4, Backend::Legacy);
        let mut committed = Committed::default();
        for _ in 0..3 {
            // Some chains are new, some are gone, in one order of calls: there is never a circle.
            let of_turn: Vec<String> = names.iter().filter(|_| random.usize(..4) > 0).cloned().collect();
            let group = random_group(&mut random, &of_turn);
            let mut in_any_order = group.clone();
            if limits.max_names == 100 {
                // Only chains that are too many for one process have to come callees first.
                random.shuffle(&mut in_any_order);
            }
            let mut desired = Desired {
                groups: vec![(in_any_order, When::Now)],
                stale: committed.nat.keys().copied().collect(),
                ..Desired::default()
            };
            let planner = Planner::new(IpFamily::V4, &mut committed, &[], limits, &mut kernel);
            planner.run(StepOrder::FilterAroundNat, &mut desired).1.unwrap();
            let held = kernel.ruleset.tables[&Table::Nat].iter().filter(|(_, chain)| chain.policy.is_none());
            let mut expected: Vec<(ChainName, Vec<Rule>)> =
                group.into_iter().map(|chain| (chain.name, chain.rules)).collect();
            expected.sort_by_key(|(name, _)| *name);
            assert_eq!(
                held.map(|(name, chain)| (*name, chain.rules.clone())).collect::<Vec<_>>(),
                expected,
                "{seed}"
            );
        }
    }
}

/// Desired rules that are made as they are written, twenty long chains.
struct Long<'a> {
    rules: Vec<Rule>,
    n_written: &'a Cell<usize>,
    n_written_before_the_end: usize,
}

impl DesiredRules for Long<'_> {
    fn service_ports<E>(
        &mut self,
        write: &mut dyn FnMut(&[Chain], When) -> Result<(), E>,
    ) -> Result<ControlFlow<()>, E> {
        for n in 0..20 {
            let chain = Chain { table: Table::Nat, name: name(&format!("A{n}")), rules: self.rules.clone() };
            write(&[chain], When::Now)?;
        }
        self.n_written_before_the_end = self.n_written.get();
        Ok(ControlFlow::Continue(()))
    }
}

#[test]
fn where_one_process_takes_everything_text_does_not_pile_up() {
    struct Counting<'a>(&'a Cell<usize>);
    impl Restore for Counting<'_> {
        type Error = Failed;
        fn begin(&mut self) {}
        fn write(&mut self, text: &str) {
            self.0.update(|n| n + text.len());
        }
        fn end(&mut self) -> Result<(), Failed> {
            Ok(())
        }
    }
    let n_written = Cell::new(0);
    let (mut kernel, mut committed) = (Counting(&n_written), Committed::default());
    let planner = Planner::new(IpFamily::V4, &mut committed, &[], UNLIMITED, &mut kernel);
    let rules = vec![rule("-p tcp -j RETURN"); 20_000];
    let mut desired = Long { rules, n_written: &n_written, n_written_before_the_end: 0 };
    let (counts, result) = planner.run(StepOrder::FilterAroundNat, &mut desired);
    result.unwrap();
    let (before, all) = (desired.n_written_before_the_end, counts.n_bytes);
    assert!(all - before <= 2 << 20, "{before} of {all}");
    assert_eq!((counts.n_processes, n_written.get()), (1, all));
}
