//! What is read when, and what races with commits cost.

use super::*;
use crate::model::ObjectName;
use crate::net::Protocol;

/// What happens during a reading, by its number from 1.
type During = Box<dyn Fn(usize) + Send + Sync>;

/// Counters in memory.
#[derive(Default)]
struct FakeCounters {
    counts: Mutex<BTreeMap<ChainName, u64>>,
    n_reads: Mutex<usize>,
    /// Called after the counters were read, before the reading is returned.
    during: Mutex<Option<During>>,
    may_fall: bool,
}

impl FakeCounters {
    fn count(&self, chain: ChainName, n: u64) {
        *self.counts.lock().unwrap().entry(chain).or_default() += n;
    }

    fn set(&self, chain: ChainName, n: u64) {
        self.counts.lock().unwrap().insert(chain, n);
    }
}

#[derive(Clone, Default)]
struct Handle(Arc<FakeCounters>);

impl CounterReader for Handle {
    fn dnat_rules(&self, family: IpFamily, chains: &[ChainName]) -> io::Result<Vec<DnatRule>> {
        assert!(chains.is_sorted());
        let n_reads = {
            let mut n_reads = self.0.n_reads.lock().unwrap();
            *n_reads += 1;
            *n_reads
        };
        let rules = {
            let counts = self.0.counts.lock().unwrap();
            let rule = |chain: &ChainName| {
                let n_packets = *counts.get(chain).filter(|_| family == IpFamily::V4)?;
                let counted = FirstPackets { n_packets, n_bytes: 60 * n_packets };
                Some(DnatRule { chain: *chain, endpoint: "10.0.0.1:80".parse().unwrap(), counted })
            };
            chains.iter().filter_map(rule).collect()
        };
        let during = self.0.during.lock().unwrap().take();
        if let Some(during) = during {
            during(n_reads);
        }
        Ok(rules)
    }

    fn slice(&self) -> usize {
        2
    }

    fn may_fall(&self) -> bool {
        self.0.may_fall
    }
}

fn chain(n: usize) -> ChainName {
    ChainName::new(&format!("KUBE-SEP-{n}")).unwrap()
}

fn port() -> ServicePortName {
    ServicePortName { service: ObjectName::new("shop", "db"), port: "".into(), protocol: Protocol::Tcp }
}

/// Counts of chains 0 to 4, all of one service port, none of them read yet.
fn synced(may_fall: bool) -> (Arc<Connections>, Arc<FakeCounters>) {
    let counters = Arc::new(FakeCounters { may_fall, ..FakeCounters::default() });
    let reader = Box::new(Handle(counters.clone()));
    let connections = Arc::new(Connections::new(Granularity::Services, reader));
    let mut family = connections.family(IpFamily::V4);
    family.owners = (0..5).map(|n| (chain(n), Arc::new(port()))).collect();
    family.is_synced = true;
    drop(family);
    (0..5).for_each(|n| counters.set(chain(n), 0));
    (connections, counters)
}

fn total(connections: &Connections) -> u64 {
    connections.totals().values().map(|total| total.all.n_packets).sum()
}

async fn refreshed(connections: &Arc<Connections>) -> u64 {
    tokio::time::advance(MAX_AGE).await;
    connections.refresh().await;
    total(connections)
}

fn commit(connections: &Connections, counters: &FakeCounters, chain: ChainName) {
    connections.before_commit(IpFamily::V4, &[chain]);
    counters.set(chain, 0);
    connections.restored(IpFamily::V4, true);
}

#[tokio::test(start_paused = true)]
async fn counts_begin_with_the_first_reading_and_outlive_rewrites() {
    let (connections, counters) = synced(false);
    counters.set(chain(1), 1_000);
    assert_eq!(refreshed(&connections).await, 0, "an earlier process counted that");
    counters.count(chain(1), 5);
    counters.count(chain(4), 2);
    assert_eq!(refreshed(&connections).await, 7);
    counters.count(chain(1), 3);
    commit(&connections, &counters, chain(1));
    counters.count(chain(1), 2_000);
    assert_eq!(refreshed(&connections).await, 2_010, "though the counter is higher than before the commit");
}

#[tokio::test(start_paused = true)]
async fn requests_within_a_second_cost_one_reading() {
    let (connections, counters) = synced(false);
    assert_eq!(refreshed(&connections).await, 0);
    assert_eq!(*counters.n_reads.lock().unwrap(), 3, "slices of two");
    let requests = (0..50).map(|_| connections.refresh());
    futures::future::join_all(requests).await;
    assert_eq!(*counters.n_reads.lock().unwrap(), 3);
}

/// A commit begins and ends while a scrape holds a reading of the same chain that it has not recorded yet.
#[tokio::test(start_paused = true)]
async fn a_reading_that_a_commit_overtakes_is_not_used() {
    let (connections, counters) = synced(false);
    refreshed(&connections).await;
    counters.count(chain(0), 10);
    let (committing, committed) = (connections.clone(), counters.clone());
    *counters.during.lock().unwrap() = Some(Box::new(move |_| {
        commit(&committing, &committed, chain(0));
        committed.count(chain(0), 1);
    }));
    assert_eq!(refreshed(&connections).await, 11);
}

/// A scrape between a commit in the kernel and its end in the agent.
#[tokio::test(start_paused = true)]
async fn a_chain_in_commit_is_not_read() {
    let (connections, counters) = synced(false);
    refreshed(&connections).await;
    counters.count(chain(0), 10);
    connections.before_commit(IpFamily::V4, &[chain(0), chain(9)]);
    counters.set(chain(0), 12);
    assert_eq!(refreshed(&connections).await, 10);
    connections.restored(IpFamily::V4, true);
    assert_eq!(refreshed(&connections).await, 22);
}

#[tokio::test(start_paused = true)]
async fn a_failed_restore_leaves_the_counters_as_they_were_read() {
    let (connections, counters) = synced(false);
    refreshed(&connections).await;
    counters.count(chain(0), 10);
    connections.before_commit(IpFamily::V4, &[chain(0)]);
    connections.restored(IpFamily::V4, false);
    counters.count(chain(0), 1);
    assert_eq!(refreshed(&connections).await, 11);
}

/// A program of the legacy back-end has taken the counters out, and adds them again.
#[tokio::test(start_paused = true)]
async fn counters_that_fall_for_a_moment_are_read_again() {
    for (may_fall, expected) in [(true, 101), (false, 201)] {
        let (connections, counters) = synced(may_fall);
        refreshed(&connections).await;
        counters.count(chain(0), 100);
        assert_eq!(refreshed(&connections).await, 100);
        counters.set(chain(0), 1);
        let again = counters.clone();
        *counters.during.lock().unwrap() = Some(Box::new(move |_| again.set(chain(0), 101)));
        refreshed(&connections).await;
        assert_eq!(refreshed(&connections).await, expected, "the window counts twice unless it is noticed");
    }
}

#[test]
fn only_chains_that_may_hold_dnat_rules_are_read() {
    let check = |names: &[&str], expected: &[&str]| {
        let names: Vec<ChainName> = names.iter().map(|name| ChainName::new(name).unwrap()).collect();
        let counted: Vec<String> = counted_chains(&names).map(|name| name.to_string()).collect();
        assert_eq!(counted, expected);
    };
    let (svc, svl) = ("KUBE-SVC-2CMXP7HKUVJN7L6M", "KUBE-SVL-2CMXP7HKUVJN7L6M");
    let (group, sep) = ("KUBE-SVC-2CMXP7HKUVJN7L6M7F", "KUBE-SEP-ZLQIIXF6GGLIY7FE");
    let (ext, fw) = ("KUBE-EXT-2CMXP7HKUVJN7L6M", "KUBE-FW-2CMXP7HKUVJN7L6M");
    check(&[sep, svl, svc, ext, fw], &[sep]);
    check(&[group, svl, svc, ext, fw], &[group, svl, svc]);
    check(&[], &[]);
}
