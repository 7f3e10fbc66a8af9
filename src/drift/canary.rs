//! Detects that another process flushed all tables: an empty chain that the agent made in mangle is gone. A flush of
//! nat or filter alone shows in the chains themselves (`drift::compare`).
//!
//! Source: kube-proxy v1.36, `iptables.Monitor`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::warn;

use crate::iptables::Table;
use crate::kernel::Iptables;
use crate::log::v;
use crate::net::IpFamily;
use crate::rules::names::KUBE_PROXY_CANARY;

/// The tables with a canary. Only the first is checked each period; the others show when a flush is over.
const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Filter];
/// How often to check whether a flush has reached the other tables.
const FLUSH_POLL: Duration = Duration::from_millis(100);
/// How many times.
const FLUSH_POLLS: u32 = 50;

/// Makes the canaries in `kernel`, and from then on checks every `period` whether they exist; sends the family to
/// `flushed` when they do not. Ends when the receiver is gone.
///
/// A check that fails says nothing (the xtables lock may be held): the next one does.
pub async fn watch<K: Iptables + 'static>(kernel: K, period: Duration, flushed: mpsc::Sender<IpFamily>) {
    let family = kernel.family();
    let kernel = Arc::new(Mutex::new(kernel));
    loop {
        while let Err(error) = make_all(&kernel).await {
            warn!(%family, retry_in = ?period, error = %format!("{error:#}"), "cannot make the canary chains; retrying");
            tokio::time::sleep(period).await;
        }
        loop {
            tokio::time::sleep(period).await;
            match is_there(&kernel, TABLES[0]).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    v!(3, %family, error = %format!("{error:#}"), "cannot check the canary chain")
                }
            }
            if flushed.is_closed() {
                return;
            }
        }
        wait_for_the_rest(&kernel, family).await;
        if flushed.send(family).await.is_err() {
            return;
        }
    }
}

/// A process that flushes one table mostly goes on with the others: waits until it is done, so that rules are not written
/// while it flushes.
async fn wait_for_the_rest<K: Iptables + 'static>(kernel: &Arc<Mutex<K>>, family: IpFamily) {
    for _ in 0..FLUSH_POLLS {
        let mut n_left = 0;
        for table in &TABLES[1..] {
            n_left += usize::from(!matches!(is_there(kernel, *table).await, Ok(false)));
        }
        if n_left == 0 {
            return;
        }
        tokio::time::sleep(FLUSH_POLL).await;
    }
    warn!(%family, "the canary chain is gone from mangle only; checking all tables");
}

async fn make_all<K: Iptables + 'static>(kernel: &Arc<Mutex<K>>) -> anyhow::Result<()> {
    on_thread(kernel, |kernel| {
        TABLES.iter().try_for_each(|table| kernel.ensure_chain(*table, KUBE_PROXY_CANARY))
    })
    .await
}

async fn is_there<K: Iptables + 'static>(kernel: &Arc<Mutex<K>>, table: Table) -> anyhow::Result<bool> {
    on_thread(kernel, move |kernel| kernel.has_chain(table, KUBE_PROXY_CANARY)).await
}

async fn on_thread<K: Iptables + 'static, T: Send + 'static>(
    kernel: &Arc<Mutex<K>>,
    work: impl FnOnce(&mut K) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let kernel = kernel.clone();
    let locked = move || work(&mut kernel.lock().unwrap_or_else(PoisonError::into_inner));
    tokio::task::spawn_blocking(locked).await?
}
