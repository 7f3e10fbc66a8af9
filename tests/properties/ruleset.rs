//! Invariants of the rules of every cluster.

use std::collections::BTreeMap;

use chainsmith::compile;
use chainsmith::iptables::{ChainContent, ChainName, Ruleset, Table, write};
use chainsmith::kernel::Backend;
use chainsmith::model::{Change, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::plan::Limits;
use chainsmith::rules::{self, names};
use proptest::prelude::*;

use crate::cluster::worlds;
use crate::for_all;
use crate::live::{Live, empty, families};

#[test]
fn the_order_of_objects_makes_no_difference() {
    let worlds = worlds().prop_flat_map(|world| {
        let mut changes: Vec<Change> = vec![Change::Node(Some(world.node.clone()))];
        changes.extend(world.services.iter().map(|(name, s)| Change::Service(name.clone(), Some(s.clone()))));
        changes.extend(world.slices.iter().map(|(name, s)| Change::Slice(name.clone(), Some(s.clone()))));
        // And an object that was added and deleted.
        changes.extend(world.slices.iter().map(|(name, s)| Change::Slice(name.clone(), Some(s.clone()))));
        (Just(world), Just(changes).prop_shuffle())
    });
    for_all(640, (worlds, families()), |((world, changes), family)| {
        let mut snapshot = Snapshot::default();
        changes.into_iter().for_each(|change| snapshot.apply(change, &mut Touched::default()));
        let mut shuffled_host = world.host.clone();
        shuffled_host.addresses.reverse();
        let settings = rules::Settings::new(&world.config, Some(&world.node), &shuffled_host, family);
        let shuffled = compile::ruleset(&settings, &snapshot, world.place());
        prop_assert_eq!(write::save(family, &shuffled), write::save(family, &world.ruleset(family)));
        Ok(())
    });
}

/// The input bytes, too, do not depend on the order of a hash map.
#[test]
fn the_same_cluster_gives_the_same_input() {
    for_all(240, (worlds(), families()), |(world, family)| {
        let inputs = || {
            let mut live = Live::start(empty(family, Backend::Nft, Limits::NFT), world.clone());
            live.sync().outcome.expect("tables in memory accept it");
            live.fake().inputs.clone()
        };
        prop_assert_eq!(inputs(), inputs());
        Ok(())
    });
}

#[test]
fn every_jump_has_its_chain_and_no_path_is_longer_than_nf_tables_accepts() {
    for_all(1280, (worlds(), families()), |(world, family)| {
        let ruleset = world.ruleset(family);
        for (table, chains) in &ruleset.tables {
            for (name, chain) in chains {
                for callee in chain.rules.iter().filter_map(|rule| rule.callee()) {
                    prop_assert!(chains.contains_key(&callee), "{table}: {name} leads to {callee}");
                }
                prop_assert!(depth(chains, name) <= 7, "{table} {name}: {}", depth(chains, name));
            }
        }
        Ok(())
    });
}

/// How many chains a packet can be in at once below `name`: KUBE-SERVICES, FW, EXT, SVC, SEP, MARK-MASQ,
/// and one more for KUBE-NODEPORTS.
fn depth(chains: &BTreeMap<ChainName, ChainContent>, name: &ChainName) -> usize {
    let callees = chains[name].rules.iter().filter_map(|rule| rule.callee());
    callees.map(|callee| 1 + depth(chains, &callee)).max().unwrap_or(0)
}

#[test]
fn names_fit_and_only_chains_that_kube_proxy_leaves_empty_are_empty() {
    let may_be_empty = |ruleset: &Ruleset, table: Table, name: &ChainName| {
        let shared =
            rules::SharedChain::ALL.iter().any(|chain| chain.table() == table && chain.name() == *name);
        let is_built_in = ruleset.chain(table, name).is_some_and(|chain| chain.policy.is_some());
        shared || is_built_in || [names::KUBE_PROXY_CANARY, names::KUBE_FIREWALL].contains(name)
    };
    for_all(1280, (worlds(), families()), |(world, family)| {
        let ruleset = world.ruleset(family);
        for (table, chains) in &ruleset.tables {
            for (name, chain) in chains {
                prop_assert!(name.as_str().len() <= 28, "{}", name);
                prop_assert!(
                    !chain.rules.is_empty() || may_be_empty(&ruleset, *table, name),
                    "{table} {name} is empty"
                );
            }
        }
        let tail = &ruleset.tables[&Table::Nat][&names::KUBE_SERVICES].rules;
        let n_dispatch = tail.iter().filter(|rule| rule.callee() == Some(names::KUBE_NODEPORTS)).count();
        prop_assert!(
            tail.iter().rev().take(n_dispatch).all(|rule| rule.callee() == Some(names::KUBE_NODEPORTS))
        );
        Ok(())
    });
}

#[test]
fn rules_of_a_family_do_not_depend_on_the_other() {
    for_all(320, worlds(), |world| {
        for family in IpFamily::BOTH {
            let mut alone = world.clone();
            alone.slices.retain(|_, slice| slice.family == family);
            for service in alone.services.values_mut() {
                *service.frontends.get_mut(family.other()) = None;
            }
            prop_assert_eq!(alone.ruleset(family), world.ruleset(family));
        }
        Ok(())
    });
}
