//! The rules of a node as a comparable value.

use std::collections::BTreeMap;

use crate::lab::address::{FAMILIES, Family};
use crate::lab::host::Node;

/// The chains of nat and filter in both families with their rules, without counters and
/// canaries: canaries return at their own time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules(BTreeMap<String, Vec<String>>);

impl Rules {
    /// The rules on `node` now.
    pub(super) fn of(node: &Node) -> Self {
        let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for family in FAMILIES {
            let text = node.netfilter().save(family).expect("rules can be read");
            let mut table = "";
            for line in text.lines() {
                if let Some(name) = line.strip_prefix('*') {
                    table = name;
                } else if let Some(chain) = line.strip_prefix(':') {
                    let name = chain.split(' ').next().unwrap_or_default();
                    chains.entry(format!("{family:?} {table} {name}")).or_default();
                } else if let Some(rule) = line.strip_prefix("-A ") {
                    let name = rule.split(' ').next().unwrap_or_default();
                    chains.entry(format!("{family:?} {table} {name}")).or_default().push(rule.to_owned());
                }
            }
        }
        chains.retain(|name, _| {
            !name.contains("CANARY") && !name.contains(" mangle ") && !name.contains(" raw ")
        });
        Self(chains)
    }

    /// The differences, for messages.
    pub(super) fn difference(&self, other: &Self) -> String {
        let mut names: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let differing = names.into_iter().filter(|name| self.0.get(*name) != other.0.get(*name));
        let shown: Vec<String> = differing
            .map(|name| format!("{name}: {:?} and {:?}", self.0.get(name), other.0.get(name)))
            .collect();
        shown.join("\n")
    }
}

/// The chain of the TCP port of the Service `web` on `node`.
pub(super) fn chain_of_web(node: &Node, family: Family) -> String {
    let rules =
        node.netfilter().iptables(family, &["-t", "nat", "-S", "KUBE-SERVICES"]).expect("it is there");
    let rule = rules.lines().find(|rule| rule.contains("default/web:http cluster IP"));
    rule.and_then(|rule| rule.rsplit(' ').next()).expect("a rule ends in its target").to_owned()
}
