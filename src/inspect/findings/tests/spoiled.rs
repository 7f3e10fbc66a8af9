//! Rules of ours that are not as they should be.

use super::*;

const DB: &str = "shop/db:sql";
const API: &str = "shop/api";
const WEB: &str = "shop/web:http";

#[track_caller]
fn assert_finding(node: &Spoiled, kind: FindingKind, effect: &str, services: &[&str]) {
    let finding = node.only();
    assert_eq!((finding.kind, finding.severity), (kind, FindingSeverity::Error), "{finding:#?}");
    assert!(finding.effect.contains(effect), "{effect:?}: {finding:#?}");
    assert_eq!(finding.services, services, "{finding:#?}");
    assert_eq!(node.check().result, CheckResult::Different);
}

#[test]
fn a_deleted_rule_is_found_with_its_endpoint() {
    everywhere(|mut node| {
        let chain = node.chain(WEB, "KUBE-SVC-");
        let random = |rule: &Rule| write::rule_text(IpFamily::V4, rule).contains("statistic");
        let rules = node.rules_of(Table::Nat, chain);
        let at = rules.iter().position(random).unwrap();
        rules.remove(at);
        // The first endpoint, by text in kube-proxy's layout and by address in compact.
        let finding = node.only();
        let endpoint = finding.effect.split(' ').nth(1).unwrap();
        assert!(["10.180.0.5:8080", "[fd00:10:180::5]:8080", "[fd00:10:180:1::6]:8080"].contains(&endpoint));
        let effect = format!("Endpoint {endpoint} gets no connections to {WEB}");
        assert_finding(&node, FindingKind::RuleMissing, &effect, &[WEB]);
        let report = node.check();
        assert!(report.traffic.iter().all(|one| one.service_port == WEB && one.to.contains("/TCP")));
        assert!(
            report
                .traffic
                .iter()
                .any(|one| one.desired.contains(endpoint) && !one.in_force.contains(endpoint))
        );
    });
}

#[test]
fn an_added_rule_is_found() {
    everywhere(|mut node| {
        let chain = node.chain(API, "KUBE-EXT-");
        let rule = node.rule("-p tcp -j DROP");
        node.rules_of(Table::Nat, chain).insert(0, rule);
        assert_finding(
            &node,
            FindingKind::RuleAdded,
            "Connections to shop/api that it matches are dropped",
            &[API],
        );
        assert!(node.check().traffic.iter().all(|one| one.in_force == "dropped"));
    });
}

#[test]
fn a_swapped_order_is_found() {
    everywhere(|mut node| {
        let chain = node.chain(WEB, "KUBE-EXT-");
        node.rules_of(Table::Nat, chain).swap(1, 2);
        assert_finding(&node, FindingKind::OrderChanged, "meet the wrong rule first", &[WEB]);
    });
}

#[test]
fn the_order_of_services_does_not_count_in_kube_proxys_layout() {
    let mut node = Spoiled::new(IpFamily::V4, LayoutChoice::Classic);
    let rules = node.rules_of(Table::Nat, crate::rules::names::KUBE_SERVICES);
    let n = rules.len();
    rules[..n - 1].reverse();
    assert_eq!(node.check().findings, []);
    node.rules_of(Table::Nat, crate::rules::names::KUBE_SERVICES).rotate_right(1);
    let finding = node.only();
    assert_eq!((finding.kind, finding.rule), (FindingKind::OrderChanged, Some(1)));
    assert!(finding.effect.contains("answered by a node port"), "{finding:#?}");
}

#[test]
fn a_flushed_chain_is_found() {
    everywhere(|mut node| {
        let chain = node.chain(DB, "KUBE-SVC-");
        node.rules_of(Table::Nat, chain).clear();
        assert_finding(&node, FindingKind::ChainFlushed, "reach no endpoint", &[DB]);
        let mut node = node;
        node.rules_of(Table::Nat, ChainName::literal("KUBE-POSTROUTING")).clear();
        let kinds: Vec<_> =
            node.check().findings.iter().map(|finding| finding.chain.clone().unwrap()).collect();
        assert_eq!(kinds, ["KUBE-POSTROUTING", chain.as_str()]);
    });
}

#[test]
fn a_missing_chain_is_found() {
    let mut node = Spoiled::new(IpFamily::V4, LayoutChoice::Classic);
    let chain = node.chain(API, "KUBE-SEP-");
    node.rules.tables.get_mut(&Table::Nat).unwrap().remove(&chain);
    assert_finding(&node, FindingKind::ChainMissing, "sent to endpoint 10.180.0.12:8443 go nowhere", &[API]);
}

#[test]
fn a_flushed_table_is_one_finding() {
    everywhere(|mut node| {
        for table in [Table::Filter, Table::Nat] {
            let chains = node.rules.tables.get_mut(&table).unwrap();
            chains.retain(|_, chain| chain.policy.is_some());
            chains.values_mut().for_each(|chain| chain.rules.clear());
        }
        let report = node.check();
        let kinds: Vec<_> = report.findings.iter().filter(|f| f.severity == FindingSeverity::Error).collect();
        assert_eq!(
            kinds.iter().map(|finding| finding.kind).collect::<Vec<_>>(),
            [FindingKind::TableEmpty; 2]
        );
        assert!(kinds[1].effect.contains("No Service answers"), "{kinds:#?}");
        let family = &report.families[0];
        assert_eq!(
            (family.differing_chains, family.affected_service_ports),
            (family.chains, family.service_ports)
        );
    });
}

#[test]
fn a_missing_jump_is_found() {
    everywhere(|mut node| {
        for (table, from, effect) in [
            (Table::Nat, "PREROUTING", "Packets that arrive"),
            (Table::Nat, "OUTPUT", "Programs on this node"),
            (Table::Nat, "POSTROUTING", "Nothing is masqueraded"),
            (Table::Filter, "OUTPUT", ""),
        ] {
            let rules = std::mem::take(node.rules_of(table, ChainName::literal(from)));
            let report = node.check();
            assert!(report.findings.iter().all(|finding| finding.kind == FindingKind::JumpMissing));
            assert!(report.findings[0].effect.contains(effect), "{from}: {:#?}", report.findings);
            assert_eq!(report.findings[0].chain.as_deref(), Some(from));
            *node.rules_of(table, ChainName::literal(from)) = rules;
        }
    });
}

#[test]
fn a_changed_rule_is_one_finding() {
    everywhere(|mut node| {
        let chain = node.chain(WEB, "KUBE-SVC-");
        let is_random = |rule: &&mut Rule| write::rule_text(IpFamily::V4, rule).contains("statistic");
        let rule = node.rules_of(Table::Nat, chain).iter_mut().find(is_random).unwrap();
        for part in &mut rule.matches {
            if let crate::iptables::Match::Random { threshold } = part {
                *threshold = (1 << 31) / 10;
            }
        }
        assert_finding(&node, FindingKind::RuleChanged, "10.0 % and not", &[WEB]);
    });
}

#[test]
fn a_stale_endpoint_is_an_added_rule() {
    let mut node = Spoiled::new(IpFamily::V4, LayoutChoice::Compact);
    let chain = node.chain(API, "KUBE-SVC-");
    let rule = node
        .rule("-p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.180.9.9:8443");
    node.rules_of(Table::Nat, chain).insert(1, rule);
    assert_finding(&node, FindingKind::RuleAdded, "are sent to 10.180.9.9:8443", &[API]);
}

#[test]
fn unused_chains_are_a_notice() {
    everywhere(|mut node| {
        let rule = node.rule("-j DROP");
        let chain = node.rules.chain_mut(Table::Nat, ChainName::literal("KUBE-SVC-2CMXP7HKUVJN7L6M"));
        chain.rules.push(rule);
        let finding = node.only();
        assert_eq!((finding.kind, finding.severity), (FindingKind::ChainUnused, FindingSeverity::Notice));
        assert_eq!(node.check().result, CheckResult::Same);
    });
}

#[test]
fn the_kubelets_rules_do_not_count_and_the_martian_rule_does() {
    let mut node = Spoiled::new(IpFamily::V4, LayoutChoice::Classic);
    node.insert(Table::Filter, "KUBE-FIREWALL", 0, "-m mark --mark 0x8000/0x8000 -j DROP");
    assert_eq!(node.check().findings, []);
    node.rules_of(Table::Filter, ChainName::literal("KUBE-FIREWALL")).pop();
    assert_finding(&node, FindingKind::RuleMissing, "listen on 127.0.0.1", &[]);
}

#[test]
fn many_different_rules_of_a_chain_are_summed_up() {
    let mut node = Spoiled::new(IpFamily::V4, LayoutChoice::Classic);
    let chain = node.chain(API, "KUBE-SVC-");
    for n in 0..20 {
        let rule = node.rule(&format!("-s 192.0.2.{n}/32 -j RETURN"));
        node.rules_of(Table::Nat, chain).push(rule);
    }
    let report = node.check();
    assert_eq!(report.findings.len(), 6);
    assert!(
        report.findings.iter().any(|finding| finding.summary.starts_with("15 more rules are not desired"))
    );
}
