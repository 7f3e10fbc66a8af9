//! overlays/shadow only reads: its rights at the API server and on the node, its command line, its alerts.

use std::collections::BTreeSet;

use chainsmith::config::{Config, Flags};
use serde_json::{Value, json};

use super::promql::names;
use super::{documents, image, object, read};

fn pod() -> Value {
    object("overlays/shadow/daemonset.yaml")["spec"]["template"]["spec"].take()
}

#[test]
fn the_role_reads_services_slices_and_nodes_and_nothing_else() {
    let documents = documents(&read("manifests/overlays/shadow/rbac.yaml"));
    let mut resources = BTreeSet::new();
    for rule in documents[0]["rules"].as_array().expect("rules") {
        assert_eq!(rule["verbs"], json!(["get", "list", "watch"]));
        let of_rule = rule["resources"].as_array().expect("resources").iter();
        resources.extend(of_rule.map(|resource| resource.as_str().expect("a text").to_owned()));
    }
    assert_eq!(resources, ["endpointslices", "nodes", "services"].map(str::to_owned).into());
    let account = &object("overlays/shadow/serviceaccount.yaml")["metadata"];
    let subject = &documents[1]["subjects"][0];
    assert_eq!(documents[1]["roleRef"]["name"], documents[0]["metadata"]["name"]);
    assert_eq!((&subject["name"], &subject["namespace"]), (&account["name"], &account["namespace"]));
    assert_eq!(pod()["serviceAccountName"], account["name"]);
}

#[test]
fn the_pod_writes_to_no_file_and_shares_nothing_writable() {
    let pod = pod();
    let containers = pod["containers"].as_array().expect("containers");
    assert_eq!((containers.len(), &pod["initContainers"]), (1, &Value::Null));
    let expected = json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(containers[0]["securityContext"], expected);
    assert_eq!(containers[0]["image"], image());
    for mount in containers[0]["volumeMounts"].as_array().expect("mounts") {
        assert_eq!(mount["readOnly"], true, "{mount}");
    }
    for volume in pod["volumes"].as_array().expect("volumes") {
        assert!(volume["hostPath"].is_null(), "{volume}");
    }
}

/// `--config` and `--node` are as kube-proxy's; the rest is tried.
#[test]
fn the_command_is_accepted_and_its_port_is_scraped() {
    let pod = pod();
    let container = &pod["containers"][0];
    let words: Vec<&str> = container["command"]
        .as_array()
        .expect("a command")
        .iter()
        .map(|word| word.as_str().expect("text"))
        .collect();
    assert_eq!(&words[..4], ["chainsmith", "check", "--watch", "--cluster"]);
    let config = words.iter().find_map(|word| word.strip_prefix("--config=")).expect("a configuration");
    assert!(config.starts_with(container["volumeMounts"][0]["mountPath"].as_str().expect("a path")));
    let (config, _) =
        Config::resolve(Some(&super::configuration("base/configmap.yaml")), &Flags::default()).expect("good");
    assert!(config.client.kubeconfig.is_some(), "--cluster uses the configuration's");
    // A flag that is unknown fails with another message, before the configuration is missed.
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_chainsmith"))
        .args(&words[1..])
        .output()
        .expect("runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("cannot read the configuration"), "{message}");

    let port = &container["ports"][0];
    let address =
        words.iter().find_map(|word| word.strip_prefix("--metrics-bind-address=")).expect("an address");
    assert_eq!(address, format!("0.0.0.0:{}", port["containerPort"]));
    assert_eq!(port["containerPort"], port["hostPort"]);
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": port["name"]}));
    let monitor = object("overlays/shadow/podmonitor.yaml");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&port["name"], &json!("/metrics")));
    let labels = &object("overlays/shadow/daemonset.yaml")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
}

#[test]
fn its_alerts_query_metrics_of_check() {
    let pinned = read("testdata/http/check-metrics.txt");
    let known: BTreeSet<&str> =
        pinned.lines().filter_map(|line| line.split(' ').nth(1)?.split('{').next()).collect();
    let alerts = object("overlays/shadow/alerts.yaml");
    let rules = alerts["spec"]["groups"][0]["rules"].as_array().expect("rules");
    assert!(rules.len() >= 2);
    for rule in rules {
        let names = names(rule["expr"].as_str().expect("an expression"));
        assert!(!names.metrics.is_empty(), "{rule}");
        for metric in names.metrics {
            assert!(known.contains(metric.as_str()), "{metric}");
        }
    }
}
