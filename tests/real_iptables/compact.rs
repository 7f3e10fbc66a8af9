//! The compact layout in a real kernel: the worst case of Services, switching to it, and switching back to
//! kube-proxy.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use chainsmith::apply::FamilySync;
use chainsmith::compile;
use chainsmith::compile::View;
use chainsmith::config::{Config, LayoutChoice};
use chainsmith::iptables::parse::{self, Line};
use chainsmith::iptables::{ChainName, Match, Rule, Ruleset, Table, Target, write};
use chainsmith::kernel::programs::{KernelIptables, Programs, accepts_rule, open};
use chainsmith::kernel::{Backend, RestoreError};
use chainsmith::model::host::{Host, Kernel};
use chainsmith::model::{
    Change, Conditions, Frontend, ObjectName, Port, Service, Slice, SliceEndpoint, SlicePort, Snapshot,
    Touched,
};
use chainsmith::net::{Cidr, IpFamily, PerFamily, Protocol};
use chainsmith::plan::Restore;
use chainsmith::policy::Place;
use chainsmith::rules::names::{self, PortNames};
use chainsmith::rules::ownership::ChainOwner;
use chainsmith::rules::{Settings, fixed};

use super::corpus_cases::Case;
use super::namespace::{everywhere, in_namespace, load, saved};

pub const PLACE: Place<'_> = Place { node: "n", zone: None };

fn settings(family: IpFamily, layout: LayoutChoice, bpf: bool) -> Settings {
    let host = Host { addresses: Vec::new(), kernel: Kernel { bpf, ..Kernel::default() } };
    Settings::new(&Config { layout, ..Config::default() }, None, &host, family)
}

fn address(family: IpFamily, base: u128, n: u128) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::from((base ^ n) as u32).into(),
        IpFamily::V6 => Ipv6Addr::from(base ^ n).into(),
    }
}

fn apply(snapshot: &mut Snapshot, family: IpFamily, service: Service, endpoints: &[IpAddr]) {
    let name = service.name.clone();
    let endpoint = |ip: &IpAddr| SliceEndpoint {
        ip: *ip,
        conditions: Conditions { is_ready: true, is_serving: true, is_terminating: false },
        node: None,
        hints: None,
    };
    let ports = [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }].into();
    let endpoints = endpoints.iter().map(endpoint).collect();
    let slice = Slice { service: name.clone(), family, ports, endpoints, triggered_at: None };
    snapshot.apply(Change::Service(name.clone(), Some(service)), &mut Touched::default());
    snapshot.apply(Change::Slice(name, Some(slice)), &mut Touched::default());
}

/// A load balancer with source ranges, a node port and session affinity.
fn service(family: IpFamily, name: &str, cluster_ip: IpAddr, load_balancer: IpAddr) -> Service {
    let range = if family == IpFamily::V4 { "198.51.100.0/24" } else { "2001:db8:51::/64" };
    let frontend = Frontend {
        cluster_ip,
        external_ips: Box::default(),
        load_balancer_ips: [load_balancer].into(),
        source_ranges: [Cidr::parse(range).expect("a range")].into(),
    };
    let mut frontends = PerFamily::default();
    *frontends.get_mut(family) = Some(frontend);
    let port = Port { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30_000) };
    Service {
        name: ObjectName::new("ns", name),
        frontends,
        ports: [port].into(),
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity_seconds: Some(60),
        health_check_node_port: None,
        created: None,
    }
}

/// Services whose addresses branch at every level of the tree, one of them with 300 endpoints, many of
/// which have hashes with a common prefix, so that they are grouped at every level too.
fn worst_case(family: IpFamily) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let bits = u32::from(family.bits());
    let (base, pods) = match family {
        IpFamily::V4 => (0x0A60_0000, 0x0A80_0000),
        IpFamily::V6 => (0xfd00 << 112, (0xfd00 << 112) + (1 << 96)),
    };
    for level in 0..bits / 4 {
        for digit in 1..16u128 {
            let ip = |half: u128| address(family, base ^ half, digit << (bits - 4 - 4 * level));
            let one = service(family, &format!("s{level}-{digit}"), ip(0), ip(1));
            apply(&mut snapshot, family, one, &[address(family, pods, 1)]);
        }
    }
    let mut crowded = service(family, "crowded", address(family, base, 0), address(family, base, 2));
    // On another port than the others with its addresses, so that each frontend has one owner.
    crowded.ports = crowded.ports.iter().map(|port| Port { port: 81, ..port.clone() }).collect();
    let port = crowded.ports_in(family).next().expect("a port").name();
    let names = PortNames::new(&port);
    let digits = |ip: &IpAddr| names.endpoint_digits((*ip, 80).into());
    let all = || (2..200_000u128).map(|n| address(family, pods, n));
    let alike = all().filter(|ip| digits(ip)[..2] == [7, 7]).take(100);
    let endpoints: BTreeSet<IpAddr> = alike.chain(all().take(200)).collect();
    apply(&mut snapshot, family, crowded, &endpoints.into_iter().collect::<Vec<_>>());
    snapshot
}

/// Two Services.
pub fn small(family: IpFamily) -> Snapshot {
    let base = if family == IpFamily::V4 { 0x0A60_0000 } else { 0xfd00 << 112 };
    let mut snapshot = Snapshot::default();
    for n in [1, 2] {
        let one = service(family, &format!("s{n}"), address(family, base, n), address(family, base, n << 8));
        apply(&mut snapshot, family, one, &[address(family, base, n << 12)]);
    }
    snapshot
}

/// How many user-defined chains are on the longest path from `chain`, itself included.
fn depth(ruleset: &Ruleset, table: Table, chain: &ChainName) -> usize {
    let rules = ruleset.chain(table, chain).map_or(&[][..], |chain| &chain.rules);
    1 + rules.iter().filter_map(|rule| rule.callee()).map(|to| depth(ruleset, table, &to)).max().unwrap_or(0)
}

fn sync(sync: &mut FamilySync<KernelIptables>, snapshot: &Snapshot, settings: Settings) {
    sync.set_settings(settings);
    let report = sync.sync(View { snapshot, place: PLACE }, &AtomicBool::new(false));
    assert_eq!(report.outcome, Ok(()));
    assert_eq!(report.quarantined, []);
}

/// Asserts that the kernel has the rules of `snapshot` with `settings`, except canaries.
#[track_caller]
fn assert_in_force(family: IpFamily, backend: Backend, snapshot: &Snapshot, settings: &Settings) {
    let desired = compile::ruleset(settings, snapshot, PLACE);
    let there = parse::save(family, &saved(family, backend)).expect("a save can be read");
    for table in [Table::Filter, Table::Nat] {
        for (name, chain) in &desired.tables[&table] {
            let is_canary = *name == names::KUBE_PROXY_CANARY;
            let rules = there.chain(table, name).map(|chain| &chain.rules);
            assert!(is_canary || rules == Some(&chain.rules), "{table} {name}: {rules:#?}");
        }
        for name in there.tables[&table].keys().filter(|name| ChainOwner::of(table, name).is_ours()) {
            assert!(desired.chain(table, name).is_some(), "{table} {name} is left over");
        }
    }
}

#[test]
fn both_back_ends_accept_the_worst_case_of_services() {
    everywhere(|family, backend| {
        let snapshot = worst_case(family);
        for (bpf, longest) in [(true, 14), (false, 15)] {
            let settings = settings(family, LayoutChoice::Compact, bpf);
            let desired = compile::ruleset(&settings, &snapshot, PLACE);
            assert_eq!(depth(&desired, Table::Nat, &names::KUBE_SERVICES), longest);
            let kernel = open(family, Some(backend)).expect("iptables works");
            let mut family_sync = FamilySync::new(kernel);
            sync(&mut family_sync, &snapshot, settings.clone());
            assert_in_force(family, backend, &snapshot, &settings);
        }
    });
}

#[test]
fn the_hairpin_match_is_accepted_and_an_unknown_match_is_not() {
    everywhere(|family, backend| {
        let mut kernel = open(family, Some(backend)).expect("iptables works");
        assert_eq!(accepts_rule(&mut kernel, &fixed::hairpin_probe(family)), Ok(()));
        let Ok(Line::Append(_, unknown)) = parse::line(family, "-A X -m nosuchmatch --option 1 -j RETURN")
        else {
            panic!("a foreign rule is parsed");
        };
        let rejected = accepts_rule(&mut kernel, &unknown);
        let is_rejection =
            matches!(rejected, Err(RestoreError::Refused { .. } | RestoreError::Failed { .. }));
        assert!(is_rejection, "{family} {backend:?}: {rejected:?}");
        assert!(!saved(family, backend).contains("PROBE"), "nothing is left of it");
    });
}

/// Whether the kernel sends a UDP packet from `from` to `to` without reporting that a rule drops it.
fn passes_output(from: &str, to: &str) -> bool {
    let socket =
        UdpSocket::bind(SocketAddr::new(from.parse().expect("an address"), 0)).expect("a local address");
    match socket.send_to(b"x", SocketAddr::new(to.parse().expect("an address"), 9)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
        Err(error) => panic!("{from} to {to}: {error}"),
    }
}

#[test]
fn the_hairpin_match_compares_whole_addresses_and_reads_back_as_written() {
    everywhere(|family, backend| {
        let rule = Rule { matches: vec![Match::Hairpin], target: Some(Target::Drop), ..Rule::default() };
        let text = write::rule_text(family, &rule);
        load(family, backend, &format!("*filter\n-A OUTPUT {text}\nCOMMIT\n"));
        let there = parse::save(family, &saved(family, backend)).expect("a save can be read");
        assert_eq!(there.tables[&Table::Filter][&ChainName::literal("OUTPUT")].rules, [rule]);

        let (own, others) = match family {
            IpFamily::V4 => ("127.0.0.1", ["127.0.0.2", "127.0.1.1", "127.1.0.1"].as_slice()),
            // Each differs in other 32 bits.
            IpFamily::V6 => ("fd00::1", ["fd01::1", "fd00:0:1::1", "fd00::1:0:0:1", "fd00::2"].as_slice()),
        };
        let ip = |args: &[&str]| assert!(Command::new("ip").args(args).status().expect("ip runs").success());
        ip(&["link", "set", "lo", "up"]);
        for address in others.iter().chain([&own]).filter(|_| family == IpFamily::V6) {
            ip(&["-6", "address", "add", &format!("{address}/128"), "dev", "lo", "nodad"]);
        }
        assert!(!passes_output(own, own), "{family} {backend:?}");
        for other in others {
            assert!(passes_output(own, other) && passes_output(other, own), "{family} {backend:?} {other}");
        }
    });
}

#[test]
fn an_agent_switches_to_compact_and_back() {
    everywhere(|family, backend| {
        let snapshot = worst_case(family);
        let mut family_sync = FamilySync::new(open(family, Some(backend)).expect("iptables works"));
        for layout in [LayoutChoice::Classic, LayoutChoice::Compact, LayoutChoice::Classic] {
            let settings = settings(family, layout, true);
            sync(&mut family_sync, &snapshot, settings.clone());
            assert_in_force(family, backend, &snapshot, &settings);
        }
        // A new agent finds its desired rules, and writes nothing.
        let mut again = FamilySync::new(open(family, Some(backend)).expect("iptables works"));
        again.set_settings(settings(family, LayoutChoice::Classic, true));
        let report = again.sync(View { snapshot: &snapshot, place: PLACE }, &AtomicBool::new(false));
        assert_eq!((report.outcome, report.tally.n_processes), (Ok(()), 0));
    });
}

/// The chains of nat that kube-proxy treats as its own.
fn service_chains(family: IpFamily, backend: Backend) -> BTreeSet<String> {
    let text = saved(family, backend);
    let nat = &text[text.find("*nat").expect("table nat")..];
    let declared = nat.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    let prefixes = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];
    declared
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

/// kube-proxy's input `text` where the chains `held` exist: it declares stale ones too, and deletes them at
/// the end (sync.md 5).
fn with_stale_chains_deleted(text: &str, held: &BTreeSet<String>) -> String {
    let declared: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
    let stale: Vec<&String> = held.iter().filter(|name| !declared.contains(name.as_str())).collect();
    let (filter, nat) = text.split_once("*nat\n").expect("nat comes second");
    let declarations: String = stale.iter().map(|name| format!(":{name} - [0:0]\n")).collect();
    let deletions: String = stale.iter().map(|name| format!("-X {name}\n")).collect();
    let nat = nat.strip_suffix("COMMIT\n").expect("a final COMMIT");
    format!("{filter}*nat\n{declarations}{nat}{deletions}COMMIT\n")
}

#[test]
fn kube_proxy_replaces_our_rules_with_its_own_input_and_nothing_of_ours_remains() {
    let family = IpFamily::V4;
    let case = Case::all().into_iter().find(|case| case.name() == "transition-endpoints-to-zero-and-back");
    let recorded = case.expect("the case").file("restore-input.v4.txt").expect("what kube-proxy wrote");
    let inputs: Vec<String> = recorded
        .split_inclusive("COMMIT\n")
        .collect::<Vec<_>>()
        .chunks(2)
        .map(|tables| tables.concat())
        .collect();
    assert!(inputs.len() >= 3 && inputs[2].contains("-X KUBE-SVC-"), "the third deletes");
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(|| {
            let kernel = open(family, Some(backend)).expect("iptables works");
            let mut family_sync = FamilySync::new(kernel);
            sync(&mut family_sync, &worst_case(family), settings(family, LayoutChoice::Compact, true));
            let before = service_chains(family, backend);
            assert!(before.iter().any(|name| name.starts_with("KUBE-EXT-0")), "{before:?}");
            for input in &inputs {
                let held = service_chains(family, backend);
                let full = with_stale_chains_deleted(input, &held);
                // A partial sync of kube-proxy contains only chains of changed Services.
                let input = if input == &inputs[0] { &full } else { input };
                let programs = Programs::new(family, Some(backend));
                let mut kernel = KernelIptables::new(family, backend, programs);
                kernel.begin();
                kernel.write(input);
                assert_eq!(kernel.end(), Ok(()), "{input}");
                let left = service_chains(family, backend);
                assert!(left.is_disjoint(&before), "{left:?}");
            }
            assert!(!service_chains(family, backend).is_empty());
        });
    }
}
