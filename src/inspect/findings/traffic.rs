//! What differences do to traffic: packets of Services, from every place, through the desired rules and through those
//! in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::super::Subject;
use super::super::vantage::{Vantage, Vantages};
use super::check_report::{CheckFinding, FindingKind, FindingSeverity, TrafficDifference};
use super::hooks;
use super::service_names;
use crate::iptables::trace::{
    Branch, Hook, Outcome, Packet, PacketVerdict, RecentLists, Step, TraceOptions, Tracer, Weight,
};
use crate::iptables::{Ruleset, Table, write};
use crate::model::ServicePort;
use crate::net::IpFamily;
use crate::rules::ownership::ChainOwner;

/// The most service ports whose packets are traced because their rules differ.
const MAX_TOUCHED: usize = 50;

/// The most service ports whose packets are traced because of foreign rules.
const MAX_SAMPLED: usize = 50;

/// The most frontends of one service port.
const MAX_FRONTENDS: usize = 8;

/// What packets meet.
#[derive(Default)]
pub(super) struct TrafficComparison {
    /// How many packets were traced.
    pub(super) n_packets: usize,
    /// Those that fare differently, limited.
    pub(super) differences: Vec<TrafficDifference>,
    /// Foreign rules that decide about packets of Services.
    pub(super) findings: Vec<CheckFinding>,
}

/// The packets of one service port from one place.
struct ServiceProbe {
    service: String,
    /// Its rules differ from the desired ones.
    is_touched: bool,
    vantage: Vantage,
    packet: Packet,
}

impl ServiceProbe {
    fn difference(&self, family: IpFamily, should: &PacketFate, is: &PacketFate) -> TrafficDifference {
        TrafficDifference {
            family: family.as_str().to_owned(),
            service_port: self.service.clone(),
            from: self.vantage.as_str().to_owned(),
            to: format!("{}/{}", self.packet.destination, self.packet.protocol),
            desired: should.to_text(),
            in_force: is.to_text(),
        }
    }
}

/// Where the rules of a family are compared by packets.
pub(super) struct TrafficQuestion<'a> {
    pub(super) family: IpFamily,
    /// The objects and the host, with the desired rules.
    pub(super) subject: &'a mut Subject,
    pub(super) in_force: &'a Ruleset,
    /// The service ports whose rules differ; `None` for all.
    pub(super) touched: Option<&'a BTreeSet<String>>,
}

/// Traces packets of the service ports that are touched, and of others where foreign rules may decide about them. The
/// desired rules of the subject are used up.
pub(super) fn compare(question: &mut TrafficQuestion<'_>) -> TrafficComparison {
    let has_foreign = hooks::has_deciding_rules(question.in_force);
    if !has_foreign && question.touched.is_some_and(BTreeSet::is_empty) {
        return TrafficComparison::default();
    }
    let vantages = Vantages::of(question.subject, question.family);
    let probes = probes(question, &vantages, has_foreign);
    let Some(mut desired) = question.subject.rulesets.get_mut(question.family).take() else {
        return TrafficComparison::default();
    };
    let mut found = TrafficComparison { n_packets: probes.len(), ..TrafficComparison::default() };
    let in_force = tracer(&vantages, question.in_force);
    let fates: Vec<PacketFate> =
        probes.iter().map(|probe| PacketFate::of(&in_force, &probe.packet)).collect();
    hooks::adopt_foreign_rules(&mut desired, question.in_force);
    if has_foreign {
        let node = tracer(&vantages, &desired);
        let mut foreign: BTreeMap<Step, Vec<TrafficDifference>> = BTreeMap::new();
        for (probe, is) in probes.iter().zip(&fates) {
            let should = PacketFate::of(&node, &probe.packet);
            if let Some(step) = is.foreign_step(&should, question.in_force) {
                foreign.entry(step).or_default().push(probe.difference(question.family, &should, is));
            }
        }
        found.findings = foreign.iter().map(|(step, on)| foreign_finding(question, step, on)).collect();
    }
    // With the built-in chains in force: what differs now is due to our own chains and jumps.
    for (table, name, content) in hooks::with_all_jumps(question.in_force) {
        *desired.chain_mut(table, name) = content;
    }
    let node = tracer(&vantages, &desired);
    for (probe, is) in probes.iter().zip(&fates).filter(|(probe, _)| probe.is_touched) {
        let should = PacketFate::of(&node, &probe.packet);
        if should.differs(is) {
            found.differences.push(probe.difference(question.family, &should, is));
        }
    }
    found
}

/// Rules that cannot be decided, as those of network policies with sets, count as not matching.
fn tracer<'a>(vantages: &'a Vantages, rules: &'a Ruleset) -> Tracer<'a> {
    Tracer::new(vantages.traced_node(rules), TraceOptions { passes_undecided: true, records_events: false })
}

/// A rule of another program that decides about packets of Services.
fn foreign_finding(question: &TrafficQuestion<'_>, step: &Step, on: &[TrafficDifference]) -> CheckFinding {
    let rule = step.rule.and_then(|number| {
        question.in_force.chain(step.table, &step.chain)?.rules.get(number.checked_sub(1)?)
    });
    let summary = match step.rule {
        Some(number) => format!(
            "rule {number}, of another program, decides about packets of Services before their rules do"
        ),
        None => "the policy decides about packets of Services before their rules do".to_owned(),
    };
    let first = &on[0];
    let effect = format!(
        "From {} to {}: {}; should be: {}.{}",
        first.from,
        first.to,
        first.in_force,
        first.desired,
        match on.len() {
            1 => String::new(),
            n => format!(" {} of the packets traced fare so.", n),
        }
    );
    let mut finding = CheckFinding::new(FindingSeverity::Error, FindingKind::ForeignRule, summary, effect);
    finding.family = Some(question.family.as_str().to_owned());
    finding.table = Some(step.table.to_string());
    finding.chain = Some(step.chain.to_string());
    finding.rule = step.rule;
    finding.in_force = rule.map(|rule| write::rule_text(question.family, rule)).into_iter().collect();
    service_names::concern(&mut finding, on.iter().map(|one| one.service_port.as_str()).collect());
    finding.next = format!("chainsmith trace --live --from {} --to {}", source_word(&first.from), first.to);
    finding
}

/// What `trace` takes for a place.
fn source_word(vantage: &str) -> &'static str {
    match vantage {
        "node" | "localhost" => "node",
        _ => "external",
    }
}

fn probes(question: &TrafficQuestion<'_>, vantages: &Vantages, has_foreign: bool) -> Vec<ServiceProbe> {
    let Some(cluster) = &question.subject.cluster else { return Vec::new() };
    let ports = cluster.snapshot.services().flat_map(|service| service.ports_in(question.family));
    let mut chosen = Vec::new();
    let n_all = cluster.snapshot.services().map(|service| service.ports.len()).sum::<usize>();
    let every = n_all.div_ceil(MAX_SAMPLED).max(1);
    let mut n_touched = 0;
    for (n, port) in ports.enumerate() {
        let name = port.name().to_string();
        let is_touched =
            n_touched < MAX_TOUCHED && question.touched.is_none_or(|touched| touched.contains(&name));
        n_touched += usize::from(is_touched);
        if is_touched || has_foreign && n % every == 0 {
            chosen.push((name, is_touched, port));
        }
    }
    let probes = |(name, is_touched, port): &(String, bool, ServicePort<'_>)| {
        let mut probes = probes_of(question, vantages, name, port);
        probes.iter_mut().for_each(|probe| probe.is_touched = *is_touched);
        probes
    };
    chosen.iter().flat_map(probes).collect()
}

fn probes_of(
    question: &TrafficQuestion<'_>,
    vantages: &Vantages,
    name: &str,
    port: &ServicePort<'_>,
) -> Vec<ServiceProbe> {
    let to = |ip: IpAddr| SocketAddr::new(ip, port.port.port);
    let frontend = port.frontend;
    let external = frontend.external_ips.iter().chain(&*frontend.load_balancer_ips).copied().map(to);
    let mut frontends: Vec<SocketAddr> = std::iter::once(to(frontend.cluster_ip)).chain(external).collect();
    if let Some(node_port) = port.port.node_port {
        let addresses = question.subject.host.own_addresses(question.family).take(2);
        let of_node = addresses.chain([question.family.localhost()]);
        frontends.extend(of_node.map(|ip| SocketAddr::new(ip, node_port)));
    }
    frontends.truncate(MAX_FRONTENDS);
    let mut probes = Vec::new();
    for destination in frontends {
        for point in &vantages.points {
            // Nothing from elsewhere is sent to loopback.
            let is_possible = !destination.ip().is_loopback()
                || matches!(point.vantage, Vantage::Node | Vantage::Localhost);
            if is_possible {
                let source = SocketAddr::new(point.source, 40_000);
                let packet = Packet::new(point.origin.clone(), source, destination, port.port.protocol);
                let service = name.to_owned();
                probes.push(ServiceProbe { service, is_touched: false, vantage: point.vantage, packet });
            }
        }
    }
    probes
}

/// What may happen to a packet.
struct PacketFate {
    branches: Vec<Branch>,
}

impl PacketFate {
    fn of(node: &Tracer<'_>, packet: &Packet) -> PacketFate {
        PacketFate { branches: node.trace(packet, &RecentLists::default()) }
    }

    /// What can be seen of the outcomes, each with its probability.
    fn visible(&self) -> BTreeMap<Outcome, Weight> {
        let mut visible: BTreeMap<Outcome, Weight> = BTreeMap::new();
        for branch in &self.branches {
            let outcome = Outcome { mark: 0, ..branch.outcome.clone().visible() };
            visible
                .entry(outcome)
                .and_modify(|weight| weight.add(&branch.weight))
                .or_insert(branch.weight.clone());
        }
        visible
    }

    /// Whether packets surely fare differently: where a rule cannot be decided, they may fare the same.
    fn differs(&self, other: &PacketFate) -> bool {
        let is_unknown = |fate: &PacketFate| {
            fate.branches.iter().any(|branch| matches!(branch.outcome.verdict, PacketVerdict::Unknown(_)))
        };
        !is_unknown(self) && !is_unknown(other) && self.visible() != other.visible()
    }

    /// The foreign rule that decides about the packet where `should` has another fate for it: it drops or rejects, keeps
    /// the packet from its Service's rules in nat, or lets pass what our rules reject.
    fn foreign_step(&self, should: &PacketFate, rules: &Ruleset) -> Option<Step> {
        if !should.differs(self) {
            return None;
        }
        let kind =
            |branch: &Branch| (std::mem::discriminant(&branch.outcome.verdict), branch.outcome.destination);
        let expected: BTreeSet<_> = should.branches.iter().map(|branch| branch.outcome.destination).collect();
        let is_new = |branch: &&Branch| should.branches.iter().all(|other| kind(other) != kind(branch));
        let branch = self.branches.iter().find(is_new)?;
        // Rules, not policies.
        let mut matched = branch.path.iter().rev().filter(|step| step.rule.is_some());
        let is_nat =
            |step: &&Step| step.table == Table::Nat && matches!(step.hook, Hook::Prerouting | Hook::Output);
        let step = match branch.outcome.verdict {
            PacketVerdict::Dropped | PacketVerdict::Rejected => branch.path.last(),
            _ if !expected.contains(&branch.outcome.destination) => matched.find(is_nat),
            _ => matched.find(|step| step.table == Table::Filter),
        }?;
        let rule = rules.chain(step.table, &step.chain)?.rules.get(step.rule?.checked_sub(1)?)?;
        let is_foreign = ChainOwner::of(step.table, &step.chain) == ChainOwner::Foreign;
        (is_foreign && hooks::decides(step.table, &step.chain, rule)).then_some(*step)
    }

    /// In a few words: who answers, or what happens instead.
    fn to_text(&self) -> String {
        let visible = self.visible();
        let mut endpoints: Vec<(SocketAddr, bool, f64)> = Vec::new();
        let mut others: BTreeSet<String> = BTreeSet::new();
        for (outcome, weight) in &visible {
            match (outcome.verdict, outcome.dnat) {
                (PacketVerdict::Accepted(_), Some(to)) => {
                    endpoints.push((to, outcome.masquerade, weight.to_f64()));
                }
                (PacketVerdict::Accepted(_), None) => {
                    others.insert(format!("passes to {} untranslated", outcome.destination));
                }
                (PacketVerdict::Dropped, _) => drop(others.insert("dropped".to_owned())),
                (PacketVerdict::Rejected, _) => drop(others.insert("rejected".to_owned())),
                (PacketVerdict::Unknown(step), _) => {
                    others.insert(format!("unknown, for {step}"));
                }
            }
        }
        let mut parts: Vec<String> = endpoints_text(&endpoints).into_iter().collect();
        parts.extend(others);
        parts.join(", or ")
    }
}

/// As in `one of 3 endpoints (10.0.0.5:80, 10.0.0.6:80, 10.0.0.7:80), masqueraded`.
fn endpoints_text(endpoints: &[(SocketAddr, bool, f64)]) -> Option<String> {
    const SHOWN: usize = 8;
    let first = endpoints.first()?;
    let is_even = endpoints.iter().all(|(_, _, share)| (share - first.2).abs() < 1e-6);
    let all_masqueraded = endpoints.iter().all(|(_, masquerade, _)| *masquerade);
    let one = |(to, masquerade, share): &(SocketAddr, bool, f64)| {
        let share = if is_even { String::new() } else { format!(" {:.1} %", share * 100.0) };
        format!("{to}{share}{}", if *masquerade && !all_masqueraded { " masqueraded" } else { "" })
    };
    let mut texts: Vec<String> = endpoints.iter().take(SHOWN).map(one).collect();
    if endpoints.len() > SHOWN {
        texts.push(format!("{} more", endpoints.len() - SHOWN));
    }
    let masqueraded = if all_masqueraded { ", masqueraded" } else { "" };
    Some(match endpoints.len() {
        1 => format!("{}{masqueraded}", texts[0]),
        n => format!("one of {n} endpoints ({}){masqueraded}", texts.join(", ")),
    })
}
