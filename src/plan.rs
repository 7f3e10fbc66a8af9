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

mod committed;
mod delta;
mod fingerprints;
mod input;

pub use committed::{Committed, Digest, Found, Reader, UdpDoors};
pub use fingerprints::{Fingerprints, Pending};
pub use input::{Aftermath, Limits, LineIndex, Restore, Tally, Uncertain};

use std::collections::BTreeMap;

use crate::iptables::{ChainName, Jump, Rule, Table, write};
use crate::net::IpFamily;
use committed::Effect;
use input::{Input, Size};

/// What a chain of filter is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterChain {
    /// Its rules.
    pub rules: Vec<Rule>,
    /// Callees have a lower one.
    pub rank: u8,
    /// It only has to be there; what others put into it stays. `rules` is empty then.
    pub is_shared_with_kubelet: bool,
}

/// A chain of nat as it is wanted.
#[derive(Clone, Copy, Debug)]
pub struct NatChain<'a> {
    /// Its name.
    pub name: ChainName,
    /// Callees have a lower one; chains of equal rank do not call each other.
    pub rank: u8,
    /// Its rules.
    pub rules: &'a [Rule],
}

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
    deferred: Vec<Deferred>,
    /// Set when what comes has to be committed together, however much it is.
    is_last: bool,
}

/// A chain of nat that is there, and changes together with what leads to it.
struct Deferred {
    name: ChainName,
    rank: u8,
    digest: Digest,
    text: String,
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
            input: Input::new(limits, restore),
            has_leftovers: false,
            deferred: Vec::new(),
            is_last: false,
        }
    }

    /// Step 1: filter with the union of old and new rules, and the jumps that are missing there.
    pub fn filter_first(
        &mut self,
        wanted: &BTreeMap<ChainName, FilterChain>,
    ) -> Result<(), Failure<R::Error>> {
        let mut contents = Vec::new();
        for (name, chain) in wanted {
            match delta::union(self.committed, name, chain) {
                delta::Union::AsItIs { has_leftovers } => self.has_leftovers |= has_leftovers,
                delta::Union::Write { rules, has_leftovers } => {
                    self.has_leftovers |= has_leftovers;
                    contents.push((*name, chain.rank, rules));
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
    pub fn nat_chains(&mut self, chains: &[NatChain<'_>], when: When) -> Result<(), Failure<R::Error>> {
        let mut new: Vec<(&NatChain<'_>, Digest)> = chains
            .iter()
            .map(|chain| (chain, Digest::of(chain.rules)))
            .filter(|(chain, digest)| self.committed.nat.get(&chain.name) != Some(&Some(*digest)))
            .collect();
        if when == When::WithDispatch {
            let is_there =
                |(chain, _): &mut (&NatChain<'_>, Digest)| self.committed.nat.contains_key(&chain.name);
            let waiting = new.extract_if(.., is_there).map(|(chain, digest)| self.deferred(chain, digest));
            let waiting: Vec<Deferred> = waiting.collect();
            self.deferred.extend(waiting);
        }
        if new.is_empty() {
            return Ok(());
        }
        let n_rules = new.iter().map(|(chain, _)| chain.rules.len()).sum();
        if !self.input.has_room_for(Size { n_names: new.len(), n_rules }) {
            self.end_batch()?;
        }
        let family = self.family;
        for (NatChain { name, rank, rules }, digest) in new {
            if !self.input.has_room_for(Size { n_names: 1, n_rules: rules.len() }) {
                self.end_batch()?;
            }
            self.input.push(*name, *rank, 1, Effect::Nat(digest), |text| {
                write::declaration(text, name);
                rules.iter().for_each(|rule| write::append(text, family, name, rule));
            });
        }
        self.input.drain_if_streaming();
        Ok(())
    }

    fn deferred(&self, chain: &NatChain<'_>, digest: Digest) -> Deferred {
        let mut text = String::new();
        write::declaration(&mut text, &chain.name);
        chain.rules.iter().for_each(|rule| write::append(&mut text, self.family, &chain.name, rule));
        Deferred { name: chain.name, rank: chain.rank, digest, text }
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
        for Deferred { name, rank, digest, text } in std::mem::take(&mut self.deferred) {
            self.is_last = true;
            self.input.push(name, rank, 1, Effect::Nat(digest), |waiting| waiting.push_str(&text));
        }
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
        rank: u8,
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
        let family = self.family;
        self.input.push(name, rank, size.n_names, Effect::Nat(digest), |text| {
            write::declaration(text, &name);
            rules(&mut |rule| write::append(text, family, &name, rule));
        });
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
                self.nat_chains(&[NatChain { name: *name, rank: 0, rules: &[] }], When::Now)?;
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

    /// Step 3: filter as it is wanted.
    pub fn filter_last(
        &mut self,
        wanted: &BTreeMap<ChainName, FilterChain>,
    ) -> Result<(), Failure<R::Error>> {
        if !self.has_leftovers {
            return Ok(());
        }
        let leftovers =
            wanted.iter().filter(|(name, chain)| delta::has_leftovers(self.committed, name, chain));
        let contents = leftovers.map(|(name, chain)| (*name, chain.rank, chain.rules.clone())).collect();
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
    fn stale_filter(&self, wanted: &BTreeMap<ChainName, FilterChain>) -> Vec<ChainName> {
        self.committed.filter.keys().filter(|name| !wanted.contains_key(*name)).copied().collect()
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
    fn write_filter(
        &mut self,
        mut contents: Vec<(ChainName, u8, Vec<Rule>)>,
    ) -> Result<(), Failure<R::Error>> {
        contents.sort_by_key(|(name, rank, _)| (*rank, *name));
        for (name, _, rules) in contents {
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
