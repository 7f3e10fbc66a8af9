//! What the agent knows of the kernel's tables of one family, as a state machine: [`Knowledge`] and a [`Signal`] give
//! the next `Knowledge` and an [`Action`]. No clock, no IO, no log; the caller does what the action says, at the time
//! that `drift::schedule` gives, and returns the result as the next signal.
//!
//! ARCHITECTURE.md has the drawing; the table test names each transition.

use super::reason::ReadReason;
use crate::iptables::ChainName;

/// What is known of a family's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing to rely on: the next sync reads the kernel before it writes.
    Unknown {
        /// Why.
        reason: ReadReason,
        /// What is assumed of chains that can be neither read nor compared.
        unread: Unread,
    },
    /// The tables are as they were left, up to the generation of the last commit or check.
    Trusted,
    /// Another process may have changed them; the next check shows whether it did.
    Suspect {
        /// What raised the suspicion.
        reason: ReadReason,
        /// The last chain that an interrupted scan compared; the next scan begins after it.
        resume: Option<ChainName>,
    },
    /// The chains of a large nat are being compared in slices; what was compared so far is as it was left.
    Scanning(Cursor),
    /// All that could be compared is as it was left. The next audit reads the rest.
    Unverified,
}

/// What a read assumes of a chain that it can neither read nor compare by fingerprint (in a table of very many chains).
/// In ascending order of distrust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unread {
    /// It holds what was committed: a restore of ours failed, and no other process wrote.
    AsCommitted,
    /// It holds what was committed, as far as known: the next audit reads it.
    Unverified,
    /// As `Unverified`, if the table can be dumped at all; else it is rewritten.
    UnverifiedIfDumped,
    /// Nothing: it is rewritten.
    Rewritten,
}

/// How far a scan has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The last chain that was compared; `None`: the scan begins with the first chain.
    pub after: Option<ChainName>,
    /// How many chains are left.
    pub n_left: usize,
    /// Whether each chain so far had a fingerprint to compare with.
    pub is_complete: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Another process may have changed the tables.
    Disturbed(ReadReason),
    /// The tables are not as known, or may not be: a failed restore, a flush.
    Distrusted(ReadReason),
    /// It is time for the next check.
    CheckDue,
    /// It is time for an audit.
    AuditDue,
    /// What a check found.
    Checked(Comparison),
    /// What an audit found.
    Audited(Comparison),
    /// A slice was compared and is as it was left; how far the scan is now.
    Sliced(Cursor),
    /// The kernel was read.
    Read {
        /// Each chain's rules were read, or its fingerprint compared.
        is_complete: bool,
    },
}

/// What a comparison with the kernel found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Everything is as it was left.
    Same,
    /// What was compared is as it was left.
    Partial {
        /// So many chains are left for a scan.
        n_left: usize,
        /// Nothing else is left.
        is_complete: bool,
    },
    /// Something differs, or only reading tells.
    Different {
        /// What.
        reason: ReadReason,
        /// Everything was compared, or reading is cheap: what cannot be read is rewritten.
        is_whole: bool,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Compare the tables as far as that is quick; the result is a [`Signal::Checked`].
    Check,
    /// Compare the tables; the result is a [`Signal::Audited`].
    Audit,
    /// Compare the next slice; the result is a [`Signal::Sliced`] or [`Signal::Checked`].
    CompareSlice(Cursor),
    /// Sync every service port at once; the sync reads the kernel, for this reason.
    Read(ReadReason),
}

impl Knowledge {
    /// Before anything was read.
    pub const START: Knowledge = Knowledge::Unknown { reason: ReadReason::Start, unread: Unread::Rewritten };

    /// The next state, and what is to be done in it.
    pub fn after(self, signal: Signal) -> (Knowledge, Action) {
        match signal {
            Signal::Disturbed(reason) => (self.disturbed(reason), Action::None),
            Signal::Distrusted(reason) => (self.distrusted(reason), Action::None),
            Signal::CheckDue => match self {
                Knowledge::Suspect { .. } => (self, Action::Check),
                Knowledge::Scanning(cursor) => (self, Action::CompareSlice(cursor)),
                Knowledge::Unknown { .. } | Knowledge::Trusted | Knowledge::Unverified => {
                    (self, Action::None)
                }
            },
            Signal::AuditDue => match self {
                Knowledge::Suspect { .. } | Knowledge::Scanning(_) | Knowledge::Unverified => {
                    (self, Action::Audit)
                }
                Knowledge::Unknown { unread: Unread::Unverified | Unread::UnverifiedIfDumped, .. } => {
                    unknown(ReadReason::AuditDue, Unread::Rewritten)
                }
                Knowledge::Unknown { .. } | Knowledge::Trusted => (self, Action::None),
            },
            Signal::Checked(comparison) => self.checked(comparison),
            Signal::Audited(comparison) => match (self, comparison) {
                (Knowledge::Unknown { .. }, _) => (self, Action::None),
                (_, Comparison::Same) => (Knowledge::Trusted, Action::None),
                (_, Comparison::Partial { .. }) => unknown(ReadReason::AuditDue, Unread::Rewritten),
                (_, Comparison::Different { reason, .. }) => unknown(reason, Unread::Rewritten),
            },
            Signal::Sliced(cursor) => match self {
                Knowledge::Scanning(_) => (scanned_to(cursor), Action::None),
                _ => (self, Action::None),
            },
            Signal::Read { is_complete } => {
                match self {
                    Knowledge::Unknown {
                        unread: Unread::Unverified | Unread::UnverifiedIfDumped, ..
                    } if !is_complete => (Knowledge::Unverified, Action::None),
                    Knowledge::Unknown { .. } => (Knowledge::Trusted, Action::None),
                    _ => (self, Action::None),
                }
            }
        }
    }

    /// Whether the next sync has to read the kernel.
    pub fn is_unknown(self) -> bool {
        matches!(self, Knowledge::Unknown { .. })
    }

    fn disturbed(self, reason: ReadReason) -> Knowledge {
        match self {
            Knowledge::Unknown { reason, unread } => {
                Knowledge::Unknown { reason, unread: unread.max(Unread::Unverified) }
            }
            Knowledge::Trusted | Knowledge::Unverified => Knowledge::Suspect { reason, resume: None },
            Knowledge::Suspect { .. } => self,
            Knowledge::Scanning(cursor) => Knowledge::Suspect { reason, resume: cursor.after },
        }
    }

    fn distrusted(self, reason: ReadReason) -> Knowledge {
        let unread = match self {
            _ if !reason.is_own_failure() => Unread::Rewritten,
            Knowledge::Unknown { .. } | Knowledge::Trusted => Unread::AsCommitted,
            Knowledge::Suspect { .. } | Knowledge::Scanning(_) | Knowledge::Unverified => Unread::Unverified,
        };
        match self {
            // The reason that asks for the more thorough read stays.
            Knowledge::Unknown { unread: before, .. } if before >= unread => self,
            _ => Knowledge::Unknown { reason, unread },
        }
    }

    fn checked(self, comparison: Comparison) -> (Knowledge, Action) {
        let after = match self {
            Knowledge::Unknown { .. } => return (self, Action::None),
            Knowledge::Suspect { resume, .. } => resume,
            Knowledge::Scanning(cursor) => cursor.after,
            Knowledge::Trusted | Knowledge::Unverified => None,
        };
        match comparison {
            Comparison::Same => (Knowledge::Trusted, Action::None),
            Comparison::Partial { n_left, is_complete } => {
                (scanned_to(Cursor { after, n_left, is_complete }), Action::None)
            }
            Comparison::Different { reason, is_whole: true } => unknown(reason, Unread::Rewritten),
            Comparison::Different { reason, is_whole: false } => unknown(reason, Unread::UnverifiedIfDumped),
        }
    }
}

fn unknown(reason: ReadReason, unread: Unread) -> (Knowledge, Action) {
    (Knowledge::Unknown { reason, unread }, Action::Read(reason))
}

fn scanned_to(cursor: Cursor) -> Knowledge {
    match cursor {
        Cursor { n_left: 1.., .. } => Knowledge::Scanning(cursor),
        Cursor { is_complete: true, .. } => Knowledge::Trusted,
        Cursor { is_complete: false, .. } => Knowledge::Unverified,
    }
}

#[cfg(test)]
mod tests;
