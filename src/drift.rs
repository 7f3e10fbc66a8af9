//! Do we know what the kernel holds? And if another process changed it, what has to be read?
//!
//! [`Knowledge`] says what is known of one family's tables; [`FamilyTables`] holds it with what is known, and does the
//! kernel calls; one [`DriftDetector`] tells the loop when to check and what the check asks for.
//!
//! The kernel is read only for a [`ReadReason`], which goes to the log and to `chainsmith_kernel_reads_total`. On nft the
//! ruleset's generation shows commits of other processes; after one, chains are compared by fingerprint, and read only if
//! something of ours differs or cannot be compared.
//!
//! # From an external change to its repair
//!
//! 1. Another process flushes nat, or changes any chain of ours. On nft its commit is notified; the loop passes it to
//!    [`DriftDetector::notified`]. On legacy nothing is notified: the tables' outlines are compared every 900 ms. When all
//!    tables are flushed, [`canary`] notices, too. The family is *suspect*.
//! 2. 250 ms later (`schedule`) [`DriftDetector::check`] compares fingerprints, names of chains and jumps (`compare`). From
//!    2 000 chains it first compares what a flush would change, and the rest in slices. If all is the same, nothing is read.
//! 3. Something differs: the tables are *unknown*, and the loop syncs at once. [`FamilyTables::take`] reads them with
//!    iptables-save, logs the reason, and returns what differs as [`Drift`].
//! 4. `apply` compiles everything, and the planner writes the chains that differ, callees first, then missing jumps.
//! 5. [`FamilyTables::learn_equivalents`] reads the repaired chains back. The sync is reported with its drift: log
//!    ("rules changed by another process"), event, `chainsmith_drift_repaired_total`. The tables are *trusted* again.
//!
//! ```
//! use chainsmith::drift::{Action, Comparison, Knowledge, ReadReason, Signal};
//!
//! // The first sync has read the kernel. Then another process commits, and a check follows.
//! let (knowledge, _) = Knowledge::START.after(Signal::Read { is_complete: true });
//! assert_eq!(knowledge, Knowledge::Trusted);
//! let (knowledge, _) = knowledge.after(Signal::Disturbed(ReadReason::ExternalCommit));
//! let (knowledge, action) = knowledge.after(Signal::CheckDue);
//! assert_eq!(action, Action::Check);
//!
//! // It changed nothing of ours: nothing is read. Had a fingerprint differed, the kernel would be read.
//! assert_eq!(knowledge.after(Signal::Checked(Comparison::Same)), (Knowledge::Trusted, Action::None));
//! let differs = Comparison::Different { reason: ReadReason::FingerprintDiffers, is_whole: true };
//! let (knowledge, action) = knowledge.after(Signal::Checked(differs));
//! assert_eq!(action, Action::Read(ReadReason::FingerprintDiffers));
//! assert!(knowledge.is_unknown());
//! ```

pub mod canary;
mod compare;
mod detector;
mod difference;
mod family_tables;
mod generations;
mod legacy;
mod machine;
mod read;
mod reason;
mod schedule;

pub use compare::Depth;
pub use detector::{Checked, DriftDetector};
pub use difference::Drift;
pub use family_tables::{FamilyTables, References};
pub use machine::{Action, Comparison, Cursor, Knowledge, Signal, Unread};
pub use reason::ReadReason;
