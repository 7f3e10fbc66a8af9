//! What is known after a restore that failed, and whom it is about.

use super::*;

/// The size of a chain: `Some(None)` when it may be there and its content is not known.
type Known<T> = Option<Option<T>>;

/// Plans filter, nat and filter again, in one process that fails with `aftermath`; returns what is
/// known then of filter's chain, of nat's new chain and of nat's old chain.
fn after(aftermath: Aftermath) -> (Known<usize>, Known<u32>, Known<u32>) {
    let mut committed = Committed::default();
    committed.filter.insert(name("F"), Some(rules(&["-p udp -j DROP"])));
    committed.nat.insert(name("OLD"), Some(Digest::EMPTY));
    let wanted = filter_chains(&[("F", &["-j RETURN"])]);
    let mut recorder = Recorder { failures: vec![Some(aftermath)], ..Recorder::default() };
    let mut planner = Planner::new(IpFamily::V4, &mut committed, &[], UNLIMITED, &mut recorder);
    planner.filter_first(&wanted, unshared).unwrap();
    planner.nat_chains(&[chain(Table::Nat, "N", &["-j RETURN"])], When::Now).unwrap();
    planner.nat_last(&[name("OLD")]).unwrap();
    planner.filter_last(&wanted, unshared).unwrap();
    assert_eq!(planner.finish().unwrap_err().error, Failed(aftermath));
    let nat = |text| committed.nat.get(&name(text)).map(|digest| digest.map(|digest| digest.n_rules));
    let filter = committed.filter.get(&name("F")).map(|rules| rules.as_ref().map(Vec::len));
    (filter, nat("N"), nat("OLD"))
}

#[test]
fn where_nothing_was_done_everything_is_known() {
    assert_eq!(after(Aftermath::Nothing), (Some(Some(1)), None, Some(Some(0))));
}

#[test]
fn where_a_later_table_may_have_failed_the_earlier_ones_are_uncertain() {
    assert_eq!(after(Aftermath::EarlierTables), (Some(None), Some(None), Some(None)));
    assert_eq!(after(Aftermath::Unknown), (Some(None), Some(None), Some(None)));
}

/// Fails the only process, which is about nat alone.
fn after_nat_alone(aftermath: Aftermath) -> Committed {
    let mut committed = Committed::default();
    let mut recorder = Recorder { failures: vec![Some(aftermath)], ..Recorder::default() };
    let mut planner = Planner::new(IpFamily::V4, &mut committed, &[], UNLIMITED, &mut recorder);
    planner.nat_chains(&[chain(Table::Nat, "N", &[])], When::Now).unwrap();
    planner.finish().unwrap_err();
    committed
}

#[test]
fn the_only_table_of_a_refused_input_is_as_it_was() {
    assert!(after_nat_alone(Aftermath::EarlierTables).nat.is_empty());
    assert_eq!(after_nat_alone(Aftermath::Unknown).nat, [(name("N"), None)].into());
}

#[test]
fn what_was_committed_by_earlier_processes_stays_known_and_later_ones_are_not_begun() {
    let mut committed = Committed::default();
    let failures = vec![Some(Aftermath::EarlierTables), None];
    let mut recorder = Recorder { failures, ..Recorder::default() };
    let limits = Limits { max_names: 1, max_rules: 9 };
    let mut planner = Planner::new(IpFamily::V4, &mut committed, &[], limits, &mut recorder);
    let chains = ["A", "B", "C", "D"].map(|text| chain(Table::Nat, text, &[]));
    let failure = planner.nat_chains(&chains, When::Now).unwrap_err();
    assert_eq!(failure.lines.chain_at(2), Some((Table::Nat, name("B"), 0)));
    assert_eq!((planner.tally().n_processes, planner.tally().n_commits), (2, 1));
    assert_eq!(committed.nat.keys().copied().collect::<Vec<_>>(), [name("A")]);
    assert_eq!(recorder.inputs.len(), 2);
}

#[test]
fn every_line_of_an_input_tells_its_chain() {
    let mut committed = Committed::default();
    committed.nat.insert(name("OLD"), None);
    let jump = Jump { table: Table::Nat, from: name("OUTPUT"), rule: rule("-j N") };
    let mut recorder = Recorder { failures: vec![Some(Aftermath::EarlierTables)], ..Recorder::default() };
    let jumps = [jump];
    let mut planner = Planner::new(IpFamily::V4, &mut committed, &jumps, UNLIMITED, &mut recorder);
    planner.filter_first(&filter_chains(&[("F", &["-j RETURN"]), ("G", &[])]), unshared).unwrap();
    let two = ["-p tcp -j RETURN", "-j RETURN"];
    planner.nat_chains(&[chain(Table::Nat, "N", &two)], When::Now).unwrap();
    planner.nat_last(&[name("OLD")]).unwrap();
    let lines = planner.finish().unwrap_err().lines;
    let shown = |line| {
        lines.chain_at(line).map_or("-".to_owned(), |(table, chain, at)| format!("{table} {chain} {at}"))
    };
    let about: Vec<(String, &str)> =
        recorder.inputs[0].lines().enumerate().map(|(n, text)| (shown(n + 1), text)).collect();
    let expected = [
        ("-", "*filter"),
        ("filter G 0", ":G - [0:0]"),
        ("filter F 0", ":F - [0:0]"),
        ("filter F 1", "-A F -j RETURN"),
        ("-", "COMMIT"),
        ("-", "*nat"),
        ("nat N 0", ":N - [0:0]"),
        ("nat N 1", "-A N -p tcp -j RETURN"),
        ("nat N 2", "-A N -j RETURN"),
        ("nat OUTPUT 0", "-I OUTPUT -j N"),
        ("nat OLD 0", ":OLD - [0:0]"),
        ("nat OLD 0", "-X OLD"),
        ("-", "COMMIT"),
    ];
    assert_eq!(about, expected.map(|(about, text)| (about.to_owned(), text)));
    assert_eq!((lines.chain_at(0), lines.chain_at(14)), (None, None));
}
