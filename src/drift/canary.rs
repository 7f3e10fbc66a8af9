//! Notices that somebody flushed the tables: an empty chain that we made is gone.
//!
//! Source: kube-proxy v1.36, `iptables.Monitor`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::iptables::Table;
use crate::kernel::Iptables;
use crate::net::IpFamily;
use crate::rules::names::KUBE_PROXY_CANARY;

/// The tables with a canary; the first is looked at.
const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Filter];
/// How often to look whether a flush has reached the other tables too.
const FLUSH_POLL: Duration = Duration::from_millis(100);
/// For how long.
const FLUSH_POLLS: u32 = 50;

/// Makes the canaries in `kernel`, and from then on looks every `period` whether they are still
/// there; tells `flushed` when they are not. Ends when nobody listens any more.
///
/// A look that fails tells nothing (the xtables lock may be held): the next one will.
pub async fn watch<K: Iptables + 'static>(kernel: K, period: Duration, flushed: mpsc::Sender<IpFamily>) {
    let family = kernel.family();
    let kernel = Arc::new(Mutex::new(kernel));
    loop {
        while let Err(error) = make_all(&kernel).await {
            warn!(%family, error = %format!("{error:#}"), "cannot make the canary chains; will try again");
            tokio::time::sleep(period).await;
        }
        loop {
            tokio::time::sleep(period).await;
            match is_there(&kernel, TABLES[0]).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    debug!(%family, error = %format!("{error:#}"), "cannot look at the canary chain")
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

/// Whoever flushes one table mostly goes on with the others: waits until they are done, so that the
/// rules are not written into their way.
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
    warn!(%family, "the canary chain is gone from mangle only; looking at everything all the same");
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
