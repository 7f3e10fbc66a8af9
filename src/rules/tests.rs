//! Numbers in comments are those of the edge cases in the specification. The corpus holds whole
//! rulesets; each test here makes one claim.

mod counts;
mod external;
mod node_ports;
mod pods;

use super::ownership::ChainOwner;
use super::*;
use crate::compile::ruleset;
use crate::config::{Config, Flags};
use crate::iptables::{ChainName, Match, Rule, Ruleset, Table, write};
use crate::model::Inventory;
use crate::model::decode::{Interner, manifest};
use crate::model::host::Host;
use crate::net::IpFamily;
use crate::policy::Place;

/// The node, dual stack, in zone `east`.
const NODE: &str = "apiVersion: v1\nkind: Node\n\
    metadata: {name: node-a, labels: {topology.kubernetes.io/zone: east}}\n\
    spec: {podCIDRs: [10.180.0.0/24, 'fd00:10:180::/64']}\n\
    status: {addresses: [{type: InternalIP, address: 192.168.0.2}, {type: InternalIP, address: '2001:db8::2'}]}\n";
const HOST: &str =
    "interfaces: {lo: [127.0.0.1/8, '::1/128'], eth0: [192.168.0.2/24, 198.51.100.2/24, '2001:db8::2/64']}\n";
const CLUSTER_CIDR: &str = "clusterCIDR: 10.180.0.0/16,fd00:10:180::/48\n";

/// The objects, configuration and host of one case.
struct Case {
    objects: Vec<String>,
    config: String,
    host: String,
}

/// A Service `ns/s` with the cluster IP 172.30.0.1 and the fields in `spec`.
fn service(spec: &str) -> Case {
    Case::new().and_service("s", &format!("clusterIP: 172.30.0.1, {spec}"), "")
}

impl Case {
    fn new() -> Case {
        Case { objects: vec![NODE.to_owned()], config: CLUSTER_CIDR.to_owned(), host: HOST.to_owned() }
    }

    fn and_service(mut self, name: &str, spec: &str, ingress: &str) -> Case {
        self.objects.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: ns, name: {name}}}\nspec: {{{spec}}}\n\
             status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n"
        ));
        self
    }

    /// Sets the load balancer addresses of the last Service.
    fn with_ingress(mut self, ingress: &str) -> Case {
        let service = self.objects.last_mut().unwrap();
        *service = service.replace("ingress: []", &format!("ingress: [{ingress}]"));
        self
    }

    /// Endpoints of `ns/s` at port 8080: `10.180.0.1@node-a`, `10.180.0.2`.
    fn with_endpoints(self, endpoints: &str) -> Case {
        self.and_slice("s", "", endpoints)
    }

    fn and_slice(mut self, service: &str, port: &str, endpoints: &str) -> Case {
        let endpoint = |text: &str| match text.split_once('@') {
            Some((ip, node)) => format!("{{addresses: ['{ip}'], nodeName: {node}}}"),
            None => format!("{{addresses: ['{text}']}}"),
        };
        let endpoints: Vec<String> = endpoints.split_whitespace().map(endpoint).collect();
        let family = if endpoints.iter().any(|text| text.contains("::")) { "IPv6" } else { "IPv4" };
        self.objects.push(format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: ns, name: {service}-{}, \
             labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {family}\n\
             ports: [{{name: '{port}', port: 8080}}]\nendpoints: [{}]\n",
            self.objects.len(),
            endpoints.join(", ")
        ));
        self
    }

    fn with_config(mut self, config: &str) -> Case {
        self.config = config.to_owned();
        self
    }

    fn without_node(mut self) -> Case {
        self.objects.remove(0);
        self
    }

    fn ruleset(&self, family: IpFamily) -> Ruleset {
        let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
        for text in &self.objects {
            let outcome = manifest::read(text.as_bytes(), "test", &mut |object| {
                inventory.add(&object, &mut interner);
            });
            assert_eq!(outcome.problems, [], "{text}");
        }
        let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let (config, _) =
            Config::resolve(Some(&format!("{header}{}", self.config)), &Flags::default()).unwrap();
        let snapshot = inventory.snapshot_for("node-a");
        let settings = Settings::new(&config, snapshot.node(), &Host::parse(&self.host).unwrap(), family);
        let zone = snapshot.node().and_then(|node| node.zone.clone());
        ruleset(&settings, &snapshot, Place { node: "node-a", zone: zone.as_deref() })
    }

    /// Checks the rules of one chain, without comments and with `KUBE-SVC-...` as `SVC`.
    #[track_caller]
    fn check(&self, table: Table, chain: &str, expected: &[&str]) -> &Case {
        self.check_in(IpFamily::V4, table, chain, expected)
    }

    #[track_caller]
    fn check_in(&self, family: IpFamily, table: Table, chain: &str, expected: &[&str]) -> &Case {
        let rules = shown(family, &self.ruleset(family), table, chain);
        assert_eq!(rules, expected, "{table} {chain}: {rules:#?}");
        self
    }

    /// Checks which chains the service ports have, as in `EXT SEP SEP SVC`.
    #[track_caller]
    fn check_chains(&self, expected: &str) -> &Case {
        let ruleset = self.ruleset(IpFamily::V4);
        let chains: Vec<String> = ruleset.tables[&Table::Nat]
            .keys()
            .filter(|name| ChainOwner::of(Table::Nat, name).depends_on_services())
            .map(short)
            .collect();
        assert_eq!(chains.join(" "), expected);
        self
    }
}

/// `KUBE-SVC-2CMXP7HKUVJN7L6M` as `SVC`, others as they are.
fn short(name: &ChainName) -> String {
    match names::PortChain::split(name) {
        Some(_) => name.as_str().split('-').nth(1).unwrap().to_owned(),
        None => name.as_str().to_owned(),
    }
}

fn shown(family: IpFamily, ruleset: &Ruleset, table: Table, chain: &str) -> Vec<String> {
    let chains = &ruleset.tables[&table];
    let all: Vec<&crate::iptables::ChainContent> =
        chains.iter().filter(|(name, _)| short(name) == chain).map(|(_, chain)| chain).collect();
    assert!(!all.is_empty(), "there is no chain {chain}");
    let show = |rule: &Rule| {
        let mut rule = rule.clone();
        rule.matches.retain(|m| !matches!(m, Match::Comment(_)));
        let text = write::rule_text(family, &rule);
        let words: Vec<String> = text
            .split(' ')
            .map(|word| ChainName::new(word).map_or(word.to_owned(), |name| short(&name)))
            .collect();
        words.join(" ")
    };
    all.into_iter().flat_map(|chain| chain.rules.iter().map(show)).collect()
}
