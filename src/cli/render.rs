//! `chainsmith render`: the rules of a node for objects in files.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::cluster_source::ClusterArguments;
use super::output::print_text;
use super::source::{NodeArguments, SourceArguments};
use super::{USAGE, print_error};
use crate::iptables::write;

/// Arguments of `render`.
#[derive(Debug, Args)]
pub struct RenderArguments {
    /// Services, EndpointSlices and Nodes: YAML or JSON files, folders of them, or - for stdin
    #[arg(short = 'f', long = "filename", value_name = "OBJECTS", num_args = 1..)]
    #[arg(required_unless_present_any = ["cluster", "kubeconfig", "context", "is_default"])]
    objects: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArguments,
    /// `save`: as iptables-save prints them; `restore`: an input for iptables-restore --noflush
    #[arg(long, default_value = "save")]
    format: RulesetFormat,
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RulesetFormat {
    Save,
    Restore,
}

/// Prints the rules. Exit status 1 when an object is malformed; the others are rendered.
pub fn main(arguments: &RenderArguments) -> ExitCode {
    let (text, problems) = match render(arguments) {
        Ok(rendered) => rendered,
        Err(error) => {
            print_error(format!("{error:#}"));
            return ExitCode::from(USAGE);
        }
    };
    problems.iter().for_each(print_error);
    print_text(&text, if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(arguments: &RenderArguments) -> anyhow::Result<(String, Vec<String>)> {
    let RenderArguments { node, .. } = arguments;
    if arguments.format == RulesetFormat::Restore && node.family.is_none() {
        bail!("--format restore needs --family: iptables-restore and ip6tables-restore take one family each");
    }
    let source = SourceArguments {
        objects: arguments.objects.clone(),
        cluster: arguments.cluster.clone(),
        node: node.clone(),
        ..SourceArguments::default()
    };
    let (objects, config, node) =
        source.read_objects(&[])?.context("no objects: give -f OBJECTS or --cluster")?;
    let (cluster, _) = node.cluster(&config, &objects.inventory)?;
    let mut text = String::new();
    for family in node.families() {
        if node.family.is_none() {
            text.push_str(&format!("# {}\n", family.lower()));
        }
        let ruleset = cluster.ruleset(family);
        text.push_str(&match arguments.format {
            RulesetFormat::Save => write::save(family, &ruleset),
            RulesetFormat::Restore => write::restore(family, &ruleset),
        });
    }
    Ok((text, objects.problems))
}
