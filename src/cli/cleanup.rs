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

/// Removes what is found, as far as that goes; 1 when anything of kube-proxy's or Chainsmith's is left.
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
    let is_left =
        !arguments.dry_run && !stays.is_empty() && removable.iter().any(|leftover| is_ipvs(leftover));
    if troubles.is_empty() && !is_left { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether kube-proxy's ipvs mode was here: virtual servers beside it are most likely its own.
fn is_ipvs(leftover: &Leftover) -> bool {
    matches!(leftover, Leftover::IpvsDevice | Leftover::IpSets(_))
}

/// `run --cleanup`: the same.
pub fn everything() -> ExitCode {
    main(&CleanupArguments { dry_run: false })
}
