//! `check --watch`: checks again whenever the objects or the rules change, and from time to time, until SIGTERM.
#![allow(clippy::disallowed_methods, reason = "reads the clock")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::in_force::{self, NodeInForce};
use super::lasting::LastingFindings;
use crate::config::Config;
use crate::http::{self, Admission};
use crate::inspect::ClusterView;
use crate::inspect::findings::{self, CheckFinding, CheckQuestion, CheckReport, CheckResult};
use crate::kernel::{nft, open_files};
use crate::log::failure;
use crate::metrics::{CheckMetrics, CheckedChains, check_router};
use crate::model::{Inventory, ObjectKind, Snapshot, Touched};
use crate::net::{IpFamily, PerFamily};
use crate::rules::Settings;
use crate::watch::{self, WatchEvent};

/// A check waits until nothing has changed for this long.
const CALM: Duration = Duration::from_secs(1);
/// And no longer than this.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The time between two checks is at least this many times what the last one took, so that checks take at most a
/// tenth of one CPU.
const PAUSE_FACTOR: u32 = 9;

/// What `check --watch` is to do.
pub struct WatchPlan {
    pub config: Config,
    pub node_name: String,
    pub families: Vec<IpFamily>,
    pub source: WatchedObjects,
    /// Where to serve metrics.
    pub metrics_address: Option<SocketAddr>,
    /// The longest time between two checks.
    pub period: Duration,
    /// How long a difference has to last.
    pub grace: Duration,
}

/// Where the objects come from.
pub enum WatchedObjects {
    /// Folders of manifests.
    Folders(Vec<PathBuf>),
    /// The API server of this kubeconfig; without one, of the configuration or of the pod.
    Cluster(Option<PathBuf>),
}

/// Checks until SIGTERM or SIGINT, which is success.
pub async fn watch(plan: WatchPlan) -> anyhow::Result<()> {
    let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let [terminate, interrupt] = &mut signals;
    let plan = Arc::new(plan);
    let registry = prometheus::Registry::new();
    let metrics = CheckMetrics::register(&registry)?;
    let last = Arc::new(Mutex::new(Instant::now()));
    let mut tasks = JoinSet::new();
    serve(&plan, registry, last.clone(), &mut tasks);
    let events = start_source(&plan, &mut tasks).await?;
    let commits = start_commits(&mut tasks);
    info!(node = plan.node_name, period = ?plan.period, grace = ?plan.grace, "checking; nothing is written");
    let checks = CheckLoop {
        plan,
        metrics,
        last,
        snapshot: Arc::default(),
        problems: Vec::new(),
        lasting: LastingFindings::default(),
        n_unknown: 0,
    };
    tokio::select! {
        ended = checks.run(events, commits) => ended,
        Some(ended) = tasks.join_next() => ended.context("a task panicked")?,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Serves `/metrics` and `/healthz`, if that is asked for.
fn serve(
    plan: &WatchPlan,
    registry: prometheus::Registry,
    last: Arc<Mutex<Instant>>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) {
    let Some(address) = plan.metrics_address else { return };
    let limit = plan.period * 3 + MAX_WAIT;
    let router = check_router(registry, move || {
        let since = last.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        (since > limit).then(|| format!("no check has ended for {} s", since.as_secs()))
    });
    let admission = Arc::new(Admission::new(open_files::limit(), Box::new(|_| {})));
    let failed = |_: &http::BindFailure<'_>| std::future::ready(());
    tasks.spawn(async move { http::serve_at(admission, "metrics", address, router, false, failed).await });
}

async fn start_source(
    plan: &WatchPlan,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<mpsc::Receiver<WatchEvent>> {
    let (sender, receiver) = mpsc::channel(watch::CHANNEL_CAPACITY);
    let node = plan.node_name.clone();
    match &plan.source {
        WatchedObjects::Folders(folders) => {
            tasks.spawn(watch::files::follow(folders.clone(), node, sender));
        }
        WatchedObjects::Cluster(kubeconfig) => {
            let client = &plan.config.client;
            let limit = watch::api::RequestLimit { qps: client.qps, burst: client.burst };
            let kubeconfig = kubeconfig.as_deref().or(client.kubeconfig.as_deref());
            let connection =
                watch::api::connect(kubeconfig, client.master.as_deref(), limit, Arc::new(())).await?;
            tasks.spawn(async move {
                watch::api::follow(connection, node, sender).await;
                Ok(())
            });
        }
    }
    Ok(receiver)
}

/// Notifications of commits to nf_tables, of which one waits at most.
fn start_commits(tasks: &mut JoinSet<anyhow::Result<()>>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    match nft::CommitNotifications::listen() {
        Ok(mut notifications) => {
            tasks.spawn(async move {
                while !sender.is_closed() {
                    notifications.next().await.context("listening to nf_tables")?;
                    // One that waits says as much.
                    let _ = sender.try_send(());
                }
                Ok(())
            });
        }
        Err(error) => warn!(%error, "cannot listen to nf_tables; checking from time to time only"),
    }
    receiver
}

/// When the next check is due.
#[derive(Clone, Copy, Debug)]
struct CheckSchedule {
    /// No check starts before.
    not_before: Instant,
    /// One starts then, whatever happens.
    at_latest: Instant,
    /// The first and the last change since the last check.
    changed: Option<(Instant, Instant)>,
}

impl CheckSchedule {
    fn note_change(&mut self, now: Instant) {
        let first = self.changed.map_or(now, |(first, _)| first);
        self.changed = Some((first, now));
    }

    fn due(&self) -> Instant {
        let changed = self.changed.map(|(first, last)| (last + CALM).min(first + MAX_WAIT));
        changed.unwrap_or(self.at_latest).min(self.at_latest).max(self.not_before)
    }
}

struct CheckLoop {
    plan: Arc<WatchPlan>,
    metrics: CheckMetrics,
    /// When the last check ended that saw everything.
    last: Arc<Mutex<Instant>>,
    snapshot: Arc<Snapshot>,
    problems: Vec<(ObjectKind, Vec<String>)>,
    lasting: LastingFindings,
    /// Checks in a row that could not see everything.
    n_unknown: u32,
}

impl CheckLoop {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<WatchEvent>,
        mut commits: mpsc::Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut n_lists_left = 3;
        let now = Instant::now();
        let mut schedule = CheckSchedule { not_before: now, at_latest: now + CALM, changed: None };
        loop {
            tokio::select! {
                event = events.recv() => {
                    let event = event.context("the watches of Services and EndpointSlices ended")?;
                    n_lists_left -= usize::from(self.apply(event)).min(n_lists_left);
                    schedule.note_change(Instant::now());
                }
                Some(()) = commits.recv() => schedule.note_change(Instant::now()),
                () = tokio::time::sleep_until(schedule.due()), if n_lists_left == 0 => {
                    let begun = Instant::now();
                    self.check().await?;
                    let elapsed = begun.elapsed();
                    let now = Instant::now();
                    // A difference is looked at more often, until it has lasted.
                    let wait = match self.lasting.n_pending() {
                        0 => self.plan.period,
                        _ => self.plan.period.min(self.plan.grace / 3).max(CALM),
                    };
                    schedule = CheckSchedule {
                        not_before: now + (elapsed * PAUSE_FACTOR).max(CALM),
                        at_latest: now + wait,
                        changed: None,
                    };
                }
            }
        }
    }

    /// Takes in an event; whether it ends a first list.
    fn apply(&mut self, event: WatchEvent) -> bool {
        match event {
            WatchEvent::Change(change) => {
                Arc::make_mut(&mut self.snapshot).apply(change, &mut Touched::default());
                false
            }
            WatchEvent::Problems(kind, n, first) => {
                let n_more = n.saturating_sub(first.len());
                let mut lines: Vec<String> = first.iter().map(ToString::to_string).collect();
                lines.extend(
                    (n_more > 0).then(|| format!("{n_more} more problems of objects of kind {kind:?}")),
                );
                self.problems.retain(|(other, _)| *other != kind);
                self.problems.push((kind, lines));
                false
            }
            WatchEvent::ServicesListed | WatchEvent::SlicesListed | WatchEvent::NodeListed => true,
        }
    }

    async fn check(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (plan, snapshot) = (self.plan.clone(), self.snapshot.clone());
        let problems = self.problems.iter().flat_map(|(_, lines)| lines.clone()).collect();
        let checked = tokio::task::spawn_blocking(move || check_once(&plan, &snapshot, problems));
        let outcome = checked.await.context("a check panicked")?;
        let elapsed = begun.elapsed();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match outcome {
            Ok(report) if report.unknown.is_empty() => {
                self.n_unknown = 0;
                self.take_in(&report);
                let result = if report.result == CheckResult::Same { "same" } else { "different" };
                self.metrics.record_run(result, since_epoch, elapsed);
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
            outcome => {
                let reasons = match outcome {
                    Ok(report) => report.unknown.join("; "),
                    Err(error) => format!("{error:#}"),
                };
                self.n_unknown = self.n_unknown.saturating_add(1);
                failure!(self.n_unknown, reasons, "cannot tell; earlier findings stay");
                self.metrics.record_run("unknown", since_epoch, elapsed);
            }
        }
        Ok(())
    }

    /// Logs and shows what a check that saw everything changes.
    fn take_in(&mut self, report: &CheckReport) {
        let changes = self.lasting.update(Instant::now(), &report.findings, self.plan.grace);
        changes.appeared.iter().for_each(|finding| log_finding(finding, "finding"));
        changes.gone.iter().for_each(|finding| log_finding(finding, "finding gone"));
        if !changes.gone.is_empty() && self.lasting.lasting().count() == 0 {
            info!(node = report.node, "the rules are as the objects ask for");
        }
        let lasting: Vec<(String, &str)> = self
            .lasting
            .lasting()
            .map(|finding| (finding.severity.to_string(), finding.kind.as_str()))
            .collect();
        let lasting = lasting.iter().map(|(severity, kind)| (severity.as_str(), *kind));
        self.metrics.set_findings(lasting, self.lasting.n_pending());
        let mut checked = PerFamily::default();
        for family in IpFamily::BOTH {
            let of_family = report.families.iter().find(|checked| checked.family == family.as_str());
            *checked.get_mut(family) = of_family.map(|checked| CheckedChains {
                n_chains: checked.chains,
                n_differing: checked.differing_chains,
                n_affected: checked.affected_service_ports,
                backend: checked.backend.as_deref().unwrap_or("none"),
                layout: &checked.layout,
            });
        }
        self.metrics.record_chains(&checked);
    }
}

fn log_finding(finding: &CheckFinding, what: &'static str) {
    let place = [&finding.family, &finding.table, &finding.chain];
    let place: Vec<&str> = place.into_iter().flatten().map(String::as_str).collect();
    let (place, services) = (place.join(" "), finding.services.join(","));
    let CheckFinding { severity, kind, summary, effect, next, service_ports, .. } = finding;
    let kind = kind.as_str();
    if what == "finding" {
        warn!(%severity, kind, place, summary, effect, services, service_ports, next, "{what}");
    } else {
        info!(%severity, kind, place, summary, services, "{what}");
    }
}

/// One check of the kernel against `snapshot`.
fn check_once(
    plan: &WatchPlan,
    snapshot: &Arc<Snapshot>,
    problems: Vec<String>,
) -> anyhow::Result<CheckReport> {
    let NodeInForce { subject, backends, state, unknown } = in_force::read(&plan.config, &plan.families)?;
    let host = in_force::host(&subject.host);
    let settings = |family| Settings::new(&plan.config, snapshot.node(), &host, family);
    let cluster = ClusterView {
        settings: PerFamily { v4: settings(IpFamily::V4), v6: settings(IpFamily::V6) },
        problems,
        snapshot: snapshot.clone(),
        ..ClusterView::new(&plan.config, &Inventory::default(), &plan.node_name, &host)
    };
    let host = subject.host.clone();
    let state = Some(&state);
    Ok(findings::check(CheckQuestion { cluster, host, in_force: &subject, backends, state, unknown }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_waits_for_calm_and_not_for_ever() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut schedule = CheckSchedule { not_before: at(5), at_latest: at(60), changed: None };
        assert_eq!(schedule.due(), at(60));
        schedule.note_change(at(1));
        assert_eq!(schedule.due(), at(5), "checks have their pause");
        schedule.note_change(at(8));
        assert_eq!(schedule.due(), at(9));
        for second in 9..30 {
            schedule.note_change(at(second));
        }
        assert_eq!(schedule.due(), at(1) + MAX_WAIT);
    }
}
