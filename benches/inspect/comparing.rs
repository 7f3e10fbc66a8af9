//! Benchmarks of `diff`. Targets on a machine of 2 cores: packets of both layouts 20 s, text 2 s.

use std::hint::black_box;
use std::time::Duration;

use chainsmith::config::LayoutChoice;
use chainsmith::inspect::comparison::{DiffMode, compare};
use chainsmith::inspect::{HostView, RulesOrigin, Subject};
use chainsmith::iptables::{Ruleset, Table, replay, write};
use chainsmith::net::{IpFamily, PerFamily};
use chainsmith::rules::names::KUBE_SERVICES;
use criterion::{BenchmarkId, Criterion};

use crate::cluster::Cluster;
use crate::{N_ENDPOINTS, N_SERVICES, ruleset};

fn subject(ruleset: Ruleset) -> Subject {
    let rulesets = PerFamily { v4: Some(ruleset), v6: None };
    Subject { rulesets, origin: RulesOrigin::Text("-".to_owned()), cluster: None, host: HostView::default() }
}

/// Two texts of one cluster, the second with the Services of KUBE-SERVICES in reverse order.
pub fn text(c: &mut Criterion) {
    let rules = ruleset(&Cluster::new(N_SERVICES, N_ENDPOINTS, LayoutChoice::Classic));
    let mut reversed = rules.clone();
    let services = &mut reversed.chain_mut(Table::Nat, KUBE_SERVICES).rules;
    let n_services = services.len() - 1;
    services[..n_services].reverse();
    let texts = [rules, reversed].map(|rules| write::save(IpFamily::V4, &rules));
    let mut group = c.benchmark_group("diff/text");
    group.sample_size(10);
    group.bench_function(BenchmarkId::new("reversed", N_SERVICES), |bencher| {
        bencher.iter(|| {
            let [old, new] = texts
                .each_ref()
                .map(|text| subject(replay::text(IpFamily::V4, black_box(text)).expect("our own text")));
            assert!(compare([("old", &old), ("new", &new)], DiffMode::Text).is_same);
        });
    });
    group.finish();
}

/// All packets under both layouts of one cluster.
pub fn packets(c: &mut Criterion) {
    let layouts = [LayoutChoice::Classic, LayoutChoice::Compact];
    let [old, new] = layouts.map(|layout| subject(ruleset(&Cluster::new(N_SERVICES, N_ENDPOINTS, layout))));
    let mut group = c.benchmark_group("diff/packets");
    group.sample_size(10).measurement_time(Duration::from_secs(60));
    group.bench_function(BenchmarkId::new("layouts", N_SERVICES), |bencher| {
        bencher.iter(|| {
            let mode = DiffMode::Packets { n_threads: 2 };
            assert!(compare([("classic", &old), ("compact", &new)], mode).is_same);
        });
    });
    group.finish();
}
