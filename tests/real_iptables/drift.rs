//! External changes of tables that are too large to be read: changes of foreign rules are distinguished
//! from changes of ours.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainsmith::compile::SyncScope;
use chainsmith::config::{Config, LayoutChoice};
use chainsmith::drift::Drift;
use chainsmith::iptables::{ChainName, Table};
use chainsmith::kernel::nft::{Commit, CommitNotifications};
use chainsmith::model::Change;
use chainsmith::model::host::Host;
use chainsmith::net::IpFamily;
use chainsmith::plan::RestoreCounts;
use chainsmith::sync::{Loop, LoopInputs, LoopParts, NodeWait, Observer, Synced};
use chainsmith::watch::WatchEvent;
use tokio::sync::mpsc;

use super::large::{Calls, Recorded, service, slice};
use super::namespace::in_namespace;

/// Two chains each: more than the limit for reading.
const N_SERVICES: usize = 6_000;

/// The result of a sync.
struct Done {
    family: IpFamily,
    is_full: bool,
    tally: RestoreCounts,
    drift: Drift,
}

/// Records every sync.
#[derive(Default)]
struct SyncRecorder(Mutex<Vec<Done>>);

impl Observer for SyncRecorder {
    fn synced(&self, synced: &Synced<'_>) {
        let report = synced.report;
        assert_eq!(report.outcome, Ok(()));
        let is_full = report.scope == SyncScope::Full;
        let (family, tally, drift) = (report.family, report.tally, report.drift.clone());
        self.0.lock().unwrap().push(Done { family, is_full, tally, drift });
    }
}

/// A running loop on both families of this namespace.
struct Running {
    events: mpsc::Sender<WatchEvent>,
    recorder: Arc<SyncRecorder>,
    /// Of IPv4 and IPv6.
    calls: [Arc<Mutex<Calls>>; 2],
}

impl Running {
    /// With IPv4 Services only; returns when all rules are in force.
    async fn start() -> Running {
        let (v4, calls_v4) = Recorded::open(IpFamily::V4);
        let (v6, calls_v6) = Recorded::open(IpFamily::V6);
        let (events, watch) = mpsc::channel(64);
        let (_, flushed) = mpsc::channel(1);
        let (sender, written) = mpsc::channel(16);
        let (_, addresses) = mpsc::channel(1);
        let (stop, shutdown) = tokio::sync::watch::channel(false);
        let recorder = Arc::new(SyncRecorder::default());
        let parts = LoopParts {
            config: Arc::new(Config { layout: LayoutChoice::Classic, ..Config::default() }),
            node_name: "n".into(),
            host: Arc::new(Host::default),
            kernels: vec![v4, v6],
            observers: vec![recorder.clone()],
            node_wait: NodeWait::NONE,
            is_notified: true,
        };
        let mut notifications = CommitNotifications::listen().unwrap();
        tokio::spawn(async move {
            loop {
                let generation = match notifications.next().await.unwrap() {
                    Commit::Made { generation, .. } => Some(generation),
                    Commit::Missed => None,
                };
                if sender.send(generation).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let _stop = stop;
            let questions = mpsc::channel(1).1;
            let inputs = LoopInputs { watch, flushed, written, addresses, questions, shutdown };
            Loop::new(parts).run(inputs).await;
        });
        let running = Running { events, recorder, calls: [calls_v4, calls_v6] };
        for n in 0..N_SERVICES {
            let service = service(n);
            running.send(Change::Service(service.name.clone(), Some(service))).await;
            running.send(slice(n, 0..1)).await;
        }
        for listed in [WatchEvent::ServicesListed, WatchEvent::SlicesListed, WatchEvent::NodeListed] {
            running.events.send(listed).await.unwrap();
        }
        running
            .until("both families are synced", |running| running.recorder.0.lock().unwrap().len() == 2)
            .await;
        running.until("prints are taken", |running| running.n_dumped() >= 2 * N_SERVICES).await;
        // The last slice is a small one.
        tokio::time::sleep(Duration::from_secs(1)).await;
        running
    }

    async fn send(&self, change: Change) {
        self.events.send(WatchEvent::Change(change)).await.unwrap();
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Running) -> bool) {
        let waiting = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), waiting)
            .await
            .unwrap_or_else(|_| panic!("not: {what}"));
    }

    /// Chains of IPv4 that were dumped.
    fn n_dumped(&self) -> usize {
        self.calls[0].lock().unwrap().n_dumped
    }

    /// Dumps of whole tables of IPv6, which is small and checked last: two each time.
    fn n_dumps(&self) -> usize {
        self.calls[1].lock().unwrap().n_dumps
    }

    /// Syncs since the last call.
    fn take(&self) -> Vec<Done> {
        std::mem::take(&mut *self.recorder.0.lock().unwrap())
    }

    /// Restores and reads of a family so far.
    fn n_calls(&self, family: usize) -> (usize, usize) {
        let calls = self.calls[family].lock().unwrap();
        (calls.inputs.len(), calls.saved.len())
    }

    /// Runs these commands as another process, and waits until the loop has checked the changes.
    async fn change_externally(&self, commands: &[&str]) {
        let before = self.n_dumps();
        for command in commands {
            let mut words = command.split(' ');
            let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
            assert!(status.success(), "{command}");
        }
        self.until("both families are looked at", |running| running.n_dumps() >= before + 2).await;
    }
}

#[test]
fn in_a_table_of_12000_chains_what_others_do_is_not_written_over_and_what_they_do_to_ours_is() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let running = Running::start().await;
            let first = running.take();
            assert!(first.iter().any(|done| done.tally.n_chains > 2 * N_SERVICES));
            let before = [0, 1].map(|family| running.n_calls(family));

            // As a CNI plugin does it, in both families.
            running.change_externally(&["iptables-nft -t nat -N CNI-A"]).await;
            running.change_externally(&["iptables-nft -t nat -A CNI-A -j RETURN"]).await;
            running.change_externally(&["iptables-nft -t nat -I PREROUTING -j CNI-A"]).await;
            running
                .change_externally(&["ip6tables-nft -t nat -N CNI-A", "ip6tables-nft -t filter -N CNI-B"])
                .await;
            let n_dumped = running.n_dumped();
            let is_compared = |running: &Running| running.n_dumped() >= n_dumped + 2 * N_SERVICES;
            running.until("every chain is compared", is_compared).await;
            // The reaction to a check has begun before the next change is handled.
            running.send(slice(7, 0..2)).await;
            running
                .until("the change is written", |running| !running.recorder.0.lock().unwrap().is_empty())
                .await;
            let done = running.take();
            assert_eq!((done.len(), done[0].family, done[0].is_full), (1, IpFamily::V4, false));
            assert!(done[0].tally.n_lines < 10 && done[0].drift.is_empty());
            let after = [0, 1].map(|family| running.n_calls(family));
            assert_eq!(after, [(before[0].0 + 1, before[0].1), before[1]], "one restore, no reading");

            // A harmful change.
            let chain = running.calls[0].lock().unwrap().inputs.last().unwrap().lines().find_map(|line| {
                let chain = line.strip_prefix(":KUBE-SVC-")?.split(' ').next()?;
                ChainName::new(&format!("KUBE-SVC-{chain}"))
            });
            let chain = chain.expect("the chain of the Service that changed was written");
            running.change_externally(&[&format!("iptables-nft -t nat -D {chain} 1")]).await;
            running.until("it is repaired", |running| !running.recorder.0.lock().unwrap().is_empty()).await;
            running.change_externally(&["iptables-nft -t nat -N CNI-C"]).await;
            running.send(slice(8, 0..2)).await;
            running
                .until("the change is written", |running| running.recorder.0.lock().unwrap().len() >= 2)
                .await;
            let done = running.take();
            let drift: Vec<&Drift> = done.iter().map(|done| &done.drift).collect();
            let expected = Drift { chains: vec![(Table::Nat, chain)], n_jumps: 0 };
            assert_eq!(drift, [&expected, &Drift::default()]);
            assert_eq!((done[0].tally.n_chains, done[0].tally.n_processes), (1, 1));
            let calls = running.calls[0].lock().unwrap();
            assert!(
                !calls.saved.iter().skip(before[0].1).any(|table| *table == Table::Nat),
                "nat is not read"
            );
            assert_eq!(running.n_calls(1), before[1], "nor is IPv6");
        });
    });
}
