//! `chainsmith explain`: one Service as a node sees it.

mod service_drawing;
mod truth_drawing;

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;

use super::output::OutputArguments;
use super::source::SourceArguments;
use super::{USAGE, print_error};
use crate::inspect::explanation::{ExplainQuestion, explain};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// The Service, and one of its ports by name or number [default: all ports]
    #[arg(value_name = "NS/NAME[:PORT]")]
    service: String,
    #[command(flatten)]
    source: SourceArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Prints what the source tells of the Service. Exit status 1 when there is no such Service.
pub fn main(arguments: &ExplainArguments) -> ExitCode {
    let ExplainArguments { source, output, .. } = arguments;
    // A wrong name and a source that cannot be read are errors of usage; a Service that is not there is an answer.
    let mut status = ExitCode::from(USAGE);
    let report = question(arguments).and_then(|question| {
        source.report("ExplainReport", "/v1/explain", &question, || {
            let subject = source.load()?;
            status = ExitCode::FAILURE;
            Ok(explain(&subject, &question)?)
        })
    });
    match report {
        Ok(report) => {
            let draw = |screen: &mut _| service_drawing::draw(screen, &report);
            output.print_report("ExplainReport", &report, ExitCode::SUCCESS, draw)
        }
        Err(error) => {
            print_error(format!("{error:#}"));
            if source.agent().is_some() { ExitCode::FAILURE } else { status }
        }
    }
}

fn question(arguments: &ExplainArguments) -> anyhow::Result<ExplainQuestion> {
    let name = arguments.source.qualify_service(&arguments.service)?;
    ExplainQuestion::parse(&name).map_err(|error| anyhow!("{name:?}: {error}"))
}

#[cfg(test)]
mod tests;
