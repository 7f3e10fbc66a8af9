//! Whether the rules of a node are those that its objects ask for: by text, and where that differs by what packets meet;
//! and whether the node is fit for them.
//!
//! Rules are compared in the layout in which they are found, kube-proxy's or compact, so a check works beside either
//! proxy. On a healthy node it finds nothing.

mod chain_differences;
mod check_report;
mod effects;
mod found_layout;
mod hooks;
mod node_state;
mod service_names;
mod traffic;

use super::{ClusterView, HostView, RulesOrigin, Subject};
use crate::iptables::Ruleset;
use crate::net::{IpFamily, PerFamily};
use chain_differences::BothRules;
pub use check_report::{
    CheckFinding, CheckReport, CheckResult, FamilyChecked, FindingKind, FindingSeverity, MAX_FINDINGS,
    TrafficDifference,
};
use found_layout::FoundLayout;
use node_state::CheckedFamily;
pub use node_state::NodeState;
use service_names::ServiceNames;
use traffic::TrafficQuestion;

/// What a check compares.
pub struct CheckQuestion<'a> {
    /// The objects, as this node sees them.
    pub cluster: ClusterView,
    /// The host.
    pub host: HostView,
    /// The rules in force; a family without rules is not checked.
    pub in_force: &'a Subject,
    /// The back-end of the rules in force, as in `nft`.
    pub backends: PerFamily<Option<&'static str>>,
    /// What else is known of the node.
    pub state: Option<&'a NodeState>,
    /// Why a part could not be read, one line each.
    pub unknown: Vec<String>,
}

/// Compares the rules in force with the desired rules.
pub fn check(question: CheckQuestion<'_>) -> CheckReport {
    let CheckQuestion { cluster, host, in_force, backends, state, unknown } = question;
    let mut report = CheckReport {
        result: CheckResult::Same,
        rules: in_force.origin.to_string(),
        node: cluster.node_name.to_string(),
        families: Vec::new(),
        findings: Vec::new(),
        omitted: 0,
        traffic: Vec::new(),
        omitted_traffic: 0,
        unknown,
    };
    let configured = cluster.settings.clone();
    let families: Vec<IpFamily> = in_force.families().collect();
    let mut subject = Subject {
        rulesets: PerFamily::default(),
        origin: RulesOrigin::Objects,
        cluster: Some(cluster),
        host,
    };
    for family in &families {
        if let Some(rules) = in_force.rulesets.get(*family) {
            let mut checked = check_family(*family, &mut subject, in_force, rules, &mut report);
            checked.backend = backends.get(*family).map(str::to_owned);
            report.families.push(checked);
        }
    }
    let Some(cluster) = &subject.cluster else { return report };
    if let Some(state) = state {
        let interfaces: Vec<_> =
            subject.host.interfaces.iter().map(|entry| (entry.interface.to_string(), entry.ip)).collect();
        let checked = families.iter().map(|family| CheckedFamily {
            family: *family,
            configured: configured.get(*family),
            found: cluster.settings.get(*family),
        });
        let checked: Vec<CheckedFamily<'_>> = checked.collect();
        report.findings.extend(node_state::findings(state, cluster, &interfaces, &checked));
    }
    report.findings.extend(object_findings(cluster));
    report.settle();
    report
}

fn check_family(
    family: IpFamily,
    subject: &mut Subject,
    in_force: &Subject,
    rules: &Ruleset,
    report: &mut CheckReport,
) -> FamilyChecked {
    let cluster = subject.cluster.as_mut().expect("given with the question");
    let FoundLayout { settings, name, findings } =
        found_layout::of_rules(cluster.settings.get(family), rules, &subject.host);
    report.findings.extend(
        findings
            .into_iter()
            .map(|finding| CheckFinding { family: Some(family.as_str().to_owned()), ..finding }),
    );
    let is_classic = found_layout::is_classic(&settings);
    *cluster.settings.get_mut(family) = settings;
    let n_ports = cluster.snapshot.services().flat_map(|service| service.ports_in(family)).count();
    let desired = cluster.ruleset(family);
    let is_large = is_classic && found_layout::is_of_large_cluster(&desired);
    *subject.rulesets.get_mut(family) = Some(desired);

    let names = ServiceNames::new(family, [subject, in_force], n_ports);
    let desired = subject.rulesets.get(family).as_ref().expect("made above");
    let both = BothRules { family, desired, in_force: rules, is_classic, keeps_unused: is_large };
    let compared = chain_differences::compare(&both, &names);
    let jumps = hooks::missing_jumps(&both, &names);
    let canaries = chain_differences::canaries(&both);
    let touched = names.touched();
    let mut checked = FamilyChecked {
        family: family.as_str().to_owned(),
        backend: None,
        layout: if is_large { format!("{name}, large cluster") } else { name.to_owned() },
        chains: compared.n_chains,
        differing_chains: compared.different.len(),
        service_ports: n_ports,
        affected_service_ports: touched.as_ref().map_or(n_ports, |touched| touched.len()),
        packets: 0,
    };
    report.findings.extend(compared.findings.into_iter().chain(jumps).chain(canaries));

    let mut question = TrafficQuestion { family, subject, in_force: rules, touched: touched.as_ref() };
    let traffic = traffic::compare(&mut question);
    checked.packets = traffic.n_packets;
    report.findings.extend(traffic.findings);
    report.traffic.extend(traffic.differences);
    checked
}

/// Problems of objects, and service ports that the kernel rejects.
fn object_findings(cluster: &ClusterView) -> Vec<CheckFinding> {
    let problem = |text: &String| {
        let effect = "What the text is for is left out of the rules; all else of the object counts.";
        CheckFinding::new(FindingSeverity::Notice, FindingKind::ObjectProblem, text.clone(), effect)
    };
    let mut findings: Vec<CheckFinding> = cluster.problems.iter().map(problem).collect();
    for family in IpFamily::BOTH {
        for (port, message) in cluster.quarantined.get(family) {
            let summary = format!("the kernel rejects the rules of {port}: {message}");
            let effect = "This service port has no rules; all others are served.";
            let mut finding =
                CheckFinding::new(FindingSeverity::Error, FindingKind::Quarantined, summary, effect);
            finding.family = Some(family.as_str().to_owned());
            service_names::concern(&mut finding, [port.to_string().as_str()].into());
            findings.push(finding);
        }
    }
    findings
}

#[cfg(test)]
mod tests;
