//! Why endpoints do not serve. Numbers in comments are those of the edge cases in the specification.

use super::*;
use crate::model::{Change, Slice, SlicePort, Snapshot, Touched};
use crate::net::IpFamily;

/// Why each endpoint serves or does not, as `<policy Cluster> | <policy Local>`, and whether hints count.
fn reasons(place: Place<'_>, service_text: &str, endpoints: &[&str]) -> (Vec<String>, HintsUse) {
    let service = service(service_text);
    let port = service.ports_in(IpFamily::V4).next().unwrap();
    let sources: Vec<(u8, SliceEndpoint)> = endpoints.iter().map(|text| endpoint(text)).collect();
    let all: Vec<Endpoint<'_>> = sources
        .iter()
        .map(|(_, source)| Endpoint { address: SocketAddr::new(source.ip, 80), source })
        .collect();
    let choice = Choice::new(&port, &all, place);
    let text = |endpoint_use: Option<EndpointUse>| match endpoint_use {
        Some(endpoint_use) => endpoint_use.to_string(),
        None => "-".to_owned(),
    };
    let both = |endpoint| {
        let of = |policy| text(choice.of(policy, endpoint));
        format!("{} | {}", of(TrafficPolicy::Cluster), of(TrafficPolicy::Local))
    };
    (all.iter().map(both).collect(), choice.hints())
}

#[track_caller]
fn check_reasons(service: &str, endpoints: &[(&str, &str)]) {
    let (texts, expected): (Vec<&str>, Vec<&str>) = endpoints.iter().copied().unzip();
    assert_eq!(reasons(HERE, service, &texts).0, expected, "{service}");
}

#[test]
fn conditions_are_reasons() {
    check_reasons(
        "",
        &[
            ("1 here", "used | -"),
            ("2 there unready", "not ready | -"),
            ("3 serving", "not ready | -"),
            ("4 terminating", "terminating, others are ready | -"),
            ("5 dying", "terminating, not serving | -"),
            ("6 published", "used | -"),
        ],
    );
    check_reasons("", &[("1 terminating", "used, terminating | -"), ("2 unready", "not ready | -")]);
}

/// 80, 89, 93.
#[test]
fn policy_local_has_its_own_reasons() {
    check_reasons(
        "node-port external=Local",
        &[
            ("1 here terminating", "terminating, others are ready | used, terminating"),
            ("2 there", "used | not on this node"),
            ("3", "used | node unknown"),
            ("4 there unready", "not ready | not on this node"),
            ("5 here unready", "not ready | not ready"),
        ],
    );
    check_reasons("internal=Local", &[("1 here", "- | used"), ("2 there", "- | not on this node")]);
}

/// 94 to 104.
#[test]
fn hints_are_reasons_only_if_they_count() {
    let check = |service: &str, endpoints: &[(&str, &str)], nodes: HintsState, zones: HintsState| {
        let (texts, expected): (Vec<&str>, Vec<&str>) = endpoints.iter().copied().unzip();
        assert_eq!(
            reasons(HERE, service, &texts),
            (expected.iter().map(|&s| s.into()).collect(), HintsUse { nodes, zones })
        );
    };
    use HintsState::{Absent, Counted, Ignored};
    let not_all =
        |last, n_without| Ignored(HintsIgnored::NotAll { without: ([10, 0, 0, last], 80).into(), n_without });
    check(
        "node-port external=Local",
        &[
            ("1 here zone=west", "hint for another zone | used"),
            ("2 there zone=east", "used | not on this node"),
            ("3 there unready", "not ready | not on this node"),
        ],
        Absent,
        Counted,
    );
    check("", &[("1 zone=west", "used | -"), ("2", "used | -"), ("3", "used | -")], Absent, not_all(2, 2));
    let not_here = Ignored(HintsIgnored::NotHere);
    check("", &[("1 zone=west", "used | -"), ("2 unready zone=east", "not ready | -")], Absent, not_here);
    let both =
        [("1 node=here zone=west", "used | -"), ("2 node=there zone=east", "hint for another node | -")];
    check("", &both, Counted, Ignored(HintsIgnored::NodesWin));
    check("", &[("1 terminating zone=west", "used, terminating | -")], Absent, Absent);
    let nowhere = Place { node: "", zone: None };
    let (_, hints) = reasons(nowhere, "", &["1 node=here zone=east"]);
    let unknown = Ignored(HintsIgnored::PlaceUnknown);
    assert_eq!(hints, HintsUse { nodes: unknown, zones: unknown });
}

/// The lists of [`Selection`] as the specification puts them (model.md 4.1 to 4.3), list by list.
fn specified(endpoints: &[Endpoint<'_>], place: Place<'_>) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    type IsIn<'a> = &'a dyn Fn(&Endpoint<'_>) -> bool;
    let list = |is_in: IsIn<'_>| -> Vec<SocketAddr> {
        endpoints.iter().filter(|endpoint| is_in(endpoint)).map(|endpoint| endpoint.address).collect()
    };
    let or_else = |first: IsIn<'_>, second: IsIn<'_>| {
        let found = list(first);
        if found.is_empty() { list(second) } else { found }
    };
    let hint = |endpoint: &Endpoint<'_>, name: &str, is_node: bool| -> Option<bool> {
        let hints = endpoint.source.hints.as_deref()?;
        let names = if is_node { &hints.nodes } else { &hints.zones };
        (!names.is_empty()).then(|| names.iter().any(|hint| **hint == *name))
    };
    let ready: Vec<&Endpoint<'_>> = endpoints.iter().filter(|endpoint| endpoint.is_ready()).collect();
    let counts = |name: &str, is_node| {
        let all: Option<Vec<bool>> = ready.iter().map(|endpoint| hint(endpoint, name, is_node)).collect();
        !name.is_empty() && all.is_some_and(|all| all.contains(&true))
    };
    let zone = place.zone.unwrap_or_default();
    let fits = |endpoint: &Endpoint<'_>| match () {
        () if counts(place.node, true) => hint(endpoint, place.node, true) == Some(true),
        () if counts(zone, false) => hint(endpoint, zone, false) == Some(true),
        () => true,
    };
    let cluster = or_else(&|e| e.is_ready() && fits(e), &|e| e.is_serving_terminating());
    let local = or_else(&|e| e.is_ready() && e.is_on(place.node), &|e| {
        e.is_serving_terminating() && e.is_on(place.node)
    });
    (cluster, local)
}

/// All pairs and triples of a dozen kinds of endpoints.
#[test]
fn the_lists_are_those_of_the_specification() {
    let kinds = [
        "here",
        "there",
        "here unready",
        "here terminating",
        "there terminating",
        "there dying",
        "zone=east",
        "here zone=west",
        "zone=west",
        "here node=here",
        "node=there zone=east",
        "there terminating zone=east",
    ];
    let service = service("node-port external=Local");
    let port = service.ports_in(IpFamily::V4).next().unwrap();
    let mut n_narrowed = 0;
    for n in 0..kinds.len().pow(3) {
        let chosen = [n % 12, n / 12 % 12, n / 144];
        let sources: Vec<(u8, SliceEndpoint)> = chosen
            .iter()
            .enumerate()
            .map(|(last, kind)| endpoint(&format!("{last} {}", kinds[*kind])))
            .collect();
        let all: Vec<Endpoint<'_>> = sources
            .iter()
            .map(|(_, source)| Endpoint { address: SocketAddr::new(source.ip, 80), source })
            .collect();
        for place in [HERE, Place { zone: None, ..HERE }, Place { node: "", ..HERE }] {
            let selection = Selection::new(&port, &all, place);
            let list = |list: &[Endpoint<'_>]| list.iter().map(|endpoint| endpoint.address).collect();
            let found = (list(&selection.cluster), list(&selection.local));
            assert_eq!(found, specified(&all, place), "{place:?}: {:?}", chosen.map(|kind| kinds[kind]));
            let hints = Choice::new(&port, &all, place).hints();
            let is_narrowed = [hints.nodes, hints.zones].contains(&HintsState::Counted);
            n_narrowed += usize::from(is_narrowed);
            let n_ready = all.iter().filter(|endpoint| endpoint.is_ready()).count();
            assert!(is_narrowed || found.0.len() == n_ready || n_ready == 0, "hints are ignored");
        }
    }
    assert!(n_narrowed > 100, "only {n_narrowed} cases in which hints count");
}

fn slice(ip: [u8; 4], port_name: &str, endpoints: &[&str], family: IpFamily) -> Slice {
    let endpoints = endpoints.iter().map(|text| SliceEndpoint { ip: ip.into(), ..endpoint(text).1 });
    Slice {
        service: ObjectName::new("ns", "svc"),
        family,
        ports: [SlicePort { name: port_name.into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.collect(),
        triggered_at: None,
    }
}

/// 34, 50, 61, 74.
#[test]
fn entries_that_are_no_endpoints_are_reported_with_their_slice() {
    let (mut snapshot, mut touched) = (Snapshot::default(), Touched::default());
    let mut add = |name, slice| {
        snapshot.apply(Change::Slice(ObjectName::new("ns", name), Some(slice)), &mut touched);
    };
    add("a", slice([10, 0, 0, 1], "", &["1 here terminating"], IpFamily::V4));
    add("b", slice([10, 0, 0, 1], "", &["1 here"], IpFamily::V4));
    add("c", slice([10, 0, 0, 2], "http", &["2", "3"], IpFamily::V4));
    add("d", slice([10, 0, 0, 3], "", &["3"], IpFamily::V6));
    let service = service("");
    let slices = ServiceSlices::of(&snapshot, &service, IpFamily::V4);
    let port = service.ports_in(IpFamily::V4).next().unwrap();
    let candidates = slices.candidates(&port, HERE);
    let used: Vec<(&str, Option<EndpointUse>)> =
        candidates.endpoints.iter().map(|candidate| (candidate.slice.name(), candidate.cluster)).collect();
    assert_eq!(used, [("b", Some(EndpointUse::Ready))]);
    let superseded: Vec<(&str, &str)> =
        candidates.superseded.iter().map(|entry| (entry.slice.name(), entry.by.name())).collect();
    assert_eq!(superseded, [("a", "b")]);
    let unmatched: Vec<(&str, &str, usize)> = slices
        .unmatched
        .iter()
        .map(|entry| (entry.slice.name(), &*entry.port.name, entry.n_endpoints))
        .collect();
    assert_eq!(unmatched, [("c", "http", 2)]);
    let other: Vec<(&str, IpFamily)> =
        slices.other_family.iter().map(|entry| (entry.slice.name(), entry.family)).collect();
    assert_eq!(other, [("d", IpFamily::V6)]);
}
