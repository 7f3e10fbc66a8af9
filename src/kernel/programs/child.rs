//! Runs child processes with a time limit: a program whose output is read line by line, and one with little
//! output. `restore_child` builds on the same process handling.
#![allow(clippy::disallowed_methods, reason = "starts processes")]

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::process_registry::{PROCESSES, ProcessRole, Registration};
use super::watchdog::Watchdog;
use crate::log::v;

/// How much of a program's error output is kept.
const MAX_STDERR_BYTES: u64 = 64 << 10;

/// Makes `command` independent of the locale and of the terminal's Ctrl-C: a restore that has begun must
/// end on its own.
fn detached(command: &mut Command) -> &mut Command {
    command.env("LC_ALL", "C").process_group(0)
}

/// A running child process with its watchdog.
pub(super) struct ChildProgram {
    /// The program and its arguments.
    command: String,
    begun: Instant,
    pub(super) child: Child,
    watchdog: Watchdog,
    stderr: JoinHandle<Vec<u8>>,
    registration: Registration,
}

/// How a child process ended.
pub(super) struct ProcessExit {
    pub(super) status: ExitStatus,
    /// It exceeded its time limit and was killed.
    pub(super) timed_out: bool,
    pub(super) stderr: Vec<u8>,
}

impl ChildProgram {
    /// Starts `command` with a time limit. If no thread can be created for the watchdog, the program is
    /// killed before it receives input, and counts as not started.
    pub(super) fn start(
        command: &mut Command,
        role: ProcessRole,
        limit: Duration,
    ) -> io::Result<ChildProgram> {
        let command_line = std::iter::once(command.get_program()).chain(command.get_args());
        let command_line: Vec<_> = command_line.map(|word| word.to_string_lossy()).collect();
        let (command_line, begun) = (command_line.join(" "), Instant::now());
        let registration = PROCESSES.register(role)?;
        let mut child = detached(command.stderr(Stdio::piped())).spawn()?;
        registration.set_group(child.id());
        match supervise(&mut child, limit) {
            Ok((watchdog, stderr)) => {
                Ok(ChildProgram { command: command_line, begun, child, watchdog, stderr, registration })
            }
            Err(error) => {
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                drop(registration);
                child.wait()?;
                Err(io::Error::new(error.kind(), format!("cannot create a thread for its watchdog: {error}")))
            }
        }
    }

    /// Waits until it has ended.
    pub(super) fn wait(self) -> io::Result<ProcessExit> {
        let ChildProgram { command, begun, mut child, watchdog, stderr, registration } = self;
        let timed_out = watchdog.wait();
        drop(registration);
        let status = child.wait()?;
        v!(5, command, elapsed_ms = begun.elapsed().as_millis() as u64, %status, "ran command");
        let timed_out = timed_out && !status.success();
        Ok(ProcessExit { status, timed_out, stderr: stderr.join().unwrap_or_default() })
    }
}

fn supervise(child: &mut Child, limit: Duration) -> io::Result<(Watchdog, JoinHandle<Vec<u8>>)> {
    let watchdog = Watchdog::start(child.id(), limit)?;
    let stderr = child.stderr.take();
    let read = move || stderr.map(read_limited).unwrap_or_default();
    Ok((watchdog, std::thread::Builder::new().spawn(read)?))
}

/// The error output of a program, on one line.
pub(super) fn stderr_message(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_hint(line)).collect();
    if lines.is_empty() { "no error message".to_owned() } else { lines.join("; ") }
}

/// Lines without information about the error.
fn is_hint(line: &str) -> bool {
    line.starts_with("Try `") || line.starts_with("# Warning:")
}

fn read_limited(from: impl Read) -> Vec<u8> {
    let mut from = from;
    let mut recent_input = Vec::new();
    // The rest is read and discarded: a program that cannot write would block.
    let _ = from.by_ref().take(MAX_STDERR_BYTES).read_to_end(&mut recent_input);
    let _ = io::copy(&mut from, &mut io::sink());
    recent_input
}

/// A program that only reads died of a signal; an error of [`read_lines`].
#[derive(Debug, thiserror::Error)]
#[error("{program} failed (signal {signal}): {message}")]
pub(super) struct ReaderCrashed {
    program: String,
    signal: i32,
    message: String,
}

/// Runs `command` with a time limit and passes each line of its output to `each`; bytes that are not UTF-8
/// are replaced.
fn read_lines(command: &mut Command, limit: Duration, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let program = ChildProgram::start(command, ProcessRole::Reads, limit);
    let mut program = program.with_context(|| format!("cannot run {name}"))?;
    if let Some(stdout) = program.child.stdout.take() {
        let mut reader = BufReader::with_capacity(64 << 10, stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read from {name}"))? > 0 {
            each(String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).as_ref());
            line.clear();
        }
    }
    let ProcessExit { status, timed_out, stderr } =
        program.wait().with_context(|| format!("cannot wait for {name}"))?;
    if timed_out {
        bail!("{name} did not end within {} s and was killed", limit.as_secs());
    }
    if !status.success() {
        let message = stderr_message(&stderr);
        match status.signal() {
            Some(signal) => bail!(ReaderCrashed { program: name, signal, message }),
            None => bail!("{name} failed ({status}): {message}"),
        }
    }
    Ok(())
}

/// How often a program that only reads is started at most.
const MAX_STARTS: usize = 3;

/// [`read_lines`], repeated when the program crashed before any output: `iptables-nft-save` 1.8.7 (Debian
/// 11) crashes when another process commits while it reads.
pub(super) fn read_lines_with_retry(
    command: &mut Command,
    limit: Duration,
    each: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let mut n_lines = 0;
    let mut read = || {
        read_lines(command, limit, &mut |line| {
            n_lines += 1;
            each(line);
        })
        .map_err(|error| (error, n_lines))
    };
    for _ in 1..MAX_STARTS {
        match read() {
            Err((error, 0)) if error.is::<ReaderCrashed>() => {}
            outcome => return outcome.map_err(|(error, _)| error),
        }
    }
    read().map_err(|(error, _)| error)
}

/// Runs `command` with a time limit and keeps the beginning of its output; `None` when it exceeded the
/// limit and was killed.
pub(super) fn output(mut command: Command, limit: Duration) -> io::Result<Option<Output>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut program = ChildProgram::start(&mut command, ProcessRole::Reads, limit)?;
    let stdout = program.child.stdout.take().map(read_limited).unwrap_or_default();
    let ProcessExit { status, timed_out, stderr } = program.wait()?;
    Ok((!timed_out).then_some(Output { status, stdout, stderr }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::script;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_reader_that_exceeds_its_limit_is_killed() {
        let (_folder, program) = script("echo a; sleep 60; echo b");
        let mut lines = Vec::new();
        let limit = 5 * SECOND;
        let read = read_lines(&mut Command::new(&program), limit, &mut |line| lines.push(line.to_owned()));
        let error = read.unwrap_err().to_string();
        assert_eq!(
            (lines, error),
            (vec!["a".to_owned()], format!("{program} did not end within 5 s and was killed"))
        );
    }

    #[test]
    fn a_reader_that_crashes_before_any_output_is_restarted() {
        let read = |lines: &str| {
            let (folder, program) = script(lines);
            let mut command = Command::new(&program);
            command.env("NOTE", folder.path().join("note"));
            let mut lines = Vec::new();
            let outcome =
                read_lines_with_retry(&mut command, SECOND * 60, &mut |line| lines.push(line.to_owned()));
            let n_starts = std::fs::read_to_string(folder.path().join("note")).unwrap().len();
            (n_starts, lines, outcome.map_err(|error| error.to_string().replace(&program, "save")))
        };
        let crash = "save failed (signal 6): free()".to_owned();
        let lines = |text: &str| vec![text.to_owned()];
        let twice = "printf x >> $NOTE; [ -s $NOTE.1 ] || { echo 1 > $NOTE.1; kill -6 $$; }; echo a";
        assert_eq!(read(twice), (2, lines("a"), Ok(())));
        let always = "printf x >> $NOTE; echo 'free()' >&2; kill -6 $$";
        assert_eq!(read(always), (MAX_STARTS, vec![], Err(crash.clone())));
        // Lines that were passed on cannot be revoked.
        let late = "printf x >> $NOTE; echo a; echo 'free()' >&2; kill -6 $$";
        assert_eq!(read(late), (1, lines("a"), Err(crash)));
    }

    #[test]
    fn a_program_with_little_output_is_killed_when_it_exceeds_its_limit() {
        let (_folder, program) = script("echo a; sleep 600; true");
        assert_eq!(output(Command::new(&program), SECOND).unwrap(), None);
        let (_folder, program) = script("echo a; echo b >&2; exit 3");
        let ended = output(Command::new(&program), SECOND * 60).unwrap().expect("in time");
        assert_eq!(
            (ended.status.code(), &*ended.stdout, &*ended.stderr),
            (Some(3), &b"a\n"[..], &b"b\n"[..])
        );
        let missing = output(Command::new("/none/iptables"), SECOND).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
