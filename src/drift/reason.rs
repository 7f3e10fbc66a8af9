//! Why the kernel is read or checked.

use crate::plan::FailureEffect;

/// Why the kernel's tables are read, or checked for drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadReason {
    /// The agent has not read the tables yet.
    Start,
    /// Another process committed to nf_tables, or a notification was lost.
    ExternalCommit,
    /// The ruleset's generation, which shows commits of other processes, could not be read.
    GenerationUnreadable,
    /// The legacy back-end announces no change: its tables are checked each second.
    LegacyPoll,
    /// An audit is due, and fingerprints do not cover everything that another process may have changed.
    AuditDue,
    /// The canary chain is gone: another process flushed the tables.
    CanaryFlushed,
    /// A chain's fingerprint differs from the one recorded.
    FingerprintDiffers,
    /// A chain was written and has another number of rules than was written.
    RuleCountDiffers,
    /// A chain has no fingerprint; there are few chains, so all are read.
    FingerprintMissing,
    /// The kernel's dump failed; there are few chains, so all are read.
    DumpFailed,
    /// A chain that was written does not exist.
    ChainMissing,
    /// A chain exists that was not written and is ours by its name.
    ChainStray,
    /// A built-in chain lacks a jump of ours.
    JumpMissing,
    /// A restore failed; tables before the one at fault may have been committed.
    RestoreFailed,
    /// A restore was killed or timed out: which tables were committed is not known.
    RestoreEffectUnknown,
    /// Drift was repaired; the repaired chains are read back once.
    RepairWritten,
    /// A stale chain could not be deleted: foreign rules refer to it, and nat is read for all such references.
    StaleChainReferenced,
}

impl ReadReason {
    /// In log lines and as the metric's label: lower case, words joined by `_`.
    pub fn as_str(self) -> &'static str {
        match self {
            ReadReason::Start => "start",
            ReadReason::ExternalCommit => "external_commit",
            ReadReason::GenerationUnreadable => "generation_unreadable",
            ReadReason::LegacyPoll => "legacy_poll",
            ReadReason::AuditDue => "audit_due",
            ReadReason::CanaryFlushed => "canary_flushed",
            ReadReason::FingerprintDiffers => "fingerprint_differs",
            ReadReason::RuleCountDiffers => "rule_count_differs",
            ReadReason::FingerprintMissing => "fingerprint_missing",
            ReadReason::DumpFailed => "dump_failed",
            ReadReason::ChainMissing => "chain_missing",
            ReadReason::ChainStray => "chain_stray",
            ReadReason::JumpMissing => "jump_missing",
            ReadReason::RestoreFailed => "restore_failed",
            ReadReason::RestoreEffectUnknown => "restore_effect_unknown",
            ReadReason::RepairWritten => "repair_written",
            ReadReason::StaleChainReferenced => "stale_chain_referenced",
        }
    }

    /// Why the kernel is read after a restore that failed with `effect`.
    pub fn after_failure(effect: FailureEffect) -> ReadReason {
        match effect {
            FailureEffect::Unknown => ReadReason::RestoreEffectUnknown,
            FailureEffect::NothingApplied | FailureEffect::EarlierTablesApplied => ReadReason::RestoreFailed,
        }
    }

    /// Whether the tables are unknown because of a failure of ours and not of another process.
    pub(super) fn is_own_failure(self) -> bool {
        matches!(self, ReadReason::RestoreFailed | ReadReason::RestoreEffectUnknown)
    }
}

impl std::fmt::Display for ReadReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
