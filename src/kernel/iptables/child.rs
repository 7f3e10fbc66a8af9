//! A running `iptables-restore`, fed as text is made, and why it failed; a program whose output is read
//! line by line; and one that says little.
#![allow(clippy::disallowed_methods, reason = "this is where processes are started")]

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
use super::minder::Minder;
use super::running::{PROGRAMS, Purpose, Registered};
use super::said;
use crate::log::v;

/// How much of an input is kept to name a refused line: more than one batch of the nft back-end.
const KEPT_BYTES: usize = 4 << 20;
/// How much of what a program says is kept.
const KEPT_STDERR: u64 = 64 << 10;

/// Makes `command` independent of the user's language and of the terminal's Ctrl-C: a restore that
/// has begun is left to end.
fn detached(command: &mut Command) -> &mut Command {
    command.env("LC_ALL", "C").process_group(0)
}

/// A program that runs, looked after.
struct Program {
    /// The program and its arguments.
    command: String,
    begun: Instant,
    child: Child,
    minder: Minder,
    stderr: JoinHandle<Vec<u8>>,
    registered: Registered,
}

/// How a program ended.
struct Ended {
    status: ExitStatus,
    /// It took too long and was killed.
    is_late: bool,
    stderr: Vec<u8>,
}

impl Program {
    /// Starts `command`, for `limit` at most. Where no thread can be made to look after the program, it is
    /// killed before it was given anything: as if it could not be started.
    fn start(command: &mut Command, purpose: Purpose, limit: Duration) -> io::Result<Program> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        let (words, begun) = (words.join(" "), Instant::now());
        let registered = PROGRAMS.register(purpose)?;
        let mut child = detached(command.stderr(Stdio::piped())).spawn()?;
        registered.leads(child.id());
        match look_after(&mut child, limit) {
            Ok((minder, stderr)) => Ok(Program { command: words, begun, child, minder, stderr, registered }),
            Err(error) => {
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                drop(registered);
                child.wait()?;
                Err(io::Error::new(error.kind(), format!("no thread to look after it: {error}")))
            }
        }
    }

    /// Waits until it has ended.
    fn wait(self) -> io::Result<Ended> {
        let Program { command, begun, mut child, minder, stderr, registered } = self;
        let is_late = minder.ended();
        drop(registered);
        let status = child.wait()?;
        v!(5, command, elapsed_ms = begun.elapsed().as_millis() as u64, %status, "ran command");
        let is_late = is_late && !status.success();
        Ok(Ended { status, is_late, stderr: stderr.join().unwrap_or_default() })
    }
}

fn look_after(child: &mut Child, limit: Duration) -> io::Result<(Minder, JoinHandle<Vec<u8>>)> {
    let minder = Minder::start(child.id(), limit)?;
    let stderr = child.stderr.take();
    let read = move || stderr.map(read_some).unwrap_or_default();
    Ok((minder, std::thread::Builder::new().spawn(read)?))
}

/// One `iptables-restore`.
pub(super) struct RestoreChild {
    backend: Backend,
    program: Result<Program, String>,
    stdin: Option<ChildStdin>,
    kept: VecDeque<String>,
    n_kept_bytes: usize,
    n_forgotten_lines: usize,
    wait: Duration,
    limit: Duration,
}

impl RestoreChild {
    /// Starts `program`, which may wait for the lock for what is left of `wait` after `waited`, and is
    /// killed when it runs for longer than `limit`; a failure to do so is told by
    /// [`RestoreChild::end`].
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
        let program = Program::start(&mut command, Purpose::Restores, limit);
        let mut program = program.map_err(|error| format!("{name}: {error}"));
        let stdin = program.as_mut().ok().and_then(|program| program.child.stdin.take());
        RestoreChild {
            backend,
            program,
            stdin,
            kept: VecDeque::new(),
            n_kept_bytes: 0,
            n_forgotten_lines: 0,
            wait,
            limit,
        }
    }

    /// Passes `text` on. A child that no longer reads has failed; [`RestoreChild::end`] tells why.
    pub(super) fn write(&mut self, text: &str) {
        v!(9, backend = self.backend.as_str(), text, "restore input");
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(text.as_bytes()).is_err()
        {
            self.stdin = None;
        }
        self.n_kept_bytes += text.len();
        self.kept.push_back(text.to_owned());
        while self.n_kept_bytes > KEPT_BYTES && self.kept.len() > 1 {
            if let Some(old) = self.kept.pop_front() {
                self.n_kept_bytes -= old.len();
                self.n_forgotten_lines += old.lines().count();
            }
        }
    }

    /// Ends the input and waits.
    pub(super) fn end(mut self) -> Result<(), RestoreError> {
        drop(self.stdin.take());
        let program = std::mem::replace(&mut self.program, Err(String::new()));
        let ended = program.map_err(RestoreError::NotStarted)?.wait();
        let Ended { status, is_late, stderr } =
            ended.map_err(|error| RestoreError::NotStarted(error.to_string()))?;
        match status.success() {
            true => Ok(()),
            false if is_late => Err(RestoreError::TimedOut(self.limit)),
            false => Err(self.failure(status, &stderr)),
        }
    }

    fn failure(&self, status: ExitStatus, stderr: &[u8]) -> RestoreError {
        if let Some(signal) = status.signal() {
            return RestoreError::Killed(signal);
        }
        let message = said(stderr);
        // Exit status 4 is the lock as well as the kernel's refusal: only the text tells.
        if message.contains("xtables lock") {
            return RestoreError::Locked(self.wait);
        }
        if is_too_large(self.backend, &message) {
            return RestoreError::TooLarge(message);
        }
        // EMLINK is a limit of the namespace, or of how deep chains call each other: whose line it is
        // says nothing about him.
        if message.contains("Too many links") {
            return RestoreError::Failed { status: status.code().unwrap_or(-1), message };
        }
        match refused_line(&message) {
            Some(line) => RestoreError::Refused { line, text: self.line(line), message },
            None => RestoreError::Failed { status: status.code().unwrap_or(-1), message },
        }
    }

    /// The text of `line` (from 1), if it is still at hand.
    fn line(&self, line: usize) -> Option<String> {
        let n = line.checked_sub(1 + self.n_forgotten_lines)?;
        self.kept.iter().flat_map(|text| text.lines()).nth(n).map(str::to_owned)
    }
}

/// Whether the kernel had no room for the commit: EMSGSIZE, ENOBUFS. The line that is named with it is
/// the `COMMIT`. Up to 1.8.7 that is all that is said, as of little else that befalls a whole commit
/// (which fares no worse in smaller ones); rules that nf_tables refuses have a reason there. With the
/// legacy back-end nothing ever has.
fn is_too_large(backend: Backend, message: &str) -> bool {
    let has_reason = || message.contains("failed (") || message.contains("failed:");
    ["Message too long", "No buffer space available"].iter().any(|text| message.contains(text))
        || backend == Backend::Nft && message.trim_end().ends_with("failed") && !has_reason()
}

/// The number in `line 3 failed`, `line 3: RULE_APPEND failed` or `Error occurred at line: 3`.
fn refused_line(message: &str) -> Option<usize> {
    message.match_indices("line").find_map(|(at, word)| {
        let rest = message[at + word.len()..].trim_start_matches([':', ' ']);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse().ok()
    })
}

fn read_some(from: impl Read) -> Vec<u8> {
    let mut from = from;
    let mut kept = Vec::new();
    // What comes after is read and dropped: a program that cannot write would wait for ever.
    let _ = from.by_ref().take(KEPT_STDERR).read_to_end(&mut kept);
    let _ = io::copy(&mut from, &mut io::sink());
    kept
}

/// A program that is only read from died of a signal; an error of [`read_lines`].
#[derive(Debug, thiserror::Error)]
#[error("{program} failed (signal {signal}): {message}")]
pub(super) struct Crashed {
    program: String,
    signal: i32,
    message: String,
}

/// Runs `command`, for `limit` at most, and passes on each line of its output; lines that are not UTF-8
/// are passed on with the bytes at fault replaced.
fn read_lines(command: &mut Command, limit: Duration, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let program = Program::start(command, Purpose::Reads, limit);
    let mut program = program.with_context(|| format!("cannot run {name}"))?;
    if let Some(stdout) = program.child.stdout.take() {
        let mut reader = BufReader::with_capacity(64 << 10, stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read from {name}"))? > 0 {
            each(String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).as_ref());
            line.clear();
        }
    }
    let Ended { status, is_late, stderr } =
        program.wait().with_context(|| format!("cannot wait for {name}"))?;
    if is_late {
        bail!("{name} did not end within {} s and was killed", limit.as_secs());
    }
    if !status.success() {
        let message = said(&stderr);
        match status.signal() {
            Some(signal) => bail!(Crashed { program: name, signal, message }),
            None => bail!("{name} failed ({status}): {message}"),
        }
    }
    Ok(())
}

/// How often a program that is only read from is started at most.
const N_READS: usize = 3;

/// [`read_lines`], once more when the program crashed before it said anything: `iptables-nft-save` 1.8.7
/// (Debian 11) does when somebody commits while it reads.
pub(super) fn read_again(
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
    for _ in 1..N_READS {
        match read() {
            Err((error, 0)) if error.is::<Crashed>() => {}
            outcome => return outcome.map_err(|(error, _)| error),
        }
    }
    read().map_err(|(error, _)| error)
}

/// Runs `command`, for `limit` at most, and keeps the beginning of what it says; `None` when it took
/// longer and was killed.
pub(super) fn output(mut command: Command, limit: Duration) -> io::Result<Option<Output>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut program = Program::start(&mut command, Purpose::Reads, limit)?;
    let stdout = program.child.stdout.take().map(read_some).unwrap_or_default();
    let Ended { status, is_late, stderr } = program.wait()?;
    Ok((!is_late).then_some(Output { status, stdout, stderr }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::script;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_restore_that_does_not_end_is_killed_also_while_it_is_fed() {
        // What it starts holds its output open, and is killed with it.
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
    fn a_program_that_is_read_and_does_not_end_is_killed() {
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
    fn a_reader_that_crashes_before_it_says_anything_is_started_again() {
        let read = |lines: &str| {
            let (folder, program) = script(lines);
            let mut command = Command::new(&program);
            command.env("NOTE", folder.path().join("note"));
            let mut lines = Vec::new();
            let outcome = read_again(&mut command, SECOND * 60, &mut |line| lines.push(line.to_owned()));
            let n_starts = std::fs::read_to_string(folder.path().join("note")).unwrap().len();
            (n_starts, lines, outcome.map_err(|error| error.to_string().replace(&program, "save")))
        };
        let crash = "save failed (signal 6): free()".to_owned();
        let lines = |text: &str| vec![text.to_owned()];
        let twice = "printf x >> $NOTE; [ -s $NOTE.1 ] || { echo 1 > $NOTE.1; kill -6 $$; }; echo a";
        assert_eq!(read(twice), (2, lines("a"), Ok(())));
        let always = "printf x >> $NOTE; echo 'free()' >&2; kill -6 $$";
        assert_eq!(read(always), (N_READS, vec![], Err(crash.clone())));
        // What was passed on cannot be taken back.
        let late = "printf x >> $NOTE; echo a; echo 'free()' >&2; kill -6 $$";
        assert_eq!(read(late), (1, lines("a"), Err(crash)));
    }

    #[test]
    fn a_program_that_says_little_is_killed_too_when_it_does_not_end() {
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
    fn a_commit_that_is_too_large_is_told_from_one_that_is_wrong() {
        let is_too_large = |message| is_too_large(Backend::Nft, message);
        // What iptables-nft-restore 1.8.9 says in a user namespace, and 1.8.7.
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
    fn the_refused_line_is_found_in_what_each_back_end_says() {
        let check = |message: &str, line| assert_eq!(refused_line(message), line, "{message}");
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
