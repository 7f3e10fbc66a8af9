//! Benchmarks of what operators ask, on a cluster of 10 000 Services with 10 endpoints each:
//! `cargo bench --bench inspect`.
//!
//! Targets on a machine of 2 cores: `trace/from text` 2 s, with parsing; `trace/one packet` 0.1 ms, so that `diff
//! --packets` walks 80 000 packets through two rulesets in under 20 s.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod cluster;
#[path = "inspect/comparing.rs"]
mod comparing;
#[path = "inspect/explanation.rs"]
mod explanation;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use chainsmith::compile;
use chainsmith::config::LayoutChoice;
use chainsmith::iptables::trace::{Branch, Origin, Packet, RecentLists, TraceOptions, TracedNode, Tracer};
use chainsmith::iptables::{Ruleset, parse, write};
use chainsmith::net::{IpFamily, Protocol};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use crate::cluster::Cluster;

const N_SERVICES: usize = 10_000;
const N_ENDPOINTS: usize = 10;
/// A Service as large as one in a hundred clusters has.
const N_MANY_ENDPOINTS: usize = 250;
const LAYOUTS: [(&str, LayoutChoice); 2] =
    [("classic", LayoutChoice::Classic), ("compact", LayoutChoice::Compact)];

fn ruleset(cluster: &Cluster) -> Ruleset {
    compile::ruleset(&cluster.settings, &cluster.snapshot, cluster.place())
}

fn local() -> BTreeSet<IpAddr> {
    BTreeSet::from([IpAddr::from([192, 168, 0, 1])])
}

fn to(destination: SocketAddr) -> Packet {
    let from = SocketAddr::new(IpAddr::from([10, 99, 0, 7]), 40_000);
    Packet::new(Origin::Arrives(Some("cni0".into())), from, destination, Protocol::Tcp)
}

/// The first packet of a connection to the last Service.
fn last(cluster: &Cluster) -> Packet {
    to(cluster.last_cluster_ip())
}

fn traced(ruleset: &Ruleset, packet: &Packet) -> Vec<Branch> {
    let local = local();
    let node = TracedNode { ruleset, local_addresses: &local, routes: &[] };
    Tracer::new(node, TraceOptions::DETAILED).trace(packet, &RecentLists::default())
}

/// One question, from the text of `iptables-save` to the answer.
fn from_text(c: &mut Criterion) {
    for (name, layout) in LAYOUTS {
        let cluster = Cluster::new(N_SERVICES, N_ENDPOINTS, layout);
        let text = write::save(IpFamily::V4, &ruleset(&cluster));
        let packet = last(&cluster);
        let mut group = c.benchmark_group("trace/from text");
        group.throughput(Throughput::Bytes(text.len() as u64)).sample_size(10);
        group.bench_function(BenchmarkId::new(name, N_SERVICES), |bencher| {
            bencher.iter(|| {
                let ruleset = parse::save(IpFamily::V4, black_box(&text)).expect("our own text");
                let branches = traced(&ruleset, &packet);
                assert_eq!(branches.len(), N_ENDPOINTS);
                branches.len()
            });
        });
    }
}

/// Packets to Services all over the ruleset, which is indexed once.
fn one_packet(c: &mut Criterion) {
    let plain = TraceOptions { passes_undecided: true, records_events: false };
    for (name, layout) in LAYOUTS {
        let cluster = Cluster::new(N_SERVICES, N_ENDPOINTS, layout);
        let (ruleset, local) = (ruleset(&cluster), local());
        let node = TracedNode { ruleset: &ruleset, local_addresses: &local, routes: &[] };
        let mut group = c.benchmark_group("trace/one packet");
        group.throughput(Throughput::Elements(1)).sample_size(20);
        for (details, options) in [("plain", plain), ("detailed", TraceOptions::DETAILED)] {
            let tracer = Tracer::new(node, options);
            let mut n = 0;
            group.bench_function(BenchmarkId::new(format!("{name} {details}"), N_SERVICES), |bencher| {
                bencher.iter(|| {
                    n = (n + 3_331) % N_SERVICES;
                    tracer.trace(&to(cluster::frontend(n)), &RecentLists::default())
                });
            });
        }
    }
}

/// The index of the long chains.
fn index(c: &mut Criterion) {
    let cluster = Cluster::new(N_SERVICES, N_ENDPOINTS, LayoutChoice::Classic);
    let (ruleset, local) = (ruleset(&cluster), local());
    let node = TracedNode { ruleset: &ruleset, local_addresses: &local, routes: &[] };
    let mut group = c.benchmark_group("trace/index");
    group.sample_size(20);
    group.bench_function(BenchmarkId::new("classic", N_SERVICES), |bencher| {
        bencher.iter(|| Tracer::new(black_box(node), TraceOptions::default()));
    });
}

/// A Service with many endpoints, each a fork of the walk.
fn many_endpoints(c: &mut Criterion) {
    for (name, layout) in LAYOUTS {
        let cluster = Cluster::new(20, N_MANY_ENDPOINTS, layout);
        let (ruleset, packet) = (ruleset(&cluster), last(&cluster));
        let mut group = c.benchmark_group("trace/many endpoints");
        group.throughput(Throughput::Elements(N_MANY_ENDPOINTS as u64)).sample_size(20);
        group.bench_function(BenchmarkId::new(name, N_MANY_ENDPOINTS), |bencher| {
            bencher.iter(|| traced(&ruleset, &packet));
        });
    }
}

criterion_group!(
    benches,
    from_text,
    one_packet,
    index,
    many_endpoints,
    explanation::explain_service,
    comparing::text,
    comparing::packets
);
criterion_main!(benches);
