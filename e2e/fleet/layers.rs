//! The watch layers of many nodes in one process, against one simulated API server, and their requests.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chainsmith::watch::WatchEvent;
use chainsmith::watch::api::{RequestLimit, connect, follow};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::apiserver::{ApiServer, Counters, TOKEN, User};
use crate::objects;

/// kube-proxy's default limit on requests, which an agent has, too.
const LIMIT: RequestLimit = RequestLimit { qps: Some(5.0), burst: 10 };

/// The limit for all of them to list everything.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The number of nodes, the size of the cluster, and the durations.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    /// Watch layers.
    pub n_nodes: usize,
    /// Services, each with one slice.
    pub n_services: usize,
    /// Endpoints in each slice.
    pub n_endpoints: usize,
    /// How many nodes start at the same time.
    pub n_at_once: usize,
    /// How long the cluster is idle.
    pub idle: Duration,
    /// How long endpoints change.
    pub churn: Duration,
    /// The interval between two changes of an endpoint.
    pub change_every: Duration,
}

/// Counters of the server over some time, for all nodes together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// TCP connections accepted.
    pub connections: u64,
    /// Requests of any kind.
    pub requests: u64,
    /// How many of them began a watch.
    pub watches: u64,
    /// Bytes sent, TLS and compression included.
    pub bytes: u64,
    /// The duration.
    pub elapsed: Duration,
}

/// Requests of all nodes while they start, while the cluster is idle, and while endpoints change.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// From the first connection until the last node has everything.
    pub start: Counted,
    /// While the cluster is idle.
    pub idle: Counted,
    /// While endpoints change.
    pub churn: Counted,
    /// Changes made meanwhile.
    pub n_changes: usize,
    /// Changes that nodes received, all nodes together.
    pub n_received: usize,
}

impl Fleet {
    /// Fills `server`, starts the nodes, and counts.
    ///
    /// # Errors
    /// A node cannot connect, or does not get everything in time.
    pub async fn run(self, server: &ApiServer) -> anyhow::Result<Asked> {
        self.fill(server);
        server.require_token(Some(TOKEN));
        let folder = tempfile::tempdir().context("making a folder for the kubeconfig")?;
        let kubeconfig = folder.path().join("kubeconfig");
        let user = User::Token(TOKEN.to_owned());
        std::fs::write(&kubeconfig, server.kubeconfig_https(server.reachable(), &user))?;

        let meter = Meter::begin(server);
        let mut nodes = Nodes::start(&self, &kubeconfig);
        nodes.wait_until_listed(self.n_nodes).await?;
        // After a list that was no watch, the watch still follows.
        while server.counters().resources.values().map(|counts| counts.open_watches).sum::<u64>()
            < self.n_watches()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let start = meter.read(server);

        let meter = Meter::begin(server);
        tokio::time::sleep(self.idle).await;
        let idle = meter.read(server);

        let n_received = nodes.n_received();
        let meter = Meter::begin(server);
        let mut n_changes = 0;
        let mut turn = tokio::time::interval(self.change_every);
        while meter.begun.elapsed() < self.churn {
            turn.tick().await;
            n_changes += 1;
            let n = n_changes * 97 % self.n_services;
            server.put(objects::slice(n, self.n_endpoints, n_changes as u64));
        }
        nodes.wait_until_received(n_received + n_changes * self.n_nodes).await?;
        let churn = meter.read(server);
        Ok(Asked { start, idle, churn, n_changes, n_received: nodes.n_received() - n_received })
    }

    /// Of all nodes: Services, EndpointSlices, and their own Node.
    fn n_watches(&self) -> u64 {
        3 * self.n_nodes as u64
    }

    fn fill(&self, server: &ApiServer) {
        for n in 0..self.n_services {
            server.put(objects::service(n));
            server.put(objects::slice(n, self.n_endpoints, 0));
        }
        for n in 0..self.n_nodes {
            server.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": node_name(n) },
                "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" }] },
            }));
        }
    }
}

fn node_name(n: usize) -> String {
    format!("node-{n}")
}

/// Counters at one moment.
struct Meter {
    counters: Counters,
    begun: Instant,
}

impl Meter {
    fn begin(server: &ApiServer) -> Meter {
        Meter { counters: server.counters(), begun: Instant::now() }
    }

    /// The difference since then.
    fn read(&self, server: &ApiServer) -> Counted {
        let now = server.counters();
        let n_watches =
            |counters: &Counters| counters.resources.values().map(|counts| counts.watches).sum::<u64>();
        Counted {
            connections: now.connections - self.counters.connections,
            requests: now.requests - self.counters.requests,
            watches: n_watches(&now) - n_watches(&self.counters),
            bytes: now.wire_bytes - self.counters.wire_bytes,
            elapsed: self.begun.elapsed(),
        }
    }
}

/// The running watch layers, and their progress; dropping it ends them.
struct Nodes {
    tasks: JoinSet<anyhow::Result<()>>,
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    n_listed: usize,
    n_received: usize,
}

impl Nodes {
    fn start(fleet: &Fleet, kubeconfig: &Path) -> Nodes {
        let (sender, progress) = watch::channel(Progress::default());
        let starting = Arc::new(Semaphore::new(fleet.n_at_once));
        let mut tasks = JoinSet::new();
        for n in 0..fleet.n_nodes {
            let (kubeconfig, sender, starting) =
                (kubeconfig.to_owned(), sender.clone(), Arc::clone(&starting));
            tasks.spawn(async move {
                let permit = starting.acquire_owned().await?;
                let connection = connect(Some(&kubeconfig), None, LIMIT, Arc::new(())).await?;
                let (sending, events) = mpsc::channel(chainsmith::watch::CHANNEL_CAPACITY);
                let listening = listen(events, sender, permit);
                tokio::select! {
                    () = follow(connection, node_name(n), sending) => {}
                    () = listening => {}
                }
                anyhow::bail!("{} ended", node_name(n))
            });
        }
        Nodes { tasks, progress }
    }

    fn n_received(&self) -> usize {
        self.progress.borrow().n_received
    }

    async fn wait_until_listed(&mut self, n: usize) -> anyhow::Result<()> {
        self.wait(|progress| progress.n_listed >= n).await
    }

    async fn wait_until_received(&mut self, n: usize) -> anyhow::Result<()> {
        self.wait(|progress| progress.n_received >= n).await
    }

    async fn wait(&mut self, claim: impl Fn(&Progress) -> bool) -> anyhow::Result<()> {
        let waiting = tokio::time::timeout(PATIENCE, self.progress.wait_for(|progress| claim(progress)));
        let progress = tokio::select! {
            progress = waiting => progress.context("waiting for the nodes")??,
            Some(ended) = self.tasks.join_next() => {
                ended.context("a node broke off")??;
                anyhow::bail!("a node ended");
            }
        };
        ensure!(claim(&progress), "the nodes went back");
        Ok(())
    }
}

/// Receives events as the loop does; returns `permit` when everything is listed.
async fn listen<P>(mut events: mpsc::Receiver<WatchEvent>, progress: watch::Sender<Progress>, permit: P) {
    let mut permit = Some(permit);
    let mut n_kinds_left = 3;
    while let Some(event) = events.recv().await {
        match event {
            WatchEvent::ServicesListed | WatchEvent::SlicesListed | WatchEvent::NodeListed => {
                n_kinds_left -= 1;
                if n_kinds_left == 0 {
                    permit = None;
                    progress.send_modify(|progress| progress.n_listed += 1);
                }
            }
            WatchEvent::Change(_) if permit.is_none() => {
                progress.send_modify(|progress| progress.n_received += 1);
            }
            _ => {}
        }
    }
}
