//! `chainsmith diff`: two sets of rules, as text or by what happens to packets.

mod packet_changes;

use std::fmt;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, FromArgMatches};

use super::output::{OutputArguments, Plain, Screen, Style, styled};
use super::source::{self, NodeArguments, SourceArguments};
use super::{USAGE, print_error};
use crate::agent_socket::client;
use crate::config::DEFAULT_AGENT_SOCKET;
use crate::inspect::comparison::{self, ChainDiff, DiffMode, DiffReport, EditKind, FamilyDiff};
use crate::inspect::{HostOrigin, HostView, RulesOrigin, Subject};
use crate::iptables::replay;
use crate::net::{PerFamily, UnixAddress};

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArguments {
    /// The first: a file of iptables-save, of render or of input of iptables-restore; - for stdin;
    /// objects:PATH for the rules of a node for objects in files; live for the rules in force; cluster, or
    /// cluster:CONTEXT of the kubeconfig, for the rules of a node for the objects of a cluster; agent, or
    /// agent:ADDRESS of its Unix socket, for the desired rules of a running agent
    #[arg(value_name = "A")]
    before: RulesOperand,
    /// The second
    #[arg(value_name = "B")]
    after: RulesOperand,
    /// Compare what happens to packets, instead of chains and rules
    #[arg(long)]
    packets: bool,
    #[command(flatten)]
    node: NodeArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// One side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RulesOperand {
    /// Text of rules; `-` for stdin.
    Text(PathBuf),
    /// Objects, whose rules are rendered.
    Objects(PathBuf),
    /// The rules in force.
    Live,
    /// The objects of a cluster, whose rules are rendered; the context of the kubeconfig if not the current one.
    Cluster(Option<String>),
    /// The desired rules of a running agent.
    Agent(UnixAddress),
}

impl std::str::FromStr for RulesOperand {
    type Err = String;

    fn from_str(text: &str) -> Result<RulesOperand, String> {
        match (text.split_once(':'), text) {
            (Some((word @ ("objects" | "cluster" | "agent"), "")), _) => {
                Err(format!("a value is missing behind {word}:"))
            }
            (Some(("objects", path)), _) => Ok(RulesOperand::Objects(path.into())),
            (Some(("cluster", context)), _) => Ok(RulesOperand::Cluster(Some(context.to_owned()))),
            (Some(("agent", address)), _) => UnixAddress::parse(address).map(RulesOperand::Agent),
            (_, "") => Err("a file name is missing".to_owned()),
            (_, "live") => Ok(RulesOperand::Live),
            (_, "cluster") => Ok(RulesOperand::Cluster(None)),
            (_, "agent") => UnixAddress::parse(DEFAULT_AGENT_SOCKET).map(RulesOperand::Agent),
            _ => Ok(RulesOperand::Text(text.into())),
        }
    }
}

/// As on the command line.
impl fmt::Display for RulesOperand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RulesOperand::Text(path) if path.as_os_str() == "-" => f.write_str("stdin"),
            RulesOperand::Text(path) => write!(f, "{}", path.display()),
            RulesOperand::Objects(path) => write!(f, "objects:{}", path.display()),
            RulesOperand::Live => f.write_str("live"),
            RulesOperand::Cluster(None) => f.write_str("cluster"),
            RulesOperand::Cluster(Some(context)) => write!(f, "cluster:{context}"),
            RulesOperand::Agent(address) => write!(f, "agent:{address}"),
        }
    }
}

impl RulesOperand {
    fn load(&self, node: &NodeArguments) -> anyhow::Result<Subject> {
        let mut source = SourceArguments { node: node.clone(), ..SourceArguments::default() };
        match self {
            RulesOperand::Text(path) => source.rules = Some(path.clone()),
            RulesOperand::Objects(path) => source.objects = vec![path.clone()],
            RulesOperand::Live => source.live = true,
            RulesOperand::Cluster(context) => {
                let context = context.iter().map(|context| format!("--context={context}"));
                let words = ["diff".to_owned(), "--cluster".to_owned()].into_iter().chain(context);
                let command = SourceArguments::augment_args(clap::Command::new("diff"));
                let matches = command.try_get_matches_from(words)?;
                source =
                    SourceArguments { node: node.clone(), ..SourceArguments::from_arg_matches(&matches)? };
            }
            RulesOperand::Agent(address) => return of_agent(address, node),
        }
        source.load()
    }

    fn reads_stdin(&self) -> bool {
        matches!(self, RulesOperand::Text(path) | RulesOperand::Objects(path) if path.as_os_str() == "-")
    }
}

/// Prints what differs. Exit status 1 if something does, 2 if the command line is wrong or a side cannot be read.
pub fn main(arguments: &DiffArguments) -> ExitCode {
    match compare(arguments) {
        Ok(report) => {
            let status = if report.is_same { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            arguments.output.print_report("DiffReport", &report, status, |screen| draw(screen, &report))
        }
        Err(error) => {
            print_error(format!("{error:#}"));
            ExitCode::from(USAGE)
        }
    }
}

fn compare(arguments: &DiffArguments) -> anyhow::Result<DiffReport> {
    if arguments.before.reads_stdin() && arguments.after.reads_stdin() {
        anyhow::bail!("A and B are both -: stdin can be read once");
    }
    let before = load(&arguments.before, &arguments.node)?;
    let after = load(&arguments.after, &arguments.node)?;
    let n_threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mode = if arguments.packets { DiffMode::Packets { n_threads } } else { DiffMode::Text };
    let names = [&arguments.before, &arguments.after].map(ToString::to_string);
    let report = comparison::compare([(&names[0], &before), (&names[1], &after)], mode);
    if report.families.is_empty() {
        anyhow::bail!("A and B have no IP family in common: {}", report.notes.join("; "));
    }
    Ok(report)
}

fn load(operand: &RulesOperand, node: &NodeArguments) -> anyhow::Result<Subject> {
    let subject = operand.load(node)?;
    subject.cluster.iter().flat_map(|cluster| &cluster.problems).for_each(print_error);
    Ok(subject)
}

/// The desired rules of the agent at `address`.
fn of_agent(address: &UnixAddress, node: &NodeArguments) -> anyhow::Result<Subject> {
    let mut rulesets = PerFamily::default();
    for family in node.families() {
        let mut text = Vec::new();
        let path = format!("/v1/rules?family={}", family.lower());
        client::read(address, &path, &mut |piece| {
            text.extend_from_slice(piece);
            Ok(())
        })?;
        let text = String::from_utf8(text).context("the agent's rules are not text")?;
        // A family that the agent does not serve has no rules.
        if !text.is_empty() {
            let ruleset = replay::text(family, &text).context("cannot use the agent's rules")?;
            *rulesets.get_mut(family) = Some(ruleset);
        }
    }
    let host = match node.host_file()? {
        Some((_, interfaces)) => HostView::of_interfaces(interfaces, HostOrigin::File),
        None => source::live_host()?,
    };
    Ok(Subject { rulesets, origin: RulesOrigin::Agent, cluster: None, host })
}

/// Draws the report: a summary, then each chain, or what changes for each Service.
pub fn draw(screen: &mut Screen, report: &DiffReport) {
    let (before, after) = (format!("- {}", report.before), format!("+ {}", report.after));
    screen.line(styled(Style::Removed, before));
    screen.line(styled(Style::Added, after));
    report.notes.iter().for_each(|note| screen.line(styled(Style::Warning, note)));
    for family in &report.families {
        screen.gap();
        screen.line(styled(Style::Heading, summary(family)));
        family.chains.iter().for_each(|chain| draw_chain(screen, chain));
        if let Some(packets) = &family.packets {
            packet_changes::draw(screen, packets);
        }
    }
}

/// `ipv4: 3 chains differ, 1 Service: shop/db`
fn summary(family: &FamilyDiff) -> String {
    let name = &family.family;
    let n_chains = family.n_different_chains;
    let chains = match n_chains {
        0 => "no chain differs".to_owned(),
        1 => "1 chain differs".to_owned(),
        n => format!("{n} chains differ"),
    };
    let services = match &family.services[..] {
        [] => String::new(),
        [only] => format!(", 1 Service: {only}"),
        all => format!(", {} Services: {}", all.len(), listed(all, all.len())),
    };
    match &family.packets {
        None if n_chains == 0 => format!("{name}: same"),
        None => format!("{name}: {chains}{services}"),
        Some(packets) if packets.n_different == 0 => {
            let compared = if packets.n_sampled_destinations > 0 { " compared, a sample" } else { "" };
            format!("{name}: {chains}; same for all {} packets{compared}", packets.n_packets)
        }
        Some(packets) => format!(
            "{name}: {chains}{services}; {} of {} packets fare differently",
            packets.n_different, packets.n_packets
        ),
    }
}

/// `a, b, c and 12 more`, of `n` in all.
fn listed(names: &[String], n: usize) -> String {
    const MAX_LISTED: usize = 8;
    let shown = if names.len() == n && n <= MAX_LISTED + 1 { n } else { names.len().min(MAX_LISTED) };
    let list = names[..shown].join(", ");
    if n > shown { format!("{list} and {} more", n - shown) } else { list }
}

fn draw_chain(screen: &mut Screen, chain: &ChainDiff) {
    screen.gap();
    let style = match chain.edit {
        EditKind::Kept => Style::Name,
        EditKind::Added => Style::Added,
        EditKind::Removed => Style::Removed,
    };
    let count = |n: usize, what: &str| {
        (n > 0).then(|| format!("{n} {}{what}", if n == 1 { "rule " } else { "rules " }))
    };
    let whole = match chain.edit {
        EditKind::Kept => None,
        EditKind::Added => Some("new chain".to_owned()),
        EditKind::Removed => Some("chain removed".to_owned()),
    };
    let policy = chain.policies.as_ref().map(|[before, after]| format!("policy {before} -> {after}"));
    let counts = [whole, policy, count(chain.n_removed, "removed"), count(chain.n_added, "added")];
    let name = styled(style, format_args!("{} {}", chain.table, chain.chain));
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    screen.line(format_args!("{name} ({}): {}", Plain(&chain.label), counts.join(", ")));
    for (n, hunk) in chain.hunks.iter().enumerate() {
        if n > 0 {
            screen.line(styled(Style::Faint, "  ..."));
        }
        for line in hunk {
            screen.line(match line.edit {
                EditKind::Kept => format!("    {}", Plain(&line.rule)),
                EditKind::Added => styled(Style::Added, format_args!("  + {}", line.rule)),
                EditKind::Removed => styled(Style::Removed, format_args!("  - {}", line.rule)),
            });
        }
    }
}

#[cfg(test)]
mod tests;
