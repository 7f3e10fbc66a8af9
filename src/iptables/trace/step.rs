//! One rule on a packet's path.

use std::fmt;

use super::packet::Hook;
use crate::iptables::{ChainName, Table};

/// A rule that a packet matched, or the policy at the end of a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// Where in the kernel.
    pub hook: Hook,
    /// The table.
    pub table: Table,
    /// The chain.
    pub chain: ChainName,
    /// The rule's number, from 1; `None` for the chain's policy.
    pub rule: Option<usize>,
}

/// `nat KUBE-SERVICES rule 3`
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(number) => write!(f, "{} {} rule {number}", self.table, self.chain),
            None => write!(f, "{} {} policy", self.table, self.chain),
        }
    }
}
