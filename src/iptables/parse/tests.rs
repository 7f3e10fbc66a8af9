use super::*;
use crate::iptables::write;

fn parsed(family: IpFamily, rule: &str) -> Rule {
    match line(family, &format!("-A X {rule}")) {
        Ok(Line::Append(_, rule)) => rule,
        other => panic!("{rule}: {other:?}"),
    }
}

/// Both spellings are one value, and it is written as `saved`.
fn check(other: &str, saved: &str) {
    let family = if saved.contains("::") { IpFamily::V6 } else { IpFamily::V4 };
    assert_eq!(parsed(family, other), parsed(family, saved), "{other} / {saved}");
    assert_eq!(write::rule_text(family, &parsed(family, other)), saved);
}

#[test]
fn spellings_of_one_rule_are_one_value() {
    check(
        r#"-m comment --comment "a/b:c cluster IP" -m tcp -p tcp -d 10.0.0.1 --dport 80 -j KUBE-SVC-A"#,
        r#"-d 10.0.0.1/32 -p tcp -m comment --comment "a/b:c cluster IP" -m tcp --dport 80 -j KUBE-SVC-A"#,
    );
    check("-p 6 --dport 80 -j A", "-p tcp -m tcp --dport 80 -j A");
    check("-j MARK --or-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x4000");
    check("-j MARK --xor-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x0");
    check("-j MARK --and-mark 0xff", "-j MARK --set-xmark 0x0/0xffffff00");
    check("-j MARK --set-mark 0x1", "-j MARK --set-xmark 0x1/0xffffffff");
    check("-m mark ! --mark 0x004000/0x004000 -j RETURN", "-m mark ! --mark 0x4000/0x4000 -j RETURN");
    check(
        "-m statistic --mode random --probability 0.3333333333 -j A",
        "-m statistic --mode random --probability 0.33333333349 -j A",
    );
    check(
        "-m conntrack --ctstate ESTABLISHED,DNAT,RELATED -j DROP",
        "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    );
    check("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable");
    check(
        "-m recent --name S --rcheck --seconds 10800 --reap -j S",
        "-m recent --rcheck --seconds 10800 --reap --name S --mask 255.255.255.255 --rsource -j S",
    );
    check("-m nfacct --nfacct-name x -j DROP", "-m nfacct --nfacct-name  x -j DROP");
    check("! -s 127.0.0.0/8 -d 127.0.0.0/255.0.0.0", "! -s 127.0.0.0/8 -d 127.0.0.0/8");
    check("-s 0.0.0.0/0 -j A", "-j A");
    check("-d fd00:0::1 -j A", "-d fd00::1/128 -j A");
    check("-p udp -j DNAT --to-destination [fd00::0:1]:53", "-p udp -j DNAT --to-destination [fd00::1]:53");
    check("--in-interface veth+ -g A", "-i veth+ -g A");
    check(r#"-m comment --comment it's -j A"#, r#"-m comment --comment "it\'s" -j A"#);
}

#[test]
fn foreign_rules_are_kept_as_words() {
    for text in [
        "-m limit --limit 5/min --limit-burst 7 -j LOG --log-prefix \"a b \" --log-level 4",
        "-m set --match-set allow src -j ACCEPT",
        "-p icmp -m icmp --icmp-type 8 -j ACCEPT",
        "-p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 8080",
        "-p tcp -m tcp --sport 1:5 ! --dport 9 -j RETURN",
        "-m recent --update --seconds 5 --name x --mask 255.255.255.0 --rsource -j DROP",
        "-s 10.0.0.0/8 -m comment --comment \"-j ACCEPT\" -j SNAT --to-source 1.2.3.4",
        "-j REJECT --reject-with tcp-reset",
        "-s 10.0.0.1/32 -f -j RETURN",
        "! -f -j RETURN",
        "-i ve'th -o b\\d -j RETURN",
        "-j LOG",
        "-m bpf --bytecode \"1,6 0 0 65535\" -j RETURN",
    ] {
        let rule = parsed(IpFamily::V4, text);
        assert_eq!(write::rule_text(IpFamily::V4, &rule), text);
        assert_eq!(rule.callee(), None, "{text}");
    }
}

#[test]
fn a_line_that_cannot_be_parsed_is_quoted_in_the_error() {
    for text in
        ["-A", "-A X -s", "-A X -d fd00::1", "-A X -m comment --comment \"a", "hello", ":X", "[1:2 -A X"]
    {
        let error = line(IpFamily::V4, text).expect_err(text);
        assert_eq!(error.text, text);
    }
}

#[test]
fn a_saved_ruleset_is_written_back_to_the_byte() {
    let text = "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n*raw\n\
                :PREROUTING ACCEPT [0:0]\n-A PREROUTING -j NOTRACK\nCOMMIT\n*filter\n:INPUT DROP [0:0]\n\
                :KUBE-A - [0:0]\n-A INPUT -m conntrack --ctstate NEW -j KUBE-A\nCOMMIT\n";
    let counted = text.replace("-A INPUT", "[5:60] -A INPUT").replace("*filter", "# a comment\n*filter");
    let unknown = "*new\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j NOTRACK\nCOMMIT\n";
    let ruleset = save(IpFamily::V4, &format!("{unknown}{counted}")).unwrap();
    assert_eq!(write::save(IpFamily::V4, &ruleset), text);
}

/// iptables rejects such words; a damaged table must not become another rule.
#[test]
fn words_with_spaces_and_quotes_stay_one_word() {
    for rule in [
        r#"-p "t cp -j DROP" -j A"#,
        r#"-m "a b" --x -j A"#,
        r#"-m nfacct --nfacct-name  "a -j \"DROP" -j A"#,
        r#"-j "A \"B" --to x"#,
        r#"-p "" -j A"#,
    ] {
        check(rule, rule);
    }
}

#[test]
fn a_comment_without_text_is_an_error() {
    for rule in ["-j KUBE-SVC-A -m comment --comment", "-m comment --comment", "-j LOG --comment"] {
        assert!(line(IpFamily::V4, &format!("-A X {rule}")).is_err(), "{rule}");
    }
}

#[test]
fn repeated_counters_do_not_exhaust_the_stack() {
    let counters = "[1:2] ".repeat(200_000);
    let expected = line(IpFamily::V4, "-A X -j Y").unwrap();
    assert_eq!(line(IpFamily::V4, &format!("{counters}-A X -j Y")).unwrap(), expected);
    assert!(line(IpFamily::V4, &"[".repeat(200_000)).is_err());
}

/// The text that iptables-save of both back-ends prints for the rule.
#[test]
fn the_program_for_hairpins_is_a_match_of_its_own_in_its_family_only() {
    let programs = [
        "8,32 0 0 12,2 0 0 0,32 0 0 16,97 0 0 0,28 0 0 0,21 0 1 0,6 0 0 65535,6 0 0 0",
        "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,32 0 0 16,7 0 0 0,\
         32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 65535,6 0 0 0",
    ];
    for (own, program) in programs.into_iter().enumerate() {
        let text = format!("-m bpf --bytecode \"{program}\" -j ACCEPT");
        for (n, family) in [IpFamily::V4, IpFamily::V6].into_iter().enumerate() {
            let rule = parsed(family, &text);
            assert_eq!(rule.matches[0] == Match::Hairpin, n == own, "{family} {program}");
            assert_eq!(write::rule_text(family, &rule), text);
        }
    }
}
