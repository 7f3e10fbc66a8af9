//! Objects with a value in every field that is read, and hostile text.

use serde_json::{Value, json};

/// Text that an attacker, or a careless user, may write.
pub fn hostile() -> Vec<String> {
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

/// A Service with a value in every field that is read.
pub fn full_service() -> Value {
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

pub fn full_slice() -> Value {
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

pub fn full_node() -> Value {
    json!({
        "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"podCIDRs": ["10.1.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]},
    })
}

/// JSON pointers of all texts in `value`.
pub fn texts(value: &Value, path: String, found: &mut Vec<String>) {
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
