//! Rules by their place, with names for people.

use super::trace_report::{ChainVisit, MatchedRule, NamedRule};
use crate::inspect::labels::{ChainLabel, ChainLabels};
use crate::iptables::trace::{Step, Visit};
use crate::iptables::{ChainName, Policy, Rule, Ruleset, Table, Target, write};
use crate::net::IpFamily;
use crate::rules::names;

/// The rules of one family, with the labels of their chains.
pub(super) struct RuleBook<'a> {
    pub family: IpFamily,
    pub ruleset: &'a Ruleset,
    pub labels: &'a ChainLabels,
}

impl<'a> RuleBook<'a> {
    /// The rule at `step`; `None` for a policy.
    pub(super) fn rule(&self, step: &Step) -> Option<&'a Rule> {
        self.rules(step.table, &step.chain).get(step.rule?.checked_sub(1)?)
    }

    pub(super) fn rules(&self, table: Table, chain: &ChainName) -> &'a [Rule] {
        self.ruleset.chain(table, chain).map_or(&[], |chain| &chain.rules)
    }

    fn label(&self, table: Table, chain: &ChainName) -> ChainLabel {
        self.labels.label(table, chain, self.rules(table, chain))
    }

    /// `step` with its text.
    pub(super) fn named(&self, step: &Step) -> NamedRule {
        let text = match self.rule(step) {
            Some(rule) => write::rule_text(self.family, rule),
            None => self.policy(step.table, &step.chain).unwrap_or_default().to_owned(),
        };
        NamedRule { table: step.table.to_string(), chain: step.chain.to_string(), rule: step.rule, text }
    }

    fn policy(&self, table: Table, chain: &ChainName) -> Option<&'static str> {
        self.ruleset.chain(table, chain)?.policy.map(|policy| match policy {
            Policy::Accept => "ACCEPT",
            Policy::Drop => "DROP",
        })
    }

    /// The visit for a report, with the first `n_matched` of its matched rules.
    pub(super) fn shown(&self, visit: &Visit, n_matched: usize) -> ChainVisit {
        let rules = self.rules(visit.table, &visit.chain);
        let label = self.label(visit.table, &visit.chain);
        let matched = visit.matched.iter().take(n_matched).filter_map(|number| {
            let rule = rules.get(number.checked_sub(1)?)?;
            Some(MatchedRule {
                rule: *number,
                effect: self.effect(visit, rule),
                text: write::rule_text(self.family, rule),
            })
        });
        ChainVisit {
            hook: visit.hook.chain().to_string(),
            table: visit.table.to_string(),
            chain: visit.chain.to_string(),
            service_port: label.service_port,
            role: label.role.to_string(),
            source: visit.source,
            destination: visit.destination,
            mark: visit.mark,
            rules_tested: visit.n_rules,
            rules_in_chain: rules.len(),
            undecided: visit.undecided.clone(),
            chooses: visit.matched.len() > n_matched,
            matched: matched.collect(),
            policy: visit
                .met_policy
                .then(|| self.policy(visit.table, &visit.chain))
                .flatten()
                .map(str::to_owned),
        }
    }

    /// What `rule` does to a packet that it matches, with names.
    fn effect(&self, visit: &Visit, rule: &Rule) -> String {
        let enters = |verb: &str, chain: &ChainName| {
            let label = self.label(visit.table, chain);
            match label.service_port {
                Some(_) => format!("{verb} {chain} ({label})"),
                None => format!("{verb} {chain}"),
            }
        };
        match &rule.target {
            Some(Target::Jump(names::KUBE_MARK_MASQ)) => "marks it for masquerading".to_owned(),
            Some(Target::Jump(chain)) => enters("jumps to", chain),
            Some(Target::Goto(chain)) => enters("goes to", chain),
            Some(Target::Accept) => "accepts it".to_owned(),
            Some(Target::Drop) => "drops it".to_owned(),
            Some(Target::Return) => "returns to the calling chain".to_owned(),
            Some(Target::Reject) => "rejects it".to_owned(),
            Some(Target::Dnat(to)) => format!("sends it to {to}"),
            Some(Target::Masquerade { .. }) => "gives it an address of the node as its source".to_owned(),
            Some(Target::SetXmark { value, mask: 0 }) if visit.mark & value == *value => {
                format!("clears the mark {value:#x}")
            }
            Some(Target::SetXmark { value, mask: 0 }) => format!("flips the mark bits {value:#x}"),
            Some(Target::SetXmark { value, .. }) => format!("sets the mark {value:#x}"),
            Some(Target::Other { name, .. }) => match &**name {
                "REJECT" => "rejects it".to_owned(),
                "MASQUERADE" => "gives it an address of the node as its source".to_owned(),
                "DNAT" | "REDIRECT" => "sends it elsewhere".to_owned(),
                "SNAT" => "gives it another source".to_owned(),
                name => format!("target {name}"),
            },
            None => "has no target: the packet goes on".to_owned(),
        }
    }
}
