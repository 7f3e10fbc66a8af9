//! Where a command takes the rules and objects from that a question is about.
#![allow(clippy::disallowed_methods, reason = "reads the files that are named on the command line")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cluster_source::{self, ClusterArguments, ClusterContent, ClusterNeeds, ConfigMapPlace};
use super::objects::{self, Objects};
use super::print_error;
use crate::agent_socket::client;
use crate::config::{Config, DEFAULT_AGENT_SOCKET, RuleFlags};
use crate::inspect::{ClusterView, HostOrigin, HostView, RulesOrigin, Subject};
use crate::iptables::{Ruleset, parse, replay};
use crate::kernel::addrs;
use crate::kernel::programs;
use crate::kernel::{Backend, Iptables};
use crate::model::host::{Host, InterfaceAddress};
use crate::model::{Inventory, ObjectName, nearest};
use crate::net::{IpFamily, PerFamily, UnixAddress};

/// What shapes a node's rules beside the objects, and names the node.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArguments {
    /// Name of the Node [default: hostnameOverride, else the only Node among the objects]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Facts about the node: `interfaces: {NAME: [CIDR, ...]}`, `kernel: {nfacct: true, ...}`
    /// [default: the Node's addresses and loopback]
    #[arg(long, value_name = "FILE")]
    pub host: Option<PathBuf>,
    /// The IP family [default: both]
    #[arg(long, value_parser = PossibleValuesParser::new(["ipv4", "ipv6"]).map(ip_family))]
    pub family: Option<IpFamily>,
    /// Also print notes on objects that are legal, but for which no rule is made
    #[arg(short = 'v', long = "verbose")]
    pub is_verbose: bool,
    #[command(flatten)]
    pub flags: RuleFlags,
}

fn ip_family(name: String) -> IpFamily {
    if name == "ipv4" { IpFamily::V4 } else { IpFamily::V6 }
}

impl NodeArguments {
    /// The families asked for.
    pub fn families(&self) -> Vec<IpFamily> {
        IpFamily::BOTH.into_iter().filter(|family| self.family.is_none_or(|only| only == *family)).collect()
    }

    /// The configuration; prints its warnings.
    pub fn config(&self) -> anyhow::Result<Config> {
        let file = self.flags.0.config().map(|path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))
        });
        self.config_of(file.transpose()?.as_deref())
    }

    /// The configuration with this text of a file; prints its warnings.
    fn config_of(&self, file: Option<&str>) -> anyhow::Result<Config> {
        let (config, warnings) = Config::resolve(file, &self.flags.0)?;
        warnings.iter().for_each(print_error);
        Ok(config)
    }

    /// The host file, if one is given.
    pub fn host_file(&self) -> anyhow::Result<Option<(Host, Vec<InterfaceAddress>)>> {
        let Some(path) = &self.host else { return Ok(None) };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parsed = Host::parse_with_interfaces(&text);
        parsed.map(Some).with_context(|| format!("cannot use {}", path.display()))
    }

    /// The objects as the node sees them, and its host.
    pub fn cluster(&self, config: &Config, inventory: &Inventory) -> anyhow::Result<(ClusterView, HostView)> {
        let node_name = self.node_name(config, inventory)?;
        let node = inventory.nodes().find(|node| *node.name == *node_name);
        let addresses = node.map_or(&[][..], |node| &node.addresses);
        let (host, view) = match self.host_file()? {
            Some((host, interfaces)) => (host, HostView::of_interfaces(interfaces, HostOrigin::File)),
            None => (Host::of_node(addresses), HostView::of_node(addresses)),
        };
        Ok((ClusterView::new(config, inventory, &node_name, &host), view))
    }

    /// The name of the node; never this machine's name, on which the output must not depend.
    pub fn node_name(&self, config: &Config, inventory: &Inventory) -> anyhow::Result<String> {
        let names: Vec<&str> = inventory.nodes().map(|node| &*node.name).collect();
        let (given, setting) = match (&self.node, &config.hostname_override) {
            (Some(name), _) => (name, "--node"),
            (None, Some(name)) => (name, "hostnameOverride"),
            (None, None) => return only_node(&names),
        };
        // Without any Node, the name is all that rules need.
        if names.is_empty() || names.contains(&given.as_str()) {
            return Ok(given.clone());
        }
        match nearest(given, names.iter().copied()) {
            Some(near) => bail!("{setting}: there is no Node {given:?}; did you mean {near:?}?"),
            None => bail!("{setting}: there is no Node {given:?}; the Nodes are {}", listed(&names)),
        }
    }
}

fn only_node(names: &[&str]) -> anyhow::Result<String> {
    match names {
        [only] => Ok((*only).to_owned()),
        [] => bail!("there is no Node among the objects; name one with --node"),
        _ => bail!("there are several Nodes: {}; name one with --node", listed(names)),
    }
}

/// Most names that a message lists.
const MAX_LISTED: usize = 20;

/// Names for a message, joined; of many the first.
pub fn listed(names: &[&str]) -> String {
    let first = names[..names.len().min(MAX_LISTED)].join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => first,
        n_more => format!("{first} and {n_more} more"),
    }
}

/// The source of rules and objects: rules from one of RULES and --live, objects from -f; with objects alone the rules are
/// the desired ones.
#[derive(Clone, Debug, Default, Args)]
pub struct SourceArguments {
    /// Rules: output of iptables-save (or of `render`), or - for stdin
    #[arg(value_name = "RULES", conflicts_with = "live")]
    pub rules: Option<PathBuf>,
    /// Services, EndpointSlices and Nodes: YAML or JSON files, folders of them, or - for stdin
    #[arg(short = 'f', long = "filename", value_name = "OBJECTS", num_args = 1..)]
    pub objects: Vec<PathBuf>,
    /// The rules in force on this machine
    #[arg(long)]
    pub live: bool,
    /// A running agent on this machine, at its Unix socket @NAME or /PATH [default: @chainsmith; used where no source
    /// is given and an agent answers there]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = DEFAULT_AGENT_SOCKET, value_parser = UnixAddress::parse)]
    #[arg(conflicts_with_all = ["live", "rules", "objects", "node", "host"])]
    pub agent: Option<UnixAddress>,
    #[command(flatten)]
    pub cluster: ClusterArguments,
    #[command(flatten)]
    pub node: NodeArguments,
}

impl SourceArguments {
    /// The agent that is asked: the one given, else the default one where no other source is given and it answers.
    pub fn agent(&self) -> Option<UnixAddress> {
        let has_other = self.live || self.rules.is_some() || !self.objects.is_empty() || self.is_cluster();
        if self.agent.is_some() || has_other {
            return self.agent.clone();
        }
        UnixAddress::parse(DEFAULT_AGENT_SOCKET).ok().filter(client::is_listening)
    }

    /// The report of this `kind` on `question`: of the agent, asked at `path`, or made by `local` from another source.
    pub fn report<Q: Serialize, R: DeserializeOwned>(
        &self,
        kind: &str,
        path: &str,
        question: &Q,
        local: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<R> {
        match self.agent() {
            Some(address) => {
                let family = self.node.family.map(|family| format!("?family={}", family.lower()));
                client::ask(&address, kind, &format!("{path}{}", family.unwrap_or_default()), question)
            }
            None => local(),
        }
    }

    /// Whether the objects come from a cluster.
    fn is_cluster(&self) -> bool {
        let has_other = self.rules.is_some() || self.live || !self.objects.is_empty();
        self.cluster.is_asked() || (self.cluster.is_default() && !has_other)
    }

    /// `svc/NAME...` and `pod/NAME...` with the namespace of -n, of the context, or `default`.
    pub fn qualify(&self, name: &str) -> anyhow::Result<String> {
        let is_qualified = cluster_source::qualify(name, "", false) == name;
        Ok(match is_qualified {
            true => name.to_owned(),
            false => cluster_source::qualify(name, &self.cluster.namespace(self.is_cluster())?, false),
        })
    }

    /// As [`SourceArguments::qualify`], for the name of a Service: also `NAME...`.
    pub fn qualify_service(&self, name: &str) -> anyhow::Result<String> {
        let is_qualified = cluster_source::qualify(name, "", true) == name;
        Ok(match is_qualified {
            true => name.to_owned(),
            false => cluster_source::qualify(name, &self.cluster.namespace(self.is_cluster())?, true),
        })
    }

    /// The objects of --cluster or -f, and the configuration; `None` without objects. The node is by default that of
    /// the first of `pods` that has one.
    pub fn read_objects(
        &self,
        pods: &[ObjectName],
    ) -> anyhow::Result<Option<(Objects, Config, NodeArguments)>> {
        let mut node = self.node.clone();
        let (objects, config) = if self.is_cluster() {
            let path = self.node.flags.0.config();
            let config_map = path.and_then(|path| ConfigMapPlace::parse(path.to_str()?));
            let config = if config_map.is_none() { Some(self.node.config()?) } else { None };
            let name = self.node.node.clone();
            let name = name.or_else(|| config.as_ref().and_then(|config| config.hostname_override.clone()));
            let needs = ClusterNeeds { node: name.as_deref(), pods, config_map: config_map.as_ref() };
            let ClusterContent { objects, config: text } = self.cluster.read(needs)?;
            let config = match config {
                Some(config) => config,
                // The configuration of all nodes: it names none.
                None => self.node.config_of(text.as_deref())?,
            };
            (objects, config)
        } else if !self.objects.is_empty() {
            let config = self.node.config()?;
            (objects::read(&self.objects)?, config)
        } else {
            return Ok(None);
        };
        objects.print_notes(self.node.is_verbose);
        if node.node.is_none() && config.hostname_override.is_none() {
            let of_pod = pods.iter().find_map(|pod| objects.inventory.pods().get(pod)?.node.clone());
            node.node = of_pod.map(|name| name.to_string());
        }
        Ok(Some((objects, config, node)))
    }

    /// Reads the source; prints problems of objects. An error is about the command line or an unreadable file.
    pub fn load(&self) -> anyhow::Result<Subject> {
        self.load_for(&[])
    }

    /// Reads the source for a question about `names`: with the Pods that they name, and the node of the first of these
    /// where none is given.
    pub fn load_for(&self, names: &[&str]) -> anyhow::Result<Subject> {
        let families = self.node.families();
        let (mut cluster, mut host) = (None, HostView::default());
        if let Some((objects, config, node)) = self.read_objects(&cluster_source::pods_of(names))? {
            let (mut view, of_node) = node.cluster(&config, &objects.inventory)?;
            view.problems = objects.problems;
            (cluster, host) = (Some(view), of_node);
        } else if let Some((_, interfaces)) = self.node.host_file()? {
            host = HostView::of_interfaces(interfaces, HostOrigin::File);
        }
        if self.live {
            if host.origin != HostOrigin::File {
                host = live_host()?;
            }
            return Ok(Subject {
                rulesets: live_rules(&families, live_backend())?,
                origin: RulesOrigin::Live,
                cluster,
                host,
            });
        }
        if let Some(path) = &self.rules {
            let rulesets = read_rules(path, &families)?;
            let origin = RulesOrigin::Text(path.display().to_string());
            return Ok(Subject { rulesets, origin, cluster, host });
        }
        match cluster {
            Some(cluster) => Ok(Subject::of_objects(cluster, host, &families)),
            None => {
                bail!(
                    "no source: give RULES (a file of iptables-save), -f OBJECTS, --cluster, --live, or --agent"
                )
            }
        }
    }
}

/// The back-end that this node uses, as far as that shows; `None`: that of the system's default programs.
pub fn live_backend() -> Option<Backend> {
    programs::detect_backend(&[
        crate::rules::names::KUBE_IPTABLES_HINT,
        crate::rules::names::KUBE_KUBELET_CANARY,
        crate::rules::names::KUBE_PROXY_CANARY,
    ])
}

/// The rules in force in `families`. A family whose tables do not exist has no rules.
pub fn live_rules(
    families: &[IpFamily],
    backend: Option<Backend>,
) -> anyhow::Result<PerFamily<Option<Ruleset>>> {
    let mut rulesets = PerFamily::default();
    for family in families {
        let mut kernel = match programs::open(*family, backend) {
            Ok(kernel) => kernel,
            // A machine without IPv6 has no such tables.
            Err(_)
                if *family == IpFamily::V6
                    && families.len() > 1
                    && programs::is_ipv6_disabled(Path::new("/proc")) =>
            {
                continue;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read the {family} rules in force"));
            }
        };
        let mut reader = parse::SaveParser::new(*family);
        let mut outcome = Ok(());
        for table in crate::iptables::Table::ALL {
            kernel.save(table, &mut |line| {
                if outcome.is_ok() {
                    outcome = reader.line(line);
                }
            })?;
        }
        outcome.with_context(|| format!("cannot read the {family} rules in force"))?;
        *rulesets.get_mut(*family) = Some(reader.finish());
    }
    Ok(rulesets)
}

/// The addresses and routes of this machine.
pub fn live_host() -> anyhow::Result<HostView> {
    let interfaces = addrs::interfaces().context("cannot list the addresses of the interfaces")?;
    let routes = addrs::routes().context("cannot list the routes")?;
    let addresses: BTreeSet<_> = interfaces.iter().map(|entry| entry.ip).collect();
    Ok(HostView { addresses, interfaces, routes, origin: HostOrigin::Live })
}

/// The text of the file at `path`, or of stdin for `-`.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    match path.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin().lock()).context("cannot read stdin"),
        false => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Reads rules of both families from text: output of iptables-save, ip6tables-save or `render`, or inputs of
/// iptables-restore (see [`replay::families`]).
pub fn read_rules(path: &Path, families: &[IpFamily]) -> anyhow::Result<PerFamily<Option<Ruleset>>> {
    replay::families(&read_text(path)?, families).with_context(|| format!("cannot use {}", path.display()))
}
