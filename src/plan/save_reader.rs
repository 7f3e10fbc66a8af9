//! Reads the output of `iptables-save` into what is committed.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::committed::Committed;
use crate::iptables::parse::{self, Line};
use crate::iptables::{ChainName, Digest, Jump, Match, Rule, Table};
use crate::net::{IpFamily, Protocol};

/// The frontends of rules of nat for UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpFrontends {
    /// An address and a port.
    pub addresses: BTreeSet<SocketAddr>,
    /// Node ports: a port without an address.
    pub node_ports: BTreeSet<u16>,
}

impl UdpFrontends {
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
pub struct SaveReader<'a> {
    family: IpFamily,
    jumps: &'a [Jump],
    is_ours: &'a dyn Fn(Table, &ChainName) -> bool,
    table: Option<Table>,
    committed: Committed,
    inherited_udp: UdpFrontends,
    referenced: BTreeSet<ChainName>,
    /// Lines of a rule whose quotes are still open.
    open: Vec<String>,
}

/// A rule is no longer than this, however many of its comments hold newlines.
const MAX_RULE: usize = 8 << 10;

/// What a [`SaveReader`] has read: the rules in force.
#[derive(Debug, Default)]
pub struct ReadBack {
    /// Our chains, and jumps to them.
    pub committed: Committed,
    /// The frontends of our rules of nat for UDP, whichever agent wrote them.
    pub inherited_udp: UdpFrontends,
    /// Chains of nat that are ours by name, and that rules in foreign chains lead to.
    pub referenced: BTreeSet<ChainName>,
}

impl<'a> SaveReader<'a> {
    /// Reads chains for which `is_ours` holds, and looks for `jumps`.
    pub fn new(
        family: IpFamily,
        jumps: &'a [Jump],
        is_ours: &'a dyn Fn(Table, &ChainName) -> bool,
    ) -> SaveReader<'a> {
        let (committed, inherited_udp) = (Committed::default(), UdpFrontends::default());
        let (referenced, open) = (BTreeSet::new(), Vec::new());
        SaveReader { family, jumps, is_ours, table: None, committed, inherited_udp, referenced, open }
    }

    /// Reads one line. Where a rule of one of our chains cannot be parsed, the chain's content is unknown.
    ///
    /// iptables-save prints a newline in a comment as it is, so a rule may be several lines, and the second
    /// may look like anything.
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
            self.close_rule();
        }
    }

    /// Reads the first of the open lines as a rule that cannot be parsed, and the rest line by line.
    fn close_rule(&mut self) {
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
                Table::Mangle | Table::Security | Table::Raw => {}
            },
            (Ok(Line::Append(name, rule)), Some(table)) => self.rule(table, name, rule),
            (Err(_), Some(table)) => self.unreadable(table, text),
            _ => {}
        }
    }

    fn rule(&mut self, table: Table, name: ChainName, rule: Rule) {
        let is_it = |jump: &Jump| jump.table == table && jump.from == name && jump.rule == rule;
        if let Some(number) = self.jumps.iter().position(is_it) {
            self.committed.jumps.insert(number);
        }
        if !(self.is_ours)(table, &name) {
            let callee = rule.callee().filter(|callee| (self.is_ours)(table, callee));
            self.referenced.extend(callee.filter(|_| table == Table::Nat));
            return;
        }
        match table {
            Table::Nat => {
                self.inherited_udp.add(&rule);
                if let Some(Some(digest)) = self.committed.nat.get_mut(&name) {
                    *digest = digest.then(Digest::rule(&rule));
                }
            }
            Table::Filter => {
                if let Some(Some(rules)) = self.committed.filter.get_mut(&name) {
                    rules.push(rule);
                }
            }
            Table::Mangle | Table::Security | Table::Raw => {}
        }
    }

    fn unreadable(&mut self, table: Table, text: &str) {
        let mut words = text.split_ascii_whitespace().skip_while(|word| word.starts_with('['));
        let is_rule = words.next() == Some("-A");
        let Some(name) = words.next().filter(|_| is_rule).and_then(ChainName::new) else { return };
        match table {
            Table::Nat => drop(self.committed.nat.entry(name).and_modify(|digest| *digest = None)),
            Table::Filter => drop(self.committed.filter.entry(name).and_modify(|rules| *rules = None)),
            Table::Mangle | Table::Security | Table::Raw => {}
        }
    }

    /// Ends the input.
    pub fn finish(mut self) -> ReadBack {
        while !self.open.is_empty() {
            self.close_rule();
        }
        ReadBack { committed: self.committed, inherited_udp: self.inherited_udp, referenced: self.referenced }
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
