//! The language of iptables as values: tables, chains, rules, and their text.
//!
//! One form of text serves both directions: [`mod@write`] produces the text that `iptables-save` prints and
//! `iptables-restore` reads. [`parse`] reads it back into the same values, so that rulesets are compared
//! as values and never as text. Knows nothing of Kubernetes.

mod chain;
pub mod diff;
mod digest;
mod dnat_rule;
mod fingerprint;
pub mod parse;
pub mod replay;
mod rule;
mod ruleset;
pub mod saved_counters;
pub mod trace;
pub mod write;

pub use chain::{ChainName, Table};
pub use digest::{Digest, keyed_hash};
pub use dnat_rule::{DnatRule, FirstPackets};
pub use fingerprint::Fingerprint;
pub use rule::{
    AddressSide, CtStates, Interface, L4Protocol, Match, MaybeNot, PortRange, RecentAction, Rule, Target,
};
pub use ruleset::{Chain, ChainContent, Jump, Policy, Ruleset};
