//! From the output of `iptables-save` to the chains of kube-proxy and Chainsmith, and to the inputs of
//! iptables-restore that remove these and nothing else.
//!
//! `KUBE-FIREWALL` stays with its jumps: the kubelet has rules in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainName, Rule, Table};
use crate::net::IpFamily;
use crate::rules::ownership::{self, ChainOwner};

/// Chains of kube-proxy (any mode) and Chainsmith (either layout) in one table, and the jumps to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftoverChains {
    family: IpFamily,
    /// The table.
    pub table: Table,
    /// The chains, by name.
    chains: BTreeSet<ChainName>,
    /// Rules of built-in chains that jump to top-level chains, as `<chain> <rule>`.
    jumps: Vec<String>,
    /// Chains that foreign rules refer to, with the chains of those rules.
    referenced: BTreeMap<ChainName, BTreeSet<ChainName>>,
}

impl LeftoverChains {
    /// None yet; [`LeftoverChains::read_line`] adds them.
    pub fn new(family: IpFamily, table: Table) -> LeftoverChains {
        let (chains, jumps, referenced) = Default::default();
        LeftoverChains { family, table, chains, jumps, referenced }
    }

    /// Reads the next line that `iptables-save -t <table>` prints; declarations come first.
    pub fn read_line(&mut self, line: &str) {
        match parse::line(self.family, line) {
            Ok(Line::Declaration(name, _)) if ChainOwner::of(self.table, &name).is_removable() => {
                self.chains.insert(name);
            }
            Ok(Line::Append(from, rule)) if !self.chains.contains(&from) => self.read_rule(from, &rule, line),
            Ok(_) => {}
            Err(_) => self.read_unparsed(line),
        }
    }

    fn read_rule(&mut self, from: ChainName, rule: &Rule, line: &str) {
        let Some(target) = rule.callee().filter(|target| self.chains.contains(target)) else { return };
        if ownership::is_top_level(&target) && self.table.built_in().contains(&from.as_str()) {
            self.jumps.extend(line.strip_prefix("-A ").map(str::to_owned));
        } else {
            self.referenced.entry(target).or_default().insert(from);
        }
    }

    /// Counts each word of a rule that cannot be parsed as a reference: a chain that stays is harmless, but
    /// a deletion that the kernel rejects fails the whole input.
    fn read_unparsed(&mut self, line: &str) {
        let Some(rule) = line.strip_prefix("-A ") else { return };
        let mut words = rule.split_ascii_whitespace().filter_map(ChainName::new);
        let Some(from) = words.next().filter(|from| !self.chains.contains(from)) else { return };
        for target in words.filter(|target| self.chains.contains(target)) {
            self.referenced.entry(target).or_default().insert(from);
        }
    }

    /// Whether the table has no such chain.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// The number of chains.
    pub fn n_chains(&self) -> usize {
        self.chains.len()
    }

    /// The jumps, as `<chain> <rule>`.
    pub fn jumps(&self) -> &[String] {
        &self.jumps
    }

    /// The chains that cannot be deleted, because foreign rules refer to them, with the chains of those
    /// rules. They are flushed.
    pub fn referenced(&self) -> impl Iterator<Item = (&ChainName, &BTreeSet<ChainName>)> {
        self.referenced.iter()
    }

    /// Hands inputs for `iptables-restore --noflush` to `each`, in order, each with at most `max_names`
    /// chains. The first deletes the jumps: from then on no packet meets the chains. An error of `each`
    /// ends it.
    pub fn remove<E>(&self, max_names: usize, mut each: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        if self.is_empty() {
            return Ok(());
        }
        // Descending: iptables-nft-restore is quadratic in any other order (design.md 3).
        let all: Vec<&ChainName> = self.chains.iter().rev().collect();
        let batches: Vec<&[&ChainName]> = all.chunks(max_names.max(1)).collect();
        if let [chains] = batches[..] {
            return each(&self.input(chains, &self.jumps, chains));
        }
        each(&self.input(&[], &self.jumps, &[]))?;
        for chains in &batches {
            each(&self.input(chains, &[], &[]))?;
        }
        // Now that all are empty no chain refers to another.
        for chains in &batches {
            each(&self.input(chains, &[], chains))?;
        }
        Ok(())
    }

    /// One input: flushes chains, then deletes jumps, then chains that no foreign rule refers to.
    fn input(&self, flushed: &[&ChainName], jumps: &[String], deleted: &[&ChainName]) -> String {
        let mut text = format!("*{}\n", self.table);
        for name in flushed {
            text += &format!(":{name} - [0:0]\n");
        }
        for jump in jumps {
            text += &format!("-D {jump}\n");
        }
        for name in deleted.iter().filter(|name| !self.referenced.contains_key(**name)) {
            text += &format!("-X {name}\n");
        }
        text + "COMMIT\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::names::KUBE_PROXY_CANARY;

    const NAT: &str = "\
*nat
:PREROUTING ACCEPT [5:6]
:POSTROUTING ACCEPT [0:0]
:CNI-SETMARK - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"say \\\" -j KUBE-SERVICES\" -j ACCEPT
-A PREROUTING -s 10.0.0.0/8 -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A CNI-SETMARK -m comment --comment CNI -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A
COMMIT
";

    fn read(table: Table, text: &str) -> LeftoverChains {
        let mut chains = LeftoverChains::new(IpFamily::V4, table);
        text.lines().for_each(|line| chains.read_line(line));
        chains
    }

    fn inputs(chains: &LeftoverChains, max_names: usize) -> Vec<String> {
        let mut inputs = Vec::new();
        chains
            .remove(max_names, |input| {
                inputs.push(input.to_owned());
                Ok::<(), ()>(())
            })
            .unwrap();
        inputs
    }

    #[test]
    fn only_chains_of_kube_proxy_are_removed() {
        let chains = read(Table::Nat, NAT);
        let expected = "\
*nat
:KUBE-SVC-A - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-D PREROUTING -s 10.0.0.0/8 -j KUBE-SERVICES
-D POSTROUTING -j KUBE-POSTROUTING
-X KUBE-SVC-A
-X KUBE-SERVICES
-X KUBE-PROXY-CANARY
-X KUBE-POSTROUTING
COMMIT
";
        assert_eq!(inputs(&chains, 100), [expected]);
        let referenced: Vec<_> =
            chains.referenced().map(|(name, from)| (name.as_str(), from.len())).collect();
        assert_eq!(referenced, [("KUBE-MARK-MASQ", 1)]);
    }

    #[test]
    fn a_foreign_reference_counts_whatever_the_comment_of_its_rule_says() {
        let text = "\
:CNI - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SVC-B - [0:0]
-A CNI -m comment --comment -j -j KUBE-MARK-MASQ
-A CNI -m comment --comment -g -g KUBE-SVC-A
-A CNI -m comment --comment \"-j KUBE-SVC-B\" -j ACCEPT
";
        let referenced = |text: &str| {
            let chains = read(Table::Nat, text);
            chains.referenced().map(|(name, _)| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(referenced(text), ["KUBE-MARK-MASQ", "KUBE-SVC-A"]);
        // Each word of a rule that cannot be parsed counts.
        assert_eq!(referenced(&format!("{text}-A CNI --comment \"open -j KUBE-SVC-B\n")).len(), 3);
    }

    #[test]
    fn more_chains_than_one_process_takes_are_flushed_first_and_deleted_then() {
        let inputs = inputs(&read(Table::Nat, NAT), 3);
        assert_eq!(inputs.len(), 5);
        assert!(inputs[0].contains("-D PREROUTING") && !inputs[0].contains(':'), "{}", inputs[0]);
        for input in &inputs[1..] {
            assert!(input.matches("\n:").count() <= 3 && !input.contains("-D "), "{input}");
        }
        assert!(!inputs[1..3].iter().any(|input| input.contains("-X")));
        let deleted: usize = inputs[3..].iter().map(|input| input.matches("-X ").count()).sum();
        assert_eq!(deleted, 4);
    }

    #[test]
    fn the_kubelets_firewall_chain_stays() {
        let text = "\
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-SVC-0A - [0:0]
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -j KUBE-IPVS-FILTER
-A KUBE-FIREWALL -j DROP
";
        let chains = read(Table::Filter, text);
        let names: Vec<_> = chains.chains.iter().map(ChainName::as_str).collect();
        assert_eq!(names, ["KUBE-IPVS-FILTER", "KUBE-SVC-0A"]);
        assert_eq!(chains.jumps(), ["INPUT -j KUBE-IPVS-FILTER"]);
    }

    #[test]
    fn in_mangle_the_canary_alone_is_removed() {
        let chains = read(Table::Mangle, ":KUBE-PROXY-CANARY - [0:0]\n:KUBE-SVC-A - [0:0]\n");
        assert_eq!(chains.chains, [KUBE_PROXY_CANARY].into());
        assert_eq!(chains.n_chains(), 1);
    }

    #[test]
    fn a_table_without_such_chains_needs_no_input() {
        let chains = read(Table::Nat, "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n");
        assert!(chains.is_empty());
        assert_eq!(inputs(&chains, 10), [""; 0]);
    }
}
