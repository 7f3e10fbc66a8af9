//! Benchmarks of the pipeline: JSON to the decoded model, the model to restore input, and the steps
//! between: `cargo bench --bench pipeline`.
//!
//! Targets on a machine of 2 cores: `compile/classic/10000` 300 ms, `one_endpoint/classic/10000` 2 ms.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod cluster;
mod decode;
mod sink;

use std::hint::black_box;
use std::ops::ControlFlow;

use chainsmith::compile;
use chainsmith::config::LayoutChoice;
use chainsmith::iptables::{Chain, Jump, Ruleset, Table, parse, write};
use chainsmith::kernel::Backend;
use chainsmith::net::IpFamily;
use chainsmith::plan::{Committed, DesiredRules, Limits, Planner, RestoreCounts, StepOrder, When};
use chainsmith::rules::fixed;
use chainsmith::rules::ownership::ChainOwner;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};

use crate::cluster::Cluster;
use crate::sink::Sink;

const SIZES: [usize; 3] = [100, 1_000, 10_000];
const N_ENDPOINTS: usize = 10;
/// The largest input for one changed endpoint.
const MAX_LINES: usize = 100;

fn all(c: &mut Criterion) {
    for n_services in SIZES {
        for (name, layout) in [("classic", LayoutChoice::Classic), ("compact", LayoutChoice::Compact)] {
            let mut cluster = Cluster::new(n_services, N_ENDPOINTS, layout);
            compile(c, BenchmarkId::new(name, n_services), &cluster);
            one_endpoint(c, BenchmarkId::new(name, n_services), &mut cluster);
        }
        let cluster = Cluster::new(n_services, N_ENDPOINTS, LayoutChoice::Classic);
        let ruleset = compile::ruleset(&cluster.settings, &cluster.snapshot, cluster.place());
        plan(c, n_services, &ruleset);
        text(c, n_services, &ruleset);
    }
}

fn group<'a>(c: &'a mut Criterion, name: &str, throughput: Throughput) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(throughput).sample_size(20);
    group
}

fn endpoints(n_services: usize) -> Throughput {
    Throughput::Elements((n_services * N_ENDPOINTS) as u64)
}

/// Decoded model to restore input: a first sync whose input is discarded.
fn compile(c: &mut Criterion, id: BenchmarkId, cluster: &Cluster) {
    let mut group = group(c, "compile", endpoints(cluster.snapshot.services().count()));
    group.bench_function(id, |bencher| {
        bencher.iter_batched(
            || sink::fresh(cluster, Backend::Nft),
            |mut family| {
                let report = sink::sync(&mut family, cluster);
                (family, report)
            },
            BatchSize::PerIteration,
        );
    });
}

/// One endpoint of the cluster is replaced.
fn one_endpoint(c: &mut Criterion, id: BenchmarkId, cluster: &mut Cluster) {
    let n_services = cluster.snapshot.services().count();
    let mut family = sink::fresh(cluster, Backend::Nft);
    sink::sync(&mut family, cluster);
    let mut version = 0;
    let mut group = group(c, "one_endpoint", Throughput::Elements(1));
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|n_iterations| {
            let mut elapsed = std::time::Duration::ZERO;
            for _ in 0..n_iterations {
                version = version % 1_000 + 1;
                let change = cluster.endpoint_change(n_services / 2, version);
                let started = now();
                let report = sink::change(&mut family, cluster, change);
                elapsed += started.elapsed();
                let RestoreCounts { n_lines, n_processes, .. } = report.tally;
                assert!(n_lines <= MAX_LINES && n_processes == 1, "{n_lines} lines, {n_processes} processes");
            }
            elapsed
        });
    });
}

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Rules of nat to inputs: all new, and all unchanged.
fn plan(c: &mut Criterion, n_services: usize, ruleset: &Ruleset) {
    let chains: Vec<Chain> = ruleset.tables[&Table::Nat]
        .iter()
        .filter(|(name, _)| ChainOwner::of(Table::Nat, name).depends_on_services())
        .map(|(name, chain)| Chain { table: Table::Nat, name: *name, rules: chain.rules.clone() })
        .collect();
    let jumps = fixed::jumps();
    let mut held = Committed::default();
    send(&chains, &jumps, &mut held);
    let mut group = group(c, "plan", endpoints(n_services));
    group.bench_function(BenchmarkId::new("all", n_services), |bencher| {
        bencher.iter_batched(
            Committed::default,
            |mut committed| {
                send(&chains, &jumps, &mut committed);
                committed
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function(BenchmarkId::new("nothing", n_services), |bencher| {
        bencher.iter(|| assert_eq!(send(&chains, &jumps, &mut held).n_lines, 0));
    });
}

/// Each chain as the group of a service port.
struct Groups<'a>(&'a [Chain]);

impl DesiredRules for Groups<'_> {
    fn service_ports<E>(
        &mut self,
        write: &mut dyn FnMut(&[Chain], When) -> Result<(), E>,
    ) -> Result<ControlFlow<()>, E> {
        for chain in self.0 {
            write(std::slice::from_ref(chain), When::Now)?;
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn send(chains: &[Chain], jumps: &[Jump], committed: &mut Committed) -> RestoreCounts {
    let mut sink = Sink::new(Backend::Nft);
    let planner = Planner::new(IpFamily::V4, committed, jumps, Limits::NFT, &mut sink);
    let (counts, result) = planner.run(StepOrder::FilterAroundNat, &mut Groups(chains));
    result.expect("a sink accepts everything");
    counts
}

/// A whole ruleset to the text of `iptables-save`, and back.
fn text(c: &mut Criterion, n_services: usize, ruleset: &Ruleset) {
    let text = write::save(IpFamily::V4, ruleset);
    let bytes = || Throughput::Bytes(text.len() as u64);
    group(c, "write", bytes()).bench_function(BenchmarkId::from_parameter(n_services), |bencher| {
        bencher.iter(|| write::save(IpFamily::V4, black_box(ruleset)));
    });
    group(c, "parse", bytes()).bench_function(BenchmarkId::from_parameter(n_services), |bencher| {
        bencher.iter(|| parse::save(IpFamily::V4, black_box(&text)).expect("our own text"));
    });
}

criterion_group!(benches, decode::bench, all);
criterion_main!(benches);
