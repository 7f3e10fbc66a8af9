//! `chainsmith status`: the state of the agent that runs on this node.

mod drawing;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::output::OutputArguments;
use super::print_error;
use crate::agent_socket::client;
use crate::config::DEFAULT_AGENT_SOCKET;
use crate::inspect::status::{RestoreReport, StatusReport};
use crate::net::UnixAddress;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The Unix socket of the agent: @NAME or /PATH
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = DEFAULT_AGENT_SOCKET, default_missing_value = DEFAULT_AGENT_SOCKET)]
    #[arg(value_parser = UnixAddress::parse)]
    agent: UnixAddress,
    /// Print the input that iptables-restore received last, or the one at which it failed last; of a long one the
    /// beginning, the end, and the lines around the rejected line
    #[arg(long, value_name = "WHICH")]
    restore: Option<RestoreChoice>,
    /// Print the rules that the agent wants in force, without quarantined service ports, as iptables-save prints them;
    /// a source for the other commands
    #[arg(long, conflicts_with = "restore")]
    rules: bool,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RestoreChoice {
    Last,
    Failed,
}

/// Prints the state, or an input. Exit status 1 when no agent answers.
pub fn main(arguments: &StatusArguments) -> ExitCode {
    match print(arguments) {
        Ok(status) => status,
        Err(error) => {
            print_error(format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints the rules as they arrive. A closed pipe ends quietly.
fn print_rules(agent: &UnixAddress) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    let printed = client::read(agent, "/v1/rules", &mut |piece| stdout.write_all(piece));
    let is_closed = |error: &anyhow::Error| {
        error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    match printed {
        Err(error) if !is_closed(&error) => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn print(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let StatusArguments { agent, restore, rules, output } = arguments;
    if *rules {
        return print_rules(agent);
    }
    let Some(choice) = restore else {
        let report: StatusReport = client::get(agent, "StatusReport", "/v1/status")?;
        let draw = |screen: &mut _| drawing::status(screen, &report);
        return Ok(output.print_report("StatusReport", &report, ExitCode::SUCCESS, draw));
    };
    let which = if *choice == RestoreChoice::Last { "last" } else { "failed" };
    let path = format!("/v1/restore?which={which}");
    let report: RestoreReport = client::get(agent, "RestoreReport", &path)?;
    let draw = |screen: &mut _| drawing::restores(screen, &report, which);
    Ok(output.print_report("RestoreReport", &report, ExitCode::SUCCESS, draw))
}
