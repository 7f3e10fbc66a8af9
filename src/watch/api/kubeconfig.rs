//! Finds the API server and its credentials: in a kubeconfig, a flag, or the pod's environment; and lists
//! the files to reload, since credentials are replaced before they expire.

#![allow(clippy::disallowed_methods, reason = "reads credentials and the proxy environment")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use sha2::{Digest, Sha256};

use super::proxy::{proxy_for, proxy_url};

/// Certificate authority of the cluster, in a pod.
const SERVICE_ACCOUNT_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Files, each with a hash of its content; `None`: unreadable.
pub type FileHashes = BTreeMap<PathBuf, Option<[u8; 32]>>;

/// Where the API server is configured, by kube-proxy's rules: exactly the file `kubeconfig` (`KUBECONFIG`
/// and `~/.kube/config` are ignored), its server replaced by `master` if given; without both, the pod's
/// service account.
#[derive(Clone, Debug)]
pub struct ApiServerSource {
    /// Path of the kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server.
    pub master: Option<String>,
}

impl ApiServerSource {
    /// Reads the configuration as it is now. Errors name the unusable file.
    pub async fn config(&self) -> anyhow::Result<Config> {
        let (mut config, own_proxy) = match (&self.kubeconfig, &self.master) {
            (Some(path), master) => from_file(path, master.as_deref()).await?,
            (None, Some(master)) => {
                let server =
                    master.parse().with_context(|| format!("reading the server address {master:?}"))?;
                (Config::new(server), None)
            }
            (None, None) => (service_account_config()?, None),
        };
        config.proxy_url = proxy_of_server(&config, own_proxy)?;
        Ok(config)
    }

    /// The files with credentials, with their current content: the kubeconfig, and the certificates and
    /// keys that it names. A token file is left out, since it is read for each request.
    pub fn files(&self) -> FileHashes {
        let paths = match (&self.kubeconfig, &self.master) {
            (Some(path), _) => [path.clone()].into_iter().chain(credential_files(path)).collect(),
            (None, Some(_)) => Vec::new(),
            (None, None) => vec![PathBuf::from(SERVICE_ACCOUNT_CA)],
        };
        let hash = |path: &PathBuf| std::fs::read(path).ok().map(|content| Sha256::digest(content).into());
        paths.into_iter().map(|path| (path.clone(), hash(&path))).collect()
    }
}

/// The API server and credentials that a pod finds in its environment.
pub fn service_account_config() -> anyhow::Result<Config> {
    Config::incluster_env().context("reading the pod's service account")
}

/// The proxy for the server of `config`: `own_proxy`, which a kubeconfig names, else that of the environment.
/// kube compares `NO_PROXY` with the proxy instead of the server, and ignores proxies in a pod.
pub fn proxy_of_server(config: &Config, own_proxy: Option<String>) -> anyhow::Result<Option<http::Uri>> {
    let proxy = own_proxy.or_else(|| proxy_for(&config.cluster_url, |name| std::env::var(name).ok()));
    let read =
        |proxy: String| proxy_url(&proxy).with_context(|| format!("reading the proxy address {proxy:?}"));
    proxy.map(read).transpose()
}

/// Paths of certificates and keys in a kubeconfig, of all users; empty if it cannot be read.
fn credential_files(kubeconfig: &Path) -> Vec<PathBuf> {
    let Ok(kubeconfig) = Kubeconfig::read_from(kubeconfig) else { return Vec::new() };
    let clusters = kubeconfig.clusters.into_iter().filter_map(|named| named.cluster);
    let users = kubeconfig.auth_infos.into_iter().filter_map(|named| named.auth_info);
    let authorities = clusters.filter_map(|cluster| cluster.certificate_authority);
    let identities = users.flat_map(|user| [user.client_certificate, user.client_key]).flatten();
    authorities.chain(identities).map(PathBuf::from).collect()
}

/// Reads the current context of a kubeconfig, and the proxy that the kubeconfig names.
async fn from_file(path: &Path, master: Option<&str>) -> anyhow::Result<(Config, Option<String>)> {
    let reading = || format!("reading kubeconfig {}", path.display());
    let mut kubeconfig = Kubeconfig::read_from(path).with_context(reading)?;
    let context = kubeconfig.current_context.clone();
    let context = kubeconfig.contexts.iter().find(|named| Some(&named.name) == context.as_ref());
    let cluster = context.and_then(|named| named.context.as_ref()).map(|context| context.cluster.clone());
    let cluster = kubeconfig
        .clusters
        .iter_mut()
        .find(|named| Some(&named.name) == cluster.as_ref())
        .and_then(|named| named.cluster.as_mut())
        .ok_or_else(|| anyhow!("the current context names no cluster"))
        .with_context(reading)?;
    if let Some(master) = master {
        cluster.server = Some(master.to_owned());
    }
    let proxy = cluster.proxy_url.clone().filter(|proxy| !proxy.is_empty());
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(reading)?;
    Ok((config, proxy))
}

#[cfg(test)]
pub mod tests;
