//! `--cluster`: objects read from an API server, once, for one command.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use tokio::runtime::{Builder, Runtime};

use super::objects::Objects;
use crate::model::decode::Interner;
use crate::model::decode::manifest::Object;
use crate::model::{ObjectName, Problem};
use crate::watch::api::{ClusterChoice, ClusterReader, ReadFailure, ReadKind};

/// Which cluster.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArguments {
    /// Read Services, EndpointSlices and Nodes from the cluster of the kubeconfig, or of this pod
    ///
    /// Pods are read only where a name asks for one. Settings that shape rules are kube-proxy's defaults unless
    /// --config names a file, or `cluster`: the ConfigMap kube-system/kube-proxy, or `cluster:NS/NAME` for another one
    /// (its key config.conf).
    #[arg(long, conflicts_with = "objects")]
    cluster: bool,
    /// Kubeconfig; implies --cluster [default: KUBECONFIG, else ~/.kube/config, else the pod's service account]
    #[arg(long, value_name = "FILE", conflicts_with = "objects")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; implies --cluster [default: the current one]
    #[arg(long, value_name = "NAME", conflicts_with = "objects")]
    context: Option<String>,
    /// Namespace of names without one [default: the context's, else default]
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Set for a kubectl plugin: without another source, --cluster.
    #[arg(long = CLUSTER_BY_DEFAULT, hide = true)]
    is_default: bool,
}

/// The hidden flag that `main` adds for a kubectl plugin.
pub const CLUSTER_BY_DEFAULT: &str = "cluster-by-default";

/// What one command needs of a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterNeeds<'a> {
    /// The node, if known: then no other Node is read.
    pub node: Option<&'a str>,
    /// Pods.
    pub pods: &'a [ObjectName],
    /// `--config`, where it names a ConfigMap.
    pub config_map: Option<&'a ConfigMapPlace>,
}

/// What was read of a cluster.
#[derive(Debug)]
pub struct ClusterContent {
    /// Objects and their problems.
    pub objects: Objects,
    /// The text of the ConfigMap that was asked for.
    pub config: Option<String>,
}

/// The ConfigMap with kube-proxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapPlace {
    namespace: String,
    name: String,
}

impl ConfigMapPlace {
    /// Reads `cluster` or `cluster:NS/NAME`; `None` for the path of a file.
    pub fn parse(text: &str) -> Option<ConfigMapPlace> {
        let (namespace, name) = match text.strip_prefix("cluster")? {
            "" => ("kube-system", "kube-proxy"),
            rest => rest.strip_prefix(':')?.split_once('/')?,
        };
        Some(ConfigMapPlace { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// The key of the configuration in kubeadm's ConfigMap.
const CONFIG_KEY: &str = "config.conf";

impl ClusterArguments {
    /// Whether flags ask for the cluster.
    pub fn is_asked(&self) -> bool {
        self.cluster || self.kubeconfig.is_some() || self.context.is_some()
    }

    /// The kubeconfig given.
    pub fn kubeconfig(&self) -> Option<&Path> {
        self.kubeconfig.as_deref()
    }

    /// Whether a context is given.
    pub fn has_context(&self) -> bool {
        self.context.is_some()
    }

    /// Whether the cluster is the source if no other is given.
    pub fn is_default(&self) -> bool {
        self.is_default
    }

    fn choice(&self) -> ClusterChoice {
        ClusterChoice { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }

    /// The namespace of names without one. Only with `is_cluster` a kubeconfig is read.
    pub fn namespace(&self, is_cluster: bool) -> anyhow::Result<String> {
        match &self.namespace {
            Some(namespace) => Ok(namespace.clone()),
            None if is_cluster => Ok(runtime()?.block_on(self.choice().resolve())?.namespace),
            None => Ok("default".to_owned()),
        }
    }

    /// Reads what `needs` say from the cluster. Errors name the server, the kubeconfig and the missing right.
    pub fn read(&self, needs: ClusterNeeds<'_>) -> anyhow::Result<ClusterContent> {
        runtime()?.block_on(async {
            let reader = ClusterReader::connect(&self.choice()).await?;
            let found = FoundObjects::default();
            read_pods(&reader, needs.pods, &found).await?;
            let node = needs.node.map(str::to_owned).or_else(|| found.node_of(needs.pods));
            let add = |object| found.add(object);
            let lists = tokio::try_join!(
                reader.list(ReadKind::Services, &add),
                reader.list(ReadKind::Slices, &add),
                read_nodes(&reader, node.as_deref(), &found),
            );
            lists?;
            let config = read_config_map(&reader, needs.config_map).await?;
            let mut objects = found.0.into_inner().0;
            objects.note_not_proxied();
            Ok(ClusterContent { objects, config })
        })
    }
}

/// Objects as they arrive from several lists at once.
#[derive(Default)]
struct FoundObjects(RefCell<(Objects, Interner)>);

impl FoundObjects {
    fn add(&self, read: Result<Object, Box<Problem>>) {
        let (objects, interner) = &mut *self.0.borrow_mut();
        let problems = match read {
            Ok(object) => objects.inventory.add(&object, interner),
            Err(problem) => vec![*problem],
        };
        objects.add_problems("cluster", &problems);
    }

    /// The node of the first of `pods` that has one.
    fn node_of(&self, pods: &[ObjectName]) -> Option<String> {
        let (objects, _) = &*self.0.borrow();
        let known = objects.inventory.pods();
        pods.iter().find_map(|pod| known.get(pod)?.node.as_deref().map(str::to_owned))
    }
}

async fn read_pods(reader: &ClusterReader, pods: &[ObjectName], found: &FoundObjects) -> anyhow::Result<()> {
    for pod in pods {
        match reader.pod(pod.namespace(), pod.name()).await {
            Err(failure) if failure.is_missing() => {
                bail!("there is no Pod {pod} in the cluster at {}", reader.description());
            }
            read => found.add(Ok(read?)),
        }
    }
    Ok(())
}

/// Reads Node `name`; all Nodes if none is named or that one is missing, for a message that lists them.
async fn read_nodes(
    reader: &ClusterReader,
    name: Option<&str>,
    found: &FoundObjects,
) -> Result<(), ReadFailure> {
    if let Some(name) = name {
        match reader.node(name).await {
            Err(failure) if failure.is_missing() => {}
            read => {
                found.add(read?);
                return Ok(());
            }
        }
    }
    reader.list(ReadKind::Nodes, &|object| found.add(object)).await
}

async fn read_config_map(
    reader: &ClusterReader,
    place: Option<&ConfigMapPlace>,
) -> anyhow::Result<Option<String>> {
    let Some(ConfigMapPlace { namespace, name }) = place else { return Ok(None) };
    let text = reader.config_map(namespace, name, CONFIG_KEY).await.context("--config")?;
    Ok(Some(text.with_context(|| format!("--config: ConfigMap {namespace}/{name} has no key {CONFIG_KEY}"))?))
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")
}

/// `name` with `namespace` where it has none: `svc/db:80` becomes `svc/shop/db:80`, `pod/cart` `pod/shop/cart`, and with
/// `is_service` also `db:80` `shop/db:80`. Other texts (addresses, `node`) stay.
pub fn qualify(name: &str, namespace: &str, is_service: bool) -> String {
    for prefix in ["svc/", "service/", "pod/"] {
        if let Some(rest) = name.strip_prefix(prefix) {
            let is_qualified =
                rest.split('/').next().is_some_and(|first| !first.contains(':')) && has_name(rest);
            return if is_qualified { name.to_owned() } else { format!("{prefix}{namespace}/{rest}") };
        }
    }
    match is_service && !has_name(name) {
        true => format!("{namespace}/{name}"),
        false => name.to_owned(),
    }
}

/// Whether a `/` before any `:` parts a namespace and a name; one behind the port is for the protocol.
fn has_name(text: &str) -> bool {
    match (text.find('/'), text.find(':')) {
        (Some(slash), Some(colon)) => slash < colon,
        (slash, _) => slash.is_some_and(|slash| {
            !matches!(&text[slash + 1..], "tcp" | "udp" | "sctp" | "TCP" | "UDP" | "SCTP")
        }),
    }
}

/// The Pods that names such as `pod/NS/NAME:PORT` ask for.
pub fn pods_of(names: &[&str]) -> Vec<ObjectName> {
    let pods = names.iter().filter_map(|name| {
        let (namespace, rest) = name.strip_prefix("pod/")?.split_once('/')?;
        let name = rest.split([':', '/']).next().unwrap_or(rest);
        (!namespace.is_empty() && !name.is_empty()).then(|| ObjectName::new(namespace, name))
    });
    pods.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_namespace_get_one() {
        let check = |name: &str, expected: &str| assert_eq!(qualify(name, "shop", false), expected);
        check("svc/db", "svc/shop/db");
        check("svc/db:5432", "svc/shop/db:5432");
        check("svc/db:5432/udp", "svc/shop/db:5432/udp");
        check("svc/db/udp", "svc/shop/db/udp");
        check("svc/other/db:5432/udp", "svc/other/db:5432/udp");
        check("svc/other/db", "svc/other/db");
        check("pod/cart", "pod/shop/cart");
        check("pod/other/cart", "pod/other/cart");
        for other in [
            "10.96.0.1:80/TCP",
            "[fd00::1]:80",
            "node",
            "external",
            "pod",
            "pod-elsewhere",
            "shop/db:80",
            "db:80",
        ] {
            check(other, other);
        }
        assert_eq!(qualify("db:http", "shop", true), "shop/db:http");
        assert_eq!(qualify("other/db:http", "shop", true), "other/db:http");
    }

    #[test]
    fn names_of_pods_ask_for_them() {
        let names = ["pod/shop/cart", "svc/shop/db:1", "pod/a/b:80/tcp", "pod", "pod/"];
        let shown: Vec<String> = pods_of(&names).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["shop/cart", "a/b"]);
    }

    #[test]
    fn a_configuration_may_be_in_the_cluster() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let place = ConfigMapPlace::parse(text);
            assert_eq!(place.as_ref().map(|place| (&*place.namespace, &*place.name)), expected, "{text}");
        };
        check("cluster", Some(("kube-system", "kube-proxy")));
        check("cluster:infra/proxy", Some(("infra", "proxy")));
        check("./cluster", None);
        check("cluster.yaml", None);
        check("cluster:x", None);
    }
}
