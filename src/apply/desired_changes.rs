//! What changed, as the planner asks for it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::compile::{Changed, Group, InForce, SharedContent};
use crate::drift::References;
use crate::iptables::{Chain, ChainName, Digest};
use crate::plan::{Committed, DesiredRules, FixedNat, SharedNat, When};
use crate::rules::fixed::is_shared_with_kubelet;

impl InForce for Committed {
    fn has_jumps(&self) -> bool {
        !self.jumps.is_empty()
    }

    fn has_nat_chain(&self, chain: &ChainName) -> bool {
        self.nat.contains_key(chain)
    }

    fn nat_chain_holds(&self, chain: &ChainName, content: Digest) -> bool {
        self.nat.get(chain) == Some(&Some(content))
    }

    fn nat_chains(&self) -> Box<dyn Iterator<Item = ChainName> + '_> {
        Box::new(self.nat.keys().copied())
    }
}

/// What changed, as the planner asks for it.
pub(super) struct DesiredChanges<'a, 'c> {
    changed: &'a mut Changed<'c>,
    references: &'a mut References,
    stop: &'a AtomicBool,
    /// Stale chains that are flushed for the first time.
    pub(super) flushed: Vec<ChainName>,
    /// How long the chains of service ports took to compile.
    pub(super) compiling: Duration,
}

impl<'a, 'c> DesiredChanges<'a, 'c> {
    pub(super) fn new(
        changed: &'a mut Changed<'c>,
        references: &'a mut References,
        stop: &'a AtomicBool,
    ) -> DesiredChanges<'a, 'c> {
        DesiredChanges { changed, references, stop, flushed: Vec::new(), compiling: Duration::ZERO }
    }
}

impl DesiredRules for DesiredChanges<'_, '_> {
    fn filter(&mut self) -> Vec<Chain> {
        self.changed.filter_chains()
    }

    fn is_shared(&self, chain: &Chain) -> bool {
        is_shared_with_kubelet(chain)
    }

    fn fixed_nat(&mut self, committed: &Committed) -> FixedNat {
        let (first, last) = self.changed.fixed_nat_chains(committed);
        FixedNat { first, last }
    }

    fn service_ports<E>(
        &mut self,
        write: &mut dyn FnMut(&[Chain], When) -> Result<(), E>,
    ) -> Result<ControlFlow<()>, E> {
        let (started, mut writing) = (Instant::now(), Duration::ZERO);
        let ended = self.changed.each_group(|Group { chains, changes_with_dispatch, .. }| {
            let compiled = Instant::now();
            if self.stop.load(Ordering::Relaxed) {
                return Err(None);
            }
            let when = if changes_with_dispatch { When::WithDispatch } else { When::Now };
            let result = write(&chains, when).map_err(Some);
            writing += compiled.elapsed();
            result
        });
        self.compiling = started.elapsed().saturating_sub(writing);
        match ended {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(None) => Ok(ControlFlow::Break(())),
            Err(Some(failure)) => Err(failure),
        }
    }

    fn dispatch(&self) -> Vec<SharedNat<'_>> {
        let shared = self.changed.shared_nat_chains().into_iter();
        shared.map(shared_nat).collect()
    }

    fn stale_candidates(&mut self, committed: &Committed) -> BTreeSet<ChainName> {
        self.changed.stale_nat_candidates(committed)
    }

    fn keeps_stale(&mut self, name: ChainName) -> bool {
        let References { referenced, flushed, keeps_all } = &mut *self.references;
        if *keeps_all {
            referenced.insert(name);
        }
        let is_kept = referenced.contains(&name);
        if is_kept && flushed.insert(name) {
            self.flushed.push(name);
        }
        is_kept
    }
}

fn shared_nat(content: SharedContent<'_>) -> SharedNat<'_> {
    SharedNat {
        name: content.name(),
        digest: content.digest(),
        each_rule: Box::new(move |each| content.each_rule(each)),
    }
}
