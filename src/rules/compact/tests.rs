//! The rules in a service port's chains in compact.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use super::*;
use crate::config::Config;
use crate::iptables::trace::Weight;
use crate::iptables::{ChainName, Match, RecentAction, Table, Target, write};
use crate::model::host::{Host, Kernel};
use crate::model::{Conditions, Endpoint, Frontend, ObjectName, Port, Service, SliceEndpoint};
use crate::net::{Cidr, IpFamily, PerFamily, Protocol};
use crate::rules::Settings;
use crate::rules::names::PortNames;
use crate::rules::ownership::ChainOwner;

fn service(affinity_seconds: Option<u32>) -> Service {
    let frontend = Frontend {
        cluster_ip: [10, 96, 0, 1].into(),
        external_ips: [IpAddr::from([203, 0, 113, 1])].into(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
    };
    Service {
        name: ObjectName::new("ns", "s"),
        frontends: PerFamily { v4: Some(frontend), v6: None },
        ports: [Port { name: "p".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity_seconds,
        health_check_node_port: None,
        created: None,
    }
}

fn address(n: usize) -> SocketAddr {
    (Ipv4Addr::from(0x0A80_0000 + n as u32), 8080).into()
}

/// Endpoints differ in their addresses only.
static SOURCE: LazyLock<SliceEndpoint> = LazyLock::new(|| SliceEndpoint {
    ip: IpFamily::V4.localhost(),
    conditions: Conditions { is_ready: true, is_serving: true, is_terminating: false },
    node: None,
    hints: None,
});

fn endpoint(n: usize) -> Endpoint<'static> {
    Endpoint { address: address(n), source: &SOURCE }
}

fn compile(service: &Service, endpoints: &[Endpoint<'_>], bpf: bool) -> BTreeMap<ChainName, Vec<Rule>> {
    let host = Host { addresses: Vec::new(), kernel: Kernel { bpf, ..Kernel::default() } };
    let settings = Settings::new(&Config::default(), None, &host, IpFamily::V4);
    let port = service.ports_in(IpFamily::V4).next().unwrap();
    let place = crate::policy::Place { node: "n", zone: None };
    let selection = Selection::new(&port, endpoints, place);
    let chains = chains(&PortContext::new(&settings, &port, selection.verdicts(&port)), &selection);
    for (n, chain) in chains.iter().enumerate() {
        for callee in
            chain.rules.iter().filter_map(Rule::callee).filter(|name| name.as_str() != "KUBE-MARK-MASQ")
        {
            assert!(chains[..n].iter().any(|earlier| earlier.name == callee), "{callee} behind its caller");
        }
    }
    chains.into_iter().map(|chain| (chain.name, chain.rules)).collect()
}

fn text(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(|rule| write::rule_text(IpFamily::V4, rule)).collect()
}

/// The probability of each endpoint from `chain` on, and the most rules that a packet meets.
fn odds(
    chains: &BTreeMap<ChainName, Vec<Rule>>,
    chain: &ChainName,
    weight: Weight,
    odds: &mut BTreeMap<SocketAddr, f64>,
) -> usize {
    let mut left = weight;
    let mut longest = 0;
    for (n, rule) in chains[chain].iter().enumerate() {
        let threshold = rule.matches.iter().find_map(|part| match part {
            Match::Random { threshold } => Some(*threshold),
            _ => None,
        });
        let (taken, rest) = left.split(threshold.unwrap_or(1 << 31));
        match rule.target {
            Some(Target::Dnat(to)) => {
                *odds.entry(to).or_default() += taken.to_f64();
                longest = longest.max(n + 1);
            }
            Some(Target::Jump(callee)) if chains.contains_key(&callee) => {
                longest = longest.max(n + 1 + self::odds(chains, &callee, taken, odds));
            }
            _ => continue,
        }
        left = rest;
    }
    assert!(left.is_zero(), "{chain} leaves {left}");
    longest
}

fn svc() -> ChainName {
    let port = service(None).ports_in(IpFamily::V4).next().unwrap().name();
    crate::rules::names::PortNames::new(&port).chain(PortChain::Cluster)
}

#[test]
fn all_endpoints_have_the_same_probability_in_few_rules() {
    for n in [1, 2, 3, 7, 64, 65, 300, 1_000, 5_000] {
        let endpoints: Vec<Endpoint<'_>> = (0..n).map(endpoint).collect();
        let chains = compile(&service(None), &endpoints, true);
        let mut found = BTreeMap::new();
        let longest = odds(&chains, &svc(), Weight::ONE, &mut found);
        assert_eq!(found.len(), n);
        for (to, weight) in found {
            assert!((weight - 1.0 / n as f64).abs() < 1e-8, "{to} of {n}: {weight}");
        }
        assert!(longest <= 16 + 16 + 64, "{longest} rules for {n} endpoints");
        let n_rules: usize = chains.values().map(Vec::len).sum();
        assert!(n_rules <= n + n / 4 + 20, "{n_rules} rules for {n} endpoints");
    }
}

#[test]
fn a_change_of_one_endpoint_rewrites_one_path() {
    let endpoints: Vec<Endpoint<'_>> = (0..2_000).map(endpoint).collect();
    let before = compile(&service(None), &endpoints, true);
    for n in [0, 777, 1_999] {
        let mut less = endpoints.clone();
        less.remove(n);
        let after = compile(&service(None), &less, true);
        let names = before.keys().chain(after.keys());
        let changed: std::collections::BTreeSet<_> =
            names.filter(|name| before.get(name) != after.get(name)).collect();
        let n_rules: usize = changed.iter().filter_map(|name| after.get(name)).map(Vec::len).sum();
        assert!(
            (1..=3).contains(&changed.len()) && n_rules <= 96,
            "{} chains, {n_rules} rules",
            changed.len()
        );
    }
}

#[test]
fn dnat_to_endpoints_needs_no_endpoint_chains() {
    let chains = compile(&service(None), &[endpoint(2), endpoint(1)], true);
    assert_eq!(chains.len(), 2);
    assert_eq!(
        text(&chains[&svc()]),
        [
            "-p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.128.0.1:8080",
            "-p tcp -j DNAT --to-destination 10.128.0.2:8080",
        ]
    );
}

#[test]
fn affinity_keeps_a_chain_and_a_list_for_each_endpoint() {
    let sep = |n| {
        let port = service(None).ports_in(IpFamily::V4).next().unwrap().name();
        crate::rules::names::PortNames::new(&port).endpoint_at(address(n))
    };
    let chains = compile(&service(Some(100)), &[endpoint(1), endpoint(2)], true);
    let set = Match::Recent { action: RecentAction::Set, list: sep(1) };
    assert_eq!(chains[&sep(1)].len(), 1, "the hairpin has its rule elsewhere");
    assert!(chains[&sep(1)][0].matches.contains(&set));
    let checks = |rule: &&Rule| rule.matches.iter().any(|part| matches!(part, Match::Recent { .. }));
    assert_eq!(chains[&svc()].iter().filter(checks).count(), 2);
    assert_eq!(chains[&svc()].len(), 4);
}

#[test]
fn without_bpf_each_endpoint_has_its_rule_for_hairpins() {
    let chains = compile(&service(None), &(0..100).map(endpoint).collect::<Vec<_>>(), false);
    let of_endpoints = chains
        .iter()
        .filter(|(name, _)| ChainOwner::of(Table::Nat, name) == ChainOwner::ServicePort(PortChain::Endpoint));
    let hairpins = of_endpoints.filter(|(_, rules)| rules[0].source.is_some() && rules.len() == 2).count();
    assert_eq!(hairpins, 100);
}

#[test]
fn no_rule_has_a_comment_and_a_service_without_endpoints_has_no_chains() {
    let chains = compile(&service(Some(5)), &[endpoint(1)], false);
    assert!(chains.values().flatten().all(|rule| rule.comment().is_none()));
    assert_eq!(compile(&service(None), &[], true), BTreeMap::new());
}

#[test]
fn a_firewall_chain_has_no_rule_without_effect() {
    let mut service = service(None);
    let frontend = service.frontends.v4.as_mut().unwrap();
    frontend.load_balancer_ips = [IpAddr::from([203, 0, 113, 7])].into();
    frontend.source_ranges = [Cidr::parse("198.51.100.0/24").unwrap()].into();
    let port = service.ports_in(IpFamily::V4).next().unwrap();
    let names = PortNames::new(&port.name());
    let (firewall, outer) = (names.chain(PortChain::Firewall), names.chain(PortChain::External));
    let chains = compile(&service, &[endpoint(1)], true);
    assert_eq!(text(&chains[&firewall]), [format!("-s 198.51.100.0/24 -j {outer}")]);
}
