//! A running `iptables-restore`, which receives its input in pieces, and the classification of its failures.
#![allow(clippy::disallowed_methods, reason = "starts processes")]

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::child::{ChildProgram, ProcessExit, stderr_message};
use super::process_registry::ProcessRole;
use crate::kernel::{Backend, RestoreError};
use crate::log::v;
use crate::plan::{InputExcerpt, RestoreInput};

/// One `iptables-restore`.
pub(super) struct RestoreChild {
    backend: Backend,
    program: Result<ChildProgram, String>,
    stdin: Option<ChildStdin>,
    input: RestoreInput,
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
        RestoreChild { backend, program, stdin, input: RestoreInput::default(), wait, limit }
    }

    /// Sends `text`. A child that stops reading has failed; [`RestoreChild::end`] reports why.
    pub(super) fn write(&mut self, text: &str) {
        v!(9, backend = self.backend.as_str(), text, "restore input");
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(text.as_bytes()).is_err()
        {
            self.stdin = None;
        }
        self.input.push(text);
    }

    /// Ends the input and waits. Returns also what is kept of the input.
    pub(super) fn end(mut self) -> (Result<(), RestoreError>, InputExcerpt) {
        drop(self.stdin.take());
        let result = self.wait();
        let rejected = match &result {
            Err(RestoreError::Refused { line, .. }) => Some(*line),
            _ => None,
        };
        (result, self.input.excerpt(rejected))
    }

    fn wait(&mut self) -> Result<(), RestoreError> {
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
            Some(line) => RestoreError::Refused { line, text: self.input.line(line), message },
            None => RestoreError::Failed { status: status.code().unwrap_or(-1), message },
        }
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
            let error = child.end().0.unwrap_err();
            assert_eq!(error, RestoreError::TimedOut(SECOND), "{lines}");
            assert_eq!(error.to_string(), "iptables-restore did not end within 1 s and was killed");
        }
        let (_folder, program) = script("cat > /dev/null; sleep 0.1");
        assert_eq!(
            RestoreChild::start((Backend::Nft, &program), SECOND, Duration::ZERO, SECOND * 60).end().0,
            Ok(())
        );
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
