//! Draws a report.

use super::view::{By, TopView};
use crate::cli::output::{Screen, Style, styled};
use crate::inspect::busiest::{CountedConnections, CountsSince, TopOrder, TopReport};

/// Draws `report`, which is sorted.
pub(super) fn draw(screen: &mut Screen, report: &TopReport, view: TopView) {
    screen.line(styled(
        Style::Heading,
        format!("New connections to Services on this node ({})", report.origin),
    ));
    // For endpoints they would not fit beside the names.
    let has_bytes = view.by == By::Service || view.order == TopOrder::Bytes;
    explanations(report, has_bytes).into_iter().for_each(|line| screen.line(styled(Style::Faint, line)));
    screen.gap();
    let has_rates = report.interval_seconds.is_some();
    let has_endpoints = report.service_ports.iter().any(|port| port.endpoints.is_some());
    let (mut names, mut numbers) = (vec!["SERVICE PORT", "PROTO"], Vec::new());
    numbers.extend(has_rates.then_some("NEW/S"));
    numbers.push("CONNECTIONS");
    numbers.extend(has_bytes.then_some("BYTES"));
    let rows = match view.by {
        By::Service => {
            numbers.extend(has_endpoints.then_some("ENDPOINTS"));
            service_rows(report, has_rates)
        }
        By::Endpoint => {
            names.push("ENDPOINT");
            endpoint_rows(report, view.order, has_rates, has_bytes)
        }
    };
    let n_rows = rows.len();
    if n_rows > 0 {
        table(screen, &names, &numbers, rows.into_iter().take(view.max).collect());
        screen.gap();
    }
    let rate = report.all.connections_per_second.map(|rate| format!(", {} a second", rate_text(rate)));
    screen.line(format!(
        "{} new connections in all{}",
        grouped(report.all.connections),
        rate.unwrap_or_default()
    ));
    let n_hidden = n_rows.saturating_sub(view.max) + report.n_left_out;
    if n_hidden > 0 {
        let what = if view.by == By::Service { "service ports" } else { "endpoints" };
        let advice = format!(
            "{} more {what}; --rows={} shows all",
            grouped(n_hidden as u64),
            n_rows + report.n_left_out
        );
        screen.line(styled(Style::Faint, advice));
    }
}

/// What the columns mean.
fn explanations(report: &TopReport, has_bytes: bool) -> Vec<String> {
    let rates = report.interval_seconds.map(|seconds| format!("new a second: over the last {seconds:.1} s"));
    let totals = match report.counts_since {
        CountsSince::AgentStarted => "connections: since the agent started",
        CountsSince::RulesWritten => "connections: since the rule of each endpoint was written",
    };
    let bytes = "bytes: of first packets, which are all that nat rules see";
    rates.into_iter().chain([totals.to_owned()]).chain(has_bytes.then(|| bytes.to_owned())).collect()
}

/// One row: its names, the first of which is that of the service port, and its numbers.
struct TopRow {
    names: Vec<String>,
    numbers: Vec<String>,
}

/// Names to the left of their columns, numbers to the right.
fn table(screen: &mut Screen, names: &[&str], numbers: &[&str], rows: Vec<TopRow>) {
    let mut widths: Vec<usize> = numbers.iter().map(|head| head.len()).collect();
    for row in &rows {
        widths.iter_mut().zip(&row.numbers).for_each(|(width, number)| *width = number.len().max(*width));
    }
    let right = |text: &str, width: &usize| format!("{text:>width$}");
    let heads: Vec<String> = numbers.iter().zip(&widths).map(|(head, width)| right(head, width)).collect();
    let heads: Vec<&str> = names.iter().copied().chain(heads.iter().map(String::as_str)).collect();
    let cells = |TopRow { names, numbers }: TopRow| -> Vec<String> {
        let mut names = names.into_iter();
        let port = names.next().map(|port| styled(Style::Name, port));
        let numbers = numbers.iter().zip(&widths).map(|(number, width)| right(number, width));
        port.into_iter().chain(names).chain(numbers).collect()
    };
    screen.table(0, &heads, rows.into_iter().map(cells).collect());
}

/// Rate, connections, bytes.
fn counts(all: &CountedConnections, has_rates: bool, has_bytes: bool) -> Vec<String> {
    let rate = has_rates.then(|| all.connections_per_second.map_or(String::new(), rate_text));
    let bytes = has_bytes.then(|| grouped(all.first_packet_bytes));
    rate.into_iter().chain([grouped(all.connections)]).chain(bytes).collect()
}

fn service_rows(report: &TopReport, has_rates: bool) -> Vec<TopRow> {
    let rows = report.service_ports.iter().map(|port| {
        let mut numbers = counts(&port.all, has_rates, true);
        numbers.extend(port.endpoints.as_ref().map(|endpoints| endpoints.len().to_string()));
        TopRow { names: vec![port.service_port.clone(), port.protocol.clone()], numbers }
    });
    rows.collect()
}

fn endpoint_rows(report: &TopReport, order: TopOrder, has_rates: bool, has_bytes: bool) -> Vec<TopRow> {
    let rows = report.endpoints(order).into_iter().map(|(port, endpoint)| TopRow {
        names: vec![port.service_port.clone(), port.protocol.clone(), endpoint.endpoint.clone()],
        numbers: counts(&endpoint.all, has_rates, has_bytes),
    });
    rows.collect()
}

/// `0.25`, `12.5`, `1 204`.
fn rate_text(rate: f64) -> String {
    match rate {
        _ if rate >= 100.0 => grouped(rate.round() as u64),
        _ if rate >= 10.0 => format!("{rate:.1}"),
        _ => format!("{rate:.2}"),
    }
}

/// `12 345 678`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
