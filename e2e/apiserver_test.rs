//! The simulated API server behaves as clients of a real one rely on; tested with the kube client.

#![allow(clippy::disallowed_methods, reason = "tests have a clock, start programs and write files")]

#[path = "apiserver.rs"]
mod apiserver;
#[path = "apiserver_test/changes.rs"]
mod changes;
#[path = "apiserver_test/faults.rs"]
mod faults;
#[path = "apiserver_test/fleet.rs"]
mod fleet;
#[allow(dead_code, reason = "shared with the example; each uses its part")]
#[path = "fleet/layers.rs"]
mod layers;
#[path = "apiserver_test/lists.rs"]
mod lists;
#[path = "apiserver_test/mirror.rs"]
mod mirror;
#[path = "apiserver_test/namespace.rs"]
mod namespace;
#[path = "../benches/cluster.rs"]
mod objects;
#[path = "apiserver_test/raw.rs"]
mod raw;
#[path = "apiserver_test/recorded.rs"]
mod recorded;
#[path = "apiserver_test/size.rs"]
mod size;
#[path = "apiserver_test/tls.rs"]
mod tls;
#[path = "apiserver_test/watches.rs"]
mod watches;

use std::time::Duration;

use apiserver::ApiServer;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

/// Longer than anything here takes; when it is reached, the test fails.
const LIMIT: Duration = Duration::from_secs(30);

fn start() -> ApiServer {
    ApiServer::start(([127, 0, 0, 1], 0).into(), None).expect("loopback has a free port")
}

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a usable kubeconfig");
    config.proxy_url = None;
    // For 429, 503 and 504 the client itself retries for minutes.
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// GET of a path, as JSON; a failure as its status code.
async fn get(client: &Client, path: &str) -> Result<Value, u16> {
    let request = axum::http::Request::get(path).body(Vec::new()).expect("a valid path");
    match client.request(request).await {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(status.code),
        Err(error) => panic!("GET {path}: {error}"),
    }
}

/// The names of the items of a list, in its order.
fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("a list has items");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("an item has a name")).collect()
}

fn service(name: &str, cluster_ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "clusterIP": cluster_ip, "ports": [{ "port": 80, "protocol": "TCP" }] },
    })
}

fn slice(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4", "endpoints": [{ "addresses": [address] }], "ports": [{ "port": 80 }],
    })
}

fn node(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    })
}
