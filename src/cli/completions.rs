//! `chainsmith completions SHELL`, and the answers to a shell that completes a command line: flags and values by clap, and
//! names of Services, Pods and Nodes from the source that the line gives.
#![allow(
    clippy::disallowed_methods,
    reason = "a shell passes the command line in the environment; bounds the time"
)]

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;
use std::{env, thread};

use clap::{Args, Command, ValueEnum};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use super::cluster_source::ClusterArguments;
use super::objects;
use super::output::print_text;
use crate::model::Inventory;

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell
    shell: CompletedShell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

/// The variable in which the shell's script says which shell asks.
const VARIABLE: &str = "CHAINSMITH_COMPLETE";

/// How long a source may take: a shell that hangs is worse than one that knows no names.
const NAMES_TIMEOUT: Duration = Duration::from_secs(2);

/// Most names that are offered.
const MAX_NAMES: usize = 1_000;

impl CompletedShell {
    fn adapter(self) -> &'static dyn EnvCompleter {
        match self {
            CompletedShell::Bash => &Bash,
            CompletedShell::Zsh => &Zsh,
            CompletedShell::Fish => &Fish,
        }
    }
}

/// Prints the script that the shell sources.
pub fn main(arguments: &CompletionsArguments) -> ExitCode {
    if arguments.shell == CompletedShell::Bash {
        return print_text(BASH, ExitCode::SUCCESS);
    }
    let mut script = Vec::new();
    let written = arguments.shell.adapter().write_registration(
        VARIABLE,
        "chainsmith",
        "chainsmith",
        "chainsmith",
        &mut script,
    );
    match written {
        Ok(()) => print_text(&String::from_utf8_lossy(&script), ExitCode::SUCCESS),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Bash parts words at `:` and `=`, which names and flags contain: the line is parted at blanks instead.
const BASH: &str = r#"_chainsmith() {
    local line=${COMP_LINE:0:COMP_POINT} current head
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[-1]}
    local IFS=$'\013'
    COMPREPLY=($(CHAINSMITH_COMPLETE=bash _CLAP_IFS="$IFS" _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
        chainsmith -- "${words[@]}" 2>/dev/null))
    # Bash replaces what is behind the last : or =.
    head=${current%"${current##*[:=]}"}
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    [[ ${COMPREPLY-} == *[=/:] ]] && compopt -o nospace
}
complete -o bashdefault -o nosort -F _chainsmith chainsmith
"#;

/// Answers a shell that completes a line; `None` when no shell asks.
pub fn answer(argv: &[OsString], command: impl Fn(&[OsString]) -> Command) -> Option<ExitCode> {
    let shell = env::var(VARIABLE).ok()?;
    let shell = CompletedShell::from_str(&shell, true).ok()?;
    let words: Vec<OsString> = argv.iter().skip_while(|word| *word != "--").skip(1).cloned().collect();
    let mut command = with_names(command(&words), &words);
    let mut text = Vec::new();
    let folder = env::current_dir().ok();
    // A shell shows no errors: what cannot be completed has no candidates.
    let written = shell.adapter().write_complete(&mut command, words, folder.as_deref(), &mut text);
    let _ = written.and_then(|()| std::io::stdout().write_all(&text));
    Some(ExitCode::SUCCESS)
}

/// Arguments whose values are names, in all commands.
const NAMED: [(&str, NameForms); 4] = [
    ("service", NameForms::Services),
    ("to", NameForms::Destinations),
    ("from", NameForms::Sources),
    ("node", NameForms::Nodes),
];

/// Which names an argument takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameForms {
    Services,
    Destinations,
    Sources,
    Nodes,
}

fn with_names(command: Command, words: &[OsString]) -> Command {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    command.mut_subcommands(|subcommand| {
        let mut subcommand = subcommand;
        let arguments: Vec<clap::Id> =
            subcommand.get_arguments().map(|argument| argument.get_id().clone()).collect();
        // All of them, since a changed argument goes to the end of its command and positional ones count by order.
        for id in arguments {
            let forms = NAMED.iter().find(|(name, _)| id == *name).map(|(_, forms)| *forms);
            let words = words.clone();
            subcommand = subcommand.mut_arg(id, |argument| match forms {
                Some(forms) => argument
                    .add(ArgValueCompleter::new(move |current: &OsStr| candidates(&words, forms, current))),
                None => argument,
            });
        }
        subcommand
    })
}

fn candidates(words: &[String], forms: NameForms, current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy().into_owned();
    let (sender, names) = mpsc::channel();
    let words = words.to_vec();
    let read = move || {
        // Nobody waits any more after the time is up.
        let _ = sender.send(names_of(&words, forms, &current));
    };
    let is_started = thread::Builder::new().spawn(read).is_ok();
    let names = if is_started { names.recv_timeout(NAMES_TIMEOUT).unwrap_or_default() } else { Vec::new() };
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The names that begin with `current`; none when the source cannot be read.
fn names_of(words: &[String], forms: NameForms, current: &str) -> Vec<String> {
    let source = TypedSource::of(words);
    let mut names: Vec<String> = match forms {
        NameForms::Sources => {
            ["pod", "pod-elsewhere", "node", "external", "localhost"].map(str::to_owned).into()
        }
        _ => Vec::new(),
    };
    if let Some(inventory) = source.read() {
        let namespace = source.namespace.as_deref();
        let snapshot = inventory.snapshot_for("");
        match forms {
            NameForms::Nodes => names.extend(inventory.nodes().map(|node| node.name.to_string())),
            NameForms::Sources => names.extend(inventory.pods().keys().map(|pod| format!("pod/{pod}"))),
            NameForms::Services | NameForms::Destinations => {
                let prefix =
                    if forms == NameForms::Destinations || current.starts_with("svc/") { "svc/" } else { "" };
                for service in snapshot.services() {
                    let name = match namespace {
                        Some(namespace) if namespace == service.name.namespace() => {
                            service.name.name().to_owned()
                        }
                        _ => service.name.to_string(),
                    };
                    let name = format!("{prefix}{name}");
                    // Ports once the name is complete.
                    match current.strip_prefix(&name) {
                        Some(rest) if rest.starts_with(':') => {
                            names.extend(service.ports.iter().map(|port| format!("{name}:{}", port.port)));
                        }
                        _ => names.push(name),
                    }
                }
            }
        }
    }
    names.retain(|name| name.starts_with(current));
    names.truncate(MAX_NAMES);
    names
}

/// The source of objects on a line that may not be complete yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct TypedSource {
    objects: Vec<PathBuf>,
    is_cluster: bool,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: Option<String>,
}

impl TypedSource {
    /// Reads the flags of the source, wherever they stand on the line.
    fn of(words: &[String]) -> TypedSource {
        let is_plugin = words.first().is_some_and(|name| name.ends_with("kubectl-chainsmith"));
        let mut source = TypedSource::default();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let mut value = |inline: Option<String>| inline.or_else(|| words.next().cloned());
            match flag {
                "-f" | "--filename" => {
                    source.objects.extend(value(inline).map(PathBuf::from));
                    while let Some(more) = words.next_if(|word| !word.starts_with('-') && !word.is_empty()) {
                        source.objects.push(more.into());
                    }
                }
                "--cluster" => source.is_cluster = true,
                "--kubeconfig" => source.kubeconfig = value(inline).map(PathBuf::from),
                "--context" => source.context = value(inline),
                "-n" | "--namespace" => source.namespace = value(inline),
                _ => {}
            }
        }
        let has_flag = source.kubeconfig.is_some() || source.context.is_some();
        source.is_cluster |= has_flag || (is_plugin && source.objects.is_empty());
        source
    }

    fn read(&self) -> Option<Inventory> {
        if self.is_cluster {
            let cluster = ClusterArguments::at(self.kubeconfig.clone(), self.context.clone());
            return cluster.read_names().ok();
        }
        // Standard input is the terminal.
        let files: Vec<PathBuf> =
            self.objects.iter().filter(|path| path.as_os_str() != "-").cloned().collect();
        if files.is_empty() {
            return None;
        }
        objects::read(&files).ok().map(|objects| objects.inventory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_names_is_that_of_the_line() {
        let of = |line: &str| TypedSource::of(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let files = of("chainsmith trace -f a.yaml b --to svc/");
        assert_eq!(files.objects, [PathBuf::from("a.yaml"), "b".into()]);
        assert!(!files.is_cluster);
        let cluster = of("chainsmith explain --kubeconfig=x --context y -n shop d");
        assert!(cluster.is_cluster && cluster.context.as_deref() == Some("y"));
        assert_eq!((cluster.kubeconfig, cluster.namespace.as_deref()), (Some("x".into()), Some("shop")));
        assert!(of("kubectl-chainsmith explain ").is_cluster);
        assert!(!of("kubectl-chainsmith explain -f x ").is_cluster);
        assert_eq!(of("chainsmith explain -f"), TypedSource::default());
    }
}
