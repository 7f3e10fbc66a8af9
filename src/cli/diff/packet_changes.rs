//! What changes for packets, in sentences by Service.

use std::collections::BTreeMap;

use super::listed;
use crate::cli::output::{Plain, Screen, Style, styled};
use crate::inspect::comparison::{PacketDiff, ShareShift, TrafficChange, TrafficShift, VerdictShare};

/// Draws what changes for each Service, and what the comparison rests on.
pub(super) fn draw(screen: &mut Screen, packets: &PacketDiff) {
    for service in &packets.services {
        screen.gap();
        let name = service.service_port.as_deref().unwrap_or("Packets to no Service");
        screen.line(styled(Style::Name, name));
        service.changes.iter().for_each(|change| draw_change(screen, change));
    }
    if packets.n_undecided > 0 {
        screen.gap();
        screen.line(styled(
            Style::Warning,
            format_args!(
                "For {} packets, both sides have a rule that cannot be decided:",
                packets.n_undecided
            ),
        ));
        packets.undecided_rules.iter().for_each(|rule| screen.line(format_args!("  {}", Plain(rule))));
    }
    if packets.n_sampled_destinations > 0 {
        screen.gap();
        let destinations = match packets.n_sampled_destinations {
            1 => "1 destination".to_owned(),
            n => format!("{n} destinations"),
        };
        screen.line(styled(
            Style::Warning,
            format_args!("To {destinations}: a sample of the sources that rules name, 128 for each"),
        ));
    }
    if !packets.stand_ins.is_empty() {
        screen.gap();
        screen.line(styled(Style::Faint, "Sources that stand for unknown addresses:"));
        for stand_in in &packets.stand_ins {
            screen.line(styled(Style::Faint, format_args!("  {stand_in}")));
        }
    }
}

fn draw_change(screen: &mut Screen, change: &TrafficChange) {
    for shift in &change.shifts {
        for (style, sentence) in sentences(shift) {
            screen.line(format_args!("  {}", styled(style, sentence)));
        }
    }
    for (word, names, n_more) in
        [("to", &change.to, change.n_more_to), ("from", &change.from, change.n_more_from)]
    {
        let text = Plain(listed(names, names.len() + n_more)).to_string();
        let room = screen.width().unwrap_or(usize::MAX);
        for (n, line) in wrapped(&text, room.saturating_sub(11)).iter().enumerate() {
            screen.line(format_args!("      {:<4} {line}", if n == 0 { word } else { "" }));
        }
    }
}

/// `text` in lines of at most `width`, broken behind commas.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let parts: Vec<&str> = text.split(", ").collect();
    for (n, part) in parts.iter().enumerate() {
        let comma = if n + 1 < parts.len() { "," } else { "" };
        match lines.last_mut() {
            Some(line) if line.len() + 1 + part.len() + comma.len() <= width => {
                line.push(' ');
                line.push_str(part);
                line.push_str(comma);
            }
            _ => lines.push(format!("{part}{comma}")),
        }
    }
    lines
}

fn sentences(shift: &TrafficShift) -> Vec<(Style, String)> {
    let bad = |text: String| vec![(Style::Bad, text)];
    match shift {
        TrafficShift::Endpoints { endpoints } => endpoint_sentences(endpoints),
        TrafficShift::Verdict { before, after } => {
            let is_good = after.iter().all(|share| ["answered", "passed"].contains(&&*share.verdict));
            let style = if is_good { Style::Good } else { Style::Bad };
            let mut lines = vec![(style, format!("now {} (before: {})", verdicts(after), verdicts(before)))];
            for (side, shares) in [("before", before), ("now", after)] {
                for share in shares {
                    lines.extend(share.rule.as_ref().map(|rule| {
                        let verdict = verdict_text(&share.verdict);
                        (Style::Faint, format!("  {side} {verdict} by {rule}"))
                    }));
                }
            }
            lines
        }
        TrafficShift::Masquerade { before, after } => vec![(
            Style::Warning,
            match (is_zero(*before), is_zero(*after)) {
                (true, false) if is_one(*after) => {
                    "now masqueraded: endpoints see an address of the node".to_owned()
                }
                (false, true) if is_one(*before) => {
                    "no longer masqueraded: endpoints see the client".to_owned()
                }
                _ => format!("masqueraded: {} -> {}", share_text(*before), share_text(*after)),
            },
        )],
        TrafficShift::Affinity { before, after } => vec![(
            Style::Warning,
            match (is_zero(*before), is_zero(*after)) {
                (true, false) => "clients now stay with their endpoint (session affinity)".to_owned(),
                (false, true) => "clients no longer stay with their endpoint (session affinity)".to_owned(),
                _ => format!(
                    "clients that stay with their endpoint: {} -> {}",
                    share_text(*before),
                    share_text(*after)
                ),
            },
        )],
        TrafficShift::Undecided { before, after } => {
            let only = |a: &[String], b: &[String]| {
                a.iter().filter(|rule| !b.contains(rule)).cloned().collect::<Vec<_>>()
            };
            let (gone, new) = (only(before, after), only(after, before));
            let gone = gone
                .into_iter()
                .map(|rule| format!("no longer depends on a rule that cannot be decided: {rule}"));
            let new =
                new.into_iter().map(|rule| format!("now depends on a rule that cannot be decided: {rule}"));
            gone.chain(new).map(|text| (Style::Warning, text)).collect()
        }
        TrafficShift::Packet { before, after } => {
            bad(format!("now leaves as {} (before: {})", before_or_none(after), before_or_none(before)))
        }
    }
}

fn before_or_none(texts: &[String]) -> String {
    if texts.is_empty() { "nothing".to_owned() } else { texts.join(" or ") }
}

/// One sentence for all endpoints whose share changes alike.
fn endpoint_sentences(endpoints: &[ShareShift]) -> Vec<(Style, String)> {
    let mut groups: BTreeMap<(u8, String, String), Vec<String>> = BTreeMap::new();
    for ShareShift { endpoint, before, after } in endpoints {
        let kind = match (is_zero(*before), is_zero(*after)) {
            (false, true) => 0,
            (true, false) => 1,
            _ => 2,
        };
        groups.entry((kind, share_text(*before), share_text(*after))).or_default().push(endpoint.clone());
    }
    let sentence = |((kind, before, after), names): ((u8, String, String), Vec<String>)| {
        let each = if names.len() == 1 { "" } else { " each" };
        let shares = format!("{before} -> {after}{each}");
        let names =
            format!("endpoint{} {}", if names.len() == 1 { "" } else { "s" }, listed(&names, names.len()));
        match kind {
            0 => (Style::Removed, format!("{names} no longer used ({shares})")),
            1 => (Style::Added, format!("{names} now used ({shares})")),
            _ => (Style::Faint, format!("{names}: other share ({shares})")),
        }
    };
    groups.into_iter().map(sentence).collect()
}

/// `dropped`, or `1/3 dropped, 2/3 answered`
fn verdicts(shares: &[VerdictShare]) -> String {
    match shares {
        [only] => verdict_text(&only.verdict).to_owned(),
        all => {
            let text = |share: &VerdictShare| {
                format!("{} {}", share_text(share.share), verdict_text(&share.verdict))
            };
            all.iter().map(text).collect::<Vec<_>>().join(", ")
        }
    }
}

fn verdict_text(verdict: &str) -> &str {
    match verdict {
        "answered" => "answered",
        "passed" => "passes untranslated",
        other => other,
    }
}

fn is_zero(share: f64) -> bool {
    share < 1e-8
}

fn is_one(share: f64) -> bool {
    share > 1.0 - 1e-8
}

/// `1/3` if it is a simple fraction, else a percentage.
fn share_text(share: f64) -> String {
    /// Beyond the kernel's rounding of probabilities, and far below the distance of such fractions.
    const NEAR: f64 = 5e-8;
    for parts in 1..=1_000u32 {
        let n = (share * f64::from(parts)).round();
        if (share - n / f64::from(parts)).abs() < NEAR {
            return if parts == 1 { format!("{n}") } else { format!("{n}/{parts}") };
        }
    }
    format!("{:.4} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_fractions_where_they_are_simple() {
        let third = f64::from(715_827_883u32) / f64::from(1u32 << 31);
        for (share, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (third, "1/3"),
            (0.25, "1/4"),
            (0.001, "1/1000"),
            (0.123_456, "12.3456 %"),
        ] {
            assert_eq!(share_text(share), text);
        }
    }

    #[test]
    fn lists_are_wrapped_behind_commas() {
        assert_eq!(wrapped("aaa, bbb, ccc", 9), ["aaa, bbb,", "ccc"]);
        assert_eq!(wrapped("aaaaaaaaaaaa", 8), ["aaaaaaaaaaaa"]);
    }
}
