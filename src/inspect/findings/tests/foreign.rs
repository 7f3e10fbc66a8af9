//! Rules of other programs.

use super::*;

#[track_caller]
fn assert_foreign(node: &Spoiled, table: &str, chain: &str, number: usize, effect: &str) {
    let report = node.check();
    let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((finding.kind, finding.severity), (FindingKind::ForeignRule, FindingSeverity::Error));
    let place = (finding.table.as_deref(), finding.chain.as_deref(), finding.rule);
    assert_eq!(place, (Some(table), Some(chain), Some(number)), "{finding:#?}");
    assert!(finding.effect.contains(effect), "{effect:?}: {finding:#?}");
    assert!(!finding.services.is_empty() && finding.in_force.len() == 1, "{finding:#?}");
    assert_eq!(report.traffic, [], "not our rules are to blame");
}

#[test]
fn a_foreign_rule_ahead_of_ours_that_drops_is_found() {
    everywhere(|mut node| {
        node.insert(Table::Filter, "OUTPUT", 0, "-p tcp -m tcp --dport 8443 -j DROP");
        assert_foreign(&node, "filter", "OUTPUT", 1, "dropped; should be:");
    });
}

#[test]
fn a_foreign_rule_ahead_of_ours_that_accepts_in_nat_is_found() {
    everywhere(|mut node| {
        let to = if node.family == IpFamily::V4 { "10.96.0.12/32" } else { "fd00:10:96::12/128" };
        node.insert(Table::Nat, "PREROUTING", 0, &format!("-d {to} -j ACCEPT"));
        assert_foreign(&node, "nat", "PREROUTING", 1, "untranslated");
        node.rules_of(Table::Nat, ChainName::literal("PREROUTING")).remove(0);
        node.insert(Table::Nat, "PREROUTING", 0, &format!("-d {to} -j RETURN"));
        assert_foreign(&node, "nat", "PREROUTING", 1, "untranslated");
    });
}

#[test]
fn a_foreign_rule_in_a_chain_of_its_own_is_found() {
    everywhere(|mut node| {
        let reject = node.rule("-p tcp -j DROP");
        node.rules.chain_mut(Table::Filter, ChainName::literal("MY-FIREWALL")).rules.push(reject);
        node.insert(Table::Filter, "FORWARD", 0, "-j MY-FIREWALL");
        assert_foreign(&node, "filter", "MY-FIREWALL", 1, "dropped");
    });
}

#[test]
fn a_foreign_rule_that_lets_pass_what_ours_reject_is_found() {
    everywhere(|mut node| {
        node.insert(Table::Filter, "FORWARD", 0, "-j ACCEPT");
        assert_foreign(&node, "filter", "FORWARD", 1, "should be: rejected");
    });
}

/// As Calico, Docker and flannel have them on every node.
#[test]
fn rules_of_other_programs_that_leave_services_alone_are_no_finding() {
    everywhere(|mut node| {
        let (pods, docker) = match node.family {
            IpFamily::V4 => ("10.180.0.0/16", "172.17.0.0/16"),
            IpFamily::V6 => ("fd00:10:180::/48", "fd00:17::/64"),
        };
        for chain in ["cali-FORWARD", "cali-PREROUTING", "DOCKER", "DOCKER-USER", "FLANNEL-POSTRTG"] {
            node.rules.chain_mut(Table::Filter, ChainName::literal(chain));
            node.rules.chain_mut(Table::Nat, ChainName::literal(chain));
        }
        let rules = [
            "-i cali+ -m set --match-set cali40s:abc src -j DROP",
            "-m mark --mark 0x10000/0x10000 -j ACCEPT",
            "-i docker0 -o docker0 -j DROP",
        ];
        for rule in rules {
            let rule = node.rule(rule);
            node.rules_of(Table::Filter, ChainName::literal("cali-FORWARD")).push(rule);
        }
        node.insert(Table::Filter, "FORWARD", 0, "-j cali-FORWARD");
        node.insert(Table::Nat, "PREROUTING", 0, "-j cali-PREROUTING");
        node.insert(Table::Nat, "PREROUTING", 0, "-m addrtype --dst-type LOCAL -j DOCKER");
        node.insert(Table::Nat, "POSTROUTING", 0, &format!("-s {docker} ! -o docker0 -j MASQUERADE"));
        node.insert(Table::Nat, "POSTROUTING", 0, "-j FLANNEL-POSTRTG");
        for rule in
            [&*format!("-s {pods} -d {pods} -j RETURN"), &format!("-s {pods} ! -d {pods} -j MASQUERADE")]
        {
            let rule = node.rule(rule);
            node.rules_of(Table::Nat, ChainName::literal("FLANNEL-POSTRTG")).push(rule);
        }
        node.insert(Table::Filter, "INPUT", 0, "-p tcp -m tcp --dport 22 -j ACCEPT");
        let report = node.check();
        assert_eq!(report.findings, []);
        assert!(report.families[0].packets > 0, "they were traced");
    });
}

#[test]
fn foreign_rules_behind_ours_are_left_alone() {
    everywhere(|mut node| {
        let end = node.rules_of(Table::Filter, ChainName::literal("OUTPUT")).len();
        node.insert(Table::Filter, "OUTPUT", end, "-p tcp -m tcp --dport 8443 -j DROP");
        assert_eq!(node.check().findings, []);
    });
}
