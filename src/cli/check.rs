//! `chainsmith check`: whether the rules in force are those that the objects ask for. Reads and never writes.

mod drawing;
mod in_force;

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::objects::Objects;
use super::output::OutputArguments;
use super::source::{self, SourceArguments};
use super::{USAGE, print_error};
use crate::config::Config;
use crate::inspect::findings::{self, CheckQuestion, CheckReport, CheckResult};
use crate::inspect::{ClusterView, HostView, RulesOrigin, Subject};
use crate::model::Inventory;
use crate::net::PerFamily;
use in_force::NodeInForce;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    source: SourceArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Exit status when a part could not be read.
const CANNOT_TELL: u8 = 2;

/// Compares once, or watches.
pub fn main(arguments: &CheckArguments) -> ExitCode {
    match compare(arguments) {
        Ok(report) => {
            let status = status(&report);
            arguments
                .output
                .print_report("CheckReport", &report, status, |screen| drawing::draw(&report, screen))
        }
        Err(error) => {
            print_error(format!("{error:#}"));
            ExitCode::from(USAGE)
        }
    }
}

fn status(report: &CheckReport) -> ExitCode {
    match report.result {
        CheckResult::Same => ExitCode::SUCCESS,
        CheckResult::Different => ExitCode::FAILURE,
        CheckResult::Unknown => ExitCode::from(CANNOT_TELL),
    }
}

fn compare(arguments: &CheckArguments) -> anyhow::Result<CheckReport> {
    let source = &arguments.source;
    let Some((objects, config, _)) = source.read_objects(&[])? else {
        bail!("check needs the objects to compare with: give them with -f OBJECTS or --cluster");
    };
    let Objects { inventory, problems, .. } = objects;
    match &source.rules {
        Some(path) => {
            let (mut cluster, host) = source.node.cluster(&config, &inventory)?;
            cluster.problems = problems;
            let rulesets = source::read_rules(path, &source.node.families())?;
            let origin = RulesOrigin::Text(path.display().to_string());
            let in_force = Subject { rulesets, origin, cluster: None, host: HostView::default() };
            let (backends, state, unknown) = (PerFamily::default(), None, Vec::new());
            Ok(findings::check(CheckQuestion {
                cluster,
                host,
                in_force: &in_force,
                backends,
                state,
                unknown,
            }))
        }
        None => compare_live(arguments, &config, &inventory, problems),
    }
}

/// Compares with the kernel of this machine.
fn compare_live(
    arguments: &CheckArguments,
    config: &Config,
    inventory: &Inventory,
    problems: Vec<String>,
) -> anyhow::Result<CheckReport> {
    let node = &arguments.source.node;
    let NodeInForce { subject, backends, state, unknown } = in_force::read(config, &node.families())?;
    let node_name = node.node_name(config, inventory)?;
    let mut cluster = ClusterView::new(config, inventory, &node_name, &in_force::host(&subject.host));
    cluster.problems = problems;
    let host = subject.host.clone();
    Ok(findings::check(CheckQuestion {
        cluster,
        host,
        in_force: &subject,
        backends,
        state: Some(&state),
        unknown,
    }))
}
