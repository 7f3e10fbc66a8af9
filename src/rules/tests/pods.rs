//! How rules recognize pods' traffic, and which traffic they masquerade.

use super::*;

/// Checks the first rule of the chain behind the cluster IP; none when `expected` is empty.
#[track_caller]
fn check_masquerade(config: &str, family: IpFamily, expected: &str) {
    let (ip, pod) = match family {
        IpFamily::V4 => ("172.30.0.1", "10.180.0.1"),
        IpFamily::V6 => ("'fd00:10::1'", "fd00:10:180::1"),
    };
    let case = Case::new()
        .and_service("s", &format!("clusterIP: {ip}, ports: [{{port: 80}}]"), "")
        .with_endpoints(pod)
        .with_config(config);
    let expected: Vec<&str> =
        [expected].into_iter().filter(|rule| !rule.is_empty()).chain(["-j SEP"]).collect();
    case.check_in(family, Table::Nat, "SVC", &expected);
}

/// 141 to 146.
#[test]
fn traffic_that_does_not_come_from_a_pod_of_the_cluster_is_masqueraded() {
    let to = "-d 172.30.0.1/32";
    let end = "-p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ";
    let check = |config: &str, expected: &str| check_masquerade(config, IpFamily::V4, expected);
    check("clusterCIDR: 10.180.0.0/16\n", &format!("! -s 10.180.0.0/16 {to} {end}"));
    check("clusterCIDR: 10.180.77.1/16\n", &format!("! -s 10.180.0.0/16 {to} {end}"));
    check("", "");
    check("clusterCIDR: 'fd00:10:180::/48'\n", "");
    check("detectLocalMode: NodeCIDR\n", &format!("! -s 10.180.0.0/24 {to} {end}"));
    check(
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cbr0}\n",
        &format!("{to} ! -i cbr0 {end}"),
    );
    let prefix = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n";
    check(prefix, &format!("{to} ! -i cali+ {end}"));
    check("clusterCIDR: 10.180.0.0/16\niptables: {masqueradeAll: true}\n", &format!("{to} {end}"));
    check("iptables: {masqueradeAll: true}\n", &format!("{to} {end}"));
}

/// 143, 144.
#[test]
fn each_family_has_its_own_pods() {
    let rule = "! -s fd00:10:180::/48 -d fd00:10::1/128 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ";
    check_masquerade(CLUSTER_CIDR, IpFamily::V6, rule);
    check_masquerade("clusterCIDR: 10.180.0.0/16\n", IpFamily::V6, "");
    let bridge = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cbr0}\n";
    check_masquerade(
        bridge,
        IpFamily::V6,
        "-d fd00:10::1/128 ! -i cbr0 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ",
    );
}

/// iptables rejects `! -s 0.0.0.0/0`, which would make every restore fail.
#[test]
fn if_every_address_is_a_pod_no_rule_matches_on_it() {
    let mut config = Config::resolve(None, &Flags::default()).unwrap().0;
    config.cluster_cidrs = vec![crate::net::Cidr::parse("0.0.0.0/0").unwrap()];
    let settings = Settings::new(&config, None, &Host::default(), IpFamily::V4);
    assert_eq!(settings.detector, None);
}

/// 83, 84: it is in the chain that the cluster IP leads to.
#[test]
fn only_the_internal_chain_masquerades() {
    let spec = "type: NodePort, internalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]";
    let masquerade = "! -s 10.180.0.0/16 -d 172.30.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ";
    let case = service(spec).with_endpoints("10.180.0.1@node-a");
    case.check(Table::Nat, "SVL", &[masquerade, "-j SEP"]).check(Table::Nat, "SVC", &["-j SEP"]);
    service(spec).with_endpoints("10.180.1.1@node-b").check(Table::Nat, "SVC", &["-j SEP"]);
}

/// 149.
#[test]
fn a_pod_that_reaches_itself_is_masqueraded() {
    let case = service("ports: [{port: 80}]").with_endpoints("10.180.0.1");
    case.check(
        Table::Nat,
        "SEP",
        &["-s 10.180.0.1/32 -j KUBE-MARK-MASQ", "-p tcp -m tcp -j DNAT --to-destination 10.180.0.1:8080"],
    );
}

/// 147, 148, 176.
#[test]
fn the_mark_is_one_bit_and_cleared_before_masquerading() {
    let check = |bit: u32, mark: &str, host: &str, masquerade: &str| {
        let mut case = Case::new().with_config(&format!("iptables: {{masqueradeBit: {bit}}}\n"));
        case.host = format!("{HOST}kernel: {{{host}}}\n");
        let masked = format!("{mark}/{mark}");
        case.check(Table::Nat, "KUBE-MARK-MASQ", &[&format!("-j MARK --set-xmark {masked}")]);
        case.check(
            Table::Nat,
            "KUBE-POSTROUTING",
            &[
                &format!("-m mark ! --mark {masked} -j RETURN"),
                &format!("-j MARK --set-xmark {mark}/0x0"),
                masquerade,
            ],
        );
    };
    check(14, "0x4000", "randomFully: true", "-j MASQUERADE --random-fully");
    check(0, "0x1", "randomFully: false", "-j MASQUERADE");
    check(31, "0x80000000", "randomFully: true", "-j MASQUERADE --random-fully");
}

/// 176, 177.
#[test]
fn invalid_packets_are_dropped_unless_conntrack_is_liberal() {
    let accept =
        ["-m mark --mark 0x4000/0x4000 -j ACCEPT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"];
    let check = |config: &str, host: &str, first: &[&str]| {
        let mut case = Case::new().with_config(config);
        case.host = format!("{HOST}kernel: {{{host}}}\n");
        case.check(Table::Filter, "KUBE-FORWARD", &[first, &accept].concat());
    };
    let counted =
        "-m conntrack --ctstate INVALID -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts -j DROP";
    check("", "nfacct: true", &[counted]);
    check("", "nfacct: false", &["-m conntrack --ctstate INVALID -j DROP"]);
    check("", "tcpBeLiberal: true", &[]);
    check("conntrack: {tcpBeLiberal: true}\n", "nfacct: true", &[]);
}

/// 20, 21, and the order of `recent` among the other extensions.
#[test]
fn affinity_rules_come_first() {
    let case = service("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, ports: [{port: 80}]")
        .with_config("")
        .with_endpoints("10.180.0.1");
    case.check(
        Table::Nat,
        "SVC",
        &[
            "-m recent --rcheck --seconds 60 --reap --name SEP --mask 255.255.255.255 --rsource -j SEP",
            "-j SEP",
        ],
    );
    case.check(Table::Nat, "SEP", &[
        "-s 10.180.0.1/32 -j KUBE-MARK-MASQ",
        "-p tcp -m recent --set --name SEP --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.180.0.1:8080",
    ]);
}
