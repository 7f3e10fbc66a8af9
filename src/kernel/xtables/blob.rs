//! The bytes of a table, `struct ipt_entry` one after the other, to its chains.
//!
//! A built-in chain begins where its hook enters, any other chain after an entry that holds its name (its head); each
//! ends with an entry for its policy, or for the return to the caller.

use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;

use super::super::dnat_target::dnat_destination;
use super::super::{DumpedChain, Outline};
use crate::iptables::{ChainName, DnatRule, Fingerprint, FirstPackets, Table};
use crate::net::IpFamily;

/// `struct xt_entry_target` before its data: the size, 29 bytes of name, the revision.
const TARGET: usize = 2 + TARGET_NAME + 1;
const TARGET_NAME: usize = 29;
/// `XT_FUNCTION_MAXNAMELEN`: the room for a chain's name in the entry before it.
const CHAIN_NAME: usize = 30;
/// `XT_ERROR_TARGET`: of the entries before chains, and the last of a table.
const ERROR: &[u8] = b"ERROR";

/// Offsets within an entry.
pub(super) struct EntryLayout {
    /// Size of the address match (`struct ipt_ip`, `struct ip6t_ip6`), with which an entry begins.
    n_address_bytes: usize,
    /// Offset of the field with the target's offset; the field with the next entry's offset follows.
    target_offset: usize,
    /// Size of the fixed part, which ends with the counters.
    entry: usize,
}

impl EntryLayout {
    pub(super) fn of(family: IpFamily) -> EntryLayout {
        // struct ipt_ip, struct ip6t_ip6.
        let n_address_bytes: usize = match family {
            IpFamily::V4 => 84,
            IpFamily::V6 => 136,
        };
        // nfcache, then two offsets, and comefrom: nfcache is unused, comefrom the kernel's own.
        let target_offset = n_address_bytes + 4;
        let counters = (target_offset + 8).next_multiple_of(align_of::<u64>());
        EntryLayout { n_address_bytes, target_offset, entry: counters + 16 }
    }
}

struct TableEntry<'a> {
    at: usize,
    bytes: &'a [u8],
    target: usize,
}

impl<'a> TableEntry<'a> {
    /// The entry at `at`, if it is whole.
    fn read(layout: &EntryLayout, all: &'a [u8], at: usize) -> Option<TableEntry<'a>> {
        let offset = |n: usize| {
            let at = at + layout.target_offset + 2 * n;
            Some(usize::from(u16::from_ne_bytes(all.get(at..at + 2)?.try_into().ok()?)))
        };
        let (target, length) = (offset(0)?, offset(1)?);
        if target < layout.entry || length < target + TARGET {
            return None;
        }
        Some(TableEntry { at, bytes: all.get(at..at + length)?, target })
    }

    fn end(&self) -> usize {
        self.at + self.bytes.len()
    }

    /// Destination and counters of a rule with target DNAT.
    fn dnat(&self, layout: &EntryLayout, family: IpFamily) -> Option<(SocketAddr, FirstPackets)> {
        if self.target_name() != b"DNAT" {
            return None;
        }
        let revision = u32::from(self.bytes[self.target + TARGET - 1]);
        let endpoint = dnat_destination(family, revision, &self.bytes[self.target + TARGET..])?;
        // struct xt_counters.
        let counters = &self.bytes[layout.entry - 16..layout.entry];
        let number = |n: usize| Some(u64::from_ne_bytes(*counters[8 * n..].first_chunk()?));
        Some((endpoint, FirstPackets { n_packets: number(0)?, n_bytes: number(1)? }))
    }

    fn target_name(&self) -> &'a [u8] {
        text(&self.bytes[self.target + 2..self.target + 2 + TARGET_NAME])
    }

    /// The name that is in an entry before a chain.
    fn chain_name(&self) -> Option<&'a str> {
        let data = &self.bytes[self.target + TARGET..];
        std::str::from_utf8(text(data.get(..CHAIN_NAME)?)).ok()
    }

    /// Adds the rule to a fingerprint; for a jump the name of its chain instead of the chain's offset.
    fn add(&self, layout: &EntryLayout, hasher: &mut DefaultHasher, heads: &[(usize, &str)]) {
        let mut put = |bytes: &[u8]| {
            hasher.write_usize(bytes.len());
            hasher.write(bytes);
        };
        put(&self.bytes[..layout.n_address_bytes]);
        put(&self.bytes[layout.entry..self.target]);
        let target = &self.bytes[self.target..];
        let verdict = u32_at(target, TARGET).filter(|_| self.target_name().is_empty());
        let Some(verdict) = verdict else { return put(target) };
        // Negative: ACCEPT, DROP, RETURN.
        let callee = usize::try_from(verdict as i32).ok();
        let head = callee.and_then(|at| heads.binary_search_by_key(&at, |(start, _)| *start).ok());
        match head {
            Some(head) => put(heads[head].1.as_bytes()),
            // A rule without target leads to the next one.
            None if callee == Some(self.end()) => put(&[]),
            None => put(&verdict.to_ne_bytes()),
        }
    }
}

/// The number at `at`, in this machine's order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The bytes before the first NUL.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The offset of each chain's first rule, and the chain's name; by offset. `None` when the bytes are not a table.
pub(super) fn heads<'a>(
    layout: &EntryLayout,
    table: Table,
    outline: &Outline,
    entries: &'a [u8],
) -> Option<Vec<(usize, &'a str)>> {
    let mut heads: Vec<(usize, &str)> = Vec::new();
    for (hook, at) in outline.hooks.iter().enumerate() {
        let name = table.built_in().iter().find(|name| HOOKS[hook] == **name);
        heads.extend(at.zip(name).map(|(at, name)| (at as usize, *name)));
    }
    let mut at = 0;
    while at < entries.len() {
        let entry = TableEntry::read(layout, entries, at)?;
        at = entry.end();
        if entry.target_name() == ERROR && at < entries.len() {
            heads.push((at, entry.chain_name()?));
        }
    }
    heads.sort_unstable();
    Some(heads)
}

/// The hooks by number.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// All chains with their fingerprints, in the table's order.
pub(super) fn chains(
    layout: &EntryLayout,
    table: Table,
    outline: &Outline,
    entries: &[u8],
) -> Option<Vec<DumpedChain>> {
    let heads = heads(layout, table, outline, entries)?;
    let mut chains = Vec::with_capacity(heads.len());
    for (n, (start, name)) in heads.iter().enumerate() {
        let end = heads.get(n + 1).map_or(entries.len(), |(start, _)| *start);
        let (mut at, mut n_rules, mut hasher) = (*start, 0, Fingerprint::hasher());
        let mut last: Option<TableEntry<'_>> = None;
        while at < end {
            let entry = TableEntry::read(layout, entries, at)?;
            at = entry.end();
            // The head of the next chain, or the end of the table.
            if entry.target_name() == ERROR {
                break;
            }
            if let Some(rule) = last.replace(entry) {
                rule.add(layout, &mut hasher, &heads);
                n_rules += 1;
            }
        }
        // The last entry is not a rule but the return to the caller, or the policy, which is not ours.
        last?;
        let fingerprint = Fingerprint::of(&hasher);
        chains.extend(ChainName::new(name).map(|name| DumpedChain { name, fingerprint, n_rules }));
    }
    Some(chains)
}

/// The rules with target DNAT of the chains for which `is_selected` holds, with their counters, in the table's order.
pub(super) fn dnat_rules(
    layout: &EntryLayout,
    (family, table): (IpFamily, Table),
    outline: &Outline,
    entries: &[u8],
    is_selected: impl Fn(&ChainName) -> bool,
) -> Option<Vec<DnatRule>> {
    let heads = heads(layout, table, outline, entries)?;
    let mut rules = Vec::new();
    for (n, (start, name)) in heads.iter().enumerate() {
        let Some(chain) = ChainName::new(name).filter(&is_selected) else { continue };
        let end = heads.get(n + 1).map_or(entries.len(), |(start, _)| *start);
        let mut at = *start;
        while at < end {
            let entry = TableEntry::read(layout, entries, at)?;
            at = entry.end();
            let dnat = entry.dnat(layout, family);
            rules.extend(dnat.map(|(endpoint, counted)| DnatRule { chain, endpoint, counted }));
        }
    }
    Some(rules)
}
