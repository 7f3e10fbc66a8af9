//! One Service as one node sees it: ports, frontends, policies, endpoints used and left out, chains, problems; and the
//! truth table, which tells what packets from each place to each frontend meet.

mod question;
mod report;
mod service_ports;
mod service_rules;
mod truth;

use crate::inspect::vantage::Vantages;
use crate::inspect::{ClusterView, RulesOrigin, Subject};
use crate::iptables::Ruleset;
use crate::model::{EscapedValue, Service, ServiceName, TrafficPolicy, nearest};
use crate::net::IpFamily;
use crate::rules::NodePorts;
use service_ports::KnownPort;
use service_rules::Callers;
use truth::Evaluator;

pub use question::{ExplainQuestion, NoSuchService};
pub use report::{
    AnsweringEndpoint, CellFate, CellVerdict, ChainCaller, ChainExplanation, EndpointExplanation,
    EndpointGroup, EntryExplanation, ExplainReport, FrontendClass, FrontendExplanation, PacketReach,
    PortExplanation, ServicePolicies, ServiceSyncState, SliceEntryExplanation, TruthCell, VantageExplanation,
};

/// The most service ports of each family in a report. Each has a truth table of its own.
const MAX_PORTS: usize = 50;
/// The most problems in a report.
const MAX_PROBLEMS: usize = 100;

/// Explains the Service that `question` names, by the objects and the rules of `subject`.
pub fn explain(subject: &Subject, question: &ExplainQuestion) -> Result<ExplainReport, NoSuchService> {
    let name = question.name();
    let mut report = ExplainReport {
        service: name.to_string(),
        rules: subject.origin.to_string(),
        ..ExplainReport::default()
    };
    let service = match &subject.cluster {
        Some(cluster) => {
            add_cluster(&mut report, cluster, &name);
            cluster.snapshot.service(&name)
        }
        None => None,
    };
    for family in subject.families() {
        if let Some(ruleset) = subject.rulesets.get(family) {
            add_family(&mut report, subject, (family, ruleset), service.map(|service| &**service), question);
        }
    }
    let is_known = service.is_some() || report.not_proxied.is_some() || !report.ports.is_empty();
    if report.ports.is_empty() && question.port.is_some() && report.not_proxied.is_none() {
        let all = ExplainQuestion { port: None, ..question.clone() };
        return Err(no_such_port(explain(subject, &all)?, question));
    }
    if !is_known {
        return Err(no_such_service(subject, &name));
    }
    if service.is_none() && report.not_proxied.is_none() {
        add_unknown(&mut report, subject);
    }
    report.problems.truncate(MAX_PROBLEMS);
    Ok(report)
}

fn add_cluster(report: &mut ExplainReport, cluster: &ClusterView, name: &ServiceName) {
    report.node = (!cluster.node_name.is_empty()).then(|| cluster.node_name.to_string());
    report.zone = cluster.place().zone.map(str::to_owned);
    report.not_proxied = cluster.not_proxied.get(name).copied();
    report.problems.extend(problems_of(cluster, name));
    let Some(service) = cluster.snapshot.service(name) else { return };
    report.policies = Some(policies(service));
    if service.ports.is_empty() {
        report.problems.push(format!("Service {name} has no usable ports: it has no rules"));
    }
}

fn policies(service: &Service) -> ServicePolicies {
    let text = |policy| match policy {
        TrafficPolicy::Cluster => "Cluster".to_owned(),
        TrafficPolicy::Local => "Local".to_owned(),
    };
    ServicePolicies {
        internal_traffic_policy: text(service.internal_policy),
        external_traffic_policy: text(service.external_policy),
        affinity_seconds: service.affinity_seconds,
        health_check_node_port: service.health_check_node_port,
    }
}

/// The problems of the Service called `name` and of its slices. A slice that could not be decoded belongs to no
/// Service; controllers name slices after their Service, `<service>-<suffix>`.
fn problems_of(cluster: &ClusterView, name: &ServiceName) -> Vec<String> {
    let is_of_other = |slice: &str| {
        let mut slices = cluster.snapshot.slices();
        slices.any(|(other, value)| other.to_string() == slice && value.service != *name)
    };
    let is_of_slice = |line: &str| {
        let Some((_, rest)) = line.split_once("EndpointSlice ") else { return false };
        let slice = rest.split(':').next().unwrap_or_default();
        let is_known = || cluster.snapshot.slices_of(name).any(|(known, _)| known.to_string() == slice);
        is_known() || slice.starts_with(&format!("{name}-")) && !is_of_other(slice)
    };
    let of_service = format!("Service {name}: ");
    let is_ours = |line: &&String| line.contains(&of_service) || is_of_slice(line);
    cluster.problems.iter().filter(is_ours).take(MAX_PROBLEMS).cloned().collect()
}

/// Adds the ports of one family with their rules.
fn add_family(
    report: &mut ExplainReport,
    subject: &Subject,
    (family, ruleset): (IpFamily, &Ruleset),
    service: Option<&Service>,
    question: &ExplainQuestion,
) {
    let entries = service_rules::named_entries(ruleset, &question.name());
    let asked = (question, MAX_PORTS);
    let (ports, n_more) = match (&subject.cluster, service) {
        (Some(cluster), Some(service)) => service_ports::of_objects(cluster, service, family, ruleset, asked),
        _ => service_ports::of_rules(ruleset, family, &entries, asked),
    };
    report.n_more_ports += n_more;
    if ports.is_empty() {
        return;
    }
    let vantages = Vantages::of(subject, family);
    report.vantages.extend(vantages.points.iter().map(|point| VantageExplanation {
        family: family.to_string(),
        from: point.vantage.to_string(),
        source: point.source,
        stands_for: point.stands_for.clone(),
    }));
    let settings = subject.cluster.as_ref().map(|cluster| cluster.settings.get(family));
    let node_port_addresses = match settings.map(|settings| &settings.node_ports) {
        Some(NodePorts::Addresses(addresses)) => Some(&addresses[..]),
        Some(NodePorts::EveryAddress) => Some(&[][..]),
        None => None,
    };
    let evaluator = Evaluator::new(family, ruleset, &vantages, node_port_addresses);
    let callers = Callers::of(ruleset, ports.iter().map(|port| &port.chains));
    for port in ports {
        let entries: Vec<_> = entries.iter().filter(|entry| port.has_entry(entry)).collect();
        let KnownPort { mut explanation, protocol, endpoints, chains } = port;
        explanation.entries = entries.iter().map(|entry| entry.explanation()).collect();
        (explanation.chains, explanation.n_more_chains) = callers.explain(&chains);
        explanation.truth_table =
            evaluator.truth_table(&explanation.service_port, protocol, &explanation.frontends, &endpoints);
        report.problems.extend(problems_of_port(&explanation));
        report.ports.push(explanation);
    }
}

/// Frontends that belong to another Service, and quarantine.
fn problems_of_port(port: &PortExplanation) -> impl Iterator<Item = String> + '_ {
    let quarantined = port.quarantined.iter().map(|message| {
        format!(
            "{} {} {}: the kernel rejected its rules, and it is quarantined: {message}",
            port.service_port, port.protocol, port.family
        )
    });
    let lost = port.frontends.iter().filter_map(|frontend| {
        let owner = frontend.owned_by.as_ref()?;
        Some(format!("{} belongs to {owner}: {} does not answer on it", frontend.text(), port.service_port))
    });
    let kept = port.frontends.iter().flat_map(|frontend| {
        let text = |other: &String| {
            format!("{} is claimed by {other} too, which does not answer on it", frontend.text())
        };
        frontend.claimed_by.iter().map(text)
    });
    quarantined.chain(lost).chain(kept)
}

/// Names what rules alone do not tell.
fn add_unknown(report: &mut ExplainReport, subject: &Subject) {
    if subject.cluster.is_some() {
        let what = "the objects have no such Service: everything here is told by the comments of rules";
        report.problems.push(what.to_owned());
    }
    report.unknown.extend(
        [
            "traffic policies, affinity and hints of the Service",
            "endpoints that are left out, and why",
            "frontends that other Services own",
        ]
        .map(str::to_owned),
    );
}

fn no_such_port(report: ExplainReport, question: &ExplainQuestion) -> NoSuchService {
    let text = |port: &PortExplanation| {
        let number = port.port.map_or_else(|| "?".to_owned(), |number| number.to_string());
        match port.name.is_empty() {
            true => format!("{number} ({})", port.protocol),
            false => format!("{} ({number}, {})", port.name, port.protocol),
        }
    };
    let mut near: Vec<String> = Vec::new();
    for port in report.ports.iter().map(text) {
        if !near.contains(&port) {
            near.push(port);
        }
    }
    near.truncate(MAX_NEAR_PORTS);
    NoSuchService { service: report.service, port: question.port.clone(), searched: report.rules, near }
}

/// The most ports that an answer names which says that there is no such port.
const MAX_NEAR_PORTS: usize = 20;

fn no_such_service(subject: &Subject, name: &ServiceName) -> NoSuchService {
    let mut names: Vec<String> = Vec::new();
    if let Some(cluster) = &subject.cluster {
        names.extend(cluster.snapshot.services().map(|service| service.name.to_string()));
        names.extend(cluster.not_proxied.keys().map(ToString::to_string));
    }
    for family in subject.families() {
        let ruleset = subject.rulesets.get(family).iter();
        names.extend(ruleset.flat_map(service_rules::services_in_rules).map(str::to_owned));
    }
    names.sort();
    names.dedup();
    let searched = match (&subject.cluster, &subject.origin) {
        (Some(_), RulesOrigin::Objects) => "the objects".to_owned(),
        (Some(_), origin) => format!("the objects and the {origin}"),
        (None, origin) => format!("the {origin}"),
    };
    NoSuchService { service: name.to_string(), port: None, searched, near: near_names(&names, name) }
}

/// The most names that an answer suggests.
const MAX_NEAR: usize = 3;

/// Services of that name in other namespaces, then names that are spelled alike.
fn near_names(names: &[String], name: &ServiceName) -> Vec<String> {
    let is_same_name = |other: &&String| other.split_once('/').is_some_and(|(_, other)| other == name.name());
    let mut near: Vec<String> = names.iter().filter(is_same_name).take(MAX_NEAR).cloned().collect();
    let alike = alike(names, name).filter(|alike| !near.contains(alike));
    near.extend(alike);
    near.truncate(MAX_NEAR);
    near.into_iter().map(|name| EscapedValue(&name).to_string()).collect()
}

/// The Service of the same namespace that is spelled alike; if there is no such namespace, of any.
fn alike(names: &[String], name: &ServiceName) -> Option<String> {
    let in_namespace = || {
        names.iter().filter_map(|other| {
            let (namespace, other) = other.split_once('/')?;
            (namespace == name.namespace()).then_some(other)
        })
    };
    if in_namespace().next().is_none() {
        return nearest(&name.to_string(), names.iter().map(String::as_str)).map(str::to_owned);
    }
    let alike = nearest(name.name(), in_namespace())?;
    Some(format!("{}/{alike}", name.namespace()))
}
