//! Detects the back-end of the node, and whether it can be used.
#![allow(clippy::disallowed_methods, reason = "starts processes and reads /proc")]

use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use super::child::{self, stderr_message};
use super::kernel_iptables::{KernelIptables, Programs};
use super::watchdog;
use crate::iptables::{ChainName, Rule, Table, write};
use crate::kernel::{Backend, Iptables, RestoreError};
use crate::net::IpFamily;

/// The oldest release whose `iptables-restore` can wait for the lock with a limit.
const MIN_VERSION: (u32, u32, u32) = (1, 6, 2);

/// Why iptables cannot be used for a family; each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A program is missing.
    #[error("{program} cannot be run: {error}; install iptables, or check PATH")]
    Missing {
        /// Which.
        program: &'static str,
        /// Message of the system.
        error: String,
    },
    /// It is too old, or not iptables.
    #[error("{program} has version {version:?}; version 1.6.2 or newer is needed")]
    TooOld {
        /// Which.
        program: &'static str,
        /// Its output for `--version`.
        version: String,
    },
    /// It lacks permission: no root, no CAP_NET_ADMIN, no table nat.
    #[error("{program} -t nat does not work: {message}; run as root with CAP_NET_ADMIN")]
    NotPermitted {
        /// Which.
        program: &'static str,
        /// Message of the program.
        message: String,
    },
    /// It failed for now: another process holds the lock, or a resource is short.
    #[error("{program} failed for now: {message}")]
    Busy {
        /// Which.
        program: &'static str,
        /// Message of the program or the system.
        message: String,
    },
}

impl Unusable {
    /// Whether another attempt may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Unusable::Busy { .. })
    }
}

/// The back-end in which mangle contains one of the chains `marks`, which the kubelet creates; the same
/// test as in iptables-wrappers. nft is checked first, since reading legacy creates its tables.
pub fn detect_backend(marks: &[ChainName]) -> Option<Backend> {
    let is_used = |backend: &Backend| IpFamily::BOTH.iter().any(|family| has_chain(*family, *backend, marks));
    [Backend::Nft, Backend::Legacy].into_iter().find(is_used)
}

/// Whether mangle contains one of `marks`.
fn has_chain(family: IpFamily, backend: Backend, marks: &[ChainName]) -> bool {
    if backend == Backend::Legacy && !has_legacy_table(family, Table::Mangle) {
        return false;
    }
    let mut command = Command::new(Programs::new(family, Some(backend)).save);
    command.args(["-t", "mangle"]);
    let mut is_used = false;
    let read = child::read_lines_with_retry(&mut command, watchdog::TIME_LIMIT, &mut |line| {
        let name = line.strip_prefix(':').and_then(|rest| rest.split(' ').next());
        is_used |= name.is_some_and(|name| marks.iter().any(|mark| mark.as_str() == name));
    });
    read.is_ok() && is_used
}

/// Whether the program and the kernel accept `rule`, tested on a chain that the same commit deletes. If
/// this cannot be determined, because other processes hold the lock for long, the rule counts as rejected.
pub fn accepts_rule(kernel: &mut impl Iptables, rule: &Rule) -> Result<(), RestoreError> {
    const TRIES: usize = 3;
    let family = kernel.family();
    let chain = ChainName::literal("KUBE-SVC-0PROBE");
    let mut text = String::new();
    write::table(&mut text, Table::Nat);
    write::declaration(&mut text, &chain);
    write::append(&mut text, family, &chain, rule);
    write::flush_chain(&mut text, &chain);
    write::delete_chain(&mut text, &chain);
    write::commit(&mut text);
    let mut attempt = || {
        kernel.begin();
        kernel.write(&text);
        kernel.end()
    };
    let is_final = |result: &Result<(), RestoreError>| {
        matches!(result, Ok(()) | Err(RestoreError::Refused { .. } | RestoreError::Failed { .. }))
    };
    let mut result = attempt();
    for _ in 1..TRIES {
        if is_final(&result) {
            break;
        }
        result = attempt();
    }
    result
}

/// Opens the tables of `family` in `backend`, after checking that they can be used.
pub fn open(family: IpFamily, backend: Option<Backend>) -> Result<KernelIptables, Unusable> {
    let programs = Programs::new(family, backend);
    let (version, backend) = version(programs.iptables)?;
    for program in [programs.save, programs.restore] {
        run(program, &["--version"], watchdog::TIME_LIMIT)?;
    }
    if version < MIN_VERSION {
        let version = format!("{}.{}.{}", version.0, version.1, version.2);
        return Err(Unusable::TooOld { program: programs.iptables, version });
    }
    let list_rules = ["-w", "5", "-S", "POSTROUTING", "-t", "nat"];
    let output = run(programs.iptables, &list_rules, watchdog::TIME_LIMIT)?;
    if !output.status.success() {
        return Err(failure(programs.iptables, &output));
    }
    Ok(KernelIptables::new(family, backend, programs))
}

/// Whether the legacy back-end has `table` in this network namespace; reading a missing table would create
/// it. If the file is unreadable (user namespaces), the answer is yes.
pub fn has_legacy_table(family: IpFamily, table: Table) -> bool {
    let path = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(path).map_or(true, |names| names.lines().any(|name| name == table.as_str()))
}

/// Whether IPv6 is disabled in the kernel, so that only IPv4 is proxied. If `proc` does not show it, the
/// answer is no: a program that then fails is retried.
pub fn is_ipv6_disabled(proc: &Path) -> bool {
    let disabled = std::fs::read_to_string(proc.join("sys/net/ipv6/conf/all/disable_ipv6"));
    let is_absent = proc.join("net/if_inet6").try_exists().is_ok_and(|is_there| !is_there);
    is_absent || disabled.is_ok_and(|value| value.trim() == "1")
}

/// Classifies a failure to list table nat. Status 4 means a shortage: of the lock, of memory, or a ruleset
/// that keeps changing. With the nft variant it also means missing permission.
fn failure(program: &'static str, output: &Output) -> Unusable {
    let message = stderr_message(&output.stderr);
    let is_permitted = !["Permission denied", "not permitted"].iter().any(|text| message.contains(text));
    match output.status.code() {
        Some(4) if is_permitted => Unusable::Busy { program, message },
        Some(_) => Unusable::NotPermitted { program, message },
        None => Unusable::Busy { program, message: format!("{} ({message})", output.status) },
    }
}

/// The output of `program` within `limit`, whatever its exit status, unless it was killed.
fn run(program: &'static str, args: &[&str], limit: Duration) -> Result<Output, Unusable> {
    use io::ErrorKind::{NotFound, PermissionDenied};
    let mut command = Command::new(program);
    command.args(args);
    let output = child::output(command, limit).map_err(|error| {
        let message = error.to_string();
        match error.kind() {
            NotFound | PermissionDenied => Unusable::Missing { program, error: message },
            // No process or memory is available, or the file is being replaced.
            _ => Unusable::Busy { program, message },
        }
    })?;
    let Some(output) = output else {
        let (arguments, seconds) = (args.join(" "), limit.as_secs());
        let message = format!("{program} {arguments} did not end within {seconds} s and was killed");
        return Err(Unusable::Busy { program, message });
    };
    match output.status.code() {
        Some(_) => Ok(output),
        None => Err(failure(program, &output)),
    }
}

fn version(program: &'static str) -> Result<((u32, u32, u32), Backend), Unusable> {
    let output = run(program, &["--version"], watchdog::TIME_LIMIT)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = parse_version(&text).ok_or(Unusable::TooOld { program, version: text.clone() })?;
    // Before 1.8 there was no nf_tables variant.
    let backend = if text.contains("nf_tables") { Backend::Nft } else { Backend::Legacy };
    Ok((version, backend))
}

/// Reads `iptables v1.8.9 (nf_tables)`.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let (major, minor) = (numbers.next()??, numbers.next()??);
    Some((major, minor, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{ExitStatus, Output};
    use std::time::Duration;

    use super::super::tests::script;
    use super::{Unusable, failure, is_ipv6_disabled, parse_version, run};

    /// A script of these lines; its name is leaked.
    fn program(lines: &str) -> (tempfile::TempDir, &'static str) {
        let (folder, name) = script(lines);
        (folder, Box::leak(name.into_boxed_str()))
    }

    #[test]
    fn ipv6_is_disabled_only_where_the_kernel_shows_it() {
        let proc = tempfile::tempdir().unwrap();
        assert!(is_ipv6_disabled(proc.path()), "no interface has IPv6");
        std::fs::create_dir(proc.path().join("net")).unwrap();
        std::fs::write(proc.path().join("net/if_inet6"), "").unwrap();
        assert!(!is_ipv6_disabled(proc.path()));
        std::fs::create_dir_all(proc.path().join("sys/net/ipv6/conf/all")).unwrap();
        std::fs::write(proc.path().join("sys/net/ipv6/conf/all/disable_ipv6"), "1\n").unwrap();
        assert!(is_ipv6_disabled(proc.path()));
        // A file in place of a folder makes reading fail.
        assert!(!is_ipv6_disabled(&proc.path().join("net/if_inet6")));
    }

    #[test]
    fn a_program_that_exceeds_its_limit_is_killed_and_may_be_retried() {
        let (_folder, hangs) = program("sleep 600; true");
        let error = run(hangs, &["--version"], Duration::from_secs(1)).unwrap_err();
        assert!(error.is_transient(), "{error}");
        let expected =
            format!("{hangs} failed for now: {hangs} --version did not end within 1 s and was killed");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_missing_or_killed_program_is_distinguished_from_one_that_fails() {
        let minute = Duration::from_secs(60);
        assert!(matches!(run("/none/iptables", &[], minute), Err(Unusable::Missing { .. })));
        let (_folder, killed) = program("kill -9 $$");
        assert!(matches!(run(killed, &[], minute), Err(Unusable::Busy { .. })));
        let (_folder, answers) = program("echo \"$LC_ALL $1\"; exit 2");
        let output = run(answers, &["-x"], minute).unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b"C -x\n"[..]));
    }

    #[test]
    fn temporary_failures_are_distinguished_from_permanent_ones() {
        let check = |status: i32, stderr_message: &str, expected: bool| {
            let stderr = stderr_message.as_bytes().to_vec();
            let output = Output { status: ExitStatus::from_raw(status), stdout: Vec::new(), stderr };
            let failure = failure("iptables", &output);
            assert_eq!(failure.is_transient(), expected, "{failure}");
            assert!(failure.to_string().contains(stderr_message), "{failure}");
        };
        let exit = |code: i32| code << 8;
        // Messages of iptables 1.8.9.
        let lock = "Another app is currently holding the xtables lock; still 4s 0us time ahead to have a chance to grab the lock...";
        check(exit(4), lock, true);
        check(exit(4), "Could not fetch rule set generation id: Interrupted system call", true);
        let root = "Could not fetch rule set generation id: Permission denied (you must be root)";
        check(exit(4), root, false);
        check(exit(4), "Fatal: can't open lock file /run/xtables.lock: Permission denied", false);
        check(exit(3), "can't initialize ip6tables table `nat': Table does not exist", false);
        check(9, "", true);
    }

    #[test]
    fn versions_are_parsed() {
        assert_eq!(parse_version("iptables v1.8.9 (nf_tables)"), Some((1, 8, 9)));
        assert_eq!(parse_version("ip6tables v1.4.21"), Some((1, 4, 21)));
        assert_eq!(parse_version("iptables v1.8"), Some((1, 8, 0)));
        assert_eq!(parse_version("BusyBox"), None);
        assert_eq!(parse_version(""), None);
    }
}
