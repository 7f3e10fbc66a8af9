//! Rules that do not depend on Services: jumps from the built-in chains, fixed chains, and the tail
//! of nat `KUBE-SERVICES` that leads to the node ports.

use super::names::{
    KUBE_EXTERNAL_SERVICES, KUBE_FIREWALL, KUBE_FORWARD, KUBE_MARK_MASQ, KUBE_NODEPORTS, KUBE_POSTROUTING,
    KUBE_PROXY_FIREWALL, KUBE_SERVICES,
};
use super::{Layout, NodePorts, Settings};
use crate::iptables::{AddressSide, Chain, ChainName, CtStates, Jump, Match, MaybeNot, Rule, Table, Target};
use crate::net::{Cidr, IpFamily};

/// The nfacct counter of packets that were dropped as INVALID.
pub const INVALID_COUNTER: &str = "ct_state_invalid_dropped_pkts";
/// The nfacct counter of connections to node ports on 127.0.0.0/8.
pub const LOCALHOST_COUNTER: &str = "localhost_nps_accepted_pkts";

const TAIL_COMMENT: &str = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";

/// The jumps, in the order in which missing ones are inserted at the heads of their chains.
pub fn jumps() -> Vec<Jump> {
    let new = || Match::CtState(MaybeNot::is(CtStates::NEW));
    let comment = |text: &str| Match::Comment(text.into());
    let external = || vec![new(), comment("kubernetes externally-visible service portals")];
    let portals = || vec![new(), comment("kubernetes service portals")];
    let firewall = || vec![new(), comment("kubernetes load balancer firewall")];
    let jump = |table, from, to, matches| Jump {
        table,
        from: ChainName::literal(from),
        rule: Rule { matches, target: Some(Target::Jump(to)), ..Rule::default() },
    };
    use Table::{Filter, Nat};
    vec![
        jump(Filter, "INPUT", KUBE_EXTERNAL_SERVICES, external()),
        jump(Filter, "FORWARD", KUBE_EXTERNAL_SERVICES, external()),
        jump(Filter, "INPUT", KUBE_NODEPORTS, vec![comment("kubernetes health check service ports")]),
        jump(Filter, "FORWARD", KUBE_SERVICES, portals()),
        jump(Filter, "OUTPUT", KUBE_SERVICES, portals()),
        jump(Filter, "FORWARD", KUBE_FORWARD, vec![comment("kubernetes forwarding rules")]),
        jump(Filter, "INPUT", KUBE_PROXY_FIREWALL, firewall()),
        jump(Filter, "OUTPUT", KUBE_PROXY_FIREWALL, firewall()),
        jump(Filter, "FORWARD", KUBE_PROXY_FIREWALL, firewall()),
        jump(Nat, "OUTPUT", KUBE_SERVICES, vec![comment("kubernetes service portals")]),
        jump(Nat, "PREROUTING", KUBE_SERVICES, vec![comment("kubernetes service portals")]),
        jump(Nat, "POSTROUTING", KUBE_POSTROUTING, vec![comment("kubernetes postrouting rules")]),
        jump(Filter, "INPUT", KUBE_FIREWALL, Vec::new()),
        jump(Filter, "OUTPUT", KUBE_FIREWALL, Vec::new()),
    ]
}

/// Whether the kubelet's rules in `chain` stay: the chain is added when missing, and its rules are not
/// compared or written.
pub fn is_shared_with_kubelet(chain: &Chain) -> bool {
    chain.name == KUBE_FIREWALL && chain.rules.is_empty()
}

/// The chains that do not depend on Services.
pub fn chains(settings: &Settings, layout: Layout) -> Vec<Chain> {
    let by_one_rule = layout == Layout::Compact && settings.bpf;
    let chain = |table, name, rules| Chain { table, name, rules };
    let firewall: Vec<Rule> = settings.localhost_node_ports.then(martian_rule).into_iter().collect();
    vec![
        chain(Table::Filter, KUBE_FORWARD, forward_rules(settings, by_one_rule)),
        chain(Table::Filter, KUBE_FIREWALL, firewall),
        chain(Table::Nat, KUBE_MARK_MASQ, vec![set_mark(settings)]),
        chain(Table::Nat, KUBE_POSTROUTING, postrouting_rules(settings, by_one_rule)),
    ]
}

/// With node ports on 127.0.0.1 the kernel routes 127/8 between interfaces; this rule keeps packets from
/// outside away from programs that listen on loopback.
fn martian_rule() -> Rule {
    let loopback = || Cidr::new(IpFamily::V4.localhost(), 8);
    let known = CtStates::RELATED.and(CtStates::ESTABLISHED).and(CtStates::DNAT);
    Rule {
        source: Some(MaybeNot::not(loopback())),
        destination: Some(MaybeNot::is(loopback())),
        matches: vec![
            Match::Comment("block incoming localnet connections".into()),
            Match::CtState(MaybeNot::not(known)),
        ],
        target: Some(Target::Drop),
        ..Rule::default()
    }
}

/// Whether `rule` is the one that keeps packets from outside away from loopback, which stands in a chain of the
/// kubelet's where node ports answer on 127.0.0.1.
pub fn is_martian_rule(rule: &Rule) -> bool {
    let ours = martian_rule();
    (rule.source, rule.destination, &rule.target) == (ours.source, ours.destination, &ours.target)
}

/// A rule for hairpins: connections whose client is also the endpoint that they were sent to. It
/// leaves out loopback sources, which another program's REDIRECT produces.
fn hairpin(family: IpFamily, target: Target) -> Rule {
    let loopback = match family {
        IpFamily::V4 => Cidr::new(IpFamily::V4.localhost(), 8),
        IpFamily::V6 => Cidr::host(IpFamily::V6.localhost()),
    };
    Rule {
        source: Some(MaybeNot::not(loopback)),
        matches: vec![Match::CtState(MaybeNot::is(CtStates::DNAT)), Match::Hairpin],
        target: Some(target),
        ..Rule::default()
    }
}

/// A rule that only a program and a kernel with the match for hairpins accept.
pub fn hairpin_probe(family: IpFamily) -> Rule {
    hairpin(family, Target::Return)
}

/// A rule that only a program and a kernel with the match `nfacct` accept, once [`INVALID_COUNTER`] exists.
pub fn counter_probe() -> Rule {
    Rule {
        matches: vec![Match::Nfacct(INVALID_COUNTER.into())],
        target: Some(Target::Return),
        ..Rule::default()
    }
}

fn forward_rules(settings: &Settings, by_one_rule: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    if settings.drops_invalid {
        // A packet out of window would leave untranslated and make its receiver reset the connection.
        let mut matches = vec![Match::CtState(MaybeNot::is(CtStates::INVALID))];
        matches.extend(settings.counters.invalid.then(|| Match::Nfacct(INVALID_COUNTER.into())));
        rules.push(Rule { matches, target: Some(Target::Drop), ..Rule::default() });
    }
    let mark = settings.mark.value();
    let known = CtStates::RELATED.and(CtStates::ESTABLISHED);
    for matches in [
        vec![
            Match::Comment("kubernetes forwarding rules".into()),
            Match::Mark { negated: false, value: mark, mask: mark },
        ],
        vec![
            Match::Comment("kubernetes forwarding conntrack rule".into()),
            Match::CtState(MaybeNot::is(known)),
        ],
    ] {
        rules.push(Rule { matches, target: Some(Target::Accept), ..Rule::default() });
    }
    // A hairpin gets its mark in POSTROUTING only, so the rule on the mark does not match it here.
    rules.extend(by_one_rule.then(|| hairpin(settings.family, Target::Accept)));
    rules
}

fn set_mark(settings: &Settings) -> Rule {
    let mark = settings.mark.value();
    Rule { target: Some(Target::SetXmark { value: mark, mask: mark }), ..Rule::default() }
}

/// The mark is cleared before masquerading, so that a packet that passes the stack again (in a
/// tunnel) is not masqueraded again.
fn postrouting_rules(settings: &Settings, by_one_rule: bool) -> Vec<Rule> {
    let mark = settings.mark.value();
    let random_fully = settings.random_fully;
    let mut rules = Vec::with_capacity(4);
    rules.extend(by_one_rule.then(|| hairpin(settings.family, Target::Jump(KUBE_MARK_MASQ))));
    rules.extend([
        Rule {
            matches: vec![Match::Mark { negated: true, value: mark, mask: mark }],
            target: Some(Target::Return),
            ..Rule::default()
        },
        Rule { target: Some(Target::SetXmark { value: mark, mask: 0 }), ..Rule::default() },
        Rule {
            matches: vec![Match::Comment("kubernetes service traffic requiring SNAT".into())],
            target: Some(Target::Masquerade { random_fully }),
            ..Rule::default()
        },
    ]);
    rules
}

/// The last rules of nat `KUBE-SERVICES`, which lead to the node ports. They stand last, so that an
/// external IP that is the node's own address wins.
pub fn node_ports_tail(settings: &Settings) -> Vec<Rule> {
    let rule = |destination, is_local: bool| {
        let mut matches = vec![Match::Comment(TAIL_COMMENT.into())];
        matches.extend(is_local.then_some(Match::IsLocal(AddressSide::Destination)));
        let target = Some(Target::Jump(KUBE_NODEPORTS));
        Rule { destination, matches, target, ..Rule::default() }
    };
    match &settings.node_ports {
        NodePorts::EveryAddress if settings.localhost_node_ports => vec![rule(None, true)],
        NodePorts::EveryAddress => {
            let loopback = match settings.family {
                IpFamily::V4 => Cidr::new(IpFamily::V4.localhost(), 8),
                IpFamily::V6 => Cidr::host(IpFamily::V6.localhost()),
            };
            vec![rule(Some(MaybeNot::not(loopback)), true)]
        }
        NodePorts::Addresses(addresses) => {
            addresses.iter().map(|ip| rule(Some(MaybeNot::is(Cidr::host(*ip))), false)).collect()
        }
    }
}
