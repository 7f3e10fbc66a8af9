//! Tests of the changes that watch events become.

mod recorded;

use serde_json::json;

use super::*;
use crate::model::ObjectKind;

fn good(name: &str, octet: u8) -> ReceivedObject<ApiService> {
    guard(json!({
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": "1"},
        "spec": {"clusterIP": format!("10.0.0.{octet}"), "ports": [{"port": 80}]},
    }))
}

fn bad(name: &str) -> ReceivedObject<ApiService> {
    guard(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": 5}))
}

fn guard(object: serde_json::Value) -> ReceivedObject<ApiService> {
    serde_json::from_value(object).unwrap()
}

/// Changes as short text: `+a` set, `-a` removed, `*a,b` replaced by exactly these, `listed`.
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

/// Applies the events in order; compares the changes of the last one.
fn check(events: Vec<Event<ReceivedObject<ApiService>>>, expected: &str) {
    let interner = Mutex::new(Interner::default());
    let mut tracker = KindTracker::new(&interner);
    let mut last = Vec::new();
    for event in events {
        last = tracker.apply(event);
    }
    assert_eq!(words(last), expected);
}

use Event::{Apply, Delete, Init, InitApply, InitDone};

#[test]
fn a_complete_list_replaces_all_objects() {
    check(vec![Init, InitApply(good("a", 1))], "");
    check(vec![Init, InitApply(good("a", 1)), InitApply(good("b", 2)), InitDone], "*a,b listed");
    check(vec![Init, InitDone], "* listed");
}

#[test]
fn only_the_first_list_sends_listed() {
    check(vec![Init, InitApply(good("a", 1)), InitDone, Init, InitApply(good("b", 2)), InitDone], "*b");
}

#[test]
fn an_incomplete_list_has_no_effect() {
    check(vec![Init, InitApply(good("a", 1)), Init, InitApply(good("b", 2)), InitDone], "*b listed");
}

#[test]
fn each_watch_event_is_one_change() {
    check(vec![Init, InitDone, Apply(good("a", 1))], "+a");
    check(vec![Init, InitDone, Apply(good("a", 1)), Delete(good("a", 1))], "-a");
    check(vec![Init, InitDone, Delete(bad("a"))], "-a");
}

#[test]
fn a_service_that_is_no_longer_proxied_is_removed() {
    let headless =
        guard(json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"clusterIP": "None"}}));
    check(vec![Init, InitDone, Apply(good("a", 1)), Apply(headless)], "-a");
}

#[test]
fn an_undecodable_object_keeps_its_last_state() {
    check(vec![Init, InitDone, Apply(good("a", 1)), Apply(bad("a"))], "");
    let first = || vec![Init, InitApply(good("a", 1)), InitApply(good("b", 2)), InitDone, Init];
    let mut events = first();
    events.extend([InitApply(bad("a")), InitApply(good("c", 3)), InitDone]);
    check(events, "+c -b");
    // It is still known, so its deletion is reported.
    let mut events = first();
    events.extend([InitApply(bad("a")), InitDone, Init, InitDone]);
    check(events, "*");
    let mut events = first();
    events.extend([InitApply(bad("a")), InitDone, Init, InitApply(bad("b")), InitDone]);
    check(events, "*");
}

#[test]
fn a_service_that_is_no_longer_proxied_is_removed_also_beside_an_undecodable_one() {
    let external = guard(json!({
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"type": "ExternalName", "externalName": "example.org"},
    }));
    let mut events = vec![Init, InitApply(good("a", 1)), InitApply(good("b", 2)), InitDone];
    events.extend([Init, InitApply(bad("a")), InitApply(external), InitApply(good("c", 3)), InitDone]);
    check(events, "+c -b");
}

#[test]
fn an_object_that_was_never_decodable_is_absent() {
    check(vec![Init, InitApply(bad("a")), InitApply(good("b", 2)), InitDone], "*b listed");
}

#[test]
fn the_number_of_problems_is_sent_when_it_changes() {
    let interner = Mutex::new(Interner::default());
    let mut tracker = KindTracker::new(&interner);
    let mut sent = Vec::new();
    for event in [
        Apply(good("a", 1)),
        Apply(bad("a")),
        Apply(bad("a")),
        Apply(bad("b")),
        Delete(bad("b")),
        Apply(good("a", 1)),
    ] {
        sent.extend(tracker.apply(event).into_iter().filter_map(|event| match event {
            WatchEvent::Problems(ObjectKind::Service, n, first) => {
                let n_shown: usize = first.iter().map(|problem| problem.n_fields).sum();
                assert_eq!(n_shown, n);
                Some(n)
            }
            _ => None,
        }));
    }
    assert_eq!(sent, [1, 2, 1, 0]);
}
