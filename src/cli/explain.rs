//! `chainsmith explain`: one Service as a node sees it.

mod service_drawing;
mod truth_drawing;

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;

use super::output::OutputArguments;
use super::source::SourceArguments;
use super::{USAGE, print_error};
use crate::inspect::Subject;
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
    let (subject, question) = match load(arguments) {
        Ok(loaded) => loaded,
        Err(error) => {
            print_error(format!("{error:#}"));
            return ExitCode::from(USAGE);
        }
    };
    match explain(&subject, &question) {
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

fn load(arguments: &ExplainArguments) -> anyhow::Result<(Subject, ExplainQuestion)> {
    let source = &arguments.source;
    let name = source.qualify_service(&arguments.service)?;
    let question = ExplainQuestion::parse(&name).map_err(|error| anyhow!("{name:?}: {error}"))?;
    Ok((source.load()?, question))
}
