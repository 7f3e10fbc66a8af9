//! Scraping, alerts and the dashboard refer only to existing metrics.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::promql::names;
use super::{container, documents, object, read};

/// The used fields of a PodMonitor. Source: monitoring.coreos.com/v1.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: PodMonitorSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitorSpec {
    job_label: String,
    selector: Selector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    action: String,
    source_labels: Vec<String>,
    target_label: String,
}

/// The used fields of a PrometheusRule. Source: monitoring.coreos.com/v1.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrometheusRule {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: RuleSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSpec {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Alert>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alert {
    alert: String,
    expr: String,
    r#for: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
}

/// Every series that can be queried, with its labels: those of the golden file, a histogram as its three
/// series, and those that Prometheus itself adds.
fn series() -> BTreeMap<String, BTreeSet<String>> {
    let mut series = BTreeMap::from([("up".to_owned(), BTreeSet::new())]);
    for line in read("testdata/http/our-metrics.txt").lines().filter(|line| !line.starts_with(' ')) {
        let (kind, rest) = line.split_once(' ').expect("a type");
        let (name, labels) = rest.trim_end_matches('}').split_once('{').expect("labels");
        let labels: BTreeSet<String> =
            labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
        if kind == "histogram" {
            series.insert(format!("{name}_sum"), labels.clone());
            series.insert(format!("{name}_count"), labels.clone());
            let with_bound = labels.into_iter().chain(["le".to_owned()]).collect();
            series.insert(format!("{name}_bucket"), with_bound);
        } else {
            series.insert(name.to_owned(), labels);
        }
    }
    assert!(series.len() > 60, "{}", series.len());
    series
}

/// Labels that scraping adds to every series.
const SCRAPED: [&str; 2] = ["job", "node"];

/// The metrics and labels of an expression that do not exist.
fn missing(expression: &str, series: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let names = names(expression);
    let mut labels: BTreeSet<&str> = SCRAPED.into();
    let mut missing = Vec::new();
    for metric in &names.metrics {
        match series.get(metric) {
            Some(found) => labels.extend(found.iter().map(String::as_str)),
            None => missing.push(format!("metric {metric}")),
        }
    }
    let unknown = names.labels.iter().filter(|label| !labels.contains(label.as_str()));
    missing.extend(unknown.map(|label| format!("label {label}")));
    if names.metrics.is_empty() {
        missing.push("any metric".to_owned());
    }
    missing
}

/// Labels in a template (`{{ $labels.node }}` or `{{node}}`).
fn templated(text: &str) -> Vec<String> {
    let parts = text.split("{{").skip(1).map(|part| part.split("}}").next().expect("a part").trim());
    parts
        .filter(|part| *part != "$value")
        .map(|part| part.trim_start_matches("$labels.").to_owned())
        .collect()
}

fn rules() -> PrometheusRule {
    serde_json::from_value(object("overlays/prometheus/alerts.yaml")).expect("a PrometheusRule")
}

fn dashboard() -> Value {
    serde_json::from_str(&read("manifests/overlays/prometheus/dashboard.json")).expect("JSON")
}

/// Whether Prometheus accepts it as a duration: `5m`.
fn is_duration(text: &str) -> bool {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    number.parse::<u32>().is_ok_and(|number| number > 0) && ["s", "m", "h"].contains(&unit)
}

#[test]
fn unknown_names_are_found() {
    let series = series();
    let check = |expression: &str, expected: &[&str]| assert_eq!(missing(expression, &series), expected);
    check("chainsmith_quarantined_service_ports > 0", &[]);
    check("chainsmith_quarantined_service_port > 0", &["metric chainsmith_quarantined_service_port"]);
    check(
        "rate(kubeproxy_network_programming_duration_seconds[5m])",
        &["metric kubeproxy_network_programming_duration_seconds"],
    );
    check("chainsmith_objects_bucket", &["metric chainsmith_objects_bucket"]);
    check("sum by (famliy) (chainsmith_endpoints{ip_family=\"IPv4\"})", &["label famliy"]);
    check("sum by (le) (kubeproxy_network_programming_duration_seconds_sum)", &["label le"]);
    check("vector(0)", &["any metric"]);
}

#[test]
fn alerts_query_existing_metrics() {
    let (series, rules) = (series(), rules());
    assert_eq!(
        (rules.api_version.as_str(), rules.kind.as_str()),
        ("monitoring.coreos.com/v1", "PrometheusRule")
    );
    let mut seen = BTreeSet::new();
    for alert in rules.spec.groups.iter().flat_map(|group| &group.rules) {
        let name = &alert.alert;
        assert_eq!(missing(&alert.expr, &series), [""; 0], "{name}");
        assert!(seen.insert(name.clone()), "{name} is there twice");
        assert!(is_duration(&alert.r#for), "{name}: for {}", alert.r#for);
        assert!(["critical", "warning", "info"].contains(&alert.labels["severity"].as_str()), "{name}");
        assert_eq!(alert.annotations.keys().collect::<Vec<_>>(), ["description", "summary"], "{name}");
        // An alert prints no label that its expression drops.
        let mut labels: BTreeSet<String> = SCRAPED.map(str::to_owned).into();
        let grouped = alert.expr.contains(" by (");
        for metric in names(&alert.expr).metrics {
            labels.extend(series[&metric].clone());
        }
        for label in alert.annotations.values().flat_map(|text| templated(text)) {
            assert!(labels.contains(&label), "{name}: {label}");
            assert!(!grouped || names(&alert.expr).labels.contains(&label), "{name}: {label} is summed away");
        }
    }
    assert!(seen.len() >= 10, "{seen:?}");
    assert_eq!(rules.spec.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["chainsmith"]);
    assert_eq!(
        (rules.metadata.name.as_str(), rules.metadata.namespace.as_str()),
        ("chainsmith", "kube-system")
    );
    assert_eq!(rules.metadata.labels["k8s-app"], "kube-proxy");
}

#[test]
fn every_alert_of_the_observability_page_exists() {
    let alerted: BTreeSet<String> = rules()
        .spec
        .groups
        .iter()
        .flat_map(|group| &group.rules)
        .flat_map(|alert| names(&alert.expr).metrics)
        .collect();
    let page = read("docs/observability.md");
    let rows = page.lines().skip_while(|line| !line.starts_with("| worth an alert")).skip(2);
    let mut n_rows = 0;
    for row in rows.take_while(|line| line.starts_with('|')) {
        let expression = row.split('`').nth(1).expect("an expression");
        assert!(names(expression).metrics.is_subset(&alerted), "{expression}");
        n_rows += 1;
    }
    assert!(n_rows >= 4, "{n_rows}");
}

#[test]
fn the_dashboard_queries_existing_metrics() {
    let (series, dashboard) = (series(), dashboard());
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() >= 12, "{}", panels.len());
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{title}: its id is another's");
        let size = |key: &str| panel["gridPos"][key].as_u64().expect("a size");
        assert!(size("x") + size("w") <= 24, "{title}");
        for x in size("x")..size("x") + size("w") {
            for y in size("y")..size("y") + size("h") {
                assert!(cells.insert((x, y)), "{title}: it lies on another panel");
            }
        }
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expression = target["expr"].as_str().expect("an expression");
            assert_eq!(missing(expression, &series), [""; 0], "{title}");
            assert!(expression.contains("node=~\"$node\""), "{title}: the choice of nodes plays no role");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            for label in templated(target["legendFormat"].as_str().expect("a legend")) {
                assert!(names(expression).labels.contains(&label), "{title}: {label} is summed away");
            }
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variables: Vec<&str> = variables.iter().map(|one| one["name"].as_str().expect("a name")).collect();
    assert_eq!(variables, ["datasource", "node"]);
}

#[test]
fn the_pod_monitor_finds_the_pods_their_port_and_their_metrics() {
    let monitor: PodMonitor =
        serde_json::from_value(object("overlays/prometheus/podmonitor.yaml")).expect("a PodMonitor");
    assert_eq!(
        (monitor.api_version.as_str(), monitor.kind.as_str()),
        ("monitoring.coreos.com/v1", "PodMonitor")
    );
    let daemon_set = object("base/daemonset.yaml");
    assert_eq!(monitor.metadata.namespace, daemon_set["metadata"]["namespace"]);
    assert_eq!(monitor.metadata.name, "kube-proxy");
    assert_eq!(monitor.metadata.labels["k8s-app"], "kube-proxy");
    let labels = &daemon_set["spec"]["template"]["metadata"]["labels"];
    for (label, value) in &monitor.spec.selector.match_labels {
        assert_eq!(&labels[label], value);
    }
    // The job of every query.
    assert_eq!(labels[&monitor.spec.job_label], "kube-proxy");
    let [endpoint] = &monitor.spec.pod_metrics_endpoints[..] else { panic!("one endpoint") };
    assert_eq!(endpoint.path, "/metrics");
    assert!(is_duration(&endpoint.interval));
    let [relabeling] = &endpoint.relabelings[..] else { panic!("one relabeling") };
    assert_eq!((relabeling.action.as_str(), relabeling.target_label.as_str()), ("replace", "node"));
    assert_eq!(relabeling.source_labels, ["__meta_kubernetes_pod_node_name"]);

    let patch = object("overlays/prometheus/daemonset.yaml");
    let port = &container(&patch)["ports"][0];
    assert_eq!(port["name"], endpoint.port);
    // In the host's network both must be equal.
    assert_eq!(port["containerPort"], port["hostPort"]);
    let address = format!("metricsBindAddress: 0.0.0.0:{}\n", port["containerPort"]);
    let configuration = super::configuration("overlays/prometheus/configmap.yaml");
    assert_eq!(configuration, super::configuration("base/configmap.yaml") + &address);
    assert_eq!(documents(&configuration).len(), 1);
}
