//! Matches and targets of other programs' rules.

use super::*;

/// Whether `packet`, which is forwarded, matches a rule with `matches`: "yes", "no", or "unknown".
#[track_caller]
fn answer(family: IpFamily, packet: &Packet, matches: &str) -> &'static str {
    let lab = Lab::new(family, &format!("*mangle\n-A PREROUTING {matches} -j DROP\nCOMMIT\n"));
    match lab.trace(packet).remove(0).outcome.verdict {
        PacketVerdict::Dropped => "yes",
        PacketVerdict::Accepted(_) => "no",
        PacketVerdict::Unknown(_) => "unknown",
        PacketVerdict::Rejected => panic!("{matches}"),
    }
}

/// Checks the answers for the packet 198.51.100.9:999 -> 10.96.0.1:80, and the contrary for each with `!`.
#[track_caller]
fn check(module: &str, options: &[(&str, &str)]) {
    for (option, expected) in options {
        let contrary = match *expected {
            "yes" => "no",
            "no" => "yes",
            other => other,
        };
        let matches = format!("-p tcp -m {module} {option}");
        assert_eq!(answer(IpFamily::V4, &outside(), &matches), *expected, "{matches}");
        let matches = format!("-p tcp -m {module} ! {option}");
        assert_eq!(answer(IpFamily::V4, &outside(), &matches), contrary, "{matches}");
    }
}

#[test]
fn ports_are_compared() {
    check(
        "tcp",
        &[("--sport 999", "yes"), ("--sport 1:998", "no"), ("--sport :999", "yes"), ("--dport 81:", "no")],
    );
    check(
        "multiport",
        &[
            ("--dports 443,80", "yes"),
            ("--dports 443,8080", "no"),
            ("--dports 70:90", "yes"),
            ("--sports 80", "no"),
            ("--sports 1:1023", "yes"),
            ("--ports 999", "yes"),
            ("--ports 80", "yes"),
            ("--ports 81", "no"),
        ],
    );
}

#[test]
fn the_first_packet_of_a_tcp_connection_has_the_flag_syn_alone() {
    check(
        "tcp",
        &[
            ("--syn", "yes"),
            ("--tcp-flags FIN,SYN,RST,ACK SYN", "yes"),
            ("--tcp-flags SYN,RST SYN", "yes"),
            ("--tcp-flags ALL NONE", "no"),
            ("--tcp-flags FIN,ACK NONE", "yes"),
            ("--tcp-flags SYN,FIN SYN,FIN", "no"),
            ("--tcp-flags ACK ACK", "no"),
            ("--tcp-option 8", "unknown"),
        ],
    );
    let later = Packet { state: CtStates::ESTABLISHED, ..outside() };
    assert_eq!(answer(IpFamily::V4, &later, "-p tcp -m tcp ! --syn"), "unknown");
    assert_eq!(answer(IpFamily::V4, &later, "-p tcp -m tcp ! --syn -m state --state NEW"), "no");
}

#[test]
fn ranges_of_addresses_are_compared() {
    check(
        "iprange",
        &[
            ("--src-range 198.51.100.0-198.51.100.9", "yes"),
            ("--src-range 198.51.100.10-198.51.100.20", "no"),
            ("--dst-range 10.96.0.1-10.96.0.1", "yes"),
        ],
    );
}

#[test]
fn types_of_addresses_are_told() {
    check(
        "addrtype",
        &[
            ("--dst-type LOCAL", "no"),
            ("--dst-type UNICAST", "yes"),
            ("--dst-type LOCAL,UNICAST", "yes"),
            ("--dst-type BROADCAST", "no"),
            ("--dst-type MULTICAST", "no"),
            ("--src-type UNREACHABLE", "no"),
        ],
    );
    let to = |ip: &str, matches: &str| {
        let family = if ip.contains("::") { IpFamily::V6 } else { IpFamily::V4 };
        let from = if family == IpFamily::V6 { "[2001:db8:9::9]:7" } else { "198.51.100.9:7" };
        let port = if ip.contains("::") { format!("[{ip}]:80") } else { format!("{ip}:80") };
        answer(family, &arriving(from, &port), &format!("-m addrtype {matches}"))
    };
    assert_eq!(to("192.0.2.1", "--dst-type LOCAL"), "yes");
    assert_eq!(to("192.0.2.1", "--dst-type UNICAST"), "no");
    assert_eq!(to("224.0.0.1", "--dst-type MULTICAST"), "yes");
    assert_eq!(to("255.255.255.255", "--dst-type BROADCAST"), "yes");
    assert_eq!(to("192.0.2.1", "--dst-type LOCAL --limit-iface-in"), "unknown");
    assert_eq!(to("10.96.0.1", "--dst-type LOCAL --limit-iface-in"), "no");
    // In IPv6 an address of the node is a unicast address too.
    assert_eq!(to("2001:db8::1", "--dst-type UNICAST"), "yes");
    assert_eq!(to("2001:db8::1", "--dst-type LOCAL"), "yes");
    assert_eq!(to("fd00::1", "--dst-type LOCAL"), "no");
    assert_eq!(to("ff02::1", "--dst-type MULTICAST"), "yes");
    assert_eq!(to("fd00::1", "--dst-type UNREACHABLE"), "unknown");
}

#[test]
fn the_entry_of_conntrack_is_known_for_a_new_connection() {
    check(
        "conntrack",
        &[
            ("--ctstate NEW,RELATED", "yes"),
            ("--ctproto 6", "yes"),
            ("--ctproto 17", "no"),
            ("--ctproto 1", "no"),
            ("--ctdir ORIGINAL", "yes"),
            ("--ctdir REPLY", "no"),
            ("--ctorigdst 10.96.0.0/12", "yes"),
            ("--ctorigsrc 10.96.0.1", "no"),
            ("--ctorigdstport 80", "yes"),
            ("--ctorigsrcport 999:1000", "yes"),
            ("--ctreplsrc 10.96.0.1", "yes"),
            ("--ctrepldst 198.51.100.9", "yes"),
            ("--ctreplsrcport 81", "no"),
            ("--ctstatus SEEN_REPLY,ASSURED", "no"),
            ("--ctstatus CONFIRMED", "no"),
            ("--ctexpire 10", "unknown"),
        ],
    );
    check("state", &[("--state NEW", "yes"), ("--state ESTABLISHED,RELATED", "no")]);
    assert_eq!(
        answer(IpFamily::V4, &outside(), "-m conntrack --ctstate NEW --ctdir ORIGINAL --ctproto 6"),
        "yes"
    );
    let later = Packet { state: CtStates::ESTABLISHED, ..outside() };
    assert_eq!(answer(IpFamily::V4, &later, "-m conntrack --ctorigdst 10.96.0.1"), "unknown");
    let invalid = Packet { state: CtStates::INVALID, ..outside() };
    assert_eq!(answer(IpFamily::V4, &invalid, "-m conntrack ! --ctorigdst 10.96.0.1"), "no");
    assert_eq!(answer(IpFamily::V4, &invalid, "-m conntrack --ctstate INVALID --ctdir REPLY"), "yes");
}

#[test]
fn original_addresses_outlast_a_translation() {
    let lab = Lab::new(
        IpFamily::V4,
        "*nat\n-A PREROUTING -j DNAT --to-destination 10.0.0.5:8080\nCOMMIT\n*filter\n\
         -A FORWARD -m conntrack --ctorigdst 10.96.0.1 --ctorigdstport 80 --ctreplsrc 10.0.0.5 --ctreplsrcport 8080 -j REJECT\nCOMMIT\n",
    );
    lab.check(&outside(), &["1 rejected dnat"]);
}

#[test]
fn marks_of_connections_are_set_saved_and_restored() {
    let lab = Lab::new(
        IpFamily::V4,
        "*mangle\n-A PREROUTING -m connmark ! --mark 0x0 -j DROP\n-A PREROUTING -j MARK --set-mark 0x12\n\
         -A PREROUTING -j CONNMARK --save-mark --nfmask 0xf0 --ctmask 0xff\n-A PREROUTING -j MARK --set-mark 0x0\n\
         -A FORWARD -m connmark ! --mark 0x10/0xff -j DROP\n\
         -A FORWARD -j CONNMARK --set-xmark 0x3/0xf\n-A FORWARD -j CONNMARK --restore-mark\nCOMMIT\n",
    );
    lab.check(&outside(), &["1 forwarded 10.96.0.1:80 mark 0x13"]);
    let later = Packet { state: CtStates::ESTABLISHED, ..outside() };
    let restore = Lab::new(IpFamily::V4, "*mangle\n-A PREROUTING -j CONNMARK --restore-mark\nCOMMIT\n");
    restore.check(&later, &["1 unknown at mangle PREROUTING rule 1"]);
}

#[test]
fn what_a_text_does_not_tell_stays_undecided() {
    for matches in [
        "-m set --match-set cali40s:abc src",
        "-m limit --limit 3/min",
        "-m hashlimit --hashlimit-upto 1/sec --hashlimit-name a",
        "-m statistic --mode nth --every 3 --packet 0",
        "-m physdev --physdev-is-bridged",
        "-m recent --update --seconds 60 --name SSH --mask 255.255.255.255 --rsource",
        "-m string --algo bm --string x",
        "-m u32 --u32 0",
        "-m rpfilter --invert",
        "-m policy --dir in --pol ipsec",
        "-m madeup --option",
    ] {
        assert_eq!(answer(IpFamily::V4, &outside(), matches), "unknown", "{matches}");
    }
}

#[test]
fn foreign_matches_of_other_packets_are_decided() {
    for (matches, expected) in [
        ("-p icmp -m icmp --icmp-type 8", "no"),
        ("-p udp -m udp --sport 1", "no"),
        ("! -f", "yes"),
        ("-f", "no"),
        ("-m pkttype --pkt-type broadcast", "no"),
        ("-m pkttype --pkt-type unicast", "yes"),
        ("-m owner --uid-owner 0", "no"),
        ("-m recent --set --name SSH --mask 255.255.255.255 --rdest", "yes"),
    ] {
        assert_eq!(answer(IpFamily::V4, &outside(), matches), expected, "{matches}");
    }
    let local = |matches: &str| {
        let lab = Lab::filter(&format!("-A OUTPUT {matches} -j DROP"));
        lab.trace(&sent("192.0.2.1:9", "10.0.0.1:80")).remove(0).outcome.verdict
    };
    assert!(matches!(local("-m owner --uid-owner 0"), PacketVerdict::Unknown(_)));
    assert!(matches!(local("-m physdev --physdev-in veth0"), PacketVerdict::Accepted(_)));
    assert!(matches!(local("-m physdev ! --physdev-is-bridged"), PacketVerdict::Dropped));
}

#[test]
fn the_reverse_path_is_the_route_to_the_source() {
    let mut lab = Lab::new(IpFamily::V4, "*raw\n-A PREROUTING -m rpfilter --invert -j DROP\nCOMMIT\n");
    let route = |to: &str, name: &str| (Cidr::parse(to).unwrap(), Interface::new(name).unwrap());
    lab.routes = vec![route("0.0.0.0/0", "eth0"), route("10.0.0.0/8", "cni0")];
    lab.check(&outside(), &["1 forwarded 10.96.0.1:80"]);
    lab.check(&arriving("10.0.0.7:9", "10.96.0.1:80"), &["1 dropped"]);
    lab.check(&arriving("192.0.2.1:9", "10.96.0.1:80"), &["1 dropped"]);
    lab.check(&sent("192.0.2.1:9", "192.0.2.1:80"), &["1 local 192.0.2.1:80"]);
}

#[test]
fn negated_chances_split_as_well() {
    let lab = Lab::filter("-A FORWARD -m statistic --mode random ! --probability 0.25000000000 -j DROP");
    lab.check(&outside(), &["0.25 forwarded 10.96.0.1:80", "0.75 dropped"]);
}

#[test]
fn translations_with_ports_or_addresses_alone_keep_the_rest() {
    let dnat = |to: &str| {
        let lab = Lab::nat(&format!("-A PREROUTING -p tcp -j DNAT --to-destination {to}"));
        show(&lab.trace(&outside())).remove(0)
    };
    assert_eq!(dnat("10.0.0.5"), "1 forwarded 10.0.0.5:80 dnat");
    assert_eq!(dnat(":8080"), "1 forwarded 10.96.0.1:8080 dnat");
    assert_eq!(dnat("10.0.0.5:79-81"), "1 forwarded 10.0.0.5:80 dnat");
    assert_eq!(dnat("10.0.0.5:79-81 --random"), "1 unknown at nat PREROUTING rule 1");
    assert_eq!(dnat("10.0.0.5:8080 --random --persistent"), "1 forwarded 10.0.0.5:8080 dnat");
    assert_eq!(dnat("10.0.0.5:8000-8080"), "1 unknown at nat PREROUTING rule 1");
    assert_eq!(dnat("10.0.0.5-10.0.0.9"), "1 unknown at nat PREROUTING rule 1");
    let snat = |from: &str| {
        let lab = Lab::nat(&format!("-A POSTROUTING -p tcp -j SNAT --to-source {from}"));
        lab.trace(&outside()).remove(0).outcome.source.map(|from| from.to_string())
    };
    assert_eq!(snat("192.0.2.7").unwrap(), "192.0.2.7:999");
    assert_eq!(snat("192.0.2.7:1024-65535"), Some("198.51.100.9:999".to_owned()), "the kernel picks a port");
    let v6 = |to: &str| {
        let lab = Lab::new(
            IpFamily::V6,
            &format!("*nat\n-A PREROUTING -p tcp -j DNAT --to-destination {to}\nCOMMIT\n"),
        );
        show(&lab.trace(&arriving("[2001:db8:9::9]:7", "[fd00:10:96::1]:80"))).remove(0)
    };
    assert_eq!(v6("fd00::5"), "1 forwarded [fd00::5]:80 dnat");
    assert_eq!(v6("[fd00::5]"), "1 forwarded [fd00::5]:80 dnat");
    assert_eq!(v6("[fd00::5]:8080"), "1 forwarded [fd00::5]:8080 dnat");
}

#[test]
fn networks_are_mapped() {
    Lab::nat("-A PREROUTING -d 10.96.0.0/16 -j NETMAP --to 10.1.0.0/16")
        .check(&outside(), &["1 forwarded 10.1.0.1:80 dnat"]);
    let lab = Lab::nat("-A POSTROUTING -s 198.51.100.0/24 -j NETMAP --to 203.0.113.0/24");
    assert_eq!(lab.trace(&outside()).remove(0).outcome.source.unwrap().to_string(), "203.0.113.9:999");
}

#[test]
fn raw_comes_before_conntrack_and_can_keep_it_away() {
    let lab = |rules: &str| {
        Lab::new(
            IpFamily::V4,
            &format!(
                "*raw\n{rules}\nCOMMIT\n*nat\n-A PREROUTING -j DNAT --to-destination 10.0.0.5:8080\nCOMMIT\n\
         *filter\n-A FORWARD -m conntrack --ctstate UNTRACKED -j REJECT\nCOMMIT\n"
            ),
        )
    };
    lab("").check(&outside(), &["1 forwarded 10.0.0.5:8080 dnat"]);
    for target in ["NOTRACK", "CT --notrack"] {
        lab(&format!("-A PREROUTING -p tcp -j {target}")).check(&outside(), &["1 rejected"]);
    }
    lab("-A PREROUTING -j CT --helper ftp").check(&outside(), &["1 forwarded 10.0.0.5:8080 dnat"]);
    lab("-A PREROUTING -m conntrack --ctstate NEW -j DROP")
        .check(&outside(), &["1 forwarded 10.0.0.5:8080 dnat"]);
    lab("-A PREROUTING -p tcp -m tcp --syn -j DROP").check(&outside(), &["1 dropped"]);
    lab("-A PREROUTING -d 10.96.0.1/32 ! -i cni0 -j DROP").check(&outside(), &["1 dropped"]);
}

#[test]
fn security_comes_behind_filter() {
    let lab = Lab::new(
        IpFamily::V4,
        "*security\n-A FORWARD -j DROP\nCOMMIT\n*filter\n-A FORWARD -j REJECT\nCOMMIT\n",
    );
    lab.check(&outside(), &["1 rejected"]);
    let lab = Lab::new(IpFamily::V4, "*security\n-A INPUT -j DROP\nCOMMIT\n");
    lab.check(&arriving("198.51.100.9:999", "192.0.2.1:80"), &["1 dropped"]);
}

#[test]
fn harmless_targets_are_passed() {
    for target in [
        "TCPMSS --clamp-mss-to-pmtu",
        "NFLOG --nflog-group 1",
        "TRACE",
        "CLASSIFY --set-class 1:1",
        "DSCP --set-dscp 0x10",
        "SET --add-set seen src",
    ] {
        Lab::filter(&format!("-A FORWARD -j {target}\n-A FORWARD -j REJECT"))
            .check(&outside(), &["1 rejected"]);
    }
    let unknown = ["1 unknown at filter FORWARD rule 1"];
    Lab::filter("-A FORWARD -j SET --map-set a src --map-mark").check(&outside(), &unknown);
}
