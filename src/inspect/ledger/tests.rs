use proptest::prelude::*;

use super::*;
use crate::model::ObjectName;
use crate::net::Protocol;

fn port(name: &str) -> ServicePortName {
    ServicePortName { service: ObjectName::new("shop", name), port: "".into(), protocol: Protocol::Tcp }
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8080))
}

fn chain(n: u8) -> ChainName {
    ChainName::new(&format!("KUBE-SEP-{n}")).unwrap()
}

fn count(n: u64) -> FirstPackets {
    FirstPackets { n_packets: n, n_bytes: 60 * n }
}

/// The DNAT rules of `of`: last byte of the endpoint's address, and packets.
fn rules(of: u8, counts: &[(u8, u64)]) -> Vec<DnatRule> {
    let rule = |(n, packets): &(u8, u64)| DnatRule {
        chain: chain(of),
        endpoint: endpoint(*n),
        counted: count(*packets),
    };
    counts.iter().map(rule).collect()
}

fn total(ledger: &Ledger, name: &str) -> u64 {
    ledger.of_service(&ObjectName::new("shop", name)).map(|(_, total)| total.all.n_packets).sum()
}

#[test]
fn totals_are_what_counters_grew_by() {
    let (mut ledger, db) = (Ledger::of_all_counts(true), port("db"));
    ledger.record(chain(1), &db, &rules(1, &[(1, 5), (2, 0)]));
    ledger.record(chain(2), &db, &rules(2, &[(1, 2)]));
    ledger.record(chain(1), &db, &rules(1, &[(1, 7), (2, 1)]));
    let (_, counted) = ledger.ports().next().unwrap();
    assert_eq!(counted.all, count(10));
    let by_endpoint: Vec<_> = counted.endpoints.iter().map(|(at, count)| (*at, count.n_packets)).collect();
    assert_eq!(by_endpoint, [(endpoint(1), 9), (endpoint(2), 1)], "an endpoint in two chains is one");
    assert_eq!(ledger.all(), count(10));
}

#[test]
fn counters_that_fell_began_at_zero_and_a_rewritten_chain_too() {
    let (mut ledger, db) = (Ledger::of_all_counts(false), port("db"));
    ledger.record(chain(1), &db, &rules(1, &[(1, 5)]));
    assert!(ledger.has_fallen(&rules(1, &[(1, 4)])) && !ledger.has_fallen(&rules(1, &[(1, 5), (2, 0)])));
    ledger.record(chain(1), &db, &rules(1, &[(1, 4)]));
    assert_eq!(total(&ledger, "db"), 9);
    // Rewritten by the agent: even a higher counter began at zero.
    ledger.rewritten(chain(1));
    ledger.record(chain(1), &db, &rules(1, &[(1, 100)]));
    assert_eq!(total(&ledger, "db"), 109);
    // The rule was away, and comes back.
    ledger.record(chain(1), &db, &[]);
    ledger.record(chain(1), &db, &rules(1, &[(1, 101)]));
    assert_eq!(total(&ledger, "db"), 210);
    assert!(ledger.ports().all(|(_, total)| total.endpoints.is_empty()), "endpoints are not counted");
}

#[test]
fn what_an_earlier_process_counted_is_not_counted_again() {
    let (mut ledger, db) = (Ledger::of_new_counts(true), port("db"));
    // Chain 2 was written by this process before anything was read.
    ledger.rewritten(chain(2));
    ledger.record(chain(1), &db, &rules(1, &[(1, 1_000)]));
    ledger.record(chain(2), &db, &rules(2, &[(2, 7)]));
    assert_eq!(total(&ledger, "db"), 7);
    ledger.record(chain(1), &db, &rules(1, &[(1, 1_001), (3, 1)]));
    assert_eq!(total(&ledger, "db"), 9);
    ledger.end_start();
    ledger.record(chain(3), &db, &rules(3, &[(4, 2)]));
    assert_eq!(total(&ledger, "db"), 11);
}

#[test]
fn the_sum_of_all_keeps_what_deleted_services_and_endpoints_counted() {
    let mut ledger = Ledger::of_all_counts(true);
    ledger.record(chain(1), &port("db"), &rules(1, &[(1, 5), (2, 6)]));
    ledger.record(chain(2), &port("web"), &rules(2, &[(3, 7)]));
    ledger.retain_endpoints(&port("db"), |at| *at == endpoint(2));
    let (_, db) = ledger.ports().next().unwrap();
    assert_eq!((db.all, db.endpoints.len()), (count(11), 1));
    ledger.retain_ports(&ObjectName::new("shop", "db"), |_| false);
    assert_eq!((ledger.ports().count(), ledger.all()), (1, count(18)));
    ledger.retain_all_ports(|_| false);
    assert_eq!((ledger.ports().count(), ledger.all()), (0, count(18)));
}

/// What happens to the counters of one chain between two readings.
#[derive(Clone, Debug)]
enum Event {
    /// Connections to an endpoint, if it has a rule.
    Connections(u8, u64),
    /// The agent writes these endpoints, reading the counters before; this many connections are made in between.
    Rewrite(Vec<u8>, u64),
    /// Another process writes these endpoints.
    ExternalWrite(Vec<u8>),
    /// Another process resets the counters.
    Zero,
    /// A scrape.
    Read,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let endpoints = || proptest::collection::vec(0..5u8, 0..5);
    let event = prop_oneof![
        4 => (0..5u8, 1..50u64).prop_map(|(at, n)| Event::Connections(at, n)),
        2 => (endpoints(), 0..3u64).prop_map(|(rules, n)| Event::Rewrite(rules, n)),
        1 => endpoints().prop_map(Event::ExternalWrite),
        1 => Just(Event::Zero),
        3 => Just(Event::Read),
    ];
    proptest::collection::vec(event, 1..60)
}

proptest! {
    /// Over any history totals only grow, never exceed what was made, and lack only what was made between a reading and
    /// the loss of the counters that it read; none if the agent alone writes and nothing happens in between.
    #[test]
    fn totals_only_grow_and_never_exceed_the_connections_made(events in events()) {
        let (mut ledger, db) = (Ledger::of_all_counts(true), port("db"));
        let mut kernel: BTreeMap<u8, u64> = BTreeMap::from([(0, 0), (1, 0)]);
        let (mut made, mut unread, mut lost) = (0, 0, 0);
        let mut shown: BTreeMap<SocketAddr, FirstPackets> = BTreeMap::new();
        let read = |ledger: &mut Ledger, kernel: &BTreeMap<u8, u64>| {
            let counts: Vec<(u8, u64)> = kernel.iter().map(|(at, n)| (*at, *n)).collect();
            ledger.record(chain(1), &db, &rules(1, &counts));
        };
        let fresh = |rules: &[u8]| rules.iter().map(|at| (*at, 0)).collect();
        let mut is_external = false;
        for event in events {
            match event {
                Event::Connections(at, n) => if let Some(count) = kernel.get_mut(&at) {
                    *count += n;
                    made += n;
                    unread += n;
                },
                Event::Rewrite(rules, n) => {
                    read(&mut ledger, &kernel);
                    if !kernel.is_empty() {
                        made += n;
                        lost += n;
                    }
                    kernel = fresh(&rules);
                    ledger.rewritten(chain(1));
                    unread = 0;
                }
                Event::ExternalWrite(rules) => {
                    kernel = fresh(&rules);
                    lost += unread;
                    (unread, is_external) = (0, true);
                }
                Event::Zero => {
                    kernel.values_mut().for_each(|count| *count = 0);
                    lost += unread;
                    (unread, is_external) = (0, true);
                }
                Event::Read => {
                    read(&mut ledger, &kernel);
                    unread = 0;
                }
            }
            for (_, total) in ledger.ports() {
                for (at, count) in &total.endpoints {
                    let before = shown.insert(*at, *count).unwrap_or_default();
                    prop_assert!(!count.is_reset_since(before), "{at} fell from {before:?} to {count:?}");
                }
            }
            prop_assert!(ledger.all().n_packets <= made);
        }
        read(&mut ledger, &kernel);
        let all = ledger.all();
        prop_assert_eq!(all.n_bytes, 60 * all.n_packets);
        if is_external {
            // A counter that another process reset may have passed its last reading again meanwhile.
            prop_assert!(all.n_packets <= made);
        } else {
            prop_assert_eq!(all.n_packets, made - lost);
        }
    }
}
