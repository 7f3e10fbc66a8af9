//! A private network namespace as a value: no name in `/run/netns`, held only by
//! file descriptors of this process, so that it vanishes when the process dies.
//!
//! Work is done in a namespace by threads that enter it; programs started by such a thread are in it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, optionally with a mount namespace of its own.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    net: OwnedFd,
    mount: Option<OwnedFd>,
}

impl Namespace {
    /// Makes a network namespace with its loopback down. `name` is for messages only.
    pub fn network(name: &str) -> Result<Self> {
        let (net, _) = in_new_namespaces(CloneFlags::CLONE_NEWNET, || Ok(()))
            .with_context(|| format!("making the network namespace of {name}"))?;
        Ok(Self { name: name.to_owned(), net, mount: None })
    }

    /// Makes a network namespace and a mount namespace where `/run` is an empty tmpfs, so that the
    /// lock file of legacy iptables is its own.
    pub fn network_and_run(name: &str) -> Result<Self> {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        let (net, mount) = in_new_namespaces(flags, private_run)
            .with_context(|| format!("making the network and mount namespaces of {name}"))?;
        Ok(Self { name: name.to_owned(), net, mount })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that other programs of this machine can open while `self` lives (for `ip ... netns`).
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// A descriptor of the network namespace that may outlive `self`.
    pub fn fd(&self) -> Result<OwnedFd> {
        self.net.try_clone().context("duplicating a namespace descriptor")
    }

    /// Runs `work` on a thread of its own inside the namespace and returns its result; a panic of
    /// `work` is a panic of the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                enter(&self.net, self.mount.as_ref()).expect("a namespace we hold can be entered");
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts `work` on a thread inside the namespace; the namespace lives at least as long.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let net = self.fd()?;
        let mount = self.mount.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(thread::spawn(move || {
            enter(&net, mount.as_ref()).expect("a namespace we hold can be entered");
            work()
        }))
    }

    /// Runs a program to its end with `input` on its stdin; its stdout if it exits with 0.
    pub fn command(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        let output = self.try_command(program, args, input)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {args:?} in {}: {}: {}", self.name, output.status, stderr.trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("reading what {program} printed"))
    }

    /// Runs a program to its end with `input` on its stdin; returns any exit status.
    pub fn try_command(&self, program: &str, args: &[&str], input: &str) -> Result<Output> {
        self.run(|| {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("starting {program}"))?;
            // Only the result of `wait_with_output` tells why a program stopped reading.
            let mut stdin = child.stdin.take().expect("stdin is piped");
            thread::scope(|scope| {
                scope.spawn(move || stdin.write_all(input.as_bytes()).ok());
                child.wait_with_output().with_context(|| format!("waiting for {program}"))
            })
        })
    }

    /// Runs lines of `ip -batch` in the namespace, up to the first that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.command("ip", &["-batch", "-"], lines).map(drop)
    }

    /// Writes `/proc/sys/<key>` inside the namespace; `key` with slashes.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{key}"), value))
            .with_context(|| format!("setting {key} to {value} in {}", self.name))
    }

    /// Writes sysctls that not every kernel has: a missing key is skipped.
    pub fn sysctls_if_present(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                match std::fs::write(format!("/proc/sys/{key}"), value) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("setting {key} to {value}"));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }
}

/// Makes new namespaces on a temporary thread, prepares them there, and returns descriptors of the
/// network namespace and, if one was made, of the mount namespace.
fn in_new_namespaces(
    flags: CloneFlags,
    prepare: impl FnOnce() -> Result<()> + Send,
) -> Result<(OwnedFd, Option<OwnedFd>)> {
    thread::scope(|scope| {
        let maker = scope.spawn(move || -> Result<_> {
            unshare(flags).context("unshare (are you root?)")?;
            prepare()?;
            let net = File::open("/proc/thread-self/ns/net").context("opening a new network namespace")?;
            let mount = if flags.contains(CloneFlags::CLONE_NEWNS) {
                Some(File::open("/proc/thread-self/ns/mnt").context("opening a new mount namespace")?.into())
            } else {
                None
            };
            Ok((net.into(), mount))
        });
        maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Mounts an empty tmpfs on `/run`, visible only in the calling thread's mount namespace.
fn private_run() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
        .context("mounting a tmpfs on /run")?;
    let is_tmpfs = std::fs::read_dir("/run").context("reading /run")?.next().is_none();
    ensure!(is_tmpfs, "/run is not empty after mounting a tmpfs on it");
    Ok(())
}

/// Moves the calling thread into namespaces.
fn enter(net: &OwnedFd, mount: Option<&OwnedFd>) -> Result<()> {
    setns(net, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
    if let Some(mount) = mount {
        // The kernel allows no thread a mount namespace while it shares its root with others.
        unshare(CloneFlags::CLONE_FS).context("unsharing the root directory")?;
        setns(mount, CloneFlags::CLONE_NEWNS).context("entering a mount namespace")?;
    }
    Ok(())
}
