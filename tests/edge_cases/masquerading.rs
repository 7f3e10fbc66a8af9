//! H. Masquerading and detectors; and the table of ruleset.md 9.

use chainsmith::iptables::CtStates;

use crate::lab::*;

const PODS: [&str; 2] = ["10.180.1.5@node-1", "10.180.2.7@node-2"];
const BOTH: &str = "10.180.1.5:80, 10.180.2.7:80";
const LOCAL_POLICY: &str = "externalTrafficPolicy: Local, healthCheckNodePort: 30999";

fn masqueraded(endpoints: &str) -> String {
    format!("masqueraded {endpoints}")
}

fn with_policy(more: &str) -> Lab {
    lab([open(more), pods(&PODS)])
}

#[test]
fn pods_keep_their_address_to_a_cluster_ip_and_other_clients_do_not() {
    for policy in ["", LOCAL_POLICY] {
        let lab = with_policy(policy);
        for (from, expected) in [
            ("pod", BOTH.to_owned()),
            ("elsewhere", BOTH.to_owned()),
            ("node", masqueraded(BOTH)),
            ("outside", masqueraded(BOTH)),
        ] {
            lab.check(&[(&format!("{from} -> {CLUSTER_IP}"), &expected)]);
        }
    }
}

#[test]
fn external_traffic_under_policy_cluster_is_masqueraded() {
    let lab = with_policy("");
    for from in ["pod", "node", "outside"] {
        for to in EXTERNAL {
            lab.check(&[(&format!("{from} -> {to}"), &masqueraded(BOTH))]);
        }
    }
}

#[test]
fn external_traffic_under_policy_local_keeps_its_source_unless_the_node_sends_it() {
    let lab = with_policy(LOCAL_POLICY);
    for (from, expected) in [("pod", BOTH), ("node", &masqueraded(BOTH)), ("outside", "10.180.1.5:80")] {
        for to in EXTERNAL {
            lab.check(&[(&format!("{from} -> {to}"), expected)]);
        }
    }
}

/// Case 141.
#[test]
fn masquerade_all_masquerades_all_packets_to_a_cluster_ip() {
    let lab = with_policy(LOCAL_POLICY).flag("masquerade-all", "true");
    for from in ["pod", "elsewhere", "node", "outside"] {
        lab.check(&[(&format!("{from} -> {CLUSTER_IP}"), &masqueraded(BOTH))]);
    }
    lab.check(&[("pod -> 203.0.113.80:80", BOTH), ("outside -> 203.0.113.80:80", "10.180.1.5:80")]);
    assert_eq!(
        lab.nat(&svc())[0],
        "-d 10.96.0.10/32 -p tcp -m comment --comment \"default/web:p cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ"
    );
    assert_eq!(lab.nat(&ext()), with_policy(LOCAL_POLICY).nat(&ext()));
}

/// Case 142.
#[test]
fn without_a_detector_only_hairpins_to_a_cluster_ip_are_masqueraded() {
    let lab = with_policy("").without_flag("cluster-cidr");
    for from in ["pod", "node", "outside"] {
        lab.check(&[(&format!("{from} -> {CLUSTER_IP}"), BOTH)]);
    }
    lab.check(&[("10.180.1.5 -> 10.96.0.10:80", "10.180.2.7:80; masqueraded 10.180.1.5:80")]);
    assert_eq!(lab.nat(&svc()).len(), 2);
}

/// Case 143.
#[test]
fn a_cluster_cidr_of_one_family_detects_in_that_family_only() {
    let spec = "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:10:96::10'], ipFamilies: [IPv4, IPv6], \
                ports: [{name: p, port: 80}]";
    let v6 = slice("default/web", "six", "{name: p, port: 80}", &["fd00:10:180:1::5"]);
    let lab = lab([service("default/web", spec, &[]), pods(&["10.180.1.5"]), v6])
        .flag("cluster-cidr", "10.180.0.0/16");
    lab.check(&[
        ("outside -> 10.96.0.10:80", "masqueraded 10.180.1.5:80"),
        ("outside -> [fd00:10:96::10]:80", "[fd00:10:180:1::5]:80"),
    ]);
}

fn detecting(mode: &str, more: &[(&str, &str)]) -> Lab {
    let lab = with_policy(LOCAL_POLICY).without_flag("cluster-cidr").flag("detect-local-mode", mode);
    more.iter().fold(lab, |lab, (name, value)| lab.flag(name, value))
}

/// Case 144.
#[test]
fn pods_may_be_detected_by_their_bridge() {
    let lab = detecting("BridgeInterface", &[("pod-bridge-interface", "cbr0")]);
    lab.check(&[
        ("pod -> 10.96.0.10:80", BOTH),
        ("elsewhere -> 10.96.0.10:80", &masqueraded(BOTH)),
        ("node -> 10.96.0.10:80", &masqueraded(BOTH)),
        ("pod -> 203.0.113.80:80", BOTH),
        ("elsewhere -> 203.0.113.80:80", "10.180.1.5:80"),
    ]);
    assert_eq!(
        lab.nat(&svc())[0],
        "-d 10.96.0.10/32 ! -i cbr0 -p tcp -m comment --comment \"default/web:p cluster IP\" -m tcp --dport 80 \
         -j KUBE-MARK-MASQ"
    );
    assert!(lab.nat(&ext())[0].starts_with("-i cbr0 -m comment"));
}

/// Case 145.
#[test]
fn pods_may_be_detected_by_an_interface_prefix() {
    let lab = detecting("InterfaceNamePrefix", &[("pod-interface-name-prefix", "cali")]);
    lab.check(&[
        ("10.180.1.99%cali12 -> 10.96.0.10:80", BOTH),
        ("10.180.1.99%eth0 -> 10.96.0.10:80", &masqueraded(BOTH)),
        ("node -> 10.96.0.10:80", &masqueraded(BOTH)),
    ]);
    assert!(lab.nat(&svc())[0].contains(" ! -i cali+ ") && lab.nat(&ext())[0].starts_with("-i cali+ "));
}

/// Case 146.
#[test]
fn pods_may_be_detected_by_the_nodes_own_cidr() {
    let lab = detecting("NodeCIDR", &[]);
    lab.check(&[
        ("pod -> 10.96.0.10:80", BOTH),
        ("elsewhere -> 10.96.0.10:80", &masqueraded(BOTH)),
        ("elsewhere -> 203.0.113.80:80", "10.180.1.5:80"),
    ]);
    assert!(lab.nat(&svc())[0].starts_with("! -s 10.180.1.0/24 "));
}

/// Case 147.
#[test]
fn any_bit_may_be_the_mark() {
    for (bit, mark) in [("0", "0x1"), ("14", "0x4000"), ("31", "0x80000000")] {
        let lab = with_policy("").flag("iptables-masquerade-bit", bit);
        lab.check(&[("outside -> 10.96.0.10:80", &masqueraded(BOTH)), ("pod -> 10.96.0.10:80", BOTH)]);
        assert_eq!(lab.nat("KUBE-MARK-MASQ"), [format!("-j MARK --set-xmark {mark}/{mark}")]);
        assert_eq!(
            lab.nat("KUBE-POSTROUTING")[..2],
            [format!("-m mark ! --mark {mark}/{mark} -j RETURN"), format!("-j MARK --set-xmark {mark}/0x0")]
        );
    }
}

/// Case 148.
#[test]
fn old_iptables_masquerades_without_random_ports() {
    let mut lab = with_policy("");
    let last = "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE";
    assert_eq!(lab.nat("KUBE-POSTROUTING")[2], format!("{last} --random-fully"));
    lab.host.kernel.random_fully = false;
    assert_eq!(lab.nat("KUBE-POSTROUTING")[2], last);
}

/// Case 149.
#[test]
fn a_pod_that_reaches_itself_is_masqueraded_in_every_configuration() {
    let local = with_policy(&format!("internalTrafficPolicy: Local, {LOCAL_POLICY}"));
    let sticky = with_policy("sessionAffinity: ClientIP");
    for lab in [
        with_policy(""),
        with_policy(LOCAL_POLICY),
        local,
        sticky,
        with_policy("").without_flag("cluster-cidr"),
        with_policy("").flag("masquerade-all", "true"),
        detecting("NodeCIDR", &[]),
        detecting("BridgeInterface", &[("pod-bridge-interface", "cbr0")]),
    ] {
        for to in [CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER_IP, NODE_PORT] {
            for branch in lab.trace(&lab.packet(&format!("10.180.1.5 -> {to}"))) {
                let is_hairpin = branch.outcome.destination.ip().to_string() == "10.180.1.5";
                assert!(!is_hairpin || branch.outcome.masquerade, "{to}: {branch:?}");
            }
        }
    }
}

#[test]
fn the_mark_is_removed_when_a_packet_leaves() {
    let lab = with_policy("");
    for branch in lab.trace(&lab.packet("outside -> 203.0.113.80:80")) {
        assert!(branch.outcome.masquerade && branch.outcome.mark == 0, "{branch:?}");
    }
}

#[test]
fn service_traffic_passes_a_node_that_forwards_no_other_traffic() {
    let lab = with_policy("").beside("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    lab.check(&[
        ("outside -> 203.0.113.80:80", &masqueraded(BOTH)),
        // Packets that are not masqueraded have no mark; kube-proxy leaves them to the policy too.
        ("pod -> 10.96.0.10:80", "dropped"),
        ("outside -> 10.180.1.5:80", "dropped"),
        ("10.180.1.5 -> 10.96.0.10:80", "dropped; masqueraded 10.180.1.5:80"),
    ]);
    lab.check_in_state(CtStates::ESTABLISHED, "10.180.1.5 -> 198.51.100.9:40000", "untouched");
    lab.check_in_state(CtStates::RELATED, "outside -> 10.180.1.5:80", "untouched");
}

#[test]
fn invalid_packets_are_not_forwarded() {
    let lab = with_policy("");
    lab.check_in_state(CtStates::INVALID, "10.180.1.5 -> 198.51.100.9:40000", "dropped");
    lab.check_in_state(CtStates::INVALID, "outside -> 192.0.2.1:22", "untouched");
}

#[test]
fn foreign_rules_before_ours_keep_their_effect() {
    let redirect = with_policy("").beside(
        "*nat\n-A OUTPUT -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 15001\nCOMMIT\n",
    );
    redirect.check(&[
        ("node -> 10.96.0.10:80", "127.0.0.1:15001"),
        ("outside -> 10.96.0.10:80", &masqueraded(BOTH)),
    ]);
    let dnat = with_policy("")
        .beside("*nat\n-A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.180.1.5:80\nCOMMIT\n");
    dnat.check(&[
        ("outside -> 192.0.2.1:8080", "10.180.1.5:80"),
        ("outside -> 192.0.2.1:30080", &masqueraded(BOTH)),
    ]);
}
