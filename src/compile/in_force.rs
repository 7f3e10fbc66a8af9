//! What compiling has to know of the rules that the kernel holds.

use crate::iptables::{ChainName, Digest, Rule};
use crate::rules::{Layout, Settings, names, ownership};

/// The rules in force, as far as what is compiled depends on them.
pub trait InForce {
    /// Whether any of the jumps from the built-in chains is there. Without them no Service is served.
    fn has_jumps(&self) -> bool;
    /// Whether nat has the chain, whatever its content.
    fn has_nat_chain(&self, chain: &ChainName) -> bool;
    /// Whether the chain of nat is known to have this content.
    fn nat_chain_holds(&self, chain: &ChainName, content: Digest) -> bool;
    /// All chains of nat that are ours by name.
    fn nat_chains(&self) -> Box<dyn Iterator<Item = ChainName> + '_>;
}

/// A node without any rules.
#[derive(Clone, Copy, Debug)]
pub struct NoRules;

impl InForce for NoRules {
    fn has_jumps(&self) -> bool {
        false
    }

    fn has_nat_chain(&self, _: &ChainName) -> bool {
        false
    }

    fn nat_chain_holds(&self, _: &ChainName, _: Digest) -> bool {
        false
    }

    fn nat_chains(&self) -> Box<dyn Iterator<Item = ChainName> + '_> {
        Box::new(std::iter::empty())
    }
}

/// The layout of the rules in force.
pub(super) fn layout_of(in_force: &dyn InForce, settings: &Settings) -> Layout {
    let holds = |rules: &[Rule]| in_force.nat_chain_holds(&names::KUBE_POSTROUTING, Digest::of(rules));
    match ownership::is_compact(settings, in_force.nat_chains(), holds) {
        true => Layout::Compact,
        false => Layout::Classic { is_large: false },
    }
}
