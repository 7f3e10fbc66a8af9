//! Draws the answer of `trace`: first the answer, then the way, then what was left out.

use crate::cli::output::{Plain, Screen, Style, styled};
use crate::inspect::journey::{
    ChainVisit, EndKind, EndpointShare, Journey, JourneyEnd, LeftOutEndpoint, NamedRule, PathPart,
    TraceReport, UndecidedNote,
};

/// Longer lists are shortened to [`N_SHOWN`] entries; JSON has all.
const MAX_LISTED: usize = 12;
/// Entries of a shortened list.
const N_SHOWN: usize = 8;

/// Columns of the text behind a rule's number.
const TEXT: usize = 8;

/// Columns of the heads of facts about an end.
const FACTS: usize = 9;

/// Draws `report`.
pub fn draw(report: &TraceReport, screen: &mut Screen) {
    if let [journey] = &report.journeys[..] {
        draw_answer(journey, screen);
        draw_way(journey, screen);
    } else {
        report.journeys.iter().for_each(|journey| draw_answer(journey, screen));
        for journey in &report.journeys {
            screen.heading(headline(journey));
            draw_way(journey, screen);
        }
    }
    let node = report.node.iter().map(|node| format!(" of node {node}"));
    let mut notes = vec![format!("{}{}", report.rules, node.collect::<String>())];
    notes.extend(report.notes.iter().cloned());
    screen.gap();
    notes.iter().for_each(|note| screen.paragraph((0, 2), Some(Style::Faint), note));
}

fn headline(journey: &Journey) -> String {
    let (from, to) = (&journey.source, &journey.destination);
    let address = format!("{}/{}", to.address, journey.protocol);
    let to = match (&to.name, &to.frontend) {
        (Some(name), Some(frontend)) => format!("{name} ({address}, {frontend})"),
        (Some(name), None) => format!("{name} ({address})"),
        (None, _) => address,
    };
    format!("{} ({}) -> {to}", from.name, from.address)
}

fn draw_answer(journey: &Journey, screen: &mut Screen) {
    screen.paragraph((0, 2), Some(Style::Name), headline(journey));
    let style = match worst(&journey.ends) {
        EndKind::Forwarded | EndKind::Local if journey.ends.iter().all(|end| end.undecided.is_empty()) => {
            Style::Good
        }
        EndKind::Forwarded | EndKind::Local | EndKind::Unknown => Style::Warning,
        EndKind::Rejected | EndKind::Dropped => Style::Bad,
    };
    screen.paragraph((2, 2), Some(style), &journey.summary);
}

fn worst(ends: &[JourneyEnd]) -> EndKind {
    ends.iter().map(|end| end.verdict.kind).max().unwrap_or(EndKind::Unknown)
}

fn draw_way(journey: &Journey, screen: &mut Screen) {
    screen.gap();
    let mut way = DrawnWay::default();
    let stands_for = journey
        .source
        .stands_for
        .iter()
        .map(|what| format!("; {} stands for {what}", journey.source.address));
    let enters = format!("{}{}", journey.source.enters, stands_for.collect::<String>());
    screen.paragraph((0, 2), None, enters);
    journey.path.iter().for_each(|part| way.draw(part, screen));
    let n_ends = journey.ends.len();
    for end in &journey.ends {
        if n_ends > 1 {
            let what = format!("In {} of all cases: {}", end.share.text, end.summary);
            screen.gap();
            screen.paragraph((0, 2), Some(Style::Heading), what);
        }
        let is_choice = end.endpoints.len() > 1 || n_ends > 1;
        if is_choice {
            draw_endpoints(&end.endpoints, screen);
        }
        let mut way = DrawnWay { addresses: way.addresses.filter(|_| !is_choice), hook: way.hook.clone() };
        match end.path_of {
            Some(address) if !end.path.is_empty() => {
                screen.paragraph(
                    (2, 4),
                    Some(Style::Faint),
                    format_args!("the way to {address}; others differ:"),
                );
            }
            _ => {}
        }
        end.path.iter().for_each(|part| way.draw(part, screen));
        draw_end(end, screen);
    }
    draw_left_out(&journey.left_out, screen);
    if !journey.notes.is_empty() {
        screen.gap();
        journey.notes.iter().for_each(|note| screen.paragraph((0, 2), None, note));
    }
}

/// The drawn part of a way.
#[derive(Default)]
struct DrawnWay {
    hook: String,
    /// Source and destination at the last visit.
    addresses: Option<(std::net::SocketAddr, std::net::SocketAddr)>,
}

impl DrawnWay {
    fn draw(&mut self, part: &PathPart, screen: &mut Screen) {
        match part {
            PathPart::Routing(what) => screen.paragraph((0, 2), None, format_args!("routing: {what}")),
            // Nothing to see in an empty built-in chain.
            PathPart::Chain(visit)
                if visit.rules_in_chain == 0 && visit.policy.as_deref() == Some("ACCEPT") => {}
            PathPart::Chain(visit) => self.draw_visit(visit, screen),
        }
    }

    fn draw_visit(&mut self, visit: &ChainVisit, screen: &mut Screen) {
        if let Some((source, destination)) = self.addresses {
            for (what, before, now) in
                [("source", source, visit.source), ("destination", destination, visit.destination)]
            {
                if before != now {
                    screen.paragraph(
                        (2, 4),
                        Some(Style::Warning),
                        format_args!("{what} {before} becomes {now}"),
                    );
                }
            }
        }
        self.addresses = Some((visit.source, visit.destination));
        if self.hook != visit.hook {
            self.hook.clone_from(&visit.hook);
            screen.line(styled(Style::Heading, &visit.hook));
        }
        let name = format!("{} {}", visit.table, visit.chain);
        let label =
            visit.service_port.as_ref().map(|port| format!(" ({port}: {})", visit.role)).unwrap_or_default();
        let policy = visit.policy.as_ref().map(|policy| format!(", policy {policy}")).unwrap_or_default();
        if visit.matched.is_empty() && !visit.chooses {
            let what = format!("{name}{label}: {}{policy}", unmatched(visit));
            screen.paragraph((2, 4), Some(Style::Faint), what);
            return draw_undecided_numbers(&visit.undecided, screen);
        }
        let up_to = if visit.chooses { "up to " } else { "" };
        let n = visit.rules_in_chain;
        let tested = format!("{up_to}{} of {n} {} tested", visit.rules_tested, rules(n));
        screen.paragraph((2, 4), None, format_args!("{name}{label}: {tested}{policy}"));
        let mut undecided = &visit.undecided[..];
        for rule in &visit.matched {
            let n_before = undecided.iter().take_while(|number| **number < rule.rule).count();
            draw_undecided_numbers(&undecided[..n_before], screen);
            undecided = &undecided[n_before..];
            screen.paragraph((4, TEXT), None, format_args!("{:<3} {}", rule.rule, rule.effect));
            screen.paragraph((TEXT, TEXT), Some(Style::Faint), &rule.text);
        }
        draw_undecided_numbers(undecided, screen);
    }
}

fn draw_undecided_numbers(numbers: &[usize], screen: &mut Screen) {
    for number in numbers {
        screen.paragraph(
            (4, TEXT),
            Some(Style::Warning),
            format_args!("{number:<3} unknown match, see below"),
        );
    }
}

fn rules(n: usize) -> &'static str {
    if n == 1 { "rule" } else { "rules" }
}

fn unmatched(visit: &ChainVisit) -> String {
    match (visit.rules_tested, visit.rules_in_chain) {
        (_, 0) => "no rules".to_owned(),
        (n, all) if n == all => {
            let known = if visit.undecided.is_empty() { "" } else { " for certain" };
            format!("none of {all} {} matches{known}", rules(all))
        }
        (n, all) => format!("{n} of {all} {} tested", rules(all)),
    }
}

fn draw_endpoints(endpoints: &[EndpointShare], screen: &mut Screen) {
    if endpoints.is_empty() {
        return;
    }
    let (listed, n_more) = shortened(endpoints);
    let has = |is: fn(&EndpointShare) -> bool| listed.iter().any(is);
    let (has_node, has_pod) = (has(|one| one.node.is_some()), has(|one| one.pod.is_some()));
    let mut heads = vec!["ENDPOINT", "SHARE"];
    heads.extend(has_node.then_some("NODE"));
    heads.extend(has_pod.then_some("POD"));
    heads.push("CHOSEN BY");
    let rows = listed.iter().map(|endpoint| {
        let mut row = vec![styled(Style::Name, endpoint.address), endpoint.share.text.clone()];
        row.extend(has_node.then(|| cell(endpoint.node.as_deref())));
        row.extend(has_pod.then(|| cell(endpoint.pod.as_deref())));
        row.push(Plain(choosing_rules(&endpoint.rules)).to_string());
        row
    });
    screen.table(4, &heads, rows.collect());
    draw_more(n_more, screen);
}

/// `<chain> rule <n>, ...` in place of `<table> <chain> rule <n>`, chain by chain.
fn choosing_rules(rules: &[String]) -> String {
    let mut shown: Vec<(&str, Vec<&str>)> = Vec::new();
    for rule in rules {
        let Some((place, number)) = rule.rsplit_once(" rule ") else { continue };
        let chain = place.split_once(' ').map_or(place, |(_, chain)| chain);
        match shown.last_mut() {
            Some((last, numbers)) if *last == chain => numbers.push(number),
            _ => shown.push((chain, vec![number])),
        }
    }
    let one = |(chain, numbers): (&str, Vec<&str>)| {
        format!("{chain} {} {}", self::rules(numbers.len()), numbers.join(", "))
    };
    shown.into_iter().map(one).collect::<Vec<_>>().join(", ")
}

fn draw_left_out(endpoints: &[LeftOutEndpoint], screen: &mut Screen) {
    if endpoints.is_empty() {
        return;
    }
    screen.heading("Not used");
    let (listed, n_more) = shortened(endpoints);
    let rows = listed.iter().map(|endpoint| {
        let address = styled(Style::Name, endpoint.address);
        vec![address, cell(endpoint.node.as_deref()), Plain(&endpoint.reason).to_string()]
    });
    screen.table(2, &["ENDPOINT", "NODE", "REASON"], rows.collect());
    draw_more(n_more, screen);
}

fn cell(text: Option<&str>) -> String {
    text.map_or("-".to_owned(), |text| Plain(text).to_string())
}

fn draw_more(n_more: usize, screen: &mut Screen) {
    if n_more > 0 {
        screen.line(format_args!("    ... and {n_more} more (-o json shows all)"));
    }
}

fn shortened<T>(all: &[T]) -> (&[T], usize) {
    if all.len() <= MAX_LISTED { (all, 0) } else { (&all[..N_SHOWN], all.len() - N_SHOWN) }
}

fn draw_end(end: &JourneyEnd, screen: &mut Screen) {
    screen.gap();
    let (style, word) = match end.verdict.kind {
        EndKind::Forwarded => (Style::Good, "forwarded"),
        EndKind::Local => (Style::Good, "to a program of the node"),
        EndKind::Rejected => (Style::Bad, "rejected"),
        EndKind::Dropped => (Style::Bad, "dropped"),
        EndKind::Unknown => (Style::Warning, "cannot be told"),
    };
    let reason = match end.endpoints.len() {
        0 | 1 => &end.verdict.reason,
        n => &format!("one of {n} endpoints"),
    };
    let mut row = |head: &str, style: Option<Style>, text: &str| {
        screen.paragraph((0, FACTS), style, format_args!("{head:<FACTS$}{text}"));
    };
    row("Verdict", Some(style), &format!("{word}: {reason}"));
    if let Some(rule) = &end.verdict.rule {
        row("By", None, &rule_text(rule));
    }
    if let Some(answer) = &end.masquerade {
        let word = if answer.is_masqueraded { "masqueraded" } else { "not masqueraded" };
        let sources: Vec<String> = answer.sources.iter().map(ToString::to_string).collect();
        row("Source", None, &format!("{}, {word}: {}", sources.join(" or "), answer.reason));
    }
    row("Reply", None, &end.reply);
    row("Rules", None, &format!("{} tested", end.rules_tested));
    end.undecided.iter().for_each(|note| draw_undecided(note, screen));
}

fn draw_undecided(note: &UndecidedNote, screen: &mut Screen) {
    let UndecidedNote { rule, why, may } = note;
    let number = rule.rule.map(|number| format!(" rule {number}")).unwrap_or_default();
    let place = format!("{} {}{number}", rule.table, rule.chain);
    let what = format!("Unknown match: {place} may {}: {}", may.join(" or "), why.join(", "));
    screen.paragraph((0, 2), Some(Style::Warning), what);
    screen.paragraph((TEXT, TEXT), Some(Style::Faint), &rule.text);
}

fn rule_text(rule: &NamedRule) -> String {
    let NamedRule { table, chain, rule, text } = rule;
    match rule {
        Some(number) => format!("{table} {chain} rule {number}: {text}"),
        None => format!("{table} {chain} policy {text}"),
    }
}
