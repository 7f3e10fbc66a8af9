//! Fingerprints of chains, from the kernel's dumps of their rules.
//!
//! `iptables-nft-save` is quadratic in chains: at 44 000 Services it takes 20 s. The kernel's own dump of
//! a large table is quadratic too, but the dump of one chain takes 10 us at any size. It need not be parsed to tell
//! whether the chain still holds the bytes that it held right after it was written.

use std::hash::{DefaultHasher, Hasher};
use std::io;

use netlink_packet_core::NLM_F_DUMP;

use super::{ATTEMPTS, CHAIN_NAME, CHAIN_TABLE, GET_CHAIN, SUBSYSTEM, generation_over};
use crate::iptables::{ChainName, Fingerprint};
use crate::kernel::netlink::{Message, Netfilter, NetfilterRequest, nfproto, retry_interrupted};
use crate::kernel::{Dump, DumpedChain};
use crate::net::IpFamily;

pub(super) const GET_RULE: u8 = 7;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
const RULE_COMPAT: u16 = 5;
const RULE_USERDATA: u16 = 7;
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const EXPRESSION_NAME: u16 = 1;

/// Fingerprints of the chains of `table`: of all chains in it, or of `only` these, where a chain that does not exist
/// counts as empty. All are of one generation, for which dumps are repeated; with `only`, the caller checks the
/// generation. The kernel counts a commit a moment before it takes effect: while the generation is that of a commit
/// which has not ended, a chain may still be dumped as before the commit. `Interrupted` when another process wrote
/// during each of many attempts. Chains whose names iptables does not accept are left out.
///
/// Handles and positions, which depend on when a rule was made, and counters are not part of a fingerprint.
pub fn fingerprints(family: IpFamily, table: &str, only: Option<&[ChainName]>) -> io::Result<Dump> {
    let mut netfilter = Netfilter::open()?;
    let family = nfproto(family);
    let Some(only) = only else {
        return retry_interrupted(ATTEMPTS, || match all(&mut netfilter, family, table) {
            Ok(Dump { generation: None, .. }) => Err(io::ErrorKind::Interrupted.into()),
            done => done,
        });
    };
    let before = generation_over(&mut netfilter)?;
    let mut chains = Vec::with_capacity(only.len());
    for name in only {
        let chain = retry_interrupted(ATTEMPTS, || {
            let mut found = DumpedChain::empty(*name);
            dump_rules(
                &mut netfilter,
                family,
                table,
                Some(name.as_str()),
                &mut |_, fingerprint, n_rules| {
                    found = DumpedChain { name: *name, fingerprint, n_rules };
                },
            )?;
            Ok(found)
        })?;
        chains.push(chain);
    }
    chains.sort_unstable_by_key(|chain| chain.name);
    let generation =
        Some(before).filter(|before| generation_over(&mut netfilter).is_ok_and(|after| after == *before));
    Ok(Dump { generation, chains })
}

fn all(netfilter: &mut Netfilter, family: u8, table: &str) -> io::Result<Dump> {
    let before = generation_over(netfilter)?;
    let names = names(netfilter, family, table)?;
    let mut chains: Vec<DumpedChain> = names.into_iter().map(DumpedChain::empty).collect();
    chains.sort_unstable_by_key(|chain| chain.name);
    dump_rules(netfilter, family, table, None, &mut |name, fingerprint, n_rules| {
        let Some(name) = ChainName::new(name) else { return };
        if let Ok(at) = chains.binary_search_by_key(&name, |chain| chain.name) {
            chains[at] = DumpedChain { name, fingerprint, n_rules };
        }
    })?;
    let generation =
        Some(before).filter(|before| generation_over(netfilter).is_ok_and(|after| after == *before));
    Ok(Dump { generation, chains })
}

/// The names of the chains of `table`.
fn names(netfilter: &mut Netfilter, family: u8, table: &str) -> io::Result<Vec<ChainName>> {
    let request =
        NetfilterRequest { flags: NLM_F_DUMP, ..NetfilterRequest::new(SUBSYSTEM, GET_CHAIN, family) };
    let mut names = Vec::new();
    netfilter.request(&request, &mut |message| {
        if message.text(CHAIN_TABLE) == Some(table) {
            names.extend(message.text(CHAIN_NAME).and_then(ChainName::new));
        }
    })?;
    Ok(names)
}

/// Passes on the name, fingerprint and number of rules of each chain of `table` that holds rules; or of `chain` alone.
fn dump_rules(
    netfilter: &mut Netfilter,
    family: u8,
    table: &str,
    chain: Option<&str>,
    each: &mut dyn FnMut(&str, Fingerprint, u32),
) -> io::Result<()> {
    let mut texts = vec![(RULE_TABLE, table)];
    texts.extend(chain.map(|chain| (RULE_CHAIN, chain)));
    let (message, flags) = (GET_RULE, NLM_F_DUMP);
    let request =
        NetfilterRequest { subsystem: SUBSYSTEM, message, family, flags, texts: &texts, attributes: &[] };
    // The rules of a chain come one after another.
    let mut open: Option<(String, DefaultHasher, u32)> = None;
    let mut is_whole = true;
    netfilter.request(&request, &mut |message| {
        let Some(name) = message.text(RULE_CHAIN) else {
            is_whole = false;
            return;
        };
        // Older kernels do not select by chain.
        if message.text(RULE_TABLE) != Some(table) || chain.is_some_and(|chain| chain != name) {
            return;
        }
        if open.as_ref().is_none_or(|(current, ..)| current != name)
            && let Some((name, hasher, n)) = open.replace((name.to_owned(), Fingerprint::hasher(), 0))
        {
            each(&name, Fingerprint::of(&hasher), n);
        }
        if let Some((_, hasher, n)) = &mut open {
            add(hasher, message);
            *n += 1;
        }
    })?;
    if !is_whole {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if let Some((name, hasher, n)) = open {
        each(&name, Fingerprint::of(&hasher), n);
    }
    Ok(())
}

/// Adds a rule to the fingerprint of its chain.
fn add(hasher: &mut DefaultHasher, rule: &Message<'_>) {
    for (kind, value) in rule.attributes() {
        match kind {
            RULE_COMPAT | RULE_USERDATA => put(hasher, kind, value),
            RULE_EXPRESSIONS => {
                let expressions = Message::of(value).attributes().filter(|(kind, _)| *kind == LIST_ELEMENT);
                for (kind, expression) in expressions {
                    if Message::of(expression).text(EXPRESSION_NAME) != Some("counter") {
                        put(hasher, kind, expression);
                    }
                }
            }
            _ => {}
        }
    }
    hasher.write_u8(END_OF_RULE);
}

const END_OF_RULE: u8 = 0xff;

fn put(hasher: &mut DefaultHasher, kind: u16, value: &[u8]) {
    hasher.write_u16(kind);
    hasher.write_usize(value.len());
    hasher.write(value);
}
