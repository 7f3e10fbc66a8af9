use super::*;
use crate::iptables::{replay, write};
use crate::net::IpFamily;

fn ruleset(text: &str) -> Ruleset {
    replay::text(IpFamily::V4, text).expect(text)
}

/// Each difference as a line, and the lines of its rules.
fn shown(old: &str, new: &str) -> Vec<String> {
    let (old, new) = (ruleset(old), ruleset(new));
    let mut lines = Vec::new();
    for chain in compare(&old, &new) {
        lines.push(format!("{} {} {:?} {:?}", chain.table, chain.name, chain.presence, chain.policies));
        lines.extend(chain.edits.iter().map(|edit| match edit {
            RuleEdit::Kept(rule) => format!(" {}", write::rule_text(IpFamily::V4, rule)),
            RuleEdit::Removed(rule) => format!("-{}", write::rule_text(IpFamily::V4, rule)),
            RuleEdit::Added(rule) => format!("+{}", write::rule_text(IpFamily::V4, rule)),
        }));
    }
    lines
}

/// The differences of two versions of one chain.
fn check(old: &[&str], new: &[&str], expected: &[&str]) {
    let text = |rules: &[&str]| {
        let rules: String = rules.iter().map(|rule| format!("-A A {rule}\n")).collect();
        format!("*nat\n:A - [0:0]\n{rules}COMMIT\n")
    };
    assert_eq!(shown(&text(old), &text(new)).get(1..).unwrap_or_default(), expected);
}

#[test]
fn spelling_counters_and_exchangeable_rules_do_not_count() {
    check(
        &["-m tcp -p tcp -d 10.0.0.1 --dport 80 -j B"],
        &["-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j B"],
        &[],
    );
    check(&["-d 10.0.0.1 -j B", "-d 10.0.0.2 -j C"], &["-d 10.0.0.2 -j C", "-d 10.0.0.1 -j B"], &[]);
    let counted = "*nat\n:OUTPUT ACCEPT [5:6]\n[1:2] -A OUTPUT -j ACCEPT\nCOMMIT\n";
    assert_eq!(shown(counted, "*nat\n-A OUTPUT -j ACCEPT\nCOMMIT\n"), [""; 0]);
}

#[test]
fn an_order_that_counts_is_a_difference() {
    check(
        &["-m addrtype --src-type LOCAL -j B", "-j C"],
        &["-j C", "-m addrtype --src-type LOCAL -j B"],
        &["--m addrtype --src-type LOCAL -j B", " -j C", "+-m addrtype --src-type LOCAL -j B"],
    );
    let (one, other) = ("-d 10.0.0.1/32 -j B", "-d 10.0.0.2/32 -j C");
    let last = "-m addrtype --dst-type LOCAL -j N";
    // The last rule stays last; of the others the order does not count.
    check(&[one, other, last], &[other, one, last], &[]);
    check(
        &[one, other, last],
        &[last, other, one],
        &[
            "+-m addrtype --dst-type LOCAL -j N",
            " -d 10.0.0.1/32 -j B",
            " -d 10.0.0.2/32 -j C",
            "--m addrtype --dst-type LOCAL -j N",
        ],
    );
}

#[test]
fn one_change_in_a_reordered_chain_is_one_edit() {
    check(
        &["-d 10.0.0.1/32 -j B", "-d 10.0.0.2/32 -j C", "-d 10.0.0.3/32 -j D"],
        &["-d 10.0.0.3/32 -j D", "-d 10.0.0.2/32 -j DROP", "-d 10.0.0.1/32 -j B"],
        &[" -d 10.0.0.1/32 -j B", "--d 10.0.0.2/32 -j C", "+-d 10.0.0.2/32 -j DROP", " -d 10.0.0.3/32 -j D"],
    );
    // Equal rules are told apart by their number.
    check(&["-j B", "-j B", "-j C"], &["-j B", "-j C"], &[" -j B", "--j B", " -j C"]);
}

#[test]
fn chains_and_policies_are_compared() {
    let base = "*filter\n:FORWARD ACCEPT [0:0]\n:A - [0:0]\nCOMMIT\n";
    assert_eq!(
        shown(base, "*filter\n:FORWARD DROP [0:0]\n:B - [0:0]\n-A B -j DROP\nCOMMIT\n"),
        ["filter A Old None", "filter B New None", "+-j DROP", "filter FORWARD Both Some([Accept, Drop])"]
    );
    // A table whose built-in chains are empty is as good as none.
    assert_eq!(shown("*mangle\n:INPUT ACCEPT [0:0]\nCOMMIT\n", ""), [""; 0]);
    assert_eq!(
        shown("", "*mangle\n-A INPUT -j DROP\nCOMMIT\n"),
        ["mangle INPUT Both Some([Accept, Accept])", "+-j DROP"]
    );
}

/// Behind it a packet may have another address, so that it matches both rules.
#[test]
fn with_targets_that_rewrite_addresses_every_order_counts() {
    let text = |rules: [&str; 2]| format!("*mangle\n-A INPUT {}\n-A INPUT {}\nCOMMIT\n", rules[0], rules[1]);
    let rewrite = "-d 10.0.0.1/32 -j DNPT --src-pfx 10.0.0.0/24 --dst-pfx 10.0.1.0/24";
    let other = "-d 10.0.1.1/32 -j DROP";
    assert_eq!(shown(&text([rewrite, other]), &text([other, rewrite])).len(), 4);
}
