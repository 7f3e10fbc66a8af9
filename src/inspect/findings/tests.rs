//! Each test spoils the rules of a small cluster in one way, in both layouts and families.

mod foreign;
mod spoiled;
mod surroundings;

use super::*;
use crate::config::{Config, Flags, LayoutChoice};
use crate::inspect::HostOrigin;
use crate::iptables::{ChainName, Rule, Table, parse, write};
use crate::model::Inventory;
use crate::model::decode::{Interner, manifest};
use crate::model::host::{Host, InterfaceAddress};

const OBJECTS: &str = include_str!("../../../testdata/inspect/check/shop.yaml");
const CLUSTER_CIDR: &str = "10.180.0.0/16,fd00:10:180::/48";

fn interfaces() -> Vec<InterfaceAddress> {
    let text = "interfaces: {lo: [127.0.0.1/8, '::1/128'], eth0: [192.168.0.2/24, '2001:db8::2/64'], \
                cni0: [10.180.0.1/24, 'fd00:10:180::1/64']}\n";
    Host::parse_with_interfaces(text).unwrap().1
}

fn cluster(flags: &[(&str, &str)]) -> ClusterView {
    let flags = flags.iter().fold(Flags::default(), |flags, (name, text)| flags.with(name, text));
    let (config, _) = Config::resolve(None, &flags).unwrap();
    let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
    let outcome = manifest::read(OBJECTS.as_bytes(), "shop.yaml", &mut |object| {
        assert_eq!(inventory.add(&object, &mut interner), []);
    });
    assert_eq!(outcome.problems, []);
    let addresses = interfaces().iter().map(|entry| entry.ip).collect();
    ClusterView::new(&config, &inventory, "node-a", &Host { addresses, ..Host::default() })
}

fn host() -> HostView {
    HostView::of_interfaces(interfaces(), HostOrigin::File)
}

/// A node with the rules of the small cluster in `layout`.
struct Spoiled {
    family: IpFamily,
    rules: Ruleset,
    flags: Vec<(&'static str, &'static str)>,
    state: Option<NodeState>,
}

/// Each family in each layout.
fn everywhere(mut test: impl FnMut(Spoiled)) {
    for family in IpFamily::BOTH {
        for layout in [LayoutChoice::Classic, LayoutChoice::Compact] {
            test(Spoiled::new(family, layout));
        }
    }
}

impl Spoiled {
    fn new(family: IpFamily, layout: LayoutChoice) -> Spoiled {
        let flags = vec![("cluster-cidr", CLUSTER_CIDR)];
        let mut cluster = cluster(&flags);
        cluster.settings.get_mut(family).layout = layout;
        let rules = cluster.ruleset(family);
        Spoiled { family, rules, flags, state: None }
    }

    fn rules_of(&mut self, table: Table, chain: ChainName) -> &mut Vec<Rule> {
        let content = self.rules.tables.get_mut(&table).unwrap().get_mut(&chain);
        &mut content.unwrap_or_else(|| panic!("there is no chain {chain}")).rules
    }

    /// The name of the chain with this prefix of a service port.
    fn chain(&self, port: &str, prefix: &str) -> ChainName {
        let mut rulesets = PerFamily::default();
        *rulesets.get_mut(self.family) = Some(self.rules.clone());
        let subject = Subject {
            rulesets,
            origin: RulesOrigin::Objects,
            cluster: Some(cluster(&self.flags)),
            host: host(),
        };
        let labels = crate::inspect::labels::ChainLabels::of(&subject, self.family);
        let mut of_port =
            self.rules.tables[&Table::Nat].keys().filter(|name| labels.service_port(name) == Some(port));
        *of_port.find(|name| name.as_str().starts_with(prefix)).expect(prefix)
    }

    fn rule(&self, text: &str) -> Rule {
        match parse::line(self.family, &format!("-A X {text}")) {
            Ok(parse::Line::Append(_, rule)) => rule,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn insert(&mut self, table: Table, chain: &'static str, at: usize, rule: &str) {
        let rule = self.rule(rule);
        self.rules_of(table, ChainName::literal(chain)).insert(at, rule);
    }

    fn check(&self) -> CheckReport {
        // As iptables-save prints them.
        let text = write::save(self.family, &self.rules);
        let mut rulesets = PerFamily::default();
        *rulesets.get_mut(self.family) = Some(parse::save(self.family, &text).unwrap());
        let in_force = Subject {
            rulesets,
            origin: RulesOrigin::Text("-".to_owned()),
            cluster: None,
            host: HostView::default(),
        };
        check(CheckQuestion {
            cluster: cluster(&self.flags),
            host: host(),
            in_force: &in_force,
            backends: PerFamily::default(),
            state: self.state.as_ref(),
            unknown: Vec::new(),
        })
    }

    /// The only finding.
    #[track_caller]
    fn only(&self) -> CheckFinding {
        let report = self.check();
        let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
        finding.clone()
    }
}

#[test]
fn a_healthy_node_has_no_finding() {
    everywhere(|node| {
        let report = node.check();
        assert_eq!(report.findings, []);
        assert_eq!((report.result, report.traffic), (CheckResult::Same, vec![]));
        assert!(report.families[0].chains > 15, "{:?}", report.families);
    });
}

#[test]
fn the_layout_in_force_is_told() {
    let layout = |choice| Spoiled::new(IpFamily::V4, choice).check().families[0].layout.clone();
    assert_eq!(layout(LayoutChoice::Classic), "classic");
    assert_eq!(layout(LayoutChoice::Compact), "compact");
}

#[test]
fn what_could_not_be_read_is_no_difference() {
    let node = Spoiled::new(IpFamily::V4, LayoutChoice::Classic);
    let mut report = node.check();
    report.unknown.push("cannot read the IPv6 rules in force".to_owned());
    report.settle();
    assert_eq!(report.result, CheckResult::Unknown);
}

#[test]
fn a_report_is_bounded() {
    let mut report = Spoiled::new(IpFamily::V4, LayoutChoice::Classic).check();
    let finding = CheckFinding::new(FindingSeverity::Error, FindingKind::Sysctl, "x", "y");
    report.findings = vec![finding; MAX_FINDINGS + 7];
    report.settle();
    assert_eq!((report.findings.len(), report.omitted), (MAX_FINDINGS, 7));
}

#[test]
fn every_kind_is_documented_by_the_name_that_json_has() {
    let page = include_str!("../../../docs/check.md");
    for kind in FindingKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        assert!(page.contains(&format!("`{}`", kind.as_str())), "{}", kind.as_str());
    }
}
