//! Steps 1 and 3: filter.

use super::*;

fn held(chains: &[(&str, &[&str])]) -> Committed {
    let filter = chains.iter().map(|(text, texts)| (name(text), Some(rules(texts)))).collect();
    Committed { filter, ..Committed::default() }
}

/// Plans filter from `old` to `new`, with a chain of nat between.
fn around_nat(old: &[(&str, &[&str])], new: &[(&str, &[&str])]) -> Vec<String> {
    let wanted = filter_chains(new);
    let mut committed = held(old);
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, |planner| {
        planner.filter_first(&wanted, unshared)?;
        planner.nat_chains(&[chain(Table::Nat, "N", &[])], When::Now)?;
        planner.nat_last(&[])?;
        planner.filter_last(&wanted, unshared)
    });
    let held: Vec<&Vec<Rule>> = committed.filter.values().flatten().collect();
    assert_eq!(held, wanted.iter().map(|chain| &chain.rules).collect::<Vec<_>>());
    inputs
}

const NAT: &str = "*nat\n:N - [0:0]\nCOMMIT\n";

#[test]
fn old_refusals_stay_until_nat_has_changed_and_stand_before_new_ones() {
    let inputs =
        around_nat(&[("A", &["-p udp -j DROP", "-j RETURN"])], &[("A", &["-p udp -j REJECT", "-j RETURN"])]);
    let expected = format!(
        "*filter\n:A - [0:0]\n-A A -p udp -j DROP\n-A A -j RETURN\n\
         -A A -p udp -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n{NAT}\
         *filter\n:A - [0:0]\n-A A -p udp -j REJECT --reject-with icmp-port-unreachable\n-A A -j RETURN\nCOMMIT"
    );
    check(&inputs, &[&expected]);
}

#[test]
fn what_only_goes_is_written_once_and_last() {
    let inputs = around_nat(&[("A", &["-p udp -j DROP", "-j RETURN"])], &[("A", &["-j RETURN"])]);
    check(&inputs, &[&format!("{NAT}*filter\n:A - [0:0]\n-A A -j RETURN\nCOMMIT")]);
}

#[test]
fn what_only_comes_is_written_once_and_first() {
    let inputs = around_nat(&[("A", &["-j RETURN"])], &[("A", &["-p udp -j DROP", "-j RETURN"])]);
    check(&inputs, &[&format!("*filter\n:A - [0:0]\n-A A -p udp -j DROP\n-A A -j RETURN\nCOMMIT\n{NAT}")]);
}

#[test]
fn another_order_or_number_of_the_same_rules_is_one_write() {
    for (old, new) in [
        (["-p udp -j DROP", "-j RETURN"].as_slice(), ["-j RETURN", "-p udp -j DROP"].as_slice()),
        (&["-j RETURN", "-j RETURN"], &["-j RETURN"]),
        (&["-j RETURN"], &["-j RETURN", "-j RETURN"]),
    ] {
        let written: String = new.iter().map(|text| format!("-A A {text}\n")).collect();
        check(
            &around_nat(&[("A", old)], &[("A", new)]),
            &[&format!("*filter\n:A - [0:0]\n{written}COMMIT\n{NAT}")],
        );
    }
}

#[test]
fn chains_that_hold_what_is_wanted_are_not_written() {
    let same: &[(&str, &[&str])] = &[("A", &["-j RETURN"]), ("B", &[])];
    check(&around_nat(same, same), &[NAT]);
}

#[test]
fn a_chain_of_unknown_content_is_written_once() {
    let wanted = filter_chains(&[("A", &["-j RETURN"])]);
    let mut committed = Committed { filter: [(name("A"), None)].into(), ..Committed::default() };
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, |planner| {
        planner.filter_first(&wanted, unshared)?;
        planner.filter_last(&wanted, unshared)
    });
    check(&inputs, &["*filter\n:A - [0:0]\n-A A -j RETURN\nCOMMIT"]);
}

#[test]
fn old_refusals_stay_until_nat_has_changed_also_after_a_commit_of_unknown_effect() {
    let (old, new) = (("A", &["-p udp -j DROP", "-j RETURN"][..]), ("A", &["-j RETURN"][..]));
    let mut committed = held(&[old]);
    let wanted = filter_chains(&[new]);
    let mut recorder = Recorder { failures: vec![Some(Aftermath::Unknown)], ..Recorder::default() };
    let mut planner = Planner::new(IpFamily::V4, &mut committed, &[], UNLIMITED, &mut recorder);
    planner.filter_first(&wanted, unshared).unwrap();
    planner.filter_last(&wanted, unshared).unwrap();
    planner.finish().unwrap_err();
    assert_eq!((&committed.filter[&name("A")], committed.possible.len()), (&None, 1));
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, |planner| {
        planner.filter_first(&wanted, unshared)?;
        planner.nat_chains(&[chain(Table::Nat, "N", &[])], When::Now)?;
        planner.filter_last(&wanted, unshared)
    });
    let both = "*filter\n:A - [0:0]\n-A A -p udp -j DROP\n-A A -j RETURN\nCOMMIT";
    check(&inputs, &[&format!("{both}\n{NAT}*filter\n:A - [0:0]\n-A A -j RETURN\nCOMMIT")]);
    assert_eq!((&committed.filter[&name("A")], committed.possible.len()), (&Some(rules(&["-j RETURN"])), 0));
}

#[test]
fn the_kubelets_chain_is_made_but_never_emptied() {
    let wanted = filter_chains(&[("KUBE-FIREWALL", &[])]);
    let from = |mut committed: Committed| {
        let (inputs, _) = plan(&mut committed, &[], UNLIMITED, |planner| {
            planner.filter_first(&wanted, |_| true)?;
            planner.filter_last(&wanted, |_| true)
        });
        inputs
    };
    check(&from(Committed::default()), &["*filter\n:KUBE-FIREWALL - [0:0]\nCOMMIT"]);
    check(&from(held(&[("KUBE-FIREWALL", &["-j DROP"])])), &[]);
    let unknown = Committed { filter: [(name("KUBE-FIREWALL"), None)].into(), ..Committed::default() };
    check(&from(unknown), &[]);
}

#[test]
fn jumps_into_filter_come_behind_its_chains_in_their_order() {
    let jump = |from: &str| Jump { table: Table::Filter, from: name(from), rule: rule("-j A") };
    let jumps = [jump("INPUT"), jump("OUTPUT"), jump("FORWARD")];
    let mut committed = Committed { jumps: [1].into(), ..Committed::default() };
    let wanted = filter_chains(&[("A", &[])]);
    let (inputs, tally) =
        plan(&mut committed, &jumps, UNLIMITED, |planner| planner.filter_first(&wanted, unshared));
    check(&inputs, &["*filter\n:A - [0:0]\n-I INPUT -j A\n-I FORWARD -j A\nCOMMIT"]);
    assert_eq!((tally.n_rules, tally.n_filter_rules, tally.n_chains), (2, 2, 1));
    assert_eq!(committed.jumps, [0, 1, 2].into());
    check(&plan(&mut committed, &jumps, UNLIMITED, |planner| planner.filter_first(&wanted, unshared)).0, &[]);
}
