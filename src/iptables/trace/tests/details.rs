//! The chains that a packet enters, with what is known on entering, and routing decisions.

use super::*;

/// Each event of the one branch as a line.
fn events(lab: &Lab, packet: &Packet) -> Vec<String> {
    let branches = lab.trace_in_detail(packet);
    let [branch] = &branches[..] else { panic!("{branches:?}") };
    let line = |event: &TraceEvent| match event {
        TraceEvent::Routed(decision) => decision.to_string(),
        TraceEvent::Entered(visit) => {
            let policy = if visit.met_policy { " policy" } else { "" };
            let mark = if visit.mark == 0 { String::new() } else { format!(" mark {:#x}", visit.mark) };
            format!(
                "{}{} {}: {} -> {}{mark}, {} rules, matched {:?}{policy}",
                "  ".repeat(visit.depth),
                visit.table,
                visit.chain,
                visit.source,
                visit.destination,
                visit.n_rules,
                visit.matched
            )
        }
    };
    branch.events.iter().map(line).collect()
}

fn translating() -> Lab {
    let save = "*nat\n:A - [0:0]\n:B - [0:0]\n\
        -A PREROUTING -m comment --comment first\n-A PREROUTING -j A\n-A PREROUTING -j ACCEPT\n\
        -A A -p udp -j ACCEPT\n-A A -j MARK --or-mark 0x4000\n-A A -j B\n-A A -j DROP\n\
        -A B -p udp -j DROP\n-A B -j DNAT --to-destination 10.0.0.5:8080\n-A B -j DROP\n\
        -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\nCOMMIT\n\
        *filter\n-A FORWARD -p udp -j DROP\nCOMMIT\n";
    let mut lab = Lab::new(IpFamily::V4, save);
    lab.ruleset.tables.remove(&Table::Mangle);
    lab
}

#[test]
fn chains_are_told_in_walking_order_with_the_addresses_on_entering() {
    let mut lab = translating();
    lab.routes = vec![(Cidr::parse("10.0.0.0/8").unwrap(), Interface::new("cni0").unwrap())];
    assert_eq!(
        events(&lab, &outside()),
        [
            "nat PREROUTING: 198.51.100.9:999 -> 10.96.0.1:80, 2 rules, matched [1, 2]",
            "  nat A: 198.51.100.9:999 -> 10.96.0.1:80, 3 rules, matched [2, 3]",
            "    nat B: 198.51.100.9:999 -> 10.96.0.1:80 mark 0x4000, 2 rules, matched [2]",
            "10.0.0.5 is no address of the node: forwarded through cni0",
            "filter FORWARD: 198.51.100.9:999 -> 10.0.0.5:8080 mark 0x4000, 1 rules, matched [] policy",
            "nat POSTROUTING: 198.51.100.9:999 -> 10.0.0.5:8080 mark 0x4000, 1 rules, matched [1]",
        ]
    );
}

#[test]
fn rules_are_counted_where_a_chain_is_left_by_its_end_return_or_goto() {
    let lab = |lines: &str| {
        let mut lab = Lab::filter(lines);
        lab.ruleset.tables.retain(|table, _| *table == Table::Filter);
        events(&lab, &outside()).into_iter().filter(|line| line.contains("filter")).collect::<Vec<_>>()
    };
    let line = |indent: &str, chain: &str, rest: &str| {
        format!("{indent}filter {chain}: 198.51.100.9:999 -> 10.96.0.1:80, {rest}")
    };
    assert_eq!(
        lab("-A FORWARD -j A\n-A FORWARD -p udp -j A\n-A A -p udp\n-A A -p udp"),
        [line("", "FORWARD", "2 rules, matched [1] policy"), line("  ", "A", "2 rules, matched []")]
    );
    assert_eq!(
        lab("-A FORWARD -j A\n-A FORWARD -j RETURN\n-A FORWARD -j DROP\n-A A -j RETURN\n-A A -j DROP"),
        [line("", "FORWARD", "2 rules, matched [1, 2] policy"), line("  ", "A", "1 rules, matched [1]")]
    );
    assert_eq!(
        lab("-A FORWARD -j A\n-A FORWARD -p udp\n-A A -g B\n-A A -j DROP\n-A B -p udp -j DROP"),
        [
            line("", "FORWARD", "2 rules, matched [1] policy"),
            line("  ", "A", "1 rules, matched [1]"),
            line("    ", "B", "1 rules, matched []"),
        ]
    );
    assert_eq!(
        lab("-A FORWARD -j A\n-A FORWARD -j A\n-A A -p udp -j DROP"),
        [
            line("", "FORWARD", "2 rules, matched [1, 2] policy"),
            line("  ", "A", "1 rules, matched []"),
            line("  ", "A", "1 rules, matched []"),
        ]
    );
}

#[test]
fn routing_decisions_name_the_way() {
    let routes = |packet: &Packet| {
        let lines = events(&translating(), packet).into_iter();
        lines.filter(|line| line.contains("address of the node")).collect::<Vec<_>>()
    };
    assert_eq!(routes(&outside()), ["10.0.0.5 is no address of the node: forwarded"]);
    let lab = Lab::filter("");
    let routes = |packet: &Packet| {
        let lines = events(&lab, packet).into_iter();
        lines.filter(|line| line.contains("address of the node")).collect::<Vec<_>>()
    };
    assert_eq!(
        routes(&arriving("198.51.100.9:999", "192.0.2.1:80")),
        ["192.0.2.1 is an address of the node: to a program of the node"]
    );
    assert_eq!(
        routes(&sent("192.0.2.1:9", "198.51.100.9:80")),
        ["198.51.100.9 is no address of the node: sent out"]
    );
    assert_eq!(
        routes(&sent("192.0.2.1:9", "127.0.0.1:80")),
        [
            "127.0.0.1 is an address of the node: back through lo",
            "127.0.0.1 is an address of the node: to a program of the node",
        ]
    );
}

#[test]
fn the_verdict_names_its_rule_or_policy() {
    let decided = |lines: &str| {
        let branch = Lab::filter(lines).trace(&outside()).remove(0);
        branch.decided_by().map(|step| step.to_string())
    };
    assert_eq!(decided("-A FORWARD -j A\n-A A -j DROP").unwrap(), "filter A rule 1");
    assert_eq!(decided("-A FORWARD -j REJECT").unwrap(), "filter FORWARD rule 1");
    assert_eq!(decided(":FORWARD DROP [0:0]").unwrap(), "filter FORWARD policy");
    assert_eq!(decided("-A FORWARD -j A").map(|step| step.contains("no such")), Some(false));
    assert_eq!(decided("-A FORWARD -j A\n-A A -j ACCEPT").unwrap(), "filter A rule 1");
    assert_eq!(decided("-A FORWARD -j LOG").unwrap(), "filter FORWARD policy");
    assert_eq!(decided("-A FORWARD -m set --match-set a src -j DROP").unwrap(), "filter FORWARD rule 1");
}

#[test]
fn nothing_is_recorded_unless_asked_for() {
    let branch = translating().trace(&outside()).remove(0);
    assert_eq!((branch.events, branch.undecided), (Vec::new(), Vec::new()));
}
