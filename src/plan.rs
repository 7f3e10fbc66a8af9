//! What has to be written so that the kernel holds what is wanted, in which order, in how many
//! processes.
//!
//! [`Committed`] is what the kernel holds, a hash a chain. A [`Planner`] is given what is wanted
//! piece by piece, compares, and sends only chains that differ, as text, to a [`Restore`]: so
//! neither the old nor the new ruleset is ever whole in memory. The order, so that after every
//! commit each packet fares by its old or its new rules:
//!
//! 1. filter, with what is wanted and what was there: a filter rule for a Service address never
//!    meets a packet that nat has sent elsewhere, so both together do no harm;
//! 2. nat: callees before callers, the chains of one service port in one commit, dispatch, what
//!    leads into it, deletions;
//! 3. filter, without what is no longer wanted.

mod call_order;
mod committed;
mod delta;
mod fingerprints;
mod input;

pub use committed::{Committed, Found, Reader, UdpDoors};
pub use fingerprints::{Fingerprints, PendingFingerprints};
pub use input::{Aftermath, Limits, LineIndex, Restore, Tally, Uncertain};

use std::collections::BTreeSet;

use crate::iptables::{Chain, ChainName, Digest, Jump, Rule, Table, write};
use crate::net::IpFamily;
use call_order::callees_first;
use committed::Effect;
use input::{Input, Size, Waiting};

/// A restore that failed. What was committed before it is noted in [`Committed`].
#[derive(Debug)]
pub struct Failure<E> {
    /// Why.
    pub error: E,
    /// Which chain each line of the input was about.
    pub lines: LineIndex,
}

/// Turns what is wanted into inputs for iptables-restore. The methods are called in the order in
/// which they stand here; [`Planner::finish`] ends the last process. Where nobody is served yet,
/// [`Planner::filter_first`] may come after [`Planner::nat_last`]: nobody is refused before his time.
pub struct Planner<'a, R: Restore> {
    family: IpFamily,
    committed: &'a mut Committed,
    jumps: &'a [Jump],
    input: Input<'a, R>,
    /// Set when the union of the first step holds more than is wanted.
    has_leftovers: bool,
    /// Chains of nat that wait for the dispatch.
    deferred: Waiting,
    /// Set when what comes has to be committed together, however much it is.
    is_last: bool,
}

/// When a chain of nat is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// As soon as its batch is full: what leads to it now may find the new content.
    Now,
    /// If it is there already, in one commit with the dispatch: its new content is wrong for packets
    /// that the old dispatch sends to it.
    WithDispatch,
}

impl<'a, R: Restore> Planner<'a, R>
where
    R::Error: Uncertain,
{
    /// Plans from `committed`, which is kept up to date, to `restore`.
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
            input: Input::new(family, limits, restore),
            has_leftovers: false,
            deferred: Waiting::default(),
            is_last: false,
        }
    }

    /// Step 1: filter with the union of old and new rules, and the jumps that are missing there. `is_shared`
    /// tells of which chains only the presence is desired.
    pub fn filter_first(
        &mut self,
        wanted: &[Chain],
        is_shared: fn(&Chain) -> bool,
    ) -> Result<(), Failure<R::Error>> {
        let mut contents = Vec::new();
        for chain in wanted {
            match delta::union(self.committed, chain, is_shared(chain)) {
                delta::Union::AsItIs { has_leftovers } => self.has_leftovers |= has_leftovers,
                delta::Union::Write { rules, has_leftovers } => {
                    self.has_leftovers |= has_leftovers;
                    contents.push((chain.name, rules));
                }
            }
        }
        self.has_leftovers |= !wanted.is_empty() && !self.stale_filter(wanted).is_empty();
        self.write_filter(contents)?;
        self.insert_jumps(Table::Filter);
        Ok(())
    }

    /// Step 2: chains of nat that belong together, callees before callers. They are committed
    /// together unless they are too many for one process.
    pub fn nat_chains(&mut self, chains: &[Chain], when: When) -> Result<(), Failure<R::Error>> {
        let mut new: Vec<(&Chain, Digest)> = chains
            .iter()
            .map(|chain| (chain, Digest::of(&chain.rules)))
            .filter(|(chain, digest)| self.committed.nat.get(&chain.name) != Some(&Some(*digest)))
            .collect();
        let family = self.family;
        if when == When::WithDispatch {
            let is_there = |(chain, _): &mut (&Chain, Digest)| self.committed.nat.contains_key(&chain.name);
            for (chain, digest) in new.extract_if(.., is_there) {
                self.deferred.push(family, chain.name, digest, 1, |each| chain.rules.iter().for_each(each));
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let n_rules = new.iter().map(|(chain, _)| chain.rules.len()).sum();
        if !self.input.has_room_for(Size { n_names: new.len(), n_rules }) {
            self.end_batch()?;
        }
        for (chain, digest) in new {
            if !self.input.has_room_for(Size { n_names: 1, n_rules: chain.rules.len() }) {
                self.end_batch()?;
            }
            self.input.push(chain.name, digest, 1, |each| chain.rules.iter().for_each(each));
        }
        self.input.drain_if_streaming();
        Ok(())
    }

    /// Tries `rules` of `table` in the chain `name`, to which nothing leads and which is gone again with
    /// the same commit.
    pub fn probe(&mut self, table: Table, name: ChainName, rules: &[Rule]) {
        if rules.is_empty() {
            return;
        }
        self.input.drain();
        let mut text = String::new();
        write::declaration(&mut text, &name);
        rules.iter().for_each(|rule| write::append(&mut text, self.family, &name, rule));
        let effect = match table {
            Table::Filter => Effect::Filter(rules.to_vec()),
            _ => Effect::Nat(Digest::of(rules)),
        };
        self.input.lines(table, name, &text, effect);
        self.input.delete(table, &[name]);
    }

    /// Step 2: what comes now up to [`Planner::nat_last`] is committed together, if anything waits
    /// for it.
    pub fn nat_dispatch(&mut self) {
        let deferred = std::mem::take(&mut self.deferred);
        self.is_last |= !deferred.is_empty();
        self.input.push_all(deferred);
    }

    /// Whether chains wait for the dispatch.
    pub fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Step 2, for a chain with entries of many: `rules` is called only when `digest` differs from
    /// what is committed, and passes each rule on in order.
    pub fn nat_shared(
        &mut self,
        name: ChainName,
        digest: Digest,
        rules: impl FnOnce(&mut dyn FnMut(&Rule)),
    ) -> Result<(), Failure<R::Error>> {
        if self.committed.nat.get(&name) == Some(&Some(digest)) {
            return Ok(());
        }
        let size = Size { n_names: 1 + digest.n_rules as usize, n_rules: digest.n_rules as usize };
        // What is too large for any process is not made less so by one of its own.
        if !self.is_last && !self.input.has_room_for(size) && self.input.may_ever_have_room_for(size) {
            self.end_batch()?;
        }
        self.input.push(name, digest, size.n_names, rules);
        Ok(())
    }

    /// Step 2, its end: the jumps that are missing in nat, and deletion of `stale` chains. Nothing
    /// that is wanted refers to them.
    pub fn nat_last(&mut self, stale: &[ChainName]) -> Result<(), Failure<R::Error>> {
        self.input.drain();
        self.insert_jumps(Table::Nat);
        self.is_last = false;
        if stale.len() <= self.input.room_for_deletions() {
            if !stale.is_empty() {
                self.input.delete(Table::Nat, stale);
            }
            return Ok(());
        }
        self.end_batch()?;
        if stale.len() > self.input.room_for_names() {
            // What nobody wants may call each other in any way, and all of it cannot be emptied and
            // deleted in one process.
            for name in stale {
                self.flush_nat(*name)?;
            }
            self.end_batch()?;
        }
        let mut rest = stale;
        while !rest.is_empty() {
            if self.input.room_for_names() == 0 {
                self.end_batch()?;
            }
            let (now, later) = rest.split_at(rest.len().min(self.input.room_for_names()));
            self.input.delete(Table::Nat, now);
            rest = later;
        }
        Ok(())
    }

    /// Empties a chain of nat.
    pub fn flush_nat(&mut self, name: ChainName) -> Result<(), Failure<R::Error>> {
        self.nat_chains(&[Chain { table: Table::Nat, name, rules: Vec::new() }], When::Now)
    }

    /// Step 3: filter as it is wanted; `is_shared` as in the first step.
    pub fn filter_last(
        &mut self,
        wanted: &[Chain],
        is_shared: fn(&Chain) -> bool,
    ) -> Result<(), Failure<R::Error>> {
        if !self.has_leftovers {
            return Ok(());
        }
        let leftovers =
            wanted.iter().filter(|chain| delta::has_leftovers(self.committed, chain, is_shared(chain)));
        let contents = leftovers.map(|chain| (chain.name, chain.rules.clone())).collect();
        let stale = self.stale_filter(wanted);
        self.input.drain();
        self.write_filter(contents)?;
        if !stale.is_empty() {
            self.input.delete(Table::Filter, &stale);
        }
        Ok(())
    }

    /// Chains of filter that nobody wants. Those that have no chains of ours behind them are wanted
    /// always.
    fn stale_filter(&self, wanted: &[Chain]) -> Vec<ChainName> {
        let wanted: BTreeSet<ChainName> = wanted.iter().map(|chain| chain.name).collect();
        self.committed.filter.keys().filter(|name| !wanted.contains(*name)).copied().collect()
    }

    /// Ends the last process.
    pub fn finish(&mut self) -> Result<(), Failure<R::Error>> {
        self.end_batch()
    }

    /// What the kernel holds so far.
    pub fn committed(&self) -> &Committed {
        self.committed
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        self.input.tally()
    }

    /// Between two commits of it nothing is wrong: callees come first, and what was there is still in.
    fn write_filter(&mut self, mut contents: Vec<(ChainName, Vec<Rule>)>) -> Result<(), Failure<R::Error>> {
        let callees: Vec<Vec<ChainName>> =
            contents.iter().map(|(_, rules)| rules.iter().filter_map(Rule::callee).collect()).collect();
        let chains = contents.iter().zip(&callees).map(|((name, _), callees)| (*name, &callees[..]));
        for at in callees_first(chains) {
            let (name, rules) = (contents[at].0, std::mem::take(&mut contents[at].1));
            let size = Size { n_names: 1, n_rules: rules.len() };
            if !self.input.has_room_for(size) && self.input.may_ever_have_room_for(size) {
                self.end_batch()?;
            }
            let mut text = String::new();
            write::declaration(&mut text, &name);
            rules.iter().for_each(|rule| write::append(&mut text, self.family, &name, rule));
            self.input.lines(Table::Filter, name, &text, Effect::Filter(rules));
        }
        Ok(())
    }

    fn insert_jumps(&mut self, table: Table) {
        for jump in self.missing_jumps(table) {
            let mut text = String::new();
            write::insert(&mut text, self.family, &self.jumps[jump].from, &self.jumps[jump].rule);
            self.input.lines(table, self.jumps[jump].from, &text, Effect::Jump(jump));
        }
    }

    fn missing_jumps(&self, table: Table) -> Vec<usize> {
        let is_missing = |n: &usize| self.jumps[*n].table == table && !self.committed.jumps.contains(n);
        (0..self.jumps.len()).filter(is_missing).collect()
    }

    /// Ends the process that is open, if one is, and notes what it did.
    fn end_batch(&mut self) -> Result<(), Failure<R::Error>> {
        let Some((result, effects, lines)) = self.input.end() else { return Ok(()) };
        match result {
            Ok(()) => {
                effects
                    .into_iter()
                    .for_each(|(table, name, effect)| self.committed.apply(table, name, effect));
                Ok(())
            }
            Err(error) => {
                // Which table failed is not known for sure; what comes last was not committed.
                let last = effects.last().map(|(table, ..)| *table);
                let in_last = effects.iter().rev().take_while(|(table, ..)| Some(*table) == last).count();
                let n_uncertain = match error.aftermath() {
                    Aftermath::Nothing => 0,
                    Aftermath::EarlierTables => effects.len() - in_last,
                    Aftermath::Unknown => effects.len(),
                };
                for (table, name, effect) in &effects[..n_uncertain] {
                    self.committed.forget(*table, *name, effect);
                }
                Err(Failure { error, lines })
            }
        }
    }
}

#[cfg(test)]
mod tests;
