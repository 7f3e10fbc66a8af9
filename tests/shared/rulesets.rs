//! Random rules and rulesets: every possible [`Rule`], whether iptables accepts it or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use chainsmith::iptables::{
    AddressSide, ChainContent, ChainName, CtStates, Interface, L4Protocol, Match, MaybeNot, Policy,
    PortRange, RecentAction, Rule, Ruleset, Table, Target,
};
use chainsmith::net::{Cidr, IpFamily, Protocol};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const CHAINS: [&str; 6] =
    ["A", "KUBE-SVC-AAAAAAAAAAAAAAAA", "x'y", "DOCKER-USER", "a\\b", "abcdefghijklmnopqrstuvwxyz28"];

fn chains() -> impl Strategy<Value = ChainName> {
    select(&CHAINS[..]).prop_map(|name| ChainName::new(name).expect("a name"))
}

/// Text with all characters that are special to a shell, to iptables or to this parser.
pub fn texts() -> impl Strategy<Value = String> {
    let characters = "ab-_/:.!+ \t\"'\\#*[]{}()$`;é😀~0,".chars().collect::<Vec<_>>();
    vec(select(characters), 0..12).prop_map(|characters| characters.into_iter().collect())
}

/// Options of an extension and their values; no value resembles an option of a rule.
fn words() -> impl Strategy<Value = Box<[Box<str>]>> {
    let is_value = |text: &String| text != "!" && !text.starts_with('-');
    let options = (
        any::<bool>(),
        select(vec!["--limit", "--match-set", "--to-source"]),
        option::of(texts().prop_filter("an option", is_value)),
    );
    vec(options, 1..4).prop_map(|options| {
        let mut words: Vec<Box<str>> = Vec::new();
        for (is_negated, option, value) in options {
            words.extend(is_negated.then_some("!".into()));
            words.push(option.into());
            words.extend(value.map(String::into_boxed_str));
        }
        words.into()
    })
}

fn maybe_not<T: std::fmt::Debug + Clone>(
    values: impl Strategy<Value = T>,
) -> impl Strategy<Value = MaybeNot<T>> {
    (any::<bool>(), values).prop_map(|(negated, value)| MaybeNot { negated, value })
}

fn ips(family: IpFamily) -> BoxedStrategy<IpAddr> {
    match family {
        IpFamily::V4 => any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()).boxed(),
        IpFamily::V6 => any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits | 1 << 125).into()).boxed(),
    }
}

fn cidrs(family: IpFamily) -> impl Strategy<Value = MaybeNot<Cidr>> {
    let networks = (ips(family), 0..=family.bits()).prop_map(|(ip, length)| Cidr::new(ip, length));
    maybe_not(networks).prop_filter("iptables does not show it", |c| c.negated || !c.value.is_everything())
}

fn interfaces() -> impl Strategy<Value = MaybeNot<Interface>> {
    let names = select(vec!["eth0", "cali+", "abcdefghijklmno+", "ve'th", "a\\b", "br-x.1", "é"]);
    maybe_not(names.prop_filter_map("not a name", Interface::new))
}

fn protocols() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn matches() -> impl Strategy<Value = Match> {
    let ranges = any::<(u16, u16)>().prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) });
    let states =
        vec(select(vec!["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"]), 1..5);
    let modules = select(vec![
        "limit",
        "set",
        "tcp",
        "conntrack",
        "mark",
        "recent",
        "statistic",
        "addrtype",
        "comment",
        "nfacct",
    ]);
    prop_oneof![
        texts().prop_map(|text| Match::Comment(text.into())),
        (protocols(), option::of(ranges))
            .prop_map(|(protocol, destination_ports)| Match::L4 { protocol, destination_ports }),
        any::<(bool, u32, u32)>().prop_map(|(negated, value, mask)| Match::Mark { negated, value, mask }),
        any::<(bool, u32)>().prop_map(|(negated, value)| Match::Mark { negated, value, mask: u32::MAX }),
        maybe_not(states.prop_map(|words| CtStates::parse(&words.join(",")).expect("states")))
            .prop_map(Match::CtState),
        select(vec![AddressSide::Source, AddressSide::Destination]).prop_map(Match::IsLocal),
        (0..=1u32 << 31).prop_map(|threshold| Match::Random { threshold }),
        (option::of(any::<u32>()), chains()).prop_map(|(seconds, list)| Match::Recent {
            action: seconds.map_or(RecentAction::Set, |seconds| RecentAction::Check { seconds }),
            list,
        }),
        select(vec!["ct_state_invalid_dropped_pkts", "a.b"]).prop_map(|name| Match::Nfacct(name.into())),
        (modules, words()).prop_map(|(module, words)| Match::Other { module: module.into(), words }),
        any::<bool>().prop_map(|negated| {
            let words: Vec<Box<str>> =
                negated.then_some("!".into()).into_iter().chain(["-f".into()]).collect();
            Match::Other { module: "".into(), words: words.into() }
        }),
    ]
}

fn targets(family: IpFamily) -> impl Strategy<Value = Target> {
    let others = select(vec!["LOG", "SNAT", "REDIRECT", "MARK", "DNAT", "REJECT", "MASQUERADE"]);
    prop_oneof![
        chains().prop_map(Target::Jump),
        chains().prop_map(Target::Goto),
        select(vec![Target::Accept, Target::Drop, Target::Return, Target::Reject]),
        (ips(family), any::<u16>()).prop_map(|(ip, port)| Target::Dnat(SocketAddr::new(ip, port))),
        any::<bool>().prop_map(|random_fully| Target::Masquerade { random_fully }),
        any::<(u32, u32)>().prop_map(|(value, mask)| Target::SetXmark { value, mask }),
        (others, words()).prop_map(|(name, words)| Target::Other { name: name.into(), words }),
        Just(Target::Other { name: "LOG".into(), words: Box::default() }),
    ]
}

/// Rules with known and unknown parts.
pub fn rules(family: IpFamily) -> impl Strategy<Value = Rule> {
    let protocol = maybe_not(prop_oneof![
        protocols().prop_map(L4Protocol::Service),
        select(vec!["icmp", "esp", "47"]).prop_map(|word| L4Protocol::Other(Arc::from(word))),
    ]);
    let basic = (
        option::of(cidrs(family)),
        option::of(cidrs(family)),
        option::of(interfaces()),
        option::of(interfaces()),
    );
    (basic, option::of(protocol), vec(matches(), 0..4), option::of(targets(family))).prop_map(
        |((source, destination, in_interface, out_interface), protocol, matches, target)| Rule {
            source,
            destination,
            in_interface,
            out_interface,
            protocol,
            matches,
            target,
        },
    )
}

/// Every table, with user-defined chains and rules in built-in ones.
pub fn rulesets(family: IpFamily) -> impl Strategy<Value = Ruleset> {
    let built_in =
        |table: Table| table.built_in().iter().map(|name| ChainName::literal(name)).collect::<Vec<_>>();
    let tables = Table::ALL.map(|table| {
        let policies = option::of(select(vec![Policy::Accept, Policy::Drop]));
        let own = btree_map(chains(), vec(rules(family), 0..4), 0..4);
        (own, select(built_in(table)), policies, vec(rules(family), 0..3))
    });
    tables.prop_map(|tables| {
        let mut ruleset = Ruleset::with_built_in_chains();
        for (table, (own, built_in, policy, rules)) in Table::ALL.into_iter().zip(tables) {
            *ruleset.chain_mut(table, built_in) =
                ChainContent { policy: policy.or(Some(Policy::Accept)), rules };
            own.into_iter().for_each(|(name, rules)| ruleset.chain_mut(table, name).rules = rules);
        }
        ruleset
    })
}
