//! Chains with their rules, one by one ([`Chain`]) and as whole tables ([`Ruleset`]).

use std::collections::BTreeMap;

use super::chain::{ChainName, Table};
use super::rule::Rule;

/// A user-defined chain with its rules, in force or desired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: ChainName,
    /// In the order in which a packet meets them.
    pub rules: Vec<Rule>,
}

/// What happens to a packet at the end of a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It passes.
    Accept,
    /// It is dropped.
    Drop,
}

/// A rule that jumps from a built-in chain to a user-defined one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The table of both chains.
    pub table: Table,
    /// The built-in chain.
    pub from: ChainName,
    /// The rule, inserted at the head of the chain if it is missing.
    pub rule: Rule,
}

/// The content of a chain in a [`Ruleset`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainContent {
    /// `None` for a user-defined chain.
    pub policy: Option<Policy>,
    /// In the order in which a packet meets them.
    pub rules: Vec<Rule>,
}

/// The chains of some tables, as `iptables-save` shows them.
///
/// ```
/// use chainsmith::iptables::{ChainName, Ruleset, Table, parse, write};
/// use chainsmith::net::IpFamily;
///
/// let text = "*nat\n:OUTPUT ACCEPT [0:0]\n:WEB - [0:0]\n-A OUTPUT -d 10.0.0.1/32 -j WEB\nCOMMIT\n";
/// let ruleset: Ruleset = parse::save(IpFamily::V4, text)?;
/// let output = ruleset.chain(Table::Nat, &ChainName::literal("OUTPUT")).expect("declared above");
/// assert_eq!(output.rules[0].callee(), ChainName::new("WEB"));
/// assert_eq!(write::save(IpFamily::V4, &ruleset), text);
/// # Ok::<(), chainsmith::iptables::parse::ParseError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables that exist, with their chains by name.
    pub tables: BTreeMap<Table, BTreeMap<ChainName, ChainContent>>,
}

impl Ruleset {
    /// A ruleset with the built-in chains of every table that kube-proxy uses, policy ACCEPT.
    pub fn with_built_in_chains() -> Ruleset {
        let mut ruleset = Ruleset::default();
        for table in Table::ALL {
            for name in table.built_in() {
                ruleset.chain_mut(table, ChainName::literal(name)).policy = Some(Policy::Accept);
            }
        }
        ruleset
    }

    /// Adds `chain`, or gives the chain of its name these rules.
    pub fn set_chain(&mut self, chain: Chain) {
        self.chain_mut(chain.table, chain.name).rules = chain.rules;
    }

    /// The content of the chain `name` of `table`; an absent chain is added empty.
    pub fn chain_mut(&mut self, table: Table, name: ChainName) -> &mut ChainContent {
        self.tables.entry(table).or_default().entry(name).or_default()
    }

    /// The content of the chain `name` of `table`.
    pub fn chain(&self, table: Table, name: &ChainName) -> Option<&ChainContent> {
        self.tables.get(&table)?.get(name)
    }
}
