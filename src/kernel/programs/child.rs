//! Runs child processes: an `iptables-restore` that receives its input in pieces, with the classification
//! of its failures; a program whose output is read line by line; and one with little output.
#![allow(clippy::disallowed_methods, reason = "starts processes")]

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::super::{Backend, RestoreError};
use super::process_registry::{PROCESSES, ProcessRole, Registration};
use super::stderr_message;
use super::watchdog::Watchdog;
use crate::log::v;

/// How much of the input is kept to quote a rejected line; more than one batch of the nft back-end.
const MAX_RECENT_BYTES: usize = 4 << 20;
/// How much of a program's error output is kept.
const MAX_STDERR_BYTES: u64 = 64 << 10;

/// Makes `command` independent of the locale and of the terminal's Ctrl-C: a restore that has begun must
/// end on its own.
fn detached(command: &mut Command) -> &mut Command {
    command.env("LC_ALL", "C").process_group(0)
}

/// A running child process with its watchdog.
struct ChildProgram {
    /// The program and its arguments.
    command: String,
    begun: Instant,
    child: Child,
    watchdog: Watchdog,
    stderr: JoinHandle<Vec<u8>>,
    registration: Registration,
}

/// How a child process ended.
struct ProcessExit {
    status: ExitStatus,
    /// It exceeded its time limit and was killed.
    timed_out: bool,
    stderr: Vec<u8>,
}

impl ChildProgram {
    /// Starts `command` with a time limit. If no thread can be created for the watchdog, the program is
    /// killed before it receives input, and counts as not started.
    fn start(command: &mut Command, role: ProcessRole, limit: Duration) -> io::Result<ChildProgram> {
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
    fn wait(self) -> io::Result<ProcessExit> {
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

/// One `iptables-restore`.
pub(super) struct RestoreChild {
    backend: Backend,
    program: Result<ChildProgram, String>,
    stdin: Option<ChildStdin>,
    recent_input: VecDeque<String>,
    n_recent_bytes: usize,
    n_dropped_lines: usize,
    wait: Duration,
    limit: Duration,
}

impl RestoreChild {
    /// Starts `program`, which may wait for the lock for the rest of `wait` after `waited`, and is killed
    /// after `limit`. [`RestoreChild::end`] reports a failure to start.
    pub(super) fn start(
        (backend, name): (Backend, &str),
        wait: Duration,
        waited: Duration,
        limit: Duration,
    ) -> RestoreChild {
        let mut command = Command::new(name);
        let left = (wait - waited).as_secs_f64().round().to_string();
        command.args(["-w", &left, "--noflush", "--counters"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let program = ChildProgram::start(&mut command, ProcessRole::Restores, limit);
        let mut program = program.map_err(|error| format!("{name}: {error}"));
        let stdin = program.as_mut().ok().and_then(|program| program.child.stdin.take());
        RestoreChild {
            backend,
            program,
            stdin,
            recent_input: VecDeque::new(),
            n_recent_bytes: 0,
            n_dropped_lines: 0,
            wait,
            limit,
        }
    }

    /// Sends `text`. A child that stops reading has failed; [`RestoreChild::end`] reports why.
    pub(super) fn write(&mut self, text: &str) {
        v!(9, backend = self.backend.as_str(), text, "restore input");
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(text.as_bytes()).is_err()
        {
            self.stdin = None;
        }
        self.n_recent_bytes += text.len();
        self.recent_input.push_back(text.to_owned());
        while self.n_recent_bytes > MAX_RECENT_BYTES && self.recent_input.len() > 1 {
            if let Some(old) = self.recent_input.pop_front() {
                self.n_recent_bytes -= old.len();
                self.n_dropped_lines += old.lines().count();
            }
        }
    }

    /// Ends the input and waits.
    pub(super) fn end(mut self) -> Result<(), RestoreError> {
        drop(self.stdin.take());
        let program = std::mem::replace(&mut self.program, Err(String::new()));
        let ended = program.map_err(RestoreError::NotStarted)?.wait();
        let ProcessExit { status, timed_out, stderr } =
            ended.map_err(|error| RestoreError::NotStarted(error.to_string()))?;
        match status.success() {
            true => Ok(()),
            false if timed_out => Err(RestoreError::TimedOut(self.limit)),
            false => Err(self.failure(status, &stderr)),
        }
    }

    fn failure(&self, status: ExitStatus, stderr: &[u8]) -> RestoreError {
        if let Some(signal) = status.signal() {
            return RestoreError::Killed(signal);
        }
        let message = stderr_message(stderr);
        // Exit status 4 means the lock or an error of the kernel; only the message distinguishes them.
        if message.contains("xtables lock") {
            return RestoreError::Locked(self.wait);
        }
        if is_too_large(self.backend, &message) {
            return RestoreError::TooLarge(message);
        }
        // EMLINK is a limit of the namespace, or of the depth of jumps: the line that it names is not the
        // cause.
        if message.contains("Too many links") {
            return RestoreError::Failed { status: status.code().unwrap_or(-1), message };
        }
        match rejected_line(&message) {
            Some(line) => RestoreError::Refused { line, text: self.line(line), message },
            None => RestoreError::Failed { status: status.code().unwrap_or(-1), message },
        }
    }

    /// The text of `line` (from 1), if it is still kept.
    fn line(&self, line: usize) -> Option<String> {
        let n = line.checked_sub(1 + self.n_dropped_lines)?;
        self.recent_input.iter().flat_map(|text| text.lines()).nth(n).map(str::to_owned)
    }
}

/// Whether the kernel had no room for the commit: EMSGSIZE, ENOBUFS. The line in the message is the
/// `COMMIT`. Up to 1.8.7 the message has no reason; that is also true of a few other failures of a whole
/// commit, for which smaller commits do no harm. For rules that nf_tables rejects, the message has a
/// reason. Messages of the legacy back-end never have one.
fn is_too_large(backend: Backend, message: &str) -> bool {
    let has_reason = || message.contains("failed (") || message.contains("failed:");
    ["Message too long", "No buffer space available"].iter().any(|text| message.contains(text))
        || backend == Backend::Nft && message.trim_end().ends_with("failed") && !has_reason()
}

/// The number in `line 3 failed`, `line 3: RULE_APPEND failed` or `Error occurred at line: 3`.
fn rejected_line(message: &str) -> Option<usize> {
    message.match_indices("line").find_map(|(at, word)| {
        let rest = message[at + word.len()..].trim_start_matches([':', ' ']);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse().ok()
    })
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
    fn a_restore_that_exceeds_its_limit_is_killed_also_while_it_receives_input() {
        // Its own child keeps the output open, and is killed with it.
        for (lines, n_written) in [("cat > /dev/null; sleep 60; true", 1), ("sleep 60; true", 1 << 20)] {
            let (_folder, program) = script(lines);
            let mut child = RestoreChild::start((Backend::Nft, &program), SECOND, Duration::ZERO, SECOND);
            child.write(&"x".repeat(n_written));
            let error = child.end().unwrap_err();
            assert_eq!(error, RestoreError::TimedOut(SECOND), "{lines}");
            assert_eq!(error.to_string(), "iptables-restore did not end within 1 s and was killed");
        }
        let (_folder, program) = script("cat > /dev/null; sleep 0.1");
        assert_eq!(
            RestoreChild::start((Backend::Nft, &program), SECOND, Duration::ZERO, SECOND * 60).end(),
            Ok(())
        );
    }

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

    #[test]
    fn a_commit_that_is_too_large_is_distinguished_from_an_invalid_one() {
        let is_too_large = |message| is_too_large(Backend::Nft, message);
        // Messages of iptables-nft-restore 1.8.9 in a user namespace, and of 1.8.7.
        assert!(is_too_large(
            "sendmsg() failed: Message too long; iptables-nft-restore: line 1001 failed: Message too long."
        ));
        assert!(is_too_large("iptables-nft-restore: line 1802 failed"));
        assert!(is_too_large("iptables-nft-restore: line 3 failed: No buffer space available."));
        assert!(!is_too_large("iptables-nft-restore: line 3 failed: Permission denied."));
        assert!(!is_too_large(
            "iptables-nft-restore v1.8.9 (nf_tables): ; line 37: RULE_APPEND failed (Too many links)"
        ));
        assert!(!super::is_too_large(Backend::Legacy, "iptables-restore: line 3 failed"));
    }

    #[test]
    fn the_rejected_line_is_found_in_the_message_of_each_back_end() {
        let check = |message: &str, line| assert_eq!(rejected_line(message), line, "{message}");
        check("iptables-restore: line 3 failed", Some(3));
        check(
            "iptables-nft-restore v1.8.9 (nf_tables): ; line 37: RULE_APPEND failed (Too many links): rule in chain X",
            Some(37),
        );
        check(
            "iptables-nft-restore v1.8.9 (nf_tables): unknown option \"--line\"; Error occurred at line: 5",
            Some(5),
        );
        check("out of memory", None);
    }
}
