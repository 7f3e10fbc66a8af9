//! `chainsmith trace`: the way of a packet through a node's rules.

mod journey_text;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::output::OutputArguments;
use super::source::SourceArguments;
use super::{USAGE, print_error};
use crate::inspect::journey::{PacketState, QuestionError, TraceQuestion, TraceReport, trace_journeys};
use crate::iptables::parse::ParseError;

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub struct TraceArguments {
    /// Where the packet goes: IP:PORT[/PROTO], svc/NS/NAME[:PORT][/PROTO] (a port by number or name; without one every
    /// port is traced), or pod/NS/NAME:PORT[/PROTO]
    ///
    /// A Service is reached by its cluster IP, from outside the cluster by its load balancer IP, external IP or node
    /// port. Without PROTO, an address is traced with every protocol that Services have there, or TCP.
    #[arg(long, value_name = "DESTINATION")]
    to: String,
    /// Where it comes from: pod/NS/NAME, pod (any on this node), pod-elsewhere, node, external, localhost or IP[:PORT]
    /// [default: pod; for external frontends external]
    #[arg(long, value_name = "SOURCE")]
    from: Option<String>,
    /// The interface on which it arrives [default: by the host's routes, else unknown]
    #[arg(long = "in", value_name = "IFACE")]
    in_interface: Option<String>,
    /// What conntrack says of it
    #[arg(long, value_name = "STATE", default_value = "new")]
    state: StateArgument,
    #[command(flatten)]
    source: SourceArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// The state of a packet on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateArgument {
    New,
    Established,
    Invalid,
}

/// Prints the answer. Exit status 1 when the source cannot be read or has no such name.
pub fn main(arguments: &TraceArguments) -> ExitCode {
    match arguments.answer() {
        Ok(report) => arguments.output.print_report("TraceReport", &report, ExitCode::SUCCESS, |screen| {
            journey_text::draw(&report, screen);
        }),
        Err(error) => {
            print_error(format!("{error:#}"));
            match is_about_source(&error) {
                true => ExitCode::FAILURE,
                false => ExitCode::from(USAGE),
            }
        }
    }
}

/// Whether the source cannot be read, or has nothing of that name; otherwise the command line is wrong.
fn is_about_source(error: &anyhow::Error) -> bool {
    let is_not_found = matches!(error.downcast_ref(), Some(QuestionError::NotFound(_)));
    is_not_found || error.chain().any(|cause| cause.is::<std::io::Error>() || cause.is::<ParseError>())
}

impl TraceArguments {
    fn answer(&self) -> anyhow::Result<TraceReport> {
        let from = self.from.as_ref().map(|from| self.source.qualify(from)).transpose()?;
        let question = TraceQuestion {
            to: self.source.qualify(&self.to)?,
            from,
            in_interface: self.in_interface.clone(),
            state: match self.state {
                StateArgument::New => PacketState::New,
                StateArgument::Established => PacketState::Established,
                StateArgument::Invalid => PacketState::Invalid,
            },
        };
        question.check()?;
        let names: Vec<&str> = question.from.iter().chain([&question.to]).map(String::as_str).collect();
        self.source.report("TraceReport", "/v1/trace", &question, || {
            let subject = self.source.load_for(&names)?;
            subject.cluster.iter().flat_map(|cluster| &cluster.problems).for_each(print_error);
            Ok(trace_journeys(&subject, &question)?)
        })
    }
}

#[cfg(test)]
mod tests;
