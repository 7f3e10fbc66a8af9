//! What is written is read back as the same values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use chainsmith::iptables::{
    AddressSide, Chain, ChainName, CtStates, Interface, L4Protocol, Match, MaybeNot, Policy, PortRange,
    RecentAction, Rule, Ruleset, Table, Target, parse, write,
};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::net::{Cidr, IpFamily, Protocol};
use chainsmith::plan::Restore;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::cluster::worlds;
use crate::for_all;
use crate::live::{families, same};

const CHAINS: [&str; 6] =
    ["A", "KUBE-SVC-AAAAAAAAAAAAAAAA", "x'y", "DOCKER-USER", "a\\b", "abcdefghijklmnopqrstuvwxyz28"];

fn chains() -> impl Strategy<Value = ChainName> {
    select(&CHAINS[..]).prop_map(|name| ChainName::new(name).expect("a name"))
}

/// Text with everything that is special to a shell, to iptables or to this parser.
fn texts() -> impl Strategy<Value = String> {
    let characters = "ab-_/:.!+ \t\"'\\#*[]{}()$`;é😀~0,".chars().collect::<Vec<_>>();
    vec(select(characters), 0..12).prop_map(|characters| characters.into_iter().collect())
}

/// Options of an extension and their values; no value looks like an option of a rule.
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

fn rules(family: IpFamily) -> impl Strategy<Value = Rule> {
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

fn rulesets(family: IpFamily) -> impl Strategy<Value = Ruleset> {
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
            *ruleset.chain_mut(table, built_in) = Chain { policy: policy.or(Some(Policy::Accept)), rules };
            own.into_iter().for_each(|(name, rules)| ruleset.chain_mut(table, name).rules = rules);
        }
        ruleset
    })
}

#[test]
fn any_rule_is_read_back_from_its_text() {
    for family in IpFamily::BOTH {
        for_all(3000, rules(family), |rule| {
            let line = format!("-A X {}", write::rule_text(family, &rule));
            prop_assert_eq!(
                parse::line(family, &line),
                Ok(parse::Line::Append(ChainName::literal("X"), rule)),
                "{}",
                line
            );
            Ok(())
        });
    }
}

#[test]
fn any_ruleset_is_read_back_from_its_text() {
    for family in IpFamily::BOTH {
        for_all(1000, rulesets(family), |ruleset| {
            let text = write::save(family, &ruleset);
            let read = parse::save(family, &text);
            prop_assert!(read.is_ok(), "{:?}\n{}", read, text);
            same(family, "read back", &read.expect("just looked"), &ruleset)
        });
    }
}

#[test]
fn rules_of_any_cluster_are_read_back_from_both_forms() {
    for_all(640, (worlds(), families()), |(world, family)| {
        let ruleset = world.ruleset(family);
        let saved = parse::save(family, &write::save(family, &ruleset));
        same(family, "save", &saved.expect("our own text"), &ruleset)?;
        let mut kernel = FakeIptables::new(family, Backend::Nft);
        kernel.begin();
        kernel.write(&write::restore(family, &ruleset));
        prop_assert_eq!(kernel.end(), Ok(()));
        same(family, "restore", &kernel.ruleset, &ruleset)
    });
}

/// Lines that are none must not stop a reader, which takes what it finds in the kernel.
#[test]
fn no_text_makes_the_reader_panic() {
    let starts = select(vec![
        "-A X ",
        ":X ",
        "*",
        "-I ",
        "[1:2] -A ",
        "-X ",
        "-A X -m comment --comment ",
        "-A X -p tcp -m tcp ",
        "",
    ]);
    for_all(4000, (starts, texts(), texts()), |(start, a, b)| {
        for family in IpFamily::BOTH {
            let _ = parse::line(family, &format!("{start}{a} --dport {b}"));
            let _ = parse::line(family, &format!("{start}{a}"));
        }
        Ok(())
    });
}
