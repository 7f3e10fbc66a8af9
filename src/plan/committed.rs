//! What the kernel holds of our chains: a hash for each chain of nat, the rules of filter's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::fingerprints::Fingerprints;
use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainName, Digest, Jump, Match, Rule, Table};
use crate::net::{IpFamily, Protocol};

/// What one piece of an input does to the chain it is about.
#[derive(Debug)]
pub(super) enum Effect {
    /// A chain of nat holds this.
    Nat(Digest),
    /// The chain is gone.
    Deleted,
    /// A chain of filter holds this.
    Filter(Vec<Rule>),
    /// The jump of this number is in place.
    Jump(usize),
}

/// What the kernel holds, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// Chains of nat that are there; `None` when their content is not known.
    pub nat: BTreeMap<ChainName, Option<Digest>>,
    /// Chains of filter that are there, with their rules; `None` when they are not known. Kept
    /// whole because the old rules are needed while they are replaced; they are few.
    pub filter: BTreeMap<ChainName, Option<Vec<Rule>>>,
    /// Of chains of filter whose rules are not known, since a commit of which it is not known whether it took
    /// effect: the rules before it and its own, each once. Any others are not there, as long as no other
    /// process writes.
    pub possible: BTreeMap<ChainName, Vec<Rule>>,
    /// Which of the jumps are in place, by their number.
    pub jumps: BTreeSet<usize>,
    /// Fingerprints of the chains, where they were recorded.
    pub fingerprints: Fingerprints,
}

/// So many rules of a chain are remembered as possible; of one with more none are.
const MAX_POSSIBLE: usize = 100_000;

impl Committed {
    /// How many chains are there.
    pub fn n_chains(&self) -> usize {
        self.nat.len() + self.filter.len()
    }

    /// Marks the fingerprints of all chains of known content as pending: everything was read just now.
    pub fn mark_read(&mut self) {
        let nat =
            self.nat.iter().filter(|(_, content)| content.is_some()).map(|(name, _)| (Table::Nat, *name));
        let filter = self.filter.iter().filter(|(_, content)| content.is_some());
        let filter = filter.map(|(name, _)| (Table::Filter, *name));
        nat.chain(filter).for_each(|(table, name)| self.fingerprints.mark_pending(table, name));
    }

    /// How many rules of ours `table` holds.
    pub fn n_rules(&self, table: Table) -> usize {
        match table {
            Table::Nat => self.nat.values().flatten().map(|digest| digest.n_rules as usize).sum(),
            Table::Filter => self.filter.values().flatten().map(Vec::len).sum(),
            Table::Mangle => 0,
        }
    }

    pub(super) fn apply(&mut self, table: Table, name: ChainName, effect: Effect) {
        match effect {
            Effect::Nat(_) | Effect::Filter(_) => self.fingerprints.mark_pending(table, name),
            Effect::Deleted => self.fingerprints.remove(table, name),
            Effect::Jump(_) => {}
        }
        if table == Table::Filter {
            self.possible.remove(&name);
        }
        match effect {
            Effect::Nat(digest) => drop(self.nat.insert(name, Some(digest))),
            Effect::Deleted if table == Table::Filter => drop(self.filter.remove(&name)),
            Effect::Deleted => drop(self.nat.remove(&name)),
            Effect::Filter(rules) => drop(self.filter.insert(name, Some(rules))),
            Effect::Jump(number) => drop(self.jumps.insert(number)),
        }
    }

    /// Notes that nobody knows whether `effect` came about.
    pub(super) fn forget(&mut self, table: Table, name: ChainName, effect: &Effect) {
        if !matches!(effect, Effect::Jump(_)) {
            self.fingerprints.remove(table, name);
        }
        match effect {
            Effect::Deleted if table == Table::Filter => self.forget_filter(name, &[]),
            Effect::Nat(_) | Effect::Deleted => drop(self.nat.insert(name, None)),
            Effect::Filter(rules) => self.forget_filter(name, rules),
            // Taken for in place: a jump written twice would do every lookup twice. The next look
            // at the kernel tells.
            Effect::Jump(number) => drop(self.jumps.insert(*number)),
        }
    }

    /// Notes that a chain of filter holds what it did or `rules`.
    fn forget_filter(&mut self, name: ChainName, rules: &[Rule]) {
        let is_unknown = matches!(self.filter.get(&name), Some(None)) && !self.possible.contains_key(&name);
        let before = self.filter.insert(name, None).flatten();
        if is_unknown {
            return;
        }
        let possible = self.possible.entry(name).or_default();
        let mut known: BTreeSet<u64> = possible.iter().map(Digest::rule).collect();
        let more = before.iter().flatten().chain(rules).filter(|rule| known.insert(Digest::rule(rule)));
        possible.extend(more.cloned());
        if possible.len() > MAX_POSSIBLE {
            self.possible.remove(&name);
        }
    }
}

/// What rules of nat for UDP answer on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpDoors {
    /// An address and a port.
    pub addresses: BTreeSet<SocketAddr>,
    /// A port on whichever addresses its chain is for: a node port.
    pub node_ports: BTreeSet<u16>,
}

impl UdpDoors {
    fn add(&mut self, rule: &Rule) {
        let port = rule.matches.iter().find_map(|m| match m {
            Match::L4 { protocol: Protocol::Udp, destination_ports: Some(ports) }
                if ports.first == ports.last =>
            {
                Some(ports.first)
            }
            _ => None,
        });
        match (port, &rule.destination) {
            (Some(port), None) => drop(self.node_ports.insert(port)),
            (Some(port), Some(to)) if !to.negated && to.value.length() == to.value.family().bits() => {
                self.addresses.insert(SocketAddr::new(to.value.address(), port));
            }
            _ => {}
        }
    }
}

/// Reads the output of `iptables-save` line by line into a [`Committed`].
pub struct Reader<'a> {
    family: IpFamily,
    jumps: &'a [Jump],
    is_ours: &'a dyn Fn(Table, &ChainName) -> bool,
    table: Option<Table>,
    committed: Committed,
    doors: UdpDoors,
    referenced: BTreeSet<ChainName>,
    /// Lines of a rule whose quotes are still open.
    open: Vec<String>,
}

/// A rule is no longer than this, however many of its comments hold newlines.
const MAX_RULE: usize = 8 << 10;

/// What a [`Reader`] has read.
#[derive(Debug, Default)]
pub struct Found {
    /// Our chains, and jumps to them.
    pub committed: Committed,
    /// What rules of nat for UDP answer on.
    pub doors: UdpDoors,
    /// Chains of nat that are ours by name, and that rules in foreign chains lead to.
    pub referenced: BTreeSet<ChainName>,
}

impl<'a> Reader<'a> {
    /// Reads chains for which `is_ours` holds, and looks for `jumps`.
    pub fn new(
        family: IpFamily,
        jumps: &'a [Jump],
        is_ours: &'a dyn Fn(Table, &ChainName) -> bool,
    ) -> Reader<'a> {
        let (committed, doors) = (Committed::default(), UdpDoors::default());
        let (referenced, open) = (BTreeSet::new(), Vec::new());
        Reader { family, jumps, is_ours, table: None, committed, doors, referenced, open }
    }

    /// Takes one line. A rule that cannot be read makes its chain one of unknown content, if it is ours.
    ///
    /// iptables-save prints a newline in a comment as it is, so that a rule may be several lines, and the
    /// second may look like anything.
    pub fn line(&mut self, text: &str) {
        if self.open.is_empty() && !has_open_quote(text) {
            return self.whole_line(text);
        }
        self.open.push(text.to_owned());
        let rule = self.open.join("\n");
        if !has_open_quote(&rule) {
            self.open.clear();
            self.whole_line(&rule);
        } else if rule.len() > MAX_RULE {
            self.give_up_rule();
        }
    }

    /// Takes the first of the open lines for a rule that cannot be read, and the others for themselves.
    fn give_up_rule(&mut self) {
        let mut lines = std::mem::take(&mut self.open).into_iter();
        if let Some(first) = lines.next() {
            self.whole_line(&first);
        }
        lines.for_each(|line| self.line(&line));
    }

    fn whole_line(&mut self, text: &str) {
        match (parse::line(self.family, text), self.table) {
            (Ok(Line::Table(word)), _) => self.table = Table::parse(&word),
            (Ok(Line::Declaration(name, _)), Some(table)) if (self.is_ours)(table, &name) => match table {
                Table::Nat => drop(self.committed.nat.insert(name, Some(Digest::EMPTY))),
                Table::Filter => drop(self.committed.filter.insert(name, Some(Vec::new()))),
                Table::Mangle => {}
            },
            (Ok(Line::Append(name, rule)), Some(table)) => self.rule(table, name, rule),
            (Err(_), Some(table)) => self.unreadable(table, text),
            _ => {}
        }
    }

    fn rule(&mut self, table: Table, name: ChainName, rule: Rule) {
        let is_wanted = |jump: &Jump| jump.table == table && jump.from == name && jump.rule == rule;
        if let Some(number) = self.jumps.iter().position(is_wanted) {
            self.committed.jumps.insert(number);
        }
        if !(self.is_ours)(table, &name) {
            let callee = rule.callee().filter(|callee| (self.is_ours)(table, callee));
            self.referenced.extend(callee.filter(|_| table == Table::Nat));
            return;
        }
        match table {
            Table::Nat => {
                self.doors.add(&rule);
                if let Some(Some(digest)) = self.committed.nat.get_mut(&name) {
                    *digest = digest.then(Digest::rule(&rule));
                }
            }
            Table::Filter => {
                if let Some(Some(rules)) = self.committed.filter.get_mut(&name) {
                    rules.push(rule);
                }
            }
            Table::Mangle => {}
        }
    }

    fn unreadable(&mut self, table: Table, text: &str) {
        let mut words = text.split_ascii_whitespace().skip_while(|word| word.starts_with('['));
        let is_rule = words.next() == Some("-A");
        let Some(name) = words.next().filter(|_| is_rule).and_then(ChainName::new) else { return };
        match table {
            Table::Nat => drop(self.committed.nat.entry(name).and_modify(|digest| *digest = None)),
            Table::Filter => drop(self.committed.filter.entry(name).and_modify(|rules| *rules = None)),
            Table::Mangle => {}
        }
    }

    /// What was read.
    pub fn finish(mut self) -> Found {
        while !self.open.is_empty() {
            self.give_up_rule();
        }
        Found { committed: self.committed, doors: self.doors, referenced: self.referenced }
    }
}

/// Whether `text`, which is a rule, ends within quotes.
fn has_open_quote(text: &str) -> bool {
    let mut is_open = false;
    let mut bytes = text.trim_start().bytes();
    if !text.trim_start().starts_with(['-', '[']) {
        return false;
    }
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_open = !is_open,
            b'\\' if is_open => drop(bytes.next()),
            _ => {}
        }
    }
    is_open
}
