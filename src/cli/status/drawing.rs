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
    rows.extend(report.findings.iter().map(|finding| row("this node", Plain(&finding.message).to_string())));
    screen.table(2, &[], rows);
}

fn family(screen: &mut Screen, state: &FamilyState) {
    let layout = state.layout.as_deref().unwrap_or("none yet");
    screen.heading(format_args!("{}: back-end {}, layout {layout}", family_name(state), state.backend));
    let counts = &state.in_force;
    let mut rows = vec![
        row(
            "in force",
            format!(
                "{}, {}; {} in nat, {} in filter, {}",
                count(counts.service_ports, "service port"),
                count(counts.endpoints, "endpoint"),
                count(counts.nat_rules, "rule"),
                counts.filter_rules,
                count(counts.chains, "chain")
            ),
        ),
        row("kernel's tables", drift(state.drift.as_ref())),
    ];
    let dropped = counts.dropped_internal + counts.dropped_external;
    if dropped > 0 {
        let n = count(dropped, "service port");
        rows.push(row("dropped", format!("{n} with traffic policy Local and no endpoint on this node")));
    }
    if counts.overlaps > 0 {
        rows.push(row(
            "overlaps",
            format!("{} left out: another Service has the address and port", count(counts.overlaps, "entry")),
        ));
    }
    if state.affinity_lists_full > 0 {
        rows.push(row(
            "affinity lists full",
            format!(
                "of {}; their oldest clients lose affinity",
                count(state.affinity_lists_full, "endpoint")
            ),
        ));
    }
    if let Some(read) = &state.last_read {
        rows.push(row(
            "last read",
            format!("{} ago, because: {}", duration(read.seconds_ago), Plain(words(&read.reason))),
        ));
    }
    if let Some(seconds) = state.syncing_seconds {
        rows.push(row("syncing", format!("for {}", duration(seconds))));
    }
    if let Some(restore) = &state.last_restore {
        rows.push(row("last restore", summary(restore)));
    }
    if let Some(restore) = &state.failed_restore {
        rows.push(row("last failed restore", summary(restore)));
    }
    screen.table(2, &[], rows);
    syncs(screen, state);
    if !state.quarantined.is_empty() {
        quarantined(screen, state);
    }
}

fn syncs(screen: &mut Screen, state: &FamilyState) {
    if state.syncs.is_empty() {
        return;
    }
    screen.gap();
    let shown = state.syncs.iter().take(SYNCS_SHOWN);
    screen.line(format_args!("  Last {} of {}", count(shown.len(), "sync"), state.n_syncs));
    let heads = ["AGO", "SCOPE", "TOOK", "READ", "COMPILE", "PLAN", "LOCK", "RESTORE", "RULES", "RESULT"];
    screen.table(4, &heads, shown.map(sync_row).collect());
}

fn sync_row(sync: &SyncRecord) -> Vec<String> {
    let stages = &sync.stages;
    let scope = match (sync.is_full, &sync.services[..]) {
        (true, _) => "all".to_owned(),
        (false, [only]) if sync.n_services == 1 => Plain(only).to_string(),
        (false, _) => count(sync.n_services, "Service"),
    };
    let result = match (&sync.error, &sync.drift) {
        (Some(error), _) => styled(Style::Bad, error),
        (None, Some(drift)) => styled(Style::Warning, format_args!("repaired {drift}")),
        (None, None) if sync.n_failed_restores > 0 => styled(
            Style::Warning,
            format_args!("ok after {}", count(sync.n_failed_restores, "failed restore")),
        ),
        (None, None) => styled(Style::Good, "ok"),
    };
    let mut cells = vec![duration(sync.seconds_ago), scope, duration(sync.seconds)];
    let times = [stages.read, stages.compile, stages.plan, stages.lock_wait, stages.restore];
    cells.extend(times.map(|seconds| if seconds > 0.0 { duration(seconds) } else { "-".to_owned() }));
    cells.extend([sync.sent.rules.to_string(), result]);
    cells
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

#[cfg(test)]
mod tests;
