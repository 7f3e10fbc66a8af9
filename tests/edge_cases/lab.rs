//! A node of a small cluster in memory: objects as short YAML, packets as short text.
//!
//! The node is `node-1` (192.0.2.1, 2001:db8::1, zone-a, pods in 10.180.1.0/24 behind `cbr0`); pods of all
//! nodes are in 10.180.0.0/16 and fd00:10:180::/48.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use chainsmith::compile;
use chainsmith::config::{Config, Flags};
use chainsmith::iptables::trace::{
    self, Branch, Delivery, Origin, Packet, PacketVerdict, RecentLists, TracedNode,
};
use chainsmith::iptables::{CtStates, Ruleset, Table, parse, write};
use chainsmith::model::decode::{Interner, manifest};
use chainsmith::model::host::Host;
use chainsmith::model::{Inventory, ObjectName, ServicePortName, Snapshot};
use chainsmith::net::{Cidr, IpFamily, Protocol};
use chainsmith::policy::Place;
use chainsmith::rules::Settings;
use chainsmith::rules::names::{PortChain, PortNames};

pub use IpFamily::{V4, V6};

pub use crate::objects::*;

const HOST: &str = "interfaces: {eth0: [192.0.2.1/24, '2001:db8::1/64'], eth1: [198.18.0.1/24], lo: [127.0.0.1/8, '::1/128']}";

/// The node with some objects in its cluster.
#[derive(Clone)]
pub struct Lab {
    objects: Vec<String>,
    flags: BTreeMap<String, String>,
    pub node: String,
    pub host: Host,
    pub recent: RecentLists,
    foreign: String,
}

pub fn lab(objects: impl IntoIterator<Item = String>) -> Lab {
    let cidrs = "10.180.0.0/16,fd00:10:180::/48";
    Lab {
        objects: objects.into_iter().collect(),
        flags: BTreeMap::from([("cluster-cidr".to_owned(), cidrs.to_owned())]),
        node: NODE.to_owned(),
        host: Host::parse(HOST).unwrap(),
        recent: RecentLists::default(),
        foreign: String::new(),
    }
}

impl Lab {
    /// The same lab with another value of a flag.
    pub fn flag(mut self, name: &str, value: &str) -> Lab {
        self.flags.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn without_flag(mut self, name: &str) -> Lab {
        self.flags.remove(name);
        self
    }

    /// The same lab with another Node object; with none when `text` is empty.
    pub fn on(mut self, text: &str) -> Lab {
        self.node = text.to_owned();
        self
    }

    /// The same lab without nfacct counters in the kernel.
    pub fn without_counters(mut self) -> Lab {
        self.host.kernel.counters = Default::default();
        self
    }

    /// The same lab with lines of `iptables-save` before ours in their chains, or with policies.
    pub fn beside(mut self, foreign: &str) -> Lab {
        self.foreign = foreign.to_owned();
        self
    }

    pub fn config(&self) -> Config {
        let flags = self.flags.iter().fold(Flags::default(), |flags, (name, text)| flags.with(name, text));
        Config::resolve(None, &flags).unwrap().0
    }

    /// The objects and their problems.
    pub fn read(&self) -> (Snapshot, Vec<String>) {
        let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
        let mut problems = Vec::new();
        for text in self.objects.iter().chain([&self.node]) {
            let outcome = manifest::read(text.as_bytes(), "test", &mut |object| {
                problems.extend(inventory.add(&object, &mut interner).iter().map(ToString::to_string));
            });
            assert_eq!(outcome.problems, [], "{text}");
        }
        (inventory.snapshot_for("node-1"), problems)
    }

    pub fn settings(&self, snapshot: &Snapshot, family: IpFamily) -> Settings {
        Settings::new(&self.config(), snapshot.node(), &self.host, family)
    }

    pub fn ruleset(&self, family: IpFamily) -> Ruleset {
        let (snapshot, _) = self.read();
        compile::ruleset(&self.settings(&snapshot, family), &snapshot, place(&snapshot))
    }

    /// The rules as `iptables-save` prints them.
    pub fn save(&self, family: IpFamily) -> String {
        write::save(family, &self.ruleset(family))
    }

    /// Our rules with the foreign ones.
    fn in_force(&self, family: IpFamily) -> Ruleset {
        let mut ruleset = self.ruleset(family);
        for (table, chains) in parse::save(family, &self.foreign).unwrap().tables {
            for (name, foreign) in chains {
                let chain = ruleset.chain_mut(table, name);
                chain.policy = foreign.policy.or(chain.policy);
                chain.rules.splice(0..0, foreign.rules);
            }
        }
        ruleset
    }

    fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.host.addresses.iter().copied().collect()
    }

    pub fn trace(&self, packet: &Packet) -> Vec<Branch> {
        let ruleset = self.in_force(IpFamily::of(packet.destination.ip()));
        let node = TracedNode { ruleset: &ruleset, local_addresses: &self.local_addresses(), routes: &[] };
        trace::trace(&node, packet, &self.recent)
    }

    /// A packet written as `<from>[%<interface>] -> <ip>:<port>[/udp|/sctp]`. `<from>` is an address,
    /// or `pod` (of this node), `elsewhere` (a pod of another node), `node`, `localhost`, `outside`.
    pub fn packet(&self, text: &str) -> Packet {
        let (from, to) = text.split_once(" -> ").expect("a packet is <from> -> <to>");
        let (to, protocol) = to.split_once('/').unwrap_or((to, "tcp"));
        let destination: SocketAddr = to.parse().expect("a destination is <ip>:<port>");
        let (from, interface) = from.split_once('%').map_or((from, None), |(from, name)| (from, Some(name)));
        let is_v4 = destination.is_ipv4();
        let address = match from {
            "pod" => {
                if is_v4 {
                    "10.180.1.99"
                } else {
                    "fd00:10:180:1::99"
                }
            }
            "elsewhere" => {
                if is_v4 {
                    "10.180.2.99"
                } else {
                    "fd00:10:180:2::99"
                }
            }
            "node" => {
                if is_v4 {
                    "192.0.2.1"
                } else {
                    "2001:db8::1"
                }
            }
            "localhost" => {
                if is_v4 {
                    "127.0.0.1"
                } else {
                    "::1"
                }
            }
            "outside" => {
                if is_v4 {
                    "198.51.100.9"
                } else {
                    "2001:db8:9::9"
                }
            }
            address => address,
        };
        let source: IpAddr = address.parse().expect("a source is an address or one of the words");
        let pods = ["10.180.1.0/24", "fd00:10:180:1::/64"].map(|cidr| Cidr::parse(cidr).unwrap());
        let is_pod = pods.iter().any(|cidr| cidr.contains(source));
        let is_own = source.is_loopback() || self.local_addresses().contains(&source);
        let origin = match interface {
            Some(name) => Origin::Arrives(Some(name.into())),
            None if is_own => Origin::Node,
            None => Origin::Arrives(Some(if is_pod { "cbr0" } else { "eth0" }.into())),
        };
        let protocol = Protocol::from_iptables(protocol).expect("a protocol");
        Packet::new(origin, SocketAddr::new(source, 40_000), destination, protocol)
    }

    /// Checks the fate of each packet. `expected` is `rejected`, `dropped`, `untouched`, or the endpoints
    /// in alphabetical order, joined by commas, with the prefix `masqueraded ` for those whose clients get
    /// the node's address; `;` separates the two kinds. Endpoints of one client must have equal shares.
    #[track_caller]
    pub fn check(&self, packets: &[(&str, &str)]) {
        for (text, expected) in packets {
            let branches = self.trace(&self.packet(text));
            assert_eq!(fates_text(&branches), *expected, "{text}");
            let targets = branches.iter().filter(|branch| branch.outcome.dnat.is_some());
            let n = targets.clone().count() as f64;
            for branch in targets {
                assert!((branch.weight.to_f64() * n - 1.0).abs() < 1e-7 * n, "{text}: {branch:?}");
            }
        }
    }

    /// As [`Lab::check`], for a packet of a connection in another state.
    #[track_caller]
    pub fn check_in_state(&self, state: CtStates, text: &str, expected: &str) {
        let packet = Packet { state, ..self.packet(text) };
        assert_eq!(fates_text(&self.trace(&packet)), expected, "{text}");
    }

    /// The lines of `table` that begin with `-A <chain>`, without that prefix.
    pub fn rules(&self, family: IpFamily, table: Table, chain: &str) -> Vec<String> {
        let mut ruleset = self.ruleset(family);
        ruleset.tables.retain(|name, _| *name == table);
        let prefix = format!("-A {chain} ");
        let save = write::save(family, &ruleset);
        save.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// IPv4 rules of a nat chain.
    pub fn nat(&self, chain: &str) -> Vec<String> {
        self.rules(V4, Table::Nat, chain)
    }

    /// IPv4 rules of a filter chain.
    pub fn filter(&self, chain: &str) -> Vec<String> {
        self.rules(V4, Table::Filter, chain)
    }

    /// The nat chains with this prefix.
    pub fn chains(&self, family: IpFamily, prefix: &str) -> Vec<String> {
        let ruleset = self.ruleset(family);
        let names = ruleset.tables[&Table::Nat].keys().map(ToString::to_string);
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Chains of nat that belong to service ports.
    pub fn port_chains(&self, family: IpFamily) -> Vec<String> {
        ["KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-SVC-", "KUBE-SVL-"]
            .iter()
            .flat_map(|prefix| self.chains(family, prefix))
            .collect()
    }

    /// Asserts that the rules are those of a cluster without Services.
    #[track_caller]
    pub fn check_no_rules(&self, family: IpFamily) {
        let nothing = Lab { objects: Vec::new(), ..self.clone() };
        assert_eq!(self.save(family), nothing.save(family));
    }

    /// Asserts that the objects have exactly this problem.
    #[track_caller]
    pub fn check_problem(&self, expected: &str) {
        let (_, problems) = self.read();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
    }
}

pub fn place(snapshot: &Snapshot) -> Place<'_> {
    Place { node: "node-1", zone: snapshot.node().and_then(|node| node.zone.as_deref()) }
}

/// The fates of a packet, in the form of [`Lab::check`].
pub fn fates_text(branches: &[Branch]) -> String {
    let mut plain = BTreeSet::new();
    let mut masqueraded = BTreeSet::new();
    for Branch { outcome, .. } in branches {
        let text = match (outcome.verdict, outcome.dnat) {
            (PacketVerdict::Accepted(_), Some(_)) => outcome.destination.to_string(),
            (PacketVerdict::Accepted(Delivery::Local | Delivery::Forwarded), None) => "untouched".to_owned(),
            (PacketVerdict::Dropped, _) => "dropped".to_owned(),
            (PacketVerdict::Rejected, _) => "rejected".to_owned(),
            (PacketVerdict::Unknown(step), _) => format!("unknown at {step}"),
        };
        let is_through = matches!(outcome.verdict, PacketVerdict::Accepted(_));
        if is_through && outcome.masquerade {
            masqueraded.insert(text)
        } else {
            plain.insert(text)
        };
    }
    let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
    let mut parts = Vec::new();
    if !plain.is_empty() {
        parts.push(list(plain));
    }
    if !masqueraded.is_empty() {
        parts.push(format!("masqueraded {}", list(masqueraded)));
    }
    parts.join("; ")
}

/// The chain of `kind` of the service port `<namespace>/<name>:<port>/<protocol>`.
pub fn chain(kind: PortChain, port: &str) -> String {
    names(port).chain(kind).to_string()
}

/// The chain of an endpoint.
pub fn sep(port: &str, endpoint: &str) -> String {
    names(port).endpoint(endpoint).to_string()
}

fn names(text: &str) -> PortNames {
    let (text, protocol) =
        text.rsplit_once('/').filter(|(text, _)| text.contains('/')).unwrap_or((text, "tcp"));
    let (service, port) = text.split_once(':').unwrap_or((text, ""));
    let (namespace, name) = service.split_once('/').unwrap();
    let protocol = Protocol::from_iptables(protocol).unwrap();
    PortNames::new(&ServicePortName {
        service: ObjectName::new(namespace, name),
        port: port.into(),
        protocol,
    })
}

pub fn svc() -> String {
    chain(PortChain::Cluster, "default/web:p")
}

pub fn svl() -> String {
    chain(PortChain::Local, "default/web:p")
}

pub fn ext() -> String {
    chain(PortChain::External, "default/web:p")
}

pub fn fw() -> String {
    chain(PortChain::Firewall, "default/web:p")
}
