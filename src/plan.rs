//! What has to be written so that the kernel holds the desired rules, in which order, in how many processes.
//!
//! [`Committed`] is what the kernel holds, a hash a chain. A [`Planner`] takes the steps of [`PlanStep`]: it
//! asks [`DesiredRules`] for the desired chains piece by piece, compares, and sends only chains that differ, as
//! text, to a [`Restore`]. So neither the old nor the new ruleset is ever whole in memory.

mod batch;
mod call_order;
mod committed;
mod delta;
mod desired;
mod fingerprints;
mod pending;
mod planner;

mod restore_input;
mod restore_process;
mod save_reader;
mod steps;

pub use committed::Committed;
pub use desired::{DesiredRules, EachRule, FixedNat, SharedNat, When, WriteChains};
pub use fingerprints::{Fingerprints, PendingFingerprints};
pub use planner::Planner;

pub use restore_input::{ExcerptPiece, InputExcerpt, RestoreInput};
pub use restore_process::{FailureEffect, Limits, LineIndex, Restore, RestoreCounts, RestoreFailure};
pub use save_reader::{ReadBack, SaveReader, UdpFrontends};
pub use steps::{PlanStep, StepOrder};

#[cfg(test)]
mod tests;
