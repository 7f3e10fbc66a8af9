//! How many new connections each service port and endpoint gets, by the counters of DNAT rules; kept across rewrites.
//!
//! A nat rule sees the first packet of each connection, so what the DNAT rule of an endpoint counts are its connections.
//! The counters of a chain are lost when it is rewritten, so they are read right before ([`CommitObserver`]); whoever asks
//! has all others read ([`Connections::refresh`]), a slice at a time. Connections made between such a reading and the end
//! of its commit are not counted.

mod series;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::compile::{Compiled, SyncScope};
use crate::inspect::busiest::{CountsSince, TopOrder, TopReport};
use crate::inspect::ledger::{Ledger, PortTotal, rules_of};
use crate::iptables::{ChainName, DnatRule, FirstPackets, Table};
use crate::kernel::counter_reader::{CommitObserver, CounterReader};
use crate::log::failure;
use crate::model::{ServiceName, ServicePortName};
use crate::net::{IpFamily, PerFamily};
use crate::rules::names::PortChain;
use crate::rules::ownership::ChainOwner;
use crate::sync::{Observer, Synced};
use series::{BusiestSeries, MAX_SERIES, SeriesKey};

/// A request for counts younger than this gets those of the last reading.
const MAX_AGE: Duration = Duration::from_secs(1);
/// How often a slice is read again when a commit replaces chains meanwhile; then its old totals stay for this time.
const ATTEMPTS: u32 = 10;
/// The pause between such attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// Pauses after which counters that fell are read again, on a back-end whose counters may fall for a moment.
const FALL_PAUSES: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(30), Duration::from_millis(90)];

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Service ports.
    Services,
    /// Service ports and their endpoints.
    Endpoints,
}

/// Counts of both families. An observer of the loop and of commits.
pub struct Connections {
    granularity: Granularity,
    reader: Box<dyn CounterReader>,
    families: PerFamily<Mutex<FamilyCounts>>,
    /// Set by the first sync that succeeds.
    first_sync: Notify,
    /// When the last reading ended; locked during a reading.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
    series: Mutex<BusiestSeries>,
}

/// The counts of one family.
struct FamilyCounts {
    ledger: Ledger,
    /// The chains that may have DNAT rules, each with its service port.
    owners: BTreeMap<ChainName, Arc<ServicePortName>>,
    is_synced: bool,
    /// Chains of the commits in progress.
    replacing: BTreeSet<ChainName>,
    /// Commits that began or ended so far: a reading that was made meanwhile is not used.
    n_commit_events: u64,
    n_failures: u32,
}

/// The DNAT rules of `chains` (sorted), sorted by chain. Counters that fell are read again where that may be for a moment.
pub fn read_settled(
    reader: &dyn CounterReader,
    family: IpFamily,
    chains: &[ChainName],
    has_fallen: impl Fn(&[DnatRule]) -> bool,
) -> io::Result<Vec<DnatRule>> {
    let mut rules = reader.dnat_rules(family, chains)?;
    for pause in FALL_PAUSES {
        if !(reader.may_fall() && has_fallen(&rules)) {
            break;
        }
        std::thread::sleep(pause);
        rules = reader.dnat_rules(family, chains)?;
    }
    rules.sort_unstable_by_key(|rule| rule.chain);
    Ok(rules)
}

/// One sample of a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedSample {
    /// The service port; `None` for all that have no sample of their own.
    pub port: Option<ServicePortName>,
    /// The endpoint, where endpoints are counted.
    pub endpoint: Option<SocketAddr>,
    /// What was counted.
    pub counted: FirstPackets,
}

impl Connections {
    /// Reads counters with `reader`.
    pub fn new(granularity: Granularity, reader: Box<dyn CounterReader>) -> Connections {
        let family = || Mutex::new(FamilyCounts::new(granularity));
        Connections {
            granularity,
            reader,
            families: PerFamily { v4: family(), v6: family() },
            first_sync: Notify::new(),
            refreshed: tokio::sync::Mutex::default(),
            series: Mutex::default(),
        }
    }

    /// What is counted.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Reads all counters once after the first sync: what earlier processes left in them is not counted.
    pub async fn run(self: Arc<Connections>) {
        loop {
            self.first_sync.notified().await;
            self.refresh().await;
        }
    }

    /// Reads the counters of all chains, unless they were read within the last second; one caller at a time. No sync waits
    /// for it. Chains that cannot be read keep their totals.
    pub async fn refresh(self: &Arc<Connections>) {
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.is_some_and(|at| at.elapsed() < MAX_AGE) {
            return;
        }
        let connections = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            IpFamily::BOTH.into_iter().for_each(|family| connections.read_family(family));
        });
        if let Err(error) = read.await {
            std::panic::resume_unwind(error.into_panic());
        }
        *refreshed = Some(Instant::now());
    }

    fn family(&self, family: IpFamily) -> MutexGuard<'_, FamilyCounts> {
        self.families.get(family).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all chains of `family`.
    fn read_family(&self, family: IpFamily) {
        let chains: Vec<ChainName> = {
            let counts = self.family(family);
            if !counts.is_synced {
                return;
            }
            counts.owners.keys().copied().collect()
        };
        let mut is_complete = true;
        for slice in chains.chunks(self.reader.slice().min(chains.len()).max(1)) {
            match self.read_slice(family, slice) {
                Ok(is_read) => is_complete &= is_read,
                Err(error) => return self.family(family).report_failure(family, &error),
            }
        }
        let mut counts = self.family(family);
        counts.n_failures = 0;
        if is_complete {
            counts.ledger.end_start();
        }
    }

    /// Reads `chains`; `false` if commits replaced some of them during each attempt.
    fn read_slice(&self, family: IpFamily, chains: &[ChainName]) -> io::Result<bool> {
        for _ in 0..ATTEMPTS {
            let before = self.family(family).stable_for(chains);
            if let Some(before) = before {
                let rules = read_settled(&*self.reader, family, chains, |rules| {
                    self.family(family).ledger.has_fallen(rules)
                })?;
                let mut counts = self.family(family);
                if counts.stable_for(chains) == Some(before) {
                    counts.record(chains, &rules, true);
                    return Ok(true);
                }
            }
            std::thread::sleep(PAUSE);
        }
        Ok(false)
    }

    /// The totals of both families as samples: the busiest, sorted, and one for all others, which is last. Call
    /// [`Connections::refresh`] before.
    pub fn samples(&self) -> Vec<CountedSample> {
        let mut totals: BTreeMap<SeriesKey, FirstPackets> = BTreeMap::new();
        let mut all = FirstPackets::default();
        for family in IpFamily::BOTH {
            let counts = self.family(family);
            all += counts.ledger.all();
            for (port, total) in counts.ledger.ports() {
                match self.granularity {
                    Granularity::Services => *totals.entry((port.clone(), None)).or_default() += total.all,
                    Granularity::Endpoints => totals.extend(
                        total.endpoints.iter().map(|(at, count)| ((port.clone(), Some(*at)), *count)),
                    ),
                }
            }
        }
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let (samples, others) = series.scrape(totals.into_iter(), all, MAX_SERIES);
        let sample = |((port, endpoint), counted)| CountedSample { port: Some(port), endpoint, counted };
        let others = CountedSample { port: None, endpoint: None, counted: others };
        samples.into_iter().map(sample).chain([others]).collect()
    }

    /// The totals of each service port, both families together. Call [`Connections::refresh`] before.
    pub fn totals(&self) -> BTreeMap<ServicePortName, PortTotal> {
        let mut totals: BTreeMap<ServicePortName, PortTotal> = BTreeMap::new();
        for family in IpFamily::BOTH {
            for (port, total) in self.family(family).ledger.ports() {
                totals.entry(port.clone()).or_default().add(total);
            }
        }
        totals
    }
}

/// How many service ports a [`Connections::report`] has at most.
const MAX_REPORTED: usize = 10_000;

impl Connections {
    /// What was counted since the start, at most `MAX_REPORTED` service ports, those with most connections. Call
    /// [`Connections::refresh`] before.
    pub fn report(&self) -> TopReport {
        let mut all = FirstPackets::default();
        IpFamily::BOTH.into_iter().for_each(|family| all += self.family(family).ledger.all());
        let (since, has_endpoints) = (CountsSince::AgentStarted, self.granularity == Granularity::Endpoints);
        let mut report = TopReport::new("agent".to_owned(), since, &self.totals(), all, has_endpoints);
        report.sort(TopOrder::Total);
        report.truncate(MAX_REPORTED);
        report
    }
}

impl FamilyCounts {
    fn new(granularity: Granularity) -> FamilyCounts {
        FamilyCounts {
            ledger: Ledger::of_new_counts(granularity == Granularity::Endpoints),
            owners: BTreeMap::new(),
            is_synced: false,
            replacing: BTreeSet::new(),
            n_commit_events: 0,
            n_failures: 0,
        }
    }

    /// A number that stays the same as long as no commit begins or ends; `None` while one replaces any of `chains`.
    fn stable_for(&self, chains: &[ChainName]) -> Option<u64> {
        let is_replaced = chains.iter().any(|chain| self.replacing.contains(chain));
        (!is_replaced).then_some(self.n_commit_events)
    }

    /// Adds a reading of `chains`: `rules` are all their DNAT rules, sorted by chain. With `drops`, chains without any are
    /// not read again until they are compiled again.
    fn record(&mut self, chains: &[ChainName], rules: &[DnatRule], drops: bool) {
        for chain in chains {
            let rules = rules_of(rules, chain);
            let Some(owner) = self.owners.get(chain).cloned() else { continue };
            self.ledger.record(*chain, &owner, rules);
            if drops && rules.is_empty() {
                self.owners.remove(chain);
            }
        }
    }

    fn report_failure(&mut self, family: IpFamily, error: &io::Error) {
        self.n_failures += 1;
        failure!(self.n_failures, %family, %error, "cannot read rule counters; connections are not counted meanwhile");
    }

    /// Takes over the chains of `service`.
    fn update(&mut self, service: &ServiceName, compiled: &Compiled) {
        let mut ports = BTreeSet::new();
        for (port, chains) in compiled.chains_of(service) {
            ports.insert(port);
            let port = Arc::new(port.clone());
            self.owners.extend(counted_chains(chains).map(|chain| (chain, port.clone())));
        }
        self.ledger.retain_ports(service, |port| ports.contains(port));
    }

    fn update_all(&mut self, compiled: &Compiled) {
        self.owners.clear();
        let mut last: Option<&ServiceName> = None;
        let mut ports = BTreeSet::new();
        for port in compiled.service_ports() {
            ports.insert(port);
            if last.replace(&port.service) != Some(&port.service) {
                self.update(&port.service, compiled);
            }
        }
        self.ledger.retain_all_ports(|port| ports.contains(port));
    }
}

/// Those of a service port's chains that may have DNAT rules: where endpoints have chains of their own, only these.
fn counted_chains(chains: &[ChainName]) -> impl Iterator<Item = ChainName> {
    let is_endpoint = |owner| owner == ChainOwner::ServicePort(PortChain::Endpoint);
    let owner = |chain: &ChainName| ChainOwner::of(Table::Nat, chain);
    let has_endpoint_chains = chains.iter().any(|chain| is_endpoint(owner(chain)));
    chains.iter().copied().filter(move |chain| match owner(chain) {
        ChainOwner::Group | ChainOwner::ServicePort(PortChain::Cluster | PortChain::Local) => {
            !has_endpoint_chains
        }
        other => is_endpoint(other),
    })
}

impl Observer for Connections {
    fn synced(&self, Synced { report, view, compiled, .. }: &Synced<'_>) {
        let mut counts = self.family(report.family);
        match &report.scope {
            SyncScope::Partial(names) if report.is_scope_exact() => {
                names.iter().for_each(|name| counts.update(name, compiled));
            }
            _ => counts.update_all(compiled),
        }
        if self.granularity == Granularity::Endpoints {
            let touched: Vec<ServiceName> = match &report.scope {
                SyncScope::Partial(names) => names.iter().cloned().collect(),
                SyncScope::Full => {
                    let used = counts.ledger.ports().map(|(port, _)| &port.service);
                    used.collect::<BTreeSet<_>>().into_iter().cloned().collect()
                }
            };
            for name in touched {
                let is_used = counts.ledger.of_service(&name).next().is_some();
                let Some(service) = view.snapshot.service(&name).filter(|_| is_used) else { continue };
                let ports = view.snapshot.ports_of(service, report.family);
                for port in ports.iter() {
                    let endpoints: BTreeSet<SocketAddr> =
                        ports.endpoints(&port).iter().map(|endpoint| endpoint.address).collect();
                    counts.ledger.retain_endpoints(&port.name(), |at| endpoints.contains(at));
                }
            }
        }
        if report.outcome.is_ok() && !counts.is_synced {
            counts.is_synced = true;
            drop(counts);
            self.first_sync.notify_one();
        }
    }
}

impl CommitObserver for Connections {
    fn before_commit(&self, family: IpFamily, chains: &[ChainName]) {
        let mut counts = self.family(family);
        counts.n_commit_events += 1;
        counts.replacing.extend(chains);
        let mut read: Vec<ChainName> =
            chains.iter().filter(|chain| counts.owners.contains_key(chain)).copied().collect();
        read.sort_unstable();
        read.dedup();
        if read.is_empty() {
            return;
        }
        match read_settled(&*self.reader, family, &read, |rules| counts.ledger.has_fallen(rules)) {
            Ok(rules) => counts.record(&read, &rules, false),
            Err(error) => counts.report_failure(family, &error),
        }
    }

    fn restored(&self, family: IpFamily, is_success: bool) {
        let mut counts = self.family(family);
        counts.n_commit_events += 1;
        for chain in std::mem::take(&mut counts.replacing) {
            if is_success {
                counts.ledger.rewritten(chain);
            }
        }
    }
}

#[cfg(test)]
mod tests;
