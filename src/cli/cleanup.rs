//! `chainsmith cleanup`: removes what kube-proxy and Chainsmith made.

use std::process::ExitCode;

use clap::Args;

use super::complain;
use crate::agent;
use crate::leftovers::{self, Leftover, Trouble};

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
    for other in agent::others() {
        complain(format!("{other} runs in this network namespace and makes its rules again; stop it first"));
    }
    let (found, mut troubles) = leftovers::find();
    let (removable, stays): (Vec<&Leftover>, Vec<&Leftover>) =
        found.iter().partition(|leftover| leftover.is_removable());
    for leftover in &removable {
        let held = leftovers::held(leftover).into_iter().map(Trouble);
        if arguments.dry_run {
            println!("would remove {leftover}");
            leftover.parts().iter().for_each(|part| println!("  {part}"));
            held.for_each(complain);
            continue;
        }
        let left = leftovers::remove(leftover);
        if left.is_empty() {
            println!("removed {leftover}");
            troubles.extend(held);
        }
        troubles.extend(left);
    }
    if removable.is_empty() && troubles.is_empty() {
        println!("nothing to remove");
    }
    troubles.iter().for_each(complain);
    for leftover in &stays {
        complain(format!("{leftover} stay: {}", leftover.by_hand().unwrap_or_default()));
    }
    if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `run --cleanup`: the same.
pub fn everything() -> ExitCode {
    main(&CleanupArguments { dry_run: false })
}
