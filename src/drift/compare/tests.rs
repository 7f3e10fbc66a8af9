//! What checks of tables of any size find, and what is known after them.

use super::*;
use crate::drift::Drift;
use crate::kernel::Readable;
use crate::kernel::fake::FakeIptables;
use crate::net::IpFamily;

/// So many that they are not read on suspicion.
const MANY: usize = 2_100;

fn chain(n: usize) -> ChainName {
    ChainName::new(&format!("KUBE-SVC-{n}")).unwrap()
}

/// `n` chains of one rule and all jumps, read, and from then on too many to be read.
fn known(n: usize) -> FamilyTables<FakeIptables> {
    let mut save = "*nat\n".to_owned();
    (0..n).for_each(|n| save.push_str(&format!(":{} - [0:0]\n", chain(n))));
    (0..n).for_each(|n| save.push_str(&format!("-A {} -j RETURN\n", chain(n))));
    let kernel = FakeIptables::holding(IpFamily::V4, Backend::Nft, &(save + "COMMIT\n")).unwrap();
    let mut tables = FamilyTables::new(kernel);
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

/// As [`known`], with the fingerprint of each chain.
fn fingerprinted(n: usize) -> FamilyTables<FakeIptables> {
    let mut tables = known(n);
    tables.record_fingerprints(0);
    assert!(!tables.has_pending_fingerprints());
    tables
}

fn change(tables: &mut FamilyTables<FakeIptables>, n: usize) {
    let rules = &mut tables.kernel.ruleset.chain_mut(Table::Nat, chain(n)).rules;
    let rule = rules[0].clone();
    rules.push(rule);
}

/// Chains of unknown content once the tables were read, and what differs.
fn read(tables: &mut FamilyTables<FakeIptables>) -> (usize, Drift) {
    let (committed, drift) = tables.take();
    assert_eq!(tables.kernel.n_saves, 0);
    (committed.nat.values().filter(|content| content.is_none()).count(), drift)
}

/// A check after an external commit, with all slices of a scan.
fn checked(tables: &mut FamilyTables<FakeIptables>) -> Knowledge {
    tables.signal(Signal::Disturbed(ReadReason::ExternalCommit));
    tables.check(Signal::CheckDue);
    while matches!(tables.knowledge, Knowledge::Scanning(_)) {
        tables.check(Signal::CheckDue);
    }
    tables.knowledge
}

fn differs(tables: &mut FamilyTables<FakeIptables>) -> bool {
    matches!(tables.compare(Depth::Quick), Comparison::Different { .. })
}

fn remove(tables: &mut FamilyTables<FakeIptables>, n: usize) {
    tables.kernel.ruleset.tables.get_mut(&Table::Nat).unwrap().remove(&chain(n));
}

/// What a check in part leaves when it finds a difference.
fn differs_in_part(tables: &mut FamilyTables<FakeIptables>) {
    tables.signal(Signal::Disturbed(ReadReason::ExternalCommit));
    let reason = ReadReason::FingerprintDiffers;
    tables.signal(Signal::Checked(Comparison::Different { reason, is_whole: false }));
}

fn audit(tables: &mut FamilyTables<FakeIptables>) {
    tables.distrust(ReadReason::AuditDue);
}

fn fail(tables: &mut FamilyTables<FakeIptables>) {
    tables.distrust(ReadReason::RestoreFailed);
}

const TRUSTED: Knowledge = Knowledge::Trusted;
const UNVERIFIED: Knowledge = Knowledge::Unverified;

#[test]
fn with_fingerprints_a_check_tells_everything_at_any_size() {
    for n in [10, MANY] {
        let mut tables = fingerprinted(n);
        assert_eq!(checked(&mut tables), TRUSTED);
        change(&mut tables, 7);
        assert!(checked(&mut tables).is_unknown());
        let mut tables = fingerprinted(n);
        remove(&mut tables, 7);
        assert!(differs(&mut tables), "gone");
        let mut tables = fingerprinted(n);
        tables.kernel.ruleset.chain_mut(Table::Nat, chain(9_999));
        assert!(differs(&mut tables), "too many");
        remove(&mut tables, 9_999);
        tables.kernel.ruleset.chain_mut(Table::Nat, ChainName::literal("CNI-HOSTPORT"));
        assert_eq!((checked(&mut tables), tables.kernel.n_saves), (TRUSTED, 0), "another process's chain");
    }
}

#[test]
fn only_chains_that_differ_are_unknown_and_reported() {
    for distrust in [audit, differs_in_part, fail] {
        let mut tables = fingerprinted(MANY);
        change(&mut tables, 7);
        distrust(&mut tables);
        let drift = Drift { chains: vec![(Table::Nat, chain(7))], n_jumps: 0 };
        assert_eq!(read(&mut tables), (1, drift));
        assert_eq!(tables.knowledge, TRUSTED, "all others were compared");
    }
}

#[test]
fn chains_without_fingerprints_are_left_to_the_audit() {
    let mut tables = known(MANY);
    assert_eq!(checked(&mut tables), UNVERIFIED, "another process wrote before they were recorded");
    tables.record_fingerprints(0);
    assert_eq!(checked(&mut tables), UNVERIFIED, "what they would be fingerprints of is not known");
    remove(&mut tables, 7);
    assert!(checked(&mut tables).is_unknown());
    let (committed, drift) = tables.take();
    assert_eq!(drift.chains, [(Table::Nat, chain(7))]);
    assert_eq!(committed.nat.values().flatten().count(), MANY - 1);
    assert_eq!(tables.knowledge, UNVERIFIED, "the rest was neither read nor compared");
    tables.put_back(committed);
    audit(&mut tables);
    assert_eq!(read(&mut tables), (MANY - 1, Drift::default()));
}

#[test]
fn after_a_failure_of_ours_a_chain_without_fingerprint_is_as_it_was_left() {
    for is_dropped in [false, true] {
        let mut tables = known(MANY);
        fail(&mut tables);
        if is_dropped {
            tables.drop_pending_fingerprints();
        }
        let (committed, drift) = tables.take();
        assert_eq!((committed.nat.values().flatten().count(), drift), (MANY, Drift::default()));
        tables.put_back(committed);
        tables.record_fingerprints(0);
        assert_eq!(checked(&mut tables), if is_dropped { UNVERIFIED } else { TRUSTED });
    }
}

#[test]
fn where_another_process_wrote_after_a_failure_a_chain_without_fingerprint_is_unknown() {
    let mut tables = known(MANY);
    fail(&mut tables);
    audit(&mut tables);
    assert_eq!(read(&mut tables).0, MANY);
}

#[test]
fn few_chains_without_fingerprints_are_settled_by_reading() {
    let mut tables = known(10);
    assert!(checked(&mut tables).is_unknown());
    tables.kernel.readable = Readable::Rules;
    let (committed, drift) = tables.take();
    assert_eq!((committed.nat.values().flatten().count(), drift.is_empty()), (10, true));
    tables.put_back(committed);
    tables.record_fingerprints(0);
    assert_eq!(checked(&mut tables), TRUSTED);
    assert_eq!(tables.take_reads(), [ReadReason::Start, ReadReason::FingerprintMissing]);
}

#[test]
fn fingerprints_of_another_generation_are_not_recorded() {
    let mut tables = known(MANY);
    tables.kernel.n_commits = 1;
    tables.record_fingerprints(0);
    assert!(tables.has_pending_fingerprints());
    tables.drop_pending_fingerprints();
    assert!(!tables.has_pending_fingerprints());
    assert_eq!(checked(&mut tables), UNVERIFIED);
}

#[test]
fn very_many_chains_are_compared_a_slice_at_a_time() {
    const SLICES: usize = 3;
    let n = 2 * SLICE + 10;
    let mut tables = known(n);
    for _ in 0..SLICES {
        assert!(tables.has_pending_fingerprints());
        tables.record_fingerprints(0);
    }
    assert!(!tables.has_pending_fingerprints());
    let disturb = |tables: &mut FamilyTables<FakeIptables>| {
        tables.signal(Signal::Disturbed(ReadReason::ExternalCommit));
        assert_eq!(tables.check(Signal::CheckDue), None);
    };
    let slices = |tables: &mut FamilyTables<FakeIptables>| {
        let mut found = Vec::new();
        while matches!(tables.knowledge, Knowledge::Scanning(_)) {
            found.push(tables.check(Signal::CheckDue));
        }
        found
    };
    disturb(&mut tables);
    assert_eq!(slices(&mut tables), [None; SLICES]);
    assert_eq!(tables.knowledge, TRUSTED, "all were compared");
    // A process that writes again has all compared once more, from where the scan was.
    disturb(&mut tables);
    assert_eq!(tables.check(Signal::CheckDue), None);
    change(&mut tables, 0);
    disturb(&mut tables);
    let found = slices(&mut tables);
    assert_eq!(found.last(), Some(&Some(ReadReason::FingerprintDiffers)), "{found:?}");
    assert!(found[0].is_none(), "it was in the slice before");
}

#[test]
fn a_scan_that_fails_is_left_to_the_audit() {
    let mut tables = fingerprinted(MANY);
    tables.signal(Signal::Disturbed(ReadReason::ExternalCommit));
    tables.check(Signal::CheckDue);
    assert!(matches!(tables.knowledge, Knowledge::Scanning(_)));
    tables.kernel.is_dump_broken = true;
    tables.check(Signal::CheckDue);
    assert_eq!(tables.knowledge, UNVERIFIED);
    audit(&mut tables);
    let (committed, _) = tables.take();
    tables.put_back(committed);
    assert_eq!(tables.knowledge, TRUSTED, "the audit has settled it");
}

#[test]
fn where_chains_cannot_be_dumped_their_names_are_compared() {
    let mut tables = fingerprinted(MANY);
    tables.kernel.is_dump_broken = true;
    assert_eq!(checked(&mut tables), UNVERIFIED);
    change(&mut tables, 7);
    assert_eq!(checked(&mut tables), UNVERIFIED);
    remove(&mut tables, 7);
    assert!(checked(&mut tables).is_unknown());
    assert_eq!(read(&mut tables).0, MANY - 1);
    let mut tables = known(MANY);
    tables.kernel.is_dump_broken = true;
    tables.record_fingerprints(0);
    assert!(!tables.has_pending_fingerprints(), "it is not tried for ever");
    tables.kernel.is_dump_broken = false;
    assert_eq!(checked(&mut tables), UNVERIFIED, "none was recorded");
    let mut tables = fingerprinted(10);
    tables.kernel.is_dump_broken = true;
    assert!(differs(&mut tables), "so few are read");
}

#[test]
fn jumps_are_searched_where_their_chain_changed() {
    let mut tables = fingerprinted(10);
    assert_eq!((differs(&mut tables), tables.kernel.n_jump_checks), (false, 0));
    let jump = tables.jumps.iter().find(|jump| jump.from.as_str() == "PREROUTING").unwrap().clone();
    let rules = |tables: &mut FamilyTables<FakeIptables>| {
        std::mem::take(&mut tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules)
    };
    // Another process puts a rule beside it.
    let before = rules(&mut tables);
    let beside = [vec![crate::iptables::Rule::default()], before.clone()].concat();
    tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules = beside.clone();
    assert_eq!((differs(&mut tables), tables.kernel.n_jump_checks), (false, 1));
    assert_eq!((differs(&mut tables), tables.kernel.n_jump_checks), (false, 1), "once");
    rules(&mut tables);
    assert!(differs(&mut tables));
    // A search that fails is no reason to write, and is repeated.
    tables.kernel.is_check_broken = true;
    assert!(!differs(&mut tables));
    tables.kernel.is_check_broken = false;
    assert!(differs(&mut tables));
    tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules = beside;
    assert!(!differs(&mut tables));
}

#[test]
fn changes_that_the_kubelet_makes_to_its_chain_are_no_drift() {
    let mut tables = known(10);
    let firewall = names::KUBE_FIREWALL;
    let mut committed = tables.take().0;
    tables.kernel.ruleset.chain_mut(Table::Filter, firewall);
    committed.filter.insert(firewall, Some(Vec::new()));
    committed.fingerprints.mark_pending(Table::Filter, firewall);
    tables.put_back(committed);
    tables.record_fingerprints(0);
    tables.kernel.ruleset.chain_mut(Table::Filter, firewall).rules.push(crate::iptables::Rule::default());
    assert!(!differs(&mut tables));
    audit(&mut tables);
    assert_eq!(read(&mut tables), (0, Drift::default()));
}
