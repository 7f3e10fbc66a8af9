//! The steps of filter, and of probes.

use super::*;

fn in_force(chains: &[(&str, &[&str])]) -> Committed {
    let filter = chains.iter().map(|(text, texts)| (name(text), Some(rules(texts)))).collect();
    Committed { filter, ..Committed::default() }
}

/// Plans filter from `old` to `new`, with a chain of nat between.
fn around_nat(old: &[(&str, &[&str])], new: &[(&str, &[&str])]) -> Vec<String> {
    let mut desired = Desired { filter: filter_chains(new), ..Desired::groups(&[&[("N", &[])]]) };
    let mut committed = in_force(old);
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, &mut desired);
    let held: Vec<&Vec<Rule>> = committed.filter.values().flatten().collect();
    assert_eq!(held, desired.filter.iter().map(|chain| &chain.rules).collect::<Vec<_>>());
    inputs
}

const NAT: &str = "*nat\n:N - [0:0]\nCOMMIT\n";

#[test]
fn old_rejects_stay_until_nat_has_changed_and_stand_before_new_ones() {
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
fn rules_that_only_go_are_written_once_and_last() {
    let inputs = around_nat(&[("A", &["-p udp -j DROP", "-j RETURN"])], &[("A", &["-j RETURN"])]);
    check(&inputs, &[&format!("{NAT}*filter\n:A - [0:0]\n-A A -j RETURN\nCOMMIT")]);
}

#[test]
fn rules_that_only_come_are_written_once_and_first() {
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
fn chains_that_hold_the_desired_rules_are_not_written() {
    let same: &[(&str, &[&str])] = &[("A", &["-j RETURN"]), ("B", &[])];
    check(&around_nat(same, same), &[NAT]);
}

#[test]
fn a_chain_of_unknown_content_is_written_once() {
    let mut committed = Committed { filter: [(name("A"), None)].into(), ..Committed::default() };
    let mut desired = Desired::filter(&[("A", &["-j RETURN"])]);
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, &mut desired);
    check(&inputs, &["*filter\n:A - [0:0]\n-A A -j RETURN\nCOMMIT"]);
}

#[test]
fn old_rejects_stay_until_nat_has_changed_also_after_a_commit_of_unknown_effect() {
    let (old, new) = (("A", &["-p udp -j DROP", "-j RETURN"][..]), ("A", &["-j RETURN"][..]));
    let mut committed = in_force(&[old]);
    let failures = [Some(FailureEffect::Unknown)];
    fail(&mut committed, &[], UNLIMITED, &failures, &mut Desired::filter(&[new]));
    assert_eq!((&committed.filter[&name("A")], committed.uncertain_filter.len()), (&None, 1));
    let mut desired = Desired { filter: filter_chains(&[new]), ..Desired::groups(&[&[("N", &[])]]) };
    let (inputs, _) = plan(&mut committed, &[], UNLIMITED, &mut desired);
    let both = "*filter\n:A - [0:0]\n-A A -p udp -j DROP\n-A A -j RETURN\nCOMMIT";
    check(&inputs, &[&format!("{both}\n{NAT}*filter\n:A - [0:0]\n-A A -j RETURN\nCOMMIT")]);
    let known = (&committed.filter[&name("A")], committed.uncertain_filter.len());
    assert_eq!(known, (&Some(rules(&["-j RETURN"])), 0));
}

#[test]
fn on_a_node_without_rules_filter_comes_after_nat() {
    let mut desired = Desired {
        filter: filter_chains(&[("A", &["-p udp -j REJECT"])]),
        ..Desired::groups(&[&[("N", &[])]])
    };
    let (mut committed, mut recorder) = (Committed::default(), Recorder::default());
    let planner = Planner::new(IpFamily::V4, &mut committed, &[], UNLIMITED, &mut recorder);
    planner.run(StepOrder::FilterAfterNat, &mut desired).1.unwrap();
    let filter = "*filter\n:A - [0:0]\n-A A -p udp -j REJECT --reject-with icmp-port-unreachable\nCOMMIT";
    check(&recorder.inputs, &[&format!("{NAT}{filter}")]);
}

#[test]
fn the_kubelets_chain_is_added_but_never_flushed() {
    let from = |mut committed: Committed| {
        let mut desired = Desired { is_filter_shared: true, ..Desired::filter(&[("KUBE-FIREWALL", &[])]) };
        plan(&mut committed, &[], UNLIMITED, &mut desired).0
    };
    check(&from(Committed::default()), &["*filter\n:KUBE-FIREWALL - [0:0]\nCOMMIT"]);
    check(&from(in_force(&[("KUBE-FIREWALL", &["-j DROP"])])), &[]);
    let unknown = Committed { filter: [(name("KUBE-FIREWALL"), None)].into(), ..Committed::default() };
    check(&from(unknown), &[]);
}

#[test]
fn jumps_into_filter_come_behind_its_chains_in_their_order() {
    let jump = |from: &str| Jump { table: Table::Filter, from: name(from), rule: rule("-j A") };
    let jumps = [jump("INPUT"), jump("OUTPUT"), jump("FORWARD")];
    let mut committed = Committed { jumps: [1].into(), ..Committed::default() };
    let mut desired = Desired::filter(&[("A", &[])]);
    let (inputs, counts) = plan(&mut committed, &jumps, UNLIMITED, &mut desired);
    check(&inputs, &["*filter\n:A - [0:0]\n-I INPUT -j A\n-I FORWARD -j A\nCOMMIT"]);
    assert_eq!((counts.n_rules, counts.n_filter_rules, counts.n_chains), (2, 2, 1));
    assert_eq!(committed.jumps, [0, 1, 2].into());
    check(&plan(&mut committed, &jumps, UNLIMITED, &mut desired).0, &[]);
}

#[test]
fn entries_are_tried_in_chains_that_are_gone_with_the_same_commit() {
    let probes = vec![
        chain(Table::Filter, "PROBE-F", &["-p udp -j DROP"]),
        chain(Table::Nat, "PROBE-N", &["-p udp -j N"]),
    ];
    let mut desired = Desired { probes, ..Desired::groups(&[&[("N", &[])]]) };
    let (mut committed, mut recorder) = (Committed::default(), Recorder::default());
    let planner = Planner::new(IpFamily::V4, &mut committed, &[], UNLIMITED, &mut recorder);
    planner.run(StepOrder::Probe, &mut desired).1.unwrap();
    let filter = "*filter\n:PROBE-F - [0:0]\n-A PROBE-F -p udp -j DROP\n:PROBE-F - [0:0]\n-X PROBE-F\nCOMMIT";
    let nat =
        "*nat\n:N - [0:0]\n:PROBE-N - [0:0]\n-A PROBE-N -p udp -j N\n:PROBE-N - [0:0]\n-X PROBE-N\nCOMMIT";
    check(&recorder.inputs, &[&format!("{filter}\n{nat}")]);
    assert_eq!((committed.nat.len(), committed.filter.len()), (1, 0));
}
