//! Every recorded case of kube-proxy: the same rules, byte for byte, after each of its states.

#[path = "shared/corpus_cases.rs"]
mod corpus_cases;

use chainsmith::compile;
use chainsmith::config::LayoutChoice;
use chainsmith::inspect::findings::{CheckQuestion, check};
use chainsmith::inspect::{ClusterView, HostOrigin, HostView, RulesOrigin, Subject};
use chainsmith::iptables::{Ruleset, Table, parse, write};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::model::{Inventory, Snapshot};
use chainsmith::net::{IpFamily, PerFamily};
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

/// What `check` finds in `rules`, a line each, for the objects of `case`; problems of objects are not asked for.
fn findings(case: &Case, snapshot: &Snapshot, rules: [Option<Ruleset>; 2]) -> Vec<String> {
    let [v4, v6] = rules;
    let in_force = Subject {
        rulesets: PerFamily { v4, v6 },
        origin: RulesOrigin::Text("-".to_owned()),
        cluster: None,
        host: HostView::default(),
    };
    let node_name = case.config.hostname_override.as_deref().expect("cases name their node");
    let cluster = ClusterView {
        node_name: node_name.into(),
        settings: PerFamily {
            v4: case.settings(snapshot, IpFamily::V4),
            v6: case.settings(snapshot, IpFamily::V6),
        },
        snapshot: std::sync::Arc::new(snapshot.clone()),
        ..ClusterView::new(&case.config, &Inventory::default(), node_name, &case.host)
    };
    let host = HostView {
        addresses: case.host.addresses.iter().copied().collect(),
        origin: HostOrigin::File,
        ..HostView::default()
    };
    let question = CheckQuestion {
        cluster,
        host,
        in_force: &in_force,
        backends: PerFamily::default(),
        state: None,
        unknown: Vec::new(),
    };
    let report = check(question);
    assert_eq!(report.families.len(), 2);
    report
        .findings
        .iter()
        .map(|found| format!("{} {:?}: {}", found.severity, found.chain, found.summary))
        .collect()
}

#[test]
fn check_finds_nothing_beside_a_healthy_kube_proxy() {
    let mut n_checked = 0;
    for case in Case::all() {
        for (n, (snapshot, expected)) in case.states().iter().enumerate() {
            let rules = IpFamily::BOTH.map(|family| {
                Some(parse::save(family, &expected[version(family)]).expect("text of iptables-save"))
            });
            let none: [&str; 0] = [];
            assert_eq!(findings(&case, snapshot, rules), none, "{} state {n}", case.name());
            n_checked += 1;
        }
    }
    assert_eq!(n_checked, 151);
}

#[test]
fn check_finds_nothing_beside_chainsmith_in_either_layout() {
    for case in Case::all() {
        for (n, (snapshot, _)) in case.states().iter().enumerate() {
            for (layout, bpf) in [("classic", true), ("compact", true), ("compact", false)] {
                let rules = IpFamily::BOTH.map(|family| {
                    let mut settings = case.settings(snapshot, family);
                    settings.layout =
                        if layout == "compact" { LayoutChoice::Compact } else { LayoutChoice::Classic };
                    settings.bpf = bpf;
                    Some(compile::ruleset(&settings, snapshot, place(&case, snapshot)))
                });
                let found = findings(&case, snapshot, rules);
                let bad: Vec<_> = found.iter().filter(|found| !found.starts_with("notice")).collect();
                let none: [&String; 0] = [];
                assert_eq!(bad, none, "{} state {n} {layout} {bpf}", case.name());
            }
        }
    }
}
