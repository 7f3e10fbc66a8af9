//! Chains of nat as text that wait for their place in an input.

use std::ops::Range;

use super::call_order::callees_first;
use crate::iptables::{ChainName, Digest, Rule, write};
use crate::net::IpFamily;

/// A part of a batch: what there has to be room for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BatchSize {
    /// Chains named, about.
    pub(super) n_names: usize,
    pub(super) n_rules: usize,
}

impl BatchSize {
    pub(super) fn add(&mut self, other: BatchSize) {
        self.n_names = self.n_names.saturating_add(other.n_names);
        self.n_rules = self.n_rules.saturating_add(other.n_rules);
    }
}

/// Chains of nat as text, in any order.
#[derive(Debug, Default)]
pub(super) struct PendingChains {
    pub(super) size: BatchSize,
    chains: Vec<PendingChain>,
    text: String,
    callees: Vec<ChainName>,
}

#[derive(Debug)]
struct PendingChain {
    name: ChainName,
    digest: Digest,
    /// Its place in [`PendingChains::text`].
    text: Range<usize>,
    /// The place of its callees in [`PendingChains::callees`].
    callees: Range<usize>,
}

impl PendingChains {
    /// Adds a chain that `each_rule` passes rule by rule, and that names `n_names` chains.
    pub(super) fn push(
        &mut self,
        family: IpFamily,
        name: ChainName,
        digest: Digest,
        n_names: usize,
        each_rule: impl FnOnce(&mut dyn FnMut(&Rule)),
    ) {
        self.size.add(BatchSize { n_names, n_rules: digest.n_rules as usize });
        let PendingChains { chains, text, callees, .. } = self;
        let (text_start, callees_start) = (text.len(), callees.len());
        write::declaration(text, &name);
        each_rule(&mut |rule| {
            callees.extend(rule.callee());
            write::append(text, family, &name, rule);
        });
        let (text, callees) = (text_start..text.len(), callees_start..callees.len());
        chains.push(PendingChain { name, digest, text, callees });
    }

    /// Adds all chains of `other`.
    pub(super) fn append(&mut self, other: PendingChains) {
        self.size.add(other.size);
        let (n_bytes, n_callees) = (self.text.len(), self.callees.len());
        self.text.push_str(&other.text);
        self.callees.extend(other.callees);
        self.chains.extend(other.chains.into_iter().map(|chain| PendingChain {
            text: chain.text.start + n_bytes..chain.text.end + n_bytes,
            callees: chain.callees.start + n_callees..chain.callees.end + n_callees,
            ..chain
        }));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Bytes of text.
    pub(super) fn n_bytes(&self) -> usize {
        self.text.len()
    }

    /// Passes each chain with its text to `each`, callees first.
    pub(super) fn in_order(&self, mut each: impl FnMut(ChainName, Digest, &str)) {
        let chains = self.chains.iter();
        let order = callees_first(chains.map(|chain| (chain.name, &self.callees[chain.callees.clone()])));
        for at in order {
            let PendingChain { name, digest, text, .. } = &self.chains[at];
            each(*name, *digest, &self.text[text.clone()]);
        }
    }

    /// Removes all chains; keeps the memory.
    pub(super) fn clear(&mut self) {
        self.size = BatchSize::default();
        self.chains.clear();
        self.text.clear();
        self.callees.clear();
    }
}
