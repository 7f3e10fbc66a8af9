//! Chains that read back in another spelling than they were written.

use super::*;
use crate::iptables::Digest;
use crate::kernel::fake::FakeIptables;
use crate::net::IpFamily;

const CHAIN: ChainName = ChainName::literal("KUBE-MARK-MASQ");

/// Tables whose `chain` held `before` when it had drifted, was repaired by one rule, and now reads as `after`.
fn repaired(chain: ChainName, before: &str, after: &str) -> FamilyTables<FakeIptables> {
    let holding = |rules: &str| {
        let save = format!("*nat\n:{chain} - [0:0]\n{rules}COMMIT\n");
        FakeIptables::holding(IpFamily::V4, Backend::Nft, &save).unwrap()
    };
    let mut tables = FamilyTables::new(holding(before));
    let mut committed = Committed::default();
    committed.nat.insert(chain, Some(Digest::EMPTY.then(7)));
    tables.put_back(committed.clone());
    tables.distrust(ReadReason::AuditDue);
    let (_, drift) = tables.take();
    assert!(drift.chains.contains(&(Table::Nat, chain)), "{drift}");
    tables.kernel = holding(after);
    tables.put_back(committed);
    tables
}

/// Whether the read-back counts as another spelling, and whether as a change after the repair.
fn read_back(before: &str, after: &str) -> (bool, bool) {
    let mut tables = repaired(CHAIN, before, after);
    let is_changed_again =
        tables.learn_equivalents(&mut Drift { chains: vec![(Table::Nat, CHAIN)], n_jumps: 0 });
    (tables.equivalents.contains_key(&(Table::Nat, CHAIN)), is_changed_again)
}

#[test]
fn the_equivalent_of_a_chain_that_is_gone_is_dropped() {
    let mut tables = FamilyTables::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    for n in 0..100 {
        let chain = ChainName::new(&format!("KUBE-SVC-{n}")).unwrap();
        let rule = format!("-A {chain} -j RETURN\n");
        let equivalents = std::mem::take(&mut tables.equivalents);
        tables = repaired(chain, &rule, &rule);
        tables.equivalents = equivalents;
        assert!(!tables.learn_equivalents(&mut Drift { chains: vec![(Table::Nat, chain)], n_jumps: 0 }));
        assert_eq!(tables.equivalents.keys().copied().collect::<Vec<_>>(), [(Table::Nat, chain)]);
    }
}

#[test]
fn only_a_chain_that_reads_as_before_its_repair_is_an_equivalent() {
    let (mark, drop) =
        ("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n", "-A KUBE-MARK-MASQ -j DROP\n");
    assert_eq!(read_back(mark, mark), (true, false));
    assert_eq!(read_back(mark, ""), (false, true), "it was flushed before it was read back");
    assert_eq!(read_back("", mark), (false, true), "unknown until it reads so again");
    assert_eq!(read_back(mark, drop), (false, true), "its rule was replaced before it was read back");
}
