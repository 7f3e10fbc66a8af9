//! Reads counters of DNAT rules, beside whatever else reads or writes the tables; and reports commits that replace them.

use std::io;

use super::{Backend, nft, xtables};
use crate::iptables::{ChainName, DnatRule};
use crate::net::IpFamily;

/// Reads counters of nat.
pub trait CounterReader: Send + Sync {
    /// The DNAT rules of `chains` (sorted) of nat; none of a chain that does not exist.
    fn dnat_rules(&self, family: IpFamily, chains: &[ChainName]) -> io::Result<Vec<DnatRule>>;
    /// How many chains to read with one call, so that it takes a few milliseconds.
    fn slice(&self) -> usize;
    /// Whether counters may fall for a moment while another process writes.
    fn may_fall(&self) -> bool;
}

impl CounterReader for Backend {
    fn dnat_rules(&self, family: IpFamily, chains: &[ChainName]) -> io::Result<Vec<DnatRule>> {
        match self {
            Backend::Nft => nft::dnat_rules(family, chains),
            Backend::Legacy => xtables::dnat_rules(family, chains),
        }
    }

    fn slice(&self) -> usize {
        match self {
            // 20 us each.
            Backend::Nft => 256,
            // The kernel returns the whole table, however few are asked for: 1 us a rule.
            Backend::Legacy => usize::MAX,
        }
    }

    fn may_fall(&self) -> bool {
        *self == Backend::Legacy
    }
}

/// Observes commits to nat as they are made. Called on the thread of the sync.
pub trait CommitObserver: Send + Sync {
    /// `iptables-restore` has all lines that replace or delete `chains` of nat, and the COMMIT follows at once: the
    /// counters of their rules will be gone.
    fn before_commit(&self, family: IpFamily, chains: &[ChainName]);
    /// The `iptables-restore` ended that made the commits since it was started. `is_success`: all of them are in
    /// force; else some may be.
    fn restored(&self, family: IpFamily, is_success: bool);
}

#[cfg(test)]
mod tests;
