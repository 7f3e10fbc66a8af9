//! Step 2: nat, its order and its division into processes.

use super::*;

/// Chains by name and rules.
type Chains = &'static [(&'static str, &'static [&'static str])];

/// Sends each of `groups` as one service port's chains.
fn send(planner: &mut Planner<'_, Recorder>, groups: &[Chains]) -> Result<(), Failure<Failed>> {
    for group in groups {
        let chains: Vec<Chain> = group.iter().map(|(text, texts)| chain(Table::Nat, text, texts)).collect();
        planner.nat_chains(&chains, When::Now)?;
    }
    Ok(())
}

const TWO_PORTS: [Chains; 2] = [
    &[("SEP-1", &["-p tcp -j RETURN"]), ("SEP-3", &[]), ("SVC-1", &["-j SEP-1", "-j SEP-3"])],
    &[("SEP-2", &[]), ("SVC-2", &["-j SEP-2"])],
];

#[test]
fn callees_stand_before_callers_and_equals_in_descending_order_with_their_rules() {
    let mut committed = Committed::default();
    let (inputs, tally) = plan(&mut committed, &[], UNLIMITED, |planner| send(planner, &TWO_PORTS));
    let expected = "*nat\n:SEP-3 - [0:0]\n:SEP-2 - [0:0]\n:SEP-1 - [0:0]\n-A SEP-1 -p tcp -j RETURN\n\
                    :SVC-2 - [0:0]\n-A SVC-2 -j SEP-2\n:SVC-1 - [0:0]\n-A SVC-1 -j SEP-1\n-A SVC-1 -j SEP-3\nCOMMIT";
    check(&inputs, &[expected]);
    let n_bytes = inputs[0].len();
    let all = Tally {
        n_processes: 1,
        n_commits: 1,
        n_lines: 11,
        n_bytes,
        n_rules: 4,
        n_filter_rules: 0,
        n_chains: 5,
        n_deleted: 0,
    };
    assert_eq!(tally, all);
    assert_eq!((committed.nat.len(), committed.n_rules(Table::Nat)), (5, 4));
    let again = plan(&mut committed, &[], UNLIMITED, |planner| send(planner, &TWO_PORTS));
    assert_eq!(again, (Vec::new(), Tally::default()));
}

#[test]
fn only_chains_that_differ_are_written() {
    let mut committed = Committed::default();
    plan(&mut committed, &[], UNLIMITED, |planner| send(planner, &TWO_PORTS));
    committed.nat.insert(name("SEP-1"), None);
    committed.nat.insert(name("SVC-2"), Some(Digest::EMPTY));
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, |planner| send(planner, &TWO_PORTS));
    check(
        &inputs,
        &["*nat\n:SVC-2 - [0:0]\n-A SVC-2 -j SEP-2\n:SEP-1 - [0:0]\n-A SEP-1 -p tcp -j RETURN\nCOMMIT"],
    );
}

#[test]
fn the_chains_of_a_service_port_are_not_torn_apart_by_a_limit() {
    let names = |limits| {
        let (inputs, tally) =
            plan(&mut Committed::default(), &[], limits, |planner| send(planner, &TWO_PORTS));
        assert_eq!(tally.n_processes, inputs.len());
        let declared = |input: &String| input.lines().filter(|line| line.starts_with(':')).count();
        inputs.iter().map(declared).collect::<Vec<_>>()
    };
    let limits = |max_names, max_rules| Limits { max_names, max_rules };
    assert_eq!(names(limits(5, 100)), [5]);
    assert_eq!(names(limits(4, 100)), [3, 2]);
    assert_eq!(names(limits(100, 4)), [5]);
    assert_eq!(names(limits(100, 3)), [3, 2]);
    // One that is too large alone is torn, callees first; a chain that is too large goes alone.
    assert_eq!(names(limits(2, 100)), [2, 1, 2]);
    assert_eq!(names(limits(100, 1)), [2, 1, 2]);
    assert_eq!(names(limits(1, 1)), [1, 1, 1, 1, 1]);
}

#[test]
fn a_service_port_that_is_torn_apart_has_its_callees_in_the_earlier_process() {
    let limits = Limits { max_names: 2, max_rules: 100 };
    let (inputs, _) = plan(&mut Committed::default(), &[], limits, |planner| send(planner, &TWO_PORTS[..1]));
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
    let entries = rules(&["-d 10.0.0.1/32 -j SVC-1", "-d 10.0.0.2/32 -j SVC-2"]);
    let digest = Digest::of(&entries);
    let mut committed = Committed::default();
    let send = |committed: &mut Committed| {
        let mut n_calls = 0;
        let sent = plan(committed, &[], UNLIMITED, |planner| {
            planner.nat_shared(name("KS"), digest, |each| {
                n_calls += 1;
                entries.iter().for_each(each);
            })
        });
        (sent.0, n_calls)
    };
    let (inputs, n_calls) = send(&mut committed);
    check(
        &inputs,
        &["*nat\n:KS - [0:0]\n-A KS -d 10.0.0.1/32 -j SVC-1\n-A KS -d 10.0.0.2/32 -j SVC-2\nCOMMIT"],
    );
    assert_eq!((n_calls, send(&mut committed)), (1, (Vec::new(), 0)));
    assert_eq!(committed.nat[&name("KS")], Some(digest));
}

#[test]
fn what_leads_into_nat_comes_behind_dispatch_and_deletions_come_last() {
    let jump = Jump { table: Table::Nat, from: name("OUTPUT"), rule: rule("-j KS") };
    let mut committed = Committed::default();
    committed.nat.insert(name("OLD-1"), Some(Digest::EMPTY));
    committed.nat.insert(name("OLD-2"), None);
    let (inputs, tally) = plan(&mut committed, &[jump], UNLIMITED, |planner| {
        let entries = rules(&["-j SEP-2"]);
        planner.nat_shared(name("KS"), Digest::of(&entries), |each| entries.iter().for_each(each))?;
        send(planner, &[&[("SEP-2", &[])]])?;
        planner.nat_last(&[name("OLD-2"), name("OLD-1")])
    });
    check(
        &inputs,
        &["*nat\n:SEP-2 - [0:0]\n:KS - [0:0]\n-A KS -j SEP-2\n-I OUTPUT -j KS\n\
                     :OLD-2 - [0:0]\n:OLD-1 - [0:0]\n-X OLD-2\n-X OLD-1\nCOMMIT"],
    );
    assert_eq!((tally.n_chains, tally.n_deleted, tally.n_rules), (2, 2, 2));
    assert_eq!(committed.nat.len(), 2);
}

#[test]
fn chains_to_be_deleted_in_several_processes_are_all_emptied_before() {
    let stale: Vec<ChainName> = ["C", "A", "B"].map(name).into();
    let mut committed = Committed::default();
    committed.nat.extend(stale.iter().map(|name| (*name, None)));
    let limits = Limits { max_names: 2, max_rules: 100 };
    let (inputs, tally) = plan(&mut committed, &[], limits, |planner| planner.nat_last(&stale));
    check(
        &inputs,
        &[
            "*nat\n:C - [0:0]\n:A - [0:0]\nCOMMIT",
            "*nat\n:B - [0:0]\nCOMMIT",
            "*nat\n:C - [0:0]\n:A - [0:0]\n-X C\n-X A\nCOMMIT",
            "*nat\n:B - [0:0]\n-X B\nCOMMIT",
        ],
    );
    assert_eq!((tally.n_deleted, committed.nat.len()), (3, 0));
}

#[test]
fn where_one_process_takes_everything_text_does_not_pile_up() {
    struct Counting(usize, usize);
    impl Restore for Counting {
        type Error = Failed;
        fn begin(&mut self) {}
        fn write(&mut self, text: &str) {
            self.0 = self.0.max(text.len());
            self.1 += text.len();
        }
        fn end(&mut self) -> Result<(), Failed> {
            Ok(())
        }
    }
    let (mut kernel, mut committed) = (Counting(0, 0), Committed::default());
    let mut planner = Planner::new(IpFamily::V4, &mut committed, &[], UNLIMITED, &mut kernel);
    let long = vec![rule("-p tcp -j RETURN"); 20_000];
    for n in 0..20 {
        let chain = Chain { table: Table::Nat, name: name(&format!("A{n}")), rules: long.clone() };
        planner.nat_chains(&[chain], When::Now).unwrap();
    }
    let n_bytes_before_the_end = planner.tally().n_bytes;
    planner.finish().unwrap();
    let n_bytes = planner.tally().n_bytes;
    assert!(n_bytes - n_bytes_before_the_end <= 2 << 20, "{n_bytes_before_the_end} of {n_bytes}");
    assert_eq!((planner.tally().n_processes, kernel.1), (1, n_bytes));
}
