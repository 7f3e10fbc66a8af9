//! What kube-proxy and Chainsmith have in a table, as `iptables-save` shows it, and the inputs of
//! iptables-restore that take it out, and nothing else.
//!
//! `KUBE-FIREWALL` stays with its jumps: the kubelet has rules in it.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{
    self, KUBE_EXTERNAL_SERVICES, KUBE_FORWARD, KUBE_NODEPORTS, KUBE_POSTROUTING, KUBE_PROXY_CANARY,
    KUBE_PROXY_FIREWALL, KUBE_SERVICES, PortChain,
};
use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainName, Rule, Table, Target};
use crate::net::IpFamily;

/// Chains of kube-proxy's ipvs mode beside those that both modes have.
const IPVS_CHAINS: [ChainName; 5] = [
    ChainName::literal("KUBE-LOAD-BALANCER"),
    ChainName::literal("KUBE-NODE-PORT"),
    ChainName::literal("KUBE-SOURCE-RANGES-FIREWALL"),
    ChainName::literal("KUBE-IPVS-FILTER"),
    ChainName::literal("KUBE-IPVS-OUT-FILTER"),
];

/// Chains that built-in chains jump to: such a jump is kube-proxy's, whatever it matches. Whoever jumps
/// to another chain of ours (a CNI plugin to `KUBE-MARK-MASQ`) is somebody else.
const TOP_LEVEL: [ChainName; 6] = [
    KUBE_SERVICES,
    KUBE_EXTERNAL_SERVICES,
    KUBE_NODEPORTS,
    KUBE_POSTROUTING,
    KUBE_FORWARD,
    KUBE_PROXY_FIREWALL,
];

/// Whether `name` in `table` is a chain of kube-proxy (iptables or ipvs mode) or Chainsmith (either
/// layout).
fn is_ours(table: Table, name: &ChainName) -> bool {
    *name == KUBE_PROXY_CANARY
        || names::is_ours(table, name)
        || (table != Table::Mangle && (IPVS_CHAINS.contains(name) || PortChain::of(name).is_some()))
}

fn is_top_level(name: &ChainName) -> bool {
    TOP_LEVEL.contains(name) || IPVS_CHAINS.contains(name)
}

/// What there is in one table; made by [`Remains::line`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    family: IpFamily,
    /// The table.
    pub table: Table,
    /// Chains of ours, by name.
    chains: BTreeSet<ChainName>,
    /// Rules of built-in chains that jump to our top-level chains, as `<chain> <rule>`.
    jumps: Vec<String>,
    /// Chains of ours that somebody else's rules lead to, with the chains of those rules.
    held: BTreeMap<ChainName, BTreeSet<String>>,
}

impl Remains {
    /// Nothing yet.
    pub fn new(family: IpFamily, table: Table) -> Remains {
        Remains { family, table, chains: BTreeSet::new(), jumps: Vec::new(), held: BTreeMap::new() }
    }

    /// Takes the next line that `iptables-save -t <table>` prints; declarations come first.
    pub fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            let name = ChainName::new(name).filter(|name| is_ours(self.table, name));
            self.chains.extend(name);
            return;
        }
        let Some(rule) = line.strip_prefix("-A ") else { return };
        let from = rule.split(' ').next().unwrap_or_default();
        if ChainName::new(from).is_some_and(|from| self.chains.contains(&from)) {
            return;
        }
        let holds = match parse::line(self.family, line) {
            Ok(Line::Append(_, Rule { target: Some(Target::Jump(target) | Target::Goto(target)), .. })) => {
                if is_top_level(&target) && self.table.built_in().contains(&from) {
                    self.jumps.extend(self.chains.contains(&target).then(|| rule.to_owned()));
                    return;
                }
                vec![target]
            }
            Ok(_) => return,
            // A chain that it may lead to had better stay than have the kernel refuse the whole input.
            Err(_) => rule.split_ascii_whitespace().skip(1).filter_map(ChainName::new).collect(),
        };
        for target in holds.into_iter().filter(|target| self.chains.contains(target)) {
            self.held.entry(target).or_default().insert(from.to_owned());
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether rules for Services are among it: more than a canary that somebody left.
    pub fn has_services(&self) -> bool {
        self.chains.iter().any(|name| *name != KUBE_PROXY_CANARY)
    }

    /// How many chains there are.
    pub fn n_chains(&self) -> usize {
        self.chains.len()
    }

    /// The chains, by name.
    pub fn chains(&self) -> impl Iterator<Item = &ChainName> {
        self.chains.iter()
    }

    /// The jumps, as `<chain> <rule>`.
    pub fn jumps(&self) -> &[String] {
        &self.jumps
    }

    /// The chains that cannot be deleted, because rules of somebody else lead to them, with the
    /// chains that hold such rules. They are emptied.
    pub fn held(&self) -> impl Iterator<Item = (&ChainName, &BTreeSet<String>)> {
        self.held.iter()
    }

    /// Inputs for `iptables-restore --noflush`, one after the other, each naming at most `max_names`
    /// chains of ours. The first takes the jumps away: from then on no packet meets any of it. Given
    /// to `each`, which may end it by an error.
    pub fn removal<E>(&self, max_names: usize, mut each: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
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
        // Now that all are empty nothing leads from one to another.
        for chains in &batches {
            each(&self.input(chains, &[], chains))?;
        }
        Ok(())
    }

    /// One input: `emptied` chains, then `jumps` deleted, then `deleted` chains.
    fn input(&self, emptied: &[&ChainName], jumps: &[String], deleted: &[&ChainName]) -> String {
        let mut text = format!("*{}\n", self.table);
        for name in emptied {
            text += &format!(":{name} - [0:0]\n");
        }
        for jump in jumps {
            text += &format!("-D {jump}\n");
        }
        for name in deleted.iter().filter(|name| !self.held.contains_key(**name)) {
            text += &format!("-X {name}\n");
        }
        text + "COMMIT\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn remains(table: Table, text: &str) -> Remains {
        let mut remains = Remains::new(IpFamily::V4, table);
        text.lines().for_each(|line| remains.line(line));
        remains
    }

    fn inputs(remains: &Remains, max_names: usize) -> Vec<String> {
        let mut inputs = Vec::new();
        remains
            .removal(max_names, |input| {
                inputs.push(input.to_owned());
                Ok::<(), ()>(())
            })
            .unwrap();
        inputs
    }

    #[test]
    fn only_ours_is_taken_out() {
        let remains = remains(Table::Nat, NAT);
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
        assert_eq!(inputs(&remains, 100), [expected]);
        let held: Vec<_> = remains.held().map(|(name, from)| (name.as_str(), from.len())).collect();
        assert_eq!(held, [("KUBE-MARK-MASQ", 1)]);
        assert!(remains.has_services());
    }

    #[test]
    fn a_rule_that_leads_to_a_chain_is_seen_whatever_its_comment_says() {
        let text = "\
:CNI - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SVC-B - [0:0]
-A CNI -m comment --comment -j -j KUBE-MARK-MASQ
-A CNI -m comment --comment -g -g KUBE-SVC-A
-A CNI -m comment --comment \"-j KUBE-SVC-B\" -j ACCEPT
";
        let held = |text: &str| {
            let remains = remains(Table::Nat, text);
            remains.held().map(|(name, _)| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(held(text), ["KUBE-MARK-MASQ", "KUBE-SVC-A"]);
        // What cannot be read holds whatever it may lead to.
        assert_eq!(held(&format!("{text}-A CNI --comment \"open -j KUBE-SVC-B\n")).len(), 3);
    }

    #[test]
    fn what_is_too_much_for_one_process_is_emptied_first_and_deleted_then() {
        let inputs = inputs(&remains(Table::Nat, NAT), 3);
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
        let remains = remains(Table::Filter, text);
        let names: Vec<_> = remains.chains().map(ChainName::as_str).collect();
        assert_eq!(names, ["KUBE-IPVS-FILTER", "KUBE-SVC-0A"]);
        assert_eq!(remains.jumps(), ["INPUT -j KUBE-IPVS-FILTER"]);
    }

    #[test]
    fn a_canary_alone_is_no_service() {
        let remains = remains(Table::Mangle, ":KUBE-PROXY-CANARY - [0:0]\n:KUBE-SVC-A - [0:0]\n");
        assert!(!remains.is_empty() && !remains.has_services());
        assert_eq!(remains.n_chains(), 1, "nobody makes others in mangle");
    }

    #[test]
    fn of_nothing_nothing_is_removed() {
        let remains =
            remains(Table::Nat, "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n");
        assert!(remains.is_empty());
        assert_eq!(inputs(&remains, 10), [""; 0]);
    }
}
