//! Benchmarks of `explain`. Targets on a machine of 2 cores: `explain/from objects` 2 s without reading files,
//! `explain/from text` 2 s with parsing, `explain/in agent` 0.3 s: the ruleset is made.

use std::collections::BTreeMap;
use std::hint::black_box;

use chainsmith::inspect::explanation::{ExplainQuestion, ExplainReport, explain};
use chainsmith::inspect::{ClusterView, HostView, RulesOrigin, Subject};
use chainsmith::iptables::{parse, write};
use chainsmith::net::{IpFamily, PerFamily};
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

/// A load balancer with policy Local, if the cluster has one; else the last Service.
fn question(cluster: &Cluster) -> ExplainQuestion {
    let services = cluster.snapshot.services();
    let restricted = services.filter(|service| {
        service.frontends.v4.as_ref().is_some_and(|frontend| !frontend.load_balancer_ips.is_empty())
    });
    let service = restricted.last().or(cluster.snapshot.services().last()).expect("a Service");
    ExplainQuestion { service: service.name.to_string(), port: None }
}

fn explained(subject: &Subject, question: &ExplainQuestion) -> ExplainReport {
    let report = explain(subject, question).expect("the Service exists");
    assert!(!report.ports[0].truth_table.is_empty());
    report
}

pub fn explain_service(c: &mut Criterion) {
    for (name, layout) in LAYOUTS {
        let cluster = Cluster::new(N_SERVICES, N_ENDPOINTS, layout);
        let question = question(&cluster);
        let subject = || Subject::of_objects(view(&cluster), HostView::default(), &[IpFamily::V4]);
        let made = subject();
        let text = write::save(IpFamily::V4, made.rulesets.v4.as_ref().expect("IPv4 rules"));
        let mut group = c.benchmark_group("explain");
        group.sample_size(10);
        group.bench_function(BenchmarkId::new(format!("from objects/{name}"), N_SERVICES), |bencher| {
            bencher.iter(|| explained(&subject(), &question));
        });
        group.bench_function(BenchmarkId::new(format!("in agent/{name}"), N_SERVICES), |bencher| {
            bencher.iter(|| explained(black_box(&made), &question));
        });
        group.bench_function(BenchmarkId::new(format!("from text/{name}"), N_SERVICES), |bencher| {
            bencher.iter(|| {
                let ruleset = parse::save(IpFamily::V4, black_box(&text)).expect("our own text");
                let rulesets = PerFamily { v4: Some(ruleset), v6: None };
                let origin = RulesOrigin::Text("-".to_owned());
                let subject = Subject { rulesets, origin, cluster: None, host: HostView::default() };
                explained(&subject, &question)
            });
        });
        group.finish();
    }
}
