//! Takes the steps of a plan: compares what is desired with what is committed, and sends what differs.

use std::collections::BTreeSet;

use super::batch::{Batch, BatchEnd};
use super::call_order::callees_first;
use super::committed::{ChainChange, Committed};
use super::delta::{self, Union};
use super::desired::{DesiredRules, FixedNat, SharedNat, When};
use super::pending::{BatchSize, PendingChains};
use super::restore_process::{FailureEffect, Limits, Restore, RestoreCounts, RestoreFailure};
use super::steps::{PlanStep, StepOrder};
use crate::iptables::{Chain, ChainName, Digest, Jump, Rule, Table, write};
use crate::net::IpFamily;

/// Brings one family's tables from [`Committed`] to [`DesiredRules`], step by step ([`PlanStep`]).
///
/// ```
/// use chainsmith::iptables::{Chain, ChainName, Digest, Table};
/// use chainsmith::kernel::RestoreError;
/// use chainsmith::net::IpFamily;
/// use chainsmith::plan::{Committed, DesiredRules, FixedNat, Limits, Planner, Restore, StepOrder};
///
/// struct Text(String);
/// impl Restore for Text {
///     type Error = RestoreError;
///     fn begin(&mut self) {}
///     fn write(&mut self, text: &str) {
///         self.0.push_str(text);
///     }
///     fn end(&mut self) -> Result<(), RestoreError> {
///         Ok(())
///     }
/// }
///
/// const WEB: ChainName = ChainName::literal("WEB");
/// struct OneChain;
/// impl DesiredRules for OneChain {
///     fn fixed_nat(&mut self, _: &Committed) -> FixedNat {
///         let chain = Chain { table: Table::Nat, name: WEB, rules: Vec::new() };
///         FixedNat { first: vec![chain], last: Vec::new() }
///     }
/// }
///
/// let (mut committed, mut text) = (Committed::default(), Text(String::new()));
/// for n_processes in [1, 0] {
///     let planner = Planner::new(IpFamily::V4, &mut committed, &[], Limits::NFT, &mut text);
///     let (counts, result) = planner.run(StepOrder::FilterAroundNat, &mut OneChain);
///     assert!(result.is_ok());
///     assert_eq!(counts.n_processes, n_processes, "the second time nothing differs");
/// }
/// assert_eq!(text.0, "*nat\n:WEB - [0:0]\nCOMMIT\n");
/// assert_eq!(committed.nat[&WEB], Some(Digest::EMPTY));
/// ```
pub struct Planner<'a, R: Restore> {
    family: IpFamily,
    committed: &'a mut Committed,
    jumps: &'a [Jump],
    batch: Batch<'a, R>,
    /// Chains of filter, as desired, whose unions hold more than that.
    obsolete_filter: Vec<Chain>,
    stale_filter: Vec<ChainName>,
    fixed_last: Vec<Chain>,
    /// Chains of nat that wait for the dispatch.
    deferred: PendingChains,
    /// Set while everything that is passed on has to be committed together, however much it is.
    is_atomic: bool,
    /// Chains of nat that are stale unless they are desired.
    stale: BTreeSet<ChainName>,
}

impl<'a, R: Restore> Planner<'a, R>
where
    FailureEffect: for<'e> From<&'e R::Error>,
{
    /// Plans from `committed`, which it keeps up to date, to inputs of `restore`. `jumps` lead from built-in
    /// chains to desired ones; the missing ones are inserted.
    pub fn new(
        family: IpFamily,
        committed: &'a mut Committed,
        jumps: &'a [Jump],
        limits: Limits,
        restore: &'a mut R,
    ) -> Planner<'a, R> {
        Planner {
            family,
            committed,
            jumps,
            batch: Batch::new(family, limits, restore),
            obsolete_filter: Vec::new(),
            stale_filter: Vec::new(),
            fixed_last: Vec::new(),
            deferred: PendingChains::default(),
            is_atomic: false,
            stale: BTreeSet::new(),
        }
    }

    /// Takes the steps in `order`. Returns what was sent, also by a plan that failed; after a failure,
    /// [`Committed`] holds what is known to be in force.
    pub fn run(
        mut self,
        order: StepOrder,
        desired: &mut impl DesiredRules,
    ) -> (RestoreCounts, Result<(), RestoreFailure<R::Error>>) {
        let result = self.take_steps(order, desired).and_then(|()| self.end_batch());
        (self.batch.counts(), result)
    }

    fn take_steps(
        &mut self,
        order: StepOrder,
        desired: &mut impl DesiredRules,
    ) -> Result<(), RestoreFailure<R::Error>> {
        self.stale = desired.stale_candidates(self.committed);
        for step in order.steps() {
            match step {
                PlanStep::FilterUnion => self.filter_union(desired)?,
                PlanStep::FixedNat => {
                    let FixedNat { first, last } = desired.fixed_nat(self.committed);
                    self.fixed_last = last;
                    self.nat_chains(&first, When::Now)?;
                }
                PlanStep::ServicePorts => {
                    let end = desired.service_ports(&mut |chains, when| self.nat_chains(chains, when))?;
                    if end.is_break() {
                        return Ok(());
                    }
                }
                PlanStep::Dispatch => self.dispatch(desired.dispatch())?,
                PlanStep::FixedNatLast => {
                    let last = std::mem::take(&mut self.fixed_last);
                    self.nat_chains(&last, When::Now)?;
                }
                PlanStep::NatJumps => {
                    self.batch.drain();
                    self.insert_jumps(Table::Nat);
                    self.is_atomic = false;
                }
                PlanStep::StaleNat => self.stale_nat(desired)?,
                PlanStep::FilterDesired => self.filter_desired()?,
                PlanStep::ProbeFilter => self.probe(desired.probe(Table::Filter)),
                PlanStep::ProbeNat => self.probe(desired.probe(Table::Nat)),
            }
        }
        Ok(())
    }

    fn filter_union(&mut self, desired: &mut impl DesiredRules) -> Result<(), RestoreFailure<R::Error>> {
        let chains = desired.filter();
        if !chains.is_empty() {
            let names: BTreeSet<ChainName> = chains.iter().map(|chain| chain.name).collect();
            let stale = self.committed.filter.keys().filter(|name| !names.contains(*name));
            self.stale_filter = stale.copied().collect();
        }
        let mut unions = Vec::new();
        for chain in chains {
            let Union { rules, has_obsolete } =
                delta::union(self.committed, &chain, desired.is_shared(&chain));
            unions.extend(rules.map(|rules| Chain { rules, ..chain }));
            if has_obsolete {
                self.obsolete_filter.push(chain);
            }
        }
        self.write_filter(unions)?;
        self.insert_jumps(Table::Filter);
        Ok(())
    }

    /// Chains of nat that belong together, callees first. They are committed together unless they are too
    /// many for one process.
    fn nat_chains(&mut self, chains: &[Chain], when: When) -> Result<(), RestoreFailure<R::Error>> {
        for chain in chains {
            self.stale.remove(&chain.name);
        }
        let mut new: Vec<(&Chain, Digest)> = chains
            .iter()
            .map(|chain| (chain, Digest::of(&chain.rules)))
            .filter(|(chain, digest)| self.committed.nat.get(&chain.name) != Some(&Some(*digest)))
            .collect();
        let family = self.family;
        if when == When::WithDispatch {
            let is_in_force =
                |(chain, _): &mut (&Chain, Digest)| self.committed.nat.contains_key(&chain.name);
            for (chain, digest) in new.extract_if(.., is_in_force) {
                self.deferred.push(family, chain.name, digest, 1, |each| chain.rules.iter().for_each(each));
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let n_rules = new.iter().map(|(chain, _)| chain.rules.len()).sum();
        if !self.batch.has_room_for(BatchSize { n_names: new.len(), n_rules }) {
            self.end_batch()?;
        }
        for (chain, digest) in new {
            if !self.batch.has_room_for(BatchSize { n_names: 1, n_rules: chain.rules.len() }) {
                self.end_batch()?;
            }
            self.batch.push(chain.name, digest, 1, |each| chain.rules.iter().for_each(each));
        }
        self.batch.drain_if_streaming();
        Ok(())
    }

    /// Where chains wait for the dispatch, they and the chains of the dispatch that are in force are committed
    /// together; chains of the dispatch that are not in force, to which nothing leads, come before.
    fn dispatch(&mut self, chains: Vec<SharedNat<'_>>) -> Result<(), RestoreFailure<R::Error>> {
        for chain in &chains {
            self.stale.remove(&chain.name);
        }
        let comes_before = |chain: &SharedNat<'_>| {
            !self.deferred.is_empty() && !self.committed.nat.contains_key(&chain.name)
        };
        let (new, in_force): (Vec<_>, Vec<_>) = chains.into_iter().partition(comes_before);
        for chain in new {
            self.shared_nat(chain)?;
        }
        self.is_atomic |= !self.deferred.is_empty();
        self.batch.push_all(std::mem::take(&mut self.deferred));
        in_force.into_iter().try_for_each(|chain| self.shared_nat(chain))
    }

    fn shared_nat(&mut self, chain: SharedNat<'_>) -> Result<(), RestoreFailure<R::Error>> {
        let SharedNat { name, digest, each_rule } = chain;
        if self.committed.nat.get(&name) == Some(&Some(digest)) {
            return Ok(());
        }
        let n_rules = digest.n_rules as usize;
        let size = BatchSize { n_names: 1 + n_rules, n_rules };
        // A process of its own makes a chain that is too large for any process no smaller.
        if !self.is_atomic && !self.batch.has_room_for(size) && self.batch.may_ever_have_room_for(size) {
            self.end_batch()?;
        }
        self.batch.push(name, digest, size.n_names, each_rule);
        Ok(())
    }

    fn stale_nat(&mut self, desired: &mut impl DesiredRules) -> Result<(), RestoreFailure<R::Error>> {
        let (kept, stale): (Vec<ChainName>, Vec<ChainName>) =
            std::mem::take(&mut self.stale).into_iter().partition(|name| desired.keeps_stale(*name));
        kept.into_iter().try_for_each(|name| self.flush_nat(name))?;
        self.batch.drain();
        if stale.len() <= self.batch.room_for_deletions() {
            if !stale.is_empty() {
                self.batch.delete(Table::Nat, &stale);
            }
            return Ok(());
        }
        self.end_batch()?;
        if stale.len() > self.batch.room_for_names() {
            // Stale chains may call each other in any way, and they cannot all be flushed and deleted in one
            // process.
            stale.iter().try_for_each(|name| self.flush_nat(*name))?;
            self.end_batch()?;
        }
        let mut rest = &stale[..];
        while !rest.is_empty() {
            if self.batch.room_for_names() == 0 {
                self.end_batch()?;
            }
            let (now, later) = rest.split_at(rest.len().min(self.batch.room_for_names()));
            self.batch.delete(Table::Nat, now);
            rest = later;
        }
        Ok(())
    }

    fn flush_nat(&mut self, name: ChainName) -> Result<(), RestoreFailure<R::Error>> {
        self.nat_chains(&[Chain { table: Table::Nat, name, rules: Vec::new() }], When::Now)
    }

    fn filter_desired(&mut self) -> Result<(), RestoreFailure<R::Error>> {
        self.batch.drain();
        let chains = std::mem::take(&mut self.obsolete_filter);
        self.write_filter(chains)?;
        if !self.stale_filter.is_empty() {
            self.batch.delete(Table::Filter, &self.stale_filter);
        }
        Ok(())
    }

    /// Writes chains of filter; between two commits of it every rule in force is still there.
    fn write_filter(&mut self, mut chains: Vec<Chain>) -> Result<(), RestoreFailure<R::Error>> {
        let callees: Vec<Vec<ChainName>> =
            chains.iter().map(|chain| chain.rules.iter().filter_map(Rule::callee).collect()).collect();
        let order =
            callees_first(chains.iter().map(|chain| chain.name).zip(callees.iter().map(Vec::as_slice)));
        for at in order {
            let (name, rules) = (chains[at].name, std::mem::take(&mut chains[at].rules));
            let size = BatchSize { n_names: 1, n_rules: rules.len() };
            if !self.batch.has_room_for(size) && self.batch.may_ever_have_room_for(size) {
                self.end_batch()?;
            }
            let text = self.text_of(&name, &rules);
            self.batch.lines(Table::Filter, name, &text, ChainChange::SetFilter(rules));
        }
        Ok(())
    }

    /// Writes a chain that is deleted again in the same commit.
    fn probe(&mut self, probe: Option<Chain>) {
        let Some(Chain { table, name, rules }) = probe else { return };
        self.batch.drain();
        let text = self.text_of(&name, &rules);
        let change = match table {
            Table::Filter => ChainChange::SetFilter(rules),
            Table::Nat | Table::Mangle | Table::Security | Table::Raw => {
                ChainChange::SetNat(Digest::of(&rules))
            }
        };
        self.batch.lines(table, name, &text, change);
        self.batch.delete(table, &[name]);
    }

    fn text_of(&self, name: &ChainName, rules: &[Rule]) -> String {
        let mut text = String::new();
        write::declaration(&mut text, name);
        rules.iter().for_each(|rule| write::append(&mut text, self.family, name, rule));
        text
    }

    fn insert_jumps(&mut self, table: Table) {
        for (number, jump) in self.jumps.iter().enumerate() {
            if jump.table == table && !self.committed.jumps.contains(&number) {
                let mut text = String::new();
                write::insert(&mut text, self.family, &jump.from, &jump.rule);
                self.batch.lines(table, jump.from, &text, ChainChange::InsertJump(number));
            }
        }
    }

    /// Ends the process that is open, if one is, and records what it did.
    fn end_batch(&mut self) -> Result<(), RestoreFailure<R::Error>> {
        let Some(BatchEnd { result, changes, lines }) = self.batch.end() else { return Ok(()) };
        let Err(error) = result else {
            for (table, name, change) in changes {
                self.committed.apply(table, name, change);
            }
            return Ok(());
        };
        // Which table failed is not known for sure; the last one was not committed.
        let last = changes.last().map(|(table, ..)| *table);
        let n_in_last = changes.iter().rev().take_while(|(table, ..)| Some(*table) == last).count();
        let n_uncertain = match FailureEffect::from(&error) {
            FailureEffect::NothingApplied => 0,
            FailureEffect::EarlierTablesApplied => changes.len() - n_in_last,
            FailureEffect::Unknown => changes.len(),
        };
        for (table, name, change) in &changes[..n_uncertain] {
            self.committed.mark_uncertain(*table, *name, change);
        }
        Err(RestoreFailure { error, lines })
    }
}
