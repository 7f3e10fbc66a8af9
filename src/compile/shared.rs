//! The content of the shared chains, and of the chains behind them: entries of many service ports.

use std::rc::Rc;

use super::record::{Record, Records};
use crate::iptables::{Chain, ChainName, Digest, Rule};
use crate::model::ServicePortName;
use crate::rules::dispatch::{Key, Part, SharedPart, shared_chains};
use crate::rules::overlap::Overlaps;
use crate::rules::{Layout, Settings, SharedChain};

/// The entries of one shared chain, in the order of their service ports, without those of overlaps.
struct SharedEntries<'a> {
    settings: &'a Settings,
    chain: SharedChain,
    /// The service port of each entry, and which of its entries in this chain it is.
    owners: Vec<(&'a ServicePortName, &'a Record, usize)>,
    hashes: Vec<u64>,
}

/// What one chain of the dispatch is to hold. Its rules are made when they are asked for.
pub struct SharedContent<'a> {
    entries: Rc<SharedEntries<'a>>,
    content: SharedPart,
}

/// The content of the shared chain `chain`, and of the chains behind it, callees first; of the service ports
/// in `records` that pass `is_included`.
pub(super) fn shared_contents<'a>(
    settings: &'a Settings,
    layout: Layout,
    (records, overlaps): (&'a Records, &'a Overlaps),
    chain: SharedChain,
    is_included: impl Fn(&ServicePortName) -> bool,
) -> Vec<SharedContent<'a>> {
    let (mut owners, mut keys, mut hashes) = (Vec::new(), Vec::<Key>::new(), Vec::new());
    for (name, record) in records.iter().filter(|(name, _)| is_included(name)) {
        let is_left_out = |key| overlaps.leave_out(name, chain, key);
        for (n, entry) in record.entries_in(chain).enumerate().filter(|(_, entry)| !is_left_out(&entry.key)) {
            owners.push((name, record, n));
            keys.push(entry.key);
            hashes.push(entry.hash);
        }
    }
    let contents = shared_chains(settings, layout, chain, &keys);
    let entries = Rc::new(SharedEntries { settings, chain, owners, hashes });
    contents.into_iter().map(|content| SharedContent { entries: entries.clone(), content }).collect()
}

impl SharedContent<'_> {
    /// The chain's name.
    pub fn name(&self) -> ChainName {
        self.content.name
    }

    /// The digest of its rules.
    pub fn digest(&self) -> Digest {
        let hash = |part: &Part| match part {
            Part::Entry(entry) => self.entries.hashes[*entry],
            Part::Rule(rule) => Digest::rule(rule),
        };
        self.content.parts.iter().fold(Digest::EMPTY, |digest, part| digest.then(hash(part)))
    }

    /// Makes its rules one after another.
    pub fn each_rule(&self, each: &mut dyn FnMut(&Rule)) {
        let mut last: Option<(&ServicePortName, Vec<Rule>)> = None;
        for part in &self.content.parts {
            match part {
                Part::Rule(rule) => each(rule),
                Part::Entry(entry) => {
                    let (owner, record, n) = self.entries.owners[*entry];
                    if last.as_ref().is_none_or(|(name, _)| *name != owner) {
                        last = Some((owner, self.entries.rules_of(record)));
                    }
                    if let Some(rule) = last.as_ref().and_then(|(_, rules)| rules.get(n)) {
                        each(rule);
                    }
                }
            }
        }
    }

    /// The chain with its rules.
    pub fn to_chain(&self) -> Chain {
        let mut rules = Vec::with_capacity(self.content.parts.len());
        self.each_rule(&mut |rule| rules.push(rule.clone()));
        Chain { table: self.entries.chain.table(), name: self.name(), rules }
    }
}

impl SharedEntries<'_> {
    /// The entries of one service port in this chain.
    fn rules_of(&self, record: &Record) -> Vec<Rule> {
        let entries = record.make_entries(self.settings).into_iter();
        entries.filter(|(chain, _)| *chain == self.chain).map(|(_, rule)| rule).collect()
    }
}
