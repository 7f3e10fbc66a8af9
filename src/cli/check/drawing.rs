//! Draws a check's report for people.

use crate::cli::output::{Plain, Screen, Style, styled};
use crate::inspect::findings::{
    CheckFinding, CheckReport, CheckResult, FamilyChecked, FindingSeverity, TrafficDifference,
};

/// Draws `report`.
pub fn draw(report: &CheckReport, screen: &mut Screen) {
    let name = styled(Style::Name, &report.node);
    screen.line(format!("Node {name}, {}", Plain(&report.rules)));
    report.families.iter().for_each(|checked| draw_family(checked, screen));
    if report.findings.iter().any(|finding| !(finding.desired.is_empty() && finding.in_force.is_empty())) {
        screen.line(styled(Style::Faint, "Rules: - should be in force and is not, + is in force"));
    }
    for finding in &report.findings {
        screen.gap();
        draw_finding(finding, screen);
    }
    if report.omitted > 0 {
        screen.gap();
        screen.line(format!("{} more findings", report.omitted));
    }
    draw_traffic(report, screen);
    for text in &report.unknown {
        screen.gap();
        paragraph(screen, 0, &format!("cannot tell: {text}"), Style::Warning);
    }
    screen.gap();
    screen.line(match report.result {
        CheckResult::Same => styled(Style::Good, "The rules are as the objects ask for."),
        CheckResult::Different => styled(Style::Bad, "The node is not as the objects ask for."),
        CheckResult::Unknown => {
            styled(Style::Warning, "Cannot tell whether the rules are as the objects ask for.")
        }
    });
}

fn draw_family(checked: &FamilyChecked, screen: &mut Screen) {
    let place = checked.backend.as_ref().map_or_else(String::new, |backend| format!("{backend}, "));
    let counted = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let chains = counted(checked.chains, "chain");
    let (result, style) = match checked.differing_chains {
        0 => ("none differs".to_owned(), Style::Good),
        1 => ("1 differs".to_owned(), Style::Bad),
        n => (format!("{n} differ"), Style::Bad),
    };
    let affected = match checked.affected_service_ports {
        0 => String::new(),
        n => format!("; {n} of {} affected", counted(checked.service_ports, "service port")),
    };
    let traced = match checked.packets {
        0 => String::new(),
        n => format!("; {} traced", counted(n, "packet")),
    };
    let head = format!("{} ({place}{} layout): ", checked.family, checked.layout);
    paragraph(screen, 0, &format!("{head}{chains}, {result}{affected}{traced}"), style);
}

fn draw_finding(finding: &CheckFinding, screen: &mut Screen) {
    let style = match finding.severity {
        FindingSeverity::Error => Style::Bad,
        FindingSeverity::Warning => Style::Warning,
        FindingSeverity::Notice => Style::Faint,
    };
    let place = [&finding.family, &finding.table, &finding.chain];
    let place: Vec<&str> = place.into_iter().flatten().map(String::as_str).collect();
    let place = if place.is_empty() { String::new() } else { format!("{}: ", place.join(" ")) };
    let head = format!("{}{place}{}", severity(finding.severity), finding.summary);
    paragraph(screen, 0, &head, style);
    for rule in &finding.desired {
        paragraph(screen, 2, &format!("- {rule}"), Style::Removed);
    }
    for rule in &finding.in_force {
        paragraph(screen, 2, &format!("+ {rule}"), Style::Added);
    }
    field(screen, "effect", &finding.effect);
    let named = finding.services.join(", ");
    match (finding.services.len(), finding.service_ports) {
        (_, 0) => {}
        (0, n) => field(screen, "Services", &format!("all {n} service ports")),
        (shown, n) if n > shown => field(screen, "Services", &format!("{named} and {} more", n - shown)),
        _ => field(screen, "Services", &named),
    }
    if !finding.next.is_empty() {
        field(screen, "next", &finding.next);
    }
}

fn severity(severity: FindingSeverity) -> String {
    format!("{severity}  ")
}

/// A label and a text, wrapped behind the label.
fn field(screen: &mut Screen, label: &str, text: &str) {
    const LABEL: usize = 10;
    let width = screen.width().map_or(usize::MAX, |width| width.saturating_sub(LABEL + 2).max(20));
    for (n, line) in wrapped(text, width).iter().enumerate() {
        let label = if n == 0 { label } else { "" };
        screen.line(format!("  {}{}", styled(Style::Faint, format!("{label:LABEL$}")), Plain(line)));
    }
}

/// A text in `style`, indented, wrapped, later lines two columns further in.
fn paragraph(screen: &mut Screen, indent: usize, text: &str, style: Style) {
    let width = screen.width().map_or(usize::MAX, |width| width.saturating_sub(indent + 2).max(20));
    for (n, line) in wrapped(text, width).iter().enumerate() {
        let indent = if n == 0 { indent } else { indent + 2 };
        screen.line(format!("{:indent$}{}", "", styled(style, line)));
    }
}

/// `text` in lines of at most `width` characters, broken at spaces; a word that is longer has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut n = 0;
    for word in text.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if n > 0 && n + length > width {
            lines.push(String::new());
            n = 0;
        }
        n += word.chars().count();
        lines.last_mut().expect("there is one").push_str(word);
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Packets that fare otherwise than they should, those with the same fate from several places once.
fn draw_traffic(report: &CheckReport, screen: &mut Screen) {
    if report.traffic.is_empty() {
        return;
    }
    screen.heading("Packets that fare otherwise than they should");
    let same = |a: &TrafficDifference, b: &TrafficDifference| {
        (&a.service_port, &a.to, &a.desired, &a.in_force) == (&b.service_port, &b.to, &b.desired, &b.in_force)
    };
    let mut groups: Vec<Vec<&TrafficDifference>> = Vec::new();
    for one in &report.traffic {
        match groups.iter_mut().find(|group| same(group[0], one)) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    for group in groups {
        let from: Vec<&str> = group.iter().map(|one| one.from.as_str()).collect();
        let first = group[0];
        let to = format!("{}, to {} from {}", first.service_port, first.to, from.join(", "));
        paragraph(screen, 2, &to, Style::Name);
        field(screen, "  should", &first.desired);
        field(screen, "  does", &first.in_force);
    }
    if report.omitted_traffic > 0 {
        screen.line(format!("  and {} more of the packets traced", report.omitted_traffic));
    }
}
