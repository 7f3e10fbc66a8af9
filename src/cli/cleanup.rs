//! `chainsmith cleanup`: removes what kube-proxy and Chainsmith made.

use std::process::ExitCode;

use clap::Args;

use super::complain;
use crate::leftovers;

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArguments {
    /// Only list what would be removed.
    #[arg(long)]
    dry_run: bool,
}

/// Removes what is found, as far as that goes; 1 when anything of it is left.
pub fn main(arguments: &CleanupArguments) -> ExitCode {
    let (found, mut troubles) = leftovers::find();
    for leftover in &found {
        if arguments.dry_run {
            println!("would remove {leftover}");
            continue;
        }
        let left = leftovers::remove(leftover);
        if left.is_empty() {
            println!("removed {leftover}");
        }
        troubles.extend(left);
    }
    if found.is_empty() && troubles.is_empty() {
        println!("nothing to remove");
    }
    troubles.iter().for_each(complain);
    if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `run --cleanup`: the same.
pub fn everything() -> ExitCode {
    main(&CleanupArguments { dry_run: false })
}
