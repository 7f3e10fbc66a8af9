//! What is known after a restore that failed, and which chain the failed line is about.

use super::*;

/// The size of a chain: `Some(None)` when it may be there and its content is not known.
type Known<T> = Option<Option<T>>;

/// Plans filter, nat and filter again, in one process that fails with `effect`; returns what is
/// known then of filter's chain, of nat's new chain and of nat's old chain.
fn after(effect: FailureEffect) -> (Known<usize>, Known<u32>, Known<u32>) {
    let mut committed = Committed::default();
    committed.filter.insert(name("F"), Some(rules(&["-p udp -j DROP"])));
    committed.nat.insert(name("OLD"), Some(Digest::EMPTY));
    let mut desired = Desired {
        filter: filter_chains(&[("F", &["-j RETURN"])]),
        stale: [name("OLD")].into(),
        ..Desired::groups(&[&[("N", &["-j RETURN"])]])
    };
    let (_, _, failure) = fail(&mut committed, &[], UNLIMITED, &[Some(effect)], &mut desired);
    assert_eq!(failure.error, Failed(effect));
    let nat = |text| committed.nat.get(&name(text)).map(|digest| digest.map(|digest| digest.n_rules));
    let filter = committed.filter.get(&name("F")).map(|rules| rules.as_ref().map(Vec::len));
    (filter, nat("N"), nat("OLD"))
}

#[test]
fn where_nothing_was_applied_everything_is_known() {
    assert_eq!(after(FailureEffect::NothingApplied), (Some(Some(1)), None, Some(Some(0))));
}

#[test]
fn where_a_later_table_may_have_failed_the_earlier_ones_are_uncertain() {
    assert_eq!(after(FailureEffect::EarlierTablesApplied), (Some(None), Some(None), Some(None)));
    assert_eq!(after(FailureEffect::Unknown), (Some(None), Some(None), Some(None)));
}

/// Fails the only process, which is about nat alone.
fn after_nat_alone(effect: FailureEffect) -> Committed {
    let mut committed = Committed::default();
    fail(&mut committed, &[], UNLIMITED, &[Some(effect)], &mut Desired::groups(&[&[("N", &[])]]));
    committed
}

#[test]
fn the_only_table_of_a_rejected_input_is_as_it_was() {
    assert!(after_nat_alone(FailureEffect::EarlierTablesApplied).nat.is_empty());
    assert_eq!(after_nat_alone(FailureEffect::Unknown).nat, [(name("N"), None)].into());
}

#[test]
fn what_was_committed_by_earlier_processes_stays_known_and_later_ones_are_not_begun() {
    let mut committed = Committed::default();
    let failures = [Some(FailureEffect::EarlierTablesApplied), None];
    let limits = Limits { max_names: 1, max_rules: 9 };
    let mut desired = Desired::groups(&[&[("A", &[]), ("B", &[]), ("C", &[]), ("D", &[])]]);
    let (recorder, counts, failure) = fail(&mut committed, &[], limits, &failures, &mut desired);
    assert_eq!(failure.lines.chain_at(2), Some((Table::Nat, name("B"), 0)));
    assert_eq!((counts.n_processes, counts.n_commits), (2, 1));
    assert_eq!(committed.nat.keys().copied().collect::<Vec<_>>(), [name("A")]);
    assert_eq!(recorder.inputs.len(), 2);
}

#[test]
fn every_line_of_an_input_tells_its_chain() {
    let mut committed = Committed::default();
    committed.nat.insert(name("OLD"), None);
    let jumps = [Jump { table: Table::Nat, from: name("OUTPUT"), rule: rule("-j N") }];
    let mut desired = Desired {
        filter: filter_chains(&[("F", &["-j RETURN"]), ("G", &[])]),
        stale: [name("OLD")].into(),
        ..Desired::groups(&[&[("N", &["-p tcp -j RETURN", "-j RETURN"])]])
    };
    let failures = [Some(FailureEffect::EarlierTablesApplied)];
    let (recorder, _, failure) = fail(&mut committed, &jumps, UNLIMITED, &failures, &mut desired);
    let lines = failure.lines;
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
