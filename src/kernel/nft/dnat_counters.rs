//! Counters of DNAT rules, from the kernel's dumps of single chains.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::NLM_F_DUMP;

use super::chain_dump::{EXPRESSION_NAME, GET_RULE, LIST_ELEMENT, RULE_CHAIN, RULE_EXPRESSIONS, RULE_TABLE};
use super::{ATTEMPTS, SUBSYSTEM};
use crate::iptables::{ChainName, DnatRule, FirstPackets};
use crate::kernel::dnat_target::dnat_destination;
use crate::kernel::netlink::{Message, Netfilter, NetfilterRequest, nfproto, retry_interrupted};
use crate::net::IpFamily;

const EXPRESSION_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const TARGET_NAME: u16 = 1;
const TARGET_REVISION: u16 = 2;
const TARGET_DATA: u16 = 3;

/// The DNAT rules of `chains` of table nat, with their counters; none of a chain that does not exist. A chain takes some
/// 20 us, however many the table has. Each chain is as it was at one moment, different chains at different moments.
pub fn dnat_rules(family: IpFamily, chains: &[ChainName]) -> io::Result<Vec<DnatRule>> {
    let mut netfilter = Netfilter::open()?;
    let mut rules = Vec::new();
    for chain in chains {
        rules.extend(retry_interrupted(ATTEMPTS, || rules_of(&mut netfilter, family, chain))?);
    }
    Ok(rules)
}

fn rules_of(netfilter: &mut Netfilter, family: IpFamily, chain: &ChainName) -> io::Result<Vec<DnatRule>> {
    let texts = [(RULE_TABLE, "nat"), (RULE_CHAIN, chain.as_str())];
    let request = NetfilterRequest {
        flags: NLM_F_DUMP,
        texts: &texts,
        ..NetfilterRequest::new(SUBSYSTEM, GET_RULE, nfproto(family))
    };
    let mut rules = Vec::new();
    netfilter.request(&request, &mut |rule| {
        // Older kernels do not select by chain.
        let is_selected = texts.iter().all(|(kind, text)| rule.text(*kind) == Some(*text));
        if is_selected && let Some((endpoint, counted)) = dnat_of(family, rule) {
            rules.push(DnatRule { chain: *chain, endpoint, counted });
        }
    })?;
    Ok(rules)
}

/// Destination and counters of a DNAT rule that iptables wrote; `None` for any other rule.
fn dnat_of(family: IpFamily, rule: &Message<'_>) -> Option<(SocketAddr, FirstPackets)> {
    let mut counted = FirstPackets::default();
    let mut endpoint = None;
    for expression in rule.inner(RULE_EXPRESSIONS)?.all_inner(LIST_ELEMENT) {
        let Some(data) = expression.inner(EXPRESSION_DATA) else { continue };
        match expression.text(EXPRESSION_NAME) {
            Some("counter") => {
                counted =
                    FirstPackets { n_packets: data.u64(COUNTER_PACKETS)?, n_bytes: data.u64(COUNTER_BYTES)? };
            }
            Some("target") if data.text(TARGET_NAME) == Some("DNAT") => {
                let revision = data.u32(TARGET_REVISION)?;
                endpoint = dnat_destination(family, revision, data.attribute(TARGET_DATA)?);
            }
            _ => {}
        }
    }
    Some((endpoint?, counted))
}
