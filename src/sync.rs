//! The one loop: changes of the cluster in, rules in the kernel out.

mod family;
mod report;

pub use family::{FamilySync, View};
pub use report::{Refusal, Report, SyncError};
