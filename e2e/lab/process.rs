//! A child process that ends with the test, and can be signalled without racing its end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::Namespace;
use super::poll;

/// How long a process may take to end after a signal.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A running program in a namespace; killed when dropped, and by the kernel when the test dies.
///
/// One thread starts the child and is the only one to signal and to reap it: the kernel sends the
/// "parent died" signal when the *thread* that started the child ends, and a process id is only
/// certain until it is reaped.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    orders: Sender<Order>,
    keeper: Option<JoinHandle<()>>,
}

enum Order {
    Signal(Signal),
    Status(Sender<Option<ExitStatus>>),
    Pid(Sender<u32>),
}

impl Process {
    /// Starts `program` in `namespace` with these variables added to its environment; its output
    /// goes to the file `log`.
    pub fn start(
        namespace: &Namespace,
        program: &Path,
        args: &[String],
        environment: &[(&str, String)],
        log: &Path,
    ) -> Result<Self> {
        Self::start_under(namespace, &[], program, args, environment, log)
    }

    /// Like [`Process::start`], through a command that becomes `program`: the program and its
    /// arguments follow the command's own arguments.
    pub fn start_under(
        namespace: &Namespace,
        under: &[String],
        program: &Path,
        args: &[String],
        environment: &[(&str, String)],
        log: &Path,
    ) -> Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let file = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(under).arg(program).args(args);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let its_name = name.clone();
        let keeper = namespace.spawn(move || {
            let spawned = command.spawn();
            match spawned {
                Ok(mut child) => {
                    wait_for_its_own_program(&mut child, &its_name);
                    started.send(Ok(())).ok();
                    for order in inbox {
                        obey(&mut child, order);
                    }
                    child.kill().ok();
                    child.wait().ok();
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        start.recv().context("starting a keeper")?.with_context(|| format!("starting {name}"))?;
        Ok(Self { name, log: log.to_owned(), orders, keeper: Some(keeper) })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.ask(Order::Pid)
    }

    /// Its exit status, if it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.ask(Order::Status)
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        self.orders.send(Order::Signal(signal)).expect("the keeper lives as long as the process value");
    }

    /// Waits until it has ended by itself or by an earlier signal.
    #[track_caller]
    pub fn wait(&self) -> ExitStatus {
        poll::until_some(&format!("{} ends", self.name), END_DEADLINE, || self.status())
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> T {
        let (reply, answer) = mpsc::channel();
        self.orders.send(order(reply)).expect("the keeper lives as long as the process value");
        answer.recv().expect("the keeper answers every question")
    }
}

/// Waits until `setpriv` has requested the "parent died" signal and become the program `name`.
fn wait_for_its_own_program(child: &mut Child, name: &str) {
    let comm = format!("/proc/{}/comm", child.id());
    // The kernel keeps 15 bytes of a name. Before setpriv it is the name of our own thread.
    let name = &name.as_bytes()[..name.len().min(15)];
    poll::until("setpriv becomes the program", END_DEADLINE, || {
        let is_program = std::fs::read(&comm).is_ok_and(|comm| comm.trim_ascii_end() == name);
        is_program || !matches!(child.try_wait(), Ok(None))
    });
}

/// Executes one order, on the keeper's thread.
fn obey(child: &mut Child, order: Order) {
    match order {
        Order::Signal(signal) => {
            // Only this thread reaps it, so the id is still ours; if it has ended there is nothing to signal.
            if matches!(child.try_wait(), Ok(None)) {
                let pid = i32::try_from(child.id()).expect("a process id fits");
                kill(Pid::from_raw(pid), signal).ok();
            }
        }
        Order::Status(reply) => drop(reply.send(child.try_wait().expect("our own child"))),
        Order::Pid(reply) => drop(reply.send(child.id())),
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("---- the end of {} ----\n{tail}\n----", self.log.display());
        }
        // Without further orders, the keeper kills the child, reaps it and ends.
        let (orders, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.orders, orders));
        if let Some(keeper) = self.keeper.take() {
            keeper.join().ok();
        }
    }
}
