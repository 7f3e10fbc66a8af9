//! What only this node knows, looked up for each sync. A look-up that fails is no empty answer: without
//! addresses node ports would go, without counters all rules would change. What it gave last stands until
//! it succeeds again.

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

/// After the first word of a change so much more is waited for: addresses come together, and each sync
/// costs the next one a pause. It bounds how often they are listed, too.
const SETTLE: Duration = Duration::from_millis(200);

/// The wait after a look-up that failed; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How long a start waits for the first list of addresses, which there is no last known one for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks up addresses.
type ListAddresses = Box<dyn Fn() -> io::Result<Vec<IpAddr>> + Send + Sync>;
/// Sees to it that the counter of this name is there.
type EnsureCounter = Box<dyn Fn(&str) -> Result<(), EnsureCounterError> + Send + Sync>;

/// Looks up what the node knows of itself.
pub(super) struct Lookups {
    list_addresses: ListAddresses,
    ensure_counter: EnsureCounter,
    /// What the kernel can do; of the counters, those that are usable where they are there.
    kernel: Kernel,
    known: Mutex<Known>,
    /// Notified of each look-up that failed.
    failed: Notify,
}

/// What is known by now.
struct Known {
    addresses: LastKnown<Vec<IpAddr>>,
    counters: [LastKnown<bool>; 2],
}

impl Lookups {
    /// Those of this machine, whose kernel can do what `kernel` says.
    pub(super) fn of_machine(kernel: Kernel) -> Lookups {
        Lookups::with(kernel, Box::new(addrs::local_addresses), Box::new(nfacct::ensure))
    }

    fn with(kernel: Kernel, list_addresses: ListAddresses, ensure_counter: EnsureCounter) -> Lookups {
        let Counters { invalid, localhost } = kernel.counters;
        let known = Known {
            addresses: LastKnown::new(Vec::new()),
            counters: [invalid, localhost].map(LastKnown::new),
        };
        Lookups { list_addresses, ensure_counter, kernel, known: Mutex::new(known), failed: Notify::new() }
    }

    /// Waits until the addresses are known, for a while: rules that an earlier process left in force may
    /// name them. Then on with none.
    pub(super) async fn begin(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.host();
            let Some(wait) = self.retry_in() else { return };
            if Instant::now() + wait > deadline {
                warn!(
                    "the addresses of the interfaces are not known; node ports with nodePortAddresses do not answer"
                );
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// What the node knows now; the last known value of what cannot be looked up.
    pub(super) fn host(&self) -> Host {
        let listed = (self.list_addresses)();
        let mut known = self.known();
        let addresses = known.addresses.note("the addresses of the interfaces", listed);
        let usable = self.kernel.counters;
        let [invalid, localhost] = &mut known.counters;
        let counters = Counters {
            invalid: usable.invalid && self.has_counter(invalid, fixed::INVALID_COUNTER),
            localhost: usable.localhost && self.has_counter(localhost, fixed::LOCALHOST_COUNTER),
        };
        if known.n_failures() > 0 {
            self.failed.notify_one();
        }
        Host { addresses, kernel: Kernel { counters, ..self.kernel } }
    }

    /// Whether a counter is there, after making it if it was not: another process may have removed it (`nfacct
    /// flush`), and a rule that names one that is gone is refused with its whole table.
    fn has_counter(&self, last: &mut LastKnown<bool>, name: &'static str) -> bool {
        let found = match (self.ensure_counter)(name) {
            Ok(()) => Ok(true),
            Err(EnsureCounterError::Absent(error)) => {
                warn!(counter = name, %error, "cannot make the nfacct counter; rules do without");
                Ok(false)
            }
            Err(EnsureCounterError::Unknown(error)) => Err(error),
        };
        last.note(name, found)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Values and numbers, always whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to wait before what failed is looked up again; `None` when nothing failed.
    fn retry_in(&self) -> Option<Duration> {
        let n_failures = self.known().n_failures();
        (n_failures > 0).then(|| (FIRST_RETRY * 2u32.pow((n_failures - 1).min(16))).min(LONGEST_RETRY))
    }

    /// Tells `changed`, soon, that the node's addresses changed, or that what could not be looked up should
    /// be tried again; ends when the receiver is gone. However many changes come, it tells of them five
    /// times a second at most.
    pub(super) async fn follow(self: Arc<Lookups>, changed: mpsc::Sender<()>) -> anyhow::Result<()> {
        let mut n_failures: u32 = 0;
        loop {
            let failed = match AddressChanges::listen() {
                Ok(mut listener) => self.listen(&mut listener, &mut n_failures, &changed).await,
                Err(error) => Err(error),
            };
            let Err(error) = failed else { return Ok(()) };
            n_failures = n_failures.saturating_add(1);
            failure!(n_failures, %error, "cannot listen for changes of addresses; listing them every second");
            // What was missed meanwhile is found by listing once more.
            tokio::time::sleep(FIRST_RETRY).await;
            if changed.send(()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Passes on what `listener` receives until that fails, or the receiver is gone.
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
                    tokio::time::sleep(SETTLE).await;
                    listener.discard()?;
                    *n_failures = 0;
                }
                () = self.until_retry() => {}
            }
            if changed.send(()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Waits until what failed should be looked up again.
    async fn until_retry(&self) {
        loop {
            match self.retry_in() {
                Some(wait) => return tokio::time::sleep(wait).await,
                None => self.failed.notified().await,
            }
        }
    }
}

impl Known {
    /// How often the look-up that fails for the longest time has failed since it succeeded.
    fn n_failures(&self) -> u32 {
        let counters = self.counters.iter().map(|counter| counter.n_failures);
        counters.fold(self.addresses.n_failures, u32::max)
    }
}

/// What a look-up gave last.
struct LastKnown<T> {
    value: T,
    /// Since it succeeded.
    n_failures: u32,
}

impl<T: Clone> LastKnown<T> {
    /// `value`, until it is looked up.
    fn new(value: T) -> LastKnown<T> {
        LastKnown { value, n_failures: 0 }
    }

    /// Takes what looking up `what` came to; gives what is known by now.
    fn note<E: Display>(&mut self, what: &str, looked_up: Result<T, E>) -> T {
        match looked_up {
            Ok(value) => {
                if self.n_failures > 0 {
                    info!(what, n_failures = self.n_failures, "look-up succeeded again");
                }
                *self = LastKnown::new(value);
            }
            Err(error) => {
                self.n_failures = self.n_failures.saturating_add(1);
                failure!(self.n_failures, what, %error, "look-up failed; the last known value stays in use");
            }
        }
        self.value.clone()
    }
}

#[cfg(test)]
mod tests;
