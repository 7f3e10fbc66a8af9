//! What looks at the legacy back-end's tables tell, and what audits are spared.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::iptables::Rule;
use crate::kernel::fake::FakeIptables;
use crate::net::IpFamily;

const SAME: Look = Look { is_wrong: false, is_unread: false };
const UNREAD: Look = Look { is_wrong: false, is_unread: true };
const WRONG: Look = Look { is_wrong: true, is_unread: true };

const CHAIN: ChainName = ChainName::literal("KUBE-SVC-A");

/// A chain of one rule and all jumps, read while no other process wrote.
fn read() -> Tables<FakeIptables> {
    let save = format!("*nat\n:{CHAIN} - [0:0]\n-A {CHAIN} -j RETURN\nCOMMIT\n");
    let kernel = FakeIptables::holding(IpFamily::V4, Backend::Legacy, &save).unwrap();
    let mut tables = Tables::new(kernel);
    for Jump { table, from, rule } in tables.jumps.clone() {
        tables.kernel.ruleset.chain_mut(table, from).rules.push(rule);
    }
    reread(&mut tables);
    tables
}

fn reread(tables: &mut Tables<FakeIptables>) {
    let (committed, _) = tables.take();
    tables.put_back(committed);
}

fn rules(tables: &mut Tables<FakeIptables>) -> &mut Vec<Rule> {
    &mut tables.kernel.ruleset.chain_mut(Table::Nat, CHAIN).rules
}

/// We write `n` rules, and the kernel has them.
fn write(tables: &mut Tables<FakeIptables>, n: usize) {
    let (mut committed, _) = tables.take();
    let new = vec![Rule::default(); n];
    committed.nat.insert(CHAIN, Some(Digest::of(&new)));
    committed.fingerprints.mark_pending(Table::Nat, CHAIN);
    *rules(tables) = new;
    tables.put_back(committed);
}

#[test]
fn what_was_read_undisturbed_is_not_read_again() {
    let mut tables = read();
    let n_saves = tables.kernel.n_saves;
    for depth in [Depth::Quick, Depth::Whole, Depth::Whole] {
        assert_eq!(tables.look(depth), SAME);
    }
    tables.kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("CNI-A"));
    assert_eq!(tables.look(Depth::Whole), SAME, "another program's");
    assert_eq!((tables.kernel.n_saves, tables.kernel.n_jump_checks), (n_saves, 0));
}

#[test]
fn any_change_of_ours_is_seen_and_read() {
    let changes: [fn(&mut Tables<FakeIptables>); 4] = [
        |tables| rules(tables)[0] = Rule::default(),
        |tables| rules(tables).clear(),
        |tables| drop(tables.kernel.ruleset.tables.get_mut(&Table::Nat).unwrap().remove(&CHAIN)),
        |tables| {
            tables.kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("KUBE-SVC-B"));
        },
    ];
    for change in changes {
        let mut tables = read();
        change(&mut tables);
        assert_eq!(tables.look(Depth::Quick), WRONG);
        assert_eq!(tables.look(Depth::Quick), WRONG, "until it is read");
        tables.forget();
        let (_, drift) = tables.take();
        assert_eq!(drift.len(), 1);
    }
    let mut tables = read();
    let jump = tables.jumps[0].clone();
    tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules.clear();
    assert_eq!(tables.look(Depth::Quick), WRONG);
}

#[test]
fn what_we_wrote_is_read_by_one_audit_and_no_other() {
    let mut tables = read();
    write(&mut tables, 3);
    tables.take_prints(None);
    assert!(!tables.has_due_prints());
    assert_eq!(tables.look(Depth::Whole), UNREAD, "another process may have written in between");
    *rules(&mut tables) = vec![Rule::default(); 2];
    assert_eq!(tables.look(Depth::Quick), WRONG, "what is written later shows");
    *rules(&mut tables) = vec![Rule::default(); 3];
    assert_eq!(tables.look(Depth::Quick), UNREAD);
    tables.forget();
    reread(&mut tables);
    assert_eq!(tables.look(Depth::Whole), SAME);
}

#[test]
fn a_flush_right_after_our_commit_is_not_taken_for_what_we_wrote() {
    let mut tables = read();
    write(&mut tables, 3);
    rules(&mut tables).clear();
    tables.take_prints(None);
    assert!(tables.has_due_prints());
    assert_eq!(tables.look(Depth::Quick), WRONG);
}

#[test]
fn tables_that_another_process_wrote_to_while_they_were_read_are_read_by_the_next_audit() {
    let mut tables = read();
    tables.forget();
    // No dump before and after: nothing tells that they were not.
    tables.kernel.is_dump_broken = true;
    reread(&mut tables);
    tables.kernel.is_dump_broken = false;
    tables.take_prints(None);
    assert_eq!(tables.look(Depth::Whole), UNREAD);
}

#[test]
fn a_commit_of_ours_of_which_nobody_knows_what_came_leaves_no_print() {
    let mut tables = read();
    let (mut committed, _) = tables.take();
    committed.nat.insert(CHAIN, None);
    committed.fingerprints.remove(Table::Nat, CHAIN);
    tables.put_back(committed);
    tables.doubt();
    let n_saves = tables.kernel.n_saves;
    assert_eq!(tables.look(Depth::Quick), Look { is_wrong: true, is_unread: false });
    reread(&mut tables);
    assert_eq!((tables.kernel.n_saves, tables.look(Depth::Whole)), (n_saves + 2, SAME));
}

#[test]
fn tables_too_large_to_be_looked_at_whole_each_second_are_looked_at_by_their_numbers() {
    let mut tables = read();
    assert_eq!(tables.look(Depth::Quick), SAME);
    tables.watched.delay(Instant::now() + Duration::from_secs(600));
    let n_dumps = tables.kernel.n_dumps;
    *rules(&mut tables) = vec![Rule::default()];
    assert_eq!((tables.look(Depth::Quick), tables.kernel.n_dumps), (SAME, n_dumps), "of the same size");
    assert_eq!(tables.look(Depth::Whole), WRONG, "at an audit");
    let mut tables = read();
    assert_eq!(tables.look(Depth::Quick), SAME);
    tables.watched.delay(Instant::now() + Duration::from_secs(600));
    rules(&mut tables).clear();
    assert_eq!(tables.look(Depth::Quick), WRONG, "of another size");
}

#[test]
fn where_tables_cannot_be_looked_at_a_jump_is_looked_for_and_audits_read() {
    let mut tables = read();
    tables.kernel.is_dump_broken = true;
    assert_eq!((tables.look(Depth::Quick), tables.kernel.n_jump_checks), (UNREAD, 1));
    assert_eq!((tables.look(Depth::Whole), tables.kernel.n_jump_checks), (UNREAD, 2));
    for jump in tables.jumps.clone() {
        tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules.clear();
    }
    assert_eq!(tables.look(Depth::Quick), WRONG);
}
