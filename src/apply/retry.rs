//! Policies that recover from failures which no service port causes.

use super::attempt::{Attempt, RestoreOutcome};
use crate::drift::ReadReason;
use crate::iptables::ChainName;
use crate::kernel::{Iptables, RestoreError};
use crate::plan::RestoreFailure;

/// Splits inputs that are too large for the kernel, as long as they can be split.
pub(super) fn split_inputs<K: Iptables>(
    attempt: &mut Attempt<'_, K>,
    mut outcome: RestoreOutcome,
) -> RestoreOutcome {
    while matches!(&outcome, Err(failure) if matches!(failure.error, RestoreError::TooLarge(_)))
        && attempt.family.tables.kernel.shrink_limits()
    {
        attempt.family.tables.distrust(ReadReason::RestoreFailed);
        outcome = attempt.apply_everything();
    }
    outcome
}

/// Flushes stale chains that cannot be deleted because foreign rules refer to them: reads nat for all such
/// chains first; where that does not help, keeps every stale chain.
pub(super) fn keep_referenced_chains<K: Iptables>(
    attempt: &mut Attempt<'_, K>,
    mut outcome: RestoreOutcome,
) -> RestoreOutcome {
    for keeps_all in [false, true] {
        let Some(chain) = outcome.as_ref().err().and_then(undeletable_chain) else { break };
        if !keeps_all {
            attempt.read_kernel(|tables| tables.read_referenced());
        }
        attempt.family.tables.references.referenced.insert(chain);
        attempt.family.tables.references.keeps_all = keeps_all;
        outcome = attempt.apply_everything();
    }
    attempt.family.tables.references.keeps_all = false;
    outcome
}

/// The chain that could not be deleted, because a foreign rule refers to it.
fn undeletable_chain(failure: &RestoreFailure<RestoreError>) -> Option<ChainName> {
    let RestoreError::Refused { text, message, .. } = &failure.error else { return None };
    // legacy names the line, nf_tables the chain: `CHAIN_DEL failed (Device or resource busy): chain X`,
    // with 1.8.7 `CHAIN_USER_DEL failed`.
    let by_line = text.as_deref().and_then(|text| text.strip_prefix("-X "));
    let by_message = || {
        let (_, rest) =
            message.split_once("CHAIN_DEL failed").or(message.split_once("CHAIN_USER_DEL failed"))?;
        rest.split_once("chain ")?.1.split_whitespace().next()
    };
    by_line.or_else(by_message).and_then(|name| ChainName::new(name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LineIndex;

    #[test]
    fn a_chain_that_foreign_rules_refer_to_is_found_in_the_message_of_each_release() {
        let undeletable = |text: Option<&str>, message: &str| {
            let (text, message) = (text.map(str::to_owned), message.to_owned());
            let error = RestoreError::Refused { line: 13, text, message };
            let failure = RestoreFailure { error, lines: LineIndex::default() };
            undeletable_chain(&failure).map(|chain| chain.to_string())
        };
        let name = Some("KUBE-SVC-AI2USSGGNVDGK3N5".to_owned());
        for word in ["CHAIN_DEL", "CHAIN_USER_DEL"] {
            let reason = "failed (Device or resource busy): chain KUBE-SVC-AI2USSGGNVDGK3N5";
            let message = format!("iptables-nft-restore v1.8.7 (nf_tables):; line 13: {word} {reason}");
            assert_eq!(undeletable(Some("COMMIT"), &message), name);
        }
        let text = "-X KUBE-SVC-AI2USSGGNVDGK3N5";
        assert_eq!(undeletable(Some(text), "iptables-legacy-restore: line 13 failed"), name);
        assert_eq!(
            undeletable(Some("COMMIT"), "line 13: RULE_APPEND failed (Invalid argument): rule in chain X"),
            None
        );
    }
}
