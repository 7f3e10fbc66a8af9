//! The agent: finds out where it runs, starts the tasks, joins them.
#![allow(clippy::disallowed_methods, reason = "reads what the machine knows of itself")]

mod tune;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::host::{Counters, Host, Kernel};
use crate::config::{BackendChoice, Config};
use crate::kernel::iptables::{self, KernelIptables, Unusable, open};
use crate::kernel::{Backend, Iptables, addrs, nfacct, nft};
use crate::metrics::{self, Metrics};
use crate::net::IpFamily;
use crate::rules::{Settings, fixed, names};
use crate::sync::{Ended, HostSource, Inputs, Loop, Observer, Parts, Patience, Sweeper, canary};
use crate::watch;
use tune::Roots;

const PROC: &str = "/proc";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Runs until SIGTERM or SIGINT, which is success; the rules stay as they are.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let node_name = node_name(&config)?;
    let (families, backend) = usable_families(config.backend)?;
    let kernel = prepare_kernel(&config);

    let registry = prometheus::Registry::new();
    let metrics = Arc::new(Metrics::register(&registry)?);
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let (shutdown_sender, shutdown) = tokio::sync::watch::channel(false);
    let (flushed_sender, flushed) = mpsc::channel(2);
    let mut kernels = Vec::new();
    for family in &families {
        kernels.push(open(*family, backend)?);
        let watched = open(*family, backend)?;
        let (period, sender) = (config.sync_period, flushed_sender.clone());
        tasks.spawn(async move {
            canary::watch(watched, period, sender).await;
            Ok(())
        });
    }
    info!(
        node = %node_name, families = ?families, backend = kernels.first().map(|kernel| kernel.backend().word()),
        version = env!("CARGO_PKG_VERSION"), "starting"
    );
    if let Some(address) = config.metrics_bind_address {
        tasks.spawn(metrics::serve(address, registry, config.bind_address_hard_fail));
    }
    let changes = start_source(&config, &node_name, &mut tasks).await?;
    let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    tasks.spawn(async move {
        let [terminate, interrupt] = &mut signals;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("told to end; the rules stay as they are");
        // The loop may have ended already.
        let _ = shutdown_sender.send(true);
        std::future::pending().await
    });

    let patience = if config.manifests.is_empty() { Patience::CLUSTER } else { Patience::NONE };
    let host: HostSource = Arc::new(move || Host { addresses: local_addresses(), kernel });
    let (written_sender, written) = mpsc::channel(64);
    let is_notified = notify(&kernels, written_sender, &mut tasks);
    let sweeper = Arc::new(Sweeper::new(host.clone(), vec![metrics.clone()]));
    let observers: Vec<Arc<dyn Observer>> = vec![metrics, sweeper.clone()];
    tasks.spawn(async move {
        sweeper.run().await;
        Ok(())
    });
    let parts = Parts { config, node_name, host, kernels, observers, patience, is_notified };
    let inputs = Inputs { watch: changes, flushed, written, shutdown };
    let looping = tokio::spawn(Loop::new(parts).run(inputs));
    end(looping, tasks).await
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
    let mut notifications = match nft::Notifications::listen() {
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

/// Waits for the loop, or for a task that ends although it should not.
async fn end(
    mut looping: tokio::task::JoinHandle<Ended>,
    mut tasks: JoinSet<anyhow::Result<()>>,
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
        }
    }
}

/// The configured name, else the kernel's; lower case.
fn node_name(config: &Config) -> anyhow::Result<Arc<str>> {
    let name = match &config.hostname_override {
        Some(name) => name.clone(),
        None => {
            nix::unistd::gethostname().context("cannot read the host name")?.to_string_lossy().into_owned()
        }
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the host name is empty; give the Node's name with --hostname-override");
    }
    Ok(name.into())
}

/// The families that can be proxied on this machine, and the back-end for all of them.
fn usable_families(choice: BackendChoice) -> Result<(Vec<IpFamily>, Option<Backend>), Unusable> {
    let backend = match choice {
        BackendChoice::Nft => Some(Backend::Nft),
        BackendChoice::Legacy => Some(Backend::Legacy),
        BackendChoice::Auto => iptables::in_use(&[
            names::KUBE_IPTABLES_HINT,
            names::KUBE_KUBELET_CANARY,
            names::KUBE_PROXY_CANARY,
        ]),
    };
    let v4 = open(IpFamily::V4, backend);
    if iptables::ipv6_is_off(Path::new(PROC)) {
        info!("IPv6 is switched off in the kernel; proxying IPv4 only");
        return v4.map(|_| (vec![IpFamily::V4], backend));
    }
    match (v4, open(IpFamily::V6, backend)) {
        (Ok(_), Ok(_)) => Ok((IpFamily::BOTH.to_vec(), backend)),
        (Ok(_), Err(error)) => {
            warn!(%error, "proxying IPv4 only");
            Ok((vec![IpFamily::V4], backend))
        }
        (Err(error), Ok(_)) => {
            warn!(%error, "proxying IPv6 only");
            Ok((vec![IpFamily::V6], backend))
        }
        (Err(error), Err(_)) => Err(error),
    }
}

/// Finds out what the kernel can do, and lets it do what the configuration needs.
fn prepare_kernel(config: &Config) -> Kernel {
    let roots = Roots::of_kernel();
    let mut unset = tune::conntrack(&roots, &config.conntrack);
    let counters =
        Counters { invalid: counter(fixed::INVALID_COUNTER), localhost: counter(fixed::LOCALHOST_COUNTER) };
    let tcp_be_liberal = roots.sysctls.get::<i64>(BE_LIBERAL).is_ok_and(|value| value != 0);
    let kernel = Kernel { counters, tcp_be_liberal, ..Kernel::default() };
    // What the node's addresses are plays no role in whether loopback is among those configured.
    let wanted = Settings::new(config, None, &Host { addresses: Vec::new(), kernel }, IpFamily::V4);
    let refused = wanted.localhost_node_ports.then(|| tune::set(&roots.sysctls, ROUTE_LOCALNET, 1)).flatten();
    let route_localnet = refused.is_none();
    if !route_localnet {
        warn!(key = ROUTE_LOCALNET, "node ports do not answer on 127.0.0.1");
    }
    unset.extend(refused);
    tune::warn_of(&unset);
    Kernel { route_localnet, ..kernel }
}

fn counter(name: &str) -> bool {
    nfacct::is_supported()
        && nfacct::ensure(name)
            .inspect_err(
                |error| warn!(counter = name, %error, "cannot make the nfacct counter; rules do without"),
            )
            .is_ok()
}

fn local_addresses() -> Vec<std::net::IpAddr> {
    addrs::local_addresses().unwrap_or_else(|error| {
        warn!(%error, "cannot list the addresses of the interfaces; node ports with nodePortAddresses do not answer");
        Vec::new()
    })
}

async fn start_source(
    config: &Arc<Config>,
    node_name: &str,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<mpsc::Receiver<watch::WatchEvent>> {
    let (sender, receiver) = mpsc::channel(watch::CHANNEL_CAPACITY);
    let node = node_name.to_owned();
    if config.manifests.is_empty() {
        let client = &config.client;
        let client = watch::api::client(client.kubeconfig.as_deref(), client.master.as_deref()).await?;
        tasks.spawn(async move {
            watch::api::follow(client, node, sender).await;
            Ok(())
        });
    } else {
        tasks.spawn(watch::files::follow(config.manifests.clone(), node, sender));
    }
    Ok(receiver)
}
