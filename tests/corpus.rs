//! Every recorded case of kube-proxy: the same rules, to the byte, after each of its states.
#![allow(clippy::disallowed_methods, reason = "tests read files")]

#[path = "corpus/case.rs"]
mod case;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use case::{Case, place, version, whole_state};
use chainsmith::iptables::{Table, parse, write};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::model::{Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::rules::{self, names};
use chainsmith::sync::{FamilySync, View};

/// The text with tables in one order and, in chains where kube-proxy's order is chance, service ports
/// by name. The order of rules of one service port stays, and the node ports' tail stays last.
fn normalised(text: &str) -> String {
    const UNORDERED: [&str; 4] =
        ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];
    let mut tables: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut table = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        table = line.strip_prefix('*').unwrap_or(table);
        tables.entry(table).or_default().push(line);
    }
    let owner = |line: &str| {
        let comment = line.split("--comment ").nth(1).unwrap_or("").trim_start_matches('"');
        let is_tail = comment.starts_with("kubernetes service nodeports;");
        // Among tail rules kube-proxy's order is chance too.
        (
            is_tail,
            if is_tail { line.to_owned() } else { comment.split([' ', '"']).next().unwrap_or("").to_owned() },
        )
    };
    let mut out = Vec::new();
    for lines in tables.values_mut() {
        for chain in UNORDERED {
            let prefix = format!("-A {chain} ");
            let Some(first) = lines.iter().position(|line| line.starts_with(&prefix)) else { continue };
            let n = lines[first..].iter().take_while(|line| line.starts_with(&prefix)).count();
            lines[first..first + n].sort_by_key(|line| owner(line));
        }
        out.extend(lines.iter().copied());
    }
    out.join("\n")
}

fn assert_same(what: &str, actual: &str, expected: &str) {
    let (actual, expected) = (normalised(actual), normalised(expected));
    if actual == expected {
        return;
    }
    let (actual, expected): (Vec<&str>, Vec<&str>) = (actual.lines().collect(), expected.lines().collect());
    let only = |a: &[&str], b: &[&str]| {
        a.iter().filter(|line| !b.contains(line)).map(|l| format!("  {l}\n")).collect::<String>()
    };
    let at =
        actual.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(actual.len().min(expected.len()));
    panic!(
        "{what}: differs from line {at}:\n  {:?}\n  {:?}\nonly ours:\n{}only kube-proxy's:\n{}",
        actual.get(at),
        expected.get(at),
        only(&actual, &expected),
        only(&expected, &actual)
    );
}

#[test]
fn the_corpus_is_whole() {
    let cases = Case::all();
    assert_eq!(cases.len(), 110);
    assert_eq!(cases.iter().map(|case| case.states().len()).sum::<usize>(), 151);
}

#[test]
fn render_prints_what_kube_proxy_made() {
    let mut n_compared = 0;
    for case in Case::all().iter().filter(|case| case.file("initial.v4.save").is_none()) {
        for (n, (snapshot, expected)) in case.states().iter().enumerate() {
            for family in IpFamily::BOTH {
                let ruleset =
                    rules::ruleset(&case.settings(snapshot, family), snapshot, place(case, snapshot));
                let what = format!("{} state {n} {family}", case.name());
                assert_same(&what, &write::save(family, &ruleset), &expected[version(family)]);
                n_compared += 1;
            }
        }
    }
    assert_eq!(n_compared, 2 * (151 - 3));
}

/// One agent over its life: each state is synced on what the one before left.
fn live(case: &Case, family: IpFamily, backend: Backend) {
    let mut kernel = match case.file(&format!("initial.{}.save", version(family))) {
        Some(initial) => FakeIptables::holding(family, backend, &initial).expect("initial rules"),
        None => FakeIptables::new(family, backend),
    };
    for table in Table::ALL {
        kernel.ruleset.chain_mut(table, names::KUBE_PROXY_CANARY);
    }
    let mut sync = FamilySync::new(kernel);
    let mut cluster = Snapshot::default();
    for (n, (snapshot, expected)) in case.states().into_iter().enumerate() {
        let what = format!("{} state {n} {family} {backend:?}", case.name());
        let mut touched = Touched::default();
        for change in whole_state(&snapshot) {
            cluster.apply(change, &mut touched);
        }
        sync.set_settings(case.settings(&cluster, family));
        if touched.node {
            sync.touch_everything(false);
        }
        sync.touch(touched.services.get(family).clone());
        let view = View { snapshot: &cluster, place: place(case, &cluster) };
        let report = sync.sync(view, &AtomicBool::new(false));
        assert_eq!(report.outcome, Ok(()), "{what}:\n{}", sync.kernel().inputs.last().expect("an input"));
        assert!(report.tally.n_processes <= 1, "{what}: {} processes", report.tally.n_processes);
        assert_same(&what, &write::save(family, &sync.kernel().ruleset), &expected[version(family)]);
        // And nothing more to say.
        let n_inputs = sync.kernel().inputs.len();
        sync.touch_everything(true);
        let report = sync.sync(view, &AtomicBool::new(false));
        assert_eq!(
            (report.outcome, report.tally.n_processes),
            (Ok(()), 0),
            "{what}: a restart writes something"
        );
        assert_eq!(sync.kernel().inputs.len(), n_inputs);
    }
}

#[test]
fn an_agent_leaves_what_kube_proxy_leaves() {
    for case in Case::all() {
        for family in IpFamily::BOTH {
            for backend in [Backend::Nft, Backend::Legacy] {
                live(&case, family, backend);
            }
        }
    }
}

#[test]
fn restore_input_means_what_kube_proxys_means() {
    let mut n_compared = 0;
    for case in Case::all() {
        let Some(recorded) = case.file("restore-input.v4.txt") else { continue };
        let states = case.states();
        if states.len() > 1 || case.file("initial.v4.save").is_some() {
            continue;
        }
        let (snapshot, _) = &states[0];
        let ruleset =
            rules::ruleset(&case.settings(snapshot, IpFamily::V4), snapshot, place(&case, snapshot));
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
