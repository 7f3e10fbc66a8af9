//! The exposition: valid for Prometheus, compatible with kube-proxy, and pinned.
#![allow(clippy::disallowed_methods, reason = "reads and writes the golden file")]

mod valid;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use prometheus::proto::MetricType;

use super::*;
use crate::net::IpFamily;
use valid::assert_valid;

const RECORDED: &str = include_str!("../../testdata/http/metrics.txt");
const PINNED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/http/our-metrics.txt");

/// Metrics of the Go runtime and of libraries linked into kube-proxy, which Chainsmith leaves out.
const NOT_OURS: [&str; 17] = [
    "aggregator_",
    "apiserver_",
    "cardinality_",
    "disabled_metrics_",
    "go_",
    "hidden_metrics_",
    "informer_",
    "leader_election_",
    "registered_metrics_",
    "rest_client_exec_plugin_",
    "rest_client_transport_",
    "workqueue_",
    "etcd_",
    "authentication_",
    "authorization_",
    "version_",
    "promhttp_",
];

/// A registry in which every metric has a sample.
fn everything() -> (Registry, Metrics) {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    metrics
        .show_build([("ComponentFlagz", "BETA", true), ("NativeHistograms", "ALPHA", false)].into_iter())
        .unwrap();
    metrics.show_packets(Some(Box::new(|| Ok(5))), Some(Box::new(|| Ok(0)))).unwrap();
    metrics.show_largest_child(|| Some(1 << 20)).unwrap();
    metrics.show_lost_log_lines(|| 0).unwrap();
    let second = Duration::from_secs(1);
    metrics
        .show_watch_ages(Box::new(|| vec![("Service", Duration::ZERO), ("Node", Duration::from_secs(90))]))
        .unwrap();
    metrics.requests.count_connection();
    for family in IpFamily::BOTH {
        metrics.syncs.record(&sample(family, true));
        metrics.syncs.record(&sample(family, false));
        metrics.syncs.record_queued(family);
        metrics.syncs.set_affinity_lists_full(family, 1);
        metrics.syncs.count_kernel_read(family, "start");
        metrics.syncs.record_wait(family, second);
        metrics.syncs.record_latency(family, 0.3);
        metrics.syncs.set_layout(family, "nft", "classic");
        metrics.node.record_conntrack_sweep(family, second);
        metrics.node.count_conntrack_deleted(family, "stale", 3);
        metrics.node.set_health_ports(family, 2, 1);
    }
    for kind in ["Service", "EndpointSlice", "Node"] {
        metrics.cluster.set_objects(kind, 3);
        metrics.cluster.set_problems(kind, 1);
        metrics.cluster.count_watch_restart(kind);
    }
    metrics.cluster.count_changes(2, 1);
    metrics.cluster.set_pending(1, 1);
    for code in [200, 503] {
        metrics.node.count_healthz(code);
        metrics.node.count_livez(code);
    }
    metrics.node.count_bind_failure("healthz");
    metrics.node.count_finding("SecondProxy");
    metrics.node.count_event_sent("Warning");
    for why in [EventLoss::Limited, EventLoss::QueueFull, EventLoss::NotSent] {
        metrics.node.count_event_lost(why);
    }
    let (method, host) = ("GET", "10.0.0.1:6443");
    let request = RequestSample { method, host, status: Some(200), elapsed: second, n_sent: 0 };
    metrics.requests.record(&request);
    metrics.requests.record(&RequestSample { status: None, ..request });
    metrics.requests.record_received(method, host, 100);
    metrics.requests.record_delay(method, host, second);
    metrics.requests.count_retry(method, host, None);
    (registry, metrics)
}

/// Counts of `/metrics/services`: an endpoint, and the sum of all others.
fn services(has_endpoints: bool) -> String {
    let service_port = ["shop", "db", "sql", "TCP"].map(str::to_owned);
    let endpoint = if has_endpoints { "[fd00::1]:5432".to_owned() } else { String::new() };
    let counted = ServiceSample { service_port, endpoint, n_connections: 7, n_bytes: 560 };
    let others = ServiceSample { n_connections: 2, n_bytes: 120, ..ServiceSample::default() };
    let services = ServiceSamples { has_endpoints, samples: vec![counted, others] };
    service_metrics::service_exposition(&services).unwrap()
}

#[test]
fn services_have_a_sample_each_and_all_others_one() {
    let name = "chainsmith_service_connections_total";
    let text = services(false);
    assert_valid(&text);
    let labels = r#"namespace="shop",port="sql",protocol="TCP",service="db""#;
    assert!(text.contains(&format!("{name}{{{labels}}} 7\n")), "{text}");
    assert!(
        text.contains(&format!("{name}{{namespace=\"\",port=\"\",protocol=\"\",service=\"\"}} 2\n")),
        "{text}"
    );
    let text = services(true);
    assert_valid(&text);
    assert!(text.contains(&format!("{name}{{endpoint=\"[fd00::1]:5432\",{labels}}} 7\n")), "{text}");
}

fn sample(family: IpFamily, is_full: bool) -> SyncSample {
    SyncSample {
        family,
        is_full,
        is_success: true,
        n_failed_restores: 2,
        elapsed: Duration::from_millis(30),
        stages: ["read", "compile", "plan", "lock_wait", "restore"]
            .map(|stage| (stage, Duration::from_millis(6))),
        n_processes: 1,
        n_chains: 4,
        n_quarantined: 1,
        n_overlaps: 4,
        n_repaired: 2,
        rules: [("filter", 3, 5), ("nat", 7, 58)],
        n_service_ports: 9,
        n_endpoints: 20,
        n_dropped_internal: 1,
        n_dropped_external: 0,
    }
}

/// A metric without its values: type, help, names of labels, buckets.
#[derive(Clone, Debug, PartialEq)]
struct Shape {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
    buckets: Vec<String>,
}

/// The shape of each metric with samples in an exposition.
fn shapes(exposition: &str) -> BTreeMap<String, Shape> {
    let mut shapes = BTreeMap::new();
    let (mut kinds, mut helps) = (BTreeMap::new(), BTreeMap::new());
    for line in exposition.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helps.insert(name.to_owned(), help.to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let sample = valid::Sample::read(line);
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|end| sample.name.strip_suffix(end))
                .find(|name| kinds.get(*name).is_some_and(|kind| kind == "histogram"));
            let name = of_histogram.unwrap_or(&sample.name).to_owned();
            let Some(help) = helps.get(&name) else { continue };
            let new = Shape {
                kind: kinds[&name].clone(),
                help: help.clone(),
                labels: BTreeSet::new(),
                buckets: vec![],
            };
            let shape: &mut Shape = shapes.entry(name).or_insert(new);
            for (label, value) in sample.labels {
                match label.as_str() {
                    "le" if of_histogram.is_some() && !shape.buckets.contains(&value) => {
                        shape.buckets.push(value)
                    }
                    "le" if of_histogram.is_some() => {}
                    _ => drop(shape.labels.insert(label)),
                }
            }
        }
    }
    shapes
}

#[test]
fn every_metric_of_kube_proxy_is_ours_with_its_name_type_help_labels_and_buckets() {
    let (registry, _metrics) = everything();
    let ours = shapes(&exposition(&registry).unwrap());
    let recorded = shapes(RECORDED);
    assert!(recorded.len() > 30, "{}", recorded.len());
    for (name, shape) in &recorded {
        assert_eq!(ours.get(name), Some(shape), "{name}");
    }
    for line in RECORDED.lines() {
        let Some((name, _)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let is_not_ours = NOT_OURS.iter().any(|prefix| name.starts_with(prefix));
        assert!(ours.contains_key(name) != is_not_ours, "{name}");
    }
}

#[test]
fn names_types_helps_labels_and_buckets_are_pinned() {
    let (registry, _metrics) = everything();
    let all = shapes(&exposition(&registry).unwrap()).into_iter().chain(shapes(&services(true)));
    assert_pinned(PINNED, all);
}

#[test]
fn the_metrics_of_check_are_pinned_and_valid() {
    let registry = Registry::new();
    let metrics = CheckMetrics::register(&registry).unwrap();
    let second = Duration::from_secs(1);
    for result in ["same", "different", "unknown"] {
        metrics.record_run(result, second * 1_800_000_000, second);
    }
    let of_family =
        || CheckedChains { n_chains: 9, n_differing: 2, n_affected: 1, backend: "nft", layout: "classic" };
    metrics.record_chains(&crate::net::PerFamily { v4: Some(of_family()), v6: Some(of_family()) });
    metrics.set_findings([("error", "ruleMissing"), ("error", "ruleMissing")].into_iter(), 3);
    let text = exposition(&registry).unwrap();
    assert_valid(&text);
    let findings = "chainsmith_check_findings{kind=\"ruleMissing\",severity=\"error\"}";
    assert!(text.contains(&format!("{findings} 2\n")), "{text}");
    metrics.set_findings(std::iter::empty(), 0);
    assert!(exposition(&registry).unwrap().contains(&format!("{findings} 0\n")), "it stays, at 0");
    let ours = shapes(&text).into_iter().filter(|(name, _)| name.starts_with("chainsmith_"));
    assert_pinned(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/http/check-metrics.txt"), ours);
}

/// Compares names, types, helps, labels and buckets with the file `pinned`.
#[track_caller]
fn assert_pinned(pinned: &str, all: impl Iterator<Item = (String, Shape)>) {
    let mut text = String::new();
    for (name, Shape { kind, help, labels, buckets }) in all {
        let labels = labels.into_iter().collect::<Vec<_>>().join(",");
        writeln!(text, "{kind} {name}{{{labels}}}\n    {help}").unwrap();
        if !buckets.is_empty() {
            writeln!(text, "    {}", buckets.join(" ")).unwrap();
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(pinned, &text).unwrap();
    }
    let pinned = std::fs::read_to_string(pinned).unwrap_or_default();
    assert_eq!(text, pinned, "if intended: UPDATE_GOLDEN=1 cargo test --lib metrics");
}

#[test]
fn the_exposition_is_valid_for_prometheus() {
    let (registry, _metrics) = everything();
    assert_valid(&exposition(&registry).unwrap());
    assert_valid(RECORDED);
}

#[test]
fn metrics_with_labels_appear_with_their_first_observation() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let text = exposition(&registry).unwrap();
    assert_valid(&text);
    let names: Vec<String> = shapes(&text).into_keys().filter(|name| name.starts_with("kubeproxy")).collect();
    let expected = [
        "endpoint_changes_pending",
        "endpoint_changes_total",
        "service_changes_pending",
        "service_changes_total",
    ];
    assert_eq!(names, expected.map(|name| format!("kubeproxy_sync_proxy_rules_{name}")));
    metrics.node.record_conntrack_sweep(IpFamily::V4, Duration::ZERO);
    let text = exposition(&registry).unwrap();
    assert!(
        text.contains("kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 0\n"),
        "{text}"
    );
}

#[test]
fn a_kernel_counter_that_cannot_be_read_is_left_out_of_the_scrape_alone() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let gone = || Err(std::io::ErrorKind::NotFound.into());
    metrics.show_packets(Some(Box::new(gone)), Some(Box::new(|| Ok(7)))).unwrap();
    let text = exposition(&registry).unwrap();
    assert!(!text.contains(node_metrics::INVALID_PACKETS.0));
    assert!(text.contains(&format!("{} 7\n", node_metrics::LOCALHOST_PACKETS.0)), "{text}");
}

#[test]
fn a_failed_sync_counts_its_failures_and_leaves_the_time_of_the_last_success() {
    let (registry, metrics) = everything();
    let value = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let metric = &family.get_metric()[0];
        match family.get_field_type() {
            MetricType::COUNTER => metric.get_counter().get_value(),
            _ => metric.get_gauge().get_value(),
        }
    };
    let last = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    let (partial, all) = (
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    );
    let (synced_at, n_partial, n_all) = (value(last), value(partial), value(all));
    assert!(synced_at > 1.7e9);
    std::thread::sleep(Duration::from_millis(2));
    metrics.syncs.record(&SyncSample {
        is_success: false,
        n_failed_restores: 3,
        ..sample(IpFamily::V4, false)
    });
    assert_eq!((value(last), value(partial), value(all)), (synced_at, n_partial + 1.0, n_all + 3.0));
}

#[test]
fn rules_are_in_one_layout_at_a_time() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    metrics.syncs.set_layout(IpFamily::V4, "nft", "classic");
    metrics.syncs.set_layout(IpFamily::V4, "nft", "compact");
    let text = exposition(&registry).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("chainsmith_rules_info")).collect();
    assert_eq!(lines, [r#"chainsmith_rules_info{backend="nft",ip_family="IPv4",layout="compact"} 1"#]);
}
