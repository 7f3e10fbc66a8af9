//! What a question is about: the rules of one node, and what is known of the objects and the host behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::compile;
use crate::config::Config;
use crate::iptables::{Interface, Ruleset};
use crate::model::host::{Host, InterfaceAddress};
use crate::model::{Inventory, Node, NotProxied, ObjectName, Pod, ServiceName, ServicePortName, Snapshot};
use crate::net::{Cidr, IpFamily, PerFamily};
use crate::policy::Place;
use crate::rules::Settings;

/// One node, as far as it is known. At least one family has rules.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The rules of each family; `None` where they were not asked for or are not known.
    pub rulesets: PerFamily<Option<Ruleset>>,
    /// Where the rules come from.
    pub origin: RulesOrigin,
    /// The objects; `None` when only rules are known.
    pub cluster: Option<ClusterView>,
    /// The host.
    pub host: HostView,
}

/// Where rules come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulesOrigin {
    /// Made for objects: the desired rules.
    Objects,
    /// Text of `iptables-save`, by the name of its file (`-` for stdin).
    Text(String),
    /// The kernel of this machine.
    Live,
    /// A running agent: its desired rules, in the layout that is in force.
    Agent,
}

/// `desired rules`, `rules in web.save`, `rules in force`
impl fmt::Display for RulesOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RulesOrigin::Objects => f.write_str("desired rules"),
            RulesOrigin::Text(name) if name == "-" => f.write_str("rules from stdin"),
            RulesOrigin::Text(name) => write!(f, "rules in {name}"),
            RulesOrigin::Live => f.write_str("rules in force"),
            RulesOrigin::Agent => f.write_str("desired rules of the agent"),
        }
    }
}

/// The objects, from the point of view of one node.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// Services, EndpointSlices and the Node.
    pub snapshot: Arc<Snapshot>,
    /// The name of the node; empty if unknown.
    pub node_name: Arc<str>,
    /// All Nodes given, by name. An agent knows only its own.
    pub nodes: BTreeMap<Arc<str>, Node>,
    /// The Pods that are known, by name. No rule depends on them, and an agent knows none.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Inputs of rule generation other than Services and endpoints.
    pub settings: PerFamily<Settings>,
    /// Services that kube-proxy does not serve, which `snapshot` lacks; an agent knows none.
    pub not_proxied: BTreeMap<ServiceName, NotProxied>,
    /// Problems of objects, one line each.
    pub problems: Vec<String>,
    /// Quarantined service ports of each family, with the kernel's message; only an agent knows any.
    pub quarantined: PerFamily<BTreeMap<ServicePortName, String>>,
}

impl ClusterView {
    /// The objects of `inventory` as `node_name` sees them.
    pub fn new(config: &Config, inventory: &Inventory, node_name: &str, host: &Host) -> ClusterView {
        let snapshot = Arc::new(inventory.snapshot_for(node_name));
        let settings = |family| Settings::new(config, snapshot.node(), host, family);
        ClusterView {
            node_name: node_name.into(),
            nodes: inventory.nodes().map(|node| (node.name.clone(), node.clone())).collect(),
            pods: inventory.pods().clone(),
            settings: PerFamily { v4: settings(IpFamily::V4), v6: settings(IpFamily::V6) },
            not_proxied: inventory.not_proxied().clone(),
            problems: Vec::new(),
            quarantined: PerFamily::default(),
            snapshot,
        }
    }

    /// The node's place in the cluster.
    pub fn place(&self) -> Place<'_> {
        let zone = self.snapshot.node().and_then(|node| node.zone.as_deref());
        Place { node: &self.node_name, zone }
    }

    /// The desired rules of `family`.
    pub fn ruleset(&self, family: IpFamily) -> Ruleset {
        compile::ruleset(self.settings.get(family), &self.snapshot, self.place())
    }
}

/// What is known of the host's addresses and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    /// Addresses of the node, loopback included where known.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses by interface; empty if unknown.
    pub interfaces: Vec<InterfaceAddress>,
    /// The interface for each destination; the longest prefix counts.
    pub routes: Vec<(Cidr, Interface)>,
    /// Where this comes from.
    pub origin: HostOrigin,
}

/// Where facts about the host come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostOrigin {
    /// Nothing is known: stand-ins are used.
    #[default]
    Unknown,
    /// The addresses of the Node object, and loopback.
    Node,
    /// A host file.
    File,
    /// This machine.
    Live,
}

impl HostView {
    /// The host of a host file, or of the kernel.
    pub fn of_interfaces(interfaces: Vec<InterfaceAddress>, origin: HostOrigin) -> HostView {
        let routes = interfaces
            .iter()
            .filter_map(|entry| Some((Cidr::new(entry.ip, entry.length), Interface::new(&entry.interface)?)));
        HostView {
            addresses: interfaces.iter().map(|entry| entry.ip).collect(),
            routes: routes.collect(),
            interfaces,
            origin,
        }
    }

    /// The host of which only the Node's addresses are known.
    pub fn of_node(addresses: &[IpAddr]) -> HostView {
        let origin = if addresses.is_empty() { HostOrigin::Unknown } else { HostOrigin::Node };
        let host = Host::of_node(addresses);
        HostView { addresses: host.addresses.into_iter().collect(), origin, ..HostView::default() }
    }

    /// Its addresses of `family` other than loopback.
    pub fn own_addresses(&self, family: IpFamily) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().copied().filter(move |ip| IpFamily::of(*ip) == family && !ip.is_loopback())
    }
}

impl Subject {
    /// The desired rules of `families` for the objects of `cluster`.
    pub fn of_objects(cluster: ClusterView, host: HostView, families: &[IpFamily]) -> Subject {
        let mut rulesets = PerFamily::default();
        for family in families {
            *rulesets.get_mut(*family) = Some(cluster.ruleset(*family));
        }
        Subject { rulesets, origin: RulesOrigin::Objects, cluster: Some(cluster), host }
    }

    /// The families that have rules.
    pub fn families(&self) -> impl Iterator<Item = IpFamily> + '_ {
        IpFamily::BOTH.into_iter().filter(|family| self.rulesets.get(*family).is_some())
    }
}
