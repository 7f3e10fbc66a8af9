//! Benchmarks of `check`, beside kube-proxy and beside compact. Target on a machine of 2 cores: 2 s from save text,
//! without reading the objects' files.

use std::collections::BTreeMap;
use std::hint::black_box;

use chainsmith::inspect::findings::{CheckQuestion, CheckResult, check};
use chainsmith::inspect::{ClusterView, HostView, RulesOrigin, Subject};
use chainsmith::iptables::{Ruleset, Table, parse, write};
use chainsmith::net::{IpFamily, PerFamily};
use chainsmith::rules::names::KUBE_MARK_MASQ;
use criterion::{BenchmarkId, Criterion};

use crate::cluster::{self, Cluster};
use crate::{LAYOUTS, N_ENDPOINTS, N_SERVICES};

fn view(cluster: &Cluster) -> ClusterView {
    ClusterView {
        snapshot: cluster.snapshot.clone().into(),
        node_name: cluster::NODE.into(),
        nodes: BTreeMap::new(),
        pods: BTreeMap::new(),
        settings: PerFamily { v4: cluster.settings.clone(), v6: cluster.settings.clone() },
        not_proxied: BTreeMap::new(),
        problems: Vec::new(),
        quarantined: PerFamily::default(),
    }
}

fn checked(cluster: &Cluster, text: &str) -> CheckResult {
    let ruleset: Ruleset = parse::save(IpFamily::V4, black_box(text)).expect("our own text");
    let rulesets = PerFamily { v4: Some(ruleset), v6: None };
    let origin = RulesOrigin::Text("-".to_owned());
    let in_force = Subject { rulesets, origin, cluster: None, host: HostView::default() };
    let (backends, state, unknown) = (PerFamily::default(), None, Vec::new());
    let host = HostView::default();
    check(CheckQuestion { cluster: view(cluster), host, in_force: &in_force, backends, state, unknown }).result
}

pub fn benches(c: &mut Criterion) {
    for (name, layout) in LAYOUTS {
        let cluster = Cluster::new(N_SERVICES, N_ENDPOINTS, layout);
        let mut rules = view(&cluster).ruleset(IpFamily::V4);
        let healthy = write::save(IpFamily::V4, &rules);
        rules.chain_mut(Table::Nat, KUBE_MARK_MASQ).rules.clear();
        let spoiled = write::save(IpFamily::V4, &rules);
        let mut group = c.benchmark_group("check");
        group.sample_size(10);
        for (state, text, expected) in
            [("healthy", healthy, CheckResult::Same), ("spoiled", spoiled, CheckResult::Different)]
        {
            group.bench_function(BenchmarkId::new(format!("{state}/{name}"), N_SERVICES), |bencher| {
                bencher.iter(|| assert_eq!(checked(&cluster, &text), expected));
            });
        }
        group.finish();
    }
}
