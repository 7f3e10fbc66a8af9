//! `chainsmith cleanup`: removes what kube-proxy and Chainsmith made.

use std::process::ExitCode;

use clap::Args;

use super::{OneLine, complain, print};
use crate::agent;
use crate::leftovers::{self, Leftover, LeftoverProblem};

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArguments {
    /// Only list what would be removed, and what would stay.
    #[arg(long)]
    dry_run: bool,
}

/// Removes what is found, as far as that goes; 1 when anything that is known as kube-proxy's or
/// Chainsmith's is left, or could not be looked for.
pub fn main(arguments: &CleanupArguments) -> ExitCode {
    match agent::conflicting_proxies() {
        Ok(others) => others.into_iter().for_each(|other| {
            complain(format!(
                "{other} runs in this network namespace and makes its rules again; stop it first"
            ));
        }),
        Err(error) => complain(format!("cannot look for agents that make their rules again: {error}")),
    }
    let (found, mut troubles) = leftovers::find();
    let (removable, stays): (Vec<&Leftover>, Vec<&Leftover>) =
        found.iter().partition(|leftover| leftover.is_removable());
    troubles.extend(match arguments.dry_run {
        true => {
            removable.iter().for_each(|leftover| show(leftover));
            Vec::new()
        }
        false => remove(&removable, &mut leftovers::remove),
    });
    if removable.is_empty() && troubles.is_empty() {
        say("nothing to remove");
    }
    troubles.iter().for_each(complain);
    for leftover in &stays {
        complain(format!("{leftover} stay: {}", leftover.manual_removal().unwrap_or_default()));
    }
    if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a line of the outcome. Removal goes on when stdout is closed.
fn say(line: impl std::fmt::Display) {
    let _ = print(OneLine(line));
}

fn show(leftover: &Leftover) {
    say(format!("would remove {leftover}"));
    leftover.parts().iter().for_each(|part| say(format!("  {part}")));
    leftovers::referenced(leftover).into_iter().map(LeftoverProblem).for_each(complain);
}

/// Removes each of `removable` by `remove`, and says so; what is left. While a virtual server is left, so
/// is what tells whose it is.
fn remove(
    removable: &[&Leftover],
    remove: &mut dyn FnMut(&Leftover) -> Vec<LeftoverProblem>,
) -> Vec<LeftoverProblem> {
    let mut troubles = Vec::new();
    let mut are_servers_left = false;
    for leftover in removable {
        if are_servers_left && leftover.identifies_servers() {
            troubles.push(leftovers::kept_for_servers(leftover));
            continue;
        }
        let held = leftovers::referenced(leftover).into_iter().map(LeftoverProblem);
        let left = remove(leftover);
        if left.is_empty() {
            say(format!("removed {leftover}"));
            troubles.extend(held);
        }
        are_servers_left |= matches!(leftover, Leftover::IpvsServers(_)) && !left.is_empty();
        troubles.extend(left);
    }
    troubles
}

/// `run --cleanup`: the same.
pub fn everything() -> ExitCode {
    main(&CleanupArguments { dry_run: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_whose_virtual_servers_are_outlives_them() {
        let found = [Leftover::IpvsServers(Vec::new()), Leftover::IpSets(Vec::new()), Leftover::IpvsDevice];
        let removable: Vec<&Leftover> = found.iter().collect();
        let mut tried = 0;
        let no_troubles = remove(&removable, &mut |_| {
            tried += 1;
            Vec::new()
        });
        assert_eq!((tried, no_troubles), (3, vec![]));
        let mut tried = 0;
        let troubles = remove(&removable, &mut |_| {
            tried += 1;
            vec![LeftoverProblem("cannot delete virtual server TCP 10.96.0.1:443".to_owned())]
        });
        assert_eq!((tried, troubles.len()), (1, 3), "{troubles:?}");
    }
}
