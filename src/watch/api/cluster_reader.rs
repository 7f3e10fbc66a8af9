//! Reads the objects of a cluster once, for a command: whole lists in pages, or single objects. Each object is decoded
//! and passed on as it arrives.

use std::fmt;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1 as core;
use kube::Resource;
use kube::api::ListParams;
use serde_json::Value;

use super::client::{Connection, connect_once};
use super::cluster_choice::{ChosenCluster, ClusterChoice};
use super::failure::error_chain;
use super::framing::ListItems;
use super::received::ReceivedObject;
use super::tracker::WatchedKind;
use crate::model::Problem;
use crate::model::decode::manifest::Object;
use crate::model::decode::{ApiNode, ApiPod, ApiService, ApiSlice, FieldValue};

/// Objects in one page. As kubectl: the API server holds only one page in memory for us.
const PAGE: u32 = 500;

/// How long the server may take for the next object.
const NEXT_ITEM: Duration = Duration::from_secs(30);

/// A kind of object that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadKind {
    /// All Services, also those that are not proxied.
    Services,
    /// All EndpointSlices but those of headless Services.
    Slices,
    /// All Nodes.
    Nodes,
}

/// Why objects could not be read. Displayed with the server, where its address comes from, and the missing right.
#[derive(Debug, thiserror::Error)]
pub struct ReadFailure {
    /// `services`, `node "n"`.
    what: String,
    /// `https://192.0.2.1:6443 (context "prod" of /root/.kube/config)`
    cluster: String,
    /// The error.
    error: String,
    /// HTTP status, if the server has answered.
    status: Option<u16>,
    /// `list services`, as a role would grant it; shown with status 403.
    right: String,
}

impl ReadFailure {
    /// Whether the server answered that the object does not exist.
    pub fn is_missing(&self) -> bool {
        self.status == Some(404)
    }
}

impl fmt::Display for ReadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ReadFailure { what, cluster, error, status, right } = self;
        write!(f, "cannot read {what} of the cluster at {cluster}: ")?;
        match status {
            Some(401) => write!(f, "the API server rejects the credentials: {error}"),
            Some(403) => write!(f, "{error}; needs the right to {right}"),
            _ => f.write_str(error),
        }
    }
}

/// A connection to a cluster for one command.
pub struct ClusterReader {
    connection: Connection,
    cluster: ChosenCluster,
}

impl ClusterReader {
    /// Finds the cluster and prepares the connection; sends no request. Errors name the file at fault.
    pub async fn connect(choice: &ClusterChoice) -> anyhow::Result<ClusterReader> {
        let cluster = choice.resolve().await?;
        Ok(ClusterReader { connection: connect_once(cluster.config.clone())?, cluster })
    }

    /// The namespace of names without one, unless a flag says otherwise.
    pub fn namespace(&self) -> &str {
        &self.cluster.namespace
    }

    /// `https://192.0.2.1:6443 (context "prod" of /root/.kube/config)`
    pub fn description(&self) -> String {
        let url = self.cluster.config.cluster_url.to_string();
        format!("{} ({})", url.trim_end_matches('/'), self.cluster.origin)
    }

    /// Reads all objects of `kind`; passes each on, or the problem that makes it unusable.
    pub async fn list(
        &self,
        kind: ReadKind,
        each: &dyn Fn(Result<Object, Box<Problem>>),
    ) -> Result<(), ReadFailure> {
        match kind {
            ReadKind::Services => {
                self.list_kind(None, &|it: ApiService| Object::Service(Box::new(it)), each).await
            }
            ReadKind::Slices => {
                self.list_kind(ApiSlice::LABELS, &|it: ApiSlice| Object::Slice(Box::new(it)), each).await
            }
            ReadKind::Nodes => self.list_kind(None, &|it: ApiNode| Object::Node(Box::new(it)), each).await,
        }
    }

    /// Reads one Node.
    pub async fn node(&self, name: &str) -> Result<Result<Object, Box<Problem>>, ReadFailure> {
        let failure = |failure| self.failure(format!("node {name:?}"), "get nodes".to_owned(), failure);
        let path = format!("{}/{name}", core::Node::url_path(&(), None));
        let received: ReceivedObject<ApiNode> = self.get(&path).await.map_err(failure)?;
        Ok(received.into_result().map(|node| Object::Node(Box::new(node))))
    }

    /// Reads one Pod.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Object, ReadFailure> {
        let right = format!("get pods in namespace {namespace:?}");
        let failure = |failure| self.failure(format!("pod {namespace}/{name}"), right.clone(), failure);
        let path = format!("{}/{name}", core::Pod::url_path(&(), Some(namespace)));
        let pod: FieldValue<ApiPod> = self.get(&path).await.map_err(failure)?;
        Ok(Object::Pod(Box::new(pod.get().cloned().unwrap_or_default())))
    }

    /// Reads the text under `key` of a ConfigMap; `None` without that key.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
    ) -> Result<Option<String>, ReadFailure> {
        let right = format!("get configmaps in namespace {namespace:?}");
        let failure = |failure| self.failure(format!("configmap {namespace}/{name}"), right.clone(), failure);
        let path = format!("{}/{name}", core::ConfigMap::url_path(&(), Some(namespace)));
        let map: Value = self.get(&path).await.map_err(failure)?;
        Ok(map["data"][key].as_str().map(str::to_owned))
    }

    async fn list_kind<K>(
        &self,
        labels: Option<&str>,
        object: &(dyn Fn(K) -> Object + Sync),
        each: &dyn Fn(Result<Object, Box<Problem>>),
    ) -> Result<(), ReadFailure>
    where
        K: WatchedKind + Send + 'static,
    {
        let plural = K::Api::plural(&());
        let right = match &*K::Api::group(&()) {
            "" => format!("list {plural}"),
            group => format!("list {plural}.{group}"),
        };
        let failure =
            |failure| self.failure(plural.to_string(), format!("{right} of all namespaces"), failure);
        let mut params = ListParams {
            label_selector: labels.map(str::to_owned),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let request = kube::core::Request::new(K::Api::url_path(&(), None)).list(&params);
            let request = request.map_err(|error| failure(PageFailure::other(error_chain(&error))))?;
            let reader = self.connection.client.request_stream(request).await;
            let mut items = match reader {
                Ok(reader) => ListItems::new(reader),
                // The state of the first page is gone. Objects that were read are read again: they replace themselves.
                Err(kube::Error::Api(status)) if status.code == 410 && params.continue_token.is_some() => {
                    params = ListParams { limit: None, continue_token: None, ..params };
                    continue;
                }
                Err(error) => return Err(failure(PageFailure::of(&error))),
            };
            loop {
                let next = tokio::time::timeout(NEXT_ITEM, items.next()).await;
                let next = next.map_err(|_| {
                    failure(PageFailure::other(format!("no data within {} s", NEXT_ITEM.as_secs())))
                })?;
                let item = next.map_err(|error| failure(PageFailure::other(error_chain(&error))))?;
                let Some(item) = item else { break };
                let received: ReceivedObject<K> = serde_json::from_slice(item).map_err(|error| {
                    failure(PageFailure::other(format!("an item is not readable: {error}")))
                })?;
                each(received.into_result().map(object));
            }
            let end = items
                .end()
                .map_err(|error| failure(PageFailure::other(format!("the list is not readable: {error}"))))?;
            if end.continuation.is_empty() {
                return Ok(());
            }
            params.continue_token = Some(end.continuation);
        }
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, PageFailure> {
        let request = Request::get(path).body(Vec::new());
        let request = request.map_err(|error| PageFailure::other(error.to_string()))?;
        let body = self.connection.client.request_text(request).await;
        let body = body.map_err(|error| PageFailure::of(&error))?;
        serde_json::from_str(&body)
            .map_err(|error| PageFailure::other(format!("the answer is not readable: {error}")))
    }

    fn failure(
        &self,
        what: String,
        right: String,
        PageFailure { error, status }: PageFailure,
    ) -> ReadFailure {
        ReadFailure { what, cluster: self.description(), error, status, right }
    }
}

/// Why one request failed.
struct PageFailure {
    error: String,
    status: Option<u16>,
}

impl PageFailure {
    fn other(error: String) -> PageFailure {
        PageFailure { error, status: None }
    }

    fn of(error: &kube::Error) -> PageFailure {
        match error {
            kube::Error::Api(status) => {
                let error = if status.message.is_empty() { &status.reason } else { &status.message };
                PageFailure { error: error.clone(), status: Some(status.code) }
            }
            error => PageFailure::other(error_chain(error)),
        }
    }
}
