//! `chainsmith cleanup`: removes the leftovers of kube-proxy and Chainsmith.

use std::process::ExitCode;

use clap::Args;

use super::{OneLine, print, print_error};
use crate::agent;
use crate::leftovers::{self, Leftover, LeftoverProblem};

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArguments {
    /// List the leftovers that would be removed or stay; remove nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Removes all leftovers that can be removed. Exit status 1 when one stays that is known as kube-proxy's or
/// Chainsmith's, or a search failed.
pub fn main(arguments: &CleanupArguments) -> ExitCode {
    match agent::conflicting_proxies() {
        Ok(others) => others.into_iter().for_each(|other| {
            print_error(format!(
                "{other} runs in this network namespace and restores its rules; stop it first"
            ));
        }),
        Err(error) => print_error(format!("cannot list the agents in this network namespace: {error}")),
    }
    let (found, mut problems) = leftovers::find();
    let (removable, stays): (Vec<&Leftover>, Vec<&Leftover>) =
        found.iter().partition(|leftover| leftover.is_removable());
    problems.extend(match arguments.dry_run {
        true => {
            removable.iter().for_each(|leftover| print_plan(leftover));
            Vec::new()
        }
        false => remove(&removable, &mut leftovers::remove),
    });
    if removable.is_empty() && problems.is_empty() {
        print_line("nothing to remove");
    }
    problems.iter().for_each(print_error);
    for leftover in &stays {
        print_error(format!("{leftover} stay: {}", leftover.manual_removal().unwrap_or_default()));
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a line of the outcome. Removal continues when stdout is closed.
fn print_line(line: impl std::fmt::Display) {
    let _ = print(OneLine(line));
}

fn print_plan(leftover: &Leftover) {
    print_line(format!("would remove {leftover}"));
    leftover.parts().iter().for_each(|part| print_line(format!("  {part}")));
    leftovers::referenced(leftover).into_iter().map(LeftoverProblem).for_each(print_error);
}

/// Removes each of `removable` with `remove` and prints it; returns the problems. While a virtual server stays,
/// the leftovers that identify it as kube-proxy's stay as well.
fn remove(
    removable: &[&Leftover],
    remove: &mut dyn FnMut(&Leftover) -> Vec<LeftoverProblem>,
) -> Vec<LeftoverProblem> {
    let mut problems = Vec::new();
    let mut are_servers_left = false;
    for leftover in removable {
        if are_servers_left && leftover.identifies_servers() {
            problems.push(leftovers::kept_for_servers(leftover));
            continue;
        }
        let referenced = leftovers::referenced(leftover).into_iter().map(LeftoverProblem);
        let left = remove(leftover);
        if left.is_empty() {
            print_line(format!("removed {leftover}"));
            problems.extend(referenced);
        }
        are_servers_left |= matches!(leftover, Leftover::IpvsServers(_)) && !left.is_empty();
        problems.extend(left);
    }
    problems
}

/// `run --cleanup`.
pub fn everything() -> ExitCode {
    main(&CleanupArguments { dry_run: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_that_identify_virtual_servers_outlive_them() {
        let found = [Leftover::IpvsServers(Vec::new()), Leftover::IpSets(Vec::new()), Leftover::IpvsDevice];
        let removable: Vec<&Leftover> = found.iter().collect();
        let mut tried = 0;
        let no_problems = remove(&removable, &mut |_| {
            tried += 1;
            Vec::new()
        });
        assert_eq!((tried, no_problems), (3, vec![]));
        let mut tried = 0;
        let problems = remove(&removable, &mut |_| {
            tried += 1;
            vec![LeftoverProblem("cannot delete virtual server TCP 10.96.0.1:443".to_owned())]
        });
        assert_eq!((tried, problems.len()), (1, 3), "{problems:?}");
    }
}
