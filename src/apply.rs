//! Brings the kernel in step with the cluster, one IP family at a time.
//!
//! [`FamilySync`] is what one family keeps between syncs: what is compiled, what is known of the kernel's
//! tables, which service ports are quarantined. A sync is one `Attempt`: it compiles what changed, plans,
//! restores, and then passes through the `RetryPolicy`s, each of which recovers from one kind of failure.

mod attempt;
mod desired_changes;
mod family_sync;
mod quarantine;
mod retry;
mod stopwatch;
mod sync_report;

pub use family_sync::FamilySync;
pub use stopwatch::Stages;
pub use sync_report::{FailedRestore, Quarantine, Rejection, SyncError, SyncReport};

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use attempt::{Attempt, RestoreOutcome};

use crate::compile::{Source, SyncScope, View};
use crate::kernel::Iptables;

/// Recovers from one kind of failure, and passes every other outcome on.
type RetryPolicy<K> = fn(&mut Attempt<'_, K>, RestoreOutcome) -> RestoreOutcome;

impl<K: Iptables> FamilySync<K> {
    /// Brings the kernel in step with `view`. After a failure the next sync compares everything again; what was
    /// committed before the failure stays known. `stop` ends the sync early, between two restores.
    pub fn sync(&mut self, view: View<'_>, stop: &AtomicBool) -> SyncReport {
        let Some(settings) = self.settings.clone() else {
            let nothing = SyncScope::Partial(BTreeSet::new());
            return SyncReport::new(self.family(), self.tables.kernel.backend(), nothing);
        };
        let policies: [RetryPolicy<K>; 3] =
            [retry::split_inputs, retry::keep_referenced_chains, quarantine::quarantine_rejected];
        let mut attempt = Attempt::new(self, Source { settings: &settings, view }, stop);
        let outcome = attempt.apply_pending();
        let outcome = policies.into_iter().fold(outcome, |outcome, policy| policy(&mut attempt, outcome));
        attempt.finish(outcome)
    }
}
