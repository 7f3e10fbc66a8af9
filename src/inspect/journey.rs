//! The journey of a packet through a node's rules, with names: a [`TraceQuestion`] and a [`Subject`] in, a
//! [`TraceReport`] out.
//!
//! The texts of a question (`asked`) become a `sender` and `receiver`s with addresses; the trace of each packet
//! becomes the common beginning of all its ways and its ends (`journey_ends`), each with a verdict
//! (`verdict_reason`), the reason for its source address (`masquerade_reason`) and the way of the reply
//! (`reply_text`). Of a Service, `left_out` has the endpoints that get nothing.

mod asked;
mod journey_ends;
mod known_frontends;
mod left_out;
mod masquerade_reason;
mod pod_lookup;
mod receiver;
mod reply_text;
mod rule_book;
mod sender;
mod share;
mod trace_report;
mod trace_summary;
mod verdict_reason;

use std::collections::BTreeSet;

use super::Subject;
use super::labels::ChainLabels;
use super::vantage::{Vantage, Vantages};
use crate::iptables::trace::{Packet, RecentLists, TraceOptions, Tracer};
use crate::net::{IpFamily, PerFamily};
use asked::{AskedDestination, AskedSource};
use journey_ends::TracedPacket;
use known_frontends::{FrontendKind, KnownFrontends};
use left_out::ObjectsView;
use receiver::{FamilyView, Receiver};
use reply_text::ReplyFacts;
use rule_book::RuleBook;
use sender::Sender;

pub use asked::{PacketState, QuestionError, TraceQuestion};
pub use trace_report::{
    ChainVisit, EndKind, EndVerdict, EndpointShare, Journey, JourneyDestination, JourneyEnd, JourneySource,
    LeftOutEndpoint, MasqueradeAnswer, MasqueradeReason, MatchedRule, NamedRule, PathPart, Share,
    TraceReport, UndecidedNote, VerdictReason,
};

/// The most journeys of one answer.
const MAX_JOURNEYS: usize = 32;

/// Answers `question` about `subject`.
///
/// # Errors
/// The text of the question is malformed, or names something that is not there.
pub fn trace_journeys(subject: &Subject, question: &TraceQuestion) -> Result<TraceReport, QuestionError> {
    let to = question.destination()?;
    let from = question.source()?;
    let interface = question.interface()?;
    if subject.families().next().is_none() {
        let what = format!("{}: there are none of the family asked for", subject.origin);
        return Err(QuestionError::NotFound(what));
    }
    let mut frontends = PerFamily { v4: KnownFrontends::default(), v6: KnownFrontends::default() };
    let mut report = TraceReport {
        rules: subject.origin.to_string(),
        node: subject
            .cluster
            .as_ref()
            .map(|cluster| cluster.node_name.to_string())
            .filter(|name| !name.is_empty()),
        journeys: Vec::new(),
        notes: Vec::new(),
    };
    let (mut has_receiver, mut notes) = (false, BTreeSet::new());
    for family in subject.families() {
        let Some(ruleset) = subject.rulesets.get(family) else { continue };
        *frontends.get_mut(family) = KnownFrontends::of(subject, family);
        let vantages = Vantages::of(subject, family);
        let view = FamilyView { subject, family, vantages: &vantages, frontends: frontends.get(family) };
        let vantage = match &from {
            Some(AskedSource::Vantage(vantage)) => Some(*vantage),
            Some(AskedSource::Address(ip, _)) if IpFamily::of(*ip) == family => {
                Some(vantages.vantage_of(*ip))
            }
            _ => None,
        };
        let n_before = report.journeys.len();
        let receivers = view.find_receivers(&to, vantage)?;
        has_receiver |= !receivers.is_empty();
        let labels = ChainLabels::of(subject, family);
        let book = RuleBook { family, ruleset, labels: &labels };
        let tracer = Tracer::new(vantages.traced_node(ruleset), TraceOptions::DETAILED);
        let tracing = FamilyTracing { subject, view: &view, book: &book, tracer: &tracer };
        for receiver in receivers {
            let asked = from.clone().unwrap_or(AskedSource::Vantage(usual_vantage(&receiver)));
            let found = sender::find_sender(subject, (family, &vantages), &asked, interface.as_ref())?;
            let Some(sender) = found else { continue };
            if from.is_none() {
                notes.insert(format!("--from is not given; shown: from {}", sender.name));
            }
            report.journeys.push(tracing.journey(&sender, receiver, question.state));
        }
        if report.journeys.len() > n_before
            && let Some(what) = &vantages.point(Vantage::Node).stands_for
        {
            notes.insert(format!(
                "{} stands for {what}: give the host's addresses with --host, or the Node with -f",
                vantages.point(Vantage::Node).source
            ));
        }
    }
    if report.journeys.len() > MAX_JOURNEYS {
        let n = report.journeys.len();
        let what = format!("--to: {:?} names {n} ports, more than {MAX_JOURNEYS}; name one", question.to);
        return Err(QuestionError::Malformed(what));
    }
    if report.journeys.is_empty() {
        return Err(nothing_found(subject, &frontends, (&to, &question.to), from.as_ref(), has_receiver));
    }
    report.notes = notes.into_iter().collect();
    Ok(report)
}

/// Where clients of a frontend usually are.
fn usual_vantage(receiver: &Receiver) -> Vantage {
    match receiver.frontend.as_ref().map(|known| known.kind) {
        None | Some(FrontendKind::ClusterIp) => Vantage::PodHere,
        Some(_) => Vantage::Outside,
    }
}

fn nothing_found(
    subject: &Subject,
    frontends: &PerFamily<KnownFrontends>,
    (to, to_text): (&AskedDestination, &str),
    from: Option<&AskedSource>,
    has_receiver: bool,
) -> QuestionError {
    let families: Vec<&str> = subject.families().map(IpFamily::as_str).collect();
    let families = families.join(" and ");
    if let (false, AskedDestination::Service(name, port, _)) = (has_receiver, to) {
        let frontends = [frontends.v4.clone(), frontends.v6.clone()];
        return receiver::no_receiver(subject, &frontends, name, port.as_ref());
    }
    let what = match (has_receiver, from) {
        (false, _) => format!("--to: {to_text:?} has no address of the family of the rules ({families})"),
        (true, _) => format!("--from and --to: no family has an address of both (rules of {families})"),
    };
    QuestionError::NotFound(what)
}

/// What is needed to trace packets of one family.
struct FamilyTracing<'a> {
    subject: &'a Subject,
    view: &'a FamilyView<'a>,
    book: &'a RuleBook<'a>,
    tracer: &'a Tracer<'a>,
}

impl FamilyTracing<'_> {
    fn journey(&self, sender: &Sender, receiver: Receiver, state: PacketState) -> Journey {
        let mut packet =
            Packet::new(sender.origin.clone(), sender.source, receiver.address, receiver.protocol);
        packet.state = state.states();
        let branches = self.tracer.trace(&packet, &RecentLists::default());
        let vantages = self.view.vantages;
        let node_address = vantages.point(Vantage::Node).source;
        let reply = ReplyFacts {
            packet: &packet,
            vantage: sender.vantage,
            node: vantages.traced_node(self.book.ruleset),
            here: self.subject.cluster.as_ref().map(|cluster| &*cluster.node_name).unwrap_or_default(),
            nodes: reply_text::nodes_of(self.subject),
        };
        let name = receiver.frontend.as_ref().map(|known| known.service_port_name());
        let traced = TracedPacket {
            subject: self.subject,
            book: self.book,
            packet: &packet,
            branches: &branches,
            node_address,
            service_port: name.as_deref(),
            reply: &reply,
        };
        let (path, ends) = traced.ends();
        let (left_out, of_objects) = match &receiver.frontend {
            Some(frontend) => {
                let (subject, family, vantage) = (self.subject, self.book.family, sender.vantage);
                ObjectsView { subject, family, frontend, vantage, ends: &ends }.left_out()
            }
            None => (Vec::new(), Vec::new()),
        };
        let notes = sender.notes.iter().cloned().chain(receiver.notes).chain(of_objects);
        let (family, protocol) = (self.book.family.to_string(), receiver.protocol.to_string());
        Journey {
            family,
            protocol,
            source: JourneySource {
                name: sender.name.clone(),
                address: sender.source.ip(),
                port: sender.source.port(),
                enters: sender.enters(),
                stands_for: sender.stands_for.clone(),
            },
            destination: JourneyDestination {
                name: receiver.name,
                frontend: receiver.frontend.map(|known| known.kind.to_string()),
                address: receiver.address,
                stands_for: receiver.stands_for,
            },
            summary: trace_summary::summary(&ends),
            path,
            ends,
            left_out,
            notes: notes.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
