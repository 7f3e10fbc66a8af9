//! What an earlier kube-proxy, of another mode or iptables back-end, left in the kernel: its rules
//! would meet packets beside ours. They stay until ours are in force, family by family; then they go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::kernel::Backend;
use crate::leftovers::{self, IPVS_COMMAND, Leftover, Trouble};
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
            Leftover::IpvsDevice | Leftover::IpvsServers(_) => {
                let remedy = remedy(leftover);
                warn!(remedy, "found {leftover}: Services may still be served by IPVS on this node");
                tell(Finding::LeftoverStays { what: leftover.to_string(), remedy });
            }
        }
    }
    while let Some(family) = synced.recv().await {
        if !found.iter().any(|leftover| family_of(leftover) == Some(family)) {
            continue;
        }
        for (what, troubles) in tokio::task::spawn_blocking(move || remove(others, family)).await? {
            troubles.iter().for_each(|trouble| warn!("{trouble}"));
            if troubles.is_empty() {
                info!("removed {what}");
                tell(Finding::LeftoverRemoved(what));
            } else {
                let remedy = "chainsmith cleanup".to_owned();
                tell(Finding::LeftoverStays { what, remedy });
            }
        }
    }
    Ok(())
}

fn look(others: Backend) -> (Vec<Leftover>, Vec<Trouble>) {
    let (mut found, mut troubles) = leftovers::find_nft_tables();
    for family in IpFamily::BOTH {
        let (rules, trouble) = leftovers::find_rules(others, family);
        found.extend(rules);
        troubles.extend(trouble);
    }
    found.extend(leftovers::find_ipvs());
    (found, troubles)
}

/// Removes what there is of `family` by now.
fn remove(others: Backend, family: IpFamily) -> Vec<(String, Vec<Trouble>)> {
    let (rules, mut troubles) = leftovers::find_rules(others, family);
    let (tables, trouble) = leftovers::find_nft_tables();
    troubles.extend(trouble);
    troubles.iter().for_each(|trouble| warn!("{trouble}"));
    let ours = rules.into_iter().chain(tables).filter(|leftover| family_of(leftover) == Some(family));
    ours.map(|leftover| (leftover.to_string(), leftovers::remove(&leftover))).collect()
}

fn family_of(leftover: &Leftover) -> Option<IpFamily> {
    match leftover {
        Leftover::Rules { family, .. } | Leftover::NftTable(family) => Some(*family),
        Leftover::IpvsDevice | Leftover::IpvsServers(_) => None,
    }
}

fn remedy(leftover: &Leftover) -> String {
    match leftover {
        Leftover::IpvsServers(_) => IPVS_COMMAND.to_owned(),
        _ => "chainsmith cleanup, or: ip link delete kube-ipvs0".to_owned(),
    }
}
