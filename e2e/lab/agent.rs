//! Chainsmith running on a node of the lab.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::address::CLUSTER_CIDR;
use super::host::Node;
use super::process::Process;
use super::spy::Spy;

/// The configuration of an agent, besides its node.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// The text of a kubeconfig; empty for none (`--manifests` in `args`).
    pub kubeconfig: String,
    /// The text of a KubeProxyConfiguration without `clientConnection`, which is added; empty for
    /// none. (With one, most flags of kube-proxy's do not count.)
    pub config: String,
    /// More flags; a flag given here replaces the lab's own.
    pub args: Vec<String>,
    /// A command line to which the agent's is appended, and that becomes the agent; empty for none.
    pub under: Vec<String>,
    /// A script that each iptables program runs first, from the start on: see [`Agent::sabotage`].
    pub sabotage: Option<String>,
}

/// A running agent; killed when dropped. Its log is printed when a test panics.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    spy: Spy,
}

impl Agent {
    /// Starts `chainsmith run` on `node`; files it needs are written to `folder`.
    pub(super) fn start(node: &Node, folder: &std::path::Path, options: &AgentOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stem = format!("{}-{}", node.name(), COUNT.fetch_add(1, Ordering::Relaxed));
        let file = |suffix: &str, text: &str| -> Result<String> {
            let path = folder.join(format!("{stem}.{suffix}"));
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path.to_string_lossy().into_owned())
        };
        let mut flags = vec![
            ("--hostname-override", node.name().to_owned()),
            ("--iptables-backend", node.backend().flag().to_owned()),
            ("-v", "2".to_owned()),
        ];
        let kubeconfig = match options.kubeconfig.as_str() {
            "" => None,
            text => Some(file("kubeconfig", text)?),
        };
        match (options.config.as_str(), kubeconfig) {
            ("", kubeconfig) => {
                flags.push(("--cluster-cidr", CLUSTER_CIDR.to_owned()));
                flags.extend(kubeconfig.map(|path| ("--kubeconfig", path)));
            }
            (config, kubeconfig) => {
                let connection = kubeconfig.map(|path| format!("clientConnection: {{kubeconfig: {path}}}\n"));
                let text = format!("{config}\n{}", connection.unwrap_or_default());
                flags.push(("--config", file("config.yaml", &text)?));
            }
        }
        let given = |flag: &str| {
            options
                .args
                .iter()
                .any(|arg| arg == flag || arg.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
        };
        let mut args = vec!["run".to_owned()];
        for (flag, value) in flags {
            if !given(flag) {
                args.extend([flag.to_owned(), value]);
            }
        }
        args.extend(options.args.iter().cloned());
        let log = folder.join(format!("{stem}.log"));
        let spy = Spy::new(folder, &stem)?;
        spy.sabotage(options.sabotage.as_deref())?;
        let (program, under) = (program()?, &options.under);
        let process =
            Process::start_under(&node.namespace, under, &program, &args, &spy.environment(), &log)?;
        Ok(Self { process, spy })
    }

    /// The iptables programs that it has started so far, in order, each with its arguments.
    pub fn programs_started(&self) -> Vec<String> {
        self.spy.calls()
    }

    /// Makes each iptables program that it starts run `script` first (shell; `$program` is the name,
    /// `$@` the arguments); `None` ends that.
    pub fn sabotage(&self, script: Option<&str>) {
        self.spy.sabotage(script).expect("files can be written in the lab's folder");
    }

    /// The output of the script to `$LAB_CALLS.<word>`; `None` while there is no such file.
    pub fn note(&self, word: &str) -> Option<String> {
        self.spy.note(word)
    }

    /// Its resident memory, in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
        let status = status.expect("the agent runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The syncs that succeeded so far, one for each family.
    pub fn syncs(&self) -> Vec<Sync> {
        syncs(&self.log())
    }

    /// All that it has written so far: chains and rules.
    pub fn written(&self) -> (u64, u64) {
        let syncs = self.syncs();
        let chains = syncs.iter().map(|sync| sync.chains_written).sum();
        (chains, syncs.iter().map(|sync| sync.rules_written).sum())
    }

    /// The process itself.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends SIGTERM and waits for the end; returns its whole log.
    ///
    /// # Panics
    /// If it ends with a status other than 0, or not in time.
    #[track_caller]
    pub fn stop(self) -> String {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait();
        assert!(status.success(), "after SIGTERM it ended with {status}");
        self.process.log()
    }

    /// Kills it as the out-of-memory killer would; returns its whole log.
    #[track_caller]
    pub fn kill9(self) -> String {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
        self.process.log()
    }
}

/// One sync, as the agent logs it.
#[derive(Clone, Copy, Debug)]
pub struct Sync {
    /// Chains written.
    pub chains_written: u64,
    /// Rules in them.
    pub rules_written: u64,
    /// Programs started to write.
    pub processes: u64,
}

/// The syncs in a log.
fn syncs(log: &str) -> Vec<Sync> {
    let field = |line: &str, name: &str| -> Option<u64> {
        let (_, rest) = line.split_once(&format!("{name}="))?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let lines = log.lines();
    lines
        .filter_map(|line| {
            Some(Sync {
                chains_written: field(line, "chains_written")?,
                rules_written: field(line, "rules_written")?,
                processes: field(line, "processes")?,
            })
        })
        .collect()
}

/// The program under test: `$CHAINSMITH`, or the one cargo built for this test, or for an example
/// the one in the folder above its own.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CHAINSMITH") {
        return Ok(path.into());
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_chainsmith") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("finding this program")?;
    let target = own.ancestors().nth(2).context("this program is in no target folder")?;
    Ok(target.join("chainsmith"))
}
