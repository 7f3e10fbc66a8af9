//! Why the source of a packet becomes an address of the node, or stays.

use std::net::IpAddr;

use super::rule_book::RuleBook;
use super::trace_report::{MasqueradeAnswer, MasqueradeReason};
use crate::iptables::trace::{Branch, Hook, Origin, Packet, PacketVerdict, Step};
use crate::iptables::{AddressSide, Match, MaybeNot, Rule, Target};
use crate::rules::names::{KUBE_MARK_MASQ, KUBE_POSTROUTING, PortChain};
use crate::rules::ownership::ChainOwner;

/// The answer for `branch` of `packet`; `None` unless it passes. `node_address` is the source after masquerading.
pub(super) fn masquerade_answer(
    book: &RuleBook<'_>,
    branch: &Branch,
    packet: &Packet,
    node_address: IpAddr,
) -> Option<MasqueradeAnswer> {
    if !matches!(branch.outcome.verdict, PacketVerdict::Accepted(_)) {
        return None;
    }
    let answer = |is_masqueraded, (code, reason), source| MasqueradeAnswer {
        is_masqueraded,
        code,
        reason,
        sources: vec![source],
    };
    let reasons = Reasons { book, branch, packet };
    Some(match (branch.outcome.masquerade, branch.outcome.source) {
        (true, _) => answer(true, reasons.masqueraded(), node_address),
        (false, Some(source)) if source != packet.source => {
            let (code, reason) = reasons.foreign("gives it another source");
            answer(true, (code, reason), source.ip())
        }
        (false, _) => answer(false, reasons.not_masqueraded(), packet.source.ip()),
    })
}

struct Reasons<'a> {
    book: &'a RuleBook<'a>,
    branch: &'a Branch,
    packet: &'a Packet,
}

type CodedReason = (MasqueradeReason, String);

impl Reasons<'_> {
    fn masqueraded(&self) -> CodedReason {
        let last = self.steps_of_postrouting().last();
        if last.is_none_or(|step| step.chain != KUBE_POSTROUTING) {
            return self.foreign("masquerades it");
        }
        let marks = |step: &&Step| self.book.rule(step).and_then(Rule::callee) == Some(KUBE_MARK_MASQ);
        let Some(step) = self.branch.path.iter().find(marks) else {
            let what = "it has the masquerade mark, which no rule of a Service set".to_owned();
            return (MasqueradeReason::ForeignRule, what);
        };
        let Some(rule) = self.book.rule(step) else { return self.foreign("marks it") };
        match ChainOwner::of(step.table, &step.chain) {
            ChainOwner::ServicePort(PortChain::Cluster | PortChain::Local) => self.to_cluster_ip(rule),
            ChainOwner::ServicePort(PortChain::External) => match has_local_source(rule) {
                true => (
                    MasqueradeReason::SentByNode,
                    "the node itself is the client of an external frontend".to_owned(),
                ),
                false => (
                    MasqueradeReason::External,
                    "externalTrafficPolicy is Cluster, so the reply must come back through this node"
                        .to_owned(),
                ),
            },
            ChainOwner::ServicePort(PortChain::Endpoint) | ChainOwner::Fixed => (
                MasqueradeReason::Hairpin,
                "the endpoint is the client itself, which would not accept a reply from its own address"
                    .to_owned(),
            ),
            _ => (MasqueradeReason::ForeignRule, format!("{step}, of another program, marks it")),
        }
    }

    fn to_cluster_ip(&self, rule: &Rule) -> CodedReason {
        let source = self.packet.source.ip();
        match (&rule.source, &rule.in_interface) {
            (Some(MaybeNot { value, .. }), _) => (
                MasqueradeReason::NotFromPod,
                format!("the client does not count as a pod: {source} is not in {value}"),
            ),
            (None, Some(MaybeNot { value, .. })) => {
                let pattern = value.as_str();
                let what = match &self.packet.origin {
                    Origin::Node => {
                        format!("the client does not count as a pod: the packet does not arrive on {pattern}")
                    }
                    Origin::Arrives(name) => format!(
                        "the client does not count as a pod: the packet arrives on {}, not on {pattern}",
                        name.as_deref().unwrap_or("an unknown interface"),
                    ),
                };
                (MasqueradeReason::NotFromPod, what)
            }
            (None, None) => {
                (MasqueradeReason::MasqueradeAll, "all traffic to cluster IPs is (masqueradeAll)".to_owned())
            }
        }
    }

    fn not_masqueraded(&self) -> CodedReason {
        let in_external = |step: &&Step| {
            ChainOwner::of(step.table, &step.chain) == ChainOwner::ServicePort(PortChain::External)
        };
        if let Some(step) = self.branch.path.iter().rev().find(in_external) {
            let rule = self.book.rule(step);
            let callee = rule.and_then(Rule::callee).map(|name| ChainOwner::of(step.table, &name));
            if callee == Some(ChainOwner::ServicePort(PortChain::Local)) {
                let what = "externalTrafficPolicy Local keeps the client's address".to_owned();
                return (MasqueradeReason::LocalPolicy, what);
            }
            return self.counted_as_pod(rule);
        }
        let in_balancing = |step: &&Step| {
            let owner = ChainOwner::of(step.table, &step.chain);
            matches!(owner, ChainOwner::ServicePort(PortChain::Cluster | PortChain::Local))
        };
        let Some(step) = self.branch.path.iter().find(in_balancing) else {
            return (MasqueradeReason::NoService, "no rule of a Service masquerades it".to_owned());
        };
        let head = self.book.rules(step.table, &step.chain).first();
        self.counted_as_pod(head.filter(|rule| rule.callee() == Some(KUBE_MARK_MASQ)))
    }

    /// For a packet that `rule` takes for a pod's, or spares as one.
    fn counted_as_pod(&self, rule: Option<&Rule>) -> CodedReason {
        let source = self.packet.source.ip();
        match rule.map(|rule| (&rule.source, &rule.in_interface)) {
            Some((Some(part), _)) => (
                MasqueradeReason::FromPod,
                format!("the client counts as a pod: {source} is in {}", part.value),
            ),
            Some((None, Some(part))) => (
                MasqueradeReason::FromPod,
                format!("the client counts as a pod: it arrives on {}", part.value.as_str()),
            ),
            _ => (
                MasqueradeReason::NoDetection,
                "the rules cannot tell pods from other clients (no cluster CIDR is configured)".to_owned(),
            ),
        }
    }

    fn foreign(&self, does: &str) -> CodedReason {
        let changes_source = |step: &&Step| match self.book.rule(step).and_then(|rule| rule.target.as_ref()) {
            Some(Target::Masquerade { .. }) => true,
            Some(Target::Other { name, .. }) => matches!(&**name, "MASQUERADE" | "SNAT"),
            _ => false,
        };
        let what = match self.branch.path.iter().rev().find(changes_source) {
            Some(step) => format!("{step}, of another program, {does}"),
            None => format!("a rule of another program {does}"),
        };
        (MasqueradeReason::ForeignRule, what)
    }

    fn steps_of_postrouting(&self) -> impl Iterator<Item = &Step> {
        let is_nat = |step: &&Step| step.hook == Hook::Postrouting && step.rule.is_some();
        self.branch.path.iter().filter(is_nat)
    }
}

fn has_local_source(rule: &Rule) -> bool {
    rule.matches.iter().any(|part| matches!(part, Match::IsLocal(AddressSide::Source)))
}
