//! Draws a report.

use super::By;
use crate::cli::output::{Screen, Style, styled};
use crate::inspect::busiest::{CountedConnections, CountsSince, PortConnections, TopReport};

/// Draws the first `max` rows of `report`.
pub(super) fn draw(screen: &mut Screen, report: &TopReport, by: By, max: usize) {
    screen.line(styled(Style::Heading, format!("New connections to Services on this node ({})", report.origin)));
    screen.line(styled(Style::Faint, since(report)));
    screen.gap();
    let has_rates = report.interval_seconds.is_some();
    let rows = match by {
        By::Service => service_rows(report, has_rates),
        By::Endpoint => endpoint_rows(report, has_rates),
    };
    let n_rows = rows.len();
    if n_rows > 0 {
        let mut heads = vec!["SERVICE PORT", "PROTOCOL"];
        if by == By::Endpoint {
            heads.push("ENDPOINT");
        }
        heads.extend(has_rates.then_some("NEW/S"));
        heads.extend(["CONNECTIONS", "FIRST PACKETS"]);
        let has_endpoints = report.service_ports.iter().any(|port| port.endpoints.is_some());
        if by == By::Service && has_endpoints {
            heads.push("ENDPOINTS USED");
        }
        screen.table(0, &heads, rows.into_iter().take(max).collect());
        screen.gap();
    }
    let rate = report.all.connections_per_second.map(|rate| format!(", {} a second", rate_text(rate)));
    screen.line(format!(
        "{} new connections in all{}",
        grouped(report.all.connections),
        rate.unwrap_or_default()
    ));
    let n_hidden = n_rows.saturating_sub(max) + report.n_left_out;
    if n_hidden > 0 {
        let what = if by == By::Service { "service ports" } else { "endpoints" };
        screen.line(styled(Style::Faint, format!("{n_hidden} more {what}: -n {}", n_rows + report.n_left_out)));
    }
}

fn since(report: &TopReport) -> String {
    let totals = match report.counts_since {
        CountsSince::AgentStarted => "connections since the agent started",
        CountsSince::RulesWritten => "connections since the rule of each endpoint was written",
    };
    match report.interval_seconds {
        Some(seconds) => format!("{totals}; rates over the last {seconds:.1} s"),
        None => totals.to_owned(),
    }
}

/// Rate, connections, bytes.
fn counts(all: &CountedConnections, has_rates: bool) -> Vec<String> {
    let rate = has_rates.then(|| all.connections_per_second.map_or(String::new(), rate_text));
    let bytes = format!("{} bytes", grouped(all.first_packet_bytes));
    rate.into_iter().chain([grouped(all.connections), bytes]).collect()
}

fn service_rows(report: &TopReport, has_rates: bool) -> Vec<Vec<String>> {
    let row = |port: &PortConnections| {
        let mut row = vec![styled(Style::Name, &port.service_port), port.protocol.clone()];
        row.extend(counts(&port.all, has_rates));
        row.extend(port.endpoints.as_ref().map(|endpoints| endpoints.len().to_string()));
        row
    };
    report.service_ports.iter().map(row).collect()
}

fn endpoint_rows(report: &TopReport, has_rates: bool) -> Vec<Vec<String>> {
    let rows = |port: &PortConnections| -> Vec<Vec<String>> {
        let endpoints = port.endpoints.iter().flatten();
        let row = |endpoint: &crate::inspect::busiest::EndpointConnections| {
            let mut row = vec![styled(Style::Name, &port.service_port), port.protocol.clone()];
            row.push(endpoint.endpoint.clone());
            row.extend(counts(&endpoint.all, has_rates));
            row
        };
        endpoints.map(row).collect()
    };
    report.service_ports.iter().flat_map(rows).collect()
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
