//! Why a packet passes, is rejected or dropped: the rule that decided it, by what the rule is for.

use super::rule_book::RuleBook;
use super::trace_report::{EndKind, EndVerdict, VerdictReason};
use crate::iptables::trace::{Branch, Delivery, Packet, PacketVerdict, Step, TraceEvent};
use crate::iptables::{CtStates, Match, Rule, Table, Target};
use crate::net::Cidr;
use crate::rules::names::{KUBE_FIREWALL, KUBE_FORWARD, PortChain};
use crate::rules::ownership::ChainOwner;
use crate::rules::{SharedChain, dispatch};

/// The verdict on `branch` of `packet`; `name` is its Service port, if known.
pub(super) fn end_verdict(
    book: &RuleBook<'_>,
    branch: &Branch,
    packet: &Packet,
    name: Option<&str>,
) -> EndVerdict {
    let kind = match branch.outcome.verdict {
        PacketVerdict::Accepted(Delivery::Local) => EndKind::Local,
        PacketVerdict::Accepted(Delivery::Forwarded) => EndKind::Forwarded,
        PacketVerdict::Dropped => EndKind::Dropped,
        PacketVerdict::Rejected => EndKind::Rejected,
        PacketVerdict::Unknown(_) => EndKind::Unknown,
    };
    if matches!(kind, EndKind::Local | EndKind::Forwarded) {
        let (code, reason) = passed(book, branch, packet);
        return EndVerdict { kind, code, reason, rule: None };
    }
    let step = match branch.outcome.verdict {
        PacketVerdict::Unknown(step) => Some(step),
        _ => branch.path.last().copied(),
    };
    let rule = step.map(|step| book.named(&step));
    let (code, reason) = match step {
        Some(step) if kind == EndKind::Unknown => {
            (VerdictReason::Undecided, format!("{step} cannot be decided"))
        }
        Some(step) => stopped(book, (branch, &step), packet, name),
        None => (VerdictReason::Undecided, "no rule decided it".to_owned()),
    };
    EndVerdict { kind, code, reason, rule }
}

fn passed(book: &RuleBook<'_>, branch: &Branch, packet: &Packet) -> (VerdictReason, String) {
    let dnat = branch.path.iter().rev().find(|step| book.rule(step).is_some_and(is_dnat));
    match (dnat, branch.outcome.dnat) {
        (Some(step), Some(to)) if ChainOwner::of(step.table, &step.chain).is_ours() => {
            (VerdictReason::Served, format!("endpoint {to}"))
        }
        (Some(step), Some(to)) => {
            (VerdictReason::SentElsewhere, format!("{step}, of another program, sends it to {to}"))
        }
        _ if !packet.state.contains(CtStates::NEW) => (
            VerdictReason::NoService,
            "only the first packet of a connection meets the rules of Services; conntrack translates the others"
                .to_owned(),
        ),
        _ => (VerdictReason::NoService, "no rule of a Service is for it".to_owned()),
    }
}

/// Whether `rule` gives packets another destination.
pub(super) fn is_dnat(rule: &Rule) -> bool {
    match &rule.target {
        Some(Target::Dnat(_)) => true,
        Some(Target::Other { name, .. }) => matches!(&**name, "DNAT" | "REDIRECT"),
        _ => false,
    }
}

fn stopped(
    book: &RuleBook<'_>,
    (branch, step): (&Branch, &Step),
    packet: &Packet,
    name: Option<&str>,
) -> (VerdictReason, String) {
    let Some(rule) = book.rule(step) else {
        let what =
            format!("the policy of {} {} is DROP, and no rule accepts the packet", step.table, step.chain);
        return (VerdictReason::Policy, what);
    };
    let of_comment = rule.comment().and_then(|comment| comment.split(' ').next());
    let name = of_comment.filter(|name| name.contains('/')).or(name).unwrap_or("the Service");
    let is_reject = matches!(rule.target, Some(Target::Reject));
    let shared = dispatch::shared_chain_of(step.table, &step.chain);
    match shared {
        Some(SharedChain::FilterServices | SharedChain::FilterExternalServices) if is_reject => {
            (VerdictReason::NoEndpoints, format!("{name} has no endpoints"))
        }
        Some(SharedChain::FilterServices) => (
            VerdictReason::NoLocalEndpoint,
            format!("{name} has internalTrafficPolicy Local and no endpoint on this node"),
        ),
        Some(SharedChain::FilterExternalServices) => (
            VerdictReason::NoLocalEndpoint,
            format!("{name} has externalTrafficPolicy Local and no endpoint on this node"),
        ),
        Some(SharedChain::FilterFirewall) => (
            VerdictReason::SourceRange,
            format!(
                "{} is in none of the loadBalancerSourceRanges of {name}{}",
                packet.source.ip(),
                ranges(book, branch)
            ),
        ),
        _ if step.table == Table::Filter && step.chain == KUBE_FORWARD && drops_invalid(rule) => {
            (VerdictReason::Invalid, "conntrack calls the packet INVALID".to_owned())
        }
        _ if step.table == Table::Filter && step.chain == KUBE_FIREWALL && is_martian(rule) => (
            VerdictReason::Martian,
            format!("{} may not reach 127.0.0.0/8 from outside the node", packet.source.ip()),
        ),
        _ => (VerdictReason::ForeignRule, format!("{step}, of another program")),
    }
}

/// The most source ranges of a sentence.
const MAX_RANGES: usize = 4;

/// The source ranges that the packet was compared with, as the end of a sentence.
fn ranges(book: &RuleBook<'_>, branch: &Branch) -> String {
    let is_firewall =
        |table, name| ChainOwner::of(table, name) == ChainOwner::ServicePort(PortChain::Firewall);
    let visited = branch.events.iter().find_map(|event| match event {
        TraceEvent::Entered(visit) if is_firewall(visit.table, &visit.chain) => Some(visit),
        _ => None,
    });
    let rules = visited.map_or(&[][..], |visit| book.rules(visit.table, &visit.chain));
    let ranges: Vec<String> = rules.iter().filter_map(|rule| Some(rule.source?.value.to_string())).collect();
    match ranges.len() {
        0 => String::new(),
        n if n > MAX_RANGES => {
            format!(" ({} and {} more)", ranges[..MAX_RANGES].join(", "), n - MAX_RANGES)
        }
        _ => format!(" ({})", ranges.join(", ")),
    }
}

fn drops_invalid(rule: &Rule) -> bool {
    rule.matches
        .iter()
        .any(|part| matches!(part, Match::CtState(states) if states.value == CtStates::INVALID))
}

fn is_martian(rule: &Rule) -> bool {
    rule.destination.is_some_and(|to| !to.negated && Cidr::address(&to.value).is_loopback())
}
