//! Chains that read back otherwise than they were written.

use super::*;
use crate::kernel::fake::FakeIptables;
use crate::net::IpFamily;

const CHAIN: ChainName = ChainName::literal("KUBE-MARK-MASQ");

/// A chain was written with one rule, and the kernel now prints `rules` in it: whether that is
/// taken for another way to spell it.
fn is_dialect(rules: &str) -> bool {
    let save = format!("*nat\n:{CHAIN} - [0:0]\n{rules}COMMIT\n");
    let kernel = FakeIptables::holding(IpFamily::V4, Backend::Nft, &save).unwrap();
    let mut tables = Tables::new(kernel);
    let mut committed = Committed::default();
    committed.nat.insert(CHAIN, Some(Digest::EMPTY.then(7)));
    tables.put_back(committed);
    tables.learn_dialects(&mut Drift { chains: vec![(Table::Nat, CHAIN)], n_jumps: 0 });
    tables.dialects.contains_key(&(Table::Nat, CHAIN))
}

#[test]
fn the_dialect_of_a_chain_that_is_gone_is_forgotten() {
    let mut tables = Tables::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    for n in 0..100 {
        let chain = ChainName::new(&format!("KUBE-SVC-{n}")).unwrap();
        let rule = "-A KUBE-MARK-MASQ -j RETURN\n".replace("KUBE-MARK-MASQ", chain.as_str());
        let save = format!("*nat\n:{chain} - [0:0]\n{rule}COMMIT\n");
        tables.kernel = FakeIptables::holding(IpFamily::V4, Backend::Nft, &save).unwrap();
        let mut committed = Committed::default();
        committed.nat.insert(chain, Some(Digest::EMPTY.then(7)));
        tables.put_back(committed);
        tables.learn_dialects(&mut Drift { chains: vec![(Table::Nat, chain)], n_jumps: 0 });
        assert_eq!(tables.dialects.keys().copied().collect::<Vec<_>>(), [(Table::Nat, chain)]);
    }
}

#[test]
fn a_chain_that_somebody_emptied_is_no_dialect() {
    assert!(is_dialect("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n"));
    assert!(!is_dialect(""), "it was flushed before it was read back");
}
