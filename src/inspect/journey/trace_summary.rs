//! The answer in one sentence.

use super::trace_report::{
    EndKind, EndVerdict, EndpointShare, JourneyEnd, MasqueradeAnswer, MasqueradeReason, NamedRule,
    UndecidedNote, VerdictReason,
};

/// The sentence for `ends`, without a subject.
pub(super) fn summary(ends: &[JourneyEnd]) -> String {
    let sentence = match ends {
        [only] => only.summary.clone(),
        ends => {
            let part = |one: &JourneyEnd| format!("in {} of all cases {}", one.share.text, one.summary);
            ends.iter().map(part).collect::<Vec<_>>().join("; ")
        }
    };
    let mut undecided: Vec<&UndecidedNote> = ends.iter().flat_map(|end| &end.undecided).collect();
    undecided.dedup_by(|a, b| a.rule == b.rule);
    let mut effects: Vec<&str> = undecided
        .iter()
        .flat_map(|note| &note.may)
        .map(|may| may.split_once(" at ").map_or(may.as_str(), |(effect, _)| effect))
        .collect();
    effects.sort_unstable();
    effects.dedup();
    let effects = effects.join(" or ");
    match &undecided[..] {
        [] => sentence,
        [only] => format!("{sentence}; unknown match: {} may {effects}", place(&only.rule)),
        all => format!("{sentence}; unknown matches: {} rules may {effects}", all.len()),
    }
}

fn place(rule: &NamedRule) -> String {
    match rule.rule {
        Some(number) => format!("{} {} rule {number}", rule.table, rule.chain),
        None => format!("the policy of {} {}", rule.table, rule.chain),
    }
}

/// What becomes of a packet with this verdict, sent to `endpoints`.
pub(super) fn end_summary(
    verdict: &EndVerdict,
    masquerade: Option<&MasqueradeAnswer>,
    endpoints: &[EndpointShare],
) -> String {
    let masqueraded = match masquerade {
        None => "",
        Some(answer) => match (answer.is_masqueraded, answer.code) {
            (true, MasqueradeReason::Hairpin) => ", masqueraded (hairpin)",
            (true, _) => ", masqueraded",
            (false, _) => ", not masqueraded",
        },
    };
    let reason = &verdict.reason;
    match (verdict.kind, verdict.code) {
        (EndKind::Rejected, _) => format!("is rejected: {reason}"),
        (EndKind::Dropped, _) => format!("is dropped: {reason}"),
        (EndKind::Unknown, _) => format!("cannot be told: {reason}"),
        (EndKind::Local, VerdictReason::NoService) => format!("goes to a program of the node: {reason}"),
        (EndKind::Forwarded, VerdictReason::NoService) => format!("goes on unchanged{masqueraded}: {reason}"),
        _ => match endpoints {
            [only] => format!("goes to {}{masqueraded}", only.address),
            endpoints => format!("goes to one of {} endpoints{masqueraded}", endpoints.len()),
        },
    }
}
