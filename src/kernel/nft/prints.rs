//! What the rules of chains look like in the kernel, as one number a chain.
//!
//! `iptables-nft-save` is quadratic in chains: at 44 000 Services it takes 20 s. The kernel's own dump of
//! a large table is quadratic too, but that of one chain takes 10 us at any size, and need not be
//! understood to tell whether the chain still holds the bytes that it held right after it was written.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::io;
use std::sync::LazyLock;

use netlink_packet_core::NLM_F_DUMP;

use super::{
    ATTEMPTS, CHAIN_NAME, CHAIN_TABLE, GENERATION_ID, GET_CHAIN, GET_GENERATION, SUBSYSTEM, nfproto,
};
use crate::iptables::ChainName;
use crate::kernel::netlink::{Message, Netfilter, NetfilterRequest};
use crate::kernel::{Dump, DumpedChain};
use crate::net::IpFamily;
use crate::plan::Print;

const GET_RULE: u8 = 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_COMPAT: u16 = 5;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;

/// SipHash with a random key of this process: without the key no rules with equal prints can be made.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// How the chains of `table` look: all that are there, or `only` these, of which one that is not there
/// looks empty. All are as of one generation, for which dumps are begun again; with `only`, that is left
/// to the caller. The kernel counts a commit a moment before it takes effect: while the generation is that
/// of a commit which has not ended, a chain may still look as before it. `Interrupted` when somebody wrote during each of many attempts. Chains with names
/// that iptables does not know are left out.
///
/// A print is of what rules say: handles and positions, which tell when a rule was made, and counters
/// are not in it.
pub fn prints(family: IpFamily, table: &str, only: Option<&[ChainName]>) -> io::Result<Dump> {
    let mut netfilter = Netfilter::open()?;
    let family = nfproto(family);
    let Some(only) = only else {
        return undisturbed(&mut || match all(&mut netfilter, family, table) {
            Ok(Dump { generation: None, .. }) => Err(io::ErrorKind::Interrupted.into()),
            done => done,
        });
    };
    let before = generation(&mut netfilter)?;
    let mut chains = Vec::with_capacity(only.len());
    for name in only {
        let shown = undisturbed(&mut || {
            let mut found = empty(*name);
            dump_rules(&mut netfilter, family, table, Some(name.as_str()), &mut |_, print, n_rules| {
                found = DumpedChain { name: *name, print, n_rules };
            })?;
            Ok(found)
        })?;
        chains.push(shown);
    }
    chains.sort_unstable_by_key(|shown| shown.name);
    let generation =
        Some(before).filter(|before| generation(&mut netfilter).is_ok_and(|after| after == *before));
    Ok(Dump { generation, chains })
}

/// Begins a dump again when a commit interrupted it, some times.
fn undisturbed<T>(dump: &mut dyn FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match dump() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
    dump()
}

fn all(netfilter: &mut Netfilter, family: u8, table: &str) -> io::Result<Dump> {
    let before = generation(netfilter)?;
    let names = names(netfilter, family, table)?;
    let mut chains: Vec<DumpedChain> = names.into_iter().map(empty).collect();
    chains.sort_unstable_by_key(|shown| shown.name);
    dump_rules(netfilter, family, table, None, &mut |name, print, n_rules| {
        let Some(name) = ChainName::new(name) else { return };
        if let Ok(at) = chains.binary_search_by_key(&name, |shown| shown.name) {
            chains[at] = DumpedChain { name, print, n_rules };
        }
    })?;
    let generation = Some(before).filter(|before| generation(netfilter).is_ok_and(|after| after == *before));
    Ok(Dump { generation, chains })
}

/// As [`super::generation`], by a socket that is open.
pub(super) fn generation(netfilter: &mut Netfilter) -> io::Result<u32> {
    let (message, flags) = (GET_GENERATION, 0);
    let request =
        NetfilterRequest { subsystem: SUBSYSTEM, message, family: 0, flags, texts: &[], attributes: &[] };
    let mut generation = None;
    netfilter.request(&request, &mut |message| generation = message.u32(GENERATION_ID))?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The names of the chains of `table`.
fn names(netfilter: &mut Netfilter, family: u8, table: &str) -> io::Result<Vec<ChainName>> {
    let (message, flags) = (GET_CHAIN, NLM_F_DUMP);
    let request =
        NetfilterRequest { subsystem: SUBSYSTEM, message, family, flags, texts: &[], attributes: &[] };
    let mut names = Vec::new();
    netfilter.request(&request, &mut |message| {
        if message.text(CHAIN_TABLE) == Some(table) {
            names.extend(message.text(CHAIN_NAME).and_then(ChainName::new));
        }
    })?;
    Ok(names)
}

/// How a chain looks that holds no rules.
fn empty(name: ChainName) -> DumpedChain {
    DumpedChain { name, print: print(SEED.build_hasher()), n_rules: 0 }
}

/// Passes on how each chain of `table` that holds rules looks, and how many they are; or only `chain`.
fn dump_rules(
    netfilter: &mut Netfilter,
    family: u8,
    table: &str,
    chain: Option<&str>,
    each: &mut dyn FnMut(&str, Print, u32),
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
        // An older kernel may not select.
        if message.text(RULE_TABLE) != Some(table) || chain.is_some_and(|chain| chain != name) {
            return;
        }
        if open.as_ref().is_none_or(|(current, ..)| current != name)
            && let Some((name, hasher, n)) = open.replace((name.to_owned(), SEED.build_hasher(), 0))
        {
            each(&name, print(hasher), n);
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
        each(&name, print(hasher), n);
    }
    Ok(())
}

/// Adds what a rule says to its chain.
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

fn print(hasher: DefaultHasher) -> Print {
    Print::new(hasher.finish())
}
