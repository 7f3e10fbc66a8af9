//! Chains that read back in another spelling than they were written.

use super::*;
use crate::iptables::Digest;
use crate::kernel::fake::FakeIptables;
use crate::net::IpFamily;

const CHAIN: ChainName = ChainName::literal("KUBE-MARK-MASQ");

/// A chain was written with one rule, and the kernel now prints `rules` in it: whether that counts as another spelling.
fn is_equivalent(rules: &str) -> bool {
    let save = format!("*nat\n:{CHAIN} - [0:0]\n{rules}COMMIT\n");
    let kernel = FakeIptables::holding(IpFamily::V4, Backend::Nft, &save).unwrap();
    let mut tables = FamilyTables::new(kernel);
    let mut committed = Committed::default();
    committed.nat.insert(CHAIN, Some(Digest::EMPTY.then(7)));
    tables.put_back(committed);
    tables.learn_equivalents(&mut Drift { chains: vec![(Table::Nat, CHAIN)], n_jumps: 0 });
    tables.equivalents.contains_key(&(Table::Nat, CHAIN))
}

#[test]
fn the_equivalent_of_a_chain_that_is_gone_is_dropped() {
    let mut tables = FamilyTables::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    for n in 0..100 {
        let chain = ChainName::new(&format!("KUBE-SVC-{n}")).unwrap();
        let rule = "-A KUBE-MARK-MASQ -j RETURN\n".replace("KUBE-MARK-MASQ", chain.as_str());
        let save = format!("*nat\n:{chain} - [0:0]\n{rule}COMMIT\n");
        tables.kernel = FakeIptables::holding(IpFamily::V4, Backend::Nft, &save).unwrap();
        let mut committed = Committed::default();
        committed.nat.insert(chain, Some(Digest::EMPTY.then(7)));
        tables.put_back(committed);
        tables.learn_equivalents(&mut Drift { chains: vec![(Table::Nat, chain)], n_jumps: 0 });
        assert_eq!(tables.equivalents.keys().copied().collect::<Vec<_>>(), [(Table::Nat, chain)]);
    }
}

#[test]
fn a_chain_that_another_process_flushed_is_no_equivalent() {
    assert!(is_equivalent("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n"));
    assert!(!is_equivalent(""), "it was flushed before it was read back");
}
