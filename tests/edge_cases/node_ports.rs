//! G. Node ports.

use chainsmith::iptables::Table;

use crate::agent::Agent;
use crate::lab::*;

const SPEC: &str = "type: NodePort, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:10:96::10'], \
                    ipFamilies: [IPv4, IPv6], ports: [{name: p, port: 80, nodePort: 30080}]";
const SERVED: &str = "masqueraded 10.180.1.5:80";
const SERVED_V6: &str = "masqueraded [fd00:10:180:1::5]:80";
const COMMENT: &str =
    "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"";

fn with_node_port() -> Lab {
    let v6 = slice("default/web", "six", "{name: p, port: 80}", &["fd00:10:180:1::5"]);
    lab([service("default/web", SPEC, &[]), pods(&["10.180.1.5"]), v6])
}

/// The rules of nat `KUBE-SERVICES` that jump to node ports; they must come after all others.
#[track_caller]
fn tail(lab: &Lab, family: chainsmith::net::IpFamily) -> Vec<String> {
    let rules = lab.rules(family, Table::Nat, "KUBE-SERVICES");
    let first = rules.iter().position(|rule| rule.contains("service nodeports")).unwrap_or(rules.len());
    rules[first..].to_vec()
}

/// Case 127, without the sysctl.
#[test]
fn node_ports_are_served_on_all_addresses_including_localhost() {
    let lab = with_node_port();
    for to in ["192.0.2.1:30080", "198.18.0.1:30080"] {
        for from in ["outside", "pod", "node"] {
            lab.check(&[(&format!("{from} -> {to}"), SERVED)]);
        }
    }
    lab.check(&[
        ("localhost -> 127.0.0.1:30080", SERVED),
        ("node -> 127.0.0.1:30080", SERVED),
        ("outside -> 192.0.2.2:30080", "untouched"),
        ("outside -> [2001:db8::1]:30080", SERVED_V6),
        ("localhost -> [::1]:30080", "untouched"),
    ]);
    // Programs that listen on loopback stay unreachable.
    lab.check(&[("outside%eth0 -> 127.0.0.1:9999", "dropped"), ("localhost -> 127.0.0.1:9999", "untouched")]);
    assert_eq!(tail(&lab, V4), [format!("{COMMENT} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")]);
    assert_eq!(
        tail(&lab, V6),
        [format!("! -d ::1/128 {COMMENT} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")]
    );
    assert_eq!(
        lab.filter("KUBE-FIREWALL"),
        ["! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
          -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"]
    );
    assert_eq!(
        lab.nat("KUBE-NODEPORTS"),
        [
            format!(
                "-d 127.0.0.0/8 -p tcp -m comment --comment \"default/web:p\" -m tcp --dport 30080 \
                 -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j {}",
                ext()
            ),
            format!("-p tcp -m comment --comment \"default/web:p\" -m tcp --dport 30080 -j {}", ext()),
        ]
    );
}

/// Case 128.
#[test]
fn node_ports_on_localhost_can_be_disabled() {
    let lab = with_node_port().flag("iptables-localhost-nodeports", "false");
    lab.check(&[("localhost -> 127.0.0.1:30080", "untouched"), ("node -> 192.0.2.1:30080", SERVED)]);
    assert_eq!(
        tail(&lab, V4),
        [format!("! -d 127.0.0.0/8 {COMMENT} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")]
    );
    assert_eq!((lab.filter("KUBE-FIREWALL").len(), lab.nat("KUBE-NODEPORTS").len()), (0, 1));
    assert!(
        lab.save(V4).contains("-A INPUT -j KUBE-FIREWALL")
            && lab.save(V4).contains("-A OUTPUT -j KUBE-FIREWALL")
    );
}

/// Case 129.
#[test]
fn node_ports_may_be_limited_to_the_nodes_primary_address() {
    let lab = with_node_port().flag("nodeport-addresses", "primary");
    lab.check(&[
        ("outside -> 192.0.2.1:30080", SERVED),
        ("outside -> 198.18.0.1:30080", "untouched"),
        ("localhost -> 127.0.0.1:30080", "untouched"),
        ("outside -> [2001:db8::1]:30080", SERVED_V6),
    ]);
    assert_eq!(tail(&lab, V4), [format!("-d 192.0.2.1/32 {COMMENT} -j KUBE-NODEPORTS")]);
    assert_eq!((lab.filter("KUBE-FIREWALL").len(), lab.nat("KUBE-NODEPORTS").len()), (0, 1));
}

/// Case 130.
#[test]
fn node_ports_may_be_limited_to_chosen_networks() {
    let lab = with_node_port().flag("nodeport-addresses", "198.18.0.0/16,127.0.0.0/8");
    lab.check(&[
        ("outside -> 198.18.0.1:30080", SERVED),
        ("outside -> 192.0.2.1:30080", "untouched"),
        ("localhost -> 127.0.0.1:30080", SERVED),
    ]);
    assert_eq!(
        tail(&lab, V4),
        ["127.0.0.1", "198.18.0.1"].map(|ip| format!("-d {ip}/32 {COMMENT} -j KUBE-NODEPORTS"))
    );
    assert_eq!(lab.filter("KUBE-FIREWALL").len(), 1);
}

/// Case 131.
#[test]
fn localhost_in_a_chosen_network_stays_off_when_disabled() {
    let lab = with_node_port()
        .flag("nodeport-addresses", "192.0.2.0/24,127.0.0.0/8")
        .flag("iptables-localhost-nodeports", "false");
    lab.check(&[("outside -> 192.0.2.1:30080", SERVED), ("localhost -> 127.0.0.1:30080", "untouched")]);
    assert_eq!(tail(&lab, V4).len(), 1);
}

/// Case 132.
#[test]
fn without_an_address_in_the_chosen_network_node_ports_are_not_served() {
    let lab = with_node_port().flag("nodeport-addresses", "10.99.0.0/16");
    lab.check(&[
        ("outside -> 192.0.2.1:30080", "untouched"),
        ("localhost -> 127.0.0.1:30080", "untouched"),
        ("outside -> [2001:db8::1]:30080", SERVED_V6),
    ]);
    assert_eq!((tail(&lab, V4).len(), tail(&lab, V6).len()), (0, 1));
}

/// Case 133.
#[test]
fn networks_of_one_family_restrict_that_family_only() {
    let lab = with_node_port().flag("nodeport-addresses", "2001:db8:77::/64");
    lab.check(&[("outside -> 198.18.0.1:30080", SERVED), ("outside -> [2001:db8::1]:30080", "untouched")]);
}

/// Case 134.
#[test]
fn a_wide_network_may_include_localhost() {
    let lab = with_node_port().flag("nodeport-addresses", "64.0.0.0/2");
    lab.check(&[("localhost -> 127.0.0.1:30080", SERVED), ("outside -> 192.0.2.1:30080", "untouched")]);
    assert_eq!(lab.filter("KUBE-FIREWALL").len(), 1);
}

/// Case 135.
#[test]
fn a_node_without_an_address_of_the_family_serves_node_ports_on_all() {
    let v4_only = NODE.replace(", {type: InternalIP, address: '2001:db8::1'}", "");
    let lab = with_node_port().on(&v4_only).flag("nodeport-addresses", "primary");
    lab.check(&[("outside -> [2001:db8::1]:30080", SERVED_V6), ("outside -> 198.18.0.1:30080", "untouched")]);
}

/// Case 136.
#[test]
fn node_ports_never_answer_on_ipv6_localhost() {
    let lab = with_node_port().flag("nodeport-addresses", "2001:db8::/64,::1/128");
    lab.check(&[("localhost -> [::1]:30080", "untouched"), ("outside -> [2001:db8::1]:30080", SERVED_V6)]);
    assert_eq!(tail(&lab, V6).len(), 1);
}

/// Case 137.
#[test]
fn the_jump_to_node_ports_exists_without_any() {
    let lab = lab([web(""), pods(&["10.180.1.5"])]);
    assert_eq!((tail(&lab, V4).len(), lab.nat("KUBE-NODEPORTS").len()), (1, 0));
}

/// Case 138.
#[test]
fn a_node_port_without_endpoints_rejects_on_all_addresses() {
    let unserved = |value: &str| lab([service("default/web", SPEC, &[])]).flag("nodeport-addresses", value);
    for lab in [unserved("0.0.0.0/0"), unserved("198.18.0.0/16")] {
        lab.check(&[("outside -> 192.0.2.1:30080", "rejected"), ("node -> 192.0.2.1:30080", "rejected")]);
        lab.check(&[("outside -> 192.0.2.2:30080", "untouched")]);
        assert_eq!(
            lab.filter("KUBE-EXTERNAL-SERVICES"),
            ["-p tcp -m comment --comment \"default/web:p has no endpoints\" -m addrtype --dst-type LOCAL \
              -m tcp --dport 30080 -j REJECT --reject-with icmp-port-unreachable"]
        );
    }
}

/// Case 139.
#[test]
fn a_node_port_is_only_of_its_protocol() {
    let ports = "{name: p, port: 80, nodePort: 30080}, {name: u, port: 80, nodePort: 30080, protocol: UDP}";
    let spec = format!("type: NodePort, clusterIP: 10.96.0.10, ports: [{ports}]");
    let udp = slice("default/web", "b", "{name: u, port: 53, protocol: UDP}", &["10.180.1.6"]);
    let lab = lab([service("default/web", &spec, &[]), pods(&["10.180.1.5"]), udp]);
    lab.check(&[
        ("outside -> 192.0.2.1:30080/tcp", SERVED),
        ("outside -> 192.0.2.1:30080/udp", "masqueraded 10.180.1.6:53"),
        ("outside -> 192.0.2.1:30080/sctp", "untouched"),
    ]);
}

/// Case 140.
#[test]
fn a_new_address_in_a_chosen_network_is_served_from_the_next_sync_on() {
    let before = with_node_port().flag("nodeport-addresses", "198.18.0.0/16");
    let mut after = before.clone();
    after.host.addresses.push("198.18.0.2".parse().unwrap());
    let mut agent = Agent::new();
    agent.sync_to(&before);
    let input = agent.sync_to(&after);
    after.check(&[("outside -> 198.18.0.2:30080", SERVED)]);
    assert!(input.contains("-d 198.18.0.2/32"), "{input}");
}

/// An external IP may be the node's own address: its rule comes before node ports.
#[test]
fn an_external_ip_that_is_the_nodes_address_has_precedence_over_a_node_port() {
    let spec = "clusterIP: 10.96.0.11, externalIPs: [192.0.2.1], ports: [{name: p, port: 30080}]";
    let other = slice("default/other", "a", "{name: p, port: 80}", &["10.180.1.6"]);
    let node_port = service("default/web", SPEC, &[]);
    let lab = lab([node_port, pods(&["10.180.1.5"]), service("default/other", spec, &[]), other]);
    lab.check(&[
        ("outside -> 192.0.2.1:30080", "masqueraded 10.180.1.6:80"),
        ("outside -> 198.18.0.1:30080", SERVED),
    ]);
}
