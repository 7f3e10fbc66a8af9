//! Picking one of many endpoints, each as likely as the others, in few rules.
//!
//! Few endpoints stand in one chain. Many are grouped by the leading digits of a hash of each, a
//! chain for each group, so that a packet meets a few dozen rules at most on its way, and a change
//! of one endpoint rewrites one path and not the rules of all.

use crate::iptables::{Chain, L4Protocol, Match, MaybeNot, RecentAction, Rule, Table, Target};
use crate::model::Endpoint;
use crate::rules::classic::ChainWriter;
use crate::rules::names::PortChain;

/// How many endpoints stand in one chain.
const MAX_FLAT: usize = 64;

/// How many digits of the hash are used at most, and so how many chains lie on a packet's way.
const MAX_DEPTH: usize = 3;

struct Member<'a> {
    digits: [u8; MAX_DEPTH],
    endpoint: &'a Endpoint<'a>,
}

struct Balance<'a> {
    writer: &'a ChainWriter<'a>,
    kind: PortChain,
    /// Whether endpoints have chains of their own.
    has_endpoint_chains: bool,
}

/// Appends the chain of `kind` for `endpoints`, behind the chains that it calls.
pub(super) fn push_chains(
    writer: &ChainWriter<'_>,
    kind: PortChain,
    endpoints: &[Endpoint<'_>],
    has_endpoint_chains: bool,
    chains: &mut Vec<Chain>,
) {
    let balance = Balance { writer, kind, has_endpoint_chains };
    let mut sorted: Vec<&Endpoint<'_>> = endpoints.iter().collect();
    sorted.sort_unstable_by_key(|endpoint| endpoint.address);
    let mut rules: Vec<Rule> = writer.masquerade_rule_in(kind).into_iter().collect();
    if let Some(seconds) = writer.affinity_seconds() {
        rules.extend(sorted.iter().map(|endpoint| balance.stick(endpoint, seconds)));
    }
    let is_grouped = sorted.len() > MAX_FLAT;
    let digits = |endpoint: &Endpoint<'_>| match is_grouped {
        true => writer.names().endpoint_digits(endpoint.address),
        false => [0; MAX_DEPTH],
    };
    let member = |endpoint| Member { digits: digits(endpoint), endpoint };
    let mut members: Vec<Member<'_>> = sorted.into_iter().map(member).collect();
    // Stable: among equal digits by address.
    members.sort_by_key(|member| member.digits);
    rules.extend(balance.pick(&members, 0, chains));
    chains.push(Chain { table: Table::Nat, name: writer.names().chain(kind), rules });
}

impl Balance<'_> {
    /// The rules that pick one of `members`, whose first `depth` digits are the same. Chains that
    /// they call are appended to `chains`.
    fn pick(&self, members: &[Member<'_>], depth: usize, chains: &mut Vec<Chain>) -> Vec<Rule> {
        let mut n_left = members.len();
        let mut share = |n: usize| {
            let chance = chance(n, n_left);
            n_left -= n;
            chance
        };
        if members.len() <= MAX_FLAT || depth == MAX_DEPTH {
            return members.iter().map(|member| self.lead(share(1), member.endpoint)).collect();
        }
        let mut rules = Vec::with_capacity(16);
        for group in members.chunk_by(|a, b| a.digits[depth] == b.digits[depth]) {
            let chance = share(group.len());
            if let [member] = group {
                rules.push(self.lead(chance, member.endpoint));
                continue;
            }
            let name = self.writer.names().group(self.kind, &group[0].digits[..=depth]);
            let inner = self.pick(group, depth + 1, chains);
            chains.push(Chain { table: Table::Nat, name, rules: inner });
            let matches = chance.into_iter().collect();
            rules.push(Rule { matches, target: Some(Target::Jump(name)), ..Rule::default() });
        }
        rules
    }

    /// Sends what meets `chance` to `endpoint`.
    fn lead(&self, chance: Option<Match>, endpoint: &Endpoint<'_>) -> Rule {
        let matches = chance.into_iter().collect();
        if self.has_endpoint_chains {
            let target = Target::Jump(self.writer.names().endpoint_at(endpoint.address));
            return Rule { matches, target: Some(target), ..Rule::default() };
        }
        Rule {
            protocol: Some(MaybeNot::is(L4Protocol::Service(self.writer.protocol()))),
            matches,
            target: Some(Target::Dnat(endpoint.address)),
            ..Rule::default()
        }
    }

    /// Sends a client that was at `endpoint` in the last `seconds` there again.
    fn stick(&self, endpoint: &Endpoint<'_>, seconds: u32) -> Rule {
        let list = self.writer.names().endpoint_at(endpoint.address);
        Rule {
            matches: vec![Match::Recent { action: RecentAction::Check { seconds }, list }],
            target: Some(Target::Jump(list)),
            ..Rule::default()
        }
    }
}

/// Matches `part` packets in `whole`, to the kernel's 2^-31; nothing is needed for all of them.
fn chance(part: usize, whole: usize) -> Option<Match> {
    if part == whole {
        return None;
    }
    let exact = part as f64 / whole as f64 * f64::from(1u32 << 31);
    Some(Match::Random { threshold: exact.round() as u32 })
}
