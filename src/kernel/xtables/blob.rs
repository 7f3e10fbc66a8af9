//! The bytes of a table, `struct ipt_entry` one after the other, to its chains.
//!
//! A built-in chain begins where its hook enters, any other one behind an entry that holds its name; each
//! ends with an entry that stands for its policy, or for the return to the caller.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::LazyLock;

use super::super::{DumpedChain, Outline};
use super::u32_at;
use crate::iptables::{ChainName, Table};
use crate::net::IpFamily;
use crate::plan::Print;

/// Another at each start, and keyed: equal prints cannot be made on purpose.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// `struct xt_entry_target` before its data: the size, 29 bytes of name, the revision.
const TARGET: usize = 2 + TARGET_NAME + 1;
const TARGET_NAME: usize = 29;
/// `XT_FUNCTION_MAXNAMELEN`: the room for a chain's name in the entry before it.
const CHAIN_NAME: usize = 30;
/// `XT_ERROR_TARGET`: of the entries before chains, and the last of a table.
const ERROR: &[u8] = b"ERROR";

/// Where in an entry is what.
pub(super) struct Layout {
    /// What packets it is for: the bytes before.
    n_address_bytes: usize,
    /// The offset of the offset of the target; that of the next entry follows.
    target_offset: usize,
    /// The whole of the fixed part, with counters last.
    entry: usize,
}

impl Layout {
    pub(super) fn of(family: IpFamily) -> Layout {
        // struct ipt_ip, struct ip6t_ip6.
        let n_address_bytes: usize = match family {
            IpFamily::V4 => 84,
            IpFamily::V6 => 136,
        };
        // nfcache, then two offsets, and comefrom: nfcache is unused, comefrom the kernel's own.
        let target_offset = n_address_bytes + 4;
        let counters = (target_offset + 8).next_multiple_of(align_of::<u64>());
        Layout { n_address_bytes, target_offset, entry: counters + 16 }
    }
}

struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    target: usize,
}

impl<'a> Entry<'a> {
    /// The entry at `at`, if it is whole.
    fn read(layout: &Layout, all: &'a [u8], at: usize) -> Option<Entry<'a>> {
        let offset = |n: usize| {
            let at = at + layout.target_offset + 2 * n;
            Some(usize::from(u16::from_ne_bytes(all.get(at..at + 2)?.try_into().ok()?)))
        };
        let (target, length) = (offset(0)?, offset(1)?);
        if target < layout.entry || length < target + TARGET {
            return None;
        }
        Some(Entry { at, bytes: all.get(at..at + length)?, target })
    }

    fn end(&self) -> usize {
        self.at + self.bytes.len()
    }

    fn target_name(&self) -> &'a [u8] {
        text(&self.bytes[self.target + 2..self.target + 2 + TARGET_NAME])
    }

    /// The name that is in an entry before a chain.
    fn chain_name(&self) -> Option<&'a str> {
        let data = &self.bytes[self.target + TARGET..];
        std::str::from_utf8(text(data.get(..CHAIN_NAME)?)).ok()
    }

    /// Adds what the rule says. Leads it to another chain, the chain's name stands for its offset.
    fn add(&self, layout: &Layout, hasher: &mut DefaultHasher, heads: &[(usize, &str)]) {
        let mut put = |bytes: &[u8]| {
            hasher.write_usize(bytes.len());
            hasher.write(bytes);
        };
        put(&self.bytes[..layout.n_address_bytes]);
        put(&self.bytes[layout.entry..self.target]);
        let target = &self.bytes[self.target..];
        let verdict = u32_at(target, TARGET).filter(|_| self.target_name().is_empty());
        let Some(verdict) = verdict else { return put(target) };
        // Less than zero: ACCEPT, DROP, RETURN.
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

/// What is before the first NUL.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Where the first rule of each chain is, and its name; by offset. `None` when the bytes are not a table.
pub(super) fn heads<'a>(
    layout: &Layout,
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
        let entry = Entry::read(layout, entries, at)?;
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

/// How each chain looks, in the table's order.
pub(super) fn chains(
    layout: &Layout,
    table: Table,
    outline: &Outline,
    entries: &[u8],
) -> Option<Vec<DumpedChain>> {
    let heads = heads(layout, table, outline, entries)?;
    let mut chains = Vec::with_capacity(heads.len());
    for (n, (start, name)) in heads.iter().enumerate() {
        let end = heads.get(n + 1).map_or(entries.len(), |(start, _)| *start);
        let (mut at, mut n_rules, mut hasher) = (*start, 0, SEED.build_hasher());
        let mut last: Option<Entry<'_>> = None;
        while at < end {
            let entry = Entry::read(layout, entries, at)?;
            at = entry.end();
            // The name of the next chain, or the end of the table.
            if entry.target_name() == ERROR {
                break;
            }
            if let Some(rule) = last.replace(entry) {
                rule.add(layout, &mut hasher, &heads);
                n_rules += 1;
            }
        }
        // What is last is no rule: the return to the caller, or the policy, which is not ours.
        last?;
        let print = Print::new(hasher.finish());
        chains.extend(ChainName::new(name).map(|name| DumpedChain { name, print, n_rules }));
    }
    Some(chains)
}

/// How a chain looks that holds no rules.
pub(super) fn empty(name: ChainName) -> DumpedChain {
    DumpedChain { name, print: Print::new(SEED.build_hasher().finish()), n_rules: 0 }
}
