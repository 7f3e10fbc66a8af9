//! What a plan leads to, as the planner asks for it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::committed::Committed;
use crate::iptables::{Chain, ChainName, Digest, Rule, Table};

/// The desired rules of one family. The planner calls each method at most once ([`DesiredRules::keeps_stale`]
/// once for each stale chain), at the step that it belongs to; a method that is not implemented desires no
/// change there.
pub trait DesiredRules {
    /// All chains of filter, shared ones with their entries; none leaves filter alone.
    fn filter(&mut self) -> Vec<Chain> {
        Vec::new()
    }

    /// Whether only the presence of a chain of filter is desired, and its rules are another program's.
    fn is_shared(&self, _chain: &Chain) -> bool {
        false
    }

    /// The chains of nat that no Service changes.
    fn fixed_nat(&mut self, _committed: &Committed) -> FixedNat {
        FixedNat::default()
    }

    /// Writes the chains of each service port that changed, callees first, one service port a call.
    ///
    /// Returns the first error of writing. With `Break`, because the agent is asked to stop, no other step
    /// follows; what was passed is committed.
    fn service_ports<E>(&mut self, _write: WriteChains<'_, E>) -> Result<ControlFlow<()>, E> {
        Ok(ControlFlow::Continue(()))
    }

    /// The shared chains of nat, and the chains that lead from them to service ports, callees first; none
    /// leaves the dispatch alone.
    fn dispatch(&self) -> Vec<SharedNat<'_>> {
        Vec::new()
    }

    /// Committed chains of nat that are stale unless they are passed to the planner. Asked before
    /// the first step.
    fn stale_candidates(&mut self, _committed: &Committed) -> BTreeSet<ChainName> {
        BTreeSet::new()
    }

    /// Whether foreign rules refer to a stale chain of nat: it is flushed, not deleted.
    fn keeps_stale(&mut self, _name: ChainName) -> bool {
        false
    }

    /// Entries to try in a table, in a chain that does not exist; `None` where there are none.
    fn probe(&mut self, _table: Table) -> Option<Chain> {
        None
    }
}

/// Chains of nat that no Service changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FixedNat {
    /// Written before the service ports' chains.
    pub first: Vec<Chain>,
    /// Written after the dispatch.
    pub last: Vec<Chain>,
}

/// A chain of nat with entries of many service ports: its rules are not kept, but made as they are written.
pub struct SharedNat<'a> {
    /// Its name.
    pub name: ChainName,
    /// Of its rules.
    pub digest: Digest,
    /// Called when the digest differs from the committed one.
    pub each_rule: EachRule<'a>,
}

/// Passes each rule of a chain on, in order.
pub type EachRule<'a> = Box<dyn Fn(&mut dyn FnMut(&Rule)) + 'a>;

/// Writes chains that belong together, callees first.
pub type WriteChains<'a, E> = &'a mut (dyn FnMut(&[Chain], When) -> Result<(), E> + 'a);

/// When the chains of a service port are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// As soon as their batch is full: the old dispatch may lead to the new content.
    Now,
    /// A chain in force waits, and is committed together with the dispatch: its new content is wrong for
    /// packets that the old dispatch sends to it.
    WithDispatch,
}
