mod branches;
mod details;
mod foreign;
mod replies;
mod undecided;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::iptables::{ChainName, CtStates, Interface, Match, Rule, Ruleset, Table, Target, parse, write};
use crate::net::{Cidr, IpFamily, Protocol};

const NODE: &str = "192.0.2.1";

/// A node with these lines of `iptables-save`.
struct Lab {
    family: IpFamily,
    ruleset: Ruleset,
    local: BTreeSet<IpAddr>,
    routes: Vec<(Cidr, Interface)>,
    recent: RecentLists,
}

impl Lab {
    fn new(family: IpFamily, save: &str) -> Lab {
        let mut ruleset = Ruleset::with_built_in_chains();
        for (table, chains) in parse::save(family, save).unwrap().tables {
            for (name, chain) in chains {
                let kept = ruleset.chain_mut(table, name);
                *kept = crate::iptables::ChainContent { policy: chain.policy.or(kept.policy), ..chain };
            }
        }
        let local = [NODE, "127.0.0.1", "2001:db8::1", "::1"].map(|ip| ip.parse().unwrap()).into();
        Lab { family, ruleset, local, routes: Vec::new(), recent: RecentLists::default() }
    }

    /// Rules of nat; chains that are not built in are declared by being written to.
    fn nat(lines: &str) -> Lab {
        Lab::new(IpFamily::V4, &format!("*nat\n{lines}\nCOMMIT\n"))
    }

    fn filter(lines: &str) -> Lab {
        Lab::new(IpFamily::V4, &format!("*filter\n{lines}\nCOMMIT\n"))
    }

    fn trace(&self, packet: &Packet) -> Vec<Branch> {
        trace(&self.node(), packet, &self.recent)
    }

    fn node(&self) -> TracedNode<'_> {
        TracedNode { ruleset: &self.ruleset, local_addresses: &self.local, routes: &self.routes }
    }

    /// With details, on behind rules that cannot be decided.
    fn trace_in_detail(&self, packet: &Packet) -> Vec<Branch> {
        Tracer::new(self.node(), TraceOptions::DETAILED).trace(packet, &self.recent)
    }

    /// Checks the results for `packet`, as [`show`] writes them.
    #[track_caller]
    fn check(&self, packet: &Packet, expected: &[&str]) {
        let text = write::save(self.family, &self.ruleset);
        assert_eq!(show(&self.trace(packet)), expected, "{text}");
    }

    /// Checks the rules on the path of a packet with one possible result.
    #[track_caller]
    fn check_path(&self, packet: &Packet, expected: &[&str]) {
        let branches = self.trace(packet);
        let [branch] = &branches[..] else { panic!("{branches:?}") };
        let path: Vec<String> = branch.path.iter().map(ToString::to_string).collect();
        let rules: Vec<&str> = path.iter().map(|s| &**s).filter(|step| !step.ends_with("policy")).collect();
        assert_eq!(rules, expected);
    }
}

/// Each branch as `<weight> <verdict> <destination>[ dnat][ masqueraded][ mark 0x..]`.
fn show(branches: &[Branch]) -> Vec<String> {
    let mut sum = Weight::ZERO;
    branches.iter().for_each(|branch| sum.add(&branch.weight));
    assert_eq!(sum, Weight::ONE, "the weights add up to one");
    branches
        .iter()
        .map(|Branch { weight, outcome, .. }| {
            let mut text = match outcome.verdict {
                PacketVerdict::Accepted(Delivery::Local) => format!("{weight} local {}", outcome.destination),
                PacketVerdict::Accepted(Delivery::Forwarded) => {
                    format!("{weight} forwarded {}", outcome.destination)
                }
                PacketVerdict::Dropped => format!("{weight} dropped"),
                PacketVerdict::Rejected => format!("{weight} rejected"),
                PacketVerdict::Unknown(step) => format!("{weight} unknown at {step}"),
            };
            text.push_str(if outcome.dnat.is_some() { " dnat" } else { "" });
            text.push_str(if outcome.masquerade { " masqueraded" } else { "" });
            if outcome.mark != 0 {
                text.push_str(&format!(" mark {:#x}", outcome.mark));
            }
            text
        })
        .collect()
}

/// A packet that arrives on eth0.
fn arriving(from: &str, to: &str) -> Packet {
    let origin = Origin::Arrives(Some("eth0".into()));
    Packet::new(origin, from.parse().unwrap(), to.parse().unwrap(), Protocol::Tcp)
}

/// A packet of the node itself.
fn sent(from: &str, to: &str) -> Packet {
    Packet { origin: Origin::Node, ..arriving(from, to) }
}

fn outside() -> Packet {
    arriving("198.51.100.9:999", "10.96.0.1:80")
}

/// All built-in chains count a packet that passes them.
fn every_hook() -> Lab {
    let mut lab = Lab::nat("");
    for chains in lab.ruleset.tables.values_mut() {
        for chain in chains.values_mut() {
            let matches = vec![Match::Comment("seen".into())];
            chain.rules.push(Rule { matches, ..Default::default() });
        }
    }
    lab
}

#[test]
fn a_forwarded_packet_meets_the_hooks_in_the_kernels_order() {
    every_hook().check_path(
        &outside(),
        &[
            "mangle PREROUTING rule 1",
            "nat PREROUTING rule 1",
            "mangle FORWARD rule 1",
            "filter FORWARD rule 1",
            "mangle POSTROUTING rule 1",
            "nat POSTROUTING rule 1",
        ],
    );
}

#[test]
fn a_packet_for_the_node_meets_input() {
    every_hook().check_path(
        &arriving("198.51.100.9:999", "192.0.2.1:80"),
        &[
            "mangle PREROUTING rule 1",
            "nat PREROUTING rule 1",
            "mangle INPUT rule 1",
            "filter INPUT rule 1",
            "nat INPUT rule 1",
        ],
    );
}

#[test]
fn a_packet_of_the_node_meets_output() {
    every_hook().check_path(
        &sent("192.0.2.1:999", "198.51.100.9:80"),
        &[
            "mangle OUTPUT rule 1",
            "nat OUTPUT rule 1",
            "filter OUTPUT rule 1",
            "mangle POSTROUTING rule 1",
            "nat POSTROUTING rule 1",
        ],
    );
}

#[test]
fn a_packet_of_the_node_to_itself_comes_back_without_meeting_nat_again() {
    every_hook().check_path(
        &sent("127.0.0.1:999", "192.0.2.1:80"),
        &[
            "mangle OUTPUT rule 1",
            "nat OUTPUT rule 1",
            "filter OUTPUT rule 1",
            "mangle POSTROUTING rule 1",
            "nat POSTROUTING rule 1",
            "mangle PREROUTING rule 1",
            "mangle INPUT rule 1",
            "filter INPUT rule 1",
        ],
    );
}

#[test]
fn dnat_decides_the_route() {
    let lab = Lab::nat(
        "-A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.1:8080\n\
         -A PREROUTING -d 192.0.2.1/32 -j DNAT --to-destination 10.0.0.5:8080\n\
         -A OUTPUT -d 192.0.2.1/32 -j DNAT --to-destination 10.0.0.5:8080\n\
         -A OUTPUT -d 10.96.0.1/32 -j DNAT --to-destination 127.0.0.1:8080",
    );
    lab.check(&outside(), &["1 local 192.0.2.1:8080 dnat"]);
    lab.check(&arriving("198.51.100.9:999", "192.0.2.1:80"), &["1 forwarded 10.0.0.5:8080 dnat"]);
    lab.check(&sent("192.0.2.1:999", "192.0.2.1:80"), &["1 forwarded 10.0.0.5:8080 dnat"]);
    lab.check(&sent("192.0.2.1:999", "10.96.0.1:80"), &["1 local 127.0.0.1:8080 dnat"]);
}

#[test]
fn only_new_connections_meet_nat() {
    let lab = Lab::nat("-A PREROUTING -j DNAT --to-destination 10.0.0.5:8080");
    for state in [CtStates::ESTABLISHED.and(CtStates::DNAT), CtStates::INVALID, CtStates::UNTRACKED] {
        lab.check(&Packet { state, ..outside() }, &["1 forwarded 10.96.0.1:80"]);
    }
}

#[test]
fn the_dnat_state_is_set_only_where_the_address_changed() {
    let rules = |to: &str| {
        Lab::new(
            IpFamily::V4,
            &format!(
                "*filter\n-A FORWARD -m conntrack --ctstate DNAT -j DROP\nCOMMIT\n*nat\n\
                 -A PREROUTING -j DNAT --to-destination {to}\nCOMMIT\n"
            ),
        )
    };
    rules("10.0.0.5:80").check(&outside(), &["1 dropped dnat"]);
    rules("10.96.0.1:81").check(&outside(), &["1 dropped dnat"]);
    rules("10.96.0.1:80").check(&outside(), &["1 forwarded 10.96.0.1:80 dnat"]);
}

#[test]
fn a_jump_comes_back_and_a_goto_does_not() {
    let lab = |flag: &str| {
        Lab::nat(&format!(
            "-A PREROUTING -j A\n-A PREROUTING -j MARK --set-xmark 0x4/0x0\n-A A {flag} B\n\
             -A A -j MARK --set-xmark 0x2/0x0\n-A B -j MARK --set-xmark 0x1/0x0"
        ))
    };
    lab("-j").check(&outside(), &["1 forwarded 10.96.0.1:80 mark 0x7"]);
    lab("-g").check(&outside(), &["1 forwarded 10.96.0.1:80 mark 0x5"]);
}

#[test]
fn a_goto_in_a_built_in_chain_ends_in_its_policy() {
    let lab = Lab::filter(":FORWARD DROP [0:0]\n:A - [0:0]\n-A FORWARD -g A\n-A FORWARD -j ACCEPT");
    lab.check(&outside(), &["1 dropped"]);
}

#[test]
fn return_leaves_one_chain() {
    let lab = Lab::nat(
        "-A PREROUTING -j A\n-A PREROUTING -j RETURN\n-A PREROUTING -j MARK --set-xmark 0x4/0x0\n\
         -A A -j B\n-A A -j MARK --set-xmark 0x2/0x0\n-A B -j RETURN\n-A B -j MARK --set-xmark 0x1/0x0",
    );
    lab.check(&outside(), &["1 forwarded 10.96.0.1:80 mark 0x2"]);
}

#[test]
fn accept_ends_the_table_not_the_path() {
    let lab = Lab::new(
        IpFamily::V4,
        "*mangle\n-A PREROUTING -j ACCEPT\n-A PREROUTING -j DROP\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n\
         -A FORWARD -j A\n-A A -j ACCEPT\nCOMMIT\n*nat\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n",
    );
    lab.check(&outside(), &["1 forwarded 10.96.0.1:80 masqueraded"]);
}

#[test]
fn policies_reject_and_drop_end_the_path() {
    Lab::filter(":FORWARD DROP [0:0]").check(&outside(), &["1 dropped"]);
    Lab::filter("-A FORWARD -j REJECT").check(&outside(), &["1 rejected"]);
    Lab::filter("-A FORWARD -j REJECT --reject-with tcp-reset").check(&outside(), &["1 rejected"]);
    Lab::filter(":INPUT DROP [0:0]\n:OUTPUT DROP [0:0]").check(&outside(), &["1 forwarded 10.96.0.1:80"]);
}

#[test]
fn marks_are_set_and_matched_under_their_mask() {
    let lab = |line: &str| {
        Lab::new(
            IpFamily::V4,
            &format!(
                "*mangle\n{line}\nCOMMIT\n*filter\n-A FORWARD -m mark --mark 0x4000/0x4000 -j DROP\nCOMMIT\n"
            ),
        )
    };
    lab("-A PREROUTING -j MARK --or-mark 0x4000").check(&outside(), &["1 dropped mark 0x4000"]);
    lab("-A PREROUTING -j MARK --set-mark 0x8000")
        .check(&outside(), &["1 forwarded 10.96.0.1:80 mark 0x8000"]);
    let marked = Packet { mark: 0x4001, ..outside() };
    lab("").check(&marked, &["1 dropped mark 0x4001"]);
    lab("-A PREROUTING -j MARK --xor-mark 0x4000").check(&marked, &["1 forwarded 10.96.0.1:80 mark 0x1"]);
    lab("-A PREROUTING -j MARK --set-xmark 0x0/0x4000")
        .check(&marked, &["1 forwarded 10.96.0.1:80 mark 0x1"]);
}

#[test]
fn basic_matches_are_asked() {
    let check = |matches: &str, is_met: bool| {
        let expected = if is_met { "1 dropped" } else { "1 forwarded 10.96.0.1:80" };
        Lab::filter(&format!("-A FORWARD {matches} -j DROP")).check(&outside(), &[expected]);
    };
    check("-s 198.51.100.0/24", true);
    check("! -s 198.51.100.0/24", false);
    check("-d 10.96.0.0/12", true);
    check("! -d 10.96.0.1/32", false);
    check("-i eth0", true);
    check("-i eth", false);
    check("-i eth+", true);
    check("! -i cali+", true);
    check("-p tcp", true);
    check("! -p tcp", false);
    check("-p udp", false);
    check("-p icmp", false);
    check("-p tcp -m tcp --dport 80", true);
    check("-p tcp -m tcp --dport 81", false);
    check("-p tcp -m tcp --dport 79:80", true);
    check("-m conntrack --ctstate RELATED,ESTABLISHED", false);
    check("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", true);
    check("-m nfacct --nfacct-name  x", true);
    check("-m addrtype --dst-type LOCAL", false);
    check("-m addrtype ! --src-type LOCAL", true);
}

#[test]
fn out_interfaces_follow_the_routes() {
    let mut lab = Lab::filter("-A FORWARD -o cni0 -j DROP");
    lab.check(&outside(), &["1 unknown at filter FORWARD rule 1"]);
    let route = |to: &str, name: &str| (Cidr::parse(to).unwrap(), Interface::new(name).unwrap());
    lab.routes = vec![route("0.0.0.0/0", "eth0")];
    lab.check(&outside(), &["1 forwarded 10.96.0.1:80"]);
    lab.routes.push(route("10.0.0.0/8", "cni0"));
    lab.check(&outside(), &["1 dropped"]);
}

#[test]
fn a_packet_of_the_node_comes_in_on_nothing_and_back_on_lo() {
    let lab = Lab::filter(
        "-A OUTPUT -i eth0 -j DROP\n-A OUTPUT ! -i eth0 -j MARK --or-mark 0x1\n-A INPUT -i lo -j REJECT",
    );
    lab.check(&sent("192.0.2.1:9", "10.0.0.1:80"), &["1 forwarded 10.0.0.1:80 mark 0x1"]);
    lab.check(&sent("192.0.2.1:9", "192.0.2.1:80"), &["1 rejected mark 0x1"]);
}

#[test]
fn without_the_name_of_the_interface_rules_with_one_are_undecided() {
    let packet = Packet { origin: Origin::Arrives(None), ..outside() };
    let unknown = "1 unknown at filter FORWARD rule 1";
    Lab::filter("-A FORWARD -i eth0 -j DROP").check(&packet, &[unknown]);
    Lab::filter("-A FORWARD ! -i eth0 -p tcp -j DROP").check(&packet, &[unknown]);
    Lab::filter("-A FORWARD -i eth0 -p udp -j DROP").check(&packet, &["1 forwarded 10.96.0.1:80"]);
    Lab::filter("-A FORWARD -i + -j DROP").check(&packet, &["1 dropped"]);
}
