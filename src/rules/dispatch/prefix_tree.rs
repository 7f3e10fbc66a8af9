//! The tree of chains over address, protocol and port: 4 bits a level, without levels that have one
//! branch, at most 16 rules a chain.
//!
//! It is a function of the keys alone. A chain is for the packets of one prefix, from which it has its
//! name, and holds all entries for these packets, or leads to them: so new rules are right for callers
//! that still have old ones. One key more or less changes the chains on one path, and those that a full
//! chain splits into.

use std::net::IpAddr;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use super::{Key, Part, SharedPart, stem, uses_goto};
use crate::iptables::{ChainName, L4Protocol, Match, MaybeNot, PortRange, Rule, Target};
use crate::net::{Cidr, IpFamily, Protocol};
use crate::rules::shared_chain::SharedChain;

/// The most rules of a chain before it splits: as many as it can have branches.
const MAX_RULES: usize = 16;

/// The most chains of a tree on a packet's path. nf_tables accepts 15 on the whole path; 9 are needed
/// outside the tree: KUBE-SERVICES, FW, EXT, SVC, three groups, SEP, MARK-MASQ. Entries that would go
/// deeper share one chain, however long: no set of Services can make a sync fail.
const MAX_DEPTH: usize = 6;

/// Hexadecimal digits of a port.
const PORT_DIGITS: usize = 4;

/// Grows the tree over `entries` (indices of `keys`) and returns the rules of its root. The chains
/// behind it are appended to `chains`, callees before callers.
pub(super) fn grow(
    family: IpFamily,
    chain: SharedChain,
    keys: &[Key],
    mut entries: Vec<usize>,
    chains: &mut Vec<SharedPart>,
) -> Vec<Part> {
    // Stable: entries for the same packets stay in the order of their service ports.
    entries.sort_by_key(|entry| keys[*entry]);
    let has_addresses = entries.first().is_some_and(|entry| keys[*entry].ip.is_some());
    let n_address_digits = if has_addresses { usize::from(family.bits()) / 4 } else { 0 };
    let mut tree = DispatchTree { chain, keys, n_address_digits, stem: stem(chain), chains };
    tree.root(&entries)
}

struct DispatchTree<'a> {
    chain: SharedChain,
    keys: &'a [Key],
    /// Digits of the address; 0 where the entries are for every address of the node.
    n_address_digits: usize,
    stem: String,
    chains: &'a mut Vec<SharedPart>,
}

/// All packets whose first digits are those of `key`.
#[derive(Clone, Copy)]
struct Prefix {
    key: Key,
    n_digits: usize,
}

impl DispatchTree<'_> {
    fn root(&mut self, entries: &[usize]) -> Vec<Part> {
        if entries.len() <= MAX_RULES {
            return entries.iter().copied().map(Part::Entry).collect();
        }
        match self.common_digits(entries) {
            0 => self.branches(entries, 0, 0),
            // One prefix rule lets all other packets skip the tree.
            _ => vec![self.branch(entries, 0)],
        }
    }

    /// The rules of the chain at `depth` (from 1) for `entries`, which share their first `n_digits`.
    fn chain_rules(&mut self, entries: &[usize], n_digits: usize, depth: usize) -> Vec<Part> {
        let is_leaf = entries.len() <= MAX_RULES || depth == MAX_DEPTH || n_digits == self.n_digits();
        if is_leaf {
            return entries.iter().copied().map(Part::Entry).collect();
        }
        self.branches(entries, n_digits, depth)
    }

    /// A rule for each value of the digit behind the first `n_digits`.
    fn branches(&mut self, entries: &[usize], n_digits: usize, depth: usize) -> Vec<Part> {
        let keys = self.keys;
        let n_address_digits = self.n_address_digits;
        let digit = |entry: &usize| digit(&keys[*entry], n_address_digits, n_digits);
        entries.chunk_by(|a, b| digit(a) == digit(b)).map(|group| self.branch(group, depth)).collect()
    }

    /// The rule that leads to `entries` from a chain at `depth`.
    fn branch(&mut self, entries: &[usize], depth: usize) -> Part {
        if let [entry] = entries {
            return Part::Entry(*entry);
        }
        let n_digits = self.common_digits(entries);
        let prefix = Prefix { key: self.keys[entries[0]], n_digits };
        let parts = self.chain_rules(entries, n_digits, depth + 1);
        let name = self.name(prefix);
        self.chains.push(SharedPart { name, parts });
        let target = match depth > 0 && uses_goto(self.chain) {
            true => Target::Goto(name),
            false => Target::Jump(name),
        };
        Part::Rule(Box::new(self.rule(prefix, target)))
    }

    /// Address, protocol, port.
    fn n_digits(&self) -> usize {
        self.n_address_digits + 1 + PORT_DIGITS
    }

    /// The number of leading digits that sorted `entries` share.
    fn common_digits(&self, entries: &[usize]) -> usize {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return 0 };
        let (first, last) = (&self.keys[*first], &self.keys[*last]);
        let is_common =
            |at: &usize| digit(first, self.n_address_digits, *at) == digit(last, self.n_address_digits, *at);
        (0..self.n_digits()).take_while(is_common).count()
    }

    /// The rule that sends the packets of `prefix` to `target`.
    fn rule(&self, Prefix { key, n_digits }: Prefix, target: Target) -> Rule {
        let mut rule = Rule { target: Some(target), ..Rule::default() };
        if let Some(ip) = key.ip {
            let length = 4 * n_digits.min(self.n_address_digits);
            rule.destination = Some(MaybeNot::is(Cidr::new(ip, length as u8)));
        }
        if n_digits > self.n_address_digits {
            rule.protocol = Some(MaybeNot::is(L4Protocol::Service(key.protocol)));
        }
        if n_digits > self.n_address_digits + 1 {
            let destination_ports = Some(ports(key.port, n_digits - self.n_address_digits - 1));
            rule.matches = vec![Match::L4 { protocol: key.protocol, destination_ports }];
        }
        rule
    }

    fn name(&self, Prefix { key, n_digits }: Prefix) -> ChainName {
        let ports = n_digits.checked_sub(self.n_address_digits + 1).map(|n_port_digits| {
            let letter = match key.protocol {
                Protocol::Tcp => 'T',
                Protocol::Udp => 'U',
                Protocol::Sctp => 'S',
            };
            format!("{letter}{:04X}{n_port_digits}", ports(key.port, n_port_digits).first)
        });
        let length = 4 * n_digits.min(self.n_address_digits) as u8;
        let address = key.ip.map(|ip| Cidr::new(ip, length).address());
        let body = match (address, ports) {
            (None, ports) => ports.unwrap_or_default(),
            (Some(IpAddr::V4(ip)), None) => format!("{:08X}{length:02}", u32::from(ip)),
            (Some(IpAddr::V4(ip)), Some(ports)) => format!("{:08X}{ports}", u32::from(ip)),
            (Some(IpAddr::V6(ip)), ports) => {
                let sha = Sha256::digest(format!("{ip}/{length}{}", ports.unwrap_or_default()));
                BASE32_NOPAD.encode(&sha[..10])
            }
        };
        let name = format!("{}{body}", self.stem);
        ChainName::new(&name).expect("a stem of at most 10 characters and at most 16")
    }
}

/// The ports whose first `n_digits` are those of `port`.
fn ports(port: u16, n_digits: usize) -> PortRange {
    let rest = (1u32 << (4 * (PORT_DIGITS - n_digits))) - 1;
    PortRange { first: port & !(rest as u16), last: port | rest as u16 }
}

/// The digit `at` of `key`: of its address, its protocol, its port.
fn digit(key: &Key, n_address_digits: usize, at: usize) -> u8 {
    if at < n_address_digits {
        let octet = match key.ip {
            Some(IpAddr::V4(ip)) => ip.octets()[at / 2],
            Some(IpAddr::V6(ip)) => ip.octets()[at / 2],
            None => 0,
        };
        return if at.is_multiple_of(2) { octet >> 4 } else { octet & 15 };
    }
    match at - n_address_digits {
        0 => key.protocol as u8,
        n => (key.port >> (4 * (PORT_DIGITS - n))) as u8 & 15,
    }
}
