//! `chainsmith top`: new connections by service port and endpoint, refreshed like top, or once.

mod counted_source;
mod drawing;
mod view;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use tokio::time::Instant;

use super::output::{OutputArguments, Screen};
use super::source::SourceArguments;
use super::{USAGE, print_error};
use crate::inspect::busiest::{TopOrder, TopReport};
use counted_source::{CountedSource, KIND};
use view::{By, TopView};

/// The interval without `--interval`.
const INTERVAL: f64 = 2.0;

/// Rows without `--rows` where stdout is no terminal.
const ROWS: usize = 20;

/// The shortest and the longest `--interval`, in seconds.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;

#[derive(Debug, Args)]
pub(super) struct TopArguments {
    #[command(flatten)]
    source: SourceArguments,
    #[command(flatten)]
    output: OutputArguments,
    /// Seconds between two readings; where output is printed once, that of two readings, with rates [default: 2, where
    /// output is refreshed]
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    interval: Option<Duration>,
    /// The order of rows; `rate` is that of connections where there is one reading only
    #[arg(long, value_name = "ORDER", default_value = "rate")]
    sort: Order,
    /// How many rows [default: as many as fit the terminal, else 20; with -o json, all service ports]
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// What a row is
    #[arg(long, value_name = "WHAT", default_value = "service")]
    by: By,
}

impl TopArguments {
    /// What is drawn, with `rows` unless `--rows` says otherwise.
    fn view(&self, rows: usize) -> TopView {
        TopView { by: self.by, order: self.sort.into(), max: self.rows.unwrap_or(rows) }
    }
}

/// `--sort`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    /// Most new connections a second first.
    Rate,
    /// Most connections first.
    Total,
    /// Most bytes of first packets first.
    Bytes,
    /// By name.
    Name,
}

impl From<Order> for TopOrder {
    fn from(order: Order) -> TopOrder {
        match order {
            Order::Rate => TopOrder::Rate,
            Order::Total => TopOrder::Total,
            Order::Bytes => TopOrder::Bytes,
            Order::Name => TopOrder::Name,
        }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok().filter(|n| INTERVALS.contains(n));
    let reason = || format!("must be {} to {} seconds", INTERVALS.start(), INTERVALS.end());
    seconds.map(Duration::from_secs_f64).ok_or_else(reason)
}

pub(super) fn main(arguments: &TopArguments) -> ExitCode {
    match run(arguments) {
        Ok(status) => status,
        Err(error) => {
            print_error(format!("{error:#}"));
            match error.is::<UsageError>() {
                true => ExitCode::from(USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(&'static str);

fn run(arguments: &TopArguments) -> anyhow::Result<ExitCode> {
    let agent = arguments.source.agent();
    let SourceArguments { rules, objects, live, .. } = &arguments.source;
    if agent.is_none() && rules.is_none() && objects.is_empty() && !live {
        bail!(UsageError(
            "no source: give --live, --agent, or RULES (a file with the output of iptables-save -c)"
        ));
    }
    let mut source = CountedSource::open(&arguments.source, agent)?;
    if source.is_once() && arguments.interval.is_some() {
        bail!(UsageError("--interval needs --live or --agent: a text is read once"));
    }
    let mut reading = TimedReport::first(&mut source)?;
    check_by(&reading.report, arguments.by)?;
    if arguments.output.is_json() || source.is_once() || !std::io::stdout().is_terminal() {
        if let Some(interval) = arguments.interval {
            std::thread::sleep(interval);
            reading = reading.next(&mut source)?;
        }
        return Ok(print_once(arguments, reading.report));
    }
    loop {
        refresh(arguments, &reading.report)?;
        std::thread::sleep(arguments.interval.unwrap_or(Duration::from_secs_f64(INTERVAL)));
        reading = reading.next(&mut source)?;
    }
}

/// Rows for endpoints need counts of endpoints.
fn check_by(report: &TopReport, by: By) -> anyhow::Result<()> {
    if by == By::Endpoint && report.service_ports.iter().any(|port| port.endpoints.is_none()) {
        bail!(
            "the agent counts no endpoints: set chainsmith.connectionMetrics (--connection-metrics) to endpoint, or use --live"
        );
    }
    Ok(())
}

/// A report, and when it was made.
struct TimedReport {
    at: Instant,
    report: TopReport,
}

impl TimedReport {
    fn first(source: &mut CountedSource<'_>) -> anyhow::Result<TimedReport> {
        let report = source.read()?;
        Ok(TimedReport { at: Instant::now(), report })
    }

    /// The next reading, with rates since this one.
    fn next(&self, source: &mut CountedSource<'_>) -> anyhow::Result<TimedReport> {
        let mut reading = TimedReport::first(source)?;
        let seconds = reading.at.duration_since(self.at).as_secs_f64();
        reading.report.add_rates(&self.report, seconds);
        Ok(reading)
    }
}

fn print_once(arguments: &TopArguments, mut report: TopReport) -> ExitCode {
    report.sort(arguments.sort.into());
    if arguments.output.is_json()
        && let Some(n) = arguments.rows
    {
        report.truncate(n);
    }
    arguments.output.print_report(KIND, &report, ExitCode::SUCCESS, |screen| {
        drawing::draw(screen, &report, arguments.view(ROWS));
    })
}

/// Lines of a screen that are no rows: four of heading, a gap, the heads of the table, a gap, the sum, what is left out,
/// and the line of the cursor.
const OTHER_LINES: usize = 10;

/// Draws on the cleared terminal.
fn refresh(arguments: &TopArguments, report: &TopReport) -> anyhow::Result<()> {
    let mut report = report.clone();
    report.sort(arguments.sort.into());
    let (width, height) = terminal_size::terminal_size()
        .map_or((None, None), |(width, height)| (Some(usize::from(width.0)), Some(usize::from(height.0))));
    let fitting = height.map_or(ROWS, |height| height.saturating_sub(OTHER_LINES).max(1));
    let mut screen = Screen::new(width);
    drawing::draw(&mut screen, &report, arguments.view(fitting));
    let mut stdout = anstream::stdout().lock();
    // The cursor to the upper left, and clear from there on.
    write!(stdout, "\u{1b}[H\u{1b}[2J{}", screen.as_str())?;
    stdout.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests;
