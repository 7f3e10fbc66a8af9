//! Every recorded case of kube-proxy: the same rules, byte for byte, after each of its states.

#[path = "shared/corpus_cases.rs"]
mod corpus_cases;

use chainsmith::compile;
use chainsmith::iptables::{Table, parse, write};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::net::IpFamily;
use chainsmith::rules::names;

use corpus_cases::{Case, assert_same, live, place, version};

#[test]
fn the_corpus_is_complete() {
    let cases = Case::all();
    assert_eq!(cases.len(), 110);
    assert_eq!(cases.iter().map(|case| case.states().len()).sum::<usize>(), 151);
}

#[test]
fn render_prints_the_rules_of_kube_proxy() {
    let mut n_compared = 0;
    for case in Case::all().iter().filter(|case| case.file("initial.v4.save").is_none()) {
        for (n, (snapshot, expected)) in case.states().iter().enumerate() {
            for family in IpFamily::BOTH {
                let ruleset =
                    compile::ruleset(&case.settings(snapshot, family), snapshot, place(case, snapshot));
                let what = format!("{} state {n} {family}", case.name());
                assert_same(&what, &write::save(family, &ruleset), &expected[version(family)]);
                n_compared += 1;
            }
        }
    }
    assert_eq!(n_compared, 2 * (151 - 3));
}

#[test]
fn an_agent_leaves_the_rules_that_kube_proxy_leaves() {
    for case in Case::all() {
        for family in IpFamily::BOTH {
            for backend in [Backend::Nft, Backend::Legacy] {
                let kernel = match case.file(&format!("initial.{}.save", version(family))) {
                    Some(initial) => FakeIptables::holding(family, backend, &initial).expect("initial rules"),
                    None => FakeIptables::new(family, backend),
                };
                live(&case, kernel, |kernel| write::save(family, &kernel.ruleset));
            }
        }
    }
}

#[test]
fn restore_input_is_equivalent_to_kube_proxys() {
    let mut n_compared = 0;
    for case in Case::all() {
        let Some(recorded) = case.file("restore-input.v4.txt") else { continue };
        let states = case.states();
        if states.len() > 1 || case.file("initial.v4.save").is_some() {
            continue;
        }
        let (snapshot, _) = &states[0];
        let ruleset =
            compile::ruleset(&case.settings(snapshot, IpFamily::V4), snapshot, place(&case, snapshot));
        let ours = write::restore(IpFamily::V4, &ruleset);
        let managed = |text: &str| {
            let mut ruleset = parse::save(IpFamily::V4, text).expect("a restore input without deletions");
            for chains in ruleset.tables.values_mut() {
                chains.retain(|name, chain| *name != names::KUBE_FIREWALL || !chain.rules.is_empty());
                chains.retain(|name, chain| chain.policy.is_none() && *name != names::KUBE_PROXY_CANARY);
            }
            ruleset.tables.retain(|table, _| *table != Table::Mangle);
            write::save(IpFamily::V4, &ruleset)
        };
        let without_jumps: String =
            ours.lines().filter(|line| !line.starts_with("-I ")).map(|line| format!("{line}\n")).collect();
        assert_same(&case.name(), &managed(&without_jumps), &managed(&recorded));
        n_compared += 1;
    }
    assert!(n_compared >= 6, "{n_compared} restore inputs compared");
}
