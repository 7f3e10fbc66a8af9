//! `chainsmith render`: the rules of a node for objects in files.
#![allow(clippy::disallowed_methods, reason = "reads the files that are named on the command line")]

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use super::objects::{self, Objects};
use super::{USAGE, print_error};
use crate::compile;
use crate::config::{Config, RuleFlags};
use crate::iptables::write;
use crate::model::Inventory;
use crate::model::host::Host;
use crate::net::IpFamily;
use crate::policy::Place;
use crate::rules::Settings;

/// Arguments of `render`.
#[derive(Debug, Args)]
pub struct RenderArguments {
    /// Services, EndpointSlices and Nodes: YAML or JSON files, folders of them, or - for stdin
    #[arg(short = 'f', long = "filename", value_name = "OBJECTS", required = true, num_args = 1..)]
    objects: Vec<PathBuf>,
    /// Name of the Node [default: hostnameOverride, else the only Node among OBJECTS]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Facts about the node: `interfaces: {NAME: [CIDR, ...]}`, `kernel: {nfacct: true, ...}`
    /// [default: the Node's addresses and loopback]
    #[arg(long, value_name = "FILE")]
    host: Option<PathBuf>,
    /// The IP family [default: both, one after the other]
    #[arg(long, value_parser = PossibleValuesParser::new(["ipv4", "ipv6"]).map(ip_family))]
    family: Option<IpFamily>,
    /// `save`: as iptables-save prints them; `restore`: an input for iptables-restore --noflush
    #[arg(long, default_value = "save")]
    format: RulesetFormat,
    #[command(flatten)]
    flags: RuleFlags,
}

fn ip_family(name: String) -> IpFamily {
    if name == "ipv4" { IpFamily::V4 } else { IpFamily::V6 }
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
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // `| head` reads only the beginning; that is no error.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            print_error(format!("cannot write: {error}"));
            ExitCode::FAILURE
        }
        _ if problems.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn render(arguments: &RenderArguments) -> anyhow::Result<(String, Vec<String>)> {
    let file = arguments.flags.0.config().map(|path| {
        std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))
    });
    let (config, warnings) = Config::resolve(file.transpose()?.as_deref(), &arguments.flags.0)?;
    warnings.iter().for_each(print_error);
    if arguments.format == RulesetFormat::Restore && arguments.family.is_none() {
        bail!("--format restore needs --family: iptables-restore and ip6tables-restore take one family each");
    }
    let Objects { inventory, problems, .. } = objects::read(&arguments.objects)?;
    let node_name = node_name(arguments, &config, &inventory)?;
    let snapshot = inventory.snapshot_for(&node_name);
    let host = match &arguments.host {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Host::parse(&text).with_context(|| format!("cannot use {}", path.display()))?
        }
        None => Host::of_node(snapshot.node().map_or(&[], |node| &node.addresses)),
    };
    let place = Place { node: &node_name, zone: snapshot.node().and_then(|node| node.zone.as_deref()) };
    let mut text = String::new();
    for family in IpFamily::BOTH {
        if arguments.family.is_some_and(|only| only != family) {
            continue;
        }
        if arguments.family.is_none() {
            text.push_str(&format!("# {}\n", family.lower()));
        }
        let ruleset =
            compile::ruleset(&Settings::new(&config, snapshot.node(), &host, family), &snapshot, place);
        text.push_str(&match arguments.format {
            RulesetFormat::Save => write::save(family, &ruleset),
            RulesetFormat::Restore => write::restore(family, &ruleset),
        });
    }
    Ok((text, problems))
}

/// The name of the Node whose rules are printed; never this machine's name, on which the output must not depend.
fn node_name(arguments: &RenderArguments, config: &Config, inventory: &Inventory) -> anyhow::Result<String> {
    if let Some(name) = arguments.node.as_ref().or(config.hostname_override.as_ref()) {
        return Ok(name.clone());
    }
    let names: Vec<&str> = inventory.nodes().map(|node| &*node.name).collect();
    match names[..] {
        [only] => Ok(only.to_owned()),
        [] => bail!("there is no Node among the objects; name one with --node"),
        _ => bail!("there are several Nodes: {}; name one with --node", names.join(", ")),
    }
}
