//! The command line: subcommands and their exit status. The only place that prints to stdout.

mod check;
mod cleanup;
mod cluster_source;
mod diff;
mod explain;
mod objects;
mod output;
mod render;
mod run;
mod source;
mod status;
mod top;
mod trace;

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config;
use crate::model::needs_escape;

/// Drop-in replacement for kube-proxy's iptables mode.
///
/// Without a command, or called `kube-proxy`, it runs the agent: `chainsmith run`.
#[derive(Debug, Parser)]
#[command(name = "chainsmith", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent: keeps the rules of this node in step with the cluster.
    Run(run::RunArguments),
    /// Prints the rules of a node for objects in files; needs neither root nor a cluster.
    Render(render::RenderArguments),
    /// Compares two sets of rules: which chains differ or, with --packets, which packets fare differently.
    ///
    /// Of chains, spelling and counters do not count, nor does the order of rules that no packet can match
    /// both. With --packets, the texts may differ as they like, as those of the layouts classic and compact
    /// do: packets to every address, port and protocol that either side names, and beside them, are traced
    /// through both, from pods, the node, outside and every source that rules name. Without --host, -f or
    /// objects, some addresses are stand-ins; the output says which.
    /// The exit status is 0 if nothing differs, 1 if something does, and 2 if a side cannot be read.
    Diff(diff::DiffArguments),
    /// Shows the state of the agent that runs on this node.
    ///
    /// What is in force in both families, what the agent knows of the kernel's tables, its last syncs by stage, rejected
    /// service ports with the message of iptables-restore, and problems of objects. Root only, in the network namespace
    /// of the node; in a cluster: kubectl -n kube-system exec ds/kube-proxy -- chainsmith status
    Status(status::StatusArguments),
    /// Shows which Services and endpoints get new connections on this node.
    ///
    /// Counts are those of nat rules, which see the first packet of each connection. `--live` reads the counters of the
    /// rules in force, which begin at zero when a Service's rules are rewritten; `--agent` shows what a running agent has
    /// counted since its start, across rewrites (setting connectionMetrics). On a terminal the output is refreshed; else, and
    /// with -o json, it is printed once, with rates if --interval is given.
    Top(top::TopArguments),
    /// Follows a packet through the rules: each chain and rule it meets, its endpoints, its end and the reasons.
    ///
    /// Shows the way through PREROUTING or OUTPUT, the routing decision, INPUT or FORWARD, and POSTROUTING, in the
    /// tables mangle, filter and nat; every endpoint with its exact probability; whether the packet is masqueraded,
    /// and why; why it is rejected or dropped; and which endpoints are left out. Rules of other programs count too;
    /// those whose matches are unknown are named, with what they may do. Needs neither root (except --live) nor a
    /// cluster, and sends no packet. Exit status: 0 answered, 1 unreadable source or unknown name, 2 wrong usage.
    Trace(trace::TraceArguments),
    /// Explains one Service as a node sees it: frontends, endpoints used and left out, chains, who answers.
    Explain(explain::ExplainArguments),
    /// Compares the rules in force with those that the objects ask for; reads and never writes.
    ///
    /// Works beside a running kube-proxy or Chainsmith: the rules are compared in the layout in which they are
    /// found. Where their text differs, packets of the Services concerned are traced through both. Also looks at
    /// sysctls, at rules of other programs that decide before Services' rules do, at the other back-end, at what
    /// other modes of kube-proxy left, and at other proxies. Without RULES the rules in force on this machine are
    /// compared (as root). The exit status is 0 when nothing is wrong, 1 when something is, 2 when it cannot tell.
    Check(check::CheckArguments),
    /// Removes the leftovers of Chainsmith and of every mode of kube-proxy, and nothing else.
    ///
    /// These are: their chains and jumps in both iptables back-ends; the nftables tables kube-proxy; and of
    /// ipvs mode the interface kube-ipvs0, the ipsets with kube-proxy's names (other ipsets called KUBE-...
    /// stay) and the IPVS virtual servers that are known to be kube-proxy's: the address is on kube-ipvs0, or
    /// it is the node's and the port is a node port of kube-proxy's. Other virtual servers stay; cleanup lists
    /// them with the command that removes one. A chain that foreign rules refer to is flushed, not deleted.
    /// The exit status is 1 when a leftover stays. Stop the agent first.
    Cleanup(cleanup::CleanupArguments),
}

/// Exit status of a wrong command line; `run` exits with 1, as kube-proxy does.
const USAGE: u8 = 2;

/// Runs the program with its arguments, the first of which is its own name.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = config::normalise(argv);
    let command = command_line(&argv);
    let argv = with_command(with_plugin_source(argv, &command));
    let is_agent = argv.get(1).is_some_and(|command| command == "run");
    let matches = command.try_get_matches_from(argv);
    let arguments = match matches.and_then(|mut matches| Arguments::from_arg_matches_mut(&mut matches)) {
        Ok(arguments) => arguments,
        Err(error) => {
            // If stderr is closed, the exit status is all that is left.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ if is_agent => ExitCode::FAILURE,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    match arguments.command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Render(arguments) => render::main(&arguments),
        Command::Diff(arguments) => diff::main(&arguments),
        Command::Status(arguments) => status::main(&arguments),
        Command::Top(arguments) => top::main(&arguments),
        Command::Trace(arguments) => trace::main(&arguments),
        Command::Explain(arguments) => explain::main(&arguments),
        Command::Check(arguments) => check::main(&arguments),
        Command::Cleanup(arguments) => cleanup::main(&arguments),
    }
}

/// Whether the program is called `name`.
fn is_called(argv: &[OsString], name: &str) -> bool {
    argv.first().is_some_and(|program| Path::new(program).file_name() == Some(name.as_ref()))
}

/// The name that makes the program a plugin of kubectl.
const PLUGIN: &str = "kubectl-chainsmith";

/// The command line, with the name that the user has typed.
fn command_line(argv: &[OsString]) -> clap::Command {
    let command = Arguments::command();
    match is_called(argv, PLUGIN) {
        true => command.bin_name("kubectl chainsmith"),
        false => command,
    }
}

/// As a plugin of kubectl, commands ask the cluster unless another source is given; without a command there is help.
fn with_plugin_source(mut argv: Vec<OsString>, command: &clap::Command) -> Vec<OsString> {
    if is_called(&argv, PLUGIN) {
        let name = argv.get(1).and_then(|argument| argument.to_str()).unwrap_or("--help");
        let takes_source = command.find_subcommand(name).is_some_and(|command| {
            command
                .get_arguments()
                .any(|argument| argument.get_long() == Some(cluster_source::CLUSTER_BY_DEFAULT))
        });
        match takes_source {
            true => argv.insert(2, format!("--{}", cluster_source::CLUSTER_BY_DEFAULT).into()),
            false if argv.len() == 1 => argv.push("--help".into()),
            false => {}
        }
    }
    argv
}

/// Inserts `run` where no command is given: the kubeadm DaemonSet starts `kube-proxy` with flags only.
fn with_command(mut argv: Vec<OsString>) -> Vec<OsString> {
    let is_kube_proxy = is_called(&argv, "kube-proxy");
    let first = argv.get(1).and_then(|argument| argument.to_str());
    let is_about_program =
        !is_kube_proxy && matches!(first, Some("--help" | "-h" | "--version" | "-V" | "help"));
    let is_flag = first.is_none_or(|first| first.starts_with('-'));
    if !is_about_program && (is_flag || is_kube_proxy) {
        argv.insert(argv.len().min(1), "run".into());
    }
    argv
}

/// Prints an error on stderr, on one line. A message that cannot be printed is lost.
fn print_error(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "chainsmith: {}", OneLine(message));
}

/// Shows a value on one line: `\n` and `\u{1b}` instead of a line feed and an escape.
struct OneLine<T>(T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            if needs_escape(c) { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

/// Prints a line on stdout.
fn print(line: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(argv: &[&str], expected: &[&str]) {
        let with = with_command(argv.iter().map(Into::into).collect());
        assert_eq!(with, expected.iter().map(OsString::from).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_command_it_runs_the_agent() {
        check(&["chainsmith"], &["chainsmith", "run"]);
        check(&["chainsmith", "--config=x"], &["chainsmith", "run", "--config=x"]);
        check(&["chainsmith", "render", "-f", "x"], &["chainsmith", "render", "-f", "x"]);
        check(&["chainsmith", "--help"], &["chainsmith", "--help"]);
        check(&["chainsmith", "nonsense"], &["chainsmith", "nonsense"]);
    }

    #[test]
    fn called_kube_proxy_it_runs_the_agent() {
        check(&["/usr/local/bin/kube-proxy", "--v=2"], &["/usr/local/bin/kube-proxy", "run", "--v=2"]);
        check(&["kube-proxy"], &["kube-proxy", "run"]);
        check(&["kube-proxy", "--version"], &["kube-proxy", "run", "--version"]);
    }

    #[test]
    fn as_a_plugin_of_kubectl_commands_ask_the_cluster() {
        let check = |argv: &[&str], expected: &[&str]| {
            let argv: Vec<OsString> = argv.iter().map(Into::into).collect();
            let command = command_line(&argv);
            let with = with_command(with_plugin_source(argv, &command));
            assert_eq!(with, expected.iter().map(OsString::from).collect::<Vec<_>>());
        };
        let name = "/home/me/.krew/bin/kubectl-chainsmith";
        check(&[name], &[name, "--help"]);
        check(&[name, "explain", "shop/db"], &[name, "explain", "--cluster-by-default", "shop/db"]);
        check(&[name, "cleanup"], &[name, "cleanup"]);
        check(&[name, "--version"], &[name, "--version"]);
        check(&["chainsmith", "explain", "a/b"], &["chainsmith", "explain", "a/b"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
