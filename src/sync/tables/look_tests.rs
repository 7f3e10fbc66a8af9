//! What looks at tables of any size tell, and what is known after them.

use super::*;
use crate::kernel::fake::FakeIptables;
use crate::net::IpFamily;

/// So many that they are not read for a suspicion.
const MANY: usize = 2_100;

fn chain(n: usize) -> ChainName {
    ChainName::new(&format!("KUBE-SVC-{n}")).unwrap()
}

/// `n` chains of one rule and all jumps, read, and from then on too many to be read.
fn known(n: usize) -> Tables<FakeIptables> {
    let mut save = "*nat\n".to_owned();
    (0..n).for_each(|n| save.push_str(&format!(":{} - [0:0]\n", chain(n))));
    (0..n).for_each(|n| save.push_str(&format!("-A {} -j RETURN\n", chain(n))));
    let kernel = FakeIptables::holding(IpFamily::V4, Backend::Nft, &(save + "COMMIT\n")).unwrap();
    let mut tables = Tables::new(kernel);
    for Jump { table, from, rule } in tables.jumps.clone() {
        tables.kernel.ruleset.chain_mut(table, from).rules.push(rule);
    }
    let (committed, _) = tables.take();
    assert_eq!((committed.nat.len(), committed.jumps.len()), (n, tables.jumps.len()));
    tables.put_back(committed);
    tables.kernel.readable = Readable::NamesOnly;
    tables.kernel.n_saves = 0;
    tables
}

/// As [`known`], with the print of each chain.
fn printed(n: usize) -> Tables<FakeIptables> {
    let mut tables = known(n);
    tables.take_prints(Some(0));
    assert!(!tables.has_due_prints());
    tables
}

fn change(tables: &mut Tables<FakeIptables>, n: usize) {
    let rules = &mut tables.kernel.ruleset.chain_mut(Table::Nat, chain(n)).rules;
    let rule = rules[0].clone();
    rules.push(rule);
}

/// Chains of unknown content once the tables were read, and what differs.
fn read(tables: &mut Tables<FakeIptables>) -> (usize, Drift) {
    let (committed, drift) = tables.take();
    assert_eq!(tables.kernel.n_saves, 0);
    (committed.nat.values().filter(|content| content.is_none()).count(), drift)
}

/// A look, and all that follows it.
fn whole_look(tables: &mut Tables<FakeIptables>) -> Look {
    let mut look = tables.look(Depth::Quick);
    while !look.is_wrong && tables.is_scanning() {
        look = tables.scan();
    }
    look
}

const SAME: Look = Look { is_wrong: false, is_unread: false };
const UNREAD: Look = Look { is_wrong: false, is_unread: true };
const WRONG: Look = Look { is_wrong: true, is_unread: false };

#[test]
fn with_prints_a_look_tells_everything_at_any_size() {
    for n in [10, MANY] {
        let mut tables = printed(n);
        assert_eq!(whole_look(&mut tables), SAME);
        change(&mut tables, 7);
        assert!(whole_look(&mut tables).is_wrong);
        let mut tables = printed(n);
        tables.kernel.ruleset.tables.get_mut(&Table::Nat).unwrap().remove(&chain(7));
        assert!(tables.look(Depth::Quick).is_wrong, "gone");
        let mut tables = printed(n);
        tables.kernel.ruleset.chain_mut(Table::Nat, chain(9_999));
        assert!(tables.look(Depth::Quick).is_wrong, "too many");
        tables.kernel.ruleset.tables.get_mut(&Table::Nat).unwrap().remove(&chain(9_999));
        tables.kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("CNI-HOSTPORT"));
        assert_eq!((whole_look(&mut tables), tables.kernel.n_saves), (SAME, 0), "somebody else's");
    }
}

#[test]
fn only_what_looks_otherwise_is_unknown_and_reported() {
    for doubt in [Tables::forget, Tables::suspect, Tables::doubt] {
        let mut tables = printed(MANY);
        change(&mut tables, 7);
        doubt(&mut tables);
        let drift = Drift { chains: vec![(Table::Nat, chain(7))], n_jumps: 0 };
        assert_eq!(read(&mut tables), (1, drift));
    }
}

#[test]
fn chains_without_prints_are_left_to_the_audit() {
    let mut tables = known(MANY);
    assert_eq!(whole_look(&mut tables), UNREAD, "somebody wrote before prints were taken");
    tables.take_prints(Some(0));
    assert_eq!(whole_look(&mut tables), UNREAD, "nobody knows what they would be prints of");
    tables.kernel.ruleset.tables.get_mut(&Table::Nat).unwrap().remove(&chain(7));
    assert_eq!(tables.look(Depth::Quick), Look { is_wrong: true, is_unread: true });
    tables.suspect();
    let (committed, drift) = tables.take();
    assert_eq!(drift.chains, [(Table::Nat, chain(7))]);
    assert_eq!(committed.nat.values().flatten().count(), MANY - 1);
    tables.put_back(committed);
    tables.forget();
    assert_eq!(read(&mut tables), (MANY - 1, Drift::default()));
}

#[test]
fn after_a_failure_of_ours_what_has_no_print_is_as_it_was_left() {
    for is_given_up in [false, true] {
        let mut tables = known(MANY);
        tables.doubt();
        if is_given_up {
            tables.give_up_prints();
        }
        let (committed, drift) = tables.take();
        assert_eq!((committed.nat.values().flatten().count(), drift), (MANY, Drift::default()));
        tables.put_back(committed);
        tables.take_prints(Some(0));
        assert_eq!(whole_look(&mut tables), if is_given_up { UNREAD } else { SAME });
    }
}

#[test]
fn where_somebody_else_wrote_after_a_failure_what_has_no_print_is_unknown() {
    let mut tables = known(MANY);
    tables.doubt();
    tables.forget();
    assert_eq!(read(&mut tables).0, MANY);
}

#[test]
fn few_chains_without_prints_are_settled_by_reading() {
    let mut tables = known(10);
    assert_eq!(tables.look(Depth::Quick), WRONG);
    tables.kernel.readable = Readable::Rules;
    tables.forget();
    let (committed, drift) = tables.take();
    assert_eq!((committed.nat.values().flatten().count(), drift.is_empty()), (10, true));
    tables.put_back(committed);
    tables.take_prints(Some(0));
    assert_eq!(tables.look(Depth::Quick), SAME);
}

#[test]
fn prints_of_another_generation_are_not_taken() {
    let mut tables = known(MANY);
    tables.kernel.n_commits = 1;
    tables.take_prints(Some(0));
    assert!(tables.has_due_prints());
    tables.give_up_prints();
    assert!(!tables.has_due_prints());
    assert_eq!(whole_look(&mut tables), UNREAD);
}

#[test]
fn very_many_chains_are_compared_a_slice_at_a_time() {
    const SLICES: usize = 3;
    let n = 2 * 4_000 + 10;
    let mut tables = known(n);
    for _ in 0..SLICES {
        assert!(tables.has_due_prints());
        tables.take_prints(Some(0));
    }
    assert!(!tables.has_due_prints());
    let n_slices = |tables: &mut Tables<FakeIptables>| {
        let mut looks = Vec::new();
        while tables.is_scanning() {
            looks.push(tables.scan().is_wrong);
        }
        looks
    };
    assert_eq!(tables.look(Depth::Quick), UNREAD);
    assert_eq!(n_slices(&mut tables), [false; SLICES]);
    assert_eq!(tables.scan(), SAME, "all were compared");
    // Whoever writes again has all compared once more, from where it is.
    tables.look(Depth::Quick);
    tables.scan();
    change(&mut tables, 0);
    assert_eq!(tables.look(Depth::Quick), UNREAD);
    let looks = n_slices(&mut tables);
    assert_eq!(looks.iter().filter(|is_wrong| **is_wrong).count(), 1, "{looks:?}");
    assert!(!looks[0], "it was in the slice before");
}

#[test]
fn a_scan_that_fails_is_left_to_the_audit() {
    let mut tables = printed(MANY);
    tables.look(Depth::Quick);
    tables.kernel.is_dump_broken = true;
    assert_eq!((tables.scan(), tables.is_scanning()), (UNREAD, false));
    assert_eq!(tables.scan(), UNREAD);
    tables.forget();
    let (committed, _) = tables.take();
    tables.put_back(committed);
    assert_eq!(tables.scan(), SAME, "the audit has settled it");
}

#[test]
fn what_cannot_be_dumped_is_looked_at_by_name() {
    let mut tables = printed(MANY);
    tables.kernel.is_dump_broken = true;
    assert_eq!(whole_look(&mut tables), UNREAD);
    change(&mut tables, 7);
    assert_eq!(whole_look(&mut tables), UNREAD);
    tables.kernel.ruleset.tables.get_mut(&Table::Nat).unwrap().remove(&chain(7));
    assert_eq!(tables.look(Depth::Quick), WRONG);
    tables.forget();
    assert_eq!(read(&mut tables).0, MANY - 1);
    let mut tables = known(MANY);
    tables.kernel.is_dump_broken = true;
    tables.take_prints(Some(0));
    assert!(!tables.has_due_prints(), "it is not tried for ever");
    tables.kernel.is_dump_broken = false;
    assert_eq!(whole_look(&mut tables), UNREAD, "none was taken");
    let mut tables = printed(10);
    tables.kernel.is_dump_broken = true;
    assert_eq!(tables.look(Depth::Quick), WRONG, "so few are read");
}

#[test]
fn jumps_are_looked_for_where_their_chain_changed() {
    let mut tables = printed(10);
    assert_eq!((tables.look(Depth::Quick), tables.kernel.n_jump_checks), (SAME, 0));
    let jump = tables.jumps.iter().find(|jump| jump.from.as_str() == "PREROUTING").unwrap().clone();
    let rules = |tables: &mut Tables<FakeIptables>| {
        std::mem::take(&mut tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules)
    };
    // Somebody puts a rule beside it.
    let before = rules(&mut tables);
    let beside = [vec![crate::iptables::Rule::default()], before.clone()].concat();
    tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules = beside.clone();
    assert_eq!((tables.look(Depth::Quick), tables.kernel.n_jump_checks), (SAME, 1));
    assert_eq!((tables.look(Depth::Quick), tables.kernel.n_jump_checks), (SAME, 1), "once");
    rules(&mut tables);
    assert_eq!(tables.look(Depth::Quick), WRONG);
    // What cannot be looked for is no reason to write, and is looked for again.
    tables.kernel.is_check_broken = true;
    assert_eq!(tables.look(Depth::Quick), SAME);
    tables.kernel.is_check_broken = false;
    assert_eq!(tables.look(Depth::Quick), WRONG);
    tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules = beside;
    assert_eq!(tables.look(Depth::Quick), SAME);
}

#[test]
fn what_the_kubelet_does_with_its_chain_is_nothing_wrong() {
    let mut tables = known(10);
    let firewall = names::KUBE_FIREWALL;
    let mut committed = tables.take().0;
    tables.kernel.ruleset.chain_mut(Table::Filter, firewall);
    committed.filter.insert(firewall, Some(Vec::new()));
    committed.fingerprints.mark_pending(Table::Filter, firewall);
    tables.put_back(committed);
    tables.take_prints(Some(0));
    tables.kernel.ruleset.chain_mut(Table::Filter, firewall).rules.push(crate::iptables::Rule::default());
    assert_eq!(tables.look(Depth::Quick), SAME);
    tables.forget();
    assert_eq!(read(&mut tables), (0, Drift::default()));
}
