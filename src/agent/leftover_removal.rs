//! Removes what an earlier kube-proxy of another mode or iptables back-end left in the kernel, because its rules apply
//! to packets beside ours. The leftovers of a family stay until our rules of that family are in force.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::kernel::Backend;
use crate::leftovers::{self, Leftover, LeftoverProblem};
use crate::net::{IpFamily, PerFamily};
use crate::sync::{Finding, Observer, Synced};

/// Notifies the [`remove_leftovers`] task of each family's first successful sync.
pub(super) struct FirstSyncNotifier {
    is_synced: PerFamily<AtomicBool>,
    sender: mpsc::Sender<IpFamily>,
}

impl FirstSyncNotifier {
    /// The observer, and the receiver of its notifications.
    pub(super) fn new() -> (FirstSyncNotifier, mpsc::Receiver<IpFamily>) {
        // At most one notification of each family, so sending never waits.
        let (sender, receiver) = mpsc::channel(2);
        (FirstSyncNotifier { is_synced: PerFamily::default(), sender }, receiver)
    }
}

impl Observer for FirstSyncNotifier {
    fn synced(&self, synced: &Synced<'_>) {
        let family = synced.report.family;
        if synced.report.outcome.is_ok() && !self.is_synced.get(family).swap(true, Ordering::Relaxed) {
            // The receiver is dropped when the agent exits.
            let _ = self.sender.try_send(family);
        }
    }
}

/// Finds leftovers outside the back-end `ours`, and removes those of each family after its first successful sync.
pub(super) async fn remove_leftovers(
    ours: Backend,
    mut synced: mpsc::Receiver<IpFamily>,
    observers: Vec<Arc<dyn Observer>>,
) -> anyhow::Result<()> {
    let other = match ours {
        Backend::Nft => Backend::Legacy,
        Backend::Legacy => Backend::Nft,
    };
    let report = |finding: Finding| observers.iter().for_each(|observer| observer.noticed(&finding));
    let (found, problems) = tokio::task::spawn_blocking(move || find(other)).await?;
    log_problems(&problems);
    for leftover in &found {
        match leftover {
            Leftover::Rules { .. } | Leftover::NftTable(_) => {
                info!(%leftover, "found leftover; removing it once our rules are in force");
            }
            Leftover::ForeignServers(_) => info!(%leftover, "found foreign IPVS servers; keeping them"),
            Leftover::IpvsDevice | Leftover::IpvsServers(_) | Leftover::IpSets(_) => {
                let advice = manual_removal(leftover);
                warn!(%leftover, advice, "found leftover; IPVS may still serve Services on this node");
                report(Finding::LeftoverStays { what: leftover.to_string(), advice });
            }
        }
    }
    while let Some(family) = synced.recv().await {
        if !found.iter().any(|leftover| family_of(leftover) == Some(family)) {
            continue;
        }
        for (leftover, problems) in tokio::task::spawn_blocking(move || remove(other, family)).await? {
            log_problems(&problems);
            let finding = outcome(&leftover, &problems);
            match &finding {
                Finding::LeftoverStays { what, advice } => {
                    warn!(leftover = what, advice, "cannot remove leftover")
                }
                _ => info!(%leftover, "removed leftover"),
            }
            report(finding);
        }
    }
    Ok(())
}

fn log_problems(problems: &[LeftoverProblem]) {
    problems.iter().for_each(|problem| warn!(error = %problem, "cannot read or remove leftovers"));
}

fn find(other: Backend) -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    let (mut found, mut problems) = leftovers::find_nft_tables();
    for family in IpFamily::BOTH {
        let (rules, more) = leftovers::find_rules(other, family);
        found.extend(rules);
        problems.extend(more);
    }
    let (ipvs, more) = leftovers::find_ipvs();
    found.extend(ipvs);
    problems.extend(more);
    (found, problems)
}

/// Removes the present leftovers of `family`.
fn remove(other: Backend, family: IpFamily) -> Vec<(Leftover, Vec<LeftoverProblem>)> {
    let (rules, mut problems) = leftovers::find_rules(other, family);
    let (tables, more) = leftovers::find_nft_tables();
    problems.extend(more);
    log_problems(&problems);
    let of_family = rules.into_iter().chain(tables).filter(|leftover| family_of(leftover) == Some(family));
    let removed = of_family.map(|leftover| {
        let problems = leftovers::remove(&leftover);
        (leftover, problems)
    });
    removed.collect()
}

fn family_of(leftover: &Leftover) -> Option<IpFamily> {
    match leftover {
        Leftover::Rules { family, .. } | Leftover::NftTable(family) => Some(*family),
        Leftover::IpvsDevice
        | Leftover::IpvsServers(_)
        | Leftover::ForeignServers(_)
        | Leftover::IpSets(_) => None,
    }
}

/// The finding after an attempt to remove `leftover`. Chains that foreign rules refer to stay, but are empty, so
/// they do not affect packets.
fn outcome(leftover: &Leftover, problems: &[LeftoverProblem]) -> Finding {
    if problems.is_empty() {
        let referenced = leftovers::referenced(leftover).into_iter().map(|chain| format!("; {chain}"));
        return Finding::LeftoverRemoved(leftover.to_string() + &referenced.collect::<String>());
    }
    let mut advice: Vec<String> = problems.iter().map(ToString::to_string).collect();
    advice.push(manual_removal(leftover));
    Finding::LeftoverStays { what: leftover.to_string(), advice: advice.join("; ") }
}

/// What a person can do about it. Never `chainsmith cleanup`, which removes our own rules, too.
fn manual_removal(leftover: &Leftover) -> String {
    match leftover.manual_removal() {
        Some(how) => format!("to remove it: {how}"),
        None => "Chainsmith tries again at its next start".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::Table;
    use crate::leftovers::LeftoverChains;

    fn rules(text: &str) -> Leftover {
        let mut chains = LeftoverChains::new(IpFamily::V4, Table::Nat);
        text.lines().for_each(|line| chains.read_line(line));
        Leftover::Rules { backend: Backend::Legacy, family: IpFamily::V4, chains }
    }

    #[test]
    fn advice_never_affects_foreign_or_our_own_rules() {
        let problems = [LeftoverProblem("cannot remove it: the lock is held".to_owned())];
        let all = [
            rules(":KUBE-SERVICES - [0:0]"),
            Leftover::NftTable(IpFamily::V6),
            Leftover::IpvsDevice,
            Leftover::IpSets(vec!["KUBE-LOOP-BACK".to_owned()]),
            Leftover::IpvsServers(Vec::new()),
        ];
        let expected = [
            "tries again at its next start",
            "nft delete table ip6 kube-proxy",
            "ip link delete kube-ipvs0",
            "for set in KUBE-LOOP-BACK; do ipset destroy $set; done",
            "`ipvsadm -D -t ADDRESS:PORT` (-u for UDP); only if nothing else on this node uses IPVS",
        ];
        for (leftover, expected) in all.iter().zip(expected) {
            let text = outcome(leftover, &problems).to_string();
            assert!(text.contains(expected) && text.contains("the lock is held"), "{text}");
            assert!(!text.contains("cleanup"), "it deletes the agent's own rules: {text}");
        }
    }

    #[test]
    fn a_referenced_chain_is_reported_with_the_referring_chains_and_needs_no_advice() {
        let referenced = rules(
            ":KUBE-MARK-MASQ - [0:0]\n:CNI - [0:0]\n-A CNI -j KUBE-MARK-MASQ\n-A CNI -p tcp -j KUBE-MARK-MASQ",
        );
        let text = outcome(&referenced, &[]);
        assert!(matches!(text, Finding::LeftoverRemoved(_)) && !text.is_warning(), "{text:?}");
        let expected = "KUBE-MARK-MASQ is flushed, not deleted: foreign rules refer to it, in CNI";
        assert!(text.to_string().ends_with(expected), "{text}");
    }
}
