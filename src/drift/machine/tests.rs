//! Each state with each signal: one table.

use super::*;
use Action::{Audit, Check, CompareSlice};
use Comparison::{Different, Partial, Same};
use Knowledge::{Scanning, Suspect, Trusted, Unknown, Unverified};
use ReadReason::{
    AuditDue as Audits, CanaryFlushed, ChainMissing, ExternalCommit, FingerprintDiffers, RestoreFailed,
};
use Signal::{AuditDue, Audited, CheckDue, Checked, Distrusted, Disturbed, Read, Sliced};

const A: ChainName = ChainName::literal("KUBE-SVC-A");
const B: ChainName = ChainName::literal("KUBE-SVC-B");

/// After a failed restore, while no other process wrote.
const FAILED: Knowledge = Unknown { reason: RestoreFailed, unread: Unread::AsCommitted };
const FAILED_UNVERIFIED: Knowledge = Unknown { reason: RestoreFailed, unread: Unread::Unverified };
const FLUSHED: Knowledge = Unknown { reason: CanaryFlushed, unread: Unread::Rewritten };
const AUDITED: Knowledge = Unknown { reason: Audits, unread: Unread::Rewritten };
const DIFFERS: Knowledge = Unknown { reason: FingerprintDiffers, unread: Unread::Rewritten };
const DIFFERS_IN_PART: Knowledge = Unknown { reason: FingerprintDiffers, unread: Unread::UnverifiedIfDumped };
const SUSPECT: Knowledge = Suspect { reason: ExternalCommit, resume: None };
const RESUMES: Knowledge = Suspect { reason: ExternalCommit, resume: Some(A) };
const CURSOR: Cursor = Cursor { after: Some(A), n_left: 7, is_complete: true };
const SCANNING: Knowledge = Scanning(CURSOR);
const FURTHER: Cursor = Cursor { after: Some(B), n_left: 3, is_complete: true };
const ENDED: Cursor = Cursor { after: Some(B), n_left: 0, is_complete: true };
const ENDED_WITH_GAPS: Cursor = Cursor { after: Some(B), n_left: 0, is_complete: false };
const WHOLE: Comparison = Different { reason: FingerprintDiffers, is_whole: true };
const IN_PART: Comparison = Different { reason: FingerprintDiffers, is_whole: false };
const LEFT: Comparison = Partial { n_left: 7, is_complete: true };
const GAPS: Comparison = Partial { n_left: 0, is_complete: false };
const NONE: Action = Action::None;
const READ: Action = Action::Read(FingerprintDiffers);
const READ_BY_AUDIT: Action = Action::Read(Audits);

/// Every reason.
const REASONS: [ReadReason; 17] = [
    ReadReason::Start,
    ReadReason::ExternalCommit,
    ReadReason::GenerationUnreadable,
    ReadReason::LegacyPoll,
    ReadReason::AuditDue,
    ReadReason::CanaryFlushed,
    ReadReason::FingerprintDiffers,
    ReadReason::RuleCountDiffers,
    ReadReason::FingerprintMissing,
    ReadReason::DumpFailed,
    ReadReason::ChainMissing,
    ReadReason::ChainStray,
    ReadReason::JumpMissing,
    ReadReason::RestoreFailed,
    ReadReason::RestoreEffectUnknown,
    ReadReason::RepairWritten,
    ReadReason::StaleChainReferenced,
];

type Row = (&'static str, Knowledge, Signal, Knowledge, Action);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Another process may have written.
    ("the read to come covers a commit, except for what it cannot read", FAILED, Disturbed(ExternalCommit), FAILED_UNVERIFIED, NONE),
    ("a table that is rewritten anyway stays so", FLUSHED, Disturbed(ExternalCommit), FLUSHED, NONE),
    ("an external commit raises suspicion", Trusted, Disturbed(ExternalCommit), SUSPECT, NONE),
    ("suspicion keeps its first reason", SUSPECT, Disturbed(ReadReason::LegacyPoll), SUSPECT, NONE),
    ("an interrupted scan goes on where it was", SCANNING, Disturbed(ExternalCommit), RESUMES, NONE),
    ("an external commit has unverified tables checked once more", Unverified, Disturbed(ExternalCommit), SUSPECT, NONE),
    // The tables are not to be relied on.
    ("a second failure changes nothing", FAILED, Distrusted(RestoreFailed), FAILED, NONE),
    ("a flush after a failure is the better reason to read", FAILED, Distrusted(CanaryFlushed), FLUSHED, NONE),
    ("a failure after a flush makes nothing trusted again", FLUSHED, Distrusted(RestoreFailed), FLUSHED, NONE),
    ("nothing replaces the first read", Knowledge::START, Distrusted(CanaryFlushed), Knowledge::START, NONE),
    ("after a failure chains that cannot be read hold what was committed", Trusted, Distrusted(RestoreFailed), FAILED, NONE),
    ("after a flush chains that cannot be read are rewritten", Trusted, Distrusted(CanaryFlushed), FLUSHED, NONE),
    ("a failure does not end a suspicion", SUSPECT, Distrusted(RestoreFailed), FAILED_UNVERIFIED, NONE),
    ("a flush is read whatever was suspected", SUSPECT, Distrusted(CanaryFlushed), FLUSHED, NONE),
    ("a failure does not end a scan's suspicion", SCANNING, Distrusted(RestoreFailed), FAILED_UNVERIFIED, NONE),
    ("a failure does not verify", Unverified, Distrusted(RestoreFailed), FAILED_UNVERIFIED, NONE),
    // A check is due.
    ("what is read anyway is not checked", FAILED, CheckDue, FAILED, NONE),
    ("what is trusted is not checked", Trusted, CheckDue, Trusted, NONE),
    ("what is suspect is checked", SUSPECT, CheckDue, SUSPECT, Check),
    ("a scan goes on with the next slice", SCANNING, CheckDue, SCANNING, CompareSlice(CURSOR)),
    ("what could not be compared is left to the audit", Unverified, CheckDue, Unverified, NONE),
    // An audit is due.
    ("an audit does not make a failure worse while no other process wrote", FAILED, AuditDue, FAILED, NONE),
    ("an audit trusts nothing that is unread once another process wrote", FAILED_UNVERIFIED, AuditDue, AUDITED, READ_BY_AUDIT),
    ("a read of everything is due already", FLUSHED, AuditDue, FLUSHED, NONE),
    ("an audit of what is trusted has nothing to compare", Trusted, AuditDue, Trusted, NONE),
    ("an audit compares what is suspect", SUSPECT, AuditDue, SUSPECT, Audit),
    ("an audit does not wait for a scan", SCANNING, AuditDue, SCANNING, Audit),
    ("an audit compares what is unverified", Unverified, AuditDue, Unverified, Audit),
    // What a check found.
    ("a check of unknown tables says nothing", FAILED, Checked(Same), FAILED, NONE),
    ("what is the same stays trusted", Trusted, Checked(Same), Trusted, NONE),
    ("suspicion that proves wrong ends", SUSPECT, Checked(Same), Trusted, NONE),
    ("few chains with gaps are left to the audit", SUSPECT, Checked(GAPS), Unverified, NONE),
    ("many chains are compared in slices", SUSPECT, Checked(LEFT), Scanning(Cursor { after: None, ..CURSOR }), NONE),
    ("a scan begins where the last one was interrupted", RESUMES, Checked(LEFT), SCANNING, NONE),
    ("a difference is read at once", SUSPECT, Checked(WHOLE), DIFFERS, READ),
    ("a difference in part of the tables says nothing of the rest", SUSPECT, Checked(IN_PART), DIFFERS_IN_PART, READ),
    ("a slice that differs is read at once", SCANNING, Checked(IN_PART), DIFFERS_IN_PART, READ),
    ("a complete check verifies", Unverified, Checked(Same), Trusted, NONE),
    // What an audit found.
    ("an audit of unknown tables says nothing", FAILED, Audited(WHOLE), FAILED, NONE),
    ("an audit that finds no difference confirms trust", Trusted, Audited(Same), Trusted, NONE),
    ("an audit ends suspicion", SUSPECT, Audited(Same), Trusted, NONE),
    ("an audit reads what it cannot compare", SUSPECT, Audited(GAPS), AUDITED, READ_BY_AUDIT),
    ("an audit rewrites what it cannot read", SUSPECT, Audited(IN_PART), DIFFERS, READ),
    ("an audit reads what a scan had left", SCANNING, Audited(LEFT), AUDITED, READ_BY_AUDIT),
    ("an audit reads what was unverified", Unverified, Audited(GAPS), AUDITED, READ_BY_AUDIT),
    ("an audit verifies what it can compare after all", Unverified, Audited(Same), Trusted, NONE),
    // A slice is as it was left.
    ("a slice of unknown tables says nothing", FAILED, Sliced(ENDED), FAILED, NONE),
    ("a slice of trusted tables says nothing", Trusted, Sliced(ENDED), Trusted, NONE),
    ("a slice does not end a later suspicion", SUSPECT, Sliced(ENDED), SUSPECT, NONE),
    ("a scan goes on", SCANNING, Sliced(FURTHER), Scanning(FURTHER), NONE),
    ("a complete scan ends suspicion", SCANNING, Sliced(ENDED), Trusted, NONE),
    ("a scan with gaps is left to the audit", SCANNING, Sliced(ENDED_WITH_GAPS), Unverified, NONE),
    ("a slice does not verify the rest", Unverified, Sliced(ENDED), Unverified, NONE),
    // The kernel was read.
    ("the first read makes trusted", Knowledge::START, Read { is_complete: false }, Trusted, NONE),
    ("after a failure alone the rest is as committed", FAILED, Read { is_complete: false }, Trusted, NONE),
    ("what is rewritten is known", FLUSHED, Read { is_complete: false }, Trusted, NONE),
    ("a read of everything verifies", DIFFERS_IN_PART, Read { is_complete: true }, Trusted, NONE),
    ("what was not read is left to the audit", DIFFERS_IN_PART, Read { is_complete: false }, Unverified, NONE),
    ("a suspicion outlives a read that leaves gaps", FAILED_UNVERIFIED, Read { is_complete: false }, Unverified, NONE),
    ("a read that was not asked for changes nothing", Trusted, Read { is_complete: true }, Trusted, NONE),
    ("a read that was not asked for ends no suspicion", SUSPECT, Read { is_complete: true }, SUSPECT, NONE),
    ("a read that was not asked for ends no scan", SCANNING, Read { is_complete: true }, SCANNING, NONE),
    ("a read that was not asked for does not verify", Unverified, Read { is_complete: true }, Unverified, NONE),
];

#[test]
fn each_state_and_signal_leads_where_the_table_says() {
    for (claim, state, signal, next, action) in TABLE {
        assert_eq!(state.after(*signal), (*next, *action), "{claim}: {state:?}, {signal:?}");
    }
}

#[test]
fn the_table_has_each_state_with_each_signal() {
    let state = |knowledge: &Knowledge| match knowledge {
        Unknown { .. } => 0,
        Trusted => 1,
        Suspect { .. } => 2,
        Scanning(_) => 3,
        Unverified => 4,
    };
    let signal = |signal: &Signal| match signal {
        Disturbed(_) => 0,
        Distrusted(_) => 1,
        CheckDue => 2,
        AuditDue => 3,
        Checked(_) => 4,
        Audited(_) => 5,
        Sliced(_) => 6,
        Read { .. } => 7,
    };
    let mut pairs: Vec<(i32, i32)> = TABLE.iter().map(|row| (state(&row.1), signal(&row.2))).collect();
    pairs.sort_unstable();
    pairs.dedup();
    assert_eq!(pairs.len(), 5 * 8, "{pairs:?}");
}

#[test]
fn a_reason_that_asks_for_less_never_replaces_one_that_asks_for_more() {
    let states = TABLE.iter().map(|row| row.1).filter(|state| state.is_unknown());
    for state in states {
        for reason in REASONS {
            let unread = |state: Knowledge| match state {
                Unknown { unread, .. } => unread,
                other => panic!("{other:?}"),
            };
            for signal in [Distrusted(reason), Disturbed(reason), CheckDue, AuditDue] {
                assert!(unread(state.after(signal).0) >= unread(state), "{state:?}, {signal:?}");
            }
        }
    }
    assert_eq!(
        FAILED.after(Distrusted(ChainMissing)).0,
        Unknown { reason: ChainMissing, unread: Unread::Rewritten }
    );
}

#[test]
fn each_reason_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> = REASONS.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), REASONS.len());
    assert!(REASONS.is_sorted(), "in the order of the enum, so that none is missing");
}
