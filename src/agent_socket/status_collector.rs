//! Collects what the loop reports, for the status of the agent. Everything that it keeps is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::apply::{FailedRestore, Quarantine, Stages, SyncReport};
use crate::compile::SyncScope;
use crate::inspect::explanation::ServiceSyncState;
use crate::inspect::status::{
    FamilyState, InForceCounts, KeptLines, KeptRestore, KernelRead, NodeFinding, ObjectCounts, ObjectProblem,
    PendingCounts, QuarantinedPort, RestoreReport, RestoreSummary, SentCounts, StageSeconds, StatusReport,
    SyncRecord,
};
use crate::model::{EscapedValue, ObjectKind, ObjectName, Problem, ServiceName};
use crate::net::{IpFamily, PerFamily};
use crate::plan::InputExcerpt;
use crate::sync::{Finding, News, Observer, Synced};

/// How many syncs of a family are kept.
const MAX_SYNCS: usize = 32;
/// How many Services of a sync are named.
const MAX_SERVICES: usize = 5;
/// How many quarantined service ports of a family are shown.
const MAX_QUARANTINED: usize = 50;
/// How many findings about the node are kept.
const MAX_FINDINGS: usize = 50;
/// The longest message that is kept, in bytes.
const MAX_MESSAGE: usize = 2_000;

/// Which input of iptables-restore is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhichRestore {
    /// The one sent last.
    Last,
    /// The one that failed last.
    Failed,
}

/// How many changed Services are kept.
const MAX_CHANGES: usize = 1024;

/// The observer that keeps what the status of the agent shows.
#[derive(Default)]
pub struct StatusCollector(Mutex<Collected>);

/// What is known so far.
#[derive(Default)]
struct Collected {
    families: BTreeMap<IpFamily, FamilyLog>,
    pending: PendingCounts,
    objects: ObjectCounts,
    problems: BTreeMap<ObjectKind, (usize, Vec<ObjectProblem>)>,
    findings: Vec<NodeFinding>,
    /// The Services that changed last since the first lists, each once.
    changes: BTreeMap<ServiceName, ServiceChange>,
    /// The last full sync that succeeded.
    full_sync: Option<Instant>,
}

/// The last change of a Service or its slices, and the last sync that wrote it.
#[derive(Clone, Copy)]
struct ServiceChange {
    changed: Instant,
    synced: Option<Instant>,
}

/// What is known of one family.
#[derive(Default)]
struct FamilyLog {
    backend: &'static str,
    layout: Option<&'static str>,
    in_force: InForceCounts,
    last_read: Option<(&'static str, Instant)>,
    last_success: Option<Instant>,
    n_failures: u64,
    syncing_since: Option<Instant>,
    n_syncs: u64,
    /// Newest first.
    syncs: VecDeque<(Instant, SyncRecord)>,
    n_quarantined: usize,
    quarantined: Vec<QuarantinedPort>,
    affinity_lists_full: usize,
    last: Option<StoredRestore>,
    failed: Option<StoredRestore>,
}

/// An input of iptables-restore, and when the sync ended that sent it.
struct StoredRestore {
    ended: Instant,
    input: InputExcerpt,
    error: Option<String>,
}

impl StatusCollector {
    fn get(&self) -> MutexGuard<'_, Collected> {
        // Consistent even after a panic: each field stands for itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is known now to `report`.
    pub fn describe(&self, report: &mut StatusReport) {
        let collected = self.get();
        report.objects = collected.objects;
        report.pending = collected.pending;
        report.findings = collected.findings.clone();
        report.n_problems = collected.problems.values().map(|(n, _)| n).sum();
        report.problems = collected.problems.values().flat_map(|(_, first)| first).cloned().collect();
        report.families = collected.families.iter().map(|(family, log)| log.state(*family)).collect();
    }

    /// The inputs of iptables-restore that are asked for.
    pub fn restores(&self, which: WhichRestore) -> RestoreReport {
        let collected = self.get();
        let kept = |(family, log): (&IpFamily, &FamilyLog)| {
            let stored = match which {
                WhichRestore::Last => &log.last,
                WhichRestore::Failed => &log.failed,
            };
            stored.as_ref().map(|stored| stored.kept(*family))
        };
        RestoreReport { inputs: collected.families.iter().filter_map(kept).collect() }
    }

    /// When `service` changed and was synced last, as far as that is kept.
    pub fn sync_state(&self, service: &str) -> ServiceSyncState {
        let collected = self.get();
        let change = service
            .split_once('/')
            .and_then(|(namespace, name)| collected.changes.get(&ObjectName::new(namespace, name)));
        let synced = change.and_then(|change| change.synced).max(collected.full_sync);
        ServiceSyncState {
            last_change: change.map(|change| ago(change.changed)),
            last_sync: synced.map(ago),
            is_pending: change.is_some_and(|change| synced.is_none_or(|synced| synced < change.changed)),
            full_affinity_lists: Vec::new(),
        }
    }

    /// The first problems of objects, a line each.
    pub fn problem_lines(&self) -> Vec<String> {
        let collected = self.get();
        let problems = collected.problems.values().flat_map(|(_, first)| first);
        problems.map(|problem| format!("{} {}: {}", problem.kind, problem.object, problem.message)).collect()
    }
}

impl Observer for StatusCollector {
    fn started(&self, families: &[IpFamily]) {
        let mut collected = self.get();
        for family in families {
            collected.families.entry(*family).or_default();
        }
    }

    fn changed(&self, news: &News<'_>) {
        let mut collected = self.get();
        if news.is_listed {
            let PerFamily { v4, v6 } = &news.touched.services;
            v4.iter().chain(v6).take(MAX_CHANGES).for_each(|service| collected.add_change(service));
        }
        let pending = &mut collected.pending;
        pending.services += news.touched.changed_services.len();
        pending.endpoint_slices += news.touched.changed_slices.len();
    }

    fn problems(&self, kind: ObjectKind, n: usize, first: &[Problem]) {
        let shown = first.iter().map(|problem| ObjectProblem {
            kind: problem.kind.as_str().to_owned(),
            object: EscapedValue(&problem.object).to_string(),
            message: bounded(&problem.without_object().to_string()),
        });
        self.get().problems.insert(kind, (n, shown.collect()));
    }

    fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.get().families.entry(family).or_default().affinity_lists_full = n;
    }

    fn syncing(&self, family: IpFamily) {
        let mut collected = self.get();
        collected.pending = PendingCounts::default();
        collected.families.entry(family).or_default().syncing_since = Some(Instant::now());
    }

    fn synced(&self, synced: &Synced<'_>) {
        let Synced { report, view, quarantine, elapsed, .. } = synced;
        // Everything that takes time is made before the lock is taken.
        let (record, quarantined) = (record_of(report, *elapsed), quarantined(quarantine));
        let (sent, failed) = (report.sent.clone(), report.failed.clone());
        let mut collected = self.get();
        collected.objects = ObjectCounts {
            services: view.snapshot.n_services(),
            endpoint_slices: view.snapshot.n_slices(),
            has_node: view.snapshot.node().is_some(),
        };
        if report.outcome.is_ok() {
            collected.mark_synced(report);
        }
        let log = collected.families.entry(report.family).or_default();
        log.add(report, record, Instant::now());
        (log.n_quarantined, log.quarantined) = (quarantine.len(), quarantined);
        log.keep(sent, failed);
    }

    fn noticed(&self, finding: &Finding) {
        let (kind, is_warning) = (finding.as_str().to_owned(), finding.is_warning());
        let found = NodeFinding { kind, is_warning, message: bounded(&finding.to_string()) };
        let findings = &mut self.get().findings;
        if findings.len() < MAX_FINDINGS && !findings.contains(&found) {
            findings.push(found);
        }
    }
}

impl Collected {
    /// Records that `service` changed; the oldest change makes room for it.
    fn add_change(&mut self, service: &ServiceName) {
        let change = ServiceChange { changed: Instant::now(), synced: None };
        if self.changes.insert(service.clone(), change).is_none() && self.changes.len() > MAX_CHANGES {
            let oldest = self.changes.iter().min_by_key(|(_, change)| change.changed);
            if let Some(oldest) = oldest.map(|(service, _)| service.clone()) {
                self.changes.remove(&oldest);
            }
        }
    }

    /// Records a sync that succeeded.
    fn mark_synced(&mut self, report: &SyncReport) {
        let now = Instant::now();
        let is_synced = |service: &ServiceName| match &report.scope {
            SyncScope::Full => !report.waiting.contains(service),
            SyncScope::Partial(names) => names.contains(service) && !report.waiting.contains(service),
        };
        let synced = self.changes.iter_mut().filter(|(service, _)| is_synced(service));
        synced.for_each(|(_, change)| change.synced = Some(now));
        if report.is_full() && report.waiting.is_empty() {
            self.full_sync = Some(now);
        }
    }
}

impl FamilyLog {
    /// Adds a sync that ended `now`.
    fn add(&mut self, report: &SyncReport, record: SyncRecord, now: Instant) {
        self.backend = report.backend.as_str();
        self.layout = Some(report.layout.as_str());
        self.in_force = InForceCounts {
            service_ports: report.n_service_ports,
            endpoints: report.n_endpoints,
            filter_rules: report.n_filter_rules,
            nat_rules: report.n_nat_rules,
            chains: report.n_chains,
            overlaps: report.n_overlaps,
            dropped_internal: report.n_dropped_internal,
            dropped_external: report.n_dropped_external,
        };
        if let Some(reason) = report.reads.last() {
            self.last_read = Some((reason.as_str(), now));
        }
        self.syncing_since = None;
        self.n_syncs += 1;
        if report.outcome.is_ok() {
            (self.last_success, self.n_failures) = (Some(now), 0);
        } else {
            self.n_failures += 1;
        }
        self.syncs.truncate(MAX_SYNCS - 1);
        self.syncs.push_front((now, record));
    }

    /// Keeps the inputs of a sync that ended now.
    fn keep(&mut self, sent: Option<InputExcerpt>, failed: Option<FailedRestore>) {
        let ended = Instant::now();
        let failed = failed.map(|failed| {
            let error = Some(bounded(&failed.error.to_string()));
            StoredRestore { ended, input: failed.input, error }
        });
        if let Some(input) = sent {
            let error = failed.as_ref().filter(|failed| failed.input == input);
            self.last = Some(StoredRestore { ended, error: error.and_then(|it| it.error.clone()), input });
        }
        self.failed = failed.or(self.failed.take());
    }

    fn state(&self, family: IpFamily) -> FamilyState {
        let seconds = |at: &Instant| at.elapsed().as_secs_f64();
        let syncs =
            self.syncs.iter().map(|(at, record)| SyncRecord { seconds_ago: seconds(at), ..record.clone() });
        FamilyState {
            family: family.lower().to_owned(),
            backend: self.backend.to_owned(),
            layout: self.layout.map(str::to_owned),
            in_force: self.in_force,
            drift: None,
            last_read: self
                .last_read
                .as_ref()
                .map(|(reason, at)| KernelRead { reason: (*reason).to_owned(), seconds_ago: seconds(at) }),
            last_success_seconds: self.last_success.as_ref().map(seconds),
            n_failures: self.n_failures,
            syncing_seconds: self.syncing_since.as_ref().map(seconds),
            n_syncs: self.n_syncs,
            syncs: syncs.collect(),
            n_quarantined: self.n_quarantined,
            quarantined: self.quarantined.clone(),
            affinity_lists_full: self.affinity_lists_full,
            last_restore: self.last.as_ref().map(StoredRestore::summary),
            failed_restore: self.failed.as_ref().map(StoredRestore::summary),
        }
    }
}

impl StoredRestore {
    fn summary(&self) -> RestoreSummary {
        RestoreSummary {
            seconds_ago: self.ended.elapsed().as_secs_f64(),
            lines: self.input.n_lines,
            bytes: self.input.n_bytes,
            error: self.error.clone(),
        }
    }

    fn kept(&self, family: IpFamily) -> KeptRestore {
        let pieces = self.input.pieces.iter();
        KeptRestore {
            family: family.lower().to_owned(),
            summary: self.summary(),
            pieces: pieces
                .map(|piece| KeptLines { first_line: piece.first_line, text: piece.text.clone() })
                .collect(),
        }
    }
}

fn record_of(report: &SyncReport, elapsed: Duration) -> SyncRecord {
    let (n_services, services) = match &report.scope {
        SyncScope::Full => (0, Vec::new()),
        SyncScope::Partial(names) => {
            (names.len(), names.iter().take(MAX_SERVICES).map(ToString::to_string).collect())
        }
    };
    let Stages { read, compile, plan, lock_wait, restore } = report.stages;
    let tally = report.tally;
    SyncRecord {
        seconds_ago: 0.0,
        seconds: elapsed.as_secs_f64(),
        is_full: report.is_full(),
        n_services,
        services,
        stages: StageSeconds {
            read: read.as_secs_f64(),
            compile: compile.as_secs_f64(),
            plan: plan.as_secs_f64(),
            lock_wait: lock_wait.as_secs_f64(),
            restore: restore.as_secs_f64(),
        },
        sent: SentCounts {
            processes: tally.n_processes,
            lines: tally.n_lines,
            bytes: tally.n_bytes,
            rules: tally.n_rules,
            chains: tally.n_chains,
            deleted: tally.n_deleted,
        },
        reads: report.reads.iter().map(|reason| reason.as_str().to_owned()).collect(),
        drift: (!report.drift.is_empty()).then(|| bounded(&report.drift.to_string())),
        n_repaired: report.n_repaired,
        n_failed_restores: report.n_failed_restores,
        error: report.outcome.as_ref().err().map(|error| bounded(&error.to_string())),
    }
}

fn quarantined(quarantine: &Quarantine) -> Vec<QuarantinedPort> {
    let first = quarantine.iter().take(MAX_QUARANTINED);
    first
        .map(|(port, rejection)| QuarantinedPort {
            service_port: port.to_string(),
            protocol: port.protocol.to_string(),
            rule: rejection.text.as_deref().map(bounded),
            message: bounded(&rejection.message),
        })
        .collect()
}

/// `12 s ago`, `5 min ago`, `2 h ago`, `3 d ago`
fn ago(at: Instant) -> String {
    match at.elapsed().as_secs() {
        seconds @ ..60 => format!("{seconds} s ago"),
        seconds @ ..3_600 => format!("{} min ago", seconds / 60),
        seconds @ ..86_400 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// `text`, cut where it is too long to be kept.
fn bounded(text: &str) -> String {
    match text.char_indices().find(|(at, c)| at + c.len_utf8() > MAX_MESSAGE) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
