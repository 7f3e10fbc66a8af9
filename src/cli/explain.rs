//! `chainsmith explain`: one Service as a node sees it.

mod service_drawing;
mod truth_drawing;

use std::process::ExitCode;

use clap::Args;

use super::output::OutputArguments;
use super::source::SourceArguments;
use super::{USAGE, print_error};
use crate::inspect::explanation::{ExplainQuestion, explain};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// The Service, and one of its ports by name or number [default: all ports]
    #[arg(value_name = "NS/NAME[:PORT]", value_parser = ExplainQuestion::parse)]
    service: ExplainQuestion,
    #[command(flatten)]
    source: SourceArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Prints what the source tells of the Service. Exit status 1 when there is no such Service.
pub fn main(arguments: &ExplainArguments) -> ExitCode {
    let ExplainArguments { service, source, output } = arguments;
    // A source that cannot be read is an error of usage; a Service that is not there is an answer.
    let mut status = ExitCode::FAILURE;
    let report = source.report("ExplainReport", "/v1/explain", service, || {
        let subject = source.load().inspect_err(|_| status = ExitCode::from(USAGE))?;
        Ok(explain(&subject, service)?)
    });
    match report {
        Ok(report) => {
            let draw = |screen: &mut _| service_drawing::draw(screen, &report);
            output.print_report("ExplainReport", &report, ExitCode::SUCCESS, draw)
        }
        Err(error) => {
            print_error(format!("{error:#}"));
            status
        }
    }
}
