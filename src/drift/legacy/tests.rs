//! What checks of the legacy back-end's tables find, and which audits read.

use super::*;
use crate::iptables::{ChainName, Digest, Jump, Rule};
use crate::kernel::Backend;
use crate::kernel::fake::FakeIptables;
use crate::net::IpFamily;

const SAME: Comparison = Comparison::Same;
const INCOMPLETE: Comparison = Comparison::Partial { n_left: 0, is_complete: false };

fn differs(tables: &mut FamilyTables<FakeIptables>) -> bool {
    matches!(tables.compare(Depth::Quick), Comparison::Different { is_whole: false, .. })
}

const CHAIN: ChainName = ChainName::literal("KUBE-SVC-A");

/// A chain of one rule and all jumps, read while no other process wrote.
fn read() -> FamilyTables<FakeIptables> {
    let save = format!("*nat\n:{CHAIN} - [0:0]\n-A {CHAIN} -j RETURN\nCOMMIT\n");
    let kernel = FakeIptables::holding(IpFamily::V4, Backend::Legacy, &save).unwrap();
    let mut tables = FamilyTables::new(kernel);
    for Jump { table, from, rule } in tables.jumps.clone() {
        tables.kernel.ruleset.chain_mut(table, from).rules.push(rule);
    }
    reread(&mut tables);
    tables
}

fn reread(tables: &mut FamilyTables<FakeIptables>) {
    let (committed, _) = tables.take();
    tables.put_back(committed);
}

fn rules(tables: &mut FamilyTables<FakeIptables>) -> &mut Vec<Rule> {
    &mut tables.kernel.ruleset.chain_mut(Table::Nat, CHAIN).rules
}

/// We write `n` rules, and the kernel has them.
fn write(tables: &mut FamilyTables<FakeIptables>, n: usize) {
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
        assert_eq!(tables.compare(depth), SAME);
    }
    tables.kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("CNI-A"));
    assert_eq!(tables.compare(Depth::Whole), SAME, "another program's");
    assert_eq!((tables.kernel.n_saves, tables.kernel.n_jump_checks), (n_saves, 0));
}

#[test]
fn any_change_of_our_rules_is_found_and_read() {
    let changes: [fn(&mut FamilyTables<FakeIptables>); 4] = [
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
        assert!(differs(&mut tables));
        assert!(differs(&mut tables), "until it is read");
        tables.distrust(ReadReason::AuditDue);
        let (_, drift) = tables.take();
        assert_eq!(drift.len(), 1);
    }
    let mut tables = read();
    let jump = tables.jumps[0].clone();
    tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules.clear();
    assert!(differs(&mut tables));
}

#[test]
fn what_we_wrote_is_read_by_one_audit_and_no_other() {
    let mut tables = read();
    write(&mut tables, 3);
    tables.record_after_sync(None);
    assert!(!tables.has_pending_fingerprints());
    assert_eq!(tables.compare(Depth::Whole), INCOMPLETE, "another process may have written in between");
    *rules(&mut tables) = vec![Rule::default(); 2];
    assert!(differs(&mut tables), "what is written later shows");
    *rules(&mut tables) = vec![Rule::default(); 3];
    assert_eq!(tables.compare(Depth::Quick), INCOMPLETE);
    tables.distrust(ReadReason::AuditDue);
    reread(&mut tables);
    assert_eq!(tables.compare(Depth::Whole), SAME);
}

#[test]
fn a_flush_right_after_our_commit_is_not_recorded_as_what_we_wrote() {
    let mut tables = read();
    write(&mut tables, 3);
    rules(&mut tables).clear();
    tables.record_after_sync(None);
    assert!(tables.has_pending_fingerprints());
    assert!(differs(&mut tables));
}

#[test]
fn tables_that_another_process_wrote_to_while_they_were_read_are_read_by_the_next_audit() {
    let mut tables = read();
    tables.distrust(ReadReason::AuditDue);
    // No dump before and after: nothing proves that no process wrote.
    tables.kernel.is_dump_broken = true;
    reread(&mut tables);
    tables.kernel.is_dump_broken = false;
    tables.record_after_sync(None);
    assert_eq!(tables.compare(Depth::Whole), INCOMPLETE);
}

#[test]
fn a_commit_of_ours_of_unknown_effect_leaves_no_fingerprint() {
    let mut tables = read();
    let (mut committed, _) = tables.take();
    committed.nat.insert(CHAIN, None);
    committed.fingerprints.remove(Table::Nat, CHAIN);
    tables.put_back(committed);
    tables.distrust(ReadReason::RestoreFailed);
    let n_saves = tables.kernel.n_saves;
    let reason = ReadReason::RestoreFailed;
    assert_eq!(tables.compare(Depth::Quick), Comparison::Different { reason, is_whole: true });
    reread(&mut tables);
    assert_eq!((tables.kernel.n_saves, tables.compare(Depth::Whole)), (n_saves + 2, SAME));
}

#[test]
fn tables_too_large_to_be_dumped_each_second_are_compared_by_their_outlines() {
    let mut tables = read();
    assert_eq!(tables.compare(Depth::Quick), SAME);
    tables.legacy.whole_at = Some(Instant::now() + Duration::from_secs(600));
    let n_dumps = tables.kernel.n_dumps;
    *rules(&mut tables) = vec![Rule::default()];
    assert_eq!((tables.compare(Depth::Quick), tables.kernel.n_dumps), (SAME, n_dumps), "of the same size");
    assert!(matches!(tables.compare(Depth::Whole), Comparison::Different { .. }), "at an audit");
    let mut tables = read();
    assert_eq!(tables.compare(Depth::Quick), SAME);
    tables.legacy.whole_at = Some(Instant::now() + Duration::from_secs(600));
    rules(&mut tables).clear();
    assert!(differs(&mut tables), "of another size");
}

#[test]
fn where_tables_cannot_be_dumped_a_jump_is_searched_and_audits_read() {
    let mut tables = read();
    tables.kernel.is_dump_broken = true;
    assert_eq!((tables.compare(Depth::Quick), tables.kernel.n_jump_checks), (INCOMPLETE, 1));
    assert_eq!((tables.compare(Depth::Whole), tables.kernel.n_jump_checks), (INCOMPLETE, 2));
    for jump in tables.jumps.clone() {
        tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules.clear();
    }
    assert!(differs(&mut tables));
}
