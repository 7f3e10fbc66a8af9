//! Facts about this node, looked up for each sync: its addresses and nfacct counters. After a failed look-up the last
//! known value stays in use: without addresses node ports would lose their rules, without counters all rules would
//! change.

use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::kernel::addrs::{self, AddressChanges};
use crate::kernel::nfacct::{self, EnsureCounterError};
use crate::log::failure;
use crate::model::host::{Counters, Host, Kernel};
use crate::rules::fixed;

/// How long to wait after the first change of an address: addresses change together, and each sync delays the next
/// one. Also bounds how often addresses are listed.
const SETTLE_TIME: Duration = Duration::from_millis(200);

/// The delay after a failed look-up; doubled each time, up to the maximum.
const MIN_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(60);

/// How long the start waits for the first list of addresses, before which no value is known.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Lists the addresses of the interfaces.
type ListAddresses = Box<dyn Fn() -> io::Result<Vec<IpAddr>> + Send + Sync>;
/// Makes the nfacct counter of this name unless it exists.
type EnsureCounter = Box<dyn Fn(&str) -> Result<(), EnsureCounterError> + Send + Sync>;

/// Looks up facts about the node and keeps the last known values.
pub(super) struct HostLookup {
    list_addresses: ListAddresses,
    ensure_counter: EnsureCounter,
    /// What the kernel supports; of the counters, those that rules may name while they exist.
    kernel: Kernel,
    last: Mutex<LastHost>,
    /// Notified of each failed look-up.
    failed: Notify,
}

/// The last known facts.
struct LastHost {
    addresses: LastKnown<Vec<IpAddr>>,
    counters: [LastKnown<bool>; 2],
}

impl HostLookup {
    /// Of this node, whose kernel supports `kernel`.
    pub(super) fn new(kernel: Kernel) -> HostLookup {
        HostLookup::with(kernel, Box::new(addrs::local_addresses), Box::new(nfacct::ensure))
    }

    fn with(kernel: Kernel, list_addresses: ListAddresses, ensure_counter: EnsureCounter) -> HostLookup {
        let Counters { invalid, localhost } = kernel.counters;
        let last = LastHost {
            addresses: LastKnown::new(Vec::new()),
            counters: [invalid, localhost].map(LastKnown::new),
        };
        HostLookup { list_addresses, ensure_counter, kernel, last: Mutex::new(last), failed: Notify::new() }
    }

    /// Waits until the addresses are known, no longer than [`START_TIMEOUT`]: rules that an earlier process left in
    /// force may depend on them. After that the agent starts without addresses.
    pub(super) async fn wait_known(&self) {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.host();
            let Some(wait) = self.retry_in() else { return };
            if Instant::now() + wait > deadline {
                warn!("addresses of the interfaces unknown; node ports with nodePortAddresses do not answer");
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// The current facts; where a look-up fails, the last known value.
    pub(super) fn host(&self) -> Host {
        let listed = (self.list_addresses)();
        let mut last = self.last();
        let addresses = last.addresses.record("addresses of the interfaces", listed);
        let usable = self.kernel.counters;
        let [invalid, localhost] = &mut last.counters;
        let counters = Counters {
            invalid: usable.invalid && self.has_counter(invalid, fixed::INVALID_COUNTER),
            localhost: usable.localhost && self.has_counter(localhost, fixed::LOCALHOST_COUNTER),
        };
        if last.n_failures() > 0 {
            self.failed.notify_one();
        }
        Host { addresses, kernel: Kernel { counters, ..self.kernel } }
    }

    /// Whether a counter exists, after making it if it did not: another process may have removed it (`nfacct flush`),
    /// and a rule that names a missing counter is rejected with its whole table.
    fn has_counter(&self, last: &mut LastKnown<bool>, name: &'static str) -> bool {
        let found = match (self.ensure_counter)(name) {
            Ok(()) => Ok(true),
            Err(EnsureCounterError::Absent(error)) => {
                warn!(counter = name, %error, "cannot make the nfacct counter; rules do not have it");
                Ok(false)
            }
            Err(EnsureCounterError::Unknown(error)) => Err(error),
        };
        last.record(name, found)
    }

    fn last(&self) -> MutexGuard<'_, LastHost> {
        // Each assignment leaves a consistent value.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The delay before failed look-ups are repeated; `None` if none failed.
    fn retry_in(&self) -> Option<Duration> {
        let n_failures = self.last().n_failures();
        (n_failures > 0).then(|| (MIN_DELAY * 2u32.pow((n_failures - 1).min(16))).min(MAX_DELAY))
    }

    /// Notifies `changed` soon after the node's addresses changed, or when failed look-ups should be repeated. Ends
    /// when the receiver is dropped. Sends at most five notifications of changes a second.
    pub(super) async fn follow(self: Arc<HostLookup>, changed: mpsc::Sender<()>) -> anyhow::Result<()> {
        let mut n_failures: u32 = 0;
        loop {
            let failed = match AddressChanges::listen() {
                Ok(mut listener) => self.listen(&mut listener, &mut n_failures, &changed).await,
                Err(error) => Err(error),
            };
            let Err(error) = failed else { return Ok(()) };
            n_failures = n_failures.saturating_add(1);
            failure!(n_failures, %error, "cannot listen for changes of addresses; listing them every second");
            // The next list has the changes of the meantime.
            tokio::time::sleep(MIN_DELAY).await;
            if changed.send(()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Forwards the changes that `listener` receives, until it fails or the receiver is dropped.
    async fn listen(
        &self,
        listener: &mut AddressChanges,
        n_failures: &mut u32,
        changed: &mpsc::Sender<()>,
    ) -> io::Result<()> {
        loop {
            tokio::select! {
                notified = listener.changed() => {
                    notified?;
                    tokio::time::sleep(SETTLE_TIME).await;
                    listener.discard()?;
                    *n_failures = 0;
                }
                () = self.wait_retry() => {}
            }
            if changed.send(()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Waits until failed look-ups should be repeated.
    async fn wait_retry(&self) {
        loop {
            match self.retry_in() {
                Some(wait) => return tokio::time::sleep(wait).await,
                None => self.failed.notified().await,
            }
        }
    }
}

impl LastHost {
    /// The failures in a row of the look-up with most of them.
    fn n_failures(&self) -> u32 {
        let counters = self.counters.iter().map(|counter| counter.n_failures);
        counters.fold(self.addresses.n_failures, u32::max)
    }
}

/// The last known value of a look-up.
struct LastKnown<T> {
    value: T,
    /// Failures in a row.
    n_failures: u32,
}

impl<T: Clone> LastKnown<T> {
    /// Holds `value` until the first look-up.
    fn new(value: T) -> LastKnown<T> {
        LastKnown { value, n_failures: 0 }
    }

    /// Records the outcome of looking up `what`; returns the value to use.
    fn record<E: Display>(&mut self, what: &str, looked_up: Result<T, E>) -> T {
        match looked_up {
            Ok(value) => {
                if self.n_failures > 0 {
                    info!(what, n_failures = self.n_failures, "look-up recovered");
                }
                *self = LastKnown::new(value);
            }
            Err(error) => {
                self.n_failures = self.n_failures.saturating_add(1);
                failure!(self.n_failures, what, %error, "look-up failed; retrying, last known value stays in use");
            }
        }
        self.value.clone()
    }
}

#[cfg(test)]
mod tests;
