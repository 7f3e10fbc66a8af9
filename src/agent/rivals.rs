//! Whether somebody else programs Services on this node: a second Chainsmith or a kube-proxy, which
//! undo each other's chains. Known by a process in this network namespace, where processes can be
//! seen (hostPID), or by chains of ours that are changed again and again. Said once.
#![allow(clippy::disallowed_methods, reason = "reads /proc")]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::sync::{Finding, Observer, Synced};

/// How often processes are looked at.
const PERIOD: Duration = Duration::from_secs(30);
/// In how many looks one after the other a process is seen before it is said: during a rollout the
/// old one is seen for a while.
const N_LOOKS: u32 = 3;

/// So many changes of our chains by others...
const N_DRIFTS: usize = 4;
/// ...within this time are no accident: a firewall that is reloaded flushes once.
const DRIFT_WINDOW: Duration = Duration::from_secs(10 * 60);

/// Listens to syncs, and looks at processes.
pub(super) struct Rivals {
    observers: Vec<Arc<dyn Observer>>,
    drifts: Mutex<Drifts>,
}

/// When our chains were found changed.
#[derive(Default)]
struct Drifts {
    at: VecDeque<Instant>,
    is_said: bool,
}

impl Drifts {
    /// Notes one; whether it is to be said now. It may be said again once there was peace for long.
    fn note(&mut self, now: Instant) -> bool {
        self.at.retain(|at| now.duration_since(*at) < DRIFT_WINDOW);
        self.is_said &= !self.at.is_empty();
        self.at.push_back(now);
        let is_new = self.at.len() >= N_DRIFTS && !self.is_said;
        self.is_said |= is_new;
        // One more than needed is never kept.
        if self.at.len() >= N_DRIFTS {
            self.at.pop_front();
        }
        is_new
    }
}

impl Rivals {
    /// Tells `observers` of what it findings.
    pub(super) fn new(observers: Vec<Arc<dyn Observer>>) -> Rivals {
        Rivals { observers, drifts: Mutex::default() }
    }

    /// Looks at processes from time to time; for ever.
    pub(super) async fn run(self: Arc<Rivals>) -> anyhow::Result<()> {
        let mut seen = Seen::default();
        loop {
            tokio::time::sleep(PERIOD).await;
            let found = tokio::task::spawn_blocking(|| processes(Path::new("/proc"))).await?;
            match found {
                Ok(found) => {
                    for (pid, program) in seen.look(found) {
                        self.say(format!("process {pid} ({program}) runs in the same network namespace"));
                    }
                }
                Err(error) => debug!(%error, "cannot look at processes; those seen before count on"),
            }
        }
    }

    fn say(&self, evidence: String) {
        warn!(
            evidence,
            "another kube-proxy or Chainsmith seems to program this node; stop one of them: they undo each other's rules"
        );
        let finding = Finding::Rival(evidence);
        self.observers.iter().for_each(|observer| observer.noticed(&finding));
    }
}

impl Observer for Rivals {
    fn synced(&self, synced: &Synced<'_>) {
        let drift = &synced.report.drift;
        if drift.is_empty() {
            return;
        }
        let mut drifts = self.drifts.lock().unwrap_or_else(PoisonError::into_inner);
        if drifts.note(Instant::now()) {
            drop(drifts);
            self.say(format!(
                "our chains were changed {N_DRIFTS} times in {} minutes, last {drift}",
                DRIFT_WINDOW.as_secs() / 60
            ));
        }
    }
}

/// Processes with the number of looks in which each was seen.
#[derive(Default)]
struct Seen(BTreeMap<Process, u32>);

/// Number and program.
type Process = (u32, &'static str);

impl Seen {
    /// Takes what a look found; those that are to be said now.
    fn look(&mut self, found: Vec<Process>) -> Vec<Process> {
        let mut seen = BTreeMap::new();
        for process in found {
            let n = self.0.get(&process).copied().unwrap_or(0);
            seen.insert(process, n.saturating_add(1));
        }
        self.0 = seen;
        self.0.iter().filter(|(_, n)| **n == N_LOOKS).map(|(process, _)| *process).collect()
    }
}

/// The agents other than this process in its network namespace, in words.
pub fn others() -> io::Result<Vec<String>> {
    let found = processes(Path::new("/proc"))?;
    Ok(found.into_iter().map(|(pid, program)| format!("process {pid} ({program})")).collect())
}

/// The agents other than this one whose network namespace is ours. A process that cannot be looked at (it
/// ended, or is not ours to see) is none. Its command line is not passed on: it may hold what not
/// everybody who reads events is to know.
fn processes(proc: &Path) -> io::Result<Vec<Process>> {
    let ours = fs::read_link(proc.join("self/ns/net"))?;
    let own = std::process::id();
    let mut found: Vec<Process> = fs::read_dir(proc)?
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
            Some((pid, agent(&words)?))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The program, if a command line is that of an agent that stays: kube-proxy, or `chainsmith [run]`.
fn agent(words: &[String]) -> Option<&'static str> {
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
    fn agents_that_stay_are_told_from_other_calls() {
        let check = |line: &str, expected| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(agent(&words).is_some(), expected, "{line}");
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
    fn processes_of_our_namespace_are_found_and_others_not() {
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
        // By its name alone: the command line is nobody else's business.
        assert_eq!(processes(proc.path()).unwrap(), [(7, "kube-proxy")]);
        assert!(processes(&proc.path().join("none")).is_err(), "what cannot be looked at is not empty");
    }

    #[test]
    fn a_process_is_said_once_after_it_stayed() {
        let mut seen = Seen::default();
        let rival = || vec![(7, "kube-proxy")];
        let n_said: Vec<usize> = (0..6).map(|_| seen.look(rival()).len()).collect();
        assert_eq!(n_said, [0, 0, 1, 0, 0, 0]);
        assert_eq!(seen.look(Vec::new()), []);
        let n_said: Vec<usize> = (0..3).map(|_| seen.look(rival()).len()).collect();
        assert_eq!(n_said, [0, 0, 1], "it went and came back");
    }

    #[tokio::test(start_paused = true)]
    async fn chains_changed_again_and_again_are_said_once_until_there_was_peace() {
        let mut drifts = Drifts::default();
        let mut said = Vec::new();
        for _ in 0..10 {
            said.push(drifts.note(Instant::now()));
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(said.iter().position(|is_said| *is_said), Some(N_DRIFTS - 1));
        assert_eq!(said.iter().filter(|is_said| **is_said).count(), 1);
        // Reloads of a firewall, an hour apart.
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(3600)).await;
            assert!(!drifts.note(Instant::now()));
        }
        for n in 1..N_DRIFTS {
            assert_eq!(drifts.note(Instant::now()), n == N_DRIFTS - 1, "{n}");
        }
    }
}
