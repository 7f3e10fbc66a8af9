//! The language of iptables as values: tables, chains, rules, and their text.
//!
//! One form of text serves both directions: what [`mod@write`] makes is what `iptables-save` prints, and
//! `iptables-restore` reads it. [`parse`] reads both programs' text back into the same values, so
//! that rulesets are compared as values and never as text. Knows nothing of Kubernetes.

pub mod chain;
mod fingerprint;
pub mod parse;
pub mod rule;
pub mod trace;
pub mod write;

pub use chain::{ChainName, Table};
pub use fingerprint::Fingerprint;
pub use rule::{
    AddressSide, CtStates, Interface, L4Protocol, Match, MaybeNot, PortRange, RecentAction, Rule, Target,
};

use std::collections::BTreeMap;

/// What a packet meets at the end of a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
}

/// A rule that leads from a built-in chain to one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The table of both chains.
    pub table: Table,
    /// The built-in chain.
    pub from: ChainName,
    /// The rule, put at the head of the chain when it is missing.
    pub rule: Rule,
}

/// One chain: its policy when it is built in, and its rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `None` for a user-defined chain.
    pub policy: Option<Policy>,
    /// In the order in which a packet meets them.
    pub rules: Vec<Rule>,
}

/// The chains of some tables: what one `iptables-save` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Each table that is there, with its chains by name.
    pub tables: BTreeMap<Table, BTreeMap<ChainName, Chain>>,
}

impl Ruleset {
    /// A ruleset with the built-in chains of every table that kube-proxy uses, policy ACCEPT.
    pub fn with_built_in_chains() -> Ruleset {
        let mut ruleset = Ruleset::default();
        for table in Table::ALL {
            let chains = ruleset.tables.entry(table).or_default();
            for name in table.built_in() {
                let chain = Chain { policy: Some(Policy::Accept), rules: Vec::new() };
                chains.insert(ChainName::literal(name), chain);
            }
        }
        ruleset
    }

    /// The chain `name` of `table`, made empty when it is not there.
    pub fn chain_mut(&mut self, table: Table, name: ChainName) -> &mut Chain {
        self.tables.entry(table).or_default().entry(name).or_default()
    }

    /// The chain `name` of `table`.
    pub fn chain(&self, table: Table, name: &ChainName) -> Option<&Chain> {
        self.tables.get(&table)?.get(name)
    }
}
