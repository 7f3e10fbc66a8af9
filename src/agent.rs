//! The agent: finds out where it runs, starts the tasks, joins them.
#![allow(clippy::disallowed_methods, reason = "reads what the machine knows of itself")]

mod config_file;
mod counters;
mod families;
mod first_sync;
mod host;
mod memory;
mod rivals;
mod shutdown;
mod surroundings;
mod takeover;
mod threads;
mod tune;

pub use config_file::ConfigFile;
pub use memory::share_one_heap;
pub use rivals::others;
pub use threads::runtime;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{Config, LayoutChoice};
use crate::drift::canary;
use crate::events;
use crate::kernel::programs::{self, KernelIptables};
use crate::kernel::{Backend, Iptables, nft, open_files};
use crate::metrics::Metrics;
use crate::model::host::{Host, Kernel};
use crate::net::IpFamily;
use crate::rules::{Settings, fixed};
use crate::sync::{Ended, Finding, HostSource, Inputs, Loop, Observer, Parts, Patience, Sweeper};
use crate::watch::{self, api::Connection};
use first_sync::FirstSyncLog;
use host::Lookups;
use memory::Trimmer;
use rivals::Rivals;
use shutdown::Signals;
use takeover::FirstSyncs;
use tune::Roots;

const PROC: &str = "/proc";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Runs until SIGTERM or SIGINT, which is success; the rules stay as they are. `flags` is every flag
/// with its value, for `/flagz`; `file` is where the configuration was read from.
pub async fn run(
    config: Config,
    flags: Vec<(&'static str, String)>,
    file: Option<ConfigFile>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = Arc::new(config);
    let node_name = node_name(&config)?;
    let mut signals = Signals::listen()?;
    // It may take minutes, in which signals are obeyed.
    let prepared = tokio::select! {
        () = signals.next() => return shutdown::at_start(),
        prepared = prepare(config.clone()) => prepared?,
    };
    let Prepared { kernels, kernel, findings } = prepared;
    let families: Vec<IpFamily> = kernels.iter().map(Iptables::family).collect();

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    if let Some(file) = file {
        tasks.spawn(file.until_changed());
    }
    let score = config.oom_score_adj;
    tasks.spawn(async move {
        tune::oom_score(Path::new("/proc/self"), score).await;
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
    info!(
        node = %node_name, families = ?families, backend = kernels.first().map(|kernel| kernel.backend().as_str()),
        version = env!("CARGO_PKG_VERSION"), "starting"
    );
    let registry = prometheus::Registry::new();
    let metrics = Arc::new(Metrics::register(&registry)?);
    let connection = tokio::select! {
        () = signals.next() => return shutdown::at_start(),
        connection = connect(config.clone(), metrics.clone()) => connection?,
    };
    let about = surroundings::About {
        config: &config,
        flags,
        node: &node_name,
        machine: &machine_name()?,
        server: connection.as_ref().map(events_server),
        freshness: connection.as_ref().map(|connection| connection.freshness.clone()),
        counters: kernel.counters,
        max_open_files: open_files::limit(),
    };
    let told = surroundings::start(about, registry, metrics, &mut tasks)?;
    let changes = start_source(connection, &config, &node_name, &mut tasks);
    let patience = if config.manifests.is_empty() { Patience::CLUSTER } else { Patience::NONE };
    let lookups = Arc::new(Lookups::of_machine(kernel));
    tokio::select! {
        () = signals.next() => return shutdown::at_start(),
        () = lookups.begin() => {}
    }
    let (addresses_sender, addresses) = mpsc::channel(1);
    tasks.spawn(lookups.clone().follow(addresses_sender));
    let host: HostSource = Arc::new(move || lookups.host());
    let (written_sender, written) = mpsc::channel(64);
    let is_notified = notify(&kernels, written_sender, &mut tasks);
    for finding in &findings {
        told.iter().for_each(|observer| observer.noticed(finding));
    }
    let mut observers = observers(told, &host, kernels.first().map(Iptables::backend), &mut tasks);
    observers.push(Arc::new(FirstSyncLog::new(config.clone(), families, started)));
    observers.push(Arc::new(Trimmer::new()));
    let parts = Parts { config, node_name, host, kernels, observers, patience, is_notified };
    let inputs = Inputs { watch: changes, flushed, written, addresses, shutdown };
    let looping = tokio::spawn(Loop::new(parts).run(inputs));
    end(looping, tasks, signals, &shutdown_sender).await
}

/// What is known before anything is started.
struct Prepared {
    kernels: Vec<KernelIptables>,
    kernel: Kernel,
    findings: Vec<Finding>,
}

/// Finds out what the machine can do, and lets it do what the configuration needs.
async fn prepare(config: Arc<Config>) -> anyhow::Result<Prepared> {
    let (mut kernels, lost) = families::usable(&config).await?;
    blocking(move || {
        let (mut kernel, mut findings) = prepare_kernel(&config);
        findings.extend(lost);
        kernel.counters = counters::usable(&mut kernels);
        kernel.bpf = config.layout == LayoutChoice::Classic || kernels.iter_mut().all(takes_bpf);
        Ok(Prepared { kernels, kernel, findings })
    })
    .await
}

/// Does `work`, which may take long, on a thread where it may block; a panic there is one here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether rules may have the `bpf` match that compact tells a hairpin by.
fn takes_bpf(kernel: &mut KernelIptables) -> bool {
    let family = kernel.family();
    let taken = programs::accepts_rule(kernel, &fixed::hairpin_probe(family));
    if let Err(error) = &taken {
        warn!(%family, %error, "no match bpf; in layout compact each endpoint keeps a chain of its own");
    }
    taken.is_ok()
}

/// Those who are `told`, and those who do something of their own with what they hear, as tasks.
fn observers(
    told: Vec<Arc<dyn Observer>>,
    host: &HostSource,
    backend: Option<Backend>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> Vec<Arc<dyn Observer>> {
    let sweeper = Arc::new(Sweeper::new(host.clone(), told.clone()));
    let rivals = Arc::new(Rivals::new(told.clone()));
    let (first_syncs, synced) = FirstSyncs::new();
    let mut observers = told.clone();
    observers.extend([sweeper.clone() as Arc<dyn Observer>, rivals.clone(), Arc::new(first_syncs)]);
    tasks.spawn(async move {
        sweeper.run().await;
        Ok(())
    });
    tasks.spawn(rivals.run());
    if let Some(backend) = backend {
        tasks.spawn(takeover::clear(backend, synced, told));
    }
    observers
}

/// Does what needs more privileges than running: sets kernel parameters. Needs neither the API server
/// nor iptables' tables. An error names every parameter that could not be set.
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
        bail!("cannot set kernel parameters: {}", unset.join("; "));
    }
    Ok(())
}

/// Passes commits to nf_tables on to `written`; `false` where they are not to be had, and the tables
/// are looked at instead.
fn notify(
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
            warn!(%error, "cannot listen to nf_tables; looking at the tables every second instead");
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

/// Waits for the loop, for a signal, or for a task that ends although it should not.
async fn end(
    mut looping: JoinHandle<Ended>,
    mut tasks: JoinSet<anyhow::Result<()>>,
    mut signals: Signals,
    shutdown_sender: &watch_channel::Sender<bool>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            biased;
            ended = &mut looping => return match ended.context("the sync loop panicked")? {
                Ended::Shutdown => Ok(()),
                Ended::PodCidrsChanged => bail!("the Node's pod CIDRs changed; start again with the new ones"),
                Ended::NoPodCidrs => bail!("the Node got no pod CIDRs, which detectLocalMode NodeCIDR needs"),
                Ended::SourcesGone => bail!("nothing tells of Services and EndpointSlices any more"),
            },
            Some(ended) = tasks.join_next() => ended.context("a task panicked")??,
            () = signals.next() => {
                return shutdown::of_loop(looping, signals, shutdown_sender).await;
            }
        }
    }
}

fn machine_name() -> anyhow::Result<String> {
    Ok(nix::unistd::gethostname().context("cannot read the host name")?.to_string_lossy().into_owned())
}

/// The configured name, else the kernel's; lower case.
fn node_name(config: &Config) -> anyhow::Result<Arc<str>> {
    let name = match &config.hostname_override {
        Some(name) => name.clone(),
        None => machine_name()?,
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the host name is empty; give the Node's name with --hostname-override");
    }
    Ok(name.into())
}

/// Finds out what the kernel can do, and lets it do what the configuration needs; what it would not.
fn prepare_kernel(config: &Config) -> (Kernel, Vec<Finding>) {
    let roots = Roots::of_kernel();
    let mut unset = tune::conntrack(&roots, &config.conntrack);
    let tcp_be_liberal = roots.sysctls.get::<i64>(BE_LIBERAL).is_ok_and(|value| value != 0);
    let kernel = Kernel { tcp_be_liberal, ..Kernel::default() };
    // What the node's addresses are plays no role in whether loopback is among those configured.
    let wanted = Settings::new(config, None, &Host { addresses: Vec::new(), kernel }, IpFamily::V4);
    let refused = wanted.localhost_node_ports.then(|| tune::set(&roots.sysctls, ROUTE_LOCALNET, 1)).flatten();
    let route_localnet = refused.is_none();
    unset.extend(refused);
    tune::warn_of(&unset);
    let mut findings: Vec<Finding> = unset.into_iter().map(tune::Unset::finding).collect();
    if !route_localnet {
        warn!("node ports do not answer on 127.0.0.1, as the kernel does not route it");
        findings.push(Finding::NoLocalhostNodePorts);
    }
    (Kernel { route_localnet, ..kernel }, findings)
}

/// The API server; `None` when objects come from folders. Its traffic is counted in `metrics`. On a thread of
/// its own, as a kubeconfig may name a program to be run for credentials.
async fn connect(config: Arc<Config>, metrics: Arc<Metrics>) -> anyhow::Result<Option<Connection>> {
    if !config.manifests.is_empty() {
        return Ok(None);
    }
    let runtime = Handle::current();
    let connect = move || {
        let client = &config.client;
        let limit = watch::api::RequestLimit { qps: client.qps, burst: client.burst };
        let (kubeconfig, master) = (client.kubeconfig.as_deref(), client.master.as_deref());
        let observer = Arc::new(surroundings::Traffic(metrics));
        let connection = runtime.block_on(watch::api::connect(kubeconfig, master, limit, observer))?;
        // As old as a change may become before the node is unhealthy.
        let freshness = Arc::new(watch::api::Freshness::new(config.sync_period * 2));
        Ok(Some(Connection { freshness, ..connection }))
    };
    blocking(connect).await
}

/// Where events go.
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
