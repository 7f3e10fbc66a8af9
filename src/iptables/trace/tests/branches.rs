//! Chance, memory, undecided rules, and foreign extensions.

use super::*;

#[test]
fn unknown_matches_and_targets_are_reported() {
    let check = |line: &str, expected: &str| Lab::filter(line).check(&outside(), &[expected]);
    check("-A FORWARD -p tcp -m set --match-set a src -j DROP", "1 unknown at filter FORWARD rule 1");
    check("-A FORWARD -p udp -m set --match-set a src -j DROP", "1 forwarded 10.96.0.1:80");
    check("-A FORWARD -m set --match-set a src -m mark --mark 0x1 -j DROP", "1 forwarded 10.96.0.1:80");
    check("-A FORWARD -j NFQUEUE --queue-num 1", "1 unknown at filter FORWARD rule 1");
    check("-A FORWARD -j NOWHERE", "1 unknown at filter FORWARD rule 1");
    check("-A FORWARD -j LOG --log-prefix x\n-A FORWARD -j DROP", "1 dropped");
}

#[test]
fn an_undecided_branch_does_not_change_the_others() {
    let lab = Lab::filter(
        "-A FORWARD -m statistic --mode random --probability 0.25000000000 -j A\n-A A -m set --match-set x src",
    );
    lab.check(&outside(), &["0.75 forwarded 10.96.0.1:80", "0.25 unknown at filter A rule 1"]);
}

#[test]
fn loops_end() {
    let check = |lines: &str| {
        let branches = Lab::filter(lines).trace(&outside());
        assert!(matches!(branches[0].outcome.verdict, PacketVerdict::Unknown(_)), "{branches:?}");
    };
    check("-A FORWARD -j A\n-A A -j A");
    check("-A FORWARD -j A\n-A A -g B\n-A B -g A");
    let doubling: String = (0..60).map(|n| format!("-A C{n} -j C{0}\n-A C{n} -j C{0}\n", n + 1)).collect();
    check(&format!(":C60 - [0:0]\n-A FORWARD -j C0\n{doubling}"));
}

#[test]
fn chances_are_exactly_the_kernels() {
    let lab = Lab::nat(
        "-A PREROUTING -m statistic --mode random --probability 0.33333333349 -j DNAT --to-destination 10.0.0.1:80\n\
         -A PREROUTING -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.0.0.2:80\n\
         -A PREROUTING -j DNAT --to-destination 10.0.0.3:80",
    );
    let weights: Vec<Weight> = lab.trace(&outside()).into_iter().map(|branch| branch.weight).collect();
    let (third, rest) = Weight::ONE.split(715_827_883);
    let (half, other_half) = rest.split(1 << 30);
    assert_eq!(weights, [third, half, other_half]);
}

#[test]
fn certain_and_impossible_chances_do_not_fork() {
    let lab = Lab::nat(
        "-A PREROUTING -m statistic --mode random --probability 0.00000000000 -j DNAT --to-destination 10.0.0.1:80\n\
         -A PREROUTING -m statistic --mode random --probability 1.00000000000 -j DNAT --to-destination 10.0.0.2:80",
    );
    lab.check(&outside(), &["1 forwarded 10.0.0.2:80 dnat"]);
}

#[test]
fn ways_that_end_alike_are_one_branch() {
    let lab = Lab::nat(
        "-A PREROUTING -m statistic --mode random --probability 0.50000000000 -j A\n\
         -A PREROUTING -m statistic --mode random --probability 0.50000000000 -j A\n\
         -A PREROUTING -j DNAT --to-destination 10.0.0.2:80\n-A A -j DNAT --to-destination 10.0.0.1:80",
    );
    lab.check(&outside(), &["0.75 forwarded 10.0.0.1:80 dnat", "0.25 forwarded 10.0.0.2:80 dnat"]);
}

#[test]
fn recent_lists_are_read_and_reported() {
    let mut lab = Lab::nat(
        "-A PREROUTING -m recent --rcheck --seconds 100 --reap --name KUBE-SEP-A --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.0.0.9:80\n\
         -A PREROUTING -p tcp -m recent --set --name KUBE-SEP-A --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.0.0.1:80",
    );
    let branch = lab.trace(&outside()).remove(0);
    assert_eq!(branch.outcome.dnat, Some("10.0.0.1:80".parse().unwrap()));
    lab.recent.now = 50;
    lab.recent.remember(&branch.outcome.remembered, outside().source.ip());
    for (now, expected) in [(50, "10.0.0.9:80"), (150, "10.0.0.9:80"), (151, "10.0.0.1:80")] {
        lab.recent.now = now;
        lab.check(&outside(), &[&format!("1 forwarded {expected} dnat")]);
        lab.check(&arriving("198.51.100.8:999", "10.96.0.1:80"), &["1 forwarded 10.0.0.1:80 dnat"]);
    }
}

#[test]
fn a_full_recent_list_forgets_who_was_not_seen_for_longest() {
    let list = ChainName::literal("KUBE-SEP-A");
    let mut recent = RecentLists::default();
    let client = |n: u8| IpAddr::from([10, 0, 0, n]);
    for n in 0..100 {
        recent.now = u64::from(n);
        recent.remember([&list], client(n));
    }
    recent.remember([&list], client(0));
    recent.remember([&list], client(200));
    assert!(recent.holds(&list, client(0), 1000) && recent.holds(&list, client(200), 1000));
    assert!(!recent.holds(&list, client(1), 1000) && recent.holds(&list, client(2), 1000));
}

#[test]
fn redirect_goes_to_the_node_or_from_the_node_to_loopback() {
    let rule = "-d 10.96.0.1/32 -p tcp -j REDIRECT --to-ports 8080";
    let lab = Lab::nat(&format!("-A PREROUTING {rule}\n-A OUTPUT {rule}"));
    lab.check(&outside(), &["1 local 192.0.2.1:8080 dnat"]);
    lab.check(&sent("192.0.2.1:9", "10.96.0.1:80"), &["1 local 127.0.0.1:8080 dnat"]);
    let lab = Lab::nat("-A OUTPUT -p tcp -j REDIRECT --to-ports 8080-8090");
    lab.check(&sent("192.0.2.1:9", "10.96.0.1:80"), &["1 unknown at nat OUTPUT rule 1"]);
}

#[test]
fn masquerading_and_snat_change_the_source() {
    let end = |line: &str| Lab::nat(line).trace(&outside()).remove(0).outcome;
    assert_eq!(end("-A POSTROUTING -j MASQUERADE --random-fully").source, None);
    let snat = end("-A POSTROUTING -j SNAT --to-source 192.0.2.7");
    assert_eq!((snat.source, snat.masquerade), (Some("192.0.2.7:999".parse().unwrap()), false));
}

#[test]
fn the_compact_hairpin_rule_masquerades_a_pod_that_reaches_itself() {
    let same = "8,32 0 0 12,2 0 0 0,32 0 0 16,97 0 0 0,28 0 0 0,21 0 1 0,6 0 0 65535,6 0 0 0";
    let lab = Lab::nat(&format!(
        "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.0.0.5:8080\n\
         -A OUTPUT -d 10.96.0.1/32 -p tcp -j REDIRECT --to-ports 8080\n\
         -A POSTROUTING ! -s 127.0.0.0/8 -m conntrack --ctstate DNAT -m bpf --bytecode \"{same}\" -j MASQUERADE"
    ));
    lab.check(&arriving("10.0.0.5:9", "10.96.0.1:80"), &["1 forwarded 10.0.0.5:8080 dnat masqueraded"]);
    lab.check(&arriving("10.0.0.6:9", "10.96.0.1:80"), &["1 forwarded 10.0.0.5:8080 dnat"]);
    lab.check(&arriving("10.0.0.5:9", "10.0.0.5:80"), &["1 forwarded 10.0.0.5:80"]);
    lab.check(&sent("127.0.0.1:9", "10.96.0.1:80"), &["1 local 127.0.0.1:8080 dnat"]);
}

#[test]
fn the_hairpin_match_compares_whole_addresses_and_another_program_is_undecided() {
    let hairpin = Rule { matches: vec![Match::Hairpin], target: Some(Target::Drop), ..Rule::default() };
    let mut lab = Lab::new(IpFamily::V6, "*filter\nCOMMIT\n");
    lab.ruleset.chain_mut(Table::Filter, Hook::Forward.chain()).rules.push(hairpin);
    lab.check(&arriving("[fd00::1]:7", "[fd00::1]:9"), &["1 dropped"]);
    for other in ["[fd00::2]:7", "[fd01::1]:7", "[fd00:0:1::1]:7", "[fd00::1:0:1]:7"] {
        lab.check(&arriving(other, "[fd00::1]:9"), &["1 forwarded [fd00::1]:9"]);
    }
    let lab = Lab::filter("-A FORWARD -m bpf --bytecode \"1,6 0 0 65535\" -j DROP");
    lab.check(&outside(), &["1 unknown at filter FORWARD rule 1"]);
}

#[test]
fn compared_rules_are_counted() {
    let lab = Lab::filter("-A FORWARD -p udp -j DROP\n-A FORWARD -j A\n-A A -p udp -j DROP");
    let branch = lab.trace(&outside()).remove(0);
    assert_eq!(branch.n_rules, 3);
    lab.check_path(&outside(), &["filter FORWARD rule 2"]);
}

#[test]
fn earlier_changes_to_a_dropped_packet_are_not_visible() {
    let mut outcome =
        Lab::filter("-A FORWARD -j DROP").trace(&Packet { mark: 1, ..outside() }).remove(0).outcome;
    outcome.dnat = Some("10.0.0.1:80".parse().unwrap());
    let visible = outcome.visible();
    assert_eq!((visible.dnat, visible.mark, visible.verdict), (None, 0, PacketVerdict::Dropped));
}

#[test]
fn a_built_in_chain_without_a_known_policy_accepts() {
    let mut lab = Lab::filter("-A FORWARD -p udp -j DROP");
    lab.ruleset.chain_mut(Table::Filter, Hook::Forward.chain()).policy = None;
    lab.check(&outside(), &["1 forwarded 10.96.0.1:80"]);
}
