//! Runs single commands of fixed text through the `iptables` crate. The crate waits without limit, so each
//! command has a thread of its own, and a command that hangs does not block the agent.
#![allow(clippy::disallowed_methods, reason = "measures how long a command runs")]

use std::process::Output;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::unistd::gettid;

use super::lock::LOCK_WAIT;
use super::process_registry::{PROCESSES, ProcessRole, kill_children};
use crate::iptables::Table;
use crate::log::v;

/// Runs `program` with `command` and a time limit.
///
/// The crate's own wait option has no limit, so `-w 5` is passed instead. Fails if the program could not be
/// started, or exceeded the limit and was killed; each error names the command.
pub(super) fn execute(
    program: &'static str,
    table: Table,
    command: &str,
    limit: Duration,
) -> anyhow::Result<Output> {
    let tool = iptables::IPTables { cmd: program, has_check: true, has_wait: false, is_numeric: false };
    let arguments = format!("-w {} {command}", LOCK_WAIT.as_secs());
    let command_line = format!("{program} -t {table} {arguments}");
    let started = Instant::now();
    let (begun, thread_number) = channel();
    let (ended, outcome) = channel();
    let registration =
        PROCESSES.register(ProcessRole::Reads).with_context(|| format!("cannot run {command_line}"))?;
    let run = move || {
        registration.set_parent_thread(gettid());
        // The receiver is gone after a timeout.
        let _ = begun.send(gettid());
        let _ = ended.send(tool.execute(table.as_str(), &arguments).map_err(|error| error.to_string()));
    };
    let thread = std::thread::Builder::new()
        .spawn(run)
        .with_context(|| format!("cannot create a thread to run {command_line}"))?;
    let outcome_in_time = outcome.recv_timeout(limit);
    let status =
        outcome_in_time.as_ref().ok().and_then(|output| Some(output.as_ref().ok()?.status.to_string()));
    let elapsed_ms = started.elapsed().as_millis() as u64;
    v!(5, command = command_line, elapsed_ms, status = status.as_deref().unwrap_or("none"), "ran command");
    match outcome_in_time {
        Ok(outcome) => outcome.map_err(|error| anyhow!("cannot run {command_line}: {error}")),
        Err(RecvTimeoutError::Timeout) => {
            let is_killed = thread_number.try_recv().is_ok_and(kill_children);
            // It may have ended just now.
            if let Ok(Ok(output)) = outcome.recv_timeout(Duration::from_secs(1))
                && output.status.code().is_some()
            {
                return Ok(output);
            }
            let end = if is_killed { "was killed" } else { "cannot be killed" };
            bail!("{command_line} did not end within {} s and {end}", limit.as_secs())
        }
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => bail!("{command_line} ended without a result"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::tests::script;
    use super::*;

    /// The result of a script of these lines that gets `seconds`.
    fn run(lines: &str, seconds: u64) -> (String, anyhow::Result<Output>) {
        let (_folder, program) = script(lines);
        let name: &'static str = Box::leak(program.clone().into_boxed_str());
        (program, execute(name, Table::Nat, "-S KUBE-SERVICES", Duration::from_secs(seconds)))
    }

    #[test]
    fn a_command_that_exceeds_its_limit_is_killed_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("pid");
        let (program, outcome) = run(&format!("echo $$ > {}; exec sleep 600", note.display()), 5);
        assert_eq!(
            outcome.unwrap_err().to_string(),
            format!("{program} -t nat -w 5 -S KUBE-SERVICES did not end within 5 s and was killed")
        );
        // Its thread reaps it later.
        let process = format!("/proc/{}", std::fs::read_to_string(&note).unwrap().trim());
        let until = Instant::now() + Duration::from_secs(60);
        while std::path::Path::new(&process).exists() {
            assert!(Instant::now() < until, "{process} is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn the_status_and_output_of_a_command_are_returned() {
        let (_, outcome) = run("echo \"$@\"; echo no >&2; exit 3", 60);
        let output = outcome.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str(), text(&output.stderr).as_str()),
            (Some(3), "-t nat -w 5 -S KUBE-SERVICES\n", "no\n")
        );
    }

    #[test]
    fn an_error_for_a_missing_program_names_its_command() {
        let error = execute("/none/iptables", Table::Filter, "-S X", Duration::from_secs(60)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("cannot run /none/iptables -t filter -w 5 -S X: "), "{text}");
    }
}
