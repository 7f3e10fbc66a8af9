//! Hostile text in every string field: never in a value that a rule is made of, always said.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};

use super::Interner;
use crate::model::decode::{node, service, slice};

/// What an attacker, or a careless hand, may write.
fn hostile() -> Vec<String> {
    let long = "a".repeat(10_000);
    let texts = [
        "\"",
        "'",
        "\\",
        "\n",
        "\r",
        "\0",
        "\t",
        " ",
        "-j",
        "-j DROP",
        "--comment",
        "!",
        "a\" -j ACCEPT",
        "x\nCOMMIT\n*filter\n-A INPUT -j ACCEPT",
        "a\nb",
        "web\0",
        "web\\",
        "$(reboot)",
        "ünïcode",
        "\u{202e}bew",
        "10.0.0.1 -j ACCEPT",
        "0.0.0.0/0\n",
        "::1%lo",
        "10.0.0.1/8/9",
        "web/../x",
        ":",
        "#",
        long.as_str(),
    ];
    texts.map(str::to_owned).to_vec()
}

/// A Service with something in every field that is read.
fn full_service() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.0.0.1",
            "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["192.0.2.1"],
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "sessionAffinity": "ClientIP",
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 32000,
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP"}]}},
    })
}

fn full_slice() -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{
            "addresses": ["10.1.0.1"],
            "nodeName": "node-a",
            "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "node-a"}]},
        }],
    })
}

fn full_node() -> Value {
    json!({
        "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"podCIDRs": ["10.1.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]},
    })
}

/// JSON pointers of all texts in `value`.
fn texts(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(path),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| texts(item, format!("{path}/{i}"), found));
        }
        Value::Object(map) => {
            for (key, item) in map {
                texts(item, format!("{path}/{}", key.replace('/', "~1")), found);
            }
        }
        _ => {}
    }
}

/// Puts each hostile text into each text field. `decode` gives the value, as text, and the
/// problems; every field must be named as one, except where `is_silent` says so of path and text.
fn check(
    object: Value,
    is_silent: impl Fn(&str, &str) -> bool,
    decode: impl Fn(Value) -> (String, Vec<String>),
) {
    let (clean, problems) = decode(object.clone());
    assert_eq!(problems, [""; 0], "{clean}");
    let mut paths = Vec::new();
    texts(&object, String::new(), &mut paths);
    assert!(paths.len() > 4);
    for path in &paths {
        for text in hostile() {
            let mut object = object.clone();
            *object.pointer_mut(path).unwrap() = Value::String(text.clone());
            let (value, problems) = decode(object);
            // Both are in Debug form, so a text that got in would be found. The shortest ones are
            // also parts of the form itself.
            let escaped = format!("{text:?}");
            assert!(!value.contains(&escaped), "{path}: {value}");
            assert!(text.len() <= 2 || !value.contains(escaped.trim_matches('"')), "{path}: {value}");
            assert_eq!(problems.is_empty(), is_silent(path, &text), "{path}: {text:?}: {problems:?}");
            for problem in problems {
                assert!(!problem.contains(['\n', '\0', '\r']) && problem.len() < 1000, "{problem:?}");
            }
        }
    }
}

#[test]
fn no_text_of_a_service_gets_into_a_value_unless_it_has_its_grammar() {
    let is_silent = |path: &str, text: &str| match path {
        // Says only whether there is one: clusterIPs holds the addresses.
        "/spec/clusterIP" => true,
        "/spec/externalIPs/0" => text.trim().is_empty(),
        // A padded range is read as if it were not.
        "/spec/loadBalancerSourceRanges/0" => text.trim().is_empty() || text == "0.0.0.0/0\n",
        _ => false,
    };
    check(full_service(), is_silent, |object| {
        let object: core::Service = serde_json::from_value(object).unwrap();
        let decoded = service(&object, &mut Interner::default());
        (format!("{:?}", decoded.named), super::messages(decoded.problems))
    });
}

#[test]
fn no_text_of_a_slice_gets_into_a_value_unless_it_has_its_grammar() {
    check(
        full_slice(),
        |_, _| false,
        |object| {
            let object: discovery::EndpointSlice = serde_json::from_value(object).unwrap();
            let decoded = slice(&object, &mut Interner::default());
            (format!("{:?}", decoded.named), super::messages(decoded.problems))
        },
    );
}

#[test]
fn no_text_of_a_node_gets_into_a_value_unless_it_has_its_grammar() {
    check(
        full_node(),
        |path, _| path == "/status/addresses/0/type",
        |object| {
            let object: core::Node = serde_json::from_value(object).unwrap();
            let (value, problems) = node(&object, &mut Interner::default());
            (format!("{value:?}"), super::messages(problems))
        },
    );
}
