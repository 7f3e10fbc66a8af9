//! Tests of what watch events mean.

mod recorded;

use serde_json::json;

use super::*;
use crate::model::ObjectKind;

fn good(name: &str, octet: u8) -> Guard<ApiService> {
    guard(json!({
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": "1"},
        "spec": {"clusterIP": format!("10.0.0.{octet}"), "ports": [{"port": 80}]},
    }))
}

fn bad(name: &str) -> Guard<ApiService> {
    guard(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": 5}))
}

fn guard(object: serde_json::Value) -> Guard<ApiService> {
    serde_json::from_value(object).unwrap()
}

/// Events as short words: `+a` there, `-a` gone, `*a,b` exactly these, `listed`.
fn words(events: Vec<WatchEvent>) -> String {
    let word = |event| match event {
        WatchEvent::Change(Change::Service(name, value)) => {
            format!("{}{}", if value.is_some() { "+" } else { "-" }, name.name())
        }
        WatchEvent::Change(Change::AllServices(services)) => {
            let names: Vec<&str> = services.iter().map(|service| service.name.name()).collect();
            format!("*{}", names.join(","))
        }
        WatchEvent::ServicesListed => "listed".to_owned(),
        other => panic!("{other:?}"),
    };
    let events = events.into_iter().filter(|event| !matches!(event, WatchEvent::Problems(..)));
    events.map(word).collect::<Vec<_>>().join(" ")
}

/// Gives the events in turn; what the last one means.
fn check(events: Vec<Event<Guard<ApiService>>>, expected: &str) {
    let interner = Mutex::new(Interner::default());
    let mut store = Store::new(&interner);
    let mut last = Vec::new();
    for event in events {
        last = store.take(event);
    }
    assert_eq!(words(last), expected);
}

use Event::{Apply, Delete, Init, InitApply, InitDone};

#[test]
fn a_list_is_swapped_in_when_it_is_complete() {
    check(vec![Init, InitApply(good("a", 1))], "");
    check(vec![Init, InitApply(good("a", 1)), InitApply(good("b", 2)), InitDone], "*a,b listed");
    check(vec![Init, InitDone], "* listed");
}

#[test]
fn only_the_first_list_is_called_listed() {
    check(vec![Init, InitApply(good("a", 1)), InitDone, Init, InitApply(good("b", 2)), InitDone], "*b");
}

#[test]
fn a_list_that_broke_off_counts_for_nothing() {
    check(vec![Init, InitApply(good("a", 1)), Init, InitApply(good("b", 2)), InitDone], "*b listed");
}

#[test]
fn single_events_are_single_changes() {
    check(vec![Init, InitDone, Apply(good("a", 1))], "+a");
    check(vec![Init, InitDone, Apply(good("a", 1)), Delete(good("a", 1))], "-a");
    check(vec![Init, InitDone, Delete(bad("a"))], "-a");
}

#[test]
fn a_service_that_is_not_proxied_any_more_is_gone() {
    let headless =
        guard(json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"clusterIP": "None"}}));
    check(vec![Init, InitDone, Apply(good("a", 1)), Apply(headless)], "-a");
}

#[test]
fn an_object_that_cannot_be_decoded_keeps_its_last_state() {
    check(vec![Init, InitDone, Apply(good("a", 1)), Apply(bad("a"))], "");
    let first = || vec![Init, InitApply(good("a", 1)), InitApply(good("b", 2)), InitDone, Init];
    let mut events = first();
    events.extend([InitApply(bad("a")), InitApply(good("c", 3)), InitDone]);
    check(events, "+c -b");
    // It is still known: when it is gone, it is said to be.
    let mut events = first();
    events.extend([InitApply(bad("a")), InitDone, Init, InitDone]);
    check(events, "*");
    let mut events = first();
    events.extend([InitApply(bad("a")), InitDone, Init, InitApply(bad("b")), InitDone]);
    check(events, "*");
}

#[test]
fn a_service_that_is_not_proxied_any_more_is_gone_also_beside_one_that_cannot_be_decoded() {
    let external = guard(json!({
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"type": "ExternalName", "externalName": "example.org"},
    }));
    let mut events = vec![Init, InitApply(good("a", 1)), InitApply(good("b", 2)), InitDone];
    events.extend([Init, InitApply(bad("a")), InitApply(external), InitApply(good("c", 3)), InitDone]);
    check(events, "+c -b");
}

#[test]
fn an_object_that_never_could_be_decoded_is_not_there() {
    check(vec![Init, InitApply(bad("a")), InitApply(good("b", 2)), InitDone], "*b listed");
}

#[test]
fn the_number_of_problems_is_told_when_it_changes() {
    let interner = Mutex::new(Interner::default());
    let mut store = Store::new(&interner);
    let mut told = Vec::new();
    for event in [
        Apply(good("a", 1)),
        Apply(bad("a")),
        Apply(bad("a")),
        Apply(bad("b")),
        Delete(bad("b")),
        Apply(good("a", 1)),
    ] {
        told.extend(store.take(event).into_iter().filter_map(|event| match event {
            WatchEvent::Problems(ObjectKind::Service, n) => Some(n),
            _ => None,
        }));
    }
    assert_eq!(told, [1, 2, 1, 0]);
}
