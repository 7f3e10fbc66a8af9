//! From the rules in force to the settings under which the desired rules can be compared with them: the layout, the
//! extensions in use, and how pods' traffic is recognized. kube-proxy and Chainsmith decide on these when they start,
//! by tests that write; here the rules tell.

use std::collections::BTreeSet;

use super::super::{HostOrigin, HostView};
use super::check_report::{CheckFinding, FindingKind, FindingSeverity};
use crate::config::LayoutChoice;
use crate::iptables::{ChainName, Match, Rule, Ruleset, Table, Target};
use crate::net::MasqueradeMark;
use crate::rules::names::{
    KUBE_FIREWALL, KUBE_FORWARD, KUBE_MARK_MASQ, KUBE_NODEPORTS, KUBE_POSTROUTING, KUBE_SERVICES, PortChain,
};
use crate::rules::ownership::ChainOwner;
use crate::rules::{Detector, NodePorts, Settings, fixed};

/// What the rules in force tell of the way in which they were made.
pub(super) struct FoundLayout {
    /// Settings for the desired rules.
    pub(super) settings: Settings,
    /// As in `classic`, `compact`, `compact without the bpf match`.
    pub(super) name: &'static str,
    /// What differs from the settings given, and matters.
    pub(super) findings: Vec<CheckFinding>,
}

/// Whether the rules are in kube-proxy's own layout, where the order of Services is random.
pub(super) fn is_classic(settings: &Settings) -> bool {
    settings.layout == LayoutChoice::Classic
}

/// Whether rules in kube-proxy's layout are those of a large cluster, without comments in endpoints' chains.
pub(super) fn is_of_large_cluster(desired: &Ruleset) -> bool {
    let nat = desired.tables.get(&Table::Nat).into_iter().flatten();
    let is_endpoint =
        |name: &ChainName| ChainOwner::of(Table::Nat, name) == ChainOwner::ServicePort(PortChain::Endpoint);
    let mut endpoints = nat.filter(|(name, _)| is_endpoint(name));
    endpoints.next().is_some_and(|(_, chain)| chain.rules.iter().all(|rule| rule.comment().is_none()))
}

/// Adapts `settings` to the rules in force.
pub(super) fn of_rules(settings: &Settings, in_force: &Ruleset, host: &HostView) -> FoundLayout {
    let chain = |table, name| in_force.chain(table, &name).map_or(&[][..], |chain| &chain.rules);
    let votes = Votes::of(in_force);
    let mut found = settings.clone();
    let mut findings = Vec::new();
    found.layout = match votes.is_compact().unwrap_or(settings.layout == LayoutChoice::Compact) {
        true => LayoutChoice::Compact,
        false => LayoutChoice::Classic,
    };
    if found.layout == LayoutChoice::Compact {
        found.bpf =
            votes.n_hairpins > 0 || votes.n_direct > 0 || (votes.n_endpoint_jumps == 0 && settings.bpf);
        findings.extend((!found.bpf).then(no_bpf));
    }
    if let Some(masquerade) = chain(Table::Nat, KUBE_POSTROUTING).iter().find_map(masquerades) {
        found.random_fully = masquerade;
    }
    let counts = |rule: &Rule| rule.matches.iter().any(|part| matches!(part, Match::Nfacct(_)));
    let (forward, node_ports) = (chain(Table::Filter, KUBE_FORWARD), node_port_rules(in_force));
    if !forward.is_empty() {
        found.counters.invalid = forward.iter().any(counts);
    }
    if !node_ports.is_empty() {
        found.counters.localhost = node_ports.iter().any(|rule| counts(rule));
    }
    let has_martian_rule = chain(Table::Filter, KUBE_FIREWALL).iter().any(fixed::is_martian_rule);
    if found.localhost_node_ports
        && !has_martian_rule
        && !has_counted_localhost(&node_ports)
        && is_open(in_force) == Some(false)
    {
        without_localhost(&mut found);
    }
    adapt_addresses(&mut found, chain(Table::Nat, KUBE_SERVICES), host);
    findings.extend(adapt_detector(&mut found, in_force));
    findings.extend(adapt_mark(&mut found, in_force));
    let name = match (found.layout, found.bpf) {
        (LayoutChoice::Compact, true) => "compact",
        (LayoutChoice::Compact, false) => "compact without the bpf match",
        _ => "classic",
    };
    FoundLayout { settings: found, name, findings }
}

/// Signs of either layout in nat.
#[derive(Default)]
struct Votes {
    /// Rules of service ports' chains whose comments only classic has.
    n_comments: usize,
    /// The same rules without a comment.
    n_without: usize,
    /// Rules for hairpins.
    n_hairpins: usize,
    /// Balancing rules that lead to an endpoint without a chain for it.
    n_direct: usize,
    /// Balancing rules that lead to an endpoint's chain.
    n_endpoint_jumps: usize,
    /// Chains that only compact has.
    n_compact_chains: usize,
}

impl Votes {
    fn of(in_force: &Ruleset) -> Votes {
        let mut votes = Votes::default();
        let nat = in_force.tables.get(&Table::Nat).into_iter().flatten();
        for (name, chain) in nat {
            let owner = ChainOwner::of(Table::Nat, name);
            votes.n_compact_chains += usize::from(owner.is_compact());
            let kind = match owner {
                ChainOwner::ServicePort(kind) => kind,
                ChainOwner::Group => PortChain::Cluster,
                _ => continue,
            };
            for rule in &chain.rules {
                votes.count(kind, rule);
            }
        }
        let postrouting = in_force.chain(Table::Nat, &KUBE_POSTROUTING).map_or(&[][..], |chain| &chain.rules);
        votes.n_hairpins = postrouting.iter().filter(|rule| rule.matches.contains(&Match::Hairpin)).count();
        votes
    }

    fn count(&mut self, kind: PortChain, rule: &Rule) {
        if kind == PortChain::Endpoint {
            return;
        }
        match rule.target {
            Some(Target::Dnat(_)) => self.n_direct += 1,
            // Of both layouts, with and without a large cluster, these have a comment in classic alone.
            Some(Target::Jump(KUBE_MARK_MASQ)) if rule.comment().is_some() => self.n_comments += 1,
            Some(Target::Jump(KUBE_MARK_MASQ)) => self.n_without += 1,
            Some(Target::Jump(chain)) => {
                let owner = ChainOwner::of(Table::Nat, &chain);
                self.n_endpoint_jumps += usize::from(owner == ChainOwner::ServicePort(PortChain::Endpoint));
            }
            _ => {}
        }
    }

    /// Whether the rules are compact; `None` without a sign.
    fn is_compact(&self) -> Option<bool> {
        let compact = self.n_without + self.n_direct + self.n_compact_chains + self.n_hairpins;
        match compact.cmp(&self.n_comments) {
            std::cmp::Ordering::Greater => Some(true),
            std::cmp::Ordering::Less => Some(false),
            std::cmp::Ordering::Equal => None,
        }
    }
}

fn no_bpf() -> CheckFinding {
    CheckFinding::new(
        FindingSeverity::Notice,
        FindingKind::MatchUnsupported,
        "iptables or the kernel does not accept the bpf match",
        "None: every packet fares as it should. The compact layout keeps a chain for each endpoint, which costs memory.",
    )
}

/// Whether the rule masquerades, and if it does, whether with `--random-fully`.
fn masquerades(rule: &Rule) -> Option<bool> {
    match rule.target {
        Some(Target::Masquerade { random_fully }) => Some(random_fully),
        _ => None,
    }
}

/// The rules of node ports, wherever the layout has them.
fn node_port_rules(in_force: &Ruleset) -> Vec<&Rule> {
    let nat = in_force.tables.get(&Table::Nat).into_iter().flatten();
    let is_node_ports = |name: &ChainName| {
        *name == KUBE_NODEPORTS || ChainOwner::of(Table::Nat, name) == ChainOwner::Dispatch
    };
    nat.filter(|(name, _)| is_node_ports(name)).flat_map(|(_, chain)| &chain.rules).collect()
}

fn has_counted_localhost(node_ports: &[&Rule]) -> bool {
    node_ports.iter().any(|rule| rule.matches.iter().any(|part| matches!(part, Match::Nfacct(_))))
}

/// Whether the rule that leads to the node ports of every address covers 127.0.0.0/8; `None` without such a rule.
fn is_open(in_force: &Ruleset) -> Option<bool> {
    let services = in_force.chain(Table::Nat, &KUBE_SERVICES)?;
    let tail: Vec<&Rule> = tail_rules(&services.rules).collect();
    let covers =
        |rule: &&Rule| rule.destination.is_none_or(|to| !to.negated && to.value.address().is_loopback());
    (!tail.is_empty()).then(|| tail.iter().any(covers))
}

/// The rules of nat `KUBE-SERVICES` that lead to the node ports.
pub(super) fn tail_rules(services: &[Rule]) -> impl Iterator<Item = &Rule> {
    services.iter().filter(|rule| rule.callee() == Some(KUBE_NODEPORTS))
}

/// The settings of an agent that could not set route_localnet.
fn without_localhost(settings: &mut Settings) {
    settings.localhost_node_ports = false;
    if let NodePorts::Addresses(addresses) = &mut settings.node_ports {
        addresses.retain(|ip| !ip.is_loopback());
    }
}

/// Where the addresses of the interfaces are not known, those of the rules count.
fn adapt_addresses(settings: &mut Settings, services: &[Rule], host: &HostView) {
    let NodePorts::Addresses(addresses) = &mut settings.node_ports else { return };
    if matches!(host.origin, HostOrigin::File | HostOrigin::Live) {
        return;
    }
    let of_rules: BTreeSet<_> =
        tail_rules(services).filter_map(|rule| Some(rule.destination?.value.address())).collect();
    *addresses = of_rules.into_iter().collect();
}

/// Rules that recognize pods otherwise than the configuration says: one finding, and the rest is compared as the rules
/// have it.
fn adapt_detector(settings: &mut Settings, in_force: &Ruleset) -> Option<CheckFinding> {
    let found = detector_in(in_force)?;
    if settings.detector.as_ref() == Some(&found) || settings.masquerade_all {
        return None;
    }
    let shown = |detector: &Detector| match detector {
        Detector::Source(cidr) => format!("by the source {cidr}"),
        Detector::Interface(name) => format!("by the interface {}", name.as_str()),
    };
    let summary = format!(
        "the rules in force recognize pods {}, the configuration {}",
        shown(&found),
        settings.detector.as_ref().map_or_else(|| "does not".to_owned(), shown)
    );
    settings.detector = Some(found);
    let finding = CheckFinding::new(
        FindingSeverity::Warning,
        FindingKind::Configuration,
        summary,
        "Connections to Services may be masqueraded where they should not be, or the other way round. All else is \
         compared as the rules in force have it.",
    );
    Some(finding.with_next("give the configuration of this node with --config"))
}

/// How rules recognize pods: by the rule of a service port that masquerades all other traffic. `None` unless most
/// service ports have the same.
fn detector_in(in_force: &Ruleset) -> Option<Detector> {
    let nat = in_force.tables.get(&Table::Nat)?;
    let (mut found, mut n_all): (Vec<(Detector, usize)>, usize) = (Vec::new(), 0);
    for (name, chain) in nat {
        let is_balancing = matches!(
            ChainOwner::of(Table::Nat, name),
            ChainOwner::ServicePort(PortChain::Cluster | PortChain::Local)
        );
        let masquerades = |rule: &&Rule| is_balancing && rule.callee() == Some(KUBE_MARK_MASQ);
        let Some(first) = chain.rules.first().filter(masquerades) else { continue };
        n_all += 1;
        let detector = match (&first.source, &first.in_interface) {
            (Some(source), _) if source.negated => Detector::Source(source.value),
            (_, Some(name)) if name.negated => Detector::Interface(name.value.clone()),
            _ => continue,
        };
        match found.iter_mut().find(|(known, _)| *known == detector) {
            Some((_, n)) => *n += 1,
            None => found.push((detector, 1)),
        }
    }
    let (detector, n) = found.into_iter().max_by_key(|(_, n)| *n)?;
    // One rule among few may have been changed by hand.
    (n * 2 > n_all && (n > 1 || n_all == 1)).then_some(detector)
}

/// Rules that set and match another mark than the configuration says.
fn adapt_mark(settings: &mut Settings, in_force: &Ruleset) -> Option<CheckFinding> {
    let rules = |name| in_force.chain(Table::Nat, &name).map_or(&[][..], |chain| &chain.rules);
    let [Rule { target: Some(Target::SetXmark { value, mask }), .. }] = rules(KUBE_MARK_MASQ) else {
        return None;
    };
    let returns = Match::Mark { negated: true, value: *value, mask: *mask };
    let is_used = rules(KUBE_POSTROUTING).iter().any(|rule| rule.matches.contains(&returns));
    if !is_used || value != mask || !value.is_power_of_two() || *value == settings.mark.value() {
        return None;
    }
    let found = MasqueradeMark::from_bit(value.trailing_zeros())?;
    let (found_value, configured) = (found.value(), settings.mark.value());
    settings.mark = found;
    let finding = CheckFinding::new(
        FindingSeverity::Warning,
        FindingKind::Configuration,
        format!(
            "the rules in force mark packets with {found_value:#x}, the configuration with {configured:#x}"
        ),
        "None, unless another program uses this bit of the mark.",
    );
    Some(finding.with_next("give the configuration of this node with --config"))
}
