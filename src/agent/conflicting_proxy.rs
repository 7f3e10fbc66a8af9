//! Detects a conflicting proxy: another Chainsmith or a kube-proxy on this node, which would overwrite our chains, as
//! we overwrite its chains. Evidence is a process in this network namespace, where processes are visible (hostPID), or
//! repeated drift of our chains. Each conflict is reported once.
#![allow(clippy::disallowed_methods, reason = "reads /proc")]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use tokio::time::Instant;
use tracing::warn;

use crate::log::v;
use crate::sync::{Finding, Observer, Synced};

/// How often to scan processes.
const SCAN_PERIOD: Duration = Duration::from_secs(30);
/// In how many scans in a row a process must be found before it is reported: during a rollout the old process lives
/// for a while.
const N_SCANS: u32 = 3;

/// How many syncs must find drift within [`DRIFT_WINDOW`] to be evidence: a firewall that is reloaded flushes once.
const N_DRIFTS: usize = 4;
/// See [`N_DRIFTS`].
const DRIFT_WINDOW: Duration = Duration::from_secs(10 * 60);

/// Observes syncs and scans processes.
pub(super) struct ConflictDetector {
    observers: Vec<Arc<dyn Observer>>,
    drift: Mutex<DriftTimes>,
}

/// When syncs found drift.
#[derive(Default)]
struct DriftTimes {
    at: VecDeque<Instant>,
    is_reported: bool,
}

impl DriftTimes {
    /// Records drift; returns whether to report it now. A report may be repeated after a window without drift.
    fn record(&mut self, now: Instant) -> bool {
        self.at.retain(|at| now.duration_since(*at) < DRIFT_WINDOW);
        self.is_reported &= !self.at.is_empty();
        self.at.push_back(now);
        let is_new = self.at.len() >= N_DRIFTS && !self.is_reported;
        self.is_reported |= is_new;
        // Older times are not needed.
        if self.at.len() >= N_DRIFTS {
            self.at.pop_front();
        }
        is_new
    }
}

impl ConflictDetector {
    /// Reports conflicts to `observers`.
    pub(super) fn new(observers: Vec<Arc<dyn Observer>>) -> ConflictDetector {
        ConflictDetector { observers, drift: Mutex::default() }
    }

    /// Scans processes periodically, for ever.
    pub(super) async fn run(self: Arc<ConflictDetector>) -> anyhow::Result<()> {
        let mut sightings = Sightings::default();
        loop {
            tokio::time::sleep(SCAN_PERIOD).await;
            let found = tokio::task::spawn_blocking(|| proxy_processes(Path::new("/proc"))).await?;
            match found {
                Ok(found) => {
                    for (pid, program) in sightings.update(found) {
                        self.report(format!("process {pid} ({program}) runs in the same network namespace"));
                    }
                }
                Err(error) => v!(2, %error, "cannot scan processes"),
            }
        }
    }

    fn report(&self, evidence: String) {
        warn!(
            evidence,
            "another kube-proxy or Chainsmith seems to program this node; stop one of them: they overwrite each other's rules"
        );
        let finding = Finding::ConflictingProxy(evidence);
        self.observers.iter().for_each(|observer| observer.noticed(&finding));
    }
}

impl Observer for ConflictDetector {
    fn synced(&self, synced: &Synced<'_>) {
        let drift = &synced.report.drift;
        if drift.is_empty() {
            return;
        }
        let mut drifts = self.drift.lock().unwrap_or_else(PoisonError::into_inner);
        if drifts.record(Instant::now()) {
            drop(drifts);
            self.report(format!(
                "another process changed our chains {N_DRIFTS} times in {} minutes, last {drift}",
                DRIFT_WINDOW.as_secs() / 60
            ));
        }
    }
}

/// Proxy processes, each with the number of scans in a row that found it.
#[derive(Default)]
struct Sightings(BTreeMap<ProxyProcess, u32>);

/// Process ID and program.
type ProxyProcess = (u32, &'static str);

impl Sightings {
    /// Records the processes that a scan found; returns those to report now.
    fn update(&mut self, found: Vec<ProxyProcess>) -> Vec<ProxyProcess> {
        let mut sightings = BTreeMap::new();
        for process in found {
            let n = self.0.get(&process).copied().unwrap_or(0);
            sightings.insert(process, n.saturating_add(1));
        }
        self.0 = sightings;
        self.0.iter().filter(|(_, n)| **n == N_SCANS).map(|(process, _)| *process).collect()
    }
}

/// The other proxies in this network namespace, each as `process 7 (kube-proxy)`.
pub fn conflicting_proxies() -> io::Result<Vec<String>> {
    let found = proxy_processes(Path::new("/proc"))?;
    Ok(found.into_iter().map(|(pid, program)| format!("process {pid} ({program})")).collect())
}

/// The proxies other than this process in its network namespace. A process that cannot be read (it ended, or
/// permission is missing) does not count. The command line is not part of a report: it may hold secrets, and events
/// are widely readable.
fn proxy_processes(proc: &Path) -> io::Result<Vec<ProxyProcess>> {
    let ours = fs::read_link(proc.join("self/ns/net"))?;
    let own = std::process::id();
    let mut found: Vec<ProxyProcess> = fs::read_dir(proc)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            if pid == own || fs::read_link(entry.path().join("ns/net")).ok()? != ours {
                return None;
            }
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> = command
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .filter(|word| !word.is_empty())
                .collect();
            Some((pid, proxy_program(&words)?))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The program, if the command line is that of a proxy that keeps running: kube-proxy, or `chainsmith [run]`.
fn proxy_program(words: &[String]) -> Option<&'static str> {
    let (program, arguments) = words.split_first()?;
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_short = arguments.iter().any(|word| {
        ["--cleanup", "--init-only", "--version", "--help", "-h", "--write-config-to"]
            .iter()
            .any(|flag| word == flag || word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
    });
    let first = arguments.first().map(String::as_str);
    let runs = first.is_none_or(|first| first == "run" || first.starts_with('-'));
    match name {
        _ if is_short => None,
        "kube-proxy" => Some("kube-proxy"),
        "chainsmith" if runs => Some("chainsmith"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_that_keep_running_are_told_from_other_commands() {
        let check = |line: &str, expected| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(proxy_program(&words).is_some(), expected, "{line}");
        };
        check("/usr/local/bin/kube-proxy --config=/x --hostname-override=n", true);
        check("kube-proxy", true);
        check("chainsmith", true);
        check("/usr/bin/chainsmith run --config x", true);
        check("chainsmith --config x", true);
        check("chainsmith render -f x", false);
        check("chainsmith cleanup", false);
        check("kube-proxy --cleanup", false);
        check("kube-proxy --cleanup=true", false);
        check("chainsmith run --init-only", false);
        check("vi kube-proxy", false);
        check("/bin/sh /kube-proxy", false);
    }

    #[test]
    fn only_processes_of_our_namespace_are_found() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: &str, namespace: &str, command: &str| {
            let folder = proc.path().join(pid);
            fs::create_dir_all(folder.join("ns")).unwrap();
            std::os::unix::fs::symlink(namespace, folder.join("ns/net")).unwrap();
            fs::write(folder.join("cmdline"), command.replace(' ', "\0")).unwrap();
        };
        add("self", "net:[1]", "chainsmith run");
        add(&std::process::id().to_string(), "net:[1]", "chainsmith run");
        add("7", "net:[1]", "/bin/kube-proxy --config=x --v=2 --more");
        add("8", "net:[2]", "kube-proxy");
        add("9", "net:[1]", "sleep 1");
        fs::create_dir_all(proc.path().join("10")).unwrap();
        // By its name alone, without arguments.
        assert_eq!(proxy_processes(proc.path()).unwrap(), [(7, "kube-proxy")]);
        assert!(
            proxy_processes(&proc.path().join("none")).is_err(),
            "a folder that cannot be read is an error"
        );
    }

    #[test]
    fn a_process_is_reported_once_after_it_stayed() {
        let mut sightings = Sightings::default();
        let proxy = || vec![(7, "kube-proxy")];
        let n_reported: Vec<usize> = (0..6).map(|_| sightings.update(proxy()).len()).collect();
        assert_eq!(n_reported, [0, 0, 1, 0, 0, 0]);
        assert_eq!(sightings.update(Vec::new()), []);
        let n_reported: Vec<usize> = (0..3).map(|_| sightings.update(proxy()).len()).collect();
        assert_eq!(n_reported, [0, 0, 1], "it ended and started again");
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_drift_is_reported_once_until_a_window_without_drift() {
        let mut drifts = DriftTimes::default();
        let mut reported = Vec::new();
        for _ in 0..10 {
            reported.push(drifts.record(Instant::now()));
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(reported.iter().position(|is_reported| *is_reported), Some(N_DRIFTS - 1));
        assert_eq!(reported.iter().filter(|is_reported| **is_reported).count(), 1);
        // A firewall is reloaded every hour.
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(3600)).await;
            assert!(!drifts.record(Instant::now()));
        }
        for n in 1..N_DRIFTS {
            assert_eq!(drifts.record(Instant::now()), n == N_DRIFTS - 1, "{n}");
        }
    }
}
