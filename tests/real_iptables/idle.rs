//! The cost of an idle node, and the external changes that are still detected.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chainsmith::config::{Config, LayoutChoice};
use chainsmith::drift::canary;
use chainsmith::iptables::{ChainName, Table, parse};
use chainsmith::kernel::Backend;
use chainsmith::kernel::nft::{Commit, CommitNotifications};
use chainsmith::kernel::programs::{KernelIptables, Programs};
use chainsmith::model::Change;
use chainsmith::model::host::Host;
use chainsmith::net::IpFamily;
use chainsmith::sync::{Loop, LoopInputs, LoopParts, NodeWait};
use chainsmith::watch::WatchEvent;
use tokio::sync::mpsc;

use super::large::{service, slice};
use super::namespace::{in_namespace, saved};

const HOUR: Duration = Duration::from_secs(3600);

/// Programs that record each start.
struct RecordedPrograms {
    folder: tempfile::TempDir,
}

impl RecordedPrograms {
    fn new() -> RecordedPrograms {
        RecordedPrograms { folder: tempfile::tempdir().unwrap() }
    }

    fn note(&self) -> PathBuf {
        self.folder.path().join("started")
    }

    /// A program in place of `name`; its own name is leaked.
    fn stand_in(&self, name: &str) -> &'static str {
        let path = self.folder.path().join(name);
        let lines =
            format!("#!/bin/sh\necho {name} \"$@\" >> {}\nexec {name} \"$@\"\n", self.note().display());
        std::fs::write(&path, lines).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Box::leak(path.display().to_string().into_boxed_str())
    }

    fn kernel(&self, family: IpFamily, backend: Backend) -> KernelIptables {
        let Programs { iptables, save, restore } = Programs::new(family, Some(backend));
        let [iptables, save, restore] = [iptables, save, restore].map(|name| self.stand_in(name));
        KernelIptables::new(family, backend, Programs { iptables, save, restore })
    }

    /// Every start so far, with its arguments.
    fn started(&self) -> Vec<String> {
        let note = std::fs::read_to_string(self.note()).unwrap_or_default();
        note.lines().map(str::to_owned).collect()
    }

    /// Waits until no program was started for `quiet`.
    async fn until_quiet(&self, quiet: Duration) {
        let waiting = async {
            let mut before = self.started().len();
            loop {
                tokio::time::sleep(quiet).await;
                let now = self.started().len();
                if now == before && now > 0 {
                    return;
                }
                before = now;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "programs are started again and again: {:#?}", self.started());
    }
}

/// A loop and canaries on both families of this namespace, as in the agent.
struct Node {
    spied: RecordedPrograms,
    events: mpsc::Sender<WatchEvent>,
    _stop: tokio::sync::watch::Sender<bool>,
}

impl Node {
    async fn start(backend: Backend, audit_period: Duration, canary_period: Duration) -> Node {
        let spied = RecordedPrograms::new();
        let kernels: Vec<_> = IpFamily::BOTH.map(|family| spied.kernel(family, backend)).into();
        let (events, watch) = mpsc::channel(64);
        let (flushed_sender, flushed) = mpsc::channel(2);
        let (sender, written) = mpsc::channel(16);
        let (stop, shutdown) = tokio::sync::watch::channel(false);
        for kernel in &kernels {
            tokio::spawn(canary::watch(kernel.twin(), canary_period, flushed_sender.clone()));
        }
        if backend == Backend::Nft {
            let mut notifications = CommitNotifications::listen().unwrap();
            tokio::spawn(async move {
                while let Ok(commit) = notifications.next().await {
                    let generation = match commit {
                        Commit::Made { generation, .. } => Some(generation),
                        Commit::Missed => None,
                    };
                    if sender.send(generation).await.is_err() {
                        return;
                    }
                }
            });
        }
        let parts = LoopParts {
            config: Arc::new(Config { layout: LayoutChoice::Classic, audit_period, ..Config::default() }),
            node_name: "n".into(),
            host: Arc::new(Host::default),
            kernels,
            observers: Vec::new(),
            node_wait: NodeWait::NONE,
            is_notified: backend == Backend::Nft,
        };
        tokio::spawn(Loop::new(parts).run(LoopInputs {
            watch,
            flushed,
            written,
            addresses: mpsc::channel(1).1,
            questions: mpsc::channel(1).1,
            shutdown,
        }));
        let node = Node { spied, events, _stop: stop };
        for n in 0..10 {
            let service = service(n);
            node.send(Change::Service(service.name.clone(), Some(service))).await;
            node.send(slice(n, 0..3)).await;
        }
        for listed in [WatchEvent::ServicesListed, WatchEvent::SlicesListed, WatchEvent::NodeListed] {
            node.events.send(listed).await.unwrap();
        }
        node
    }

    async fn send(&self, change: Change) {
        self.events.send(WatchEvent::Change(change)).await.unwrap();
    }
}

fn run(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// The rules of IPv4, with every chain.
fn rules(backend: Backend) -> chainsmith::iptables::Ruleset {
    parse::save(IpFamily::V4, &saved(IpFamily::V4, backend)).expect("a save can be read")
}

#[test]
fn while_idle_no_program_is_started_with_either_back_end() {
    const PERIOD: Duration = Duration::from_millis(700);
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(|| {
            block_on(async {
                let node = Node::start(backend, PERIOD, PERIOD).await;
                // Several audits, checks of canaries, and on legacy checks of the tables.
                node.spied.until_quiet(6 * PERIOD).await;
                let names = rules(backend).tables[&Table::Nat].len();
                assert!(names > 30, "{names} chains");
            });
        });
    }
}

#[test]
fn on_legacy_external_changes_of_our_rules_are_repaired_without_an_audit_and_changes_of_foreign_rules_start_nothing()
 {
    in_namespace(|| {
        block_on(async {
            let node = Node::start(Backend::Legacy, HOUR, HOUR).await;
            node.spied.until_quiet(Duration::from_secs(3)).await;
            let whole = rules(Backend::Legacy);
            let is_service = |name: &&ChainName| name.as_str().starts_with("KUBE-SVC-");
            let chain = *whole.tables[&Table::Nat].keys().find(is_service).unwrap();
            let changes = [
                "iptables-legacy -w -t nat -F".to_owned(),
                "iptables-legacy -w -t filter -F".to_owned(),
                "iptables-legacy -w -t nat -D PREROUTING 1".to_owned(),
                "iptables-legacy -w -t filter -D INPUT 1".to_owned(),
                format!("iptables-legacy -w -t nat -D {chain} 1"),
                // The same number of rules, of the same size.
                format!("iptables-legacy -w -t nat -R {chain} 1 -s 10.9.9.9/32 -j MARK --or-mark 0x4000"),
                format!("iptables-legacy -w -t nat -I {chain} -j RETURN"),
                "iptables-legacy -w -t nat -F KUBE-MARK-MASQ".to_owned(),
            ];
            for change in changes {
                run(&change);
                assert_ne!(rules(Backend::Legacy), whole, "{change}");
                let repaired = async {
                    while rules(Backend::Legacy) != whole {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                let repaired = tokio::time::timeout(Duration::from_secs(20), repaired).await;
                assert!(repaired.is_ok(), "not repaired: {change}");
            }
            node.spied.until_quiet(Duration::from_secs(3)).await;
            let n_started = node.spied.started().len();
            run("iptables-legacy -w -t nat -N CNI-A && iptables-legacy -w -t nat -A CNI-A -j RETURN");
            run("ip6tables-legacy -w -t filter -N CNI-B");
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(node.spied.started()[n_started..], [""; 0]);
        });
    });
}
