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
    let subject = match arguments.source.load() {
        Ok(subject) => subject,
        Err(error) => {
            print_error(format!("{error:#}"));
            return ExitCode::from(USAGE);
        }
    };
    match explain(&subject, &arguments.service) {
        Ok(report) => {
            let draw = |screen: &mut _| service_drawing::draw(screen, &report);
            arguments.output.print_report("ExplainReport", &report, ExitCode::SUCCESS, draw)
        }
        Err(error) => {
            print_error(error);
            ExitCode::FAILURE
        }
    }
}
