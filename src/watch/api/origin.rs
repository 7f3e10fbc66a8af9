//! Where the API server and the credentials for it are written down: a kubeconfig, a flag, or a pod's
//! environment; and which files have to be followed, since they are replaced before they expire.

#![allow(clippy::disallowed_methods, reason = "reads credentials and the proxy environment")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use sha2::{Digest, Sha256};

use super::proxy::{proxy_for, proxy_url};

/// Where a pod finds its cluster's certificate authority.
const SERVICE_ACCOUNT_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Files, each with a hash of what it holds; `None`: it cannot be read.
pub type Files = BTreeMap<PathBuf, Option<[u8; 32]>>;

/// By kube-proxy's rules: exactly the file `kubeconfig` (neither `KUBECONFIG` nor `~/.kube/config`
/// count), its server replaced by `master` if given; with neither of them, what a pod finds in its
/// environment.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// The address of the API server.
    pub master: Option<String>,
}

impl Origin {
    /// What is written there now. Errors name the file at fault.
    pub async fn config(&self) -> anyhow::Result<Config> {
        let (mut config, named_proxy) = match (&self.kubeconfig, &self.master) {
            (Some(path), master) => from_file(path, master.as_deref()).await?,
            (None, Some(master)) => {
                let server =
                    master.parse().with_context(|| format!("reading the server address {master:?}"))?;
                (Config::new(server), None)
            }
            (None, None) => (Config::incluster_env().context("reading the pod's service account")?, None),
        };
        // kube compares NO_PROXY with the proxy, not with the server, and knows no proxy in a pod.
        let proxy = named_proxy.or_else(|| proxy_for(&config.cluster_url, |name| std::env::var(name).ok()));
        config.proxy_url = match proxy {
            Some(proxy) => {
                Some(proxy_url(&proxy).with_context(|| format!("reading the proxy address {proxy:?}"))?)
            }
            None => None,
        };
        Ok(config)
    }

    /// The files that count, as they are now: the kubeconfig, and the certificates and keys that it
    /// names. Without a file of tokens, which is read for each request anyway.
    pub fn files(&self) -> Files {
        let paths = match (&self.kubeconfig, &self.master) {
            (Some(path), _) => [path.clone()].into_iter().chain(named_files(path)).collect(),
            (None, Some(_)) => Vec::new(),
            (None, None) => vec![PathBuf::from(SERVICE_ACCOUNT_CA)],
        };
        let hash = |path: &PathBuf| std::fs::read(path).ok().map(|content| Sha256::digest(content).into());
        paths.into_iter().map(|path| (path.clone(), hash(&path))).collect()
    }
}

/// The files of certificates and keys that a kubeconfig names, of whichever user; none if it cannot be
/// read.
fn named_files(kubeconfig: &Path) -> Vec<PathBuf> {
    let Ok(kubeconfig) = Kubeconfig::read_from(kubeconfig) else { return Vec::new() };
    let clusters = kubeconfig.clusters.into_iter().filter_map(|named| named.cluster);
    let users = kubeconfig.auth_infos.into_iter().filter_map(|named| named.auth_info);
    let authorities = clusters.filter_map(|cluster| cluster.certificate_authority);
    let identities = users.flat_map(|user| [user.client_certificate, user.client_key]).flatten();
    authorities.chain(identities).map(PathBuf::from).collect()
}

/// The configuration of the current context of a file, and the proxy that the file names.
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
        .ok_or_else(|| anyhow!("its current context names no cluster"))
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
