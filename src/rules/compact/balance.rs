//! Balancing over many endpoints, all with the same probability, in few rules.
//!
//! Few endpoints stand in one chain. Many are grouped by the leading digits of a hash of each, a
//! chain for each group, so that a packet meets a few dozen rules at most, and a change of one
//! endpoint rewrites one path and not the rules of all.

use crate::iptables::{Chain, L4Protocol, Match, MaybeNot, RecentAction, Rule, Table, Target};
use crate::model::Endpoint;
use crate::rules::external;
use crate::rules::names::PortChain;
use crate::rules::port_context::PortContext;

/// The most endpoints in one chain.
const MAX_FLAT: usize = 64;

/// The most digits of the hash that are used, and so the most group chains on a packet's path.
const MAX_DEPTH: usize = 3;

struct Member<'a> {
    digits: [u8; MAX_DEPTH],
    endpoint: &'a Endpoint<'a>,
}

struct Balance<'a> {
    port: &'a PortContext<'a>,
    kind: PortChain,
    /// Whether endpoints have chains of their own.
    has_endpoint_chains: bool,
}

/// Appends the chain of `kind` for `endpoints`, behind the chains that it calls.
pub(super) fn push_chains(
    port: &PortContext<'_>,
    kind: PortChain,
    endpoints: &[Endpoint<'_>],
    has_endpoint_chains: bool,
    chains: &mut Vec<Chain>,
) {
    let balance = Balance { port, kind, has_endpoint_chains };
    let mut sorted: Vec<&Endpoint<'_>> = endpoints.iter().collect();
    sorted.sort_unstable_by_key(|endpoint| endpoint.address);
    let mut rules: Vec<Rule> = external::masquerade_rule(port, kind).into_iter().collect();
    if let Some(seconds) = port.affinity_seconds() {
        rules.extend(sorted.iter().map(|endpoint| balance.affinity_rule(endpoint, seconds)));
    }
    let is_grouped = sorted.len() > MAX_FLAT;
    let digits = |endpoint: &Endpoint<'_>| match is_grouped {
        true => port.names.endpoint_digits(endpoint.address),
        false => [0; MAX_DEPTH],
    };
    let member = |endpoint| Member { digits: digits(endpoint), endpoint };
    let mut members: Vec<Member<'_>> = sorted.into_iter().map(member).collect();
    // Stable: among equal digits by address.
    members.sort_by_key(|member| member.digits);
    rules.extend(balance.balancing_rules(&members, 0, chains));
    chains.push(port.chain(kind, rules));
}

impl Balance<'_> {
    /// The rules that pick one of `members`, whose first `depth` digits are the same. Chains that
    /// they call are appended to `chains`.
    fn balancing_rules(&self, members: &[Member<'_>], depth: usize, chains: &mut Vec<Chain>) -> Vec<Rule> {
        let mut n_left = members.len();
        let mut share = |n: usize| {
            let chance = chance(n, n_left);
            n_left -= n;
            chance
        };
        if members.len() <= MAX_FLAT || depth == MAX_DEPTH {
            return members.iter().map(|member| self.endpoint_rule(share(1), member.endpoint)).collect();
        }
        let mut rules = Vec::with_capacity(16);
        for group in members.chunk_by(|a, b| a.digits[depth] == b.digits[depth]) {
            let chance = share(group.len());
            if let [member] = group {
                rules.push(self.endpoint_rule(chance, member.endpoint));
                continue;
            }
            let name = self.port.names.group(self.kind, &group[0].digits[..=depth]);
            let inner = self.balancing_rules(group, depth + 1, chains);
            chains.push(Chain { table: Table::Nat, name, rules: inner });
            let matches = chance.into_iter().collect();
            rules.push(Rule { matches, target: Some(Target::Jump(name)), ..Rule::default() });
        }
        rules
    }

    /// The rule that sends packets that match `chance` to `endpoint`.
    fn endpoint_rule(&self, chance: Option<Match>, endpoint: &Endpoint<'_>) -> Rule {
        let matches = chance.into_iter().collect();
        if self.has_endpoint_chains {
            let target = Target::Jump(self.port.names.endpoint_at(endpoint.address));
            return Rule { matches, target: Some(target), ..Rule::default() };
        }
        Rule {
            protocol: Some(MaybeNot::is(L4Protocol::Service(self.port.protocol()))),
            matches,
            target: Some(Target::Dnat(endpoint.address)),
            ..Rule::default()
        }
    }

    /// The rule that sends a client to `endpoint` if it was there in the last `seconds`.
    fn affinity_rule(&self, endpoint: &Endpoint<'_>, seconds: u32) -> Rule {
        let list = self.port.names.endpoint_at(endpoint.address);
        Rule {
            matches: vec![Match::Recent { action: RecentAction::Check { seconds }, list }],
            target: Some(Target::Jump(list)),
            ..Rule::default()
        }
    }
}

/// Matches `part` packets in `whole`, rounded to the kernel's 2^-31; `None` for all of them.
fn chance(part: usize, whole: usize) -> Option<Match> {
    if part == whole {
        return None;
    }
    let exact = part as f64 / whole as f64 * f64::from(1u32 << 31);
    Some(Match::Random { threshold: exact.round() as u32 })
}
