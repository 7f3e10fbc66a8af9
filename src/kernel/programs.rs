//! The tables of the real kernel, through the iptables programs: `iptables-restore` and `iptables-save` as
//! child processes, single commands through the `iptables` crate.

mod child;
mod detect;
mod kernel_iptables;
mod lock;
mod process_registry;
mod restore_child;
mod single;
mod watchdog;

pub use detect::{Unusable, accepts_rule, detect_backend, has_legacy_table, is_ipv6_disabled, open};
pub use kernel_iptables::{KernelIptables, Programs};
pub use watchdog::peak_child_memory;

use std::time::Duration;

use process_registry::PROCESSES;

/// Starts no more programs, and kills those that only read; restores continue.
pub fn end_programs() {
    PROCESSES.end();
}

/// Whether a restore of this process is running.
pub fn is_restoring() -> bool {
    PROCESSES.is_restoring()
}

/// Kills every program of this process, also restores, and waits until they have ended, for `limit` at
/// most. Starts no more programs.
pub fn kill_programs(limit: Duration) {
    PROCESSES.kill_all(limit);
}

#[cfg(test)]
mod tests;
