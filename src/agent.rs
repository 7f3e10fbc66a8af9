//! The agent: finds out what the node supports, starts the tasks, joins them.
#![allow(clippy::disallowed_methods, reason = "reads the host name and /proc")]

mod config_file;
mod conflicting_proxy;
mod connection_counts;
mod counters;
mod families;
mod host_lookup;
mod leftover_removal;
mod memory;
mod questions_server;
mod reporting;
mod runtime;
mod shutdown;
mod sync_log;
mod sysctls;

pub use config_file::ConfigFile;
pub use conflicting_proxy::conflicting_proxies;
pub use memory::share_one_heap;
pub use runtime::runtime;
pub use sysctls::n_online_cpus;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::affinity::AffinityObserver;
use crate::agent_socket::StatusCollector;
use crate::config::{Config, LayoutChoice};
use crate::conntrack::Sweeper;
use crate::drift::canary;
use crate::events;
use crate::kernel::affinity_lists::AffinityLists;
use crate::kernel::programs::{self, KernelIptables};
use crate::kernel::{Backend, Iptables, nft, open_files};
use crate::metrics::Metrics;
use crate::model::host::{Host, Kernel};
use crate::net::IpFamily;
use crate::rules::{Settings, fixed};
use crate::sync::{Finding, HostSource, Loop, LoopEnd, LoopInputs, LoopParts, NodeWait, Observer};
use crate::watch::{self, api::Connection};
use conflicting_proxy::ConflictDetector;
use host_lookup::HostLookup;
use leftover_removal::FirstSyncNotifier;
use memory::HeapTrimmer;
use shutdown::ExitSignals;
use sync_log::SyncLog;
use sysctls::SettingsFolders;

const PROC: &str = "/proc";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Runs until SIGTERM or SIGINT, which is success; the rules stay in force. `flags` is every flag with its value, for
/// `/flagz`; `file` is the file of the configuration.
pub async fn run(
    config: Config,
    flags: Vec<(&'static str, String)>,
    file: Option<ConfigFile>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = Arc::new(config);
    let node_name = node_name(&config)?;
    let mut signals = ExitSignals::listen()?;
    // Preparing may take minutes; a signal ends it.
    let prepared = tokio::select! {
        () = signals.next() => return shutdown::exit_at_start(),
        prepared = prepare(config.clone()) => prepared?,
    };
    let PreparedNode { mut kernels, kernel, findings } = prepared;
    let families: Vec<IpFamily> = kernels.iter().map(Iptables::family).collect();

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let connections = connection_counts::start(config.connection_metrics, &mut kernels, &mut tasks);
    if let Some(file) = file {
        tasks.spawn(file.until_changed());
    }
    let score = config.oom_score_adj;
    tasks.spawn(async move {
        sysctls::set_oom_score(Path::new("/proc/self"), score).await;
        Ok(())
    });
    let (shutdown_sender, shutdown) = watch_channel::channel(false);
    let (flushed_sender, flushed) = mpsc::channel(2);
    for kernel in &kernels {
        let (watched, period, sender) = (kernel.twin(), config.sync_period, flushed_sender.clone());
        tasks.spawn(async move {
            canary::watch(watched, period, sender).await;
            Ok(())
        });
    }
    let family_names: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
    info!(
        node = %node_name, families = family_names.join(","), version = env!("CARGO_PKG_VERSION"),
        backend = kernels.first().map(|kernel| kernel.backend().as_str()), "starting"
    );
    let registry = prometheus::Registry::new();
    let metrics = Arc::new(Metrics::register(&registry)?);
    let connection = tokio::select! {
        () = signals.next() => return shutdown::exit_at_start(),
        connection = connect(config.clone(), metrics.clone()) => connection?,
    };
    let facts = reporting::AgentFacts {
        config: &config,
        flags,
        node: &node_name,
        machine: &host_name()?,
        server: connection.as_ref().map(events_server),
        freshness: connection.as_ref().map(|connection| connection.freshness.clone()),
        counters: kernel.counters,
        services: connections.clone().map(connection_counts::service_reader),
        max_open_files: open_files::limit(),
    };
    let freshness = facts.freshness.clone();
    let (mut reports, admission) = reporting::start(facts, registry, metrics, &mut tasks)?;
    let collector = Arc::new(StatusCollector::default());
    reports.push(collector.clone());
    let changes = start_source(connection, &config, &node_name, &mut tasks);
    let node_wait = if config.manifests.is_empty() { NodeWait::CLUSTER } else { NodeWait::NONE };
    let lookup = Arc::new(HostLookup::new(kernel));
    tokio::select! {
        () = signals.next() => return shutdown::exit_at_start(),
        () = lookup.wait_known() => {}
    }
    let (addresses_sender, addresses) = mpsc::channel(1);
    tasks.spawn(lookup.clone().follow(addresses_sender));
    let host: HostSource = Arc::new(move || lookup.host());
    let socket = questions_server::SocketFacts {
        config: config.clone(),
        node: node_name.to_string(),
        started,
        freshness,
        host: host.clone(),
        collector,
        connections: connections.clone(),
    };
    let questions = questions_server::start(socket, admission, &mut tasks);
    let (written_sender, written) = mpsc::channel(64);
    let is_notified = forward_commits(&kernels, written_sender, &mut tasks);
    for finding in &findings {
        reports.iter().for_each(|observer| observer.noticed(finding));
    }
    let mut observers =
        observers(reports, &config, &host, kernels.first().map(Iptables::backend), &mut tasks);
    observers.push(Arc::new(SyncLog::new(config.clone(), families, started)));
    observers.push(Arc::new(HeapTrimmer::new()));
    observers.extend(connections.map(|connections| connections as Arc<dyn Observer>));
    let parts = LoopParts { config, node_name, host, kernels, observers, node_wait, is_notified };
    let inputs = LoopInputs { watch: changes, flushed, written, addresses, questions, shutdown };
    let sync_loop = tokio::spawn(Loop::new(parts).run(inputs));
    wait_for_end(sync_loop, tasks, signals, &shutdown_sender).await
}

/// What the node supports, and what could not be prepared.
struct PreparedNode {
    kernels: Vec<KernelIptables>,
    kernel: Kernel,
    findings: Vec<Finding>,
}

/// Finds out what the node supports, and sets the sysctls that the configuration needs.
async fn prepare(config: Arc<Config>) -> anyhow::Result<PreparedNode> {
    let (mut kernels, lost) = families::usable(&config).await?;
    blocking(move || {
        let (mut kernel, mut findings) = prepare_kernel(&config);
        findings.extend(lost);
        kernel.counters = counters::usable(&mut kernels);
        kernel.bpf = config.layout == LayoutChoice::Classic || kernels.iter_mut().all(accepts_bpf);
        Ok(PreparedNode { kernels, kernel, findings })
    })
    .await
}

/// Runs `work`, which may take long, on a blocking thread; passes a panic on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether rules may have the `bpf` match, by which compact detects a hairpin.
fn accepts_bpf(kernel: &mut KernelIptables) -> bool {
    let family = kernel.family();
    let accepted = programs::accepts_rule(kernel, &fixed::hairpin_probe(family));
    if let Err(error) = &accepted {
        warn!(%family, %error, "iptables does not accept the bpf match; the compact layout makes a chain for each endpoint");
    }
    accepted.is_ok()
}

/// All observers of the loop: `reports`, and those that act with tasks of their own.
fn observers(
    reports: Vec<Arc<dyn Observer>>,
    config: &Config,
    host: &HostSource,
    backend: Option<Backend>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> Vec<Arc<dyn Observer>> {
    let sweeper = Arc::new(Sweeper::new(host.clone(), reports.clone()));
    let affinity = Arc::new(AffinityObserver::new(config.audit_period, reports.clone()));
    let conflicts = Arc::new(ConflictDetector::new(reports.clone()));
    let (first_syncs, synced) = FirstSyncNotifier::new();
    let mut observers = reports.clone();
    observers.extend([
        sweeper.clone() as Arc<dyn Observer>,
        affinity.clone(),
        conflicts.clone(),
        Arc::new(first_syncs),
    ]);
    tasks.spawn(async move {
        sweeper.run().await;
        Ok(())
    });
    tasks.spawn(async move {
        affinity.run(AffinityLists::of_kernel()).await;
        Ok(())
    });
    tasks.spawn(conflicts.run());
    if let Some(backend) = backend {
        tasks.spawn(leftover_removal::remove_leftovers(backend, synced, reports));
    }
    observers
}

/// Sets the sysctls, which needs more privileges than running. Needs neither the API server nor iptables. An error
/// names every sysctl that could not be set.
pub fn init_only(config: &Config) -> anyhow::Result<()> {
    let (_, findings) = prepare_kernel(config);
    let unset: Vec<String> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::ParameterUnset { key, value, error } => Some(format!("{key} = {value}: {error}")),
            _ => None,
        })
        .collect();
    if !unset.is_empty() {
        bail!("cannot set sysctls: {}", unset.join("; "));
    }
    Ok(())
}

/// Forwards notifications of commits to nf_tables to `written`. `false` if there are none, and the tables must be
/// compared instead.
fn forward_commits(
    kernels: &[KernelIptables],
    written: mpsc::Sender<Option<u32>>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> bool {
    if kernels.iter().any(|kernel| kernel.backend() == Backend::Legacy) {
        return false;
    }
    let mut notifications = match nft::CommitNotifications::listen() {
        Ok(notifications) => notifications,
        Err(error) => {
            warn!(%error, "cannot listen to nf_tables; comparing the tables every second");
            return false;
        }
    };
    tasks.spawn(async move {
        while let Ok(()) = match notifications.next().await.context("listening to nf_tables")? {
            nft::Commit::Made { generation, .. } => written.send(Some(generation)).await,
            nft::Commit::Missed => written.send(None).await,
        } {}
        Ok(())
    });
    true
}

/// Waits for the end of the loop, a signal, or a task that fails.
async fn wait_for_end(
    mut sync_loop: JoinHandle<LoopEnd>,
    mut tasks: JoinSet<anyhow::Result<()>>,
    mut signals: ExitSignals,
    shutdown_sender: &watch_channel::Sender<bool>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            biased;
            ended = &mut sync_loop => return match ended.context("the sync loop panicked")? {
                LoopEnd::Shutdown => Ok(()),
                LoopEnd::PodCidrsChanged => bail!("the Node's pod CIDRs changed; exiting, to be restarted with the new ones"),
                LoopEnd::NoPodCidrs => bail!("the Node has no pod CIDRs, which detectLocalMode NodeCIDR needs"),
                LoopEnd::SourcesGone => bail!("the watches of Services and EndpointSlices ended"),
            },
            Some(ended) = tasks.join_next() => ended.context("a task panicked")??,
            () = signals.next() => {
                return shutdown::end_loop(sync_loop, signals, shutdown_sender).await;
            }
        }
    }
}

fn host_name() -> anyhow::Result<String> {
    Ok(nix::unistd::gethostname().context("cannot read the host name")?.to_string_lossy().into_owned())
}

/// The configured name of the Node, else the host name; lower case.
fn node_name(config: &Config) -> anyhow::Result<Arc<str>> {
    let name = match &config.hostname_override {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the host name is empty; set the Node's name with --hostname-override");
    }
    Ok(name.into())
}

/// Sets the sysctls that the configuration needs, and finds out what the kernel supports.
fn prepare_kernel(config: &Config) -> (Kernel, Vec<Finding>) {
    let folders = SettingsFolders::of_kernel();
    let mut failures = sysctls::set_conntrack(&folders, &config.conntrack);
    let tcp_be_liberal = folders.sysctls.get::<i64>(BE_LIBERAL).is_ok_and(|value| value != 0);
    let kernel = Kernel { tcp_be_liberal, ..Kernel::default() };
    // Whether node ports answer on loopback depends on the configuration, not on the node's addresses.
    let settings = Settings::new(config, None, &Host { addresses: Vec::new(), kernel }, IpFamily::V4);
    let failure =
        settings.localhost_node_ports.then(|| sysctls::set(&folders.sysctls, ROUTE_LOCALNET, 1)).flatten();
    let route_localnet = failure.is_none();
    failures.extend(failure);
    sysctls::log_failures(&failures);
    let mut findings: Vec<Finding> = failures.into_iter().map(sysctls::SetError::finding).collect();
    if !route_localnet {
        warn!("node ports do not answer on 127.0.0.1: route_localnet cannot be set");
        findings.push(Finding::NoLocalhostNodePorts);
    }
    (Kernel { route_localnet, ..kernel }, findings)
}

/// Connects to the API server, whose traffic `metrics` count; `None` if objects come from folders. Works on a blocking
/// thread, because a kubeconfig may name a program that fetches credentials.
async fn connect(config: Arc<Config>, metrics: Arc<Metrics>) -> anyhow::Result<Option<Connection>> {
    if !config.manifests.is_empty() {
        return Ok(None);
    }
    let runtime = Handle::current();
    let connect = move || {
        let client = &config.client;
        let limit = watch::api::RequestLimit { qps: client.qps, burst: client.burst };
        let (kubeconfig, master) = (client.kubeconfig.as_deref(), client.master.as_deref());
        let observer = Arc::new(reporting::TrafficMeter(metrics));
        let connection = runtime.block_on(watch::api::connect(kubeconfig, master, limit, observer))?;
        // The age at which an unsynced change makes the node unhealthy.
        let freshness = Arc::new(watch::api::Freshness::new(config.sync_period * 2));
        Ok(Some(Connection { freshness, ..connection }))
    };
    blocking(connect).await
}

/// The API server that receives events.
fn events_server(connection: &Connection) -> events::EventTarget {
    events::EventTarget { client: connection.client.clone(), host: connection.host.clone() }
}

fn start_source(
    connection: Option<Connection>,
    config: &Config,
    node_name: &str,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> mpsc::Receiver<watch::WatchEvent> {
    let (sender, receiver) = mpsc::channel(watch::CHANNEL_CAPACITY);
    let node = node_name.to_owned();
    match connection {
        Some(connection) => tasks.spawn(async move {
            watch::api::follow(connection, node, sender).await;
            Ok(())
        }),
        None => tasks.spawn(watch::files::follow(config.manifests.clone(), node, sender)),
    };
    receiver
}
