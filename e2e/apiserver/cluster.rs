//! The choice between the simulator and a real API server, and their common interface.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::Value;

use super::ApiServer;
use super::access::User;
use super::fault::Fault;
use super::programs::TOKEN;
use super::real::RealServer;

/// An API server that a test fills and a client watches.
pub trait Cluster: Send + Sync {
    /// Creates or replaces an object, `status` included; returns its resourceVersion.
    fn put(&self, object: Value) -> u64;
    /// Deletes an object; returns whether it existed.
    fn delete(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool;
    /// The events in the namespace `default`, as clients created them.
    fn events(&self) -> Vec<Value>;
    /// A kubeconfig for clients that reach the address on which it was started.
    fn kubeconfig(&self) -> String;
    /// A kubeconfig for clients that reach it at `ip`, with [`TOKEN`].
    fn kubeconfig_at(&self, ip: IpAddr) -> String;
    /// The certificate of the authority for clients, as PEM.
    fn authority(&self) -> String;

    /// Stores the objects of a YAML text with several documents and Lists, in its order.
    fn put_yaml(&self, text: &str) {
        for object in objects_of_yaml(text) {
            self.put(object);
        }
    }

    /// Starts a fault, or ends it; a real server has only the faults of connections
    /// ([`Fault::is_of_connections`]), through a [`super::Proxy`].
    fn set_fault(&self, fault: Option<Fault>);
    /// How often clients met the fault that was started last.
    fn faults_met(&self) -> u64;

    /// The simulator, if it is one: for its other faults and counters.
    fn simulator(&self) -> Option<&ApiServer> {
        None
    }
}

/// Starts a real API server if `KUBEBUILDER_ASSETS` names a folder with `etcd` and `kube-apiserver`
/// (the convention of envtest), else the simulator; on `listen`, inside the namespace `netns`.
///
/// # Errors
/// It does not start; nothing keeps running.
#[allow(clippy::disallowed_methods, reason = "tests are configured by the environment")]
pub fn start_cluster(listen: SocketAddr, netns: Option<OwnedFd>) -> anyhow::Result<Box<dyn Cluster>> {
    match std::env::var_os("KUBEBUILDER_ASSETS") {
        Some(folder) if !folder.is_empty() => {
            Ok(Box::new(RealServer::start(Path::new(&folder), listen, netns)?))
        }
        _ => {
            let server = ApiServer::start(listen, netns)?;
            server.require_token(Some(TOKEN));
            Ok(Box::new(server))
        }
    }
}

impl Cluster for ApiServer {
    fn put(&self, object: Value) -> u64 {
        self.apply(object).unwrap_or_else(|why| panic!("the API server refused: {why}"))
    }

    fn delete(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool {
        ApiServer::delete(self, kind, namespace, name)
    }

    fn events(&self) -> Vec<Value> {
        self.posted("Event")
    }

    fn kubeconfig(&self) -> String {
        Cluster::kubeconfig_at(self, self.reachable())
    }

    fn kubeconfig_at(&self, ip: IpAddr) -> String {
        self.kubeconfig_https(ip, &User::Token(TOKEN.to_owned()))
    }

    fn authority(&self) -> String {
        ApiServer::authority(self)
    }

    fn set_fault(&self, fault: Option<Fault>) {
        ApiServer::set_fault(self, fault);
    }

    fn faults_met(&self) -> u64 {
        ApiServer::faults_met(self)
    }

    fn simulator(&self) -> Option<&ApiServer> {
        Some(self)
    }
}

/// The objects of a YAML text: several documents, Lists opened, empty documents skipped.
///
/// # Panics
/// The text is not YAML.
pub fn objects_of_yaml(text: &str) -> Vec<Value> {
    // The parser's limits are for foreign input; this text is the test's own.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: usize::MAX,
            max_nodes: usize::MAX,
            max_events: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .unwrap_or_else(|error| panic!("objects that are not YAML: {error}"));
    documents.into_iter().filter(|document| !document.is_null()).flat_map(open_list).collect()
}

fn open_list(mut document: Value) -> Vec<Value> {
    let kind = document["kind"].as_str().unwrap_or("").to_owned();
    let Some(item_kind) = kind.strip_suffix("List") else {
        return vec![document];
    };
    let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) else {
        return Vec::new();
    };
    // The items of a `ServiceList` may lack their kind.
    let complete = |mut item: Value| {
        if item["kind"].is_null() && !item_kind.is_empty() {
            item["kind"] = item_kind.into();
            item["apiVersion"] = document["apiVersion"].clone();
        }
        item
    };
    items.into_iter().map(complete).collect()
}
