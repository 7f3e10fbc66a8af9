//! `chainsmith check`: whether the rules in force are those that the objects ask for. Reads and never writes.

mod drawing;
mod in_force;
mod lasting;
mod watching;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::objects::Objects;
use super::output::OutputArguments;
use super::source::{self, SourceArguments};
use super::{USAGE, print_error};
use crate::config::{BackendChoice, Config, GoDuration};
use crate::inspect::findings::{self, CheckQuestion, CheckReport, CheckResult};
use crate::inspect::{ClusterView, HostView, RulesOrigin, Subject};
use crate::model::Inventory;
use crate::net::PerFamily;
use in_force::NodeInForce;
use watching::{WatchPlan, WatchedObjects};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// Check again and again, until SIGTERM; -f takes folders then. Findings go to the log
    #[arg(long, conflicts_with_all = ["rules", "output"])]
    watch: bool,
    /// With --watch: serve /metrics and /healthz there [default: nowhere]
    #[arg(long, value_name = "IP:PORT", requires = "watch")]
    metrics_bind_address: Option<SocketAddr>,
    /// With --watch: the longest time between two checks
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    period: Duration,
    /// With --watch: how long a difference has to last to be a finding
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    grace_period: Duration,
    /// The iptables back-end [default: that of the configuration, else the one that holds rules of Services]
    #[arg(long, value_name = "nft|legacy", value_parser = PossibleValuesParser::new(["nft", "legacy"]))]
    iptables_backend: Option<String>,
    #[command(flatten)]
    output: OutputArguments,
}

/// Reads `30s`, as Go does; from a second to a day.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = GoDuration::parse(text).and_then(GoDuration::to_std);
    let bounds = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
    duration
        .filter(|duration| bounds.contains(duration))
        .ok_or_else(|| "must be from 1s to 24h, as in 30s".to_owned())
}

impl CheckArguments {
    /// The configuration with the back-end of the command line.
    fn with_backend(&self, mut config: Config) -> Config {
        match self.iptables_backend.as_deref() {
            Some("nft") => config.backend = BackendChoice::Nft,
            Some(_) => config.backend = BackendChoice::Legacy,
            None => {}
        }
        config
    }
}

/// Exit status when a part could not be read.
const CANNOT_TELL: u8 = 2;

/// Compares once, or watches.
pub fn main(arguments: &CheckArguments) -> ExitCode {
    if arguments.watch {
        return match watch(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(format!("{error:#}"));
                ExitCode::from(CANNOT_TELL)
            }
        };
    }
    match compare(arguments) {
        Ok(report) => {
            let status = status(&report);
            arguments
                .output
                .print_report("CheckReport", &report, status, |screen| drawing::draw(&report, screen))
        }
        Err(error) => {
            print_error(format!("{error:#}"));
            ExitCode::from(USAGE)
        }
    }
}

fn status(report: &CheckReport) -> ExitCode {
    match report.result {
        CheckResult::Same => ExitCode::SUCCESS,
        CheckResult::Different => ExitCode::FAILURE,
        CheckResult::Unknown => ExitCode::from(CANNOT_TELL),
    }
}

/// What an agent knows of the kernel is what it left there: a check asks the kernel and the cluster instead.
fn refuse_agent(source: &SourceArguments) -> anyhow::Result<()> {
    if source.agent.is_some() {
        bail!(
            "--agent: check compares the kernel with the cluster itself: use --cluster or -f; \
             `chainsmith status` shows what the agent knows of its rules"
        );
    }
    Ok(())
}

fn compare(arguments: &CheckArguments) -> anyhow::Result<CheckReport> {
    let source = &arguments.source;
    refuse_agent(source)?;
    let Some((objects, config, _)) = source.read_objects(&[])? else {
        bail!("check needs the objects to compare with: give them with -f OBJECTS or --cluster");
    };
    let config = arguments.with_backend(config);
    let Objects { inventory, problems, .. } = objects;
    match &source.rules {
        Some(path) => {
            let (mut cluster, host) = source.node.cluster(&config, &inventory)?;
            cluster.problems = problems;
            let rulesets = source::read_rules(path, &source.node.families())?;
            let origin = RulesOrigin::Text(path.display().to_string());
            let in_force = Subject { rulesets, origin, cluster: None, host: HostView::default() };
            let (backends, state, unknown) = (PerFamily::default(), None, Vec::new());
            Ok(findings::check(CheckQuestion {
                cluster,
                host,
                in_force: &in_force,
                backends,
                state,
                unknown,
            }))
        }
        None => compare_live(arguments, &config, &inventory, problems),
    }
}

/// Compares with the kernel of this machine.
fn compare_live(
    arguments: &CheckArguments,
    config: &Config,
    inventory: &Inventory,
    problems: Vec<String>,
) -> anyhow::Result<CheckReport> {
    let node = &arguments.source.node;
    let NodeInForce { subject, backends, state, unknown } = in_force::read(config, &node.families())?;
    let node_name = node.node_name(config, inventory)?;
    let mut cluster = ClusterView::new(config, inventory, &node_name, &in_force::host(&subject.host));
    cluster.problems = problems;
    let host = subject.host.clone();
    Ok(findings::check(CheckQuestion {
        cluster,
        host,
        in_force: &subject,
        backends,
        state: Some(&state),
        unknown,
    }))
}

/// The cluster, or the folders of -f.
fn watched_objects(source: &SourceArguments) -> anyhow::Result<WatchedObjects> {
    if source.cluster.is_asked() {
        if source.cluster.has_context() {
            bail!("--watch uses the current context of the kubeconfig: --context cannot be given");
        }
        return Ok(WatchedObjects::Cluster(source.cluster.kubeconfig().map(Path::to_owned)));
    }
    let folders = source.objects.clone();
    if let Some(file) = folders.iter().find(|path| !path.is_dir()) {
        bail!("--watch needs -f FOLDER, which it follows: {} is none", file.display());
    }
    if folders.is_empty() {
        bail!("check --watch needs the objects to compare with: give them with -f FOLDER or --cluster");
    }
    Ok(WatchedObjects::Folders(folders))
}

fn watch(arguments: &CheckArguments) -> anyhow::Result<()> {
    let source = &arguments.source;
    refuse_agent(source)?;
    let config = arguments.with_backend(source.node.config()?);
    let node_name = source.node.node.clone().or_else(|| config.hostname_override.clone());
    let node_name = node_name.context("--watch needs the name of the Node: give it with --node")?;
    let watched = watched_objects(source)?;
    super::run::start_log(&config.logging);
    let plan = WatchPlan {
        families: source.node.families(),
        source: watched,
        metrics_address: arguments.metrics_bind_address,
        period: arguments.period,
        grace: arguments.grace_period,
        node_name,
        config,
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // Checks run one at a time on a blocking thread.
    let runtime = builder.worker_threads(1).max_blocking_threads(4).enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let result = runtime.block_on(watching::watch(plan));
    // Does not wait for a check that is under way: it only reads.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests;
