//! What chains are for: the service port that a chain belongs to, and its part in the path of a packet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use super::Subject;
use crate::iptables::{ChainName, Rule, Ruleset, Table, Target};
use crate::model::ServicePortName;
use crate::net::IpFamily;
use crate::rules::names::{PortChain, PortNames};
use crate::rules::ownership::ChainOwner;

/// What a chain is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLabel {
    /// The service port that it belongs to, `<ns>/<name>[:<port>]`; `None` for shared and foreign chains, or if
    /// unknown.
    pub service_port: Option<String>,
    /// Its part in the path of a packet.
    pub role: ChainRole,
}

/// The part of a chain in the path of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainRole {
    /// A built-in chain.
    BuiltIn,
    /// One of the chains that every node has.
    Fixed,
    /// Leads from an address or a node port to a service port.
    Dispatch,
    /// One endpoint; `None` if the chain has no DNAT rule.
    Endpoint(Option<SocketAddr>),
    /// Endpoints of this node.
    Local,
    /// Endpoints of all nodes.
    Cluster,
    /// Traffic from outside.
    External,
    /// Source ranges of a load balancer.
    Firewall,
    /// A group of endpoints.
    Group,
    /// The agent's canary.
    Canary,
    /// Shared with the kubelet.
    Kubelet,
    /// A chain of another mode of kube-proxy.
    OtherMode,
    /// A chain of another program.
    Foreign,
}

/// `shop/db: endpoints of all nodes`
impl fmt::Display for ChainLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service_port {
            Some(name) => write!(f, "{name}: {}", self.role),
            None => write!(f, "{}", self.role),
        }
    }
}

impl fmt::Display for ChainRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChainRole::BuiltIn => "built-in",
            ChainRole::Fixed => "all Services",
            ChainRole::Dispatch => "dispatch",
            ChainRole::Endpoint(Some(address)) => return write!(f, "endpoint {address}"),
            ChainRole::Endpoint(None) => "endpoint",
            ChainRole::Local => "endpoints of this node",
            ChainRole::Cluster => "endpoints of all nodes",
            ChainRole::External => "traffic from outside",
            ChainRole::Firewall => "source ranges",
            ChainRole::Group => "group of endpoints",
            ChainRole::Canary => "canary",
            ChainRole::Kubelet => "shared with the kubelet",
            ChainRole::OtherMode => "another mode of kube-proxy",
            ChainRole::Foreign => "another program",
        })
    }
}

/// The labels of the chains of one family.
#[derive(Clone, Debug, Default)]
pub struct ChainLabels {
    /// The service port by the hash that the names of its chains have in common.
    ports: BTreeMap<String, String>,
    /// The hash of the service port by its endpoint chain.
    endpoints: BTreeMap<ChainName, String>,
}

impl ChainLabels {
    /// The labels for `family` of `subject`: from its objects, and for chains of no known Service from the comments
    /// of rules.
    pub fn of(subject: &Subject, family: IpFamily) -> ChainLabels {
        let mut labels = ChainLabels::default();
        if let Some(ruleset) = subject.rulesets.get(family) {
            labels.add_rules(ruleset);
        }
        if let Some(cluster) = &subject.cluster {
            let services = cluster.snapshot.services();
            services
                .flat_map(|service| service.ports_in(family))
                .for_each(|port| labels.add_port(&port.name()));
        }
        labels
    }

    /// The label of the chain `name` of `table`, whose rules are `rules`.
    pub fn label(&self, table: Table, name: &ChainName, rules: &[Rule]) -> ChainLabel {
        let role = match ChainOwner::of(table, name) {
            ChainOwner::Fixed => ChainRole::Fixed,
            ChainOwner::ServicePort(kind) => match kind {
                PortChain::Endpoint => ChainRole::Endpoint(rules.iter().find_map(dnat)),
                PortChain::Local => ChainRole::Local,
                PortChain::Cluster => ChainRole::Cluster,
                PortChain::External => ChainRole::External,
                PortChain::Firewall => ChainRole::Firewall,
            },
            ChainOwner::Group => ChainRole::Group,
            ChainOwner::Dispatch => ChainRole::Dispatch,
            ChainOwner::Canary => ChainRole::Canary,
            ChainOwner::SharedWithKubelet => ChainRole::Kubelet,
            ChainOwner::OtherMode => ChainRole::OtherMode,
            ChainOwner::Foreign if table.built_in().contains(&name.as_str()) => ChainRole::BuiltIn,
            ChainOwner::Foreign => ChainRole::Foreign,
        };
        ChainLabel { service_port: self.service_port(name).map(str::to_owned), role }
    }

    /// The service port that the chain `name` belongs to, `<ns>/<name>[:<port>]`.
    pub fn service_port(&self, name: &ChainName) -> Option<&str> {
        let hash = self.endpoints.get(name).map(String::as_str).or_else(|| hash_of(name))?;
        self.ports.get(hash).map(String::as_str)
    }

    fn add_port(&mut self, name: &ServicePortName) {
        let names = PortNames::new(name);
        if let Some(hash) = hash_of(&names.chain(PortChain::Cluster)) {
            self.ports.insert(hash.to_owned(), name.to_string());
        }
    }

    fn add_rules(&mut self, ruleset: &Ruleset) {
        let Some(nat) = ruleset.tables.get(&Table::Nat) else { return };
        for (name, chain) in nat {
            for (callee, rule) in chain.rules.iter().filter_map(|rule| Some((rule.callee()?, rule))) {
                let is_endpoint =
                    ChainOwner::of(Table::Nat, &callee) == ChainOwner::ServicePort(PortChain::Endpoint);
                match (hash_of(name), hash_of(&callee)) {
                    (Some(hash), _) if is_endpoint => {
                        self.endpoints.insert(callee, hash.to_owned());
                    }
                    (_, Some(hash)) if !is_endpoint && !self.ports.contains_key(hash) => {
                        if let Some(port) = rule.comment().and_then(service_port_in) {
                            self.ports.insert(hash.to_owned(), port.to_owned());
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The hash in the name of a service port's chain; endpoint chains have one of their own.
pub(super) fn hash_of(name: &ChainName) -> Option<&str> {
    match ChainOwner::of(Table::Nat, name) {
        ChainOwner::ServicePort(_) | ChainOwner::Group => {
            let (_, rest) = name.as_str().split_at(name.as_str().rfind('-')? + 1);
            rest.get(..rest.len().min(HASH_LENGTH))
        }
        _ => None,
    }
}

/// Characters of a hash.
const HASH_LENGTH: usize = 16;

/// The service port that a comment begins with, as in `shop/db:sql cluster IP`.
pub(super) fn service_port_in(comment: &str) -> Option<&str> {
    let name = comment.split(' ').next()?;
    let (namespace, rest) = name.split_once('/')?;
    (!namespace.is_empty() && !rest.is_empty()).then_some(name)
}

fn dnat(rule: &Rule) -> Option<SocketAddr> {
    match rule.target {
        Some(Target::Dnat(to)) => Some(to),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{HostView, RulesOrigin};
    use crate::iptables::parse;
    use crate::net::PerFamily;

    #[test]
    fn comments_name_the_service_port_of_its_chains() {
        let text = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-2CMXP7HKUVJN7L6M - [0:0]
:KUBE-SEP-ZLQIIXF6GGLIY7FE - [0:0]
:DOCKER - [0:0]
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "default/nginx cluster IP" -m tcp --dport 80 -j KUBE-SVC-2CMXP7HKUVJN7L6M
-A KUBE-SVC-2CMXP7HKUVJN7L6M -m comment --comment "default/nginx -> 10.180.0.1:8080" -j KUBE-SEP-ZLQIIXF6GGLIY7FE
-A KUBE-SEP-ZLQIIXF6GGLIY7FE -p tcp -m tcp -j DNAT --to-destination 10.180.0.1:8080
COMMIT
"#;
        let ruleset = parse::save(IpFamily::V4, text).unwrap();
        let rulesets = PerFamily { v4: Some(ruleset.clone()), v6: None };
        let origin = RulesOrigin::Text("-".to_owned());
        let subject = Subject { rulesets, origin, cluster: None, host: HostView::default() };
        let labels = ChainLabels::of(&subject, IpFamily::V4);
        let check = |name: &'static str, expected: &str| {
            let name = ChainName::literal(name);
            let rules = &ruleset.chain(Table::Nat, &name).unwrap().rules;
            assert_eq!(labels.label(Table::Nat, &name, rules).to_string(), expected);
        };
        check("KUBE-SERVICES", "all Services");
        check("KUBE-SVC-2CMXP7HKUVJN7L6M", "default/nginx: endpoints of all nodes");
        check("KUBE-SEP-ZLQIIXF6GGLIY7FE", "default/nginx: endpoint 10.180.0.1:8080");
        check("DOCKER", "another program");
    }
}
