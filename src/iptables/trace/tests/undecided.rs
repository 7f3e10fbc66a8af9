//! Rules that cannot be decided: what they might do, and which are no doubt at all.

use super::*;

/// Each undecided rule of the branches as `<rule>: may <effect> (<rule that does it>), ...`.
fn doubts(lab: &Lab) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for branch in lab.trace_in_detail(&outside()) {
        for UndecidedRule { step, may, .. } in branch.undecided {
            let may: Vec<String> = may.iter().map(|(effect, at)| format!("{effect} ({at})")).collect();
            let line = format!("{step}: may {}", may.join(", "));
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

#[track_caller]
fn check(lines: &str, expected: &[&str]) {
    assert_eq!(doubts(&Lab::filter(lines)), expected, "{lines}");
}

const BLOCKED: &str = "-m set --match-set blocked src";

#[test]
fn the_walk_goes_on_as_if_the_rule_did_not_match() {
    let lab = Lab::filter(&format!("-A FORWARD {BLOCKED} -j DROP\n-A FORWARD -j REJECT"));
    let branches = lab.trace_in_detail(&outside());
    assert_eq!(show(&branches), ["1 rejected"]);
    assert_eq!(doubts(&lab), ["filter FORWARD rule 1: may drop (filter FORWARD rule 1)"]);
    let TraceEvent::Entered(visit) = &branches[0].events[4] else { panic!("{branches:?}") };
    assert_eq!(
        (visit.chain, &visit.undecided[..], &visit.matched[..]),
        (Hook::Forward.chain(), &[1][..], &[2][..])
    );
}

#[test]
fn an_undecided_rule_is_named_with_what_it_might_do() {
    let rule = |target: &str| format!("-A FORWARD {BLOCKED} -j {target}\n");
    check(&rule("DROP"), &["filter FORWARD rule 1: may drop (filter FORWARD rule 1)"]);
    check(&rule("REJECT"), &["filter FORWARD rule 1: may reject (filter FORWARD rule 1)"]);
    check(
        &format!(":FORWARD DROP [0:0]\n{}", rule("ACCEPT")),
        &["filter FORWARD rule 1: may accept (filter FORWARD rule 1)"],
    );
    check(
        &format!("{}-A FORWARD -j DROP", rule("ACCEPT")),
        &["filter FORWARD rule 1: may accept (filter FORWARD rule 1)"],
    );
    check(
        &rule("NFQUEUE --queue-num 1"),
        &["filter FORWARD rule 1: may do anything (filter FORWARD rule 1)"],
    );
    check(&rule("NOWHERE"), &["filter FORWARD rule 1: may do anything (filter FORWARD rule 1)"]);
}

#[test]
fn the_chain_that_it_leads_to_is_looked_into() {
    let lines = |rest: &str| format!("-A FORWARD {BLOCKED} -j A\n:A - [0:0]\n{rest}");
    check(
        &lines("-A A -p udp -j DROP\n-A A -j B\n-A B -j LOG\n-A B -j DROP"),
        &["filter FORWARD rule 1: may drop (filter B rule 2)"],
    );
    check(&lines("-A A -p udp -j DROP\n-A A -j LOG"), &[]);
    check(
        &lines("-A A -m set --match-set b dst -j DROP\n-A A -m set --match-set c dst -j REJECT"),
        &["filter FORWARD rule 1: may drop (filter A rule 1), reject (filter A rule 2)"],
    );
}

#[test]
fn a_rule_that_cannot_change_the_fate_is_no_doubt() {
    let rule = |rest: &str| format!("-A FORWARD {BLOCKED} {rest}");
    check(&rule("-j LOG"), &[]);
    check(&rule("-m comment --comment counted"), &[]);
    check(&rule("-j ACCEPT"), &[]);
    check(&rule("-j RETURN"), &[]);
    check(&rule("-j MARK --set-mark 0x1"), &[]);
    check(&format!("{}\n-A FORWARD -j DROP", rule("-j DROP")), &[]);
    check("-A FORWARD -j A\n-A FORWARD -j DROP\n-A A -m set --match-set a src -j RETURN", &[]);
    check(&format!("{}\n:A - [0:0]", rule("-j A")), &[]);
    check(&format!("-A FORWARD -p udp {BLOCKED} -j DROP"), &[]);
}

#[test]
fn marks_are_followed_to_the_rules_that_read_them() {
    check(
        "-A FORWARD -m set --match-set a src -j MARK --set-mark 0x1\n-A FORWARD -m mark --mark 0x1 -j DROP",
        &["filter FORWARD rule 1: may drop (filter FORWARD rule 2)"],
    );
    let lab = Lab::nat(
        "-A PREROUTING -m set --match-set a src -j MARK --or-mark 0x4000\n-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A POSTROUTING -j MASQUERADE",
    );
    assert_eq!(doubts(&lab), ["nat PREROUTING rule 1: may change the source (nat POSTROUTING rule 2)"]);
}

#[test]
fn two_rules_that_matter_only_together_are_both_named() {
    check(
        "-A FORWARD -m set --match-set a src -j ACCEPT\n-A FORWARD -m set --match-set b src -j DROP",
        &[
            "filter FORWARD rule 1: may accept (filter FORWARD rule 1)",
            "filter FORWARD rule 2: may drop (filter FORWARD rule 2)",
        ],
    );
    check(
        "-A FORWARD -m set --match-set a src -j DROP\n-A FORWARD -m set --match-set b src -j DROP",
        &[
            "filter FORWARD rule 1: may drop (filter FORWARD rule 1)",
            "filter FORWARD rule 2: may drop (filter FORWARD rule 2)",
        ],
    );
    check(
        "-A FORWARD -m set --match-set a src -j MARK --or-mark 0x1\n-A FORWARD -m mark --mark 0x1 -m set --match-set b src -j DROP",
        &["filter FORWARD rule 1: may drop (filter FORWARD rule 2)"],
    );
}

#[test]
fn translations_are_told_apart() {
    let lab = Lab::nat(&format!(
        "-A PREROUTING {BLOCKED} -j A\n-A A -j DNAT --to-destination 10.0.0.9:80\n-A POSTROUTING {BLOCKED} -j MASQUERADE"
    ));
    assert_eq!(
        doubts(&lab),
        [
            "nat PREROUTING rule 1: may change the destination (nat A rule 1)",
            "nat POSTROUTING rule 1: may change the source (nat POSTROUTING rule 1)",
        ]
    );
}

#[test]
fn only_branches_that_meet_the_rule_have_the_doubt() {
    let lab = Lab::filter(&format!(
        "-A FORWARD -m statistic --mode random --probability 0.25000000000 -j A\n-A A {BLOCKED} -j DROP"
    ));
    let branches = lab.trace_in_detail(&outside());
    assert_eq!(show(&branches), ["0.75 forwarded 10.96.0.1:80", "0.25 forwarded 10.96.0.1:80"]);
    assert_eq!(branches.iter().map(|branch| branch.undecided.len()).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn reasons_are_words() {
    let reason = |line: &str| {
        let packet = Packet { origin: Origin::Arrives(None), ..outside() };
        Lab::filter(line).trace_in_detail(&packet).remove(0).undecided.remove(0).reasons
    };
    assert_eq!(
        reason("-A FORWARD -m set --match-set a src -m string --algo bm --string x -j DROP"),
        [
            "-m set --match-set a src: the content of sets is not in the rules",
            "-m string --algo bm --string x: depends on fields of the packet that are not given",
        ]
    );
    assert_eq!(
        reason("-A FORWARD -i eth0 -o cni0 -j DROP"),
        [
            "-i eth0: the interface on which the packet arrives is not known",
            "-o cni0: the interface for 10.96.0.1 is not known",
        ]
    );
    assert_eq!(reason("-A FORWARD -j NFQUEUE"), ["-j NFQUEUE: its effect is not known"]);
}

/// Rules that would each double the number of ways.
#[test]
fn a_great_many_undecided_rules_end() {
    let mut lines = String::new();
    for n in 0..300 {
        lines += &format!(
            "-A FORWARD -m set --match-set s{n} src -j C{n}\n-A C{n} -j MARK --set-xmark {:#x}/0x0\n",
            1 << (n % 32)
        );
    }
    lines += "-A FORWARD -m mark --mark 0x1 -j DROP\n";
    let branches = Lab::filter(&lines).trace_in_detail(&outside());
    assert_eq!(branches.len(), 1);
    assert_eq!(branches[0].undecided.len(), 300);
    assert!(branches[0].undecided.iter().all(|rule| rule.may.contains_key(&Effect::Anything)));
}
