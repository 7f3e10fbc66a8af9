//! What an earlier kube-proxy, of another mode or iptables back-end, left in the kernel: its rules
//! would meet packets beside ours. They stay until ours are in force, family by family; then they go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::kernel::Backend;
use crate::leftovers::{self, Leftover, LeftoverProblem};
use crate::net::{IpFamily, PerFamily};
use crate::sync::{Finding, Observer, Synced};

/// Tells the [`clear`] task of each family's first successful sync.
pub(super) struct FirstSyncs {
    is_synced: PerFamily<AtomicBool>,
    sender: mpsc::Sender<IpFamily>,
}

impl FirstSyncs {
    /// The observer, and what it tells.
    pub(super) fn new() -> (FirstSyncs, mpsc::Receiver<IpFamily>) {
        // One of each family at most: sending never waits.
        let (sender, receiver) = mpsc::channel(2);
        (FirstSyncs { is_synced: PerFamily::default(), sender }, receiver)
    }
}

impl Observer for FirstSyncs {
    fn synced(&self, synced: &Synced<'_>) {
        let family = synced.report.family;
        if synced.report.outcome.is_ok() && !self.is_synced.get(family).swap(true, Ordering::Relaxed) {
            // Nobody listens any more when the agent ends.
            let _ = self.sender.try_send(family);
        }
    }
}

/// Looks for what was left beside the back-end that is `ours`, and removes it as families are synced.
pub(super) async fn clear(
    ours: Backend,
    mut synced: mpsc::Receiver<IpFamily>,
    observers: Vec<Arc<dyn Observer>>,
) -> anyhow::Result<()> {
    let others = match ours {
        Backend::Nft => Backend::Legacy,
        Backend::Legacy => Backend::Nft,
    };
    let tell = |finding: Finding| observers.iter().for_each(|observer| observer.noticed(&finding));
    let (found, troubles) = tokio::task::spawn_blocking(move || look(others)).await?;
    troubles.iter().for_each(|trouble| warn!("{trouble}"));
    for leftover in &found {
        match leftover {
            Leftover::Rules { .. } | Leftover::NftTable(_) => {
                info!("found {leftover}; it goes once our rules are in force");
            }
            Leftover::ForeignServers(_) => info!("found {leftover} which stay"),
            Leftover::IpvsDevice | Leftover::IpvsServers(_) | Leftover::IpSets(_) => {
                let advice = by_hand(leftover);
                warn!(advice, "found {leftover}: Services may still be served by IPVS on this node");
                tell(Finding::LeftoverStays { what: leftover.to_string(), advice });
            }
        }
    }
    while let Some(family) = synced.recv().await {
        if !found.iter().any(|leftover| family_of(leftover) == Some(family)) {
            continue;
        }
        for (leftover, troubles) in tokio::task::spawn_blocking(move || remove(others, family)).await? {
            troubles.iter().for_each(|trouble| warn!("{trouble}"));
            let finding = outcome(&leftover, &troubles);
            info!("{finding}");
            tell(finding);
        }
    }
    Ok(())
}

fn look(others: Backend) -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    let (mut found, mut troubles) = leftovers::find_nft_tables();
    for family in IpFamily::BOTH {
        let (rules, trouble) = leftovers::find_rules(others, family);
        found.extend(rules);
        troubles.extend(trouble);
    }
    let (ipvs, trouble) = leftovers::find_ipvs();
    found.extend(ipvs);
    troubles.extend(trouble);
    (found, troubles)
}

/// Removes what there is of `family` by now.
fn remove(others: Backend, family: IpFamily) -> Vec<(Leftover, Vec<LeftoverProblem>)> {
    let (rules, mut troubles) = leftovers::find_rules(others, family);
    let (tables, trouble) = leftovers::find_nft_tables();
    troubles.extend(trouble);
    troubles.iter().for_each(|trouble| warn!("{trouble}"));
    let ours = rules.into_iter().chain(tables).filter(|leftover| family_of(leftover) == Some(family));
    let removed = ours.map(|leftover| {
        let troubles = leftovers::remove(&leftover);
        (leftover, troubles)
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

/// What is told of `leftover` after an attempt to remove it. Chains that others hold are empty: no
/// packet fares differently by them.
fn outcome(leftover: &Leftover, troubles: &[LeftoverProblem]) -> Finding {
    if troubles.is_empty() {
        let held = leftovers::referenced(leftover).into_iter().map(|held| format!("; {held}"));
        return Finding::LeftoverRemoved(leftover.to_string() + &held.collect::<String>());
    }
    let mut advice: Vec<String> = troubles.iter().map(ToString::to_string).collect();
    advice.push(by_hand(leftover));
    Finding::LeftoverStays { what: leftover.to_string(), advice: advice.join("; ") }
}

/// What somebody can do about it. Never `chainsmith cleanup`, which removes our own rules, too.
fn by_hand(leftover: &Leftover) -> String {
    match leftover.manual_removal() {
        Some(how) => format!("to remove it: {how}"),
        None => "Chainsmith tries again when it starts next".to_owned(),
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
    fn what_is_told_to_do_harms_nobody_else() {
        let trouble = [LeftoverProblem("cannot remove it: the lock is held".to_owned())];
        let all = [
            rules(":KUBE-SERVICES - [0:0]"),
            Leftover::NftTable(IpFamily::V6),
            Leftover::IpvsDevice,
            Leftover::IpSets(vec!["KUBE-LOOP-BACK".to_owned()]),
            Leftover::IpvsServers(Vec::new()),
        ];
        let expected = [
            "tries again when it starts next",
            "nft delete table ip6 kube-proxy",
            "ip link delete kube-ipvs0",
            "for set in KUBE-LOOP-BACK; do ipset destroy $set; done",
            "`ipvsadm -D -t ADDRESS:PORT` (-u for UDP); only if nothing else on this node uses IPVS",
        ];
        for (leftover, expected) in all.iter().zip(expected) {
            let told = outcome(leftover, &trouble).to_string();
            assert!(told.contains(expected) && told.contains("the lock is held"), "{told}");
            assert!(!told.contains("cleanup"), "it deletes the agent's own rules: {told}");
        }
    }

    #[test]
    fn a_chain_that_others_hold_is_named_with_them_and_needs_no_remedy() {
        let held = rules(
            ":KUBE-MARK-MASQ - [0:0]\n:CNI - [0:0]\n-A CNI -j KUBE-MARK-MASQ\n-A CNI -p tcp -j KUBE-MARK-MASQ",
        );
        let told = outcome(&held, &[]);
        assert!(matches!(told, Finding::LeftoverRemoved(_)) && !told.is_warning(), "{told:?}");
        let expected = "KUBE-MARK-MASQ is flushed, not deleted: foreign rules refer to it, in CNI";
        assert!(told.to_string().ends_with(expected), "{told}");
    }
}
