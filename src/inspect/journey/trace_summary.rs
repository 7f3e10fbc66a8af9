//! The answer in one sentence.

use super::trace_report::{EndKind, JourneyEnd, MasqueradeReason, VerdictReason};

/// The sentence for `ends`, without a subject.
pub(super) fn summary(ends: &[JourneyEnd]) -> String {
    let mut sentence = match ends {
        [only] => end(only),
        ends => {
            let part = |one: &JourneyEnd| format!("in {} of all cases {}", one.share.text, end(one));
            let parts: Vec<String> = ends.iter().map(part).collect();
            parts.join("; ")
        }
    };
    let mut effects: Vec<&str> =
        ends.iter().flat_map(|end| &end.undecided).flat_map(|rule| &rule.may).map(String::as_str).collect();
    effects.sort_unstable();
    effects.dedup();
    let n_undecided = ends.iter().map(|end| end.undecided.len()).max().unwrap_or_default();
    if n_undecided > 0 {
        let rules = if n_undecided == 1 { "a rule" } else { "rules" };
        sentence.push_str(&format!("; unless {rules} with an unknown match may {}", effects.join(", ")));
    }
    sentence
}

fn end(end: &JourneyEnd) -> String {
    let masqueraded = match &end.masquerade {
        None => "",
        Some(answer) => match (answer.is_masqueraded, answer.code) {
            (true, MasqueradeReason::Hairpin) => ", masqueraded (hairpin)",
            (true, _) => ", masqueraded",
            (false, _) => ", not masqueraded",
        },
    };
    match (end.verdict.kind, end.verdict.code) {
        (EndKind::Rejected, _) => format!("is rejected: {}", end.verdict.reason),
        (EndKind::Dropped, _) => format!("is dropped: {}", end.verdict.reason),
        (EndKind::Unknown, _) => format!("cannot be told: {}", end.verdict.reason),
        (_, VerdictReason::NoService) if end.verdict.kind == EndKind::Local => {
            format!("goes to a program of the node: {}", end.verdict.reason)
        }
        (_, VerdictReason::NoService) => format!("goes on unchanged: {}{masqueraded}", end.verdict.reason),
        _ => match &end.endpoints[..] {
            [only] => format!("goes to {}{masqueraded}", only.address),
            endpoints => format!("goes to one of {} endpoints{masqueraded}", endpoints.len()),
        },
    }
}
