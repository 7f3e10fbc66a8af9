//! The state of an agent as text for people.

use crate::cli::output::{Plain, Screen, Style, styled};
use crate::inspect::status::{
    DriftState, FamilyState, KeptRestore, ObjectProblem, RestoreReport, RestoreSummary, StatusReport,
    SyncRecord,
};

/// How many syncs of a family are shown.
const SYNCS_SHOWN: usize = 5;

/// Draws the state.
pub(super) fn status(screen: &mut Screen, report: &StatusReport) {
    let StatusReport { release, replaces, node, time, source, .. } = report;
    screen.line(format_args!(
        "Chainsmith {} on node {}, up {}; in place of kube-proxy {}",
        Plain(release),
        styled(Style::Name, node),
        duration(report.uptime_seconds),
        Plain(replaces)
    ));
    screen.line(format_args!("{}; objects from: {}", Plain(time), Plain(source)));
    verdict(screen, report);
    objects(screen, report);
    report.families.iter().for_each(|state| family(screen, state));
    if !report.settings.is_empty() {
        screen.heading("Settings that differ from the defaults");
        let row = |setting: &crate::inspect::status::SettingInForce| {
            [&setting.path, &setting.value.to_string(), &setting.set_by]
                .map(|text| Plain(text).to_string())
                .to_vec()
        };
        screen.table(2, &["SETTING", "VALUE", "SET BY"], report.settings.iter().map(row).collect());
    }
    problems(screen, report);
}

/// What a person has to look at, in one place.
fn verdict(screen: &mut Screen, report: &StatusReport) {
    let mut bad = Vec::new();
    for state in &report.families {
        let family = family_name(state);
        match (&state.last_success_seconds, state.syncs.first()) {
            (None, None) => bad.push(format!("{family}: no sync yet; the first lists are not complete")),
            (None, Some(_)) => bad.push(format!("{family}: no sync has succeeded yet")),
            (Some(at), _) if state.n_failures > 0 => bad.push(format!(
                "{family}: {} since the last success {} ago",
                count(state.n_failures as usize, "failed sync"),
                duration(*at)
            )),
            _ => {}
        }
        if state.n_quarantined > 0 {
            let n = count(state.n_quarantined, "service port");
            bad.push(format!("{family}: {n} quarantined: the kernel rejects the rules"));
        }
    }
    for watch in report.watches.iter().filter(|watch| watch.is_stale) {
        bad.push(format!("no watch of {}s for {}", watch.kind, duration(watch.stale_seconds)));
    }
    let warnings = report.findings.iter().filter(|finding| finding.is_warning);
    bad.extend(warnings.map(|finding| finding.message.clone()));
    if bad.is_empty() {
        screen.line(styled(Style::Good, "all rules are in force"));
    }
    bad.iter().for_each(|line| screen.line(styled(Style::Bad, line)));
}

fn objects(screen: &mut Screen, report: &StatusReport) {
    screen.heading("Cluster");
    let objects = &report.objects;
    let mut rows = vec![row(
        "objects",
        format!(
            "{}, {}, {}",
            count(objects.services, "Service"),
            count(objects.endpoint_slices, "EndpointSlice"),
            if objects.has_node { "the Node" } else { "no Node" }
        ),
    )];
    if !report.watches.is_empty() {
        let ages = report.watches.iter().map(|watch| match watch.stale_seconds {
            seconds if seconds > 0.0 => format!("{} closed for {}", watch.kind, duration(seconds)),
            _ => format!("{} open", watch.kind),
        });
        rows.push(row("watches", ages.collect::<Vec<_>>().join(", ")));
    }
    let pending = &report.pending;
    rows.push(row(
        "pending changes",
        match (pending.services, pending.endpoint_slices) {
            (0, 0) => "none".to_owned(),
            (services, slices) => format!("{services} of Services, {slices} of EndpointSlices"),
        },
    ));
    // Warnings stand at the top.
    let notes = report.findings.iter().filter(|finding| !finding.is_warning);
    rows.extend(notes.map(|finding| row("this node", Plain(&finding.message).to_string())));
    screen.table(2, &[], rows);
}

fn family(screen: &mut Screen, state: &FamilyState) {
    let layout =
        state.layout.as_deref().map_or("no rules yet".to_owned(), |layout| format!("layout {layout}"));
    let backend =
        if state.backend.is_empty() { String::new() } else { format!("back-end {}, ", state.backend) };
    screen.heading(format_args!("{}: {backend}{layout}", family_name(state)));
    let mut rows = Vec::new();
    if state.layout.is_some() {
        rows.extend(in_force(state));
    }
    rows.push(row("kernel's tables", drift(state.drift.as_ref())));
    if let Some(read) = &state.last_read {
        let reason = Plain(words(&read.reason)).to_string();
        rows.push(row("last read", format!("{} ago, because: {reason}", duration(read.seconds_ago))));
    }
    if let Some(seconds) = state.syncing_seconds {
        rows.push(row("syncing", format!("for {}", duration(seconds))));
    }
    if let Some(restore) = &state.last_restore {
        // The failed one has a row of its own.
        let shown = RestoreSummary { error: None, ..restore.clone() };
        let failed = if restore.error.is_some() { ", failed" } else { "" };
        rows.push(row("last restore", format!("{}{failed}", summary(&shown))));
    }
    if let Some(restore) = &state.failed_restore {
        let hint = "chainsmith status --restore failed prints it";
        rows.push(row("last failed restore", format!("{} ({hint})", summary(restore))));
    }
    screen.table(2, &[], rows);
    syncs(screen, state);
    if !state.quarantined.is_empty() {
        quarantined(screen, state);
    }
}

/// Rows about the rules in force.
fn in_force(state: &FamilyState) -> Vec<Vec<String>> {
    let counts = &state.in_force;
    let objects = [count(counts.service_ports, "service port"), count(counts.endpoints, "endpoint")];
    let rules = format!("{} in nat, {} in filter", count(counts.nat_rules, "rule"), counts.filter_rules);
    let mut rows = vec![
        row("in force", objects.join(", ")),
        row("", format!("{rules}, {}", count(counts.chains, "chain"))),
    ];
    let dropped = counts.dropped_internal + counts.dropped_external;
    if dropped > 0 {
        let n = count(dropped, "service port");
        rows.push(row("dropped", format!("{n} with traffic policy Local and no endpoint on this node")));
    }
    if counts.overlaps > 0 {
        let n = count(counts.overlaps, "entry");
        rows.push(row("overlaps", format!("{n} left out: another Service has the address and port")));
    }
    if state.affinity_lists_full > 0 {
        let n = count(state.affinity_lists_full, "endpoint");
        rows.push(row("affinity lists full", format!("{n}; the oldest clients lose affinity")));
    }
    rows
}

/// How long a sync spent in a stage, in seconds.
type StageTime = fn(&SyncRecord) -> f64;

/// The stages of a sync, in their order.
const STAGES: [(&str, StageTime); 5] = [
    ("READ", |sync| sync.stages.read),
    ("COMPILE", |sync| sync.stages.compile),
    ("PLAN", |sync| sync.stages.plan),
    ("LOCK", |sync| sync.stages.lock_wait),
    ("RESTORE", |sync| sync.stages.restore),
];

fn syncs(screen: &mut Screen, state: &FamilyState) {
    let shown = &state.syncs[..state.syncs.len().min(SYNCS_SHOWN)];
    if shown.is_empty() {
        return;
    }
    screen.gap();
    screen.line(format_args!("  Last {} of {}", count(shown.len(), "sync"), state.n_syncs));
    // A stage that took no time in any of them has no column.
    let stages: Vec<_> =
        STAGES.iter().filter(|(_, seconds)| shown.iter().any(|sync| seconds(sync) > 0.0)).collect();
    let heads: Vec<&str> = ["AGO", "TOOK"]
        .into_iter()
        .chain(stages.iter().map(|(head, _)| *head))
        .chain(["RULES", "RESULT"])
        .collect();
    let cells = |sync: &SyncRecord| {
        let times = stages.iter().map(|(_, seconds)| match seconds(sync) {
            seconds if seconds > 0.0 => duration(seconds),
            _ => "-".to_owned(),
        });
        let begin = [rounded(sync.seconds_ago), duration(sync.seconds)];
        begin.into_iter().chain(times).chain([sync.sent.rules.to_string(), result(sync)]).collect()
    };
    screen.table(2, &heads, shown.iter().map(cells).collect());
    let details = shown.iter().filter_map(|sync| {
        let detail = match (&sync.error, &sync.drift) {
            (Some(error), _) => styled(Style::Bad, error),
            (None, Some(drift)) => format!("changed by another process: {}", Plain(drift)),
            (None, None) => return None,
        };
        Some(vec![format!("{} ago", rounded(sync.seconds_ago)), detail])
    });
    let details: Vec<_> = details.collect();
    if !details.is_empty() {
        screen.table(2, &[], details);
    }
}

/// How a sync ended, and of what.
fn result(sync: &SyncRecord) -> String {
    let scope = match (sync.is_full, &sync.services[..]) {
        (true, _) => "all Services".to_owned(),
        (false, [only]) if sync.n_services == 1 => Plain(only).to_string(),
        (false, _) => count(sync.n_services, "Service"),
    };
    let outcome = match (&sync.error, &sync.drift) {
        (Some(_), _) => styled(Style::Bad, "failed"),
        (None, Some(_)) => styled(Style::Warning, "repaired"),
        (None, None) if sync.n_failed_restores > 0 => styled(Style::Warning, "ok at last"),
        (None, None) => styled(Style::Good, "ok"),
    };
    format!("{outcome}: {scope}")
}

fn quarantined(screen: &mut Screen, state: &FamilyState) {
    screen.gap();
    let (n, shown) = (state.n_quarantined, state.quarantined.len());
    let more = if n > shown { format!(", the first {shown}") } else { String::new() };
    screen.line(format_args!(
        "  Quarantined: {}{more}; tried again when the Service changes, and at each audit",
        count(n, "service port")
    ));
    for port in &state.quarantined {
        screen.line(format_args!(
            "    {} {}",
            styled(Style::Name, &port.service_port),
            Plain(&port.protocol)
        ));
        if let Some(rule) = &port.rule {
            screen.line(format_args!("      rule:    {}", Plain(rule)));
        }
        screen.line(format_args!("      message: {}", styled(Style::Bad, &port.message)));
    }
}

fn problems(screen: &mut Screen, report: &StatusReport) {
    if report.n_problems == 0 {
        return;
    }
    let fields = count(report.n_problems, "field");
    screen.heading(format_args!("Problems of objects: {fields} not usable"));
    let row = |problem: &ObjectProblem| {
        let object = styled(Style::Name, &problem.object);
        vec![Plain(&problem.kind).to_string(), object, Plain(&problem.message).to_string()]
    };
    screen.table(2, &["KIND", "OBJECT", "PROBLEM"], report.problems.iter().map(row).collect());
}

/// Draws the inputs of iptables-restore.
pub(super) fn restores(screen: &mut Screen, report: &RestoreReport, which: &str) {
    if report.inputs.is_empty() {
        let none =
            if which == "failed" { "no restore has failed" } else { "nothing was sent to the kernel yet" };
        screen.line(none);
    }
    for input in &report.inputs {
        restore(screen, input);
    }
}

/// Lines of text that iptables-restore reads are printed as they are; what is said about them are comments.
fn restore(screen: &mut Screen, input: &KeptRestore) {
    screen.line(styled(Style::Heading, format_args!("# {}: {}", input.family, summary(&input.summary))));
    let mut next = 1;
    for piece in &input.pieces {
        left_out(screen, next, piece.first_line);
        for line in piece.text.lines() {
            screen.line(Plain(line));
        }
        next = piece.first_line + piece.text.lines().count();
    }
    left_out(screen, next, input.summary.lines + 1);
}

fn left_out(screen: &mut Screen, from: usize, to: usize) {
    if from < to {
        let n = count(to - from, "line");
        screen.line(styled(Style::Faint, format_args!("# {n} not kept ({from} to {})", to - 1)));
    }
}

fn drift(state: Option<&DriftState>) -> String {
    let Some(DriftState { state, reason, n_left }) = state else {
        return "not known: the agent is busy comparing them".to_owned();
    };
    let because = reason.as_ref().map(|reason| format!(": {}", words(reason))).unwrap_or_default();
    match &**state {
        "trusted" => styled(Style::Good, "as the agent left them"),
        "suspect" => format!("another process may have changed them{because}; a check follows"),
        "scanning" => format!("being compared, {} left", count(n_left.unwrap_or_default(), "chain")),
        "unverified" => {
            "as the agent left them, as far as they can be compared; the next audit reads the rest".to_owned()
        }
        "unknown" => styled(Style::Warning, format_args!("to be read before the next write{because}")),
        other => format!("{}{because}", Plain(other)),
    }
}

fn summary(restore: &RestoreSummary) -> String {
    let RestoreSummary { seconds_ago, lines, bytes, error } = restore;
    let size =
        format!("{} ago, {}, {}", duration(*seconds_ago), count(*lines, "line"), count(*bytes, "byte"));
    match error {
        Some(error) => format!("{size}; failed: {}", Plain(error)),
        None => size,
    }
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn family_name(state: &FamilyState) -> &str {
    match &*state.family {
        "ipv4" => "IPv4",
        "ipv6" => "IPv6",
        other => other,
    }
}

/// `fingerprint differs` for `fingerprint_differs`.
fn words(reason: &str) -> String {
    reason.replace('_', " ")
}

/// `1 rule`, `2 rules`, `2 entries`
fn count(n: usize, noun: &str) -> String {
    match (n, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{n} {stem}ies"),
        (_, None) => format!("{n} {noun}s"),
    }
}

/// Two units at most: `120 us`, `3.4 ms`, `12.0 s`, `5 min 3 s`, `2 h 10 min`, `3 d 4 h`
fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{whole} s"),
        s if s < 3_600.0 => format!("{} min {} s", whole / 60, whole % 60),
        s if s < 86_400.0 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// One unit: `12 s`, `5 min`, `2 h`, `3 d`
fn rounded(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0 => duration(seconds),
        1..60 => format!("{whole} s"),
        60..3_600 => format!("{} min", whole / 60),
        3_600..86_400 => format!("{} h", whole / 3_600),
        _ => format!("{} d", whole / 86_400),
    }
}

#[cfg(test)]
mod tests;
